"""Where tasks go, move and stay: preferences, packing, neighbours, limits, back-off, evening out, timetables, with real engines on
four hosts and through the real ``docker`` and ``swarmctl``. What is asserted is what the engines run.

The tests run in order. What needs time (delays that grow, half a minute's patience, the next full minute) begins in the first
and is looked at in the last ones.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from swarm_agent.objects import features
from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import SHELL, Event, Lab, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

SLEEP = ("sleep", "100000")
QUIET = "--constraint=node.labels.rack!=1"  # on hosts nobody drains
LIMIT = 120  # seconds; whatever comes by itself has come by then on the slowest machine
FIRST_DELAY, LONGEST_DELAY = 0.5, 4.0  # seconds, of the crash loop


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder: Path = tmp_path_factory.mktemp("placement")
    with swarm_lab(folder, (1, 2, 3, 4)) as found:
        found[1].swarm("swarm", "init", "--advertise-addr", found[1].address)
        for role, numbers in (("manager", (2, 3)), ("worker", (4,))):
            token = found[1].swarm("swarm", "join-token", "-q", role).strip()
            for number in numbers:
                found[number].swarm("swarm", "join", "--token", token, "10.92.0.1:2377")
        until(
            lambda: found[1].get("/info")["Swarm"].get("FeatureLevel") == features.LEVEL,
            "the feature level",
            30,
        )
        until(lambda: len(found[1].get("/nodes")) == 4, "four nodes", 30)
        for number, zone, rack in ((1, "a", "1"), (2, "a", "1"), (3, "a", "2"), (4, "b", "3")):
            label(found, number, "--label-add", f"zone={zone}", "--label-add", f"rack={rack}")
        with found.recorded():
            yield found


@pytest.fixture(scope="module")
def ids(lab: Lab) -> dict[int, str]:
    """Node ids by host: a host whose agent is away cannot be asked."""
    nodes = {n["Status"]["Addr"]: n["ID"] for n in lab[1].get("/nodes")}
    return {number: nodes[host.address] for number, host in lab.hosts.items()}


def label(lab: Lab, number: int, *change: str) -> None:
    lab[1].swarm("node", "update", *change, lab.node_id(number))


def create(lab: Lab, name: str, *arguments: str, command: tuple[str, ...] = SLEEP, via: int = 1) -> None:
    lab[via].swarm(
        "service", "create", "-d", "--no-resolve-image", "--stop-grace-period=0s", f"--name={name}", *arguments, SHELL, *command
    )  # fmt: skip


def engines(lab: Lab, service: str, wanted: dict[int, int], seconds: float = 60) -> None:
    """Wait until the engines run so many containers of a service."""
    seen: list[dict[int, int]] = [{}]

    def same() -> bool:
        seen.append(lab.spread(service))
        return seen[-1] == wanted

    try:
        until(same, f"{service} to run as {wanted}", seconds)
    except AssertionError as error:
        raise AssertionError(
            f"{error}; {service} runs as {seen[-1]}; {lab[2].ctl('why', service)}"
        ) from error


def count(lab: Lab, service: str, wanted: int) -> dict[int, int]:
    """Wait until the engines run so many containers of a service; how many on each host."""

    def enough() -> dict[int, int] | None:
        now = lab.spread(service)
        return now if sum(now.values()) == wanted else None

    found: dict[int, int] = until(enough, f"{wanted} containers of {service}", 60)
    return found


def says(lab: Lab, words: str, *question: str) -> str:
    """Wait until swarmctl says it; while nobody leads it says nothing."""

    def answer() -> str:
        said = lab[2].ctl(*question, check=False)
        return said if words in said else ""

    found: str = until(answer, f"swarmctl {' '.join(question)} to say {words!r}", LIMIT)
    return found


def test_what_takes_its_time_begins(lab: Lab) -> None:
    label(lab, 4, "--availability", "pause")
    for name, policy in (("joins", "on-join"), ("flows", "never"), ("stays", "never")):
        create(
            lab,
            name,
            "--replicas=4",
            QUIET,
            f"--label=swarm-agent.rebalance={policy}",
        )
        engines(lab, name, {3: 4})
    label(lab, 4, "--availability", "active")
    lab[1].swarm(
        "service",
        "update",
        "-d",
        "--no-resolve-image",
        "--label-add=swarm-agent.rebalance=continuous",
        "flows",
    )
    for overlap in ("forbid", "replace"):
        create(
            lab, f"tick-{overlap}", "--mode=replicated-job", QUIET, "--label=swarm-agent.schedule=* * * * *",
            f"--label=swarm-agent.schedule.overlap={overlap}",
        )  # fmt: skip
        lab[2].ctl("run", f"tick-{overlap}")
        count(lab, f"tick-{overlap}", 1)
    create(
        lab, "crashes", QUIET, f"--restart-delay={FIRST_DELAY}s", f"--label=swarm-agent.restart.max-delay={LONGEST_DELAY}s",
        command=("sh", "-c", "exit 3"),
    )  # fmt: skip


# --- preferences -------------------------------------------------------------------------------------------------------------
PREFERENCES = ("--placement-pref=spread=node.labels.zone", "--placement-pref=spread=node.labels.rack")


def test_two_levels_of_preferences(lab: Lab) -> None:
    """Half of the tasks in each zone, and in zone a half in each rack."""
    create(lab, "wide", "--replicas=8", *PREFERENCES)
    engines(lab, "wide", {1: 1, 2: 1, 3: 2, 4: 4})


def test_a_drain_keeps_to_the_preferences(lab: Lab, ids: dict[int, str]) -> None:
    """A rolling move: never fewer than declared, and what leaves stays in its zone and rack."""
    label(lab, 2, "--availability", "drain")
    engines(lab, "wide", {1: 2, 3: 2, 4: 4})
    assert fewest(lab, "wide", 8) == 8
    says(lab, "0 tasks left", "drain", ids[2])
    label(lab, 2, "--availability", "active")


def test_a_label_changes_under_running_tasks(lab: Lab) -> None:
    """Nothing moves by itself; the advice names the label; what it advises is done within its budget."""
    before = lab.containers("wide")
    service = lab[1].get("/services/wide")["ID"]
    label(lab, 3, "--label-add", "zone=b")
    advice = says(lab, "node.labels.zone", "rebalance", "wide")
    assert advice.splitlines()[0] == "would move 2 of 8"
    assert "6 tasks of the service where node.labels.zone is b, 2 where it is a" in advice
    assert lab.containers("wide") == before
    lab[3].ctl("rebalance", "wide", "--apply", "--parallel", "1")
    most = [8]

    def even() -> bool:
        alive = [
            t
            for t in lab[1].get("/tasks")
            if t["DesiredState"] in ("running", "ready") and t["ServiceID"] == service
        ]
        most.append(len(alive))
        return lab.spread("wide") == {1: 2, 2: 2, 3: 2, 4: 2}

    until(even, "two on each host", 60)
    assert max(most) <= 9, "one at a time"
    stayed = {id_ for ids in lab.containers("wide").values() for id_ in ids}
    assert len(stayed & {id_ for ids in before.values() for id_ in ids}) == 6
    assert lab[1].ctl("rebalance", "wide").splitlines()[0] == "would move 0 of 8"
    lab[1].swarm("service", "rm", "wide")


# --- packing, neighbours, limits -----------------------------------------------------------------------------------------------
def test_packed_together_and_apart(lab: Lab) -> None:
    create(
        lab, "pack", "--replicas=3", "--reserve-memory=16m", "--label=swarm-agent.placement.strategy=binpack"
    )
    (home,) = count(lab, "pack", 3)
    affinity = "--label=swarm-agent.placement.affinity="
    create(lab, "near", "--replicas=2", f"{affinity}service==pack")
    create(lab, "far", "--replicas=6", f"{affinity}service!=pack")
    create(lab, "likes", "--replicas=2", f"{affinity}service==~pack")
    create(lab, "shuns", "--replicas=3", f"{affinity}service!=~pack")
    others = [n for n in lab.hosts if n != home]
    engines(lab, "near", {home: 2})
    engines(lab, "far", dict.fromkeys(others, 2))
    engines(lab, "likes", {home: 2})
    engines(lab, "shuns", dict.fromkeys(others, 1))
    advice = lab[3].ctl("rebalance", "near", "likes", "pack")
    assert advice.splitlines()[0] == "would move 0 of 4", "a wish that is met is not evened away"
    assert "pack is left out: it is packed, not spread" in advice
    lab[1].swarm("service", "rm", "near", "far", "likes", "shuns", "pack")


def test_who_waits_for_a_neighbour(lab: Lab) -> None:
    create(lab, "guest", "--label=swarm-agent.placement.affinity=service==host")
    says(lab, "affinity not satisfied on 4 nodes", "why", "guest")
    assert lab.spread("guest") == {}
    create(lab, "host", "--constraint=node.labels.rack==2")
    engines(lab, "guest", {3: 1})
    lab[1].swarm("service", "rm", "guest", "host")


def test_what_fits(lab: Lab) -> None:
    """All but half a core of each host: one on each, and one waits until another goes."""
    cores = lab[1].get("/nodes")[0]["Description"]["Resources"]["NanoCPUs"] / 1e9
    create(lab, "big", "--replicas=5", f"--reserve-cpu={cores - 0.5}")
    engines(lab, "big", {1: 1, 2: 1, 3: 1, 4: 1})
    says(lab, "insufficient resources on 4 nodes", "why", "big")
    lab[1].swarm("service", "scale", "-d", "big=3")
    count(lab, "big", 3)
    lab[1].swarm("service", "rm", "big")


def test_so_many_on_a_node(lab: Lab) -> None:
    create(
        lab,
        "few",
        "--replicas=5",
        "--replicas-max-per-node=1",
        "--update-monitor=100ms",
        "--update-parallelism=0",
    )
    engines(lab, "few", {1: 1, 2: 1, 3: 1, 4: 1})
    says(lab, "max replicas per node limit exceed", "why", "few")
    before = lab.containers("few")
    lab[1].swarm("service", "update", "-d", "--no-resolve-image", "--env-add=NEW=1", "--replicas=4", "few")
    until(lambda: all(after != before[n] for n, after in lab.containers("few").items()) and lab.spread("few") == {1: 1, 2: 1, 3: 1, 4: 1},
          "all of them to be new, one on each host", 60)  # fmt: skip
    assert max(concurrent(lab, "few", n) for n in lab.hosts) == 1, "at no time two on a host"
    lab[1].swarm("service", "rm", "few")


def concurrent(lab: Lab, service: str, number: int) -> int:
    """The most containers of a service that a host's engine ever ran at once."""
    now = most = 0
    for event in lab.history(service, "start", "die"):
        if event.host == number:
            now += 1 if event.action == "start" else -1
            most = max(most, now)
    return most


def test_a_label_that_a_constraint_needs_is_taken_away(lab: Lab) -> None:
    for number in (1, 2):
        label(lab, number, "--label-add", "disk=ssd")
    create(lab, "keen", "--replicas=2", "--constraint=node.labels.disk==ssd", "--restart-delay=100ms")
    create(lab, "every", "--mode=global", "--constraint=node.labels.disk==ssd")
    engines(lab, "keen", {1: 1, 2: 1})
    engines(lab, "every", {1: 1, 2: 1})
    label(lab, 1, "--label-rm", "disk")
    engines(lab, "keen", {2: 2})
    engines(lab, "every", {2: 1})
    told = lab[1].swarm("service", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", "keen")
    assert "assigned node no longer meets constraints" in told
    label(lab, 2, "--label-rm", "disk")
    engines(lab, "keen", {})
    engines(lab, "every", {})
    said = says(lab, "scheduling constraints not satisfied on 4 nodes", "why", "keen")
    assert "failures in a row" not in said, "that its node changed is no failure of a task"
    says(lab, "none is active and meets its constraints", "why", "every")
    label(lab, 3, "--label-add", "disk=ssd")
    engines(lab, "keen", {3: 2})
    engines(lab, "every", {3: 1})
    lab[1].swarm("service", "rm", "keen", "every")


# --- one after another -----------------------------------------------------------------------------------------------------------
def test_what_waits_for_a_job_to_complete(lab: Lab) -> None:
    """Prepared while the job runs; started in the engine after the job's last container has ended."""
    create(
        lab,
        "migrate",
        "--mode=replicated-job",
        "--replicas=2",
        "--max-concurrent=1",
        command=("sh", "-c", "until test -e /go; do sleep 0.05; done"),
    )
    create(lab, "app", "--replicas=2", "--label=swarm-agent.depends-on=migrate:completed")
    until(lambda: len(lab.events("app", "create")) == 2, "both to be prepared", 60)
    says(lab, "waits for service migrate to complete", "why", "app")

    def started(done: int) -> list[Event]:
        return lab.events("migrate", "start")[done - 1 :]

    for done in (1, 2):  # so many have been let go
        begun = until(partial(started, done), "another task of the job", 60)
        assert lab.history("app", "start") == []
        go = ("exec", begun[0].container, "touch", "/go")

        def ended(host: int = begun[0].host, done: int = done, go: tuple[str, ...] = go) -> bool:
            lab[host].docker(*go, check=False)
            return len(lab.events("migrate", "die")) == done

        until(ended, "it to end", 60)
    count(lab, "app", 2)
    assert lab.history("migrate", "die")[-1].at < lab.history("app", "start")[0].at
    assert lab.events("migrate", "die")[0].at < lab.events("migrate", "start")[1].at, "one at a time"
    lab[1].swarm("service", "rm", "app", "migrate")


# --- what took its time ------------------------------------------------------------------------------------------------------------
def test_a_node_that_joined_gets_its_share_only_where_asked_for(lab: Lab) -> None:
    """Half a minute after host 4 came back, and after the other's policy changed; the successor first."""
    for name in ("joins", "flows"):
        engines(lab, name, {3: 2, 4: 2}, LIMIT)
        assert fewest(lab, name, 4) == 4, "never fewer than declared"
        histories = [lab[2].ctl("history", task["ID"]) for task in lab.running(1, name, 4)]
        assert sum("made to even the service out" in told for told in histories) == 2
    assert lab.spread("stays") == {3: 4}
    assert "is left out: its label swarm-agent.rebalance is never" in lab[1].ctl("rebalance", "stays")
    lab[1].swarm("service", "rm", "joins", "flows", "stays")


def fewest(lab: Lab, service: str, wanted: int) -> int:
    """The fewest containers of a service that ran at once, since there were as many as wanted."""
    running: set[str] = set()
    least = wanted
    complete = False
    for event in lab.history(service, "start", "die"):
        (running.add if event.action == "start" else running.discard)(event.container)
        complete = complete or len(running) == wanted
        least = min(least, len(running)) if complete else least
    return least


def test_a_crash_loop_slows_down_whoever_leads(lab: Lab) -> None:
    """Each rest is twice the one before, up to the longest; a new leader counts on. Rests are seen a little shorter than they are,
    where an engine is late to tell of an end: half of each is enough to tell it from the first."""
    until(lambda: len(lab.events("crashes", "die")) >= 4, "some crashes", LIMIT)
    first = lab.leader()
    lab[first].kill_agent(signal.SIGTERM)
    lab[first].start_agent()
    crashes = len(lab.events("crashes", "die"))
    until(lambda: len(lab.events("crashes", "start")) > crashes + 1, "more of them", LIMIT)
    says(lab, "failures in a row", "why", "crashes")
    begins, ends = lab.history("crashes", "start"), lab.events("crashes", "die")
    for n, (end, begin) in enumerate(zip(ends, begins[1:], strict=False), start=1):
        if n > 2:
            assert begin.at - end.at > min(LONGEST_DELAY, FIRST_DELAY * 2 ** (n - 1)) * 0.9 / 2, (
                f"after {n} crashes"
            )
    lab[1].swarm("service", "rm", "crashes")


def job(lab: Lab, name: str) -> dict[str, Any]:
    found: dict[str, Any] = lab[1].get(f"/services/{name}")["JobStatus"]
    return found


def test_a_run_that_is_due_while_the_last_goes_on(lab: Lab) -> None:
    """Skipped, or in its place."""
    says(lab, "skipped because the one before was still going on", "why", "tick-forbid")
    assert job(lab, "tick-forbid")["JobIteration"]["Index"] == 1
    assert len(lab.history("tick-forbid", "start")) == 1
    count(lab, "tick-forbid", 1)
    until(lambda: job(lab, "tick-replace")["JobIteration"]["Index"] >= 2, "the run that is due", LIMIT)
    until(lambda: lab.events("tick-replace", "die"), "the first run's container to end", 60)
    count(lab, "tick-replace", 1)
    (gone,) = {e.container for e in lab.events("tick-replace", "die")[:1]}
    assert gone == lab.events("tick-replace", "start")[0].container
    lab[1].swarm("service", "rm", "tick-forbid", "tick-replace")


def test_nothing_is_left(lab: Lab) -> None:
    assert lab[1].swarm("service", "ls", "-q") == ""
    for number in lab.hosts:
        lab.no_containers(number, 60)
