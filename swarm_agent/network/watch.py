"""What tells of changes that others make to a namespace of ours: rtnetlink's and nf_tables' own news.

Owns: one socket of each per namespace, and what of their messages matters to us. Refuses: mending (``host``).
Read in the worker thread, before and after our own work: so it is known which news of rules were ours. News of links and
routes are not told apart; a look that finds all as it should be changes nothing, so it brings no news in turn.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from swarm_agent.network import netlink
from swarm_agent.network.guards import TABLE as GUARD_TABLE
from swarm_agent.network.netlink import attributes
from swarm_agent.network.nft import Loader

SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
NETLINK_NETFILTER: Final = 12
RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE = 1, 3, 5, 7, 8
NFNLGRP_NFTABLES: Final = 7
NFT_SUBSYSTEM: Final = 10
NFT_MSG_NEWGEN, NFT_MSG_GETGEN = 15, 16
SO_RCVBUFFORCE: Final = 33
_BUFFER: Final = 8 << 20  # a whole table of a thousand tasks is a megabyte of news
_OURS: Final = {"swarm", GUARD_TABLE}
_FIREWALL: Final = "filter"  # iptables' table, in which two rules are ours


class Watch:
    """A namespace's news; open it inside.

    ``stirred``, ``entries`` (neighbours and forwarding), ``rules``, ``firewall``: what was touched since they were last put to False.
    Entries come by the thousand and with every task, most of them from us, so nobody is woken for them.
    """

    def __init__(self, mine: frozenset[str] | None) -> None:
        """``mine``: the links that matter here; ``None``: all do."""
        self._mine = mine
        self.stirred = False
        self.entries = False
        self.rules = True  # nobody knows what they are until they are written
        self.firewall = False
        self._route = _open(netlink.NETLINK_ROUTE)
        for group in (RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE):
            self._route.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._entries = _open(netlink.NETLINK_ROUTE)
        if mine is None:
            self._entries.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_NEIGH)
        self._nft = _open(NETLINK_NETFILTER)
        self._nft.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        self._asked = _open(NETLINK_NETFILTER, blocking=True)

    def close(self) -> None:
        for sock in (self._route, self._entries, self._nft, self._asked):
            sock.close()

    def fds(self) -> tuple[int, int]:
        """Readable when somebody should look at once."""
        return self._route.fileno(), self._nft.fileno()

    def read(self) -> None:
        """Take in what has come."""
        for kind, body in _messages(self._route):
            self.stirred = self.stirred or kind == 0 or self._matters(kind, body)
        for kind, body in _messages(self._entries):
            self.entries = self.entries or kind == 0 or _permanent(body)
        for kind, body in _messages(self._nft):
            if kind == 0:
                self.rules = True
            elif kind & 0xFF != NFT_MSG_NEWGEN:
                table = attributes(body[4:]).get(1, b"").rstrip(b"\0").decode(errors="replace")
                self.rules = self.rules or table in _OURS
                self.firewall = self.firewall or table == _FIREWALL

    def forget_rules(self) -> None:
        """What has come of rules was our own."""
        for _ in _messages(self._nft):
            pass

    def generation(self) -> int:
        """How often this namespace's rules have been changed; -1: the kernel does not say."""
        header = struct.pack("=IHHII", 20, NFT_SUBSYSTEM << 8 | NFT_MSG_GETGEN, netlink.NLM_F_REQUEST, 1, 0)
        try:
            self._asked.send(header + struct.pack("=BBH", 0, 0, 0))
            data = self._asked.recv(65536)
        except OSError:
            return -1
        found = attributes(data[20:]).get(1, b"")
        return int(struct.unpack("!I", found)[0]) if len(found) == 4 else -1

    def _matters(self, kind: int, body: bytes) -> bool:
        if kind in {netlink.RTM_NEWLINK, netlink.RTM_DELLINK}:
            name = attributes(body[16:]).get(netlink.IFLA_IFNAME, b"")
            return self._mine is None or name.rstrip(b"\0").decode(errors="replace") in self._mine
        if kind in {netlink.RTM_NEWADDR, netlink.RTM_DELADDR}:
            label = attributes(body[8:]).get(_IFA_LABEL, b"")
            return self._mine is None or label.rstrip(b"\0").decode(errors="replace") in self._mine
        if kind in {netlink.RTM_NEWROUTE, netlink.RTM_DELROUTE}:
            return body[5] == netlink.PROTOCOL
        return self._mine is None  # rules of routing


_IFA_LABEL: Final = 3


def _permanent(body: bytes) -> bool:
    """Of an entry as we make them; others come and go with the traffic."""
    return bool(struct.unpack_from("=H", body, 8)[0] & netlink.NUD_PERMANENT)


class WatchedLoader:
    """Loads rules and knows afterwards whether anybody else changed any since the last time."""

    def __init__(self, loader: Loader, watch: Watch) -> None:
        self._loader = loader
        self._watch = watch

    def run(self, text: str) -> None:
        if not text:
            return
        self._watch.read()
        before = self._watch.generation()
        try:
            self._loader.run(text)
        except Exception:
            self._watch.rules = True  # what it was to change is not as it was thought to be
            raise
        if before < 0 or self._watch.generation() == before + 1:
            self._watch.forget_rules()  # nobody came between: all that has come since is ours
        else:
            self._watch.rules = True

    def close(self) -> None:
        self._loader.close()


def _open(family: int, *, blocking: bool = False) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
    sock.bind((0, 0))
    if blocking:
        sock.settimeout(2)
        return sock
    sock.setblocking(False)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    return sock


def _messages(sock: socket.socket) -> list[tuple[int, bytes]]:
    """Kind and body of all that has come. Kind 0: some was lost."""
    found: list[tuple[int, bytes]] = []
    while True:
        try:
            data = sock.recv(1 << 18)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            found.append((0, b""))
            continue
        at = 0
        while at + 16 <= len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            if length < 16:
                break
            found.append((kind, data[at + 16 : at + length]))
            at += (length + 3) & ~3
