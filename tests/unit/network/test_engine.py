from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from swarm_agent.network.engine_networks import EngineNetworks, EngineRefused
from swarm_agent.network.state_files import EngineNetworkEntry, StateFiles
from tests.unit.network.contract import ScriptedEngine, refuses


def networks(folder: Path) -> tuple[ScriptedEngine, EngineNetworks, StateFiles]:
    engine, journal = ScriptedEngine(), StateFiles(folder)
    journal.prepare()
    return engine, EngineNetworks(engine, journal), journal


def test_making_twice_makes_once_and_tells_netd(tmp_path: Path) -> None:
    engine, ours, journal = networks(tmp_path)

    async def run() -> None:
        await asyncio.gather(*(ours.make("app", "10.0.9.0/24", "10.0.9.1") for _ in range(5)))

    asyncio.run(run())
    assert engine.calls.count(("POST", "/networks/create")) == 1
    made = engine.networks["swarm-app"]
    assert (made["Driver"], made["IPAM"]["Driver"], made["Scope"]) == ("swarm", "swarm", "local")
    assert made["Options"] == made["IPAM"]["Options"] == {"swarm.network": "app"}
    assert journal.get(EngineNetworkEntry, "id-swarm-app") == EngineNetworkEntry("id-swarm-app", "app")


def test_a_network_with_another_subnet_is_made_anew(tmp_path: Path) -> None:
    engine, ours, _ = networks(tmp_path)

    async def run() -> None:
        await ours.make("node", "10.240.4.0/22", "10.240.4.1")
        await ours.make("node", "10.240.8.0/22", "10.240.8.1")

    asyncio.run(run())
    assert engine.networks["swarm_node"]["IPAM"]["Config"] == [
        {"Subnet": "10.240.8.0/22", "Gateway": "10.240.8.1"}
    ]


def test_removing_disconnects_dead_endpoints(tmp_path: Path) -> None:
    engine, ours, _ = networks(tmp_path)

    async def run() -> None:
        await ours.make("app", "10.0.9.0/24", "10.0.9.1")
        engine.endpoints["swarm-app"] = ["dead1", "dead2"]
        await ours.remove("app")
        await ours.remove("app")

    asyncio.run(run())
    assert engine.networks == {}


def test_ours_are_told_by_driver_and_name(tmp_path: Path) -> None:
    engine, ours, _ = networks(tmp_path)
    engine.networks["bridge"] = {"Name": "bridge", "Driver": "bridge"}
    engine.networks["swarm-fake"] = {"Name": "swarm-fake", "Driver": "bridge"}

    async def run() -> set[str]:
        await ours.make("app", "10.0.9.0/24", "10.0.9.1")
        await ours.make("node", "10.240.4.0/22", "10.240.4.1")
        return await ours.ours()

    assert asyncio.run(run()) == {"app", "node"}


def test_the_engines_words_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, ours, _ = networks(tmp_path)

    async def refuse(method: str, path: str, body: object = None) -> tuple[int, object]:
        return (404, {}) if method == "GET" else (500, {"message": "plugin not found"})

    monkeypatch.setattr(engine, "request", refuse)

    async def run() -> None:
        with refuses(EngineRefused, "swarm-app: plugin not found"):
            await ours.make("app", "10.0.9.0/24", "10.0.9.1")

    asyncio.run(run())
