"""A stopped process does nothing, and its clock is its own."""

from __future__ import annotations

import asyncio

from tests.lib.process_loop import HostClock, LoopProcess, ProcessLoop


def test_a_stopped_process_runs_nothing_and_then_everything_at_once() -> None:
    async def main() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        seen: list[tuple[str, float]] = []

        async def worker(name: str) -> None:
            for _ in range(3):
                await asyncio.sleep(1)
                seen.append((name, loop.time()))

        process = LoopProcess()
        inside = loop.create_task(worker("inside"), context=process.context)
        outside = loop.create_task(worker("outside"))
        await asyncio.sleep(1.5)
        process.stop()
        loop.call_soon(lambda: seen.append(("arrival", loop.time())), context=process.context)
        await asyncio.sleep(5)
        process.resume(timers_first=False)
        await asyncio.wait([inside, outside])
        return seen

    with ProcessLoop() as loop:
        assert loop.run_until_complete(main()) == [
            ("inside", 1.0),
            ("outside", 1.0),
            ("outside", 2.0),
            ("outside", 3.0),
            ("arrival", 6.5),
            ("inside", 6.5),
            ("inside", 7.5),
        ]


def test_each_process_lives_by_its_own_clock() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        clock = HostClock(rate=2.0)
        process = LoopProcess(clock)

        async def timed() -> tuple[float, float]:
            began = loop.time()
            await asyncio.sleep(4)
            return began, loop.time() - began

        fast = loop.create_task(timed(), context=process.context)
        await asyncio.sleep(1.9)
        assert not fast.done()
        await asyncio.sleep(0.2)
        assert fast.result() == (0.0, 4.0), "four of its seconds are two of the world's"
        clock.change(loop.time(), rate=1.0, jump_s=100.0)
        began, took = await loop.create_task(timed(), context=process.context)
        assert abs(began - 104.2) < 1e-6
        assert abs(took - 4) < 1e-6
        assert abs(loop.time() - 6.1) < 1e-6, "the world knows nothing of it"

    with ProcessLoop() as loop:
        loop.run_until_complete(main())
