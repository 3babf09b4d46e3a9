"""A real engine keeps the contract the simulator's engine keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from swarm_agent.agent.engine_client import EngineClient
from tests.cluster.swarm_lab import SHELL, SwarmHost, swarm_lab
from tests.sim.engine_contract import CONTRACT, Bodies

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

BODIES = Bodies(
    deaf={"Image": SHELL, "Cmd": ["/bin/sleep", "1000"], "HostConfig": {"NetworkMode": "none"}},
    ends={"Image": SHELL, "Cmd": ["/bin/sh", "-c", "exit 3"], "HostConfig": {"NetworkMode": "none"}},
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwarmHost]:
    with swarm_lab(tmp_path_factory.mktemp("engine"), (1,)) as lab:
        yield lab[1]


@pytest.mark.parametrize("check", CONTRACT, ids=lambda c: c.__name__)
def test_contract(host: SwarmHost, check: Any) -> None:
    async def main() -> None:
        client = EngineClient(str(host.engine_socket))
        try:
            await check(client, BODIES)
        finally:
            await client.close()

    asyncio.run(main())
