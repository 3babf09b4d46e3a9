"""The lease of a node and the files the guard looks at, with a clock that is set by hand."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from swarm_agent import guard as guarding
from swarm_agent.agent.lease import Lease, LeaseFolder, LeaseGuard
from swarm_agent.objects.errors import Unavailable
from swarm_agent.objects.leases import LEASE_S, START_S
from tests.lib.fake_engine import FakeEngine, FakeEngineClient, Program
from tests.lib.fake_guard import FakeGuard
from tests.lib.virtual_loop import run


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class World:
    """An engine with one running container, ``c``."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.engine = FakeEngine("host", random.Random(1))
        self.engine.images["web:1"] = Program()
        self.client: FakeEngineClient = self.engine.client()
        self.guard: LeaseGuard = FakeGuard(self.engine, self.clock)
        self.lease = Lease(self.client, self.guard, self.clock)
        self.id = ""

    async def start(self) -> None:
        made = await self.client.call(
            "POST", "/containers/create", query={"name": "c"}, body={"Image": "web:1"}
        )
        self.id = made["Id"]
        await self.client.call("POST", "/containers/c/start")

    @property
    def running(self) -> bool:
        return self.engine.containers["c"].running


def play(story: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World()
        await world.start()
        loop = asyncio.create_task(world.lease.run())
        try:
            await story(world)
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)

    run(main())


def test_it_counts_from_the_beat_and_not_from_the_answer() -> None:
    async def story(w: World) -> None:
        number = w.lease.beat()
        w.clock.now += 5
        w.lease.confirmed(number)
        assert w.lease.left() == LEASE_S - 5

    play(story)


def test_answers_out_of_order_take_nothing_back() -> None:
    async def story(w: World) -> None:
        first = w.lease.beat()
        w.clock.now += 1
        second = w.lease.beat()
        w.lease.confirmed(second)
        w.lease.confirmed(first)
        w.lease.confirmed(second + 1)  # never sent
        assert w.lease.left() == LEASE_S

    play(story)


def test_what_is_started_is_written_first_and_prolonged_with_the_lease() -> None:
    async def story(w: World) -> None:
        with pytest.raises(Unavailable, match="waiting for a lease"):
            w.lease.cover(w.id)
        assert w.guard.known() == {}
        w.lease.confirmed(w.lease.beat())
        w.lease.cover(w.id)
        assert w.guard.known() == {w.id: w.clock.now + LEASE_S}
        w.clock.now += 2
        w.lease.confirmed(w.lease.beat())
        assert w.guard.known() == {w.id: w.clock.now + LEASE_S}
        assert not w.lease.ended(w.id)
        assert w.guard.known() == {}
        assert not w.lease.in_use

    play(story)


def test_little_of_a_lease_is_not_enough_to_start() -> None:
    async def story(w: World) -> None:
        w.lease.confirmed(w.lease.beat())
        w.clock.now += LEASE_S - START_S + 0.1
        with pytest.raises(Unavailable):
            w.lease.cover(w.id)

    play(story)


def test_its_end_kills_and_a_later_one_saves_nothing() -> None:
    async def story(w: World) -> None:
        w.lease.confirmed(w.lease.beat())
        w.lease.cover(w.id)
        number = w.lease.beat()
        w.clock.now += LEASE_S
        w.lease.confirmed(number)  # too late by nothing
        await asyncio.sleep(1)
        assert not w.running
        w.lease.confirmed(w.lease.beat())
        assert w.lease.left() == LEASE_S
        await w.client.call("POST", "/containers/c/start")  # a start that was on its way
        await asyncio.sleep(1)
        assert not w.running
        assert w.lease.ended(w.id)

    play(story)


def test_an_engine_that_is_away_is_asked_again() -> None:
    async def story(w: World) -> None:
        w.lease.confirmed(w.lease.beat())
        w.lease.cover(w.id)
        w.engine.go_down()
        w.clock.now += LEASE_S
        await asyncio.sleep(3)
        w.engine.come_up()
        await asyncio.sleep(1)
        assert not w.running

    play(story)


def test_a_new_daemon_goes_on_with_the_lease_of_the_last() -> None:
    async def story(w: World) -> None:
        w.lease.confirmed(w.lease.beat())
        w.lease.cover(w.id)
        w.clock.now += 4
        again = Lease(w.client, w.guard, w.clock)
        assert again.left() == LEASE_S - 4
        again.runs(w.id)
        assert again.in_use
        w.clock.now += LEASE_S
        late = Lease(w.client, w.guard, w.clock)
        assert late.ended(w.id), "it is known why this one ended"

    play(story)


def test_one_that_runs_without_a_word_of_it_is_killed() -> None:
    async def story(w: World) -> None:
        w.lease.runs(w.id)
        await asyncio.sleep(1)
        assert not w.running

    play(story)


# -- the files ----------------------------------------------------------------------------------------------------------------


def test_the_folder_is_what_the_guard_reads(tmp_path: Path) -> None:
    folder = LeaseFolder("/run/engine.sock", tmp_path / "leases")
    assert folder.known() == {}
    folder.put("abc", 12.5)
    folder.put("abc", 13.5)
    folder.put("def", 1.0)
    assert sorted(guarding.leases(tmp_path / "leases")) == [
        guarding.LeaseRecord("abc", "/run/engine.sock", 13.5),
        guarding.LeaseRecord("def", "/run/engine.sock", 1.0),
    ]
    assert folder.known() == {"abc": 13.5, "def": 1.0}
    folder.drop("def")
    folder.drop("def")
    (tmp_path / "leases" / "torn.json").write_text('{"container": "x"')
    assert folder.known() == {"abc": 13.5}


def test_a_guard_is_awake_that_has_looked_lately(tmp_path: Path) -> None:
    clock = Clock()
    folder = LeaseFolder("/run/engine.sock", tmp_path, clock)
    assert not folder.awake()
    clock.now = guarding.boottime()
    guarding.Guard(tmp_path).look()
    assert folder.awake()
    clock.now += 10
    assert not folder.awake()


def test_the_guard_kills_what_is_over_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []
    monkeypatch.setattr(guarding, "kill", lambda lease: killed.append(lease.container))
    now = guarding.boottime()
    for name, until in (
        ("over", now - guarding.PATIENCE_S - 0.1),
        ("just over", now - 0.1),
        ("runs", now + 10),
        ("long over", now - 10000),
    ):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"container": name, "engine": "/none", "until": until})
        )
    guarding.Guard(tmp_path).look()
    assert sorted(killed) == ["long over", "over"]


def test_the_guard_never_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[str] = []
    monkeypatch.setattr(guarding, "kill", lambda lease: killed.append(lease.container))
    LeaseFolder("/none", tmp_path).put("c", guarding.boottime() - 10)
    guard = guarding.Guard(tmp_path)
    for _ in range(guarding.OFTEN):
        guard.look()
    assert len(killed) == guarding.OFTEN
    for _ in range(guarding.SELDOM * 3):
        guard.look()
    assert len(killed) == guarding.OFTEN + 3
