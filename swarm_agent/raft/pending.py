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


class Logged:
    """Entries in the log whose outcome somebody waits for."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Waiting] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, index: int, term: int, future: asyncio.Future[object]) -> None:
        self._waiting[index] = _Waiting(term, future)

    def applied(self, index: int, term: int, result: object) -> None:
        waiting = self._waiting.pop(index, None)
        if waiting is None or waiting.future.done():
            return
        if waiting.term == term:
            waiting.future.set_result(result)
        else:
            waiting.future.set_exception(OutcomeUnknown())

    def lose_older_than(self, term: int) -> None:
        """We lead in ``term``, or not at all (then no term is spared by passing one above all): others may commit or drop
        these entries."""
        lost = [index for index, waiting in self._waiting.items() if waiting.term < term]
        for index in lost:
            _fail(self._waiting.pop(index).future, OutcomeUnknown())

    def end(self) -> None:
        """The member ends: nothing will be known any more."""
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            _fail(one.future, OutcomeUnknown())


class Proposals:
    """First offered under a ticket, then entries in the log."""

    def __init__(self) -> None:
        self._ticket = 0
        self._offered: dict[int, asyncio.Future[object]] = {}
        self._logged = Logged()

    def __bool__(self) -> bool:
        return bool(self._offered or self._logged)

    def offer(self) -> tuple[int, asyncio.Future[object]]:
        self._ticket += 1
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._offered[self._ticket] = future
        return self._ticket, future

    def withdraw(self, ticket: int) -> bool:
        """Whether it may still be kept out of the log."""
        return self._offered.pop(ticket, None) is not None

    def logged(self, tickets: tuple[int, ...], first_index: int, term: int) -> None:
        for offset, ticket in enumerate(tickets):
            future = self._offered.pop(ticket, None)
            if future is not None:
                self._logged.add(first_index + offset, term, future)

    def refused(self, tickets: tuple[int, ...], error: Callable[[], Exception]) -> None:
        for ticket in tickets:
            future = self._offered.pop(ticket, None)
            if future is not None:
                _fail(future, error())

    def applied(self, index: int, term: int, result: object) -> None:
        self._logged.applied(index, term, result)

    def lose_older_than(self, term: int) -> None:
        if self._logged:
            self._logged.lose_older_than(term)

    def end(self, *, offered: Callable[[], Exception]) -> None:
        """Nothing will be known any more. ``offered``: for those that may not even be in the log."""
        self.refused(tuple(self._offered), offered)
        self._logged.end()


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

    def refused(self, context: int, error: Exception) -> None:
        future = self._asked.pop(context, None)
        if future is not None:
            _fail(future, error)

    def confirmed(self, context: int, index: int) -> None:
        future = self._asked.pop(context, None)
        if future is not None:
            heapq.heappush(self._applying, (index, context, future))

    def applied(self, index: int) -> None:
        while self._applying and self._applying[0][0] <= index:
            at, _, future = heapq.heappop(self._applying)
            if not future.done():
                future.set_result(at)

    def fail_asked(self, last_context: int, error: Callable[[], Exception]) -> None:
        """Whoever was to confirm these does not lead any more."""
        for context in [c for c in self._asked if c <= last_context]:
            _fail(self._asked.pop(context), error())

    def end(self, error: Callable[[], Exception]) -> None:
        self.fail_asked(self._context, error)
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
