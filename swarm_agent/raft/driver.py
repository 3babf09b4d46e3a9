"""``RaftNode``: the core, the log and the transport, run by one asyncio loop.

Owns the order of things: what is sent before the disk has answered and what after, group commit, ticks, snapshots, and who hears
the outcome of a proposal. Refuses to decide anything about consensus (``core``) or formats (``log``, ``wire``).

One ``_pump`` per pass of the loop does everything that became possible: offers queued proposals, sends what needs no disk, applies what
is committed, and hands the next batch to the disk unless one is there already. What arrives while the disk works
is the next batch: group commit without a timer. Time comes from the loop, blocking goes through ``disk.run``, so
the same code runs in virtual time.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine

import msgspec

from swarm_agent.objects.errors import InvalidSpec, ReleaseTooOld
from swarm_agent.raft import wire
from swarm_agent.raft.config import RaftConfig
from swarm_agent.raft.core import (
    ConfChange,
    ConfState,
    Core,
    Effects,
    Entry,
    EntryKind,
    HardState,
    InstallSnapshot,
    Member,
    Message,
    Ready,
    SnapshotMeta,
)
from swarm_agent.raft.core.conf import decode_change, encode_change
from swarm_agent.raft.disk import Disk
from swarm_agent.raft.errors import (
    EntryTooLarge,
    NotLeader,
    Overloaded,
    Stopped,
    TransferFailed,
)
from swarm_agent.raft.log import Log, Owner, Recovered
from swarm_agent.raft.membership import Membership
from swarm_agent.raft.status import PeerProgress, RaftStatus, StateMachine
from swarm_agent.raft.transfer import SnapshotReceiver, SnapshotSender
from swarm_agent.raft.waiters import Proposals, Reads, settle

log = logging.getLogger(__name__)
FRAME_BYTES = 1 << 20  # a frame takes no more messages once it holds so many bytes of entries


class RaftNode:
    """One member. ``start`` it, hand it frames with ``receive``, ``stop`` it; it never starts again."""

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
    ) -> RaftNode:
        """Recover and begin. ``bootstrap``: this member, to found a cluster of one if the disk is empty. Without it a
        member with an empty disk waits for the leader that adds it. The disk stays the caller's, to close after ``stop``.
        """
        if bootstrap is not None and (bootstrap.raft_id != config.raft_id or bootstrap.learner):
            raise InvalidSpec("a cluster is founded by this member, as a voter", "bootstrap")
        owner = Owner(config.cluster_id, config.node_id, config.raft_id)
        store, recovered = await disk.run(lambda: Log.open(disk, owner, segment_bytes=config.segment_bytes))
        if recovered.is_new and bootstrap is not None:
            founding = Entry(1, 1, EntryKind.CONF, encode_change(ConfChange(bootstrap)))
            state = HardState(1, 0, 1)
            await disk.run(lambda: store.append(state, (founding,)))
            recovered = Recovered(state, None, b"", [founding])
        return cls(config, disk, store, recovered, transport, fsm, rng)

    def __init__(
        self,
        config: RaftConfig,
        disk: Disk,
        store: Log,
        recovered: Recovered,
        transport: wire.Transport,
        fsm: StateMachine,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._disk = disk
        self._store = store
        self._transport = transport
        self._fsm = fsm
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._me = Member(config.raft_id, config.node_id, config.addr)
        meta = recovered.snapshot
        if meta is not None:
            fsm.restore(meta.index, (recovered.snapshot_data,))
        self._applied = self._snapshot_index = meta.index if meta else 0
        self._applied_conf = meta.conf if meta else ConfState()
        self._bytes_since_snapshot = 0
        self.core = Core(
            config.core(),
            rng,
            hard_state=recovered.hard_state,
            snapshot=meta,
            entries=recovered.entries,
        )
        self._membership = Membership(self)
        self._book: dict[int, Member] = {}  # who sent from where; a joining member knows nobody else
        self._proposals = Proposals()
        self._reads = Reads(rng.getrandbits(60))
        self._watchers: list[asyncio.Future[None]] = []
        self._callbacks: list[Callable[[RaftStatus], None]] = []

        self._tasks: dict[asyncio.Task[None], None] = {}
        self._writing: asyncio.Task[None] | None = None
        self._snapshotting = False
        self._receiver = SnapshotReceiver()
        self._arrived: dict[int, bytes] = {}  # whole snapshots by index, until the core has decided
        self._senders: dict[int, tuple[SnapshotSender, asyncio.Task[None]]] = {}
        self._transfers = rng.getrandbits(32)
        self._accepting = True
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._failure: Exception | None = None
        self._woken = False
        self._missed_ticks = 0
        self._last_tick = self._loop.time()
        self._seen = self._outline()
        self._seen_leader = (0, 0)
        self._timer = self._loop.call_at(self._last_tick + config.tick_s, self._tick)
        if self.core.conf_voters == {config.raft_id}:
            self.core.campaign()  # nobody else to wait for
        self._wake()

    # -- for those who use it -----------------------------------------------------------------------------------------

    async def propose(self, data: bytes) -> object:
        """``apply``'s result, once applied here. ``NotLeader``, ``EntryTooLarge``, ``Overloaded``, ``Stopped``: nothing
        was done. ``OutcomeUnknown``: it may yet happen. Cancelling does not take back what is in the log."""
        if len(data) > self._config.max_entry_bytes:
            raise EntryTooLarge(len(data), self._config.max_entry_bytes)
        self.require_leader()
        future = self._proposals.enqueue(data)
        self._wake()
        return await future

    async def read_barrier(self) -> int:
        """After this, the state here includes everything acknowledged anywhere before the call. On any member that
        hears a leader; ``NotLeader`` if none confirms within two election timeouts."""
        self._require_open()
        self._notice_changes()  # or a change of leader from before this call would end it
        context, future = self._reads.ask()
        if not self.core.read_index(context):
            self._reads.forget(context)
            raise NotLeader(None)
        self._wake()
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
            future.set_exception(NotLeader(self.leader()))

    async def add_member(self, m: Member) -> None:
        """Add as a learner, wait until it has caught up, make it a voter (unless ``m`` is to stay a learner). May be
        repeated after any failure. Waits as long as the member takes: bound it from outside."""
        await self._membership.add(m)

    async def update_member(self, m: Member) -> None:
        """New address, or promote or demote. A leader that is to be demoted hands over and raises ``NotLeader``."""
        await self._membership.update(m)

    async def remove_member(self, raft_id: int) -> None:
        """Remove for good. A leader that is to go hands over and raises ``NotLeader``: ask the next one."""
        await self._membership.remove(raft_id)

    async def transfer(self, to: int | None = None) -> None:
        """Hand leadership to ``to``, by default the most complete voter that is heard of. ``TransferFailed``: it stayed."""
        self.require_leader()
        await self.hand_over(to or 0)

    def receive(self, frame: bytes, bearer: str | None = None) -> None:
        """A frame arrived. What is no frame of this cluster is dropped, with a warning, and so is what speaks for another
        node than ``bearer``, the one the transport has proof of (None: a transport without such proof).
        """
        if self._closed.done():
            return
        try:
            decoded = wire.decode(frame)
        except msgspec.MsgspecError as error:
            log.warning("dropped a frame that cannot be read: %s", error)
            return
        if decoded.cluster_id != self._config.cluster_id:
            log.warning("dropped a frame of cluster %s from %s", decoded.cluster_id, decoded.sender.node_id)
            return
        if bearer is not None and self._speaks_for_another(decoded, bearer):
            log.warning("dropped a frame from %s in the name of another member", bearer)
            return
        self._book[decoded.sender.raft_id] = decoded.sender
        try:
            for item in decoded.items:
                if isinstance(item, wire.SnapshotChunk):
                    self._on_chunk(item)
                elif isinstance(item, wire.ChunkReceipt):
                    if item.frm in self._senders:
                        self._senders[item.frm][0].on_receipt(item)
                else:
                    self.core.step(item)
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return
        self._wake()

    def peer_lost(self, raft_id: int) -> None:
        """The connection to this peer was reset. If it leads, ask the others soon instead of at the timeout."""
        if not self._closed.done():
            self.core.peer_lost(raft_id)
            self.core.report_unreachable(raft_id)
            self._wake()

    @property
    def is_leader(self) -> bool:
        return self.core.leading is not None and not self._closed.done()

    def status(self) -> RaftStatus:
        core = self.core
        leading = core.leading
        peers = (
            [
                PeerProgress(raft_id, p.match, p.flow.value, leading.is_active(raft_id))
                for raft_id, p in leading.peers.items()
            ]
            if leading
            else []
        )
        closed = self._closed.done()
        return RaftStatus(
            raft_id=self._config.raft_id,
            role="stopped" if closed else core.role.value,
            term=core.term,
            leader=None if closed else self.leader(),
            commit=core.log.commit,
            applied=self._applied,
            last_index=core.log.last_index,
            snapshot_index=self._snapshot_index,
            members=self._applied_conf.members,
            peers=tuple(peers),
            removed=core.removed,
            missed_ticks=self._missed_ticks,
            failure=str(self._failure) if self._failure else "",
        )

    def on_change(self, callback: Callable[[RaftStatus], None]) -> None:
        """Called on the loop whenever role, leader, membership or ``removed`` changed, and once at the end."""
        self._callbacks.append(callback)

    async def stop(self, *, transfer: bool = True) -> None:
        """Accept no more, let accepted proposals finish (bounded), hand leadership over (bounded), end."""
        if self._accepting and not self._closed.done():
            self._accepting = False
            if transfer and self.is_leader:
                await self._leave_office()
        self._close()
        await self.wait_closed(quietly=True)

    def abandon(self) -> None:
        """End at once and without a word, as a killed process would; for simulators."""
        self._close()
        for task in list(self._tasks):
            task.cancel()

    async def wait_closed(self, *, quietly: bool = False) -> None:
        """Until the member has ended and its last write with it. Raises what ended it, if it did not end by ``stop``."""
        await asyncio.wait([self._closed])
        pending = [task for task in self._tasks if task is not asyncio.current_task()]
        if pending:
            await asyncio.wait(pending)
        if self._failure is not None and not quietly:
            raise self._failure

    def _speaks_for_another(self, frame: wire.Frame, bearer: str) -> bool:
        sender = frame.sender
        known = next((m for m in self._applied_conf.members if m.raft_id == sender.raft_id), None)
        return (
            sender.node_id != bearer
            or (known is not None and known.node_id != bearer)
            or any(item.frm != sender.raft_id for item in frame.items)
        )

    # -- helpers of the above -----------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if self._closed.done() or not self._accepting:
            raise Stopped(str(self._failure) if self._failure else "")

    def require_leader(self) -> None:
        self._require_open()
        if self.core.leading is None:
            raise NotLeader(self.leader())

    def leader(self) -> Member | None:
        leader = self.core.leader
        if not leader:
            return None
        return self.core.conf.get(leader) or self._book.get(leader)

    async def logged(self, index: int) -> None:
        future: asyncio.Future[object] = self._loop.create_future()
        self._proposals.logged(index, self.core.term, future)
        self._wake()
        await future

    async def hand_over(self, to: int) -> None:
        term = self.core.term
        target = self.core.transfer(to)
        if not target:
            raise TransferFailed("there is no other voter to hand leadership to")
        self._wake()
        while (
            (leading := self.core.leading) is not None
            and self.core.term == term
            and leading.transferee == target
        ):
            await self.progress()
        if self._closed.done():
            raise Stopped
        if self.core.leading is not None and self.core.term == term:
            raise TransferFailed(f"member {target} did not take over within an election timeout")
        for _ in range(self._config.election_ticks):
            if self.core.leader not in {0, self._config.raft_id}:
                return
            await self.progress()
        raise TransferFailed("leadership was given up, and nobody has taken it yet")

    async def _leave_office(self) -> None:
        """Drain, then hand over; neither may hold up the end."""
        config = self._config
        deadline = self._loop.time() + config.drain_s
        while self._proposals and self.is_leader and self._loop.time() < deadline:
            await self.progress()
        if self.is_leader and self.core.conf_voters != {config.raft_id}:
            try:
                await self.hand_over(0)
            except (TransferFailed, Stopped) as error:
                log.info("stopping without handing over: %s", error)

    async def progress(self) -> None:
        """Until the next tick or change."""
        if self._closed.done():
            raise Stopped(str(self._failure) if self._failure else "")
        future: asyncio.Future[None] = self._loop.create_future()
        self._watchers.append(future)
        await future

    # -- time ---------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """A late tick counts as many, but never as an election timeout: a host that slept must first hear its peers."""
        tick_s = self._config.tick_s
        elapsed = max(1, int((self._loop.time() - self._last_tick) / tick_s + 1e-6))
        self._last_tick += elapsed * tick_s
        self._missed_ticks += elapsed - 1
        try:
            for _ in range(min(elapsed, self._config.election_ticks - 1)):
                self.core.tick()
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return
        self._timer = self._loop.call_at(self._last_tick + tick_s, self._tick)
        self._release_watchers()
        self._wake()

    def _release_watchers(self) -> None:
        watchers, self._watchers = self._watchers, []
        settle(watchers)

    # -- the pump -----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._woken and not self._closed.done():
            self._woken = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._woken = False
        if self._closed.done():
            return
        try:
            self._offer_proposals()
            self._carry_out(self.core.flush())
            if self.core.has_ready():
                self._make_durable(self.core.ready())
            self._notice_changes()
            self._maybe_snapshot()
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def _offer_proposals(self) -> None:
        if not self._proposals.queued:
            return
        leading = self.core.leading
        if leading is not None and leading.transferee:
            return  # either somebody else leads soon, or we go on
        queue = self._proposals.take_queue()
        if leading is None:
            for _, future in queue:
                future.set_exception(NotLeader(self.leader()))
            return
        first, term = self.core.log.last_index + 1, self.core.term
        taken = self.core.propose_batch([data for data, _ in queue])
        for offset, (_, future) in enumerate(queue):
            if offset < taken:
                self._proposals.logged(first + offset, term, future)
            else:
                future.set_exception(Overloaded())

    def _carry_out(self, effects: Effects) -> None:
        self._send(effects.messages)
        for read in effects.reads:
            self._reads.confirmed(read.context, read.index)
        self._apply(effects.committed)
        self._reads.applied(self._applied)
        for raft_id in effects.snapshots:
            self._start_sender(raft_id)
        if len(effects.committed) >= self.core.settings.max_handed:
            self._wake()  # in slices, so that heartbeats get their turn

    def _apply(self, committed: tuple[Entry, ...]) -> None:
        for entry in committed:
            result: object = None
            if entry.kind == EntryKind.DATA:
                result = self._fsm.apply(entry.index, entry.term, entry.data)
            elif entry.kind == EntryKind.CONF:
                self._applied_conf = self._applied_conf.apply(decode_change(entry.data))
            self._applied = entry.index
            self._bytes_since_snapshot += len(entry.data)
            self._proposals.applied(entry.index, entry.term, result)

    def _send(self, messages: tuple[Message, ...]) -> None:
        """Everything for one peer in one frame, or a few when it is much."""
        batches: dict[int, list[wire.FrameItem]] = {}
        sizes: dict[int, int] = {}
        for m in messages:
            batches.setdefault(m.to, []).append(m)
            entries = getattr(m, "entries", None)
            if entries:
                sizes[m.to] = sizes.get(m.to, 0) + sum(len(e.data) for e in entries)
                if sizes[m.to] >= FRAME_BYTES:
                    self._send_frame(m.to, batches.pop(m.to))
                    sizes[m.to] = 0
        for to, items in batches.items():
            self._send_frame(to, items)

    def _send_frame(self, to: int, items: list[wire.FrameItem]) -> None:
        member = self._book.get(to) or self.core.conf.get(to) or self._removed_member(to)
        if member is not None:
            self._transport.send(
                member, wire.encode(wire.Frame(self._config.cluster_id, self._me, tuple(items)))
            )

    def _removed_member(self, raft_id: int) -> Member | None:
        return next((m for m in self.core.conf.removed if m.raft_id == raft_id), None)

    # -- disk ---------------------------------------------------------------------------------------------------------

    def _make_durable(self, ready: Ready) -> None:
        if not ready.must_sync:
            self._send(ready.messages)
            self.core.advance()
            return
        self._writing = self._spawn(self._write(ready))

    async def _write(self, ready: Ready) -> None:
        try:
            meta, data = ready.snapshot, b""
            if meta is not None:
                data = self._arrived.pop(meta.index)
                for step in self._store.install_steps(meta, data):
                    await self._disk.run(step)
            await self._disk.run(lambda: self._store.append(ready.hard_state, ready.entries))
            if self._closed.done():
                return
            if meta is not None:
                self._fsm.restore(meta.index, (data,))
                self._applied = self._snapshot_index = meta.index
                self._applied_conf = meta.conf
                self._bytes_since_snapshot = 0
            self._send(ready.messages)
            self.core.advance()
        except Exception as error:  # noqa: BLE001
            self._fail(error)
        self._wake()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def _maybe_snapshot(self) -> None:
        config = self._config
        due = (
            self._applied - self._snapshot_index >= config.snapshot_interval
            or self._bytes_since_snapshot >= config.snapshot_bytes
        )
        if due and not self._snapshotting and self.core.pending_snapshot is None:
            self._snapshotting = True
            self._spawn(self._take_snapshot())

    def _snapshot_meta(self) -> SnapshotMeta:
        term = self.core.log.term(self._applied)
        assert term is not None, "applied entries are held until a snapshot covers them"
        return SnapshotMeta(self._applied, term, self._applied_conf)

    async def _take_snapshot(self) -> None:
        try:
            meta, data = self._snapshot_meta(), b"".join(self._fsm.snapshot())
            self._bytes_since_snapshot = 0
            keep_from = self._keep_from(meta.index)
            for step in self._store.snapshot_steps(meta, data, keep_from=keep_from):
                await self._disk.run(step)
            if self._closed.done():
                return
            self._snapshot_index = max(self._snapshot_index, meta.index)
            self.core.compact(keep_from - 1)
        except Exception as error:  # noqa: BLE001
            self._fail(error)
        finally:
            self._snapshotting = False

    def _keep_from(self, index: int) -> int:
        """The first entry worth keeping behind a snapshot at ``index``."""
        entries = self.core.log
        lowest = max(entries.first_index, index - self._config.keep_entries + 1)
        room = self._config.keep_bytes
        first = index + 1
        for entry in reversed(entries.slice(lowest, index)):
            room -= len(entry.data)
            if room < 0:
                break
            first = entry.index
        return first

    def _start_sender(self, raft_id: int) -> None:
        if raft_id in self._senders:
            self._senders[raft_id][1].cancel()
        self._transfers += 1
        sender = SnapshotSender(
            self._config,
            lambda chunk: self._send_frame(raft_id, [chunk]),
            to=raft_id,
            term=self.core.term,
            transfer=self._transfers,
            meta=(meta := self._snapshot_meta()),
            data=b"".join(self._fsm.snapshot()),
        )
        log.info("sending a snapshot at %d to member %d", meta.index, raft_id)
        self._senders[raft_id] = (sender, self._spawn(self._send_snapshot(raft_id, sender, meta.index)))

    async def _send_snapshot(self, raft_id: int, sender: SnapshotSender, index: int) -> None:
        arrived = False
        try:
            arrived = await sender.run()
        finally:
            current = self._senders.get(raft_id)
            if current is not None and current[0] is sender:
                del self._senders[raft_id]
                self.core.report_snapshot(raft_id, index if arrived else None)
                self._wake()

    def _on_chunk(self, chunk: wire.SnapshotChunk) -> None:
        if chunk.term < self.core.term or chunk.to != self._config.raft_id:
            return
        following, data = self._receiver.take(chunk)
        if data is not None:
            self._arrived[chunk.meta.index] = data
            self.core.step(InstallSnapshot(chunk.frm, chunk.to, chunk.term, chunk.meta))
            if self.core.pending_snapshot is not chunk.meta:
                del self._arrived[chunk.meta.index]
        receipt = wire.ChunkReceipt(self._config.raft_id, chunk.frm, chunk.transfer, following)
        self._send_frame(chunk.frm, [receipt])

    # -- changes and the end ------------------------------------------------------------------------------------------

    def _outline(self) -> tuple[object, ...]:
        core = self.core
        return (core.role, core.leader, self._applied_conf, core.removed)

    def _notice_changes(self) -> None:
        core = self.core
        if self._seen_leader != (core.term, core.leader):
            self._seen_leader = (core.term, core.leader)
            self._proposals.lose_older_than(core.term if core.leading else core.term + 1)
            self._reads.fail_asked(lambda: NotLeader(self.leader()))
        outline = self._outline()
        if outline != self._seen:
            self._seen = outline
            self._release_watchers()
            self._tell()

    def _tell(self) -> None:
        status = self.status()
        for callback in self._callbacks:
            try:
                callback(status)
            except Exception:
                log.exception("a listener for raft changes failed")

    def _fail(self, error: Exception) -> None:
        """Going on could spread a wrong state or forget a promise: end, loudly."""
        if self._closed.done():
            return
        self._failure = error
        trace = None if isinstance(error, ReleaseTooOld) else error
        log.critical("raft member %d stops: %s", self._config.raft_id, error, exc_info=trace)
        self._close()

    def _close(self) -> None:
        if self._closed.done():
            return
        self._closed.set_result(None)
        self._timer.cancel()
        reason = str(self._failure) if self._failure else ""
        self._proposals.end(lambda: Stopped(reason))
        self._reads.end(lambda: Stopped(reason))
        self._release_watchers()
        for _, task in self._senders.values():
            task.cancel()
        self._tell()
