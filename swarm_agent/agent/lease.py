"""A node's lease: strict singletons are started under it only, and killed when it ends.

Owns what runs under it, the moment it ends, and the kill. Time is CLOCK_BOOTTIME: nobody sets it, and it counts the time a host sleeps.
What runs under the lease is also written where the guard of another process looks (``swarm_agent/guard.py``), before it is started and
with each prolongation. ``docs/design/fencing.md`` has the argument.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from swarm_agent import guard as guarding
from swarm_agent.agent.engine_client import Engine, EngineError
from swarm_agent.http.client import EngineUnreachable
from swarm_agent.objects.errors import Unavailable
from swarm_agent.objects.leases import LEASE_S, START_S

log = logging.getLogger(__name__)

TICK_S = 0.2
KILL_S = 2.0
WAIT_S = 5.0  # for the first beat to be confirmed
GUARD_SILENT_S = 3.0
REMEMBERED = 64  # beats on their way

ENDED = (
    f"killed: no leader has confirmed this node's lease for {LEASE_S:g} s, and a strict singleton runs under a lease only, "
    "so that it never runs twice"
)


class LeaseGuard(Protocol):
    """Where it is written what has to be dead by when."""

    def put(self, container: str, until: float) -> None: ...
    def drop(self, container: str) -> None: ...
    def known(self) -> dict[str, float]:
        """By container id, as an earlier daemon left it."""

    def awake(self) -> bool:
        """Whether somebody looks."""


class LeaseFolder:
    """Implements ``LeaseGuard`` for the one in ``swarm-agent-net``."""

    def __init__(
        self,
        engine_socket: str,
        folder: Path = guarding.FOLDER,
        now: Callable[[], float] = guarding.boottime,
    ) -> None:
        self._engine = engine_socket
        self._folder = folder
        self._now = now

    def _path(self, container: str) -> Path:
        return self._folder / f"{container}.json"

    def put(self, container: str, until: float) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        entry = {"container": container, "engine": self._engine, "until": until}
        guarding.put(self._path(container), json.dumps(entry))

    def drop(self, container: str) -> None:
        self._path(container).unlink(missing_ok=True)

    def known(self) -> dict[str, float]:
        return {lease.container: lease.until for lease in guarding.leases(self._folder)}

    def awake(self) -> bool:
        try:
            seen = float((self._folder / guarding.BEAT).read_text())
        except (OSError, ValueError):
            return False
        return self._now() - seen < GUARD_SILENT_S


class Lease:
    """One node's. Containers are named by their engine's ids."""

    def __init__(self, engine: Engine, guard: LeaseGuard, now: Callable[[], float]) -> None:
        self._engine = engine
        self._guard = guard
        self._now = now
        self._number = 0
        self._sent: dict[int, float] = {}  # beats that are not confirmed yet, and when they were sent
        self._granted = asyncio.Event()
        self._news = asyncio.Event()
        known = guard.known()
        self.until = max(known.values(), default=0.0)
        self._covered: dict[str, None] = dict.fromkeys(known)
        self._lost: dict[str, None] = {
            c: None for c, until in known.items() if until <= now()
        }  # the lease ended over them: a new one does not save them

    # --- the leader's word -----------------------------------------------------------------------------------------
    def beat(self) -> int:
        """The number for a beat that is sent now."""
        self._number += 1
        self._sent[self._number] = self._now()
        while len(self._sent) > REMEMBERED:
            del self._sent[next(iter(self._sent))]
        return self._number

    def confirmed(self, number: int) -> None:
        """The leader still led after it had got this beat."""
        sent = self._sent.get(number)
        if sent is None:
            return
        for older in [n for n in self._sent if n <= number]:
            del self._sent[older]
        self._note_end()
        self.until = max(self.until, sent + LEASE_S)
        for container in self._covered:
            if container not in self._lost:
                self._guard.put(container, self.until)
        self._granted.set()
        self._granted.clear()

    def left(self) -> float:
        """Seconds; below zero once it has ended."""
        return self.until - self._now()

    # --- what runs under it ----------------------------------------------------------------------------------------
    @property
    def in_use(self) -> bool:
        return bool(self._covered)

    async def ready(self) -> None:
        """Wait a while until something may be started. Raises Unavailable when it may not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                while self.left() < START_S:
                    await self._granted.wait()
        self._must_allow_starts()

    def _must_allow_starts(self) -> None:
        if self.left() < START_S:
            raise Unavailable(
                "waiting for a lease: a strict singleton is started only while a leader answers"
            )
        if not self._guard.awake():
            raise Unavailable(
                "waiting for swarm-agent-net, which has to watch over a strict singleton: is it running?"
            )

    def cover(self, container: str) -> None:
        """It is started next. Raises Unavailable when that is not allowed."""
        self._must_allow_starts()
        self._guard.put(container, self.until)
        self._covered[container] = None
        self._news.set()

    def runs(self, container: str) -> None:
        """It was seen running. One that nobody had covered is from a time that left no word: it is, from now on, or is killed."""
        if container not in self._covered:
            self._covered[container] = None
            if self.left() > 0:
                self._guard.put(container, self.until)
            else:
                self._lost[container] = None
            self._news.set()

    def ended(self, container: str) -> bool:
        """It was seen ended, or is not started after all; whether that was for the end of the lease."""
        if container in self._covered:
            del self._covered[container]
            self._guard.drop(container)
        if container not in self._lost:
            return False
        del self._lost[container]
        return True

    # --- the end -----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Until cancelled: kill what outlives the lease."""
        while True:
            self._news.clear()
            if not self._covered:
                await self._news.wait()
            self._note_end()
            if self._lost:
                await asyncio.gather(*(self._kill(container) for container in list(self._lost)))
            await asyncio.sleep(TICK_S)

    def _note_end(self) -> None:
        if self.left() <= 0:
            for container in self._covered:
                if container not in self._lost:
                    log.error("the lease of this node has ended: killing container %s", container[:12])
                    self._lost[container] = None

    async def _kill(self, container: str) -> None:
        """Once is not enough: its start may have been on the way."""
        try:
            await self._engine.call("POST", f"/containers/{container}/kill", timeout_s=KILL_S)
        except EngineError as err:
            if err.status == 404:
                self.ended(container)
            elif err.status != 409:
                log.warning("cannot kill container %s, trying again: %s", container[:12], err)
        except EngineUnreachable as err:
            log.warning("cannot kill container %s, trying again: %s", container[:12], err)
