"""The engine's side of our networks: one local network of driver ``swarm`` per overlay, and ``swarm-node``.

Owns: making and removing them through the engine's HTTP API, and what ``docker create`` is told for a task.
Refuses: containers (``agent``), packets (``links``). Aliases are not given to the engine: it would answer them itself,
with its local containers only, before asking us.
"""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.parse
from typing import Any, Protocol

from swarm_agent.network.model import NODE_NETWORK_ID, AttachRequest, ContainerNetwork
from swarm_agent.network.state_files import EngineNetworkEntry, StateFiles
from swarm_agent.objects.errors import Unavailable

log = logging.getLogger(__name__)

DRIVER = "swarm"
OPTION = "swarm.network"
USUAL_BRIDGES = ("docker0", "docker_gwbridge")
_PREFIX = "swarm-"
_NODE_NAME = "swarm_node"
"""Sorts behind every ``swarm-<id>``: the engine's own resolver gives a container's address in the first network by name."""


class EngineApi(Protocol):
    """The local engine's API. ``status`` below 400 is success; the answer is the decoded JSON, ``None`` if empty."""

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]: ...


class EngineRefused(Unavailable):
    """The engine would not make or remove a network; its own words are in the text."""


def name_of(network_id: str) -> str:
    return _NODE_NAME if network_id == NODE_NETWORK_ID else _PREFIX + network_id


class EngineNetworks:
    """Makes sure of the engine's networks, one call at a time for each of them."""

    def __init__(self, engine: EngineApi, journal: StateFiles) -> None:
        self._engine = engine
        self._journal = journal
        self._locks: dict[str, asyncio.Lock] = {}

    async def make(self, network_id: str, subnet: str, gateway: str) -> None:
        """The network is there, is ours and has this subnet when this returns."""
        async with self._locks.setdefault(network_id, asyncio.Lock()):
            found = await self._inspect(network_id)
            if found is not None and not _fits(found, subnet, gateway):
                log.info(f"engine network {name_of(network_id)} is another than wanted: making it anew")
                await self._remove(network_id, found)
                found = None
            engine_id = found["Id"] if found is not None else await self._create(network_id, subnet, gateway)
            # netd writes this too when the engine asks it; here for the case that its folder was lost.
            self._journal.put(engine_id, EngineNetworkEntry(engine_id, network_id))

    async def remove(self, network_id: str) -> None:
        """The network is gone when this returns; endpoints of dead containers are disconnected first."""
        async with self._locks.setdefault(network_id, asyncio.Lock()):
            found = await self._inspect(network_id)
            if found is not None:
                await self._remove(network_id, found)
        self._locks.pop(network_id, None)

    async def ours(self) -> set[str]:
        """Ids of the networks of ours the engine has."""
        query = urllib.parse.quote(json.dumps({"driver": [DRIVER]}))
        status, answer = await self._engine.request("GET", f"/networks?filters={query}")
        if status >= 400:
            raise EngineRefused(f"the engine does not list its networks: {_words(answer)}")
        names = [network["Name"] for network in answer or [] if network.get("Driver") == DRIVER]
        node = {NODE_NETWORK_ID} if _NODE_NAME in names else set()
        return node | {name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)}

    async def bridges(self) -> tuple[str, ...]:
        """Links of the host behind which the engine's own networks have their containers."""
        query = urllib.parse.quote(json.dumps({"driver": ["bridge"]}))
        status, answer = await self._engine.request("GET", f"/networks?filters={query}")
        if status >= 400:
            raise EngineRefused(f"the engine does not list its networks: {_words(answer)}")
        found = {_bridge(network) for network in answer or [] if network.get("Driver") == "bridge"}
        return tuple(sorted(found | set(USUAL_BRIDGES)))

    async def _inspect(self, network_id: str) -> dict[str, Any] | None:
        status, answer = await self._engine.request("GET", f"/networks/{name_of(network_id)}")
        if status == 404:
            return None
        if status >= 400:
            raise EngineRefused(f"the engine does not show network {name_of(network_id)}: {_words(answer)}")
        found: dict[str, Any] = answer
        return found

    async def _create(self, network_id: str, subnet: str, gateway: str) -> str:
        body = {
            "Name": name_of(network_id),
            "CheckDuplicate": True,
            "Driver": DRIVER,
            "Scope": "local",
            "Options": {OPTION: network_id},
            "IPAM": {
                "Driver": DRIVER,
                "Options": {OPTION: network_id},
                "Config": [{"Subnet": subnet, "Gateway": gateway}],
            },
            "Labels": {OPTION: network_id},
        }
        status, answer = await self._engine.request("POST", "/networks/create", body)
        if status >= 400:
            found = await self._inspect(network_id) if status == 409 else None
            if found is None:
                raise EngineRefused(
                    f"the engine does not make network {name_of(network_id)}: {_words(answer)}"
                )
            answer = found
        engine_id: str = answer["Id"]
        return engine_id

    async def _remove(self, network_id: str, found: dict[str, Any]) -> None:
        name = name_of(network_id)
        status, answer = await self._engine.request("DELETE", f"/networks/{name}")
        if status == 403:  # endpoints left by containers that went while netd was down
            for container in found.get("Containers") or {}:
                await self._engine.request(
                    "POST", f"/networks/{name}/disconnect", {"Container": container, "Force": True}
                )
            status, answer = await self._engine.request("DELETE", f"/networks/{name}")
        if status >= 400 and status != 404:
            raise EngineRefused(f"the engine does not remove network {name}: {_words(answer)}")


def container_network(
    req: AttachRequest, dns: str | None, options: tuple[str, ...] = (), resolv_conf: str = ""
) -> ContainerNetwork:
    """How a task's container is created: the node network first, the overlays connected after, in order.

    ``options``, ``resolv_conf``: as :mod:`swarm_agent.network.resolvconf` worked them out.
    """
    wanted = []
    if req.node_address is not None:
        wanted.append((name_of(NODE_NETWORK_ID), req.node_address))
    wanted += [(name_of(network_id), address) for network_id, address, _ in req.overlays]
    if not wanted:
        return ContainerNetwork("none", None)
    settings = [(name, {"IPAMConfig": {"IPv4Address": address}}) for name, address in wanted]
    first, endpoint = settings[0]
    return ContainerNetwork(
        network_mode=first,
        first={first: endpoint},
        connect=tuple(settings[1:]),
        dns=(dns,) if dns is not None and req.node_address is not None else (),
        dns_options=options,
        resolv_conf=resolv_conf,
    )


def _bridge(network: dict[str, Any]) -> str:
    named: str = (network.get("Options") or {}).get("com.docker.network.bridge.name") or ""
    return named or f"br-{network['Id'][:12]}"


def _fits(found: dict[str, Any], subnet: str, gateway: str) -> bool:
    configs = (found.get("IPAM") or {}).get("Config") or [{}]
    return (
        found.get("Driver") == DRIVER
        and configs[0].get("Subnet") == subnet
        and configs[0].get("Gateway") == gateway
    )


def _words(answer: object) -> str:
    if isinstance(answer, dict) and isinstance(answer.get("message"), str):
        return str(answer["message"])
    return str(answer)
