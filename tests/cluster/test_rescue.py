"""What docs/recovery.md promises, typed on real hosts: lost majorities, damaged logs, backups. In order, one after the other."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.network.lab import ROOT, until
from tests.cluster.swarm_lab import IMAGE, Lab, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with swarm_lab(tmp_path_factory.mktemp("rescue")) as found:
        yield found


def swarmctl(lab: Lab, on: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "swarm_agent.cli", "--socket", lab[on].socket, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )


def swarm_info(lab: Lab, on: int) -> dict[str, Any]:
    return dict(lab[on].get("/info")["Swarm"])


def names(lab: Lab, on: int) -> set[str]:
    return set(lab[on].swarm("service", "ls", "--format", "{{.Name}}").split())


def managers(lab: Lab, on: int) -> list[str]:
    status, nodes = lab[on].call_api("GET", "/nodes")
    if status != 200:
        return []
    return [n["ManagerStatus"]["Reachability"] for n in nodes if n.get("ManagerStatus")]


def three_managers(lab: Lab, on: int) -> None:
    until(lambda: managers(lab, on) == ["reachable"] * 3, "three managers that answer", 60)


def test_three_managers_run_a_service(lab: Lab) -> None:
    lab[1].swarm("swarm", "init", "--advertise-addr", lab[1].address)
    token = lab[1].swarm("swarm", "join-token", "-q", "manager").strip()
    for number in (2, 3):
        lab[number].swarm("swarm", "join", "--token", token, f"{lab[1].address}:2377")
    three_managers(lab, 1)
    lab[1].swarm(
        "service",
        "create",
        "-d",
        "--name",
        "web",
        "--replicas",
        "3",
        f"{IMAGE}:1",
        "/task",
        "serve",
        "web",
        "7000",
    )
    lab.running(1, "web", 3)


def test_what_was_acknowledged_survives_the_death_of_all_managers_at_once(lab: Lab) -> None:
    made: list[str] = []

    def create(number: int) -> None:
        body = {
            "Name": f"kept-{number}",
            "TaskTemplate": {"ContainerSpec": {"Image": f"{IMAGE}:1"}},
            "Mode": {"Replicated": {"Replicas": 0}},
        }
        try:
            status, _ = lab[1 + number % 3].call_api("POST", "/services/create", body)
        except (OSError, http.client.HTTPException):
            return  # its manager died before it said anything
        if status == 201:
            made.append(f"kept-{number}")

    with ThreadPoolExecutor(6) as pool:
        writes = [pool.submit(create, number) for number in range(300)]
        until(lambda: len(made) >= 60, "sixty acknowledged writes", 30)
        for number in (1, 2, 3):
            agent = lab[number].agent
            assert agent is not None
            agent.send_signal(signal.SIGKILL)
        for write in writes:
            write.result()
    assert len(made) < 300, "they died in the middle of it"
    for number in (1, 2, 3):
        lab[number].kill_agent()
        lab[number].start_agent()
    until(lambda: lab[1].call_api("GET", "/services")[0] == 200, "a leader", 30)
    assert set(made) <= names(lab, 1)
    three_managers(lab, 1)


def test_a_backup_is_taken_from_a_follower(lab: Lab) -> None:
    on = next(n for n in (1, 2, 3) if n != lab.leader())
    folder = lab[1].folder.parent
    done = swarmctl(lab, on, "backup", "--key-file", str(folder / "key"), str(folder / "backup"))
    assert done.returncode == 0, done.stderr
    assert (folder / "key").stat().st_mode & 0o777 == 0o600
    assert (folder / "backup").stat().st_mode & 0o777 == 0o600
    assert b"kept-1" not in (folder / "backup").read_bytes()
    again = swarmctl(lab, on, "recover", "--key-file", str(folder / "key"), str(folder / "backup"))
    assert again.returncode == 2
    assert "outside of any" in again.stderr


def test_a_damaged_log_is_named_and_the_manager_joins_anew(lab: Lab) -> None:
    victim = next(n for n in (1, 2, 3) if n != lab.leader())
    other = 1 + victim % 3
    gone = lab.node_id(victim)
    lab[victim].kill_agent()
    wal = min((lab[victim].folder / "state" / "raft").glob("*.wal"))
    data = bytearray(wal.read_bytes())
    data[len(data) // 2] ^= 0xFF
    wal.write_bytes(data)
    lab[victim].start_agent()
    said = until(lambda: swarm_info(lab, victim)["Error"], "the damage to be told", 20)
    assert wal.name in said
    assert "rejoin" in said
    status, answer = lab[victim].call_api("GET", "/services")
    assert status == 503, answer
    assert "web" in names(lab, other)
    lab[victim].swarm("swarm", "leave", "--force")
    token = lab[other].swarm("swarm", "join-token", "-q", "manager").strip()
    lab[victim].swarm("swarm", "join", "--token", token, f"{lab[other].address}:2377")
    until(lambda: len(managers(lab, other)) >= 3, "the new manager", 60)
    lab[other].swarm("node", "demote", gone)
    until(
        lambda: lab[other].call_api("DELETE", f"/nodes/{gone}?force=1")[0] == 200, "the former node to go", 30
    )
    three_managers(lab, other)


def test_one_manager_goes_on_when_the_majority_is_gone(lab: Lab) -> None:
    status, refused = lab[3].call_api("POST", "/swarm/init", {"ForceNewCluster": True})
    assert (status, "has a majority" in str(refused)) == (503, True)
    lab[1].kill_agent()
    lab[2].kill_agent()
    said = until(lambda: swarm_info(lab, 3)["Error"], "what is missing to be told", 30)
    assert "2 of 3 managers" in said
    assert lab[1].address in said
    assert "--force-new-cluster" in said
    lab[3].swarm("swarm", "init", "--force-new-cluster", "--autolock", "--task-history-limit", "8")
    assert swarm_info(lab, 3)["Error"] == ""
    spec = lab[3].get("/swarm")["Spec"]
    assert spec["Orchestration"]["TaskHistoryRetentionLimit"] == 8
    assert spec["EncryptionConfig"]["AutoLockManagers"]
    assert lab[3].swarm("swarm", "unlock-key", "-q").startswith("SWMKEY-1-")
    lab[3].swarm(
        "swarm", "update", "--autolock=false"
    )  # the others are started again without anybody at hand
    assert "web" in names(lab, 3)
    lab[3].swarm("service", "create", "-d", "--name", "alone", "--replicas", "0", f"{IMAGE}:1")
    for number in (1, 2):
        lab[number].start_agent()
    three_managers(lab, 3)
    assert "alone" in names(lab, 1)
    lab.running(3, "web", 3)


def test_the_swarm_begins_anew_from_the_backup_at_another_address(lab: Lab) -> None:
    before = swarm_info(lab, 3)["Cluster"]["ID"]
    for number in (1, 2, 3):
        lab[number].swarm("swarm", "leave", "--force")
    folder = lab[1].folder.parent
    wrong = folder / "wrong"
    wrong.write_text("SWMBAK-1-" + "A" * 43 + "\n")
    refused = swarmctl(lab, 2, "recover", "--key-file", str(wrong), str(folder / "backup"))
    assert refused.returncode == 2
    assert "another key" in refused.stderr
    done = swarmctl(
        lab, 2, "recover", "--key-file", str(folder / "key"), "--advertise-addr", lab[2].address, str(folder / "backup")
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert swarm_info(lab, 2)["Cluster"]["ID"] == before
    assert {"web", "kept-1"} <= names(lab, 2)
    assert managers(lab, 2) == ["reachable"]
    token = lab[2].swarm("swarm", "join-token", "-q", "manager").strip()
    lab[1].swarm("swarm", "join", "--token", token, f"{lab[2].address}:2377")
    lab.running(2, "web", 3)
    ready = [n for n in json.loads(json.dumps(lab[2].get("/nodes"))) if n["Status"]["State"] == "ready"]
    assert len(ready) == 2
    down = [n["ID"] for n in lab[2].get("/nodes") if n["Status"]["State"] == "down"]
    for node in down:
        lab[2].swarm("node", "rm", "--force", node)


def test_a_manager_moves_to_another_address(lab: Lab, tmp_path: Path) -> None:
    """It keeps its name and its place; the other learns where it stands."""
    mover, other, new = 1, 2, "10.92.0.201"
    node = lab.node_id(mover)
    lab[mover].kill_agent(signal.SIGTERM)
    lab[mover].space.run("ip", "addr", "del", f"{lab[mover].address}/24", "dev", "eth0")
    lab[mover].space.run("ip", "addr", "add", f"{new}/24", "dev", "eth0")
    lab[mover].space.run("ip", "route", "replace", "default", "via", "10.92.0.254")
    lab[mover].start_agent(more=f'advertise_addr = "{new}"\n')

    def arrived() -> bool:
        status, nodes = lab[other].call_api("GET", "/nodes")
        found = {n["ID"]: n for n in nodes} if status == 200 else {}
        return node in found and found[node].get("ManagerStatus", {}).get("Addr") == f"{new}:2377"

    until(arrived, "the new address", 60)
    until(lambda: managers(lab, other) == ["reachable"] * 2, "both managers to answer", 30)
    assert lab.node_id(mover) == node
    lab[mover].swarm("service", "create", "-d", "--name", "moved", "--replicas", "0", f"{IMAGE}:1")
    assert "moved" in names(lab, other)
