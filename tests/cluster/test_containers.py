"""On every engine runs exactly what its node is assigned, whoever meddles. The tests run in order."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import SHELL, Lab, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

BRIEF = ("-d", "--no-resolve-image", "--stop-grace-period=1s")
STUBBORN = ("sh", "-c", "trap '' TERM; while :; do sleep 1; done")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder: Path = tmp_path_factory.mktemp("containers")
    with swarm_lab(folder, (1, 2)) as found:
        host = found[1]
        host.swarm("swarm", "init", "--advertise-addr", host.address)
        join(found)
        yield found


def join(lab: Lab) -> None:
    token = lab[1].swarm("swarm", "join-token", "-q", "worker").strip()
    lab[2].swarm("swarm", "join", "--token", token, f"{lab[1].address}:2377")


def forget(lab: Lab, node_id: str) -> None:
    """It is refused while a strict singleton that ran there may not have ended yet."""

    def gone() -> bool:
        lab[1].swarm("node", "rm", "--force", node_id, check=False)
        return node_id not in lab.nodes(1)

    until(gone, "the node is forgotten", 30)


def join_anew(lab: Lab) -> None:
    """Its former self is forgotten."""
    for node_id, node in lab.nodes(1).items():
        if node["Status"]["State"] == "down":
            forget(lab, node_id)
    join(lab)


def as_assigned(lab: Lab, service: str) -> bool:
    """Whether the engines run the containers of the service's running tasks, one a node, and no others."""
    tasks = lab.tasks(1, service)
    wanted = sorted(t["Status"]["ContainerStatus"]["ContainerID"] for t in tasks)
    running = sorted(c for ids in lab.containers(service).values() for c in ids)
    return len(tasks) == 2 and wanted == running


def test_a_container_that_is_restarted_by_hand_ends_and_its_task_is_replaced(lab: Lab) -> None:
    for name, more in (("plain", ()), ("strict", ("--label", "swarm-agent.singleton=strict"))):
        kind = ("--mode=global",) if name == "plain" else ("--replicas=1",)
        lab[1].swarm("service", "create", *BRIEF, "--name", name, *kind, *more, SHELL, *STUBBORN)
    lab.running(1, "plain", 2)
    (single,) = lab.running(1, "strict", 1)
    before = {t["ID"] for t in lab.tasks(1, "plain")}
    for number, ids in {**lab.containers("plain")}.items():
        lab[number].docker("restart", "-t", "0", *ids)
    until(lambda: as_assigned(lab, "plain"), "one container a node, that of its task", 30)
    until(lambda: before.isdisjoint({t["ID"] for t in lab.tasks(1, "plain")}), "their tasks are replaced", 30)
    ((number, ids),) = lab.containers("strict").items()
    lab[number].docker("restart", "-t", "0", *ids)
    until(
        lambda: (
            [t["ID"] for t in lab.tasks(1, "strict")] not in ([], [single["ID"]])
            and sum(lab.spread("strict").values()) == 1
        ),
        "one container of another task",
        30,
    )
    lab[1].swarm("service", "rm", "strict")


def test_what_carries_our_label_and_is_nobodys_ends_and_dockers_own_stays(lab: Lab) -> None:
    (known,) = lab[2].docker("ps", "-q", "--filter", "label=com.docker.swarm.service.name=plain").split()
    labels = lab[2].docker("inspect", "-f", "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}}\n{{end}}", known)
    ours = [line for line in labels.splitlines() if line]
    assert any(line.startswith("swarm-agent.cluster.id=") for line in ours)
    dockers = [line for line in ours if not line.startswith("swarm-agent.")]

    def run(name: str, labels: list[str]) -> None:
        flags = [word for label in labels for word in ("--label", label)]
        # one of ours may be gone before the engine has started it
        lab[2].docker("run", "-d", "--name", name, *flags, SHELL, *STUBBORN, check=name == "foreign")

    def is_gone(name: str) -> bool:
        return not lab[2].docker("ps", "-aq", "--filter", f"name=^{name}$")

    run("copy", ours)
    run("foreign", dockers)
    run(
        "former",
        [*(x for x in ours if "node.id" not in x and "task.id" not in x), "com.docker.swarm.task.id=gone"],
    )
    for name in ("copy", "former"):
        until(partial(is_gone, name), f"no {name}", 20)
    assert lab[2].docker("ps", "-q", "--filter", "name=^foreign$"), (
        "made by Docker's own swarm, for all we know"
    )
    lab[2].docker("rm", "-f", "foreign")
    until(lambda: as_assigned(lab, "plain"), "one container a node, that of its task", 30)


def test_a_host_that_lost_its_state_has_none_of_its_former_containers(lab: Lab) -> None:
    until(lambda: as_assigned(lab, "plain"), "one container a node, that of its task", 30)
    (former,) = lab.containers("plain")[2]
    node = lab.node_id(2)
    lab[2].kill_agent(signal.SIGKILL)
    for path in (lab[2].folder / "state").iterdir():
        if path.name != "net":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    lab[2].start_agent()
    forget(lab, node)
    join(lab)
    assert lab.node_id(2) != node
    until(lambda: as_assigned(lab, "plain"), "one container a node, that of its task", 30)
    assert former not in lab.containers("plain")[2]


def test_leaving_by_force_in_the_middle_of_an_update_leaves_nothing(lab: Lab) -> None:
    flags = (
        "--replicas=6",
        "--stop-grace-period=100s",
        "--update-parallelism=1",
        "--update-order=start-first",
    )

    def updating(name: str) -> bool:
        return len(lab.tasks(1, name)) > 6 or sum(lab.spread(name).values()) > 6

    for name in ("slow-a", "slow-b", "slow-c"):
        lab[1].swarm("service", "create", *BRIEF[:2], *flags, "--name", name, SHELL, *STUBBORN)
        lab.running(1, name, 6)
        lab[1].swarm("service", "update", "-d", "--force", name)
        until(partial(updating, name), "the update has begun")
        lab[2].swarm("swarm", "leave", "--force")
        lab.no_containers(2, 5)
        lab[1].swarm("service", "rm", name)
        join_anew(lab)


def test_a_worker_that_leaves_gives_its_tasks_their_grace_period(lab: Lab) -> None:
    script = "trap 'sleep 2; echo done > /state/said; exit 0' TERM; while :; do sleep 0.1; done"
    said = lab[2].folder / "said"
    said.mkdir()
    mount = f"type=bind,source={said},target=/state"
    here = f"--constraint=node.id=={lab.node_id(2)}"
    lab[1].swarm(
        "service", "create", "-d", "--no-resolve-image", "--stop-grace-period=20s", here, "--mount", mount,
        "--name", "careful", SHELL, "sh", "-c", script,
    )  # fmt: skip
    lab.running(1, "careful", 1)
    lab[2].swarm("swarm", "leave")
    assert (said / "said").read_text() == "done\n", "it was asked, and waited for"
    lab.no_containers(2, 2)
