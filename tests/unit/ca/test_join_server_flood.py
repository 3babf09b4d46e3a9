"""One address that calls the join server far too often."""

from __future__ import annotations

import asyncio
from typing import Any

from swarm_agent.ca.join_server import CALLS_A_MINUTE, JoinServer


def test_refused_calls_are_not_remembered() -> None:
    async def main() -> None:
        nothing: Any = None
        door = JoinServer(nothing, nothing, nothing)
        answers = [await door.answer("GET", "/nowhere", b"", "192.0.2.1") for _ in range(CALLS_A_MINUTE * 3)]
        assert [status for status, _ in answers] == [404] * CALLS_A_MINUTE + [429] * CALLS_A_MINUTE * 2
        assert len(door._calls["192.0.2.1"]) == CALLS_A_MINUTE

    asyncio.run(main())
