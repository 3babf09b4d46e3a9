"""A bug of ours in what is decided about one service: it is left alone for a while, and all others go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from swarm_agent.control import controllers
from swarm_agent.control.explain import standing
from swarm_agent.control.loop import QUARANTINE_NS, ControlLoop
from swarm_agent.control.orchestrator import drain
from swarm_agent.control.scheduler import scheduler
from swarm_agent.control.transaction import Key
from swarm_agent.objects.records import Service
from swarm_agent.store import ApplyResult, Group
from tests.lib.model_cluster import ModelCluster
from tests.lib.specs import a_spec
from tests.lib.virtual_loop import run

SECOND = 1_000_000_000


class Bug(Exception):
    pass


class Leader:
    """The real loop over a store; what it proposes is committed at once."""

    def __init__(self, cluster: ModelCluster) -> None:
        self.cluster = cluster
        self.start = cluster.now
        self.loop = ControlLoop(cluster.store, self._propose, cluster.id, self.clock)

    def clock(self) -> int:
        self.cluster.now = self.start + int(asyncio.get_running_loop().time() * SECOND)
        return self.cluster.now

    async def _propose(self, groups: tuple[Group, ...]) -> ApplyResult:
        accepted = self.cluster.commit(groups)
        return ApplyResult(self.cluster.store.index, accepted)

    def placed(self, service_id: str) -> int:
        return sum(1 for t in self.cluster.tasks(service_id) if t.node_id)


def play(story: Callable[[Leader], Any]) -> None:
    async def main() -> None:
        cluster = ModelCluster.of("n1", "n2")
        leader = Leader(cluster)
        running = asyncio.create_task(leader.loop.run())
        await asyncio.sleep(1)
        await story(leader)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(main())


def broken(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, is_bad: Callable[..., bool]) -> None:
    real = getattr(module, name)

    def maybe(*arguments: Any, **more: Any) -> Any:
        if is_bad(*arguments):
            raise Bug(name)
        return real(*arguments, **more)

    monkeypatch.setattr(module, name, maybe)


def declare(cluster: ModelCluster, name: str) -> str:
    return cluster.create(a_spec(2, name=name))


def named(cluster: ModelCluster, service_id: str) -> str:
    service = cluster.store.services.get(service_id)
    return "" if service is None else service.spec.name or ""


@pytest.mark.parametrize("where", ["orchestrating", "placing"])
def test_one_service_nobody_can_decide_about_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def story(leader: Leader) -> None:
        cluster = leader.cluster
        with monkeypatch.context() as patch:
            if where == "orchestrating":
                broken(patch, controllers, "reconcile_service", lambda p, id_: named(cluster, id_) == "bad")
            else:
                broken(
                    patch,
                    scheduler,
                    "_place_group",
                    lambda p, revision, *_: named(cluster, revision.service_id) == "bad",
                )
            bad, first = declare(cluster, "bad"), declare(cluster, "first")
            await asyncio.sleep(1)
            second = declare(cluster, "second")
            await asyncio.sleep(1)
            assert [leader.placed(id_) for id_ in (bad, first, second)] == [0, 2, 2]
            service = cluster.store.services.get(bad)
            assert isinstance(service, Service)
            quarantined = leader.loop.controllers.quarantined[Key("service", bad)]
            usage = leader.loop.controllers.usage
            (note, *_) = standing(cluster.store, usage, service, leader.clock(), quarantined).notes
            assert "nothing is decided about it for 28s more" in note
            assert "Bug(" in note
            await asyncio.sleep(QUARANTINE_NS / SECOND)
            assert leader.loop.faults == 2, "it is tried again, and left alone again"
            assert leader.placed(bad) == 0
        await asyncio.sleep(QUARANTINE_NS / SECOND)
        assert leader.placed(bad) == 2
        assert not leader.loop.controllers.quarantined

    play(story)


def test_a_drain_goes_on_without_the_service_that_cannot_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(leader: Leader) -> None:
        cluster = leader.cluster
        bad, good = declare(cluster, "bad"), declare(cluster, "good")
        await asyncio.sleep(1)
        broken(monkeypatch, drain, "move", lambda p, service, *_: service.spec.name == "bad")
        cluster.set_node("n1", availability="drain")
        await asyncio.sleep(1)
        movers = [t for t in cluster.store.tasks.all() if t.replaces]
        assert {t.service_id for t in movers} == {good}
        assert Key("service", bad) in leader.loop.controllers.quarantined

    play(story)


def test_what_nobody_can_be_blamed_for_ends_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        cluster = ModelCluster.of("n1")
        leader = Leader(cluster)
        broken(monkeypatch, controllers, "place", lambda *_: True)
        with pytest.raises(Bug):
            await leader.loop.run()

    run(main())


def test_an_entry_that_cannot_be_booked_is_committed_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def story(leader: Leader) -> None:
        cluster = leader.cluster
        ours: set[object] = set()
        real = controllers.Controllers.changed

        def changed(self: controllers.Controllers, changes: Any) -> None:
            if self is leader.loop.controllers and not ours:
                ours.add(self)
                raise Bug("booking")
            real(self, changes)

        monkeypatch.setattr(controllers.Controllers, "changed", changed)
        first = declare(cluster, "first")
        assert cluster.store.services.get(first) is not None
        await asyncio.sleep(1)
        assert leader.placed(first) == 2
        assert leader.loop.faults == 1
        assert leader.loop.controllers not in ours

    play(story)
