"""The network of a host whose engine does not answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from swarm_agent.network.host import HostNetwork
from swarm_agent.network.model import NetworkView
from swarm_agent.network.state_files import StateFiles
from swarm_agent.objects.errors import SwarmError


class Away:
    """An engine that is down, as the daemon's client says it."""

    async def request(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        raise SwarmError("cannot reach the Docker Engine")


def test_an_engine_that_is_away_holds_up_neither_a_view_nor_leaving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm_agent.network.host.firewall.prepare_kernel", lambda: None)
    done: list[str] = []

    def applied(_: HostNetwork, wanted: object) -> list[str]:
        done.append("applied")
        return []

    monkeypatch.setattr(HostNetwork, "_leave", lambda _: done.append("left"))
    monkeypatch.setattr(HostNetwork, "_apply", applied)

    async def main() -> None:
        network = HostNetwork(Away(), StateFiles(tmp_path))
        await network.start()
        await network.apply(NetworkView(node_id="n", number=1, data_addr="192.0.2.1"))
        await network.leave()
        await network.stop()

    asyncio.run(main())
    assert done == ["applied", "left"]
