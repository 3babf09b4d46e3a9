"""A metrics port that is taken."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from swarm_agent.objects.errors import Unavailable
from swarm_agent.observe.server import ObserveServer


def test_a_taken_port_is_said_with_the_way_out() -> None:
    async def main(addr: str) -> None:
        nothing: Any = None
        server = ObserveServer(nothing)
        try:
            with pytest.raises(Unavailable, match="set metrics_addr"):
                await server.start(addr)
        finally:
            await server.stop()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        asyncio.run(main(f"127.0.0.1:{taken.getsockname()[1]}"))
