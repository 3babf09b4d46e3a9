"""Strict singletons and pre-start steps on real hosts: what engines say of starts and ends, on one machine's clock."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from swarm_agent import guard
from swarm_agent.objects.leases import FENCE_S, LEASE_S
from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import SHELL, Lab, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

CREATE = ("service", "create", "--no-resolve-image", "-d")
PATIENCE_S = FENCE_S + 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with swarm_lab(tmp_path_factory.mktemp("fencing")) as found:
        found[1].swarm("swarm", "init", "--advertise-addr", found[1].address)
        token = found[1].swarm("swarm", "join-token", "-q", "worker").strip()
        for number in (2, 3):
            found[number].swarm("swarm", "join", "--token", token, f"{found[1].address}:2377")
        found[1].swarm(
            *CREATE, "--name", "db", "--label", "swarm-agent.singleton=strict", "--constraint", "node.role==worker",
            "--restart-delay", "0s", SHELL, "/bin/sh", "-c", "while true; do /bin/sleep 1; done",
        )  # fmt: skip
        found.running(1, "db", 1)
        yield found


def moment(text: str) -> float:
    """Of the engine's words for it, to the microsecond."""
    return datetime.fromisoformat(text[:26].rstrip("Z")).replace(tzinfo=UTC).timestamp()


def inspected(lab: Lab, number: int, container: str) -> dict[str, Any]:
    status, found = lab[number].api("GET", f"/containers/{container}/json")
    assert status == 200, found
    state: dict[str, Any] = found["State"]
    return state


def holder(lab: Lab) -> tuple[int, str]:
    """The host the one task runs on, and its container."""
    (task,) = lab.running(1, "db", 1)
    number = next(n for n in (2, 3) if lab.node_id(n) == task["NodeID"])
    return number, task["Status"]["ContainerStatus"]["ContainerID"]


def lease_end(lab: Lab, number: int, container: str) -> float:
    """When the lease ends under which the container runs, seconds of CLOCK_BOOTTIME, as the guard reads it."""
    told = json.loads(lab[number].space.run("cat", f"{guard.FOLDER}/{container}.json"))
    return float(told["until"])


def elsewhere(lab: Lab, old: int) -> float:
    """Wait until it runs on the other host; when it was started there."""
    new = 5 - old

    def found() -> str:
        return (
            lab[new]
            .docker("ps", "-q", "--no-trunc", "--filter", "label=com.docker.swarm.service.name=db")
            .strip()
        )

    container = until(found, f"db runs on host {new}", PATIENCE_S)
    return moment(inspected(lab, new, container)["StartedAt"])


def names(lab: Lab, number: int) -> str:
    return lab[number].docker("ps", "-a", "--format", "{{.Names}}")


def settled(lab: Lab) -> None:
    def ready() -> bool:
        status, found = lab[1].call_api("GET", "/nodes")
        return status == 200 and all(n["Status"]["State"] == "ready" for n in found)

    until(ready, "all nodes are ready", 60)
    lab.running(1, "db", 1)


def test_a_host_that_is_cut_off_ends_it_before_another_starts_it(lab: Lab) -> None:
    old, container = holder(lab)
    began = time.time()
    lab.cut(old)
    try:
        started = elsewhere(lab, old)
        state = inspected(lab, old, container)
        assert not state["Running"]
        assert state["ExitCode"] == 137
        assert began + LEASE_S - 2 < moment(state["FinishedAt"]) < started
    finally:
        lab.mend(old)
    settled(lab)
    assert "the lease of this node has ended" in (lab[old].folder / "agent.log").read_text()


def test_an_agent_that_was_killed_leaves_nothing_running(lab: Lab) -> None:
    old, container = holder(lab)
    lab[old].kill_agent()
    try:
        started = elsewhere(lab, old)
        state = inspected(lab, old, container)
        assert not state["Running"]
        assert state["ExitCode"] == 137
        assert moment(state["FinishedAt"]) < started
        assert container[:12] in (lab[old].folder / "netd.log").read_text()
    finally:
        lab[old].start_agent()
    settled(lab)


def test_an_agent_that_is_stopped_leaves_nothing_running(lab: Lab) -> None:
    """SIGSTOP: it lives, and does nothing; its connections stay open."""
    old, container = holder(lab)
    agent = lab[old].agent
    assert agent is not None
    agent.send_signal(signal.SIGSTOP)
    try:
        started = elsewhere(lab, old)
        assert moment(inspected(lab, old, container)["FinishedAt"]) < started
    finally:
        agent.send_signal(signal.SIGCONT)
    settled(lab)


def test_neither_agent_nor_engine_is_needed_to_end_it(lab: Lab) -> None:
    """Live restore: the container outlives its engine, too."""
    old, container = holder(lab)
    assert guard.processes(container), "it is found by its control group"
    lab[old].kill_agent()
    lab[old].stop_engine(signal.SIGKILL)
    try:
        assert guard.processes(container), "it runs on"
        until(lambda: not guard.processes(container), "the guard ends it", PATIENCE_S)
        gone = time.time()
        assert gone < elsewhere(lab, old)
    finally:
        lab[old].space.run("rm", "-f", "/run/docker.pid")
        lab[old].start_engine()
        lab[old].start_agent()
    settled(lab)


def test_a_restarted_agent_keeps_it_running(lab: Lab) -> None:
    old, container = holder(lab)
    ends = lease_end(lab, old, container)
    lab[old].kill_agent()
    lab[old].start_agent()
    settled(lab)
    until(
        lambda: guard.boottime() > ends and lease_end(lab, old, container) > ends,
        "the lease of before to be over, and the restarted agent's to be there",
        LEASE_S + 15,
    )
    assert inspected(lab, old, container)["Running"]
    assert holder(lab) == (old, container)


def test_a_task_finds_the_devices_it_was_given(lab: Lab) -> None:
    """The engine's own resources and the agent's."""
    lab[1].kill_agent(signal.SIGTERM)
    lab[1].start_agent(more='[generic_resources]\ncard = ["/dev/kmsg"]\n')
    settled(lab)
    until(lambda: "GenericResources" in str(lab.nodes(1)[lab.node_id(1)]), "host 1 tells of them")
    lab[1].swarm(
        *CREATE, "--name", "dev", "--constraint", f"node.id=={lab.node_id(1)}", "--generic-resource", "gpu=2",
        "--generic-resource", "disk=1", "--generic-resource", "card=1", SHELL, "/bin/sleep", "1000",
    )  # fmt: skip
    lab.running(1, "dev", 1)
    container = lab[1].docker("ps", "-q", "--filter", "label=com.docker.swarm.service.name=dev").strip()
    env = lab[1].docker("exec", container, "/bin/busybox", "env").split()
    wanted = ["DOCKER_RESOURCE_CARD=/dev/kmsg", "DOCKER_RESOURCE_DISK=1", "DOCKER_RESOURCE_GPU=one,two"]
    assert [line for line in env if line.startswith("DOCKER_RESOURCE_")] == wanted
    lab[1].docker("exec", container, "/bin/test", "-c", "/dev/kmsg")
    lab[1].swarm("service", "rm", "dev")


def test_a_pre_start_step_runs_once_before_the_task(lab: Lab) -> None:
    lab[1].swarm(
        *CREATE, "--name", "app", "--label", "swarm-agent.pre-start=/bin/sh -c 'echo $WORD >>/data/log'",
        "--env", "WORD=migrated", "--mount", "type=volume,source=appdata,target=/data", "--constraint", "node.role==manager",
        SHELL, "/bin/sh", "-c", "echo serving >>/data/log; while true; do /bin/sleep 1; done",
    )  # fmt: skip
    lab.running(1, "app", 1)
    container = lab[1].docker("ps", "-q", "--filter", "label=com.docker.swarm.service.name=app").strip()
    assert lab[1].docker("exec", container, "/bin/cat", "/data/log").split() == ["migrated", "serving"]
    assert "pre-start" not in lab[1].docker("ps", "-a", "--format", "{{.Names}}")
    lab[1].swarm("service", "rm", "app")


def test_a_pre_start_step_that_fails_says_why(lab: Lab) -> None:
    lab[1].swarm(
        *CREATE, "--name", "bad", "--label", "swarm-agent.pre-start=/bin/sh -c 'echo no such table; exit 3'",
        "--restart-condition", "none", SHELL, "/bin/sleep", "1000",
    )  # fmt: skip
    service = lab[1].get("/services/bad")["ID"]

    def errors() -> list[str]:
        tasks = [t for t in lab[1].get("/tasks") if t["ServiceID"] == service]
        return [t["Status"].get("Err", "") for t in tasks if t["Status"]["State"] == "failed"]

    assert until(errors, "it failed") == ["task: pre-start step: non-zero exit (3): no such table"]
    lab[1].swarm("service", "rm", "bad")

    def is_gone(number: int) -> bool:
        return "bad." not in names(lab, number)

    for number in (1, 2, 3):
        until(partial(is_gone, number), "it is gone")
