"""What the flags of updates, rollbacks and restarts do, and what becomes of an update that is crossed by something else: on two
hosts with real engines, through the real ``docker`` and ``swarmctl``. Order and pauses are those of the engines' own events.

Times are asserted from below only: an update may take as long as it likes, it may not be early.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from swarm_agent.objects import features
from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import SHELL, Event, Lab, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

BRIEF = ("-d", "--no-resolve-image")
SLEEP = ("sleep", "100000")
# never healthy, so never running, in the slots that BAD names
PICKY = (
    "--env=SLOT={{.Task.Slot}}", "--health-cmd=case ,$BAD, in *,$SLOT,*) exit 1;; esac", "--health-interval=200ms", "--health-retries=1",
)  # fmt: skip
PACE = 1.5  # seconds, of the delays and the watch
LATE = 0.5  # seconds; so much later than it happened an engine may tell of a start


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder: Path = tmp_path_factory.mktemp("updates")
    with swarm_lab(folder, (1, 2)) as found:
        found[1].swarm("swarm", "init", "--advertise-addr", found[1].address)
        token = found[1].swarm("swarm", "join-token", "-q", "worker").strip()
        found[2].swarm("swarm", "join", "--token", token, "10.92.0.1:2377")
        until(
            lambda: found[1].get("/info")["Swarm"].get("FeatureLevel") == features.LEVEL,
            "the feature level",
            30,
        )
        with found.recorded():
            yield found


def create(lab: Lab, name: str, *arguments: str, command: tuple[str, ...] = SLEEP, running: int = 0) -> None:
    lab[1].swarm(
        "service", "create", *BRIEF, "--stop-grace-period=0s", f"--name={name}", *arguments, SHELL, *command
    )
    if running:
        lab.running(1, name, running)


def update(lab: Lab, name: str, *arguments: str) -> None:
    lab[1].swarm("service", "update", *BRIEF, *arguments, name)


def status(lab: Lab, name: str, wanted: str) -> dict[str, str]:
    """Wait until the service's update stands so; what is shown of it."""

    def reached() -> dict[str, str] | None:
        shown: dict[str, str] = lab[1].get(f"/services/{name}").get("UpdateStatus") or {}
        return shown if shown.get("State") == wanted else None

    try:
        found: dict[str, str] = until(reached, f"{name} to be {wanted}", 90)
    except AssertionError as error:
        shown = lab[1].get(f"/services/{name}").get("UpdateStatus")
        raise AssertionError(f"{error}; {shown}; {lab[1].ctl('why', name)}") from error
    return found


def since(lab: Lab, name: str, began: dict[str, str], action: str) -> list[Event]:
    """What the engines did for a service since its update began."""
    at = seconds(began["StartedAt"])
    return [event for event in lab.history(name, action) if event.at >= at]


def seconds(text: str) -> float:
    """Of a time as the API shows it."""
    return datetime.fromisoformat(text).timestamp()


def by_slot(events: list[Event]) -> dict[str, Event]:
    """The first in each slot."""
    return {event.slot: event for event in reversed(events)}


def given(lab: Lab, name: str, variable: str) -> dict[str, str]:
    """By slot, the variable's value in the containers that run: "1", or "1/2" while there are two."""
    found: dict[str, list[str]] = {}
    for slot, shown in lab.inspected(name):
        values = dict(line.split("=", 1) for line in shown["Config"]["Env"] or ())
        found.setdefault(slot, []).append(values.get(variable, ""))
    return {slot: "/".join(sorted(values)) for slot, values in found.items()}


def all_given(lab: Lab, name: str, variable: str, value: str, slots: int) -> None:
    """Wait until so many containers run, all with that value."""
    wanted = {str(slot): value for slot in range(1, slots + 1)}
    until(lambda: given(lab, name, variable) == wanted, f"{name} to run as {wanted}", 60)


def ids(lab: Lab, name: str) -> dict[str, str]:
    """By slot, the container that runs."""
    return {slot: shown["Id"] for slot, shown in lab.inspected(name)}


def test_order_delay_parallelism_and_monitor(lab: Lab) -> None:
    paced = (f"--update-delay={PACE}s", f"--update-monitor={PACE}s")
    create(lab, "stops", "--replicas=3", *paced, running=3)
    create(
        lab,
        "starts",
        "--replicas=4",
        *paced,
        "--update-parallelism=2",
        "--update-order=start-first",
        running=4,
    )
    for name in ("stops", "starts"):
        update(lab, name, "--env-add=V=2")
    for name, at_once in (("stops", 1), ("starts", 2)):
        done = status(lab, name, "completed")
        begins, ends = since(lab, name, done, "start"), since(lab, name, done, "die")
        replicas = len(begins)
        assert (replicas, len(ends)) == ((3, 3) if name == "stops" else (4, 4))
        for slot, begin in by_slot(begins).items():
            assert (by_slot(ends)[slot].at < begin.at) == (name == "stops"), "who is first"
        for early, late in zip(begins, begins[at_once:], strict=False):
            assert late.at - early.at >= PACE - LATE, f"{at_once} at a time, and a rest between them"
        assert seconds(done["CompletedAt"]) - begins[-1].at >= PACE - LATE, "it is watched"
        all_given(lab, name, "V", "2", replicas)
    lab[1].swarm("service", "rm", "stops", "starts")


def test_when_too_many_fail(lab: Lab) -> None:
    """One of three is tolerated; with two the update pauses, goes on, or is taken back."""
    for action in ("pause", "continue", "rollback"):
        create(
            lab, action, "--replicas=3", *PICKY, "--env=BAD=0", f"--update-failure-action={action}", "--update-monitor=500ms",
            "--update-max-failure-ratio=0.4", "--restart-delay=1s", "--rollback-parallelism=0", "--rollback-monitor=500ms",
        )  # fmt: skip
    for action in ("pause", "continue", "rollback"):
        lab.running(1, action, 3)
    update(lab, "pause", "--env-add=BAD=1")
    status(lab, "pause", "completed")
    until(
        lambda: given(lab, "pause", "BAD") | {"1": ""} == {"1": "", "2": "1", "3": "1"},
        "the other two to be new",
        60,
    )
    untouched = {action: ids(lab, action)["3"] for action in ("pause", "rollback")}
    for action in ("pause", "continue", "rollback"):
        update(lab, action, "--env-add=BAD=1,2")
    said = status(lab, "pause", "paused")["Message"]
    assert said.startswith("update paused due to failure or early termination of task ")
    assert f"paused: {said}" in lab[1].ctl("why", "pause")
    assert ids(lab, "pause")["3"] == untouched["pause"]
    status(lab, "continue", "completed")
    until(lambda: given(lab, "continue", "BAD").get("3") == "1,2", "the third to be new", 60)
    status(lab, "rollback", "rollback_completed")
    all_given(lab, "rollback", "BAD", "0", 3)
    assert ids(lab, "rollback")["3"] == untouched["rollback"]
    update(lab, "pause", "--env-add=BAD=0", "--update-parallelism=0")
    status(lab, "pause", "completed")
    all_given(lab, "pause", "BAD", "0", 3)
    lab[1].swarm("service", "rm", "pause", "continue", "rollback")


def test_how_a_rollback_goes(lab: Lab) -> None:
    """Its own order, pace and watch, and what follows when it fails too."""
    create(
        lab, "back", "--replicas=4", "--env=V=1", "--update-parallelism=0", "--update-monitor=100ms", "--rollback-parallelism=2",
        f"--rollback-delay={PACE}s", "--rollback-order=start-first", f"--rollback-monitor={PACE}s", running=4,
    )  # fmt: skip
    flags = lab[1].folder.parent / "flags"
    flags.mkdir()
    torn = ("sh", "-c", "test -e /flags/broken && exit 7; exec sleep 100000")
    policies = {
        "torn": (),
        "torn-on": ("--rollback-failure-action=continue",),
        "torn-few": ("--rollback-max-failure-ratio=1",),
    }
    for name, policy in policies.items():
        create(
            lab, name, "--replicas=2", "--env=V=1", "--update-parallelism=0", "--update-failure-action=rollback", "--rollback-parallelism=0",
            "--update-monitor=2s", "--rollback-monitor=2s", *policy, f"--mount=type=bind,source={flags},target=/flags", command=torn, running=2,
        )  # fmt: skip
    update(lab, "back", "--env-add=V=2")
    status(lab, "back", "completed")
    lab[1].swarm("service", "rollback", "-d", "back")
    (flags / "broken").touch()
    for name in policies:
        update(lab, name, "--env-add=V=2")
    done = status(lab, "back", "rollback_completed")
    begins, ends = since(lab, "back", done, "start"), since(lab, "back", done, "die")
    assert (len(begins), len(ends)) == (4, 4)
    assert all(begin.at < by_slot(ends)[slot].at for slot, begin in by_slot(begins).items()), "start-first"
    assert min(late.at - early.at for early, late in zip(begins, begins[2:], strict=False)) >= PACE - LATE
    assert seconds(done["CompletedAt"]) - begins[-1].at >= PACE - LATE
    all_given(lab, "back", "V", "1", 4)
    assert "rollback paused due to failure" in status(lab, "torn", "rollback_paused")["Message"]
    status(lab, "torn-on", "rollback_completed")
    status(lab, "torn-few", "rollback_completed")
    lab[1].swarm("service", "rm", "back", *policies)


def test_an_update_that_can_never_be_placed_ends(lab: Lab) -> None:
    """Its deadline passes: it pauses, goes on or is taken back, and costs no container."""
    before = {}
    ends = {
        "halts": ("pause", "paused"),
        "goes-on": ("continue", "completed"),
        "returns": ("rollback", "rollback_completed"),
    }
    for name, (action, _) in ends.items():
        create(
            lab, name, "--replicas=2", "--label=swarm-agent.update.progress-deadline=2s", f"--update-failure-action={action}",
            "--update-parallelism=0", "--update-monitor=100ms", running=2,
        )  # fmt: skip
        before[name] = ids(lab, name)
        update(lab, name, "--env-add=V=2", "--constraint-add=node.labels.nowhere==1")
    until(lambda: "node.labels.nowhere is not set" in lab[1].ctl("why", "halts"), "the reason", 60)
    for name, (action, end) in ends.items():
        said = status(lab, name, end)["Message"]
        assert ("made no progress within 2s" in said) == (action == "pause")
        assert ids(lab, name) == before[name]
    assert lab[1].ctl("why", "returns") == "every task of returns that should run is running\n"
    lab[1].swarm("node", "update", "--label-add=nowhere=1", lab.node_id(2))
    all_given(lab, "goes-on", "V", "2", 2)
    assert lab.containers("goes-on").keys() == {2}
    lab[1].swarm("service", "rm", *ends)


def test_restart_policies(lab: Lab) -> None:
    """How often the engines start a container that ends, until its place is given up."""
    quick = "--restart-delay=300ms"
    wanted = {
        "never": (1, ("--restart-condition=none", quick), "exit 7"),
        "fine": (1, ("--restart-condition=on-failure", quick), "exit 0"),
        "always": (3, ("--restart-condition=any", "--restart-max-attempts=2", quick), "exit 0"),
        "thrice": (
            3,
            ("--restart-condition=on-failure", "--restart-max-attempts=2", "--restart-delay=1s"),
            "exit 7",
        ),
        "bounded": (4, ("--restart-max-attempts=3", "--restart-window=1m", quick), "exit 7"),
    }
    for name, (_, policy, line) in wanted.items():
        create(lab, name, *policy, command=("sh", "-c", line))
    # never a second restart within the window, so never given up
    policy = ("--restart-max-attempts=1", "--restart-window=1s", quick)
    create(lab, "windowed", *policy, command=("sh", "-c", "sleep 1.2; exit 7"))

    def given_up(name: str) -> bool:
        return "1 of 1 places are given up" in lab[1].ctl("why", name)

    for name, (starts, _, _) in wanted.items():
        until(
            partial(given_up, name),
            f"{name} to be given up",
            60,
        )
        assert len(lab.history(name, "start")) == starts, name
    begins = lab.events("thrice", "start")
    assert begins[1].at - begins[0].at > 0.5, "the delay"
    until(lambda: len(lab.events("windowed", "start")) >= 3, "restarts that no window holds together", 60)
    assert "given up" not in lab[1].ctl("why", "windowed")
    lab[1].swarm("service", "rm", *wanted, "windowed")


def test_an_update_that_is_crossed(lab: Lab) -> None:
    """By a scaling, by another update, by a rollback, and the next one by a drain: the end is as declared last, and is said."""
    create(
        lab, "busy", "--replicas=4", "--env=V=0", "--update-delay=1h", "--update-monitor=100ms", "--rollback-parallelism=0",
        "--rollback-monitor=100ms", running=4,
    )  # fmt: skip
    update(lab, "busy", "--env-add=V=1")
    until(lambda: "1" in given(lab, "busy", "V").values(), "the first of the update", 60)
    lab[1].swarm("service", "scale", "-d", "busy=6")
    until(lambda: sum(lab.spread("busy").values()) == 6, "six", 60)
    assert lab[1].get("/services/busy")["UpdateStatus"]["State"] == "updating"
    update(lab, "busy", "--env-add=V=2")
    until(lambda: "2" in given(lab, "busy", "V").values(), "the first of the next update", 60)
    lab[1].swarm("service", "rollback", "-d", "busy")
    said = status(lab, "busy", "rollback_completed")
    assert said["Message"] == "rollback completed"
    all_given(lab, "busy", "V", "1", 6)
    update(lab, "busy", "--env-add=V=3", "--update-parallelism=2", "--update-delay=500ms")
    until(lambda: "3" in given(lab, "busy", "V").values(), "the first of the third", 60)
    lab[1].swarm("node", "update", "--availability=drain", lab.node_id(2))
    until(lambda: lab.spread("busy") == {1: 6}, "the drain", 60)
    status(lab, "busy", "completed")
    all_given(lab, "busy", "V", "3", 6)
    until(
        lambda: lab[1].ctl("why", "busy") == "every task of busy that should run is running\n",
        "nothing to say",
        60,
    )
    lab[1].swarm("node", "update", "--availability=active", lab.node_id(2))
    lab[1].swarm("service", "rm", "busy")


def test_a_crash_loop_is_forced_and_mended(lab: Lab) -> None:
    """``--force`` does not wait for the long rest, and fails as truly; an image that works ends the loop."""
    line = ("sh", "-c", "test $BAD = 0 || exit 7; exec sleep 100000")
    create(lab, "loop", "--env=BAD=1", "--restart-delay=60s", "--update-monitor=5s", command=line)
    until(lambda: "waits out its restart delay" in lab[1].ctl("why", "loop"), "the rest", 60)
    update(lab, "loop", "--force")
    said = status(lab, "loop", "paused")
    assert len(since(lab, "loop", said, "start")) == 1
    update(lab, "loop", "--env-add=BAD=0", "--update-monitor=100ms")
    status(lab, "loop", "completed")
    all_given(lab, "loop", "BAD", "0", 1)
    told = lab[1].ctl("history", lab.running(1, "loop", 1)[0]["ID"]).splitlines()
    assert "non-zero exit (7)" in told[0]
    assert "made by an update" in told[-1]
    lab[1].swarm("service", "rm", "loop")


def test_nothing_is_left(lab: Lab) -> None:
    for number in lab.hosts:
        lab.no_containers(number, 60)
