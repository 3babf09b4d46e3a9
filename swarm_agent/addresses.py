"""Which address of this host is meant."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess

from swarm_agent.objects.errors import UserError


class BadAddress(UserError):
    """Not an address, or none of this host's."""

    code = ""  # plain text at the edge, as Docker says it


def split_addr(text: str, default_port: int) -> tuple[str, int]:
    """``host``, ``host:port`` or ``[v6]:port``."""
    host, colon, port = text.rpartition(":")
    if not colon or (text.count(":") > 1 and not text.startswith("[")):
        return text.strip("[]"), default_port
    if not port.isdigit():
        raise BadAddress(f"invalid address {text!r}: the port is not a number")
    return host.strip("[]"), int(port)


async def own_address(wanted: str, word: str) -> str:
    """:func:`choose_address`, in a thread: the kernel is asked."""
    return await asyncio.to_thread(choose_address, wanted, word)


def choose_address(wanted: str, word: str) -> str:
    """The address of this host that was meant: an address, an interface's name, or "" for the only one there is."""
    addresses = host_addresses()
    if not wanted:
        outside = [a for name, a in addresses if not name.startswith(("lo", "docker", "br-", "veth", "nd0"))]
        if len(outside) == 1:
            return outside[0]
        if not outside:
            raise BadAddress("could not find the system's IP address - specify one with --advertise-addr")
        listed = ", ".join(f"{a} on {n}" for n, a in addresses if a in outside)
        raise BadAddress(
            f"could not choose an IP address to advertise since this system has multiple addresses ({listed}) - "
            "specify one with --advertise-addr",
        )
    on_interface = [a for name, a in addresses if name == wanted]
    if len(on_interface) == 1:
        return on_interface[0]
    if len(on_interface) > 1:
        raise BadAddress(
            f"interface {wanted} has more than one address ({', '.join(on_interface)}): name one of them"
        )
    try:
        socket.inet_pton(socket.AF_INET, wanted)
    except OSError as err:
        raise BadAddress(f"{word} must be a valid IP or interface name: {wanted!r} is neither") from err
    return wanted


def host_addresses() -> list[tuple[str, str]]:
    """(interface, IPv4 address) of this host."""
    listed = subprocess.run(["ip", "-json", "-4", "addr"], capture_output=True, check=True)
    return [
        (str(link["ifname"]), str(address["local"]))
        for link in json.loads(listed.stdout)
        for address in link["addr_info"]
    ]
