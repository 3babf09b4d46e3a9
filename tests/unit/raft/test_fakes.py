"""The simulator's own parts: a wrong fake proves nothing."""

from __future__ import annotations

import asyncio
import random
from functools import partial

import msgspec
import pytest

from tests.lib.fake_net import FakeNet, LinkFaults
from tests.lib.virtual_loop import Deadlock, VirtualLoop, run


class Address(msgspec.Struct, frozen=True):
    addr: str


def test_an_hour_passes_at_once_and_timers_keep_their_order() -> None:
    order: list[str] = []

    async def main() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(2, order.append, "b")
        loop.call_later(1, order.append, "a")
        loop.call_later(3600, order.append, "never")
        await asyncio.sleep(3)
        return loop.time()

    assert run(main()) == 3
    assert order == ["a", "b"]


def test_waiting_for_what_cannot_come_is_an_error() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock):
        run(main())


def test_threads_are_refused_and_unhandled_errors_fail_the_run() -> None:
    async def thread() -> None:
        await asyncio.to_thread(print)

    with pytest.raises(RuntimeError, match="no threads"):
        run(thread())

    async def careless() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    with pytest.raises(ZeroDivisionError):
        run(careless())


def test_every_step_is_seen() -> None:
    steps: list[float] = []
    with VirtualLoop(start=100) as loop:
        loop.after_step = lambda: steps.append(loop.time())
        loop.advance(5)
    assert steps[0] == 100
    assert steps[-1] == 105


def deliveries(faults: LinkFaults, count: int = 200, seed: int = 1) -> list[int]:
    async def main() -> list[int]:
        net = FakeNet(random.Random(seed), faults)
        got: list[int] = []
        net.attach("b", lambda frame: got.append(int(frame)))
        sender = net.transport("a")
        for i in range(count):
            sender.send(Address("b"), b"%d" % i)
        await asyncio.sleep(10)
        return got

    return run(main())


def test_a_good_network_delivers_in_order() -> None:
    assert deliveries(LinkFaults()) == list(range(200))


def test_faults_do_what_they_say_and_the_seed_decides() -> None:
    lossy = deliveries(LinkFaults(drop=0.3))
    assert 100 < len(lossy) < 180
    assert lossy == sorted(lossy)
    assert len(deliveries(LinkFaults(duplicate=0.5))) > 260
    mixed = deliveries(LinkFaults(reorder=0.3))
    assert mixed != sorted(mixed)
    assert sorted(mixed) == list(range(200))
    assert mixed == deliveries(LinkFaults(reorder=0.3))
    assert mixed != deliveries(LinkFaults(reorder=0.3), seed=2)


def test_partitions_hold_and_heal_also_for_what_is_under_way() -> None:
    async def main() -> None:
        net = FakeNet(random.Random(1))
        got: list[bytes] = []

        def hear(addr: str, frame: bytes) -> None:
            got.append(addr.encode() + frame)

        for addr in ("a", "b", "c"):
            net.attach(addr, partial(hear, addr))
        a, b = net.transport("a"), net.transport("b")

        async def exchange() -> list[bytes]:
            got.clear()
            a.send(Address("b"), b"1")
            b.send(Address("a"), b"2")
            a.send(Address("c"), b"3")
            await asyncio.sleep(1)
            return sorted(got)

        assert await exchange() == [b"a2", b"b1", b"c3"]
        net.cut("a", "b")
        assert await exchange() == [b"a2", b"c3"]
        net.partition(["a", "c"], ["b"])
        assert await exchange() == [b"c3"]
        net.heal()
        net.isolate("a", ["a", "b", "c"])
        assert await exchange() == []
        net.heal()
        a.send(Address("b"), b"late")
        net.cut("a", "b")
        await asyncio.sleep(1)
        assert b"blate" not in got
        net.heal()
        a.close()
        assert await exchange() == [b"a2"]
        net.detach("a")
        assert await exchange() == []

    run(main())
