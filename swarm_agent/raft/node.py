"""``RaftNode``: a member as its owner sees it.

Owns the state machine's side: what is applied and who hears the outcome of a proposal or a read. Lives on the owner's loop, the driver on
Raft's; every call between them goes through a mailbox and keeps its order, so that what is told here is a prefix of what happened there.
Refuses to decide when anything is sent, synced or voted on (``driver``).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec

from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.raft import wire
from swarm_agent.raft.config import RaftConfig, Retention
from swarm_agent.raft.core import (
    ConfChange,
    ConfState,
    Core,
    Entry,
    EntryKind,
    HardState,
    Member,
    SnapshotMeta,
)
from swarm_agent.raft.core.conf import decode_change, encode_change
from swarm_agent.raft.disk import Disk
from swarm_agent.raft.driver import Driver
from swarm_agent.raft.errors import EntryTooLarge, NotLeader, OutcomeUnknown, Stopped
from swarm_agent.raft.log import Codec, Log, Owner, Recovered
from swarm_agent.raft.loops import LoopHost, SameLoop, run_on
from swarm_agent.raft.pending import Proposals, Reads
from swarm_agent.raft.status import RaftStatus, StateMachine

log = logging.getLogger(__name__)

Begin = Callable[[Log, Recovered], Recovered]


class RaftNode:
    """One member. ``start`` it, hand it frames with ``receive``, ``stop`` it; it never starts again.

    Implements ``driver.DriverListener``.
    """

    @classmethod
    async def start(
        cls,
        config: RaftConfig,
        *,
        disk: Disk,
        transport: wire.Transport,
        fsm: StateMachine,
        rng: random.Random,
        bootstrap: Member | None,
        codec: Codec | None = None,
        begin: Begin | None = None,
        home: LoopHost | None = None,
    ) -> RaftNode:
        """Recover and begin. ``bootstrap``: this member, to found a cluster of one if the disk is empty. Without it a
        member with an empty disk waits for the leader that adds it. ``codec``: how records are stored, None for as they are.
        ``begin``: an unusual beginning (``force_new_cluster``), in place of ``bootstrap``. ``home``: where Raft runs, entered by the caller, here by default. Disk and home stay the caller's, to end after ``stop``.
        """
        if bootstrap is not None and (bootstrap.raft_id != config.raft_id or bootstrap.learner):
            raise InvalidSpec("a cluster is founded by this member, as a voter", "bootstrap")
        if home is None:
            home = SameLoop()
            home.enter()
        owner = Owner(config.cluster_id, config.node_id, config.raft_id)
        store, recovered = await disk.run(
            lambda: Log.open(disk, owner, codec=codec, segment_bytes=config.segment_bytes)
        )
        if recovered.is_new and bootstrap is not None:
            founding = Entry(1, 1, EntryKind.CONF, encode_change(ConfChange(bootstrap)))
            state = HardState(1, 0, 1)
            await disk.run(lambda: store.append(state, (founding,)))
            recovered = Recovered(state, None, (), [founding])
        if begin is not None:
            make, first = begin, recovered
            recovered = await disk.run(lambda: make(store, first))
        node = cls(config, fsm, recovered, home, rng)
        try:
            await run_on(home, lambda: node._begin(disk, store, recovered, transport, rng))
        except asyncio.CancelledError:
            home.raft.put(node._abort)  # it may have begun all the same
            raise
        return node

    def __init__(
        self, config: RaftConfig, fsm: StateMachine, recovered: Recovered, home: LoopHost, rng: random.Random
    ) -> None:
        self._config = config
        self._retention = config.retention
        self._fsm = fsm
        self._home = home
        self._loop = asyncio.get_running_loop()
        meta = recovered.snapshot
        if meta is not None:
            fsm.restore(meta.index, recovered.snapshot_pieces)
        self._applied = self._kept = meta.index if meta else 0
        self._applied_term = meta.term if meta else 0
        self._applied_conf = meta.conf if meta else ConfState()
        self._bytes_since_snapshot = 0
        self._proposals = Proposals()
        self._reads = Reads(rng.getrandbits(60))
        self._callbacks: list[Callable[[RaftStatus], None]] = []
        self._accepting = True
        self._drained: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self.driver: Driver
        self._status: RaftStatus

    async def _begin(
        self, disk: Disk, store: Log, recovered: Recovered, transport: wire.Transport, rng: random.Random
    ) -> None:
        self.driver = Driver(self._config, disk, store, recovered, transport, rng, self._home.owner.put, self)
        self._status = self.driver.status()

    def _abort(self) -> None:
        if hasattr(self, "driver"):
            self.driver.abandon()

    # -- for those who use it -----------------------------------------------------------------------------------------

    def retain(self, retention: Retention) -> None:
        """From the next snapshot on."""
        self._retention = retention
        self._home.raft.put(self.driver.retain, retention)

    async def propose(self, data: bytes) -> object:
        """``apply``'s result, once applied here. ``NotLeader``, ``EntryTooLarge``, ``Overloaded``, ``Stopped``: nothing
        was done. ``OutcomeUnknown``: it may yet happen. Cancelling does not take back what is in the log."""
        if len(data) > self._config.max_entry_bytes:
            raise EntryTooLarge(len(data), self._config.max_entry_bytes)
        self._require_open()
        if not self.is_leader:
            raise NotLeader(self._status.leader)
        ticket, future = self._proposals.offer()
        self._home.raft.put(self.driver.offer, ticket, data)
        try:
            return await future
        except asyncio.CancelledError:
            if self._proposals.withdraw(ticket):
                self._home.raft.put(self.driver.withdraw, ticket)
            raise

    async def read_barrier(self) -> int:
        """After this, the state here includes everything acknowledged anywhere before the call. On any member that
        hears a leader; ``NotLeader`` if none confirms within two election timeouts."""
        self._require_open()
        context, future = self._reads.ask()
        self._home.raft.put(self.driver.ask, context)
        patience = 2 * self._config.election_ticks_max * self._config.tick_s
        timer = self._loop.call_later(patience, self._read_expired, context, future)
        try:
            return await future
        finally:
            timer.cancel()
            self._reads.forget(context)

    def _read_expired(self, context: int, future: asyncio.Future[int]) -> None:
        self._reads.forget(context)
        if not future.done():
            future.set_exception(NotLeader(self._status.leader))

    async def add_member(self, m: Member) -> None:
        """Add as a learner, wait until it has caught up, make it a voter (unless ``m`` is to stay a learner). May be
        repeated after any failure. Waits as long as the member takes: bound it from outside."""
        await self._on_raft(lambda: self.driver.add_member(m))

    async def update_member(self, m: Member) -> None:
        """New address, or promote or demote. A leader that is to be demoted hands over and raises ``NotLeader``."""
        await self._on_raft(lambda: self.driver.update_member(m))

    async def remove_member(self, raft_id: int) -> None:
        """Remove for good. A leader that is to go hands over and raises ``NotLeader``: ask the next one."""
        await self._on_raft(lambda: self.driver.remove_member(raft_id))

    async def transfer(self, to: int | None = None) -> None:
        """Hand leadership to ``to``, by default the most complete voter that is heard of. ``TransferFailed``: it stayed."""
        await self._on_raft(lambda: self.driver.transfer(to or 0))

    async def state(self) -> tuple[SnapshotMeta, Iterable[bytes]]:
        """A view of the state that includes everything acknowledged before the call, for a backup."""
        await self.read_barrier()
        return self._meta(), self._fsm.snapshot()

    async def rotate_log(self) -> None:
        """After this no file is left that holds anything written before the call: a snapshot and newer segments stand
        for it. Waits until all of it is applied, which takes a majority. May be repeated after any failure.
        """
        await self._on_raft(self.driver.rotate_log)

    async def _on_raft(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._require_open()
        await run_on(self._home, make)

    def receive(self, frame: bytes, peer_id: str | None = None) -> None:
        """A frame arrived; call on Raft's loop. What is no frame of this cluster is dropped, with a warning, and so is what
        speaks for another node than ``peer_id``, the one the transport has proof of (None: a transport without such proof).
        """
        self.driver.receive(frame, peer_id)

    def peer_lost(self, raft_id: int) -> None:
        """The connection to this peer was reset; call on Raft's loop. If it leads, the others are asked soon instead of at the
        timeout."""
        self.driver.peer_lost(raft_id)

    @property
    def core(self) -> Core:
        """The inner state, for checks in tests and simulations that run both halves on one loop."""
        return self.driver.core

    @property
    def is_leader(self) -> bool:
        return self._status.role == "leader"

    def status(self) -> RaftStatus:
        """As of the last thing the driver told, and what is applied here."""
        return msgspec.structs.replace(self._status, applied=self._applied)

    def on_change(self, callback: Callable[[RaftStatus], None]) -> None:
        """Called on the owner's loop whenever role, leader, membership or ``removed`` changed, and once at the end."""
        self._callbacks.append(callback)

    async def stop(self, *, transfer: bool = True) -> None:
        """Accept no more, let accepted proposals finish (bounded), hand leadership over (bounded), end."""
        if self._accepting and not self._closed.done():
            self._accepting = False
            if transfer and self.is_leader:
                await self._drain()
                await run_on(self._home, self.driver.leave_office)
        if not self._closed.done():
            await run_on(self._home, self.driver.close)
        await self.wait_closed(quietly=True)

    async def _drain(self) -> None:
        if self._proposals:
            self._drained = self._loop.create_future()
            await asyncio.wait([self._drained], timeout=self._config.drain_s)

    def abandon(self) -> None:
        """End at once and without a word, as a killed process would; for simulators, on one loop."""
        self._home.raft.close()
        self.driver.abandon()
        self._home.owner.close()
        self._status = msgspec.structs.replace(self._status, role="stopped", leader=None)
        self._end(OutcomeUnknown)

    async def wait_closed(self, *, quietly: bool = False) -> None:
        """Until the member has ended and its last write with it. Raises what ended it, if it did not end by ``stop``."""
        await asyncio.wait([self._closed])
        if not self._home.raft.closed:
            await run_on(self._home, self.driver.wait_ended)
        if self._failure is not None and not quietly:
            raise self._failure

    def _require_open(self) -> None:
        if self._closed.done() or not self._accepting:
            raise Stopped(str(self._failure) if self._failure else "")

    # -- what the driver tells ----------------------------------------------------------------------------------------

    def logged(self, tickets: tuple[int, ...], first_index: int, term: int) -> None:
        self._proposals.logged(tickets, first_index, term)

    def refused(self, tickets: tuple[int, ...], error: Callable[[], Exception]) -> None:
        self._proposals.refused(tickets, error)
        self._note_drained()

    def committed(self, entries: tuple[Entry, ...]) -> None:
        if self._failure is not None:
            return
        try:
            for entry in entries:
                self._apply(entry)
            self._reads.applied(self._applied)
            self._note_drained()
            self._maybe_snapshot()
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def _apply(self, entry: Entry) -> None:
        result: object = None
        if entry.kind == EntryKind.DATA:
            result = self._fsm.apply(entry.index, entry.term, entry.data)
        elif entry.kind == EntryKind.CONF:
            self._applied_conf = self._applied_conf.apply(decode_change(entry.data))
        self._applied, self._applied_term = entry.index, entry.term
        self._bytes_since_snapshot += len(entry.data)
        self._proposals.applied(entry.index, entry.term, result)

    def read_at(self, context: int, index: int) -> None:
        self._reads.confirmed(context, index)
        self._reads.applied(self._applied)

    def read_refused(self, context: int) -> None:
        self._reads.refused(context, NotLeader(None))

    def leadership_changed(self, oldest_term: int, last_context: int) -> None:
        self._proposals.lose_older_than(oldest_term)
        self._reads.fail_asked(last_context, lambda: NotLeader(self._status.leader))
        self._note_drained()

    def restored(self, meta: SnapshotMeta, pieces: tuple[bytes, ...]) -> None:
        if self._failure is not None:
            return
        try:
            self._fsm.restore(meta.index, pieces)
            self._applied = self._kept = meta.index
            self._applied_term, self._applied_conf = meta.term, meta.conf
            self._bytes_since_snapshot = 0
            self._reads.applied(self._applied)
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def state_wanted(self, ticket: int) -> None:
        if self._failure is not None:
            return
        try:
            meta, view = self._meta(), self._fsm.snapshot()
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return
        self._home.raft.put(self.driver.state_is, ticket, meta, view)

    def status_is(self, status: RaftStatus, announce: bool) -> None:
        self._status = status
        if announce:
            for callback in self._callbacks:
                try:
                    callback(self.status())
                except Exception:
                    log.exception("a listener for raft changes failed")

    def closed(self, failure: Exception | None) -> None:
        self._failure = self._failure or failure
        reason = str(self._failure) if self._failure else ""
        self._end(lambda: Stopped(reason))

    # -- helpers of the above -----------------------------------------------------------------------------------------

    def _meta(self) -> SnapshotMeta:
        return SnapshotMeta(self._applied, self._applied_term, self._applied_conf)

    def _maybe_snapshot(self) -> None:
        config = self._config
        due = (
            self._applied - self._kept >= self._retention.snapshot_interval
            or self._bytes_since_snapshot >= config.snapshot_bytes
        )
        if due:
            self._kept = self._applied
            self._bytes_since_snapshot = 0
            self._home.raft.put(self.driver.keep_snapshot, self._meta(), self._fsm.snapshot())

    def _note_drained(self) -> None:
        if self._drained is not None and not self._drained.done() and not self._proposals:
            self._drained.set_result(None)

    def _fail(self, error: Exception) -> None:
        """What was applied is in doubt: nothing more is."""
        self._failure = error
        self._home.raft.put(self.driver.fail, error)

    def _end(self, offered: Callable[[], Exception]) -> None:
        if self._closed.done():
            return
        self._closed.set_result(None)
        reason = str(self._failure) if self._failure else ""
        self._proposals.end(offered=offered)
        self._reads.end(lambda: Stopped(reason))
        self._note_drained()
