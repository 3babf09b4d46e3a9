"""Ports as records have them, and what is said of one that a program of a host holds: in warnings, in a rejected task, wherever people look."""

from __future__ import annotations

from collections.abc import Iterable

from swarm_agent.objects import defaults
from swarm_agent.objects.records import HeldPort, Revision

PortKey = tuple[str, int]
MOST_NAMED = 5


def key(port: HeldPort) -> PortKey:
    return (port.protocol, port.number)


def not_taken(port: PortKey, where: Iterable[tuple[str, str]]) -> str:
    """One sentence. ``where``: (node, program) for each node on which it is held, in order."""
    found = list(where)
    named = [f"{node}, where {holder} holds it" for node, holder in found[:MOST_NAMED]]
    more = len(found) - len(named)
    rest = f"; and on {more} more node{'' if more == 1 else 's'}" if more else ""
    protocol, number = port
    return f"port {number}/{protocol} is not taken on node {'; on node '.join(named)}{rest}"


def host_ports(revision: Revision) -> list[PortKey]:
    """(protocol, published port) of the fixed host-mode ports; one without a fixed port is the engine's choice and takes none."""
    return [
        (defaults.protocol(p), p.published_port)
        for p in revision.endpoint.ports or ()
        if defaults.publish_mode(p) == "host" and p.published_port
    ]
