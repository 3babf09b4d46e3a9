"""The one driver of the controllers: waits for changes or the clock, runs a pass, proposes it, looks again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from swarm_agent.control.controllers import Controllers, Quarantine
from swarm_agent.control.transaction import MAX_WRITES, Key
from swarm_agent.objects.errors import SwarmError, UserError
from swarm_agent.store import ApplyResult, Change, Group, Store

log = logging.getLogger(__name__)

Propose = Callable[[tuple[Group, ...]], Awaitable[ApplyResult]]

QUARANTINE_NS = 30_000_000_000  # until what a decision failed about is looked at again
TOO_LARGE_S = 1.0  # until a single row that does not fit is tried again


class ControlLoop:
    """Runs while this manager leads; made anew for each term of leadership."""

    def __init__(
        self,
        store: Store,
        propose: Propose,
        new_id: Callable[[], str],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._propose = propose
        self._clock = clock
        self._new_id = new_id
        self.controllers = Controllers(store, new_id)
        self._wake = asyncio.Event()
        self._unwatch = store.watch(self._on_commit)
        self.passes = 0
        self.rejected = 0
        self.faults = 0
        self._spoilt: Exception | None = None  # what an entry that could not be booked ended with
        self.last_pass_s = 0.0

    def _on_commit(self, index: int, changes: Sequence[Change]) -> None:  # noqa: ARG002 - the watcher's signature
        try:
            self.controllers.changed(changes)
        except Exception as err:  # noqa: BLE001 - a bug of ours must not reach the store: the entry is committed all the same
            self._spoilt = err
        if self._spoilt is not None or self.controllers.next_wake() == 0:
            self._wake.set()

    async def run(self) -> None:
        """Until cancelled. Losing leadership ends the proposals with an error; the owner then cancels us."""
        try:
            while True:
                await self._sleep()
                await self._once()
                await asyncio.sleep(0)  # a pass that had nothing to propose must not keep the others waiting
        finally:
            self.close()

    def close(self) -> None:
        """Hear of no more commits."""
        self._unwatch()

    async def _sleep(self) -> None:
        self._wake.clear()
        at = self.controllers.next_wake()
        if at == 0 or self._spoilt is not None:
            return
        delay = None if at is None else max(0.0, (at - self._clock()) / 1e9)
        try:
            async with asyncio.timeout(delay):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _once(self) -> None:
        started = asyncio.get_running_loop().time()
        if self._spoilt is not None:
            self._book_anew(self._spoilt)
        try:
            groups = self.controllers.run(self._clock())
        except Exception as err:
            about = self.controllers.failed_key
            if about is None:
                raise
            self._quarantine(about, err)
            return
        self.passes += 1
        self.last_pass_s = asyncio.get_running_loop().time() - started
        if not groups:
            return
        await self._commit(groups)

    def _book_anew(self, error: Exception) -> None:
        log.error("an entry could not be booked, and all books are made anew", exc_info=error)
        self._spoilt = None
        self.faults += 1
        self.controllers = Controllers(self._store, self._new_id, self.controllers.quarantined)

    def _quarantine(self, about: Key, error: Exception) -> None:
        """A bug of ours in what is decided about one service, say: nothing was written, and all others go on without it."""
        log.error(
            "a decision about %s %s failed, and it is left alone for %d s: see the error below, and report it",
            about.kind,
            about.id,
            QUARANTINE_NS // 1_000_000_000,
            exc_info=error,
            extra={"cause": "bug"},
        )
        self.faults += 1
        left = Quarantine(self._clock() + QUARANTINE_NS, repr(error))
        quarantined = {**self.controllers.quarantined, about: left}
        self.controllers = Controllers(self._store, self._new_id, quarantined)

    async def _commit(self, groups: tuple[Group, ...]) -> None:
        """As one entry, or as several when it is too large for one: groups stand or fall by themselves."""
        try:
            result = await self._propose(groups)
        except UserError as err:  # too large, nothing else is refused so
            if len(groups) > 1:
                await self._commit(groups[: len(groups) // 2])
                await self._commit(groups[len(groups) // 2 :])
                return
            log.warning("a decision is taken in smaller steps: %s", err, extra={"service": groups[0].key})
            if self.controllers.most == 1:
                await asyncio.sleep(TOO_LARGE_S)
            self.controllers.most = max(1, min(self.controllers.most, len(groups[0].writes)) // 2)
            self.controllers.retry([groups[0].key])
            return
        except SwarmError as err:
            log.info("a pass was not committed: %s", err)
            self.controllers.retry(g.key for g in groups)
            await asyncio.sleep(0.05)  # no leader, or not us: the owner is about to cancel us
            return
        self.controllers.most = min(MAX_WRITES, self.controllers.most * 2)
        lost = [g.key for g, done in zip(groups, result.accepted, strict=True) if not done]
        if lost:
            self.rejected += len(lost)
            self.controllers.retry(lost)
