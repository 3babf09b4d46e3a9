"""Who waits for what: proposals for their entry, reads for their index.

Owns futures and the promise that each ends exactly once, with a truth: a result, or an error that says what is known.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable
from typing import NamedTuple

from swarm_agent.raft.errors import OutcomeUnknown


class _Waiting(NamedTuple):
    term: int
    future: asyncio.Future[object]


class Proposals:
    """First queued, then entries in the log."""

    def __init__(self) -> None:
        self.queued: list[tuple[bytes, asyncio.Future[object]]] = []
        self._logged: dict[int, _Waiting] = {}

    def __bool__(self) -> bool:
        return bool(self.queued or self._logged)

    def enqueue(self, data: bytes) -> asyncio.Future[object]:
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.queued.append((data, future))
        return future

    def take_queue(self) -> list[tuple[bytes, asyncio.Future[object]]]:
        """What still waits, in order; whoever gave up before the entry was in the log never was there."""
        queue, self.queued = self.queued, []
        return [item for item in queue if not item[1].done()]

    def logged(self, index: int, term: int, future: asyncio.Future[object]) -> None:
        self._logged[index] = _Waiting(term, future)

    def applied(self, index: int, term: int, result: object) -> None:
        waiting = self._logged.pop(index, None)
        if waiting is None or waiting.future.done():
            return
        if waiting.term == term:
            waiting.future.set_result(result)
        else:
            waiting.future.set_exception(OutcomeUnknown())

    def lose_older_than(self, term: int) -> None:
        """We lead in ``term``, or not at all (then no term is spared by passing one above all): others may commit or drop
        these entries."""
        if not self._logged:
            return
        lost = [index for index, waiting in self._logged.items() if waiting.term < term]
        for index in lost:
            _fail(self._logged.pop(index).future, OutcomeUnknown())

    def end(self, queued_error: Callable[[], Exception]) -> None:
        """The member ends: nothing will be known any more."""
        for _, future in self.take_queue():
            _fail(future, queued_error())
        logged, self._logged = self._logged, {}
        for waiting in logged.values():
            _fail(waiting.future, OutcomeUnknown())


class Reads:
    """First by context, until the leader confirms; then by index, until it is applied."""

    def __init__(self, first_context: int) -> None:
        self._context = first_context  # differs between runs: a late answer to a former run must not fit
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._applying: list[tuple[int, int, asyncio.Future[int]]] = []

    def ask(self) -> tuple[int, asyncio.Future[int]]:
        self._context += 1
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked[self._context] = future
        return self._context, future

    def forget(self, context: int) -> None:
        self._asked.pop(context, None)

    def confirmed(self, context: int, index: int) -> None:
        future = self._asked.pop(context, None)
        if future is not None:
            heapq.heappush(self._applying, (index, context, future))

    def applied(self, index: int) -> None:
        while self._applying and self._applying[0][0] <= index:
            at, _, future = heapq.heappop(self._applying)
            if not future.done():
                future.set_result(at)

    def fail_asked(self, error: Callable[[], Exception]) -> None:
        """Whoever was to confirm does not lead any more."""
        asked, self._asked = self._asked, {}
        for future in asked.values():
            _fail(future, error())

    def end(self, error: Callable[[], Exception]) -> None:
        self.fail_asked(error)
        applying, self._applying = self._applying, []
        for _, _, future in applying:
            _fail(future, error())


def _fail(future: asyncio.Future[object] | asyncio.Future[int], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def settle(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
