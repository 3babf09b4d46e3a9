"""Raft's transport between managers: one stream to each peer, many frames in one write, nothing blocks."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable

from swarm_agent.identity.ca import Subject
from swarm_agent.identity.files import NodeIdentity
from swarm_agent.objects.errors import SwarmError
from swarm_agent.raft import Member
from swarm_agent.session.rpc import Call, Rpc
from swarm_agent.session.wire import Nothing

log = logging.getLogger(__name__)

MAX_QUEUED = 4096  # frames waiting for one peer; beyond it the oldest are dropped, Raft sends again
RECONNECT_S = 0.1


class _Peer:
    """The way to one manager."""

    def __init__(
        self, member: Member, identity: Callable[[], NodeIdentity], lost: Callable[[int], None], rpc: Rpc
    ) -> None:
        self._rpc = rpc
        self.member = member
        self._identity = identity
        self._lost = lost
        self.queue: deque[bytes] = deque(maxlen=MAX_QUEUED)
        self.wake = asyncio.Event()
        self.connected = False
        self.task = asyncio.create_task(self._run(), name=f"raft to {member.node_id}")

    def send(self, frame: bytes) -> None:
        self.queue.append(frame)
        self.wake.set()

    async def _run(self) -> None:
        while True:
            client = self._rpc.client(self.member.addr, self._identity(), self.member.node_id)
            try:
                await self._pump(client.upload("Frames"))
            except SwarmError as err:
                if self.connected:
                    log.info("lost manager %s: %s", self.member.node_id, err)
            except Exception:  # whatever it was, this manager must be tried again
                log.exception("the way to manager %s failed", self.member.node_id)
            finally:
                was, self.connected = self.connected, False
                await client.close()
            if was:
                self._lost(self.member.raft_id)
            self.queue.clear()
            await asyncio.sleep(RECONNECT_S)

    async def _pump(self, call: Call) -> None:
        await call.connected()
        self.connected = True
        ended = asyncio.create_task(call.ended())
        try:
            while not ended.done():
                while self.queue:
                    await call.write(self.queue.popleft())
                self.wake.clear()
                if self.queue:
                    continue
                waiting = asyncio.create_task(self.wake.wait())
                await asyncio.wait({waiting, ended}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        finally:
            ended.cancel()


class PeerTransport:
    """Implements ``raft.Transport`` over gRPC; incoming frames come in at :meth:`serve`."""

    def __init__(self, identity: Callable[[], NodeIdentity], rpc: Rpc) -> None:
        self._identity = identity
        self._rpc = rpc
        self._peers: dict[int, _Peer] = {}
        self.receive: Callable[[bytes, str], None] = lambda frame, bearer: None  # noqa: ARG005 - set once the node is up
        self.lost: Callable[[int], None] = lambda raft_id: None  # noqa: ARG005

    def send(self, to: Member, frame: bytes) -> None:
        peer = self._peers.get(to.raft_id)
        if peer is None or peer.member.addr != to.addr:
            if peer is not None:
                peer.task.cancel()
            peer = _Peer(to, self._identity, self._was_lost, self._rpc)
            self._peers[to.raft_id] = peer
        peer.send(frame)

    def _was_lost(self, raft_id: int) -> None:
        self.lost(raft_id)

    def keep(self, raft_ids: set[int]) -> None:
        """Forget peers that are no members any more."""
        for raft_id in set(self._peers) - raft_ids:
            self._peers.pop(raft_id).task.cancel()

    def connected(self, raft_id: int) -> bool:
        peer = self._peers.get(raft_id)
        return peer is not None and peer.connected

    async def serve(self, caller: Subject, frames: AsyncIterator[bytes]) -> Nothing:
        """Take a manager's frames; Raft drops those in another's name."""
        async for frame in frames:
            self.receive(frame, caller.node_id)
        return Nothing()

    async def stop(self) -> None:
        tasks = [p.task for p in self._peers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._peers.clear()
