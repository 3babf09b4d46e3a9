"""``Driver``: the core, the log and the transport, run by one asyncio loop.

Owns the order of things: what is sent before the disk has answered and what after, group commit, ticks, snapshots on their way. Refuses
to decide anything about consensus (``core``) or formats (``log``, ``wire``), and knows neither the state machine nor who waits for
what: its owner does (``node``), on whatever loop that lives. The two speak through mailboxes (``loops``), in order.

One ``_pump`` per pass of the loop does everything that became possible: offers queued proposals, sends what needs no disk, hands on what
is committed, and gives the next batch to the disk unless one is there already. What arrives while the disk works
is the next batch: group commit without a timer. Time comes from the loop, blocking goes through ``disk.run``, so
the same code runs in virtual time.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Coroutine, Iterable
from typing import Protocol

import msgspec

from swarm_agent.objects.errors import ReleaseTooOld
from swarm_agent.raft import wire
from swarm_agent.raft.config import RaftConfig, Retention
from swarm_agent.raft.core import (
    Core,
    Effects,
    Entry,
    InstallSnapshot,
    Member,
    Message,
    Ready,
    SnapshotMeta,
)
from swarm_agent.raft.disk import Disk
from swarm_agent.raft.errors import NotLeader, Overloaded, Stopped, TransferFailed
from swarm_agent.raft.log import Log, Recovered
from swarm_agent.raft.membership import Membership
from swarm_agent.raft.pending import Logged, settle
from swarm_agent.raft.status import PeerProgress, RaftStatus
from swarm_agent.raft.transfer import SnapshotReceiver, SnapshotSender

log = logging.getLogger(__name__)
FRAME_BYTES = 1 << 20  # a frame takes no more messages once it holds so many bytes of entries
State = tuple[SnapshotMeta, Iterable[bytes]]
PART_ENTRIES = 64  # committed entries handed on in one call: the owner may do something else between two


class DriverListener(Protocol):
    """What the driver tells its owner. Every call is posted, none returns anything."""

    def logged(self, tickets: tuple[int, ...], first_index: int, term: int) -> None:
        """These proposals are entries now, in this order from ``first_index``."""

    def refused(self, tickets: tuple[int, ...], error: Callable[[], Exception]) -> None: ...

    def committed(self, entries: tuple[Entry, ...]) -> None:
        """Apply these, in order; each comes once."""

    def read_at(self, context: int, index: int) -> None:
        """The read may be answered from any state that has applied ``index``."""

    def read_refused(self, context: int) -> None: ...

    def leadership_changed(self, oldest_term: int, last_context: int) -> None:
        """Entries of terms before this one may be lost, and whoever was to confirm reads up to ``last_context`` leads no more."""

    def restored(self, meta: SnapshotMeta, pieces: tuple[bytes, ...]) -> None:
        """The leader's state replaces ours; it is on disk already."""

    def state_wanted(self, ticket: int) -> None:
        """Answer with ``Driver.state_is``."""

    def status_is(self, status: RaftStatus, announce: bool) -> None:
        """``announce``: role, leader, membership or ``removed`` changed."""

    def closed(self, failure: Exception | None) -> None:
        """The last call."""


class Driver:
    """One member's inner half. Everything here runs on Raft's loop."""

    def __init__(
        self,
        config: RaftConfig,
        disk: Disk,
        store: Log,
        recovered: Recovered,
        transport: wire.Transport,
        rng: random.Random,
        post: Callable[..., None],
        desk: DriverListener,
    ) -> None:
        self._config = config
        self._retention = config.retention
        self._disk = disk
        self._store = store
        self._transport = transport
        self._post = post
        self._desk = desk
        self._loop = asyncio.get_running_loop()
        self._me = Member(config.raft_id, config.node_id, config.addr)
        meta = recovered.snapshot
        self._snapshot_index = meta.index if meta else 0
        self.core = Core(
            config.core(),
            rng,
            hard_state=recovered.hard_state,
            snapshot=meta,
            entries=recovered.entries,
        )
        self._membership = Membership(self)
        self._book: dict[int, Member] = {}  # who sent from where; a joining member knows nobody else
        self._offered: dict[int, bytes] = {}  # proposals that are not in the log yet, by ticket
        self._logged = Logged()  # our own entries: changes of membership
        self._watchers: list[asyncio.Future[None]] = []
        self._last_context = 0

        self._tasks: dict[asyncio.Task[None], None] = {}
        self._snapshotting = False
        self._receiver = SnapshotReceiver()
        self._arrived: dict[
            int, tuple[bytes, ...]
        ] = {}  # whole snapshots by index, until the core has decided
        self._states: dict[int, asyncio.Future[State]] = {}  # asked of the owner, by ticket
        self._senders: dict[int, SnapshotSender] = {}
        self._sending: dict[int, asyncio.Task[None]] = {}
        self._transfers = itertools.count(rng.getrandbits(32))
        self._tickets = itertools.count()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._failure: Exception | None = None
        self._woken = False
        self._missed_ticks = 0
        self._last_tick = self._loop.time()
        self._seen = self._outline()
        self._seen_leader = (0, 0)
        self._told = self.status()
        self._timer = self._loop.call_at(self._last_tick + config.tick_s, self._tick)
        if self.core.conf_voters == {config.raft_id}:
            self.core.campaign()  # nobody else to wait for
        self._wake()

    # -- what the owner asks for --------------------------------------------------------------------------------------

    def offer(self, ticket: int, data: bytes) -> None:
        """A proposal: answered by ``logged`` or ``refused``."""
        self._offered[ticket] = data
        self._wake()

    def withdraw(self, ticket: int) -> None:
        """Whoever gave up before the entry was in the log never was there."""
        self._offered.pop(ticket, None)

    def ask(self, context: int) -> None:
        """A read: answered by ``read_at`` or ``read_refused``, or not at all."""
        if self._closed.done():
            return
        try:
            self._notice_changes()  # or a change of leader from before this call would end it
            self._last_context = context
            if not self.core.read_index(context):
                self._post(self._desk.read_refused, context)
        except Exception as error:  # noqa: BLE001
            self.fail(error)
            return
        self._wake()

    async def rotate_log(self) -> None:
        """See ``RaftNode.rotate_log``."""
        try:
            await self._rotate_log()
        except OSError as error:
            self.fail(error)
            raise Stopped(str(error)) from error

    async def _rotate_log(self) -> None:
        number = await self._disk.run(self._store.begin_segment)
        taken = False
        while (
            highest := await self._disk.run(lambda: self._store.highest_before(number))
        ) is not None or not taken:
            meta, view = await self._state()
            # a snapshot that is being written may have been begun before the call
            busy = self._snapshotting or self.core.pending_snapshot is not None
            if busy or not meta.index or meta.index < max(highest or 0, self._snapshot_index):
                await self.progress()
                continue
            self._snapshotting = taken = True
            await asyncio.wait([self._spawn(self._keep_snapshot(meta, view, keep_files=False))])
            if self._closed.done():
                raise Stopped(str(self._failure) if self._failure else "")

    async def _state(self) -> State:
        """The owner's state as it is by the time it answers."""
        if self._closed.done():
            raise Stopped(str(self._failure) if self._failure else "")
        ticket = next(self._tickets)
        future: asyncio.Future[State] = self._loop.create_future()
        self._states[ticket] = future
        self._post(self._desk.state_wanted, ticket)
        try:
            return await future
        finally:
            self._states.pop(ticket, None)

    def state_is(self, ticket: int, meta: SnapshotMeta, view: Iterable[bytes]) -> None:
        future = self._states.get(ticket)
        if future is not None and not future.done():
            future.set_result((meta, view))

    async def add_member(self, m: Member) -> None:
        await self._membership.add(m)

    async def update_member(self, m: Member) -> None:
        await self._membership.update(m)

    async def remove_member(self, raft_id: int) -> None:
        await self._membership.remove(raft_id)

    async def transfer(self, to: int) -> None:
        self.require_leader()
        await self.hand_over(to)

    async def leave_office(self) -> None:
        """Before a planned stop: let somebody else lead, if there is anybody."""
        if self.core.leading is not None and self.core.conf_voters != {self._config.raft_id}:
            try:
                await self.hand_over(0)
            except (TransferFailed, Stopped) as error:
                log.info("stopping without handing over: %s", error)

    async def close(self) -> None:
        """End, and wait for the last write."""
        self._close()
        await self.wait_ended()

    async def wait_ended(self) -> None:
        pending = [task for task in self._tasks if task is not asyncio.current_task()]
        if pending:
            await asyncio.wait(pending)

    def abandon(self) -> None:
        """End at once and without a word, as a killed process would; for simulators."""
        self._close()
        for task in list(self._tasks):
            task.cancel()

    def fail(self, error: Exception) -> None:
        """Going on could spread a wrong state or forget a promise: end, loudly."""
        if self._closed.done():
            return
        self._failure = error
        trace = None if isinstance(error, ReleaseTooOld) else error
        log.critical("raft member %d stops: %s", self._config.raft_id, error, exc_info=trace)
        self._close()

    # -- what the network brings --------------------------------------------------------------------------------------

    def receive(self, frame: bytes, peer_id: str | None = None) -> None:
        """See ``RaftNode.receive``."""
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
        if peer_id is not None and self._speaks_for_another(decoded, peer_id):
            log.warning("dropped a frame from %s in the name of another member", peer_id)
            return
        self._book[decoded.sender.raft_id] = decoded.sender
        try:
            for item in decoded.items:
                if isinstance(item, wire.SnapshotChunk):
                    self._on_chunk(item)
                elif isinstance(item, wire.ChunkReceipt):
                    if item.frm in self._senders:
                        self._senders[item.frm].on_receipt(item)
                else:
                    self.core.step(item)
        except Exception as error:  # noqa: BLE001
            self.fail(error)
            return
        self._wake()

    def peer_lost(self, raft_id: int) -> None:
        """See ``RaftNode.peer_lost``."""
        if not self._closed.done():
            self.core.peer_lost(raft_id)
            self.core.report_unreachable(raft_id)
            self._wake()

    def _speaks_for_another(self, frame: wire.Frame, peer_id: str) -> bool:
        sender = frame.sender
        known = self.core.conf.get(sender.raft_id)
        return (
            sender.node_id != peer_id
            or (known is not None and known.node_id != peer_id)
            or any(item.frm != sender.raft_id for item in frame.items)
        )

    # -- for membership ----------------------------------------------------------------------------------------------

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
            applied=core.log.handed,
            last_index=core.log.last_index,
            snapshot_index=self._snapshot_index,
            members=core.conf.members,
            peers=tuple(peers),
            removed=core.removed,
            missed_ticks=self._missed_ticks,
            failure=str(self._failure) if self._failure else "",
        )

    def require_leader(self) -> None:
        if self._closed.done():
            raise Stopped(str(self._failure) if self._failure else "")
        if self.core.leading is None:
            raise NotLeader(self.leader())

    def leader(self) -> Member | None:
        leader = self.core.leader
        if not leader:
            return None
        return self.core.conf.get(leader) or self._book.get(leader)

    async def logged(self, index: int) -> None:
        """Until the entry is committed and handed on; OutcomeUnknown when leadership is lost before."""
        future: asyncio.Future[object] = self._loop.create_future()
        self._logged.add(index, self.core.term, future)
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
            self.fail(error)
            return
        self._timer = self._loop.call_at(self._last_tick + tick_s, self._tick)
        self._release_watchers()
        self._tell(announce=False)
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
        except Exception as error:  # noqa: BLE001
            self.fail(error)

    def _offer_proposals(self) -> None:
        if not self._offered:
            return
        leading = self.core.leading
        if leading is not None and leading.transferee:
            return  # either somebody else leads soon, or we go on
        offered, self._offered = self._offered, {}
        tickets = tuple(offered)
        if leading is None:
            leader = self.leader()
            self._post(self._desk.refused, tickets, lambda: NotLeader(leader))
            return
        first, term = self.core.log.last_index + 1, self.core.term
        taken = self.core.propose_batch(list(offered.values()))
        if taken:
            self._post(self._desk.logged, tickets[:taken], first, term)
        if taken < len(tickets):
            self._post(self._desk.refused, tickets[taken:], Overloaded)

    def _carry_out(self, effects: Effects) -> None:
        self._send(effects.messages)
        for read in effects.reads:
            self._post(self._desk.read_at, read.context, read.index)
        self._hand_on(effects.committed)
        for raft_id in effects.snapshots:
            self._start_sender(raft_id)
        if effects.snapshots:
            self._tell(announce=False)
        if len(effects.committed) >= self.core.settings.max_handed:
            self._wake()  # in slices, so that heartbeats get their turn

    def _hand_on(self, committed: tuple[Entry, ...]) -> None:
        for start in range(0, len(committed), PART_ENTRIES):
            self._post(self._desk.committed, committed[start : start + PART_ENTRIES])
        if self._logged:
            for entry in committed:
                self._logged.applied(entry.index, entry.term, None)

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
        self._spawn(self._write(ready))

    async def _write(self, ready: Ready) -> None:
        try:
            meta = ready.snapshot
            pieces: tuple[bytes, ...] = ()
            if meta is not None:
                pieces = self._arrived.pop(meta.index)
                await self._run_steps(self._store.install_steps(meta, pieces))
            await self._disk.run(lambda: self._store.append(ready.hard_state, ready.entries))
            if self._closed.done():
                return
            if meta is not None:
                self._snapshot_index = meta.index
                self._post(self._desk.restored, meta, pieces)
            self._send(ready.messages)
            self.core.advance()
        except Exception as error:  # noqa: BLE001
            self.fail(error)
        self._wake()

    async def _run_steps(self, steps: Iterable[Callable[[], bool]]) -> None:
        for step in steps:
            while await self._disk.run(step):
                pass

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def keep_snapshot(self, meta: SnapshotMeta, view: Iterable[bytes]) -> None:
        """The owner's state at ``meta``: put it on disk and forget the entries it covers, unless one is under way."""
        busy = self._snapshotting or self.core.pending_snapshot is not None
        if not self._closed.done() and not busy and meta.index > self._snapshot_index:
            self._snapshotting = True
            self._spawn(self._keep_snapshot(meta, view))

    def retain(self, retention: Retention) -> None:
        self._retention = retention

    async def _keep_snapshot(
        self, meta: SnapshotMeta, view: Iterable[bytes], *, keep_files: bool = True
    ) -> None:
        """``keep_files``: also those with entries for followers that lag; memory keeps them in any case."""
        try:
            keep_from = self._keep_from(meta.index)
            keep_files_from = keep_from if keep_files else meta.index + 1
            keep_old = self._retention.old_snapshots if keep_files else 0
            steps = self._store.snapshot_steps(meta, view, keep_from=keep_files_from, keep_old=keep_old)
            await self._run_steps(steps)
            if self._closed.done():
                return
            self._snapshot_index = max(self._snapshot_index, meta.index)
            self.core.compact(keep_from - 1)
            self._tell(announce=False)
        except Exception as error:  # noqa: BLE001
            self.fail(error)
        finally:
            self._snapshotting = False

    def _keep_from(self, index: int) -> int:
        """The first entry worth keeping behind a snapshot at ``index``."""
        entries = self.core.log
        lowest = max(entries.first_index, index - self._retention.keep_entries + 1)
        room = self._config.keep_bytes
        first = index + 1
        for entry in reversed(entries.slice(lowest, index)):
            room -= len(entry.data)
            if room < 0:
                break
            first = entry.index
        return first

    def _start_sender(self, raft_id: int) -> None:
        if raft_id in self._sending:
            self._sending[raft_id].cancel()
        self._sending[raft_id] = self._spawn(self._send_snapshot(raft_id))

    async def _send_snapshot(self, raft_id: int) -> None:
        """Whatever becomes of it is reported: the peer would wait for ever otherwise."""
        arrived = 0
        me = asyncio.current_task()
        term = self.core.term
        try:
            meta, view = await self._state()
            if self.core.leading is None or self.core.term != term:
                return  # deposed while the owner was busy: only a leader sends its state
            sender = SnapshotSender(
                self._config,
                lambda chunk: self._send_frame(raft_id, [chunk]),
                self._disk.run,
                to=raft_id,
                term=term,
                transfers=self._transfers,
                meta=meta,
                view=view,
            )
            log.info("sending a snapshot at %d to member %d", meta.index, raft_id)
            self._senders[raft_id] = sender
            if await sender.run():
                arrived = meta.index
        except Stopped:
            pass
        except Exception as error:  # noqa: BLE001
            self.fail(error)
        finally:
            if self._sending.get(raft_id) is me:
                del self._sending[raft_id]
                self._senders.pop(raft_id, None)
                if not self._closed.done():
                    self.core.report_snapshot(raft_id, arrived or None)
                    self._wake()

    def _on_chunk(self, chunk: wire.SnapshotChunk) -> None:
        if chunk.term < self.core.term or chunk.to != self._config.raft_id:
            return
        wanted, pieces = self._receiver.take(chunk)
        if pieces is not None:
            self._arrived.setdefault(chunk.meta.index, pieces)  # another transfer's are the same state
            self.core.step(InstallSnapshot(chunk.frm, chunk.to, chunk.term, chunk.meta))
            pending = self.core.pending_snapshot
            if pending is None or pending.index != chunk.meta.index:
                del self._arrived[chunk.meta.index]
        receipt = wire.ChunkReceipt(self._config.raft_id, chunk.frm, chunk.transfer, wanted)
        self._send_frame(chunk.frm, [receipt])

    # -- changes and the end ------------------------------------------------------------------------------------------

    def _outline(self) -> tuple[object, ...]:
        core = self.core
        return (core.role, core.leader, core.conf, core.removed)

    def _notice_changes(self) -> None:
        core = self.core
        if self._seen_leader != (core.term, core.leader):
            self._seen_leader = (core.term, core.leader)
            oldest = core.term if core.leading else core.term + 1
            self._logged.lose_older_than(oldest)
            self._post(self._desk.leadership_changed, oldest, self._last_context)
        outline = self._outline()
        if outline != self._seen:
            self._seen = outline
            self._release_watchers()
            self._tell(announce=True)

    def _tell(self, *, announce: bool) -> None:
        status = self.status()
        if announce or status != self._told:
            self._told = status
            self._post(self._desk.status_is, status, announce)

    def _close(self) -> None:
        if self._closed.done():
            return
        self._closed.set_result(None)
        self._timer.cancel()
        self._logged.end()
        self._offered.clear()
        self._release_watchers()
        for task in self._sending.values():
            task.cancel()
        for future in self._states.values():
            if not future.done():
                future.set_exception(Stopped(str(self._failure) if self._failure else ""))
        self._tell(announce=True)
        self._post(self._desk.closed, self._failure)
