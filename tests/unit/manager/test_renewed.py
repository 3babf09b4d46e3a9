"""A manager whose certificate is renewed while it runs."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swarm_agent.ca.ca import SYSTEM
from swarm_agent.ca.key_file import KeyFile
from swarm_agent.manager.manager import Manager, ManagerSettings


def test_ways_to_the_leader_show_the_new_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    renewals: list[str] = []

    def client(addr: str, identity: str) -> object:
        shown.append(identity)
        return object()

    async def main() -> None:
        own = ["old"]
        server = SimpleNamespace(renewed=lambda: renewals.append(own[0]))
        rpc = SimpleNamespace(server=lambda *_: server, client=client)
        environment: Any = SimpleNamespace(rpc=rpc, certificates=SYSTEM, join_transport=None, links=None)
        settings = ManagerSettings("n1", "c", 1, "0.0.0.0", 2377, 2378, 7946, "192.0.2.1", tmp_path)
        identity: Any = lambda: own[0]  # noqa: E731
        nothing: Any = None
        keys: Any = KeyFile.create(tmp_path)
        manager = Manager(
            settings, identity, nothing, lambda: "id", random.Random(1), environment, keys, nothing
        )

        async def leader() -> str:
            return "192.0.2.2:2378"

        monkeypatch.setattr(manager, "leader_addr", leader)
        first = await manager._leader_client()
        assert await manager._leader_client() is first
        own[0] = "new"
        await manager.certificate_renewed()
        assert await manager._leader_client() is not first
        assert renewals == ["new"]

    asyncio.run(main())
    assert shown == ["old", "new"]
