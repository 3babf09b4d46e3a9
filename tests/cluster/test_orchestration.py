"""Modes, updates, rollback, storage, drain and reasons on three real daemons with real engines, through the real docker CLI.

The tests run in order and build on each other.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swarm_agent.objects import features
from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import IMAGE, SHELL, Lab, SwarmHost, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

CREATE = ("service", "create", "--no-resolve-image")
SERVE = ("/task", "serve", "x", "7000")
LONG = ("sh", "-c", "exec sleep 100000")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder: Path = tmp_path_factory.mktemp("orchestration")
    with swarm_lab(folder) as found:
        found[1].swarm("swarm", "init", "--advertise-addr", found[1].address)
        token = found[1].swarm("swarm", "join-token", "-q", "manager").strip()
        for number in (2, 3):
            found[number].swarm("swarm", "join", "--token", token, "10.92.0.1:2377")
        until(
            lambda: found[1].get("/info")["Swarm"].get("FeatureLevel") == features.LEVEL,
            "the feature level",
            30,
        )
        yield found


def swarmctl(host: SwarmHost, *words: str) -> str:
    return host.ctl(*words)


def images(lab: Lab, service: str) -> Counter[str]:
    return Counter(t["Spec"]["ContainerSpec"]["Image"] for t in lab.tasks(1, service))


def hosts(lab: Lab, service: str) -> list[str]:
    return sorted(t["NodeID"] for t in lab.tasks(1, service))


def number_of(lab: Lab, node_id: str) -> int:
    return next(n for n in lab.hosts if lab.node_id(n) == node_id)


def test_one_on_every_host(lab: Lab) -> None:
    out = lab[2].swarm(*CREATE, "--name", "agent", "--mode", "global", f"{IMAGE}:1", *SERVE)
    assert "converged" in out
    assert len(set(hosts(lab, "agent"))) == 3
    assert "3/3" in lab[1].swarm("service", "ls", "--filter", "mode=global")
    lab[1].swarm("node", "update", "--availability", "drain", lab.node_id(3))
    until(lambda: len(lab.tasks(1, "agent")) == 2, "the drained host's task to go", 30)
    lab[1].swarm("node", "update", "--availability", "active", lab.node_id(3))
    until(lambda: len(lab.tasks(1, "agent")) == 3, "it to come back", 30)
    out = lab[1].swarm(
        "service", "update", "--no-resolve-image", "--image", f"{IMAGE}:2", "--update-monitor", "1s", "agent"
    )
    assert "converged" in out
    assert images(lab, "agent") == {f"{IMAGE}:2": 3}
    lab[1].swarm("service", "rm", "agent")


def test_jobs(lab: Lab) -> None:
    job = (
        "--mode",
        "replicated-job",
        "--replicas",
        "4",
        "--max-concurrent",
        "2",
        SHELL,
        "sh",
        "-c",
        "exit 0",
    )
    out = lab[1].swarm(*CREATE, "--name", "sum", *job)
    assert "job complete" in out
    assert "0/2 (4/4 completed)" in lab[1].swarm("service", "ls")
    states = [
        t["Status"]["State"]
        for t in lab[1].get("/tasks")
        if t["ServiceID"] == lab[1].get("/services/sum")["ID"]
    ]
    assert states == ["complete"] * 4
    swarmctl(lab[3], "run", "sum")
    until(lambda: lab[1].get("/services/sum")["JobStatus"]["JobIteration"] == {"Index": 1}, "another run", 10)
    until(lambda: "(4/4 completed)" in lab[1].swarm("service", "ls"), "it to complete", 60)
    out = lab[1].swarm(*CREATE, "--name", "each", "--mode", "global-job", SHELL, "sh", "-c", "exit 0")
    assert "job complete" in out
    (lab[1].folder / "word").write_text("open sesame")
    lab[1].swarm("secret", "create", "word", str(lab[1].folder / "word"))
    reads = ("sh", "-c", "test \"$(cat /run/secrets/word)\" = 'open sesame'")
    out = lab[1].swarm(
        *CREATE, "--name", "reads", "--mode", "replicated-job", "--secret", "word", SHELL, *reads
    )
    assert "job complete" in out
    for name in ("sum", "each", "reads"):
        lab[1].swarm("service", "rm", name)


def test_a_schedule(lab: Lab) -> None:
    """Every minute; run by hand meanwhile."""
    lab[1].swarm(
        *CREATE, "-d", "--name", "tick", "--mode", "replicated-job", "--label", "swarm-agent.schedule=* * * * *", SHELL,
        "sh", "-c", "exit 0",
    )  # fmt: skip
    assert "it runs next in" in swarmctl(lab[1], "why", "tick")
    until(
        lambda: "(1/1 completed)" in lab[1].swarm("service", "ls", "--filter", "name=tick"),
        "the run that is due",
        90,
    )
    assert lab[1].get("/services/tick")["JobStatus"]["JobIteration"] == {"Index": 1}
    lab[1].swarm("service", "rm", "tick")


def test_a_failing_image_rolls_back_by_itself(lab: Lab) -> None:
    """Ten replicas; the new image starts and fails."""
    lab[1].swarm(
        *CREATE, "--name", "web", "--replicas", "10", "--update-failure-action", "rollback", "--update-parallelism", "2",
        "--update-monitor", "2s", "--rollback-parallelism", "0", "--rollback-monitor", "1s", f"{IMAGE}:1", *SERVE,
    )  # fmt: skip
    before = {t["ID"] for t in lab.running(1, "web", 10)}
    done = subprocess.run(
        ["docker", "-H", f"unix://{lab[2].socket}", "service", "update", "--no-resolve-image", "--image", SHELL, "web"],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert "rolled back" in said.lower(), said
    shown = until(
        lambda: (
            (s := lab[1].get("/services/web")) and s["UpdateStatus"]["State"] == "rollback_completed" and s
        ),
        "the end of the rollback",
        90,
    )
    assert shown["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == f"{IMAGE}:1"
    lab.running(1, "web", 10)
    assert images(lab, "web") == {f"{IMAGE}:1": 10}
    assert len({t["ID"] for t in lab.tasks(1, "web")} & before) >= 6, "only what was updated is replaced"


def test_an_image_that_does_not_exist_costs_no_task(lab: Lab) -> None:
    before = {t["ID"] for t in lab.running(1, "web", 10)}
    lab[1].swarm(
        "service",
        "update",
        "-d",
        "--no-resolve-image",
        "--image",
        "nowhere/nothing:1",
        "--update-failure-action",
        "pause",
        "web",
    )
    until(lambda: lab[1].get("/services/web")["UpdateStatus"]["State"] == "paused", "the update to pause", 60)
    assert {t["ID"] for t in lab.tasks(1, "web") if t["Status"]["State"] == "running"} == before
    assert "No such image: nowhere/nothing:1" in swarmctl(lab[2], "why", "web")
    assert "web.1" in lab[1].swarm("service", "ps", "web")
    out = lab[1].swarm("service", "rollback", "web")
    assert "converged" in out or "rolled back" in out.lower()
    assert {t["ID"] for t in lab.running(1, "web", 10)} == before


def test_revisions_and_stories(lab: Lab) -> None:
    lab[1].swarm(
        "service",
        "update",
        "--no-resolve-image",
        "--update-parallelism",
        "0",
        "--update-monitor",
        "1s",
        "--image",
        f"{IMAGE}:2",
        "web",
    )
    assert images(lab, "web") == {f"{IMAGE}:2": 10}
    listed = json.loads(swarmctl(lab[1], "revisions", "web", "--json"))
    number = next(r["Number"] for r in listed if r["Image"] == f"{IMAGE}:1")
    swarmctl(lab[3], "rollback", "web", "--to", str(number))
    until(lambda: images(lab, "web") == {f"{IMAGE}:1": 10}, "the rollback", 60)
    task = lab.tasks(1, "web")[0]["ID"]
    assert "made by an update" in swarmctl(lab[1], "history", task)


def test_a_plan_is_what_happens(lab: Lab) -> None:
    planned = json.loads(swarmctl(lab[2], "plan", "web", "--replicas", "4", "--json"))
    assert planned["Tasks"] == {"keep": 4, "remove": 6}
    assert "converged" in lab[1].swarm("service", "scale", "web=4")
    until(lambda: len(lab.tasks(1, "web")) == 4, "four replicas", 30)
    kept = {s["Slot"] for s in planned["Placement"] if s["Action"] == "keep"}
    assert {t["Slot"] for t in lab.tasks(1, "web")} == kept


def test_a_drain_never_runs_fewer(lab: Lab) -> None:
    """Start-first, as several replicas without volumes move: at no moment that the API shows are there fewer than declared."""
    lab[1].swarm("service", "rm", "web")
    lab[1].swarm(*CREATE, "-d", "--name", "calm", "--replicas", "4", f"{IMAGE}:1", *SERVE)
    lab.running(1, "calm", 4)
    lab[1].swarm("node", "update", "--availability", "drain", lab.node_id(2))
    least = [4]

    def empty() -> bool:
        least.append(len([t for t in lab.tasks(1, "calm") if t["Status"]["State"] == "running"]))
        return not lab[2].docker("ps", "-q", "--filter", "label=com.docker.swarm.service.name=calm").split()

    until(empty, "host 2 to be empty", 60)
    assert min(least) >= 4
    assert "0 tasks left" in swarmctl(lab[1], "drain", lab.node_id(2))
    lab[1].swarm("node", "update", "--availability", "active", lab.node_id(2))
    lab[1].swarm("service", "rm", "calm")


def test_why_names_the_missing_memory_and_the_missing_label(lab: Lab) -> None:
    lab[1].swarm(*CREATE, "-d", "--name", "big", "--reserve-memory", "900g", f"{IMAGE}:1", *SERVE)
    lab[1].swarm(
        *CREATE, "-d", "--name", "fast", "--constraint", "node.labels.disk==ssd", f"{IMAGE}:1", *SERVE
    )
    said = until(
        lambda: (s := swarmctl(lab[2], "why", "big")) and "insufficient resources on 3 nodes" in s and s,
        "the reason",
        20,
    )
    assert "needs 900 GiB of memory" in said
    said = until(
        lambda: (s := swarmctl(lab[2], "why", "fast")) and "constraints" in s and s, "the reason", 20
    )
    assert "node.labels.disk" in said
    assert "ssd" in said
    lab[1].swarm("node", "update", "--label-add", "disk=ssd", lab.node_id(3))
    lab.running(1, "fast", 1)
    for name in ("big", "fast"):
        lab[1].swarm("service", "rm", name)


def test_data_that_is_required_waits_for_its_node(lab: Lab) -> None:
    """The node of a database dies: it waits, with the reason; the node is back: the same data."""
    lab[1].swarm(
        *CREATE, "-d", "--name", "db", "--label", "swarm-agent.volume-affinity=require", "--restart-delay", "1s",
        "--mount", "type=volume,source=dbdata,target=/data", SHELL,
        "sh", "-c", "test -e /data/born || echo first-$HOSTNAME > /data/born; exec sleep 100000",
    )  # fmt: skip
    (task,) = lab.running(1, "db", 1)
    home = number_of(lab, task["NodeID"])
    other = next(n for n in lab.hosts if n not in (home, lab.leader()))

    def data(number: int) -> str:
        (container,) = (
            lab[number].docker("ps", "-q", "--filter", "label=com.docker.swarm.service.name=db").split()
        )
        return lab[number].docker("exec", container, "cat", "/data/born").strip()

    born = until(lambda: data(home), "the first data", 20)
    until(lambda: _volumes(lab, home, other), "the node to tell of its volume", 20)
    lab.cut(home)
    said = until(lambda: (s := _why(lab[other], "db")) and "dbdata" in s and s, "the reason", 60)
    assert "which is down" in said
    assert not [t for t in lab.tasks(other, "db") if t.get("NodeID") not in (None, task["NodeID"])]
    lab.mend(home)
    again = until(
        lambda: [t for t in lab.tasks(other, "db") if t["ID"] != task["ID"]], "the task to run again", 90
    )
    assert number_of(lab, again[0]["NodeID"]) == home
    assert data(home) == born
    lab[other].swarm("service", "rm", "db")


def _why(host: SwarmHost, service: str) -> str:
    try:
        return swarmctl(host, "why", service)
    except AssertionError:
        return ""  # no leader at this moment


def _volumes(lab: Lab, home: int, via: int) -> Any:
    """The scheduler's own knowledge shows in a plan: the task stays where its volume is."""
    planned = json.loads(swarmctl(lab[via], "plan", "db", "--force", "--json"))
    step = planned["Placement"][0]
    return step["Action"] == "replace" and step


def test_what_waits_for_others(lab: Lab) -> None:
    lab[1].swarm(
        *CREATE,
        "-d",
        "--name",
        "app",
        "--label",
        "swarm-agent.depends-on=store:healthy",
        f"{IMAGE}:1",
        *SERVE,
    )
    until(lambda: "waits for service store" in swarmctl(lab[1], "why", "app"), "the reason", 30)
    lab[1].swarm(*CREATE, "-d", "--name", "store", f"{IMAGE}:1", *SERVE)
    lab.running(1, "app", 1)
    done = subprocess.run(
        ["docker", "-H", f"unix://{lab[1].socket}", "service", "update", "--label-add", "swarm-agent.depends-on=app", "store"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "would wait for each other for ever: store -> app -> store" in done.stderr
    for name in ("app", "store"):
        lab[1].swarm("service", "rm", name)


def test_evening_out(lab: Lab) -> None:
    lab[1].swarm("node", "update", "--availability", "pause", lab.node_id(3))
    lab[1].swarm(*CREATE, "-d", "--name", "even", "--replicas", "6", f"{IMAGE}:1", *SERVE)
    lab.running(1, "even", 6)
    lab[1].swarm("node", "update", "--availability", "active", lab.node_id(3))
    assert swarmctl(lab[2], "rebalance", "even").splitlines()[0] == "would move 2 of 6"
    swarmctl(lab[2], "rebalance", "even", "--apply", "--parallel", "2")
    until(lambda: sorted(Counter(hosts(lab, "even")).values()) == [2, 2, 2], "an even spread", 60)
    lab[1].swarm("service", "rm", "even")


def test_nothing_is_left(lab: Lab) -> None:
    for number in lab.hosts:
        lab.no_containers(number, 60)
