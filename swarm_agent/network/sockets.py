"""What programs of this host listen on, and which published ports the swarm therefore leaves to them.

Owns: the look at the host's sockets (``/proc/net``), the names of their programs, and the decision which ports are *not taken*: neither live nor
closed, so that whoever had the port first goes on being reached. Refuses: rules (``rules``), and holding a port for us (``holds``).

Who listens on a loopback address alone keeps that and no more: the swarm takes the port for everybody else, as Docker does.
A TCP socket counts when it listens, a UDP socket when it is bound and not connected: an outgoing connection holds nothing for others. A port that
was given up is taken once nobody has been seen on it for ``PATIENCE_S``: a daemon that restarts must find its port free.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from swarm_agent.network.model import PortKey

PATIENCE_S = 30.0
_LISTENS, _UNCONNECTED = "0A", "07"
_FILES = (("tcp", "tcp"), ("tcp", "tcp6"), ("udp", "udp"), ("udp", "udp6"))


class Listener(NamedTuple):
    """A socket others may be meant to reach."""

    protocol: str
    number: int
    inode: int
    loopback: bool = False  # only this host itself reaches it


def listeners(proc: Path = Path("/proc/self/net")) -> list[Listener]:
    """Of the namespace of the process's first thread. The kernel names listening sockets first, so a host with many connections costs no more."""
    found: list[Listener] = []
    for protocol, name in _FILES:
        try:
            with (proc / name).open() as lines:
                found += parse(protocol, lines)
        except FileNotFoundError:  # no IPv6 here
            continue
    return found


def parse(protocol: str, lines: Iterable[str]) -> Iterator[Listener]:
    """The lines of one of the kernel's tables, heading included."""
    rows = iter(lines)
    next(rows, None)
    for row in rows:
        fields = row.split()
        if protocol == "tcp" and fields[3] != _LISTENS:
            return
        if protocol == "udp" and fields[3] != _UNCONNECTED:
            continue
        address, _, number = fields[1].rpartition(":")
        yield Listener(protocol, int(number, 16), int(fields[9]), _is_loopback(address))


def _is_loopback(address: str) -> bool:
    """As the kernel writes it: four bytes at a time, the first byte of each last."""
    if address == "00000000000000000000000001000000":
        return True
    return address.endswith("7F") and (len(address) == 8 or address.startswith("0000000000000000FFFF0000"))


NOBODY_SEEN = "the kernel, or a program that cannot be seen,"


class Programs:
    """Names of the programs that own sockets, by inode. All processes are looked through once for each new socket: the kernel's own, such as
    that of the tunnels, belong to none."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._known: dict[int, str] = {}

    def names(self, inodes: Collection[int]) -> Mapping[int, str]:
        """For each of them a name with its process id; ``NOBODY_SEEN`` where none can be seen."""
        self._known = {inode: name for inode, name in self._known.items() if inode in inodes}
        unknown = set(inodes) - self._known.keys()
        if unknown:
            self._look(set(unknown))
            for inode in unknown:
                self._known.setdefault(inode, NOBODY_SEEN)
        return self._known

    def _look(self, unknown: set[int]) -> None:
        processes = [folder for folder in self._proc.iterdir() if folder.name.isdigit()]
        for folder in sorted(processes, key=lambda folder: int(folder.name)):
            if not unknown:
                return
            try:
                found = {_inode(fd) for fd in (folder / "fd").iterdir()} & unknown
                name = (folder / "comm").read_text().strip() if found else ""
            except OSError:  # the process ended meanwhile
                continue
            for inode in found:
                self._known[inode] = f"{name} (pid {folder.name})"
            unknown -= found


def _inode(fd: Path) -> int:
    try:
        link = str(fd.readlink())
    except OSError:  # it was closed meanwhile
        return 0
    return int(link[8:-1]) if link.startswith("socket:[") else 0


class Seen(NamedTuple):
    """``holders``: by port the program that holds it; ``inward``: ports on which programs listen for this host itself alone."""

    holders: dict[PortKey, str]
    inward: frozenset[PortKey]


class HostSockets:
    """Who holds which port of this host, besides the swarm."""

    def __init__(
        self,
        look: Callable[[], list[Listener]] = listeners,
        programs: Programs | None = None,
    ) -> None:
        self._look = look
        self._programs = programs or Programs()

    def seen(self, ours: Callable[[], Collection[int]]) -> Seen:
        """``ours``: inodes of the sockets that hold ports for the swarm; asked after the look, so that none can be bound in between and be
        taken for somebody else's."""
        looked = self._look()
        own = ours()
        found = [one for one in looked if one.inode not in own]
        names = self._programs.names({one.inode for one in found if not one.loopback})
        holders: dict[PortKey, str] = {}
        for one in found:
            if not one.loopback:
                holders.setdefault((one.protocol, one.number), names[one.inode])
        return Seen(
            holders,
            frozenset((one.protocol, one.number) for one in found if one.loopback) - holders.keys(),
        )


class Yielded:
    """Published ports that are left to programs of this host. Pure: told what is seen and when."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._seen: dict[PortKey, float] = {}  # when a program was last seen there

    @property
    def ports(self) -> frozenset[PortKey]:
        return frozenset(self._seen)

    def remember(self, ports: Iterable[PortKey], now: float) -> None:
        """What was left to others before this daemon began: as if seen now, because after a reboot they may start later than we."""
        for key in ports:
            self._seen[key] = now

    def look(
        self, published: Collection[PortKey], holders: Mapping[PortKey, str], now: float
    ) -> frozenset[PortKey]:
        """The ports of ``published`` that the swarm does not take now. ``now``: monotonic seconds."""
        for key in published:
            if key in holders:
                self._seen[key] = now
        for key, seen in list(self._seen.items()):
            if key not in published or now - seen >= self._patience_s:
                del self._seen[key]
        return self.ports
