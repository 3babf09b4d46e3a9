"""Nodes that managers do not hear: their tasks go on serving, unless their host is gone."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import IMAGE, Lab, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

PORT = 8085


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with swarm_lab(tmp_path_factory.mktemp("silence")) as found:
        found[1].swarm("swarm", "init", "--advertise-addr", found[1].address)
        token = found[1].swarm("swarm", "join-token", "-q", "worker").strip()
        for number in (2, 3):
            found[number].swarm("swarm", "join", "--token", token, f"{found[1].address}:2377")
        found[1].swarm(
            "service", "create", "--no-resolve-image", "-d", "--name", "web", "--mode", "global", "--publish", f"{PORT}:7000",
            "--hostname", "{{.Node.ID}}", f"{IMAGE}:1", "/task", "serve", "-", "7000",
        )  # fmt: skip
        found.running(1, "web", 3)
        until(lambda: len(names(found, 30)) == 3, "every host is reached", 40)
        yield found


def names(lab: Lab, count: int) -> set[str]:
    """Who answers so many new connections to host 1; "" is nobody."""
    return {(lab.greeting(1, PORT) or [""])[0] for _ in range(count)}


def state(lab: Lab, node_id: str) -> str:
    found: str = lab.nodes(1)[node_id]["Status"]["State"]
    return found


def wanted(lab: Lab, node_id: str) -> list[str]:
    return [t["DesiredState"] for t in lab[1].get("/tasks") if t["NodeID"] == node_id]


def test_a_silent_agent_withdraws_nothing(lab: Lab) -> None:
    host = lab[3]
    node_id = lab.node_id(3)
    assert host.agent is not None
    host.agent.send_signal(signal.SIGSTOP)
    try:
        until(lambda: state(lab, node_id) == "down", "the node is taken for lost")
        until(lambda: "shutdown" in wanted(lab, node_id), "its task is given up")
        over = time.monotonic() + 4  # by then every node has done what it was told
        while time.monotonic() < over:
            seen = names(lab, 10)
            assert "" not in seen
        assert len(names(lab, 30)) == 3  # its container is one of those that answer
    finally:
        host.agent.send_signal(signal.SIGCONT)
    until(lambda: state(lab, node_id) == "ready", "it is back")
    lab.running(1, "web", 3)


def test_a_dead_host_gets_no_new_connections(lab: Lab) -> None:
    node_id = lab.node_id(3)
    until(lambda: len(names(lab, 30) - {""}) == 3, "every host is reached", 40)
    lab.cut(3)
    try:
        # A connection to it takes the client's whole patience: five seconds.
        until(lambda: len(seen := names(lab, 20)) == 2 and "" not in seen, "no connection goes there", 30)
        until(lambda: state(lab, node_id) == "down", "the node is taken for lost")
    finally:
        lab.mend(3)
    until(lambda: state(lab, node_id) == "ready", "it is back", 40)
    until(lambda: len(names(lab, 30) - {""}) == 3, "every host is reached again", 40)
