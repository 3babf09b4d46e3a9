"""Raft's transport between managers: one link to each peer, opened again whenever it is lost. Nothing blocks.

Lives on Raft's loop; ``start``, ``keep``, ``renewed`` and ``stop`` are called there too.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from swarm_agent.ca.ca import Subject
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.objects.errors import SwarmError
from swarm_agent.raft import Member
from swarm_agent.rpc.raft_links import LinkListener, RaftLink, RaftLinks

log = logging.getLogger(__name__)

MAX_QUEUED = 64  # frames that wait for a link; beyond it the oldest are dropped, Raft sends again
RECONNECT_S = (0.1, 0.5)  # first and longest pause between attempts


class _Peer:
    """The way to one manager."""

    def __init__(
        self,
        member: Member,
        port: int,
        identity: Callable[[], NodeIdentity],
        lost: Callable[[int], None],
        links: RaftLinks,
    ) -> None:
        self.member = member
        self._addr = f"{member.addr.rpartition(':')[0]}:{port}"
        self._links = links
        self._identity = identity
        self._lost = lost
        self._link: RaftLink | None = None
        self._queue: deque[bytes] = deque(maxlen=MAX_QUEUED)
        self.task = asyncio.get_running_loop().create_task(self._run(), name=f"raft to {member.node_id}")

    @property
    def linked(self) -> bool:
        return self._link is not None

    def send(self, frame: bytes) -> None:
        if self._link is not None:
            self._link.send(frame)
        else:
            self._queue.append(frame)

    async def _run(self) -> None:
        pause = RECONNECT_S[0]
        said = ""
        while True:
            try:
                await self._while_connected()
                pause, said = RECONNECT_S[0], ""
            except SwarmError as err:
                if str(err) != said:
                    log.debug("cannot reach manager %s: %s", self.member.node_id, err)
                    said = str(err)
            except Exception:  # whatever it was, this manager must be tried again
                log.exception("the way to manager %s failed", self.member.node_id)
            self._queue.clear()
            await asyncio.sleep(pause)
            pause = min(RECONNECT_S[1], pause * 1.2)

    async def _while_connected(self) -> None:
        link = await self._links.connect(self._addr, self._identity(), self.member.node_id)
        try:
            while self._queue:
                link.send(self._queue.popleft())
            self._link = link
            await link.ended()
        finally:
            self._link = None
            link.close()
        log.info("lost manager %s", self.member.node_id)
        self._lost(self.member.raft_id)


class PeerTransport:
    """Implements ``raft.Transport``."""

    def __init__(
        self,
        identity: Callable[[], NodeIdentity],
        links: RaftLinks,
        port: int,
        admit: Callable[[Subject], None],
    ) -> None:
        self._identity = identity
        self._admit = admit
        self._links = links
        self._port = port
        self._listener: LinkListener | None = None
        self._peers: dict[int, _Peer] = {}
        self.receive: Callable[[bytes, str], None] = lambda frame, peer_id: None  # noqa: ARG005 - set once the node is up
        self.lost: Callable[[int], None] = lambda raft_id: None  # noqa: ARG005

    async def start(self, host: str) -> None:
        """Listen. Raises Unavailable when the port is taken."""
        self._listener = await self._links.listen(host, self._port, self._identity, self._admit, self._take)

    def send(self, to: Member, frame: bytes) -> None:
        peer = self._peers.get(to.raft_id)
        if peer is None or peer.member.addr != to.addr:
            if peer is not None:
                peer.task.cancel()
            peer = _Peer(to, self._port, self._identity, self._was_lost, self._links)
            self._peers[to.raft_id] = peer
        peer.send(frame)

    def _take(self, frame: bytes, peer_id: str) -> None:
        self.receive(frame, peer_id)

    def _was_lost(self, raft_id: int) -> None:
        self.lost(raft_id)

    def reached(self) -> frozenset[int]:
        """Who has taken a connection of ours that is open still. May be asked from any thread."""
        return frozenset(raft_id for raft_id, peer in list(self._peers.items()) if peer.linked)

    def keep(self, raft_ids: frozenset[int]) -> None:
        """Forget peers that are no members any more."""
        for raft_id in set(self._peers) - raft_ids:
            self._peers.pop(raft_id).task.cancel()

    def renewed(self) -> None:
        """Our certificate is a new one. Open links keep the old one until they end."""
        if self._listener is not None:
            self._listener.renewed()

    async def stop(self) -> None:
        tasks = [p.task for p in self._peers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._peers.clear()
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
