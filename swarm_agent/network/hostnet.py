"""What a host uses of IPv4's space itself: its addresses and where its routes lead. Reads only; blocking, a few
milliseconds and about 10 more for each thousand routes."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Collection, Iterable

from swarm_agent.network.model import HOST_LINK
from swarm_agent.network.netlink import (
    IFA_LOCAL,
    PROTOCOL,
    RTA_DST,
    RTA_OIF,
    RTA_TABLE,
    RTM_GETADDR,
    RTM_GETROUTE,
    RTN_UNICAST,
    Netlink,
    attributes,
)
from swarm_agent.objects.records import HostSubnet

_LOCAL_TABLE = 255
_WIDEST = 8
"""A shorter prefix is a way to everywhere, as a default route is (VPNs cut it in two)."""
_ENGINES = ("docker", "br-")
MOST = 256
"""So many subnets are told, and so many addresses: what a node says of itself travels to managers and is written by each of them."""


def told(found: Iterable[HostSubnet]) -> tuple[HostSubnet, ...]:
    """The same space in few words: neighbours on one device become one. Sorted. Of more than ``MOST`` those that the host has an address
    in come first, then the widest. Pure."""
    grouped: dict[tuple[bool, str], list[ipaddress.IPv4Network]] = {}
    for one in found:
        grouped.setdefault((one.connected, one.device), []).append(ipaddress.IPv4Network(one.subnet))
    whole = [
        (subnet, device, connected)
        for (connected, device), subnets in grouped.items()
        for subnet in ipaddress.collapse_addresses(subnets)
    ]
    whole.sort(key=lambda one: (not one[2], one[0].prefixlen, one[0], one[1]))
    return tuple(
        HostSubnet(subnet=str(subnet), device=device, connected=connected)
        for subnet, device, connected in sorted(whole[:MOST])
    )


def lowest(addresses: Collection[str]) -> tuple[str, ...]:
    """At most ``MOST`` of them, sorted as text. Pure."""
    return tuple(sorted(sorted(addresses, key=socket.inet_aton)[:MOST]))


def read() -> tuple[tuple[HostSubnet, ...], tuple[str, ...]]:
    """Subnets as :func:`told`, and the addresses by which others reach the host: none of the loopback's, the engine's bridges' or ours."""
    with Netlink() as route:
        names = {link.index: name for name, link in route.links().items()}
        found: dict[str, HostSubnet] = {}
        addresses = set()
        for data in route.dump(RTM_GETADDR, struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0)):
            _, length, _, _, owner = struct.unpack_from("=BBBBI", data)
            device = names.get(owner, "")
            if device in {"lo", HOST_LINK}:
                continue
            address = socket.inet_ntoa(attributes(data[8:])[IFA_LOCAL])
            subnet = str(ipaddress.IPv4Network((address, length), strict=False))
            found[subnet] = HostSubnet(subnet=subnet, device=device, connected=True)
            if not device.startswith(_ENGINES):
                addresses.add(address)
        for data in route.dump(RTM_GETROUTE, struct.pack("=BBBBBBBBI", socket.AF_INET, *([0] * 8))):
            _, length, _, _, table, protocol, _, kind, _ = struct.unpack_from("=BBBBBBBBI", data)
            parts = attributes(data[12:])
            table = struct.unpack("=I", parts[RTA_TABLE])[0] if RTA_TABLE in parts else table
            device = names.get(struct.unpack("=i", parts.get(RTA_OIF, b"\0" * 4))[0], "")
            if table == _LOCAL_TABLE or protocol == PROTOCOL or kind != RTN_UNICAST or length < _WIDEST:
                continue
            if device in {"lo", HOST_LINK}:
                continue
            subnet = f"{socket.inet_ntoa(parts.get(RTA_DST, bytes(4)))}/{length}"
            found.setdefault(subnet, HostSubnet(subnet=subnet, device=device))
    return told(found.values()), lowest(addresses)
