"""Which of the engine's bridges members' packets come in by, so that they cannot be told from containers' by the link.

Owns: telling them apart. An engine may be told to put its containers on a bridge the administrator made, with the host's network card
in it (``"bridge": "br0"`` in daemon.json, or ``com.docker.network.bridge.name``), as hosts of virtual machines have one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from swarm_agent.network.netlink import Link, Netlink

_CONTAINERS = frozenset({"veth", "tun", "dummy"})
"""Kinds of links with a container or a virtual machine behind them, or nothing at all; a tap is of kind "tun"."""
_FAR = "198.51.100.1"
"""Nobody's address (RFC 5737): the way to it is the host's default route."""


def among(bridges: Iterable[str], links: Iterable[Link], ways: Collection[str]) -> frozenset[str]:
    """Those of ``bridges`` with a port that leads off the host, and those in ``ways``: links that are known to. Pure."""
    links = tuple(links)
    masters = {link.master for link in links if link.master and link.kind not in _CONTAINERS}
    leading = {link.name for link in links if link.index in masters} | set(ways)
    return frozenset(bridges) & leading


def look(bridges: Iterable[str], data_addr: str, route: Netlink) -> frozenset[str]:
    """``route``: of the host's namespace. The link with ``data_addr`` leads off the host, and so does the one of the default route."""
    links = route.links().values()
    indexes = {route.holder(data_addr), route.way_to(_FAR)}
    return among(bridges, links, {link.name for link in links if link.index in indexes})
