from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from swarm_agent.network.model import NodeNetwork
from tests.lib.fake_network import FakeNodeNetwork
from tests.unit.network.contract import CONTRACT, VIEW, refuses


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_the_fake_keeps_the_contract(check: Callable[[NodeNetwork], Awaitable[None]]) -> None:
    async def run() -> None:
        await check(FakeNodeNetwork())

    asyncio.run(run())


def test_a_fault_is_raised_once_and_changes_nothing() -> None:
    async def run() -> None:
        network = FakeNodeNetwork()
        await network.start()
        network.fail("apply", OSError("no room"))
        with refuses(OSError, "no room"):
            await network.apply(VIEW)
        views = [network.view]
        await network.apply(VIEW)
        views.append(network.view)
        assert views == [None, VIEW]
        assert [name for name, _ in network.calls] == ["start", "apply", "apply"]

    asyncio.run(run())
