"""Images: what is pulled, and how long that may take."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from swarm_agent.agent.engine_client import EngineError
from swarm_agent.agent.images import PULL_SILENCE_S, Images
from tests.lib.virtual_loop import run


class SlowEngine:
    """Has no image, and says a line of each pull after each pause; then it hangs."""

    def __init__(self, *pauses: float) -> None:
        self.pauses = pauses
        self.closed = 0

    async def call(self, method: str, path: str, **more: Any) -> Any:
        raise EngineError(404, f"no such image ({method} {path} {more})")

    @contextlib.asynccontextmanager
    async def stream(self, method: str, path: str, **more: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        assert (method, path, more["query"]) == ("POST", "/images/create", {"fromImage": "web:1"})
        try:
            yield self._lines()
        finally:
            self.closed += 1

    async def _lines(self) -> AsyncIterator[bytes]:
        for pause in self.pauses:
            await asyncio.sleep(pause)
            yield b'{"status": "Downloading"}\n'
        await asyncio.Event().wait()


def test_a_pull_that_hangs_is_given_up_and_one_that_is_slow_is_not() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        pauses = (PULL_SILENCE_S - 1,) * 3
        engine = SlowEngine(*pauses)
        with pytest.raises(EngineError, match="no progress for 10 minutes"):
            await Images(engine).ensure("web:1", "")
        assert loop.time() == pytest.approx(sum(pauses) + PULL_SILENCE_S)
        assert engine.closed == 1

    run(story())
