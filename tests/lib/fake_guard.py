"""``FakeGuard``: the guard of a simulated host, a process of its own that outlives daemons."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

from swarm_agent.guard import PATIENCE_S, TICK_S
from tests.lib.fake_engine import FakeEngine


class FakeGuard:
    """Implements ``agent.lease.Guard``. ``up``: whether its process runs."""

    def __init__(self, engine: FakeEngine, now: Callable[[], float]) -> None:
        self.up = True
        self.kills = 0
        self._engine = engine
        self._now = now
        self._until: dict[str, float] = {}
        self._looking = False

    def put(self, container: str, until: float) -> None:
        self._until[container] = until
        if not self._looking:
            self._looking = True
            self._next()

    def drop(self, container: str) -> None:
        self._until.pop(container, None)

    def known(self) -> dict[str, float]:
        return dict(self._until)

    def awake(self) -> bool:
        return self.up

    def power_cut(self) -> None:
        """What is on the leases' file system is gone."""
        self._until.clear()

    def _next(self) -> None:
        asyncio.get_running_loop().call_later(TICK_S, self._look, context=contextvars.Context())

    def _look(self) -> None:
        self._looking = bool(self._until)
        if not self._looking:
            return
        self._next()
        if not self.up:
            return
        for container in self._engine.running():
            until = self._until.get(container.id)
            if until is not None and self._now() - until >= PATIENCE_S:
                self.kills += 1
                self._engine.fail(container, 137)
