"""Published ports, held visibly: a bound socket for each, so that other programs see that the port is in use.

A published port is a rule of ours and no socket, and a program of the host could bind it without an error and never be reached. netd binds
what the swarm publishes, on IPv4 and IPv6, and never listens: a bind by somebody else fails, as with Docker, and where our rules were flushed the
kernel refuses connections at once. A UDP socket that is bound takes what arrives, so these are bound to ``swarm0`` besides: datagrams
from outside find no socket and are refused.

Owns: these sockets. Refuses: which ports (the daemon writes them down) and what to do about one that is not to be had (``sockets``).
Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import socket

from swarm_agent.network.state_files import HoldsEntry, StateFiles

log = logging.getLogger(__name__)

_LINK = b"swarm0"
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_NO_MORE_FILES = {errno.EMFILE, errno.ENFILE}

Key = tuple[str, int]


class Holds:
    """What is held now. ``keep`` makes it equal to what is wanted, as far as it can be had."""

    def __init__(self, journal: StateFiles) -> None:
        self._journal = journal
        self._held: dict[Key, tuple[socket.socket, ...]] = {}
        self._complained = False
        with contextlib.suppress(ValueError, OSError):
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def keep(self) -> None:
        """Hold what the journal says, let go of all else, and write down which sockets are ours."""
        wanted = {(str(protocol), int(number)) for protocol, number in self._journal.get_ports().hold}
        for key in self._held.keys() - wanted:
            self._let_go(key)
        made = self._make(sorted(wanted - self._held.keys()), len(wanted))
        if made:  # known as ours before anybody can see them bound
            self._held |= made
            self._write()
        for key, sockets in made.items():
            try:
                for held in sockets:
                    held.bind(("", key[1]))
            except OSError:  # somebody has it: tried again
                self._let_go(key)
        self._write()

    def close(self) -> None:
        for key in list(self._held):
            self._let_go(key)

    def _make(self, keys: list[Key], wanted: int) -> dict[Key, tuple[socket.socket, ...]]:
        """Sockets that are to be bound; fewer when no more files may be open, or while ``swarm0`` is not there."""
        made = {}
        for key in keys:
            try:
                made[key] = _sockets(key[0])
            except KeyError:
                continue  # a protocol of a later release
            except OSError as error:
                if error.errno in _NO_MORE_FILES:
                    self._complain(wanted)
                    break
        return made

    def _let_go(self, key: Key) -> None:
        for held in self._held.pop(key):
            held.close()

    def _write(self) -> None:
        inodes = [os.fstat(held.fileno()).st_ino for sockets in self._held.values() for held in sockets]
        self._journal.put_holds(HoldsEntry(tuple(sorted(inodes))))

    def _complain(self, wanted: int) -> None:
        if not self._complained:
            log.warning(
                f"only {len(self._held)} of {wanted} published ports can be held for others to see: too few files may be open. "
                "Raise LimitNOFILE of swarm-agent-net; the ports are served all the same"
            )
        self._complained = True


def _sockets(protocol: str) -> tuple[socket.socket, ...]:
    """One for each family; a host without IPv6 has one."""
    made: list[socket.socket] = []
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                one = socket.socket(family, _KINDS[protocol])
            except OSError as error:
                if family == socket.AF_INET6 and error.errno not in _NO_MORE_FILES:
                    continue  # no IPv6 here
                raise
            made.append(one)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if protocol == "udp":
                one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _LINK)
    except (OSError, KeyError):
        for one in made:
            one.close()
        raise
    return tuple(made)
