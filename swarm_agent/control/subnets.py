"""Which subnets overlays may have: none that another overlay, the node network or a host uses. Pure.

An overlay with the subnet of a host's LAN would be deaf for that LAN: a task's answer to a client there goes into the overlay.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import NamedTuple

from swarm_agent.objects.records import Node

NODE_NETWORK = ipaddress.IPv4Network("10.240.0.0/12")  # every host's /22, see docs/design/network.md


class Exhausted(Exception):
    """Nothing left to give; the text is the reason a user sees."""


class Used(NamedTuple):
    subnet: ipaddress.IPv4Network
    connected: bool  # the host has an address in it
    node: str
    device: str

    def __str__(self) -> str:
        what = "is on" if self.connected else "has a route to"
        device = f" ({self.device})" if self.device else ""
        return f"node {self.node} {what} {self.subnet}{device}"


def by_hosts(nodes: Iterable[Node]) -> list[Used]:
    """What the swarm's hosts use, in the order of their names."""
    return [
        Used(ipaddress.IPv4Network(s.subnet), s.connected, node.description.hostname or node.id, s.device)
        for node in sorted(nodes, key=lambda n: (n.description.hostname, n.id))
        for s in node.description.subnets
    ]


def collision(wanted: ipaddress.IPv4Network, nodes: Iterable[Node]) -> Used | None:
    return next((used for used in by_hosts(nodes) if used.subnet.overlaps(wanted)), None)


def free(
    taken: Iterable[str], nodes: Iterable[Node], pools: tuple[str, ...], size: int
) -> ipaddress.IPv4Network:
    """The next block of the pools that overlaps nothing that is taken, and nothing that hosts use.

    Where hosts' routes leave none (a VPN's to all of 10.0.0.0/8), one that no host has an address' subnet in; where these leave
    none either (a LAN that wide), one without any host's own neighbourhood: an overlay for the tasks alone is better than none.
    """
    ours = [NODE_NETWORK, *map(ipaddress.IPv4Network, taken)]
    used = by_hosts(nodes)
    connected = [u.subnet for u in used if u.connected]
    addresses = [
        ipaddress.IPv4Network(f"{address}/{size}", strict=False)
        for node in nodes
        for address in node.description.addresses
    ]
    for avoided in ([u.subnet for u in used], connected, addresses):
        found = _free([*ours, *avoided], pools, size)
        if found is not None:
            return found
    raise Exhausted("no free subnet in the default address pools")


def _free(
    taken: list[ipaddress.IPv4Network], pools: tuple[str, ...], size: int
) -> ipaddress.IPv4Network | None:
    spans = sorted((int(t.network_address), int(t.broadcast_address)) for t in taken)
    length = 1 << (32 - size)
    for text in pools:
        pool = ipaddress.IPv4Network(text)
        if pool.prefixlen > size:
            continue
        at, end = int(pool.network_address), int(pool.broadcast_address)
        for first, last in spans:
            if first >= at + length:
                break
            if last >= at:
                at = last + 1 + -(last + 1) % length
        if at <= end:
            return ipaddress.IPv4Network((at, size))
    return None
