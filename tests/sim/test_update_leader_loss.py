"""A leader that is lost in the middle of an update or a rollback changes nothing of what comes out: real Raft, real daemons.

The undisturbed run is cut into twelve parts by what was written in it; at the end of each the leader is killed, and another one
has to go on from the rows alone.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from swarm_agent.objects.enums import TaskState
from tests.lib.sim_checks import ClusterChecks, unsettled
from tests.lib.sim_cluster import SimCluster, service_spec, simulation

POINTS = range(12)
REPLICAS = 6
Begin = Callable[[SimCluster], Awaitable[None]]


class Outcome(NamedTuple):
    live: tuple[tuple[int, str, int], ...]  # slot, image, failures in a row
    ended: tuple[tuple[str, int], ...]  # state, how many of the tasks that are history
    status: str
    message: str
    starts: int
    spec: str  # image


class Run(NamedTuple):
    outcome: Outcome
    writes: int


def spec(image: str, **update: Any) -> dict[str, Any]:
    template = {
        "Placement": {"Constraints": ["node.role == worker"]},  # the leader's host is not to be missed
        "RestartPolicy": {"Delay": 30 * 10**9},
    }
    policy = {"Parallelism": 2, "Monitor": 10**9, **update}
    return service_spec(
        "web", REPLICAS, image, TaskTemplate=template, UpdateConfig=policy, RollbackConfig=policy
    )


async def change(c: SimCluster, wanted: dict[str, Any], query: str = "") -> None:
    shown = await c.api("GET", "/services/web")
    await c.api("POST", "/services/web/update", wanted, f"version={shown['Version']['Index']}{query}")


async def an_update(c: SimCluster) -> None:
    await change(c, spec("web:2"))


async def an_automatic_rollback(c: SimCluster) -> None:
    """After the second failure. The delay is longer than a crash takes: else whether the next task is begun between a start and its
    crash would depend on who looks when, not only on what is written."""
    policy = {"Parallelism": 1, "FailureAction": "rollback", "MaxFailureRatio": 0.2, "Delay": 5 * 10**9}
    await change(c, spec("crash:1", **policy))


async def a_rollback_by_hand(c: SimCluster) -> None:
    await change(c, spec("web:2"))
    await c.until("the update is done", lambda: over(c), 60)
    await change(c, spec("web:2"), "&rollback=previous")


KINDS: tuple[tuple[Begin, str], ...] = (
    (an_update, "completed"),
    (an_automatic_rollback, "rollback_completed"),
    (a_rollback_by_hand, "rollback_completed"),
)


def over(c: SimCluster) -> str:
    if c.leading() is None:
        return "nobody leads"
    status = c.service("web").update_status
    done = status is not None and status.state in ("completed", "rollback_completed")
    return unsettled(c) if done else f"the update is {status and status.state}"


def image(c: SimCluster, revision_id: str) -> str:
    revision = c.store.revisions.get(revision_id)
    assert revision is not None
    assert revision.template.container_spec is not None
    return revision.template.container_spec.image or ""


def outcome(c: SimCluster, before: int) -> Outcome:
    service, tasks = c.service("web"), c.tasks("web")
    status = service.update_status
    assert status is not None
    ended = Counter(t.status.state.word for t in tasks if t.status.state.terminal)
    return Outcome(
        tuple(
            (t.slot, image(c, t.revision_id), t.failures)
            for t in tasks
            if t.status.state == TaskState.RUNNING
        ),
        tuple(sorted(ended.items())),
        status.state,
        re.sub(r"task \w+", "task", status.message),
        sum(h.engine.starts for h in c.hosts.values()) - before,
        image(c, service.revision_id),
    )


def run(begin: Begin, kill_after: int | None) -> Run:
    """``kill_after``: so many writes after the change."""

    async def story(c: SimCluster) -> Run:
        await c.start(3, 3)
        await c.api("POST", "/services/create", spec("web:1"))
        await c.until_running("web", REPLICAS)
        starts = sum(h.engine.starts for h in c.hosts.values())
        await begin(c)
        first = c.store.index
        if kill_after is not None:
            await c.until(
                "it is so far", lambda: "" if c.store.index >= first + kill_after else "not yet", 60
            )
            old = c.leader()
            await old.kill()
            await c.any_leader(besides=old.name)
            await asyncio.sleep(1)
            old.start()
        await c.until("the update is over", lambda: over(c), 120)
        return Run(outcome(c, starts), c.store.index - first)

    with simulation(5) as sim:
        sim.loop.after_step = ClusterChecks(sim.cluster)
        return sim.run(story(sim.cluster))


@functools.cache
def undisturbed(begin: Begin) -> Run:
    return run(begin, None)


@pytest.mark.parametrize(("begin", "state"), KINDS, ids=[begin.__name__ for begin, _ in KINDS])
def test_the_undisturbed_run(begin: Begin, state: str) -> None:
    found = undisturbed(begin)
    assert found.outcome.status == state
    assert len(found.outcome.live) == REPLICAS
    assert found.writes > len(POINTS)
    failed = dict(found.outcome.ended).get("failed", 0)
    assert failed == (2 if begin is an_automatic_rollback else 0)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("begin", [begin for begin, _ in KINDS], ids=lambda begin: begin.__name__)
def test_a_lost_leader_changes_nothing(begin: Begin, point: int) -> None:
    expected = undisturbed(begin)
    assert run(begin, expected.writes * point // len(POINTS)).outcome == expected.outcome
