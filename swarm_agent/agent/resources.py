"""Generic resources on a host: what it has of them, and how a container gets what its task was given. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from swarm_agent.objects.records import Generic


def reported(info: dict[str, Any], configured: tuple[Generic, ...]) -> tuple[Generic, ...]:
    """What the host has: the engine's own (``node-generic-resources`` of its daemon.json, in ``GET /info``), and what the agent
    is configured with. Of a kind both name, the agent's counts."""
    ours = {g.kind for g in configured}
    counts: dict[str, int] = {}
    names: dict[tuple[str, str], None] = {}
    for entry in info.get("GenericResources") or ():
        number, named = entry.get("DiscreteResourceSpec"), entry.get("NamedResourceSpec")
        if number is not None and number["Kind"] not in ours:
            counts[number["Kind"]] = counts.get(number["Kind"], 0) + number["Value"]
        if named is not None and named["Kind"] not in ours:
            names[named["Kind"], named["Value"]] = None
    found = [
        *(Generic(kind=kind, count=count) for kind, count in counts.items() if count > 0),
        *(Generic(kind=kind, name=name) for kind, name in names),
        *configured,
    ]
    return tuple(sorted(found, key=lambda g: (g.kind, g.name)))


def environment(given: Iterable[Generic]) -> list[str]:
    """``DOCKER_RESOURCE_<KIND>=`` names, or how many; one line a kind."""
    names: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for one in given:
        if one.name:
            names.setdefault(one.kind, []).append(one.name)
        else:
            counts[one.kind] = counts.get(one.kind, 0) + one.count
    values = {kind: str(count) for kind, count in counts.items()}
    values |= {kind: ",".join(many) for kind, many in names.items()}
    return [f"DOCKER_RESOURCE_{kind.upper()}={value}" for kind, value in sorted(values.items())]


def devices(given: Iterable[Generic]) -> list[dict[str, str]]:
    """``HostConfig.Devices``: those whose name is a path, at the same path inside."""
    return [
        {"PathOnHost": one.name, "PathInContainer": one.name, "CgroupPermissions": "rwm"}
        for one in given
        if one.name.startswith("/")
    ]
