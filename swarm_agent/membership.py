"""What this host remembers of its membership between two starts: ``<state>/membership.json``."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import msgspec

from swarm_agent.api.http import HttpError
from swarm_agent.identity.door import Manager
from swarm_agent.identity.files import write_atomically
from swarm_agent.objects.errors import InvalidSpec


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """Which cluster, who we are in it, where we stand."""

    cluster_id: str
    node_id: str
    role: str  # the role our certificate has
    advertise_host: str
    listen_host: str = "0.0.0.0"
    front_door_port: int = 2377
    data_addr: str
    raft_id: int = 0
    managers: tuple[Manager, ...] = ()


def save_membership(state_dir: Path, membership: Membership) -> None:
    write_atomically(state_dir / "membership.json", msgspec.json.encode(membership))


def load_membership(state_dir: Path) -> Membership | None:
    """InvalidSpec when the file is there but makes no sense."""
    path = state_dir / "membership.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Membership)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as err:
        raise InvalidSpec(
            f"{path}: {err}: restore it from a backup, or remove {state_dir} to leave the swarm"
        ) from err


def forget_membership(state_dir: Path) -> None:
    (state_dir / "membership.json").unlink(missing_ok=True)


# --- addresses ---------------------------------------------------------------------------------------------------------
def split_addr(text: str, default_port: int) -> tuple[str, int]:
    """``host``, ``host:port`` or ``[v6]:port``."""
    host, colon, port = text.rpartition(":")
    if not colon or (text.count(":") > 1 and not text.startswith("[")):
        return text.strip("[]"), default_port
    if not port.isdigit():
        raise HttpError(400, f"invalid address {text!r}: the port is not a number")
    return host.strip("[]"), int(port)


def choose_address(wanted: str, word: str) -> str:
    """The address of this host that was meant: an address, an interface's name, or "" for the only one there is."""
    addresses = host_addresses()
    if not wanted:
        outside = [a for name, a in addresses if not name.startswith(("lo", "docker", "br-", "veth", "nd0"))]
        if len(outside) == 1:
            return outside[0]
        if not outside:
            raise HttpError(400, "could not find the system's IP address - specify one with --advertise-addr")
        listed = ", ".join(f"{a} on {n}" for n, a in addresses if a in outside)
        raise HttpError(
            400,
            f"could not choose an IP address to advertise since this system has multiple addresses ({listed}) - "
            "specify one with --advertise-addr",
        )
    on_interface = [a for name, a in addresses if name == wanted]
    if len(on_interface) == 1:
        return on_interface[0]
    if len(on_interface) > 1:
        raise HttpError(
            400, f"interface {wanted} has more than one address ({', '.join(on_interface)}): name one of them"
        )
    try:
        socket.inet_pton(socket.AF_INET, wanted)
    except OSError as err:
        raise HttpError(400, f"{word} must be a valid IP or interface name: {wanted!r} is neither") from err
    return wanted


def host_addresses() -> list[tuple[str, str]]:
    """(interface, IPv4 address) of this host."""
    listed = subprocess.run(["ip", "-json", "-4", "addr"], capture_output=True, check=True)
    return [
        (str(link["ifname"]), str(address["local"]))
        for link in json.loads(listed.stdout)
        for address in link["addr_info"]
    ]
