"""What a node says of itself: read from its engine."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

from swarm_agent import __version__
from swarm_agent.agent.engine_client import Engine, EngineError, json_lines
from swarm_agent.agent.resources import reported
from swarm_agent.http.client import EngineUnreachable
from swarm_agent.objects.errors import FailedPrecondition
from swarm_agent.objects.records import EnginePlugin, Generic, HeldPort, HostSubnet, NodeDescription

log = logging.getLogger(__name__)

OLDEST_ENGINE = (20, 10)
_ANONYMOUS = re.compile(r"[0-9a-f]{64}")
AGAIN_S = 1.0


def check_engine(info: dict[str, Any]) -> None:
    """Raises FailedPrecondition, with the way out, for an engine we cannot work with."""
    version = info.get("ServerVersion", "")
    numbers = tuple(int(p) for p in version.split("+")[0].split("-")[0].split(".")[:2] if p.isdigit())
    if numbers < OLDEST_ENGINE:
        raise FailedPrecondition(
            f"Docker Engine {version or 'of unknown version'} is too old: swarm-agent needs 20.10 or later. Upgrade it and try again"
        )
    state = (info.get("Swarm") or {}).get("LocalNodeState", "inactive")
    if state != "inactive":
        raise FailedPrecondition(
            f"the engine's own swarm mode is {state} on this host, and two swarms cannot share an engine. "
            'Leave it with "docker -H unix:///var/run/docker.sock swarm leave" (the engine\'s socket) and try again'
        )


async def describe(
    engine: Engine,
    issuer: tuple[bytes, bytes],
    configured: tuple[Generic, ...] = (),
    held_ports: tuple[HeldPort, ...] = (),
    host_net: tuple[tuple[HostSubnet, ...], tuple[str, ...]] = ((), ()),
) -> NodeDescription:
    """The node's description; raises what the engine raises. ``configured``: the agent's own generic resources;
    ``host_net``: the host's own subnets and addresses."""
    info: dict[str, Any] = await engine.call("GET", "/info")
    plugins = [
        EnginePlugin(type=kind, name=name)
        for kind, names in sorted((info.get("Plugins") or {}).items())
        for name in names or ()
        if kind in ("Volume", "Network", "Log")
    ]
    labels = dict(label.partition("=")[::2] for label in info.get("Labels") or ())
    return NodeDescription(
        hostname=info.get("Name", ""),
        architecture=info.get("Architecture", ""),
        os=info.get("OSType", ""),
        nano_cpus=info.get("NCPU", 0) * 1_000_000_000,
        memory_bytes=info.get("MemTotal", 0),
        engine_version=info.get("ServerVersion", ""),
        engine_labels=labels,
        plugins=tuple(plugins),
        generic=reported(info, configured),
        volumes=await _volumes(engine),
        cert_issuer_subject=issuer[0],
        cert_issuer_public_key=issuer[1],
        agent_version=__version__,
        held_ports=held_ports,
        subnets=host_net[0],
        addresses=host_net[1],
    )


async def _volumes(engine: Engine) -> tuple[str, ...]:
    """Names of the volumes that lie on this host and that somebody gave a name."""
    found = await engine.call("GET", "/volumes", query={"filters": '{"driver":["local"]}'})
    names = [v["Name"] for v in found.get("Volumes") or () if v.get("Driver") == "local"]
    return tuple(sorted(name for name in names if not _ANONYMOUS.fullmatch(name)))


async def volume_events(engine: Engine) -> AsyncIterator[None]:
    """Each time the host's volumes may have changed, for ever."""
    filters = '{"type":["volume"],"event":["create","destroy"]}'
    while True:
        try:
            async with engine.stream("GET", "/events", query={"filters": filters}) as pieces:
                yield None
                async for _ in json_lines(pieces):
                    yield None
        except (EngineError, EngineUnreachable) as err:
            log.info("the engine's news of volumes are lost, trying again: %s", err)
        await asyncio.sleep(AGAIN_S)
