"""An asyncio loop whose time is a number: when nothing is ready it jumps to the next timer.

The same code, the same seeds, the same order of callbacks: a run replays exactly. Real time, sockets, signals and threads do not exist
here; code under test reaches them through environment (``Disk``, ``Transport``), whose fakes use timers.

    run(main())                      # like asyncio.run, in virtual time
    with VirtualLoop() as loop: ...  # to step by hand: loop.run_until_complete(asyncio.sleep(3600)) returns at once
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, Self, TypeVar

T = TypeVar("T")


class Deadlock(Exception):
    """Something is awaited and no timer is set that could ever end the wait."""


class Livelock(Exception):
    """The loop is busy for ever without time passing."""


class _Selector:
    """Stands where asyncio waits for sockets: waiting is moving the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[object]:
        self._loop.pass_time(timeout)
        return []

    def close(self) -> None:
        pass


class VirtualLoop(asyncio.BaseEventLoop):
    _scheduled: list[asyncio.TimerHandle]
    _ready: list[asyncio.Handle]

    def __init__(self, *, start: float = 0.0) -> None:
        super().__init__()
        self._now = start
        self._selector = _Selector(self)
        self._clock_resolution = 1e-9
        self.after_step: Callable[[], None] | None = None
        """Called after every pass of the loop; an exception ends the run. For invariants."""
        self.unhandled: list[dict[str, Any]] = []
        """What would have been logged and forgotten: exceptions in callbacks, tasks never awaited."""
        self._passes = 0
        self.set_exception_handler(lambda _loop, context: self.unhandled.append(context))

    def time(self) -> float:
        return self._now

    def pass_time(self, timeout: float | None) -> None:
        if timeout is None:
            raise Deadlock(f"at {self._now:.6f} s everything waits and nothing is scheduled")
        self._passes += 1
        if self._passes > 50_000:
            raise Livelock(f"time stands still at {self._now:.6f} s")
        if timeout > 0:
            self._passes = 0
            # The timer's own time, not a sum: sums of floats drift.
            self._now = max(self._now, self._scheduled[0].when())

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]
        if self.after_step is not None:
            self.after_step()

    def _process_events(self, event_list: list[object]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, *_args: object) -> NoReturn:
        raise RuntimeError("no threads in virtual time: put what blocks behind a seam")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Cancel what still runs, let it clean up, close."""
        self.after_step = None
        left = asyncio.all_tasks(self)
        for task in sorted(left, key=lambda t: t.get_name()):
            task.cancel()
        if left:
            self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()

    def advance(self, seconds: float) -> None:
        """Let so much virtual time pass."""
        self.run_until_complete(asyncio.sleep(seconds))

    def raise_unhandled(self) -> None:
        """Raise the first exception that nobody handled."""
        for context in self.unhandled:
            raise context.get("exception") or RuntimeError(context["message"])


def run(main: Coroutine[Any, Any, T], *, start: float = 0.0) -> T:
    """Run ``main`` to its end in virtual time. Exceptions that nobody handled fail the run too."""
    with VirtualLoop(start=start) as loop:
        result = loop.run_until_complete(main)
        loop.raise_unhandled()
        return result
