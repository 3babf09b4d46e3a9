"""Ten thousand connections of strangers on each port of the leader, while the swarm is written to."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import Lab, SwarmHost, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

STORM = """
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
where, count = sys.argv[1], int(sys.argv[2])
path = where.startswith("/")
at_once = 1500 if path else 2000  # two of these stay below what the kernel keeps waiting at a unix socket
address = where if path else (where.rpartition(":")[0], int(where.rpartition(":")[2]))
held, done = [], 0
while done < count:
    one = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    one.settimeout(3)
    try:
        one.connect(address)
        if done % 3 == 0:
            one.send(b"\\x16\\x03\\x01\\x02\\x00\\x01")
    except OSError as err:
        if path:
            sys.exit(f"after {done}: {err}")
        one.close()
    else:
        held.append(one)
    done += 1
    if len(held) == at_once:
        time.sleep(0.5)
        for old in held:
            old.close()
        held = []
print("done", done)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    # not checked: what a storm costs is measured
    with swarm_lab(tmp_path_factory.mktemp("storms"), checked=False) as found:
        found[1].swarm("swarm", "init", "--advertise-addr", found[1].address)
        token = found[1].swarm("swarm", "join-token", "-q", "manager").strip()
        for number in (2, 3):
            found[number].swarm("swarm", "join", "--token", token, f"{found[1].address}:2377")
        yield found


def metric(host: SwarmHost, name: str) -> float:
    text = host.space.run("curl", "-s", "--max-time", "10", "http://127.0.0.1:9323/metrics")
    found = re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


def resident_kib(host: SwarmHost) -> int:
    assert host.agent is not None
    text = Path(f"/proc/{host.agent.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


@pytest.mark.parametrize("target", ["2377", "2378", "7946", "socket"])
def test_strangers_cost_neither_an_election_nor_a_write(lab: Lab, target: str) -> None:
    leader = lab[lab.leader()]
    assert leader.agent is not None
    until(
        lambda: len([n for n in lab.nodes(leader.number).values() if n["Status"]["State"] == "ready"]) == 3,
        "nodes",
    )
    term = metric(leader, "swarm_raft_term")
    before = resident_kib(leader)
    over = threading.Event()
    written: list[str] = []
    failed: list[str] = []
    followers = [number for number in (1, 2, 3) if number != leader.number]

    def write() -> None:
        n = 0
        while not over.is_set():
            n += 1
            name = f"w{target}-{n}"
            host = lab[(leader.number, *followers)[n % 3]]  # by way of followers too
            try:
                status, answer = host.call_api(
                    "POST", "/services/create",
                    {"Name": name, "TaskTemplate": {"ContainerSpec": {"Image": "none"}}, "Mode": {"Replicated": {"Replicas": 0}}},
                )  # fmt: skip
            except OSError as err:
                status, answer = 0, repr(err)
            (written if status == 201 else failed).append(
                name if status == 201 else f"{name}: {status} {answer}"
            )

    where = leader.socket if target == "socket" else f"{leader.address}:{target}"
    enter = leader.space.enter if target == "socket" else lab[followers[0]].space.enter
    writer = threading.Thread(target=write)
    writer.start()
    try:
        storms = [
            subprocess.Popen(
                [*enter, sys.executable, "-c", STORM, where, "5000"], stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        for storm in storms:
            assert storm.communicate(timeout=120)[0] == "done 5000\n"
    finally:
        over.set()
        writer.join()
    assert leader.agent.poll() is None
    assert not failed
    assert len(written) >= (10 if target == "socket" else 20)  # that storm is over in two seconds
    assert metric(leader, "swarm_raft_term") == term
    assert metric(leader, "swarm_manager_leader") == 1
    names = {s["Spec"]["Name"] for s in lab[followers[1]].get("/services")}
    assert set(written) <= names
    assert resident_kib(leader) - before < 40 * 1024
    states = {n["Status"]["State"] for n in lab.nodes(leader.number).values()}
    assert states == {"ready"}
    for name in written:
        leader.call_api("DELETE", f"/services/{name}")
