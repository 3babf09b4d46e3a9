"""What a node says of itself: read from its engine."""

from __future__ import annotations

from typing import Any

from swarm_agent import __version__
from swarm_agent.node.engine import Engine
from swarm_agent.objects.errors import FailedPrecondition
from swarm_agent.objects.records import EnginePlugin, NodeDescription

OLDEST_ENGINE = (20, 10)


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


async def describe(engine: Engine, issuer: tuple[bytes, bytes]) -> NodeDescription:
    """The node's description; raises what the engine raises."""
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
        cert_issuer_subject=issuer[0],
        cert_issuer_public_key=issuer[1],
        agent_version=__version__,
    )
