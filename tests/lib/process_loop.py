"""A virtual loop whose callbacks belong to processes: each can be stopped and continued, and has a clock of its own.

Owns what SIGSTOP, a starved host and a bad clock do to code on an asyncio loop: while a process is stopped none of its callbacks run
(timers, tasks, arrivals, answers of its disk), and when it goes on they all come at once. Refuses to know what a process is for.

A callback belongs to the process whose context it was scheduled in; work for a process is started with its ``context``. What is
scheduled outside of any process (the network, clients, the nemesis) is never held back and lives by the world's time.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context

from tests.lib.virtual_loop import VirtualLoop


class HostClock:
    """A machine's monotonic clock beside the world's: it runs at ``rate`` and may jump forward, never back."""

    __slots__ = ("_here", "_there", "rate")

    def __init__(self, rate: float = 1.0) -> None:
        self.rate = rate
        self._there = self._here = 0.0  # both clocks, at the last change

    def local(self, world: float) -> float:
        return self._here + (world - self._there) * self.rate

    def world(self, local: float) -> float:
        return self._there + (local - self._here) / self.rate

    def change(self, world: float, *, rate: float | None = None, jump_s: float = 0.0) -> None:
        """From now on. Timers that are set keep their moment, as far as the world is concerned."""
        self._here, self._there = self.local(world) + jump_s, world
        if rate is not None:
            self.rate = rate


class LoopProcess:
    """One run of a program on a ``ProcessLoop``. On any other loop it does nothing and does not hurt."""

    def __init__(self, clock: HostClock | None = None) -> None:
        self.clock = clock or HostClock()
        self.stopped = False
        self.held: list[asyncio.Handle] = []
        self._context = copy_context()
        self._context.run(_process.set, self)

    @property
    def context(self) -> Context:
        """A new one each time: a context cannot be entered twice."""
        return self._context.copy()

    def stop(self) -> None:
        """From the next pass of the loop on nothing of it runs."""
        loop = asyncio.get_running_loop()
        if isinstance(loop, ProcessLoop):
            self.stopped = True
            loop.stopped[self] = None

    def resume(self, *, timers_first: bool = True) -> None:
        """Everything that was due comes now. Which of arrivals and timers a real loop sees first depends on the loop."""
        if not self.stopped:
            return
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ProcessLoop)
        self.stopped = False
        del loop.stopped[self]
        held, self.held = self.held, []
        if not timers_first:
            held.sort(key=lambda handle: isinstance(handle, asyncio.TimerHandle))
        loop.run_soon(held)


_process: ContextVar[LoopProcess | None] = ContextVar("loop_process", default=None)


class ProcessLoop(VirtualLoop):
    def __init__(self, *, start: float = 0.0) -> None:
        super().__init__(start=start)
        self.stopped: dict[LoopProcess, None] = {}

    def time(self) -> float:
        process = _process.get()
        return self._now if process is None else process.clock.local(self._now)

    @property
    def world_time(self) -> float:
        return self._now

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle:
        process = _process.get()
        if process is not None:
            when = process.clock.world(when)
        return super().call_at(when, callback, *args, context=context)

    def run_soon(self, handles: list[asyncio.Handle]) -> None:
        self._ready.extend(handles)

    def finish(self) -> None:
        """What is still stopped goes on, so that it can be cancelled."""
        for process in self.stopped:
            process.stopped = False
            self.run_soon(process.held)
        self.stopped.clear()
        super().finish()

    def _process_events(self, event_list: list[object]) -> None:
        """asyncio calls this between waiting and running: here what belongs to stopped processes is taken out."""
        if not self.stopped:
            return
        due = self._now + self._clock_resolution
        while self._scheduled and self._scheduled[0].when() < due:
            timer = heapq.heappop(self._scheduled)
            timer._scheduled = False  # type: ignore[attr-defined]  # asyncio keeps it to itself
            self._ready.append(timer)
        ready = list(self._ready)
        self._ready.clear()
        for handle in ready:
            process = handle._context.get(_process)  # type: ignore[attr-defined]  # as above
            if process is not None and process.stopped:
                process.held.append(handle)
            else:
                self._ready.append(handle)
