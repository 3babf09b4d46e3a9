"""Peers that do not answer: what a node finds out by itself about those the managers do not hear, and what it does about it.

A node's silence towards the managers says nothing of its containers, so they stay backends until others run in their place. But one whose
host is gone would swallow its share of all new connections meanwhile. Therefore each node asks the suspected peers' *kernels* over the
node network, the way the connections would take: an echo request to the peer's gateway, through the same tunnel. Who answers neither the managers nor
us gets no new connection from here, unless that would leave a service with nobody.

Owns the echo requests (``EchoSocket``) and the decision (``Suspects``, ``avoiding``; pure). Refuses to know who is a suspect: it is told.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from swarm_agent.network.model import NetworkView, Peer, PublishedPort, node_gateway, node_subnet

log = logging.getLogger(__name__)

EVERY_S = 0.25
MISSES = 4  # echo requests without an answer, one after the other: a second
RARELY = 20  # rounds from one request to the next to a peer that is gone, perhaps for good: five seconds
_ECHO, _ECHO_REPLY = 8, 0
_HEAD = struct.Struct("!BBHHH")
_SOL_RAW, _ICMP_FILTER = 255, 1


class Echoes(Protocol):
    """Asks hosts whether they are there."""

    def ask(self, address: str) -> None:
        """Never blocks; may be lost."""

    def answered(self) -> set[str]:
        """Who answered since the last call."""

    def close(self) -> None: ...


class EchoSocket:
    """Implements ``Echoes`` with a raw socket: OSError without the right to one."""

    def __init__(self) -> None:
        self._id = int.from_bytes(os.urandom(2), "big")
        self._sequence = 0
        self._socket = socket.socket(
            socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP
        )
        only_replies = struct.pack("=I", 0xFFFFFFFF & ~(1 << _ECHO_REPLY))
        self._socket.setsockopt(_SOL_RAW, _ICMP_FILTER, only_replies)

    def ask(self, address: str) -> None:
        self._sequence = (self._sequence + 1) & 0xFFFF
        head = _HEAD.pack(_ECHO, 0, 0, self._id, self._sequence)
        request = _HEAD.pack(_ECHO, 0, _checksum(head), self._id, self._sequence)
        try:
            self._socket.sendto(request, (address, 0))
        except OSError as err:  # no route yet, a full buffer: as good as lost
            log.debug("cannot ask %s: %s", address, err)

    def answered(self) -> set[str]:
        found: set[str] = set()
        while True:
            try:
                packet, (address, _) = self._socket.recvfrom(256)
            except OSError:
                return found
            at = (packet[0] & 0x0F) * 4 if packet else 0
            if len(packet) >= at + _HEAD.size and _HEAD.unpack_from(packet, at)[3] == self._id:
                found.add(address)

    def close(self) -> None:
        self._socket.close()


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


# --- the decision ----------------------------------------------------------------------------------------------------
class Suspects:
    """Whom the managers do not hear, and for how many rounds each did not answer us. Counts, not times: a pause of ours asks nobody."""

    def __init__(self) -> None:
        self._misses: dict[str, int] = {}  # address -> rounds since its last answer
        self._nodes: dict[str, str] = {}  # address -> node id

    def __bool__(self) -> bool:
        """Whether there are any, also when none of them is to be asked now."""
        return bool(self._nodes)

    def are(self, peers: Iterable[Peer]) -> None:
        """From here on these and no others."""
        self._nodes = {node_gateway(peer.number): peer.node_id for peer in peers}
        self._misses = {address: self._misses.get(address, 0) for address in self._nodes}

    def round(self, answered: set[str]) -> list[str]:
        """Who answered since the last one; whom to ask now. Who is gone is asked rarely, until it answers once."""
        for address in self._misses:
            self._misses[address] = 0 if address in answered else self._misses[address] + 1
        return [
            a for a, misses in self._misses.items() if misses <= MISSES or (misses - MISSES) % RARELY == 0
        ]

    def gone(self) -> frozenset[str]:
        """Node ids of those that answer neither the managers nor us."""
        return frozenset(self._nodes[a] for a, misses in self._misses.items() if misses > MISSES)


def avoiding(view: NetworkView, gone: frozenset[str]) -> NetworkView:
    """The view without new connections to these nodes; what a service has left stays with it, open connections go on."""
    if not gone:
        return view
    subnets = [node_subnet(p.number) for p in view.peers if p.node_id in gone and p.node_id != view.node_id]

    def is_gone(address: str) -> bool:
        ip = ipaddress.IPv4Address(address)
        return any(ip in subnet for subnet in subnets)

    def lighter(port: PublishedPort) -> PublishedPort:
        left = tuple(a for a in port.backends if not is_gone(a))
        if not left or left == port.backends:
            return port
        draining = {*port.draining, *port.backends} - set(left)
        return msgspec.structs.replace(port, backends=left, draining=tuple(sorted(draining)))

    served = {(e.network_id, e.service_id) for e in view.endpoints if e.ready and e.node_id not in gone}
    endpoints = tuple(
        msgspec.structs.replace(e, ready=False)
        if e.ready
        and e.node_id in gone
        and e.node_id != view.node_id
        and (e.network_id, e.service_id) in served
        else e
        for e in view.endpoints
    )
    return msgspec.structs.replace(view, ports=tuple(map(lighter, view.ports)), endpoints=endpoints)


# --- the shell -------------------------------------------------------------------------------------------------------
class Prober:
    """``changed`` is called with the node ids to avoid whenever they are others."""

    def __init__(self, open_echoes: Callable[[], Echoes], changed: Callable[[frozenset[str]], None]) -> None:
        self._open = open_echoes
        self._changed = changed
        self._suspects = Suspects()
        self._peers: tuple[Peer, ...] = ()
        self._silent: tuple[str, ...] = ()
        self._any = asyncio.Event()
        self._gone: frozenset[str] = frozenset()

    def peers(self, own: str, peers: Iterable[Peer]) -> None:
        """All there are; ``own`` is ours."""
        self._peers = tuple(p for p in peers if p.node_id != own)
        self._look()

    def silent(self, nodes: tuple[str, ...]) -> None:
        """Whom the managers do not hear."""
        self._silent = nodes
        self._look()

    def _look(self) -> None:
        self._suspects.are([p for p in self._peers if p.node_id in self._silent])
        self._any.set()

    async def run(self) -> None:
        """Until cancelled. Asks nobody while the managers hear everybody."""
        try:
            echoes = self._open()
        except OSError as err:
            log.warning("cannot ask peers whether they are there: %s", err)
            return
        try:
            await self._ask(echoes)
        finally:
            echoes.close()

    async def _ask(self, echoes: Echoes) -> None:
        while True:
            await self._any.wait()
            for address in self._suspects.round(echoes.answered()):
                echoes.ask(address)
            gone = self._suspects.gone()
            if gone != self._gone:
                for node_id in sorted(gone - self._gone):
                    log.warning(
                        "a peer answers neither the managers nor this node: it gets no new connections",
                        extra={"node": node_id},
                    )
                for node_id in sorted(self._gone - gone):
                    log.info("a peer is heard again", extra={"node": node_id})
                self._gone = gone
                self._changed(gone)
            if not self._suspects:
                self._any.clear()
            await asyncio.sleep(EVERY_S)
