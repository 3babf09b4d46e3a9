"""A manager that cannot be one for a while, its disk full or its log damaged: the worker beside it goes on, and everybody is told."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import SHELL, Lab, SwarmHost, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

CREATE = ("service", "create", "--no-resolve-image", "-d", "--restart-delay", "1s", "--name")
LOOP = (SHELL, "/bin/sh", "-c", "while true; do /bin/sleep 1; done")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with swarm_lab(tmp_path_factory.mktemp("half")) as found:
        for number in (1, 2, 3):
            found[number].kill_agent()
            found[number].start_agent(small_state="16m")
        found[1].swarm("swarm", "init", "--advertise-addr", found[1].address)
        token = found[1].swarm("swarm", "join-token", "-q", "manager").strip()
        for number in (2, 3):
            found[number].swarm("swarm", "join", "--token", token, f"{found[1].address}:2377")
        for number in (1, 2, 3):
            found[1].swarm("node", "update", "--label-add", f"n={number}", found.node_id(number))
        yield found


def term(host: SwarmHost) -> int:
    text = host.space.run("curl", "-s", "http://127.0.0.1:9323/metrics")
    found = re.search(r"^swarm_raft_term(?:{[^}]*})? (\d+)$", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


def listed(host: SwarmHost, node_id: str) -> str:
    """The line ``node ls`` has for a node."""
    lines = host.swarm("node", "ls", check=False).splitlines()
    return next((line for line in lines if line.startswith(node_id)), "")


def test_a_full_disk(lab: Lab) -> None:
    full = lab.leader()
    host = lab[full]
    other = lab[full % 3 + 1]
    node_id = lab.node_id(full)
    host.swarm(*CREATE, "pinned", "--constraint", f"node.labels.n=={full}", *LOOP)
    host.swarm(*CREATE, "free", "--replicas", "3", *LOOP)
    lab.running(other.number, "pinned", 1)
    lab.running(other.number, "free", 3)
    filler = host.folder / "state" / "filler"
    host.space.run("sh", "-c", f"cat /dev/zero > {filler} 2>/dev/null; true")
    until(lambda: "Unreachable (cannot write)" in listed(other, node_id), "node ls tells of the full disk")
    assert "No space left" in host.swarm("info", check=False)
    assert lab.nodes(other.number)[node_id]["Status"]["State"] == "ready"
    before = term(other)
    # What runs there runs on; what is new goes elsewhere or says why it waits.
    assert len(lab.running(other.number, "pinned", 1)) == 1
    other.swarm("service", "scale", "-d", "free=9")
    lab.running(other.number, "free", 9)
    assert len([t for t in lab.tasks(other.number, "free") if t["NodeID"] == node_id]) <= 1
    other.swarm("service", "update", "-d", "--force", "pinned")
    until(
        lambda: (
            any(
                "No space left" in str(t)
                for t in other.get("/tasks")
                if t["DesiredState"] in ("running", "ready")
            )
            or "No space left" in other.ctl("why", "pinned")
        ),
        "the reason the pinned task waits",
    )
    time.sleep(10)  # in which nothing is to happen
    assert term(other) == before
    tasks = [t for t in other.get("/tasks") if t["Status"]["State"] in ("rejected", "failed")]
    assert len(tasks) <= 1, tasks
    host.space.run("rm", str(filler))
    freed = time.monotonic()
    lab.running(other.number, "pinned", 1, 10)
    until(
        lambda: len([t for t in lab.tasks(other.number, "pinned") if t["Status"]["State"] == "running"]) == 1,
        "runs",
    )
    until(
        lambda: "Reachable" in listed(other, node_id) or "Leader" in listed(other, node_id),
        "a manager again",
        10,
    )
    assert time.monotonic() - freed < 8
    assert "No space left" not in host.swarm("info", check=False)
    for name in ("pinned", "free"):
        other.swarm("service", "rm", name)

    def is_idle(host: SwarmHost) -> bool:
        return not host.docker("ps", "-q")

    for host in lab.hosts.values():
        until(partial(is_idle, host), "the services' containers are gone")


DAMAGE = """
import pathlib, sys
segment = max(pathlib.Path(sys.argv[1]).glob("*.wal"), key=lambda p: p.stat().st_size)
data = bytearray(segment.read_bytes())
data[len(data) // 3] ^= 0x55
segment.write_bytes(data)
"""


def test_a_damaged_log(lab: Lab) -> None:
    leader = lab.leader()
    number = leader % 3 + 1
    host, other = lab[number], lab[leader]
    node_id = lab.node_id(number)
    other.swarm(*CREATE, "web", "--replicas", "3", *LOOP)
    lab.running(leader, "web", 3)
    assert host.docker("ps", "-q")
    host.kill_agent()
    raft = host.folder / "state" / "raft"
    host.space.run(sys.executable, "-c", DAMAGE, str(raft))
    host.start_agent()
    until(lambda: "Unreachable (damaged log)" in listed(other, node_id), "node ls tells of the damage")
    until(lambda: lab.nodes(leader)[node_id]["Status"]["State"] == "ready", "its node is ready")
    tasks = {t["ID"] for t in lab.running(leader, "web", 3)}
    here = set(host.docker("ps", "-q", "--no-trunc").split())
    told = host.swarm("info", check=False)
    assert "damaged" in told
    assert "promote" in told
    time.sleep(8)  # longer than a node may be silent: nothing is to happen
    assert {t["ID"] for t in lab.running(leader, "web", 3)} == tasks
    assert set(host.docker("ps", "-q", "--no-trunc").split()) == here
    # It takes new tasks too.
    other.swarm(*CREATE, "new", "--constraint", f"node.labels.n=={number}", *LOOP)
    lab.running(leader, "new", 1)
    # The way out that was named.
    other.swarm("node", "demote", node_id)
    until(
        lambda: host.get("/info")["Swarm"]["Error"] == "" and not (host.folder / "state" / "raft").exists(),
        "a worker",
    )
    other.swarm("node", "promote", node_id)
    until(lambda: "Reachable" in listed(other, node_id), "a manager with a whole log", 30)
    assert here < set(host.docker("ps", "-q", "--no-trunc").split())
    for name in ("web", "new"):
        other.swarm("service", "rm", name)
