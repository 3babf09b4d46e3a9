"""More bugs planted on purpose, around the core: elections and membership, who waits for what, snapshots on their way, the log's recovery.

As in ``test_planted_bugs``: each bug is a patch, a schedule made for its kind passes without it and fails with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable, Iterator

import pytest

from swarm_agent.objects.errors import SwarmError
from swarm_agent.raft import Member, OutcomeUnknown, RaftConfig
from swarm_agent.raft.core import (
    Append,
    AppendReply,
    ConfChange,
    ConfState,
    Core,
    Entry,
    EntryLog,
    HardState,
    Heartbeat,
    HeartbeatReply,
    ReadState,
    Role,
    SnapshotMeta,
    TimeoutNow,
    VoteRequest,
)
from swarm_agent.raft.core.leading import LeaderState
from swarm_agent.raft.driver import Driver
from swarm_agent.raft.errors import LogCorrupt, LogError
from swarm_agent.raft.log import Log, Owner, store
from swarm_agent.raft.membership import Membership
from swarm_agent.raft.pending import Logged, Reads
from swarm_agent.raft.transfer import SnapshotReceiver, SnapshotSender
from swarm_agent.raft.wire import ChunkReceipt, SnapshotChunk
from tests.lib.fake_disk import DiskFaults, FakeDisk, FakeProcessDisk
from tests.lib.fake_net import LinkFaults
from tests.lib.raft_cluster import RaftCluster, until
from tests.lib.raft_cores import drain, elect, group_of, make, members, of, ticks
from tests.lib.virtual_loop import run

Patch = Callable[[pytest.MonkeyPatch], None]
Schedule = Callable[[], None]

OWNER = Owner("c", "n", 1)
CONF = ConfState((Member(1, "n", "a"),))


def ready_leader() -> Core:
    core = make()
    elect(core)
    core.step(AppendReply(2, 1, core.term, 1))
    drain(core)
    return core


# -- schedules: elections, commit, membership ------------------------------------------------------------------------------


def the_second_change_waits() -> None:
    core = ready_leader()
    assert core.propose_conf(ConfChange(Member(4, "n4", "a4")))
    assert not core.propose_conf(ConfChange(Member(5, "n5", "a5")))


def a_contented_follower_stays() -> None:
    core = make(term=2)
    core.step(Heartbeat(2, 1, 2, 0))
    core.step(VoteRequest(3, 1, 9, 99, 9))
    assert core.term == 2


def a_learner_is_no_majority() -> None:
    core = make(conf=members(1, 2, learners=[3, 4]))
    core.campaign()
    drain(core)
    for frm in (3, 4):
        core.step(AppendReply(frm, 1, core.term, 1))
    assert core.leading is None
    assert core.conf_voters == {1, 2}


def heartbeats_promise_what_is_there() -> None:
    core = make(terms=[1])
    elect(core)
    core.step(AppendReply(2, 1, core.term, core.log.last_index))
    beats = {m.to: m.commit for m in of(Heartbeat, ticks(core, 2)) if isinstance(m, Heartbeat)}
    assert beats == {2: 2, 3: 0}


def applied_means_durable() -> None:
    core = make(term=1)
    core.step(Append(2, 1, 1, 0, 0, 1, (Entry(1, 1, 0, b"a"),)))
    assert core.flush().committed == ()


def a_new_leader_reads_late() -> None:
    core = make(terms=[1])
    elect(core)
    core.read_index(7)
    beats = of(Heartbeat, core.flush().messages)
    assert not beats
    core.step(HeartbeatReply(2, 1, core.term, 1))
    assert core.flush().reads == ()


def one_round_serves_those_before_it() -> None:
    core = ready_leader()
    core.read_index(1)
    core.flush()
    core.read_index(2)
    core.step(HeartbeatReply(3, 1, core.term, 1))
    assert [r.context for r in core.flush().reads] == [1]


def the_successor_has_everything() -> None:
    group = group_of(3)
    group.cut(3)
    group.cores[1].propose_batch([b"x"])
    group.deliver()
    group.cores[1].transfer(3)
    group.deliver()
    assert not any(isinstance(m, TimeoutNow) for m in group.log)


def nothing_is_proposed_while_handing_over() -> None:
    group = group_of(3)
    group.cut(3)
    group.cores[1].transfer(3)
    assert group.cores[1].propose_batch([b"x"]) == 0


def a_leader_alone_gives_up() -> None:
    group = group_of(3)
    group.cut(1)
    group.tick(13)
    assert group.cores[1].role is not Role.LEADER


def the_loss_of_a_leader_right_after_a_change() -> None:
    """Whoever is told that there are three members may lose one of them."""

    async def main() -> None:
        cluster = RaftCluster(1, 2)
        leader = await cluster.start()
        third = cluster.new_host()
        await third.start()
        cluster.net.faults = LinkFaults(delay_min=0.02, delay_max=0.02)
        await leader.add_member(third.member)
        cluster.net.isolate("host1", cluster.addresses)  # what is under way is lost too
        cluster.hosts[0].crash()
        await until(lambda: cluster.current_leader() is not None, 10)

    run(main())


# -- schedules: who waits ----------------------------------------------------------------------------------------------


def another_entry_is_not_mine() -> None:
    async def main() -> None:
        logged = Logged()
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        logged.add(7, 1, future)
        logged.applied(7, 2, "somebody else's")
        with pytest.raises(OutcomeUnknown):
            await future

    run(main())


def nobody_waits_for_ever() -> None:
    async def main() -> None:
        cluster = RaftCluster(3, 3)
        leader = await cluster.start()
        cluster.net.isolate("host1", cluster.addresses)
        async with asyncio.timeout(5):
            with pytest.raises(OutcomeUnknown):
                await leader.propose(b"x")

    run(main())


def reads_wait_for_their_index() -> None:
    async def main() -> None:
        reads = Reads(0)
        context, future = reads.ask()
        reads.confirmed(context, 5)
        reads.applied(4)
        assert not future.done()
        reads.applied(5)
        assert await future == 5

    run(main())


# -- schedules: snapshots ------------------------------------------------------------------------------------------------


def a_follower_that_needs_a_snapshot_catches_up() -> None:
    """The first transfer fails: its receiver is away."""

    async def main() -> None:
        cluster = RaftCluster(
            5,
            3,
            snapshot_interval=20,
            keep_entries=2,
            chunk_bytes=10,
            chunk_timeout_s=0.05,
            segment_bytes=500,
        )
        leader = await cluster.start()
        cluster.net.isolate("host3", cluster.addresses)
        for i in range(60):
            await leader.propose(b"%d" % i)
        cluster.net.heal()
        await until(lambda: any(p.flow == "snapshot" for p in leader.status().peers), 5)
        cluster.net.isolate("host3", cluster.addresses)
        await asyncio.sleep(1.0)
        cluster.net.heal()
        await cluster.converged(10)

    run(main())


def pieces_arrive_as_they_are() -> None:
    """Late copies and gaps change nothing."""
    receiver = SnapshotReceiver()
    meta = SnapshotMeta(5, 1, CONF)
    chunks = [SnapshotChunk(1, 2, 1, 7, meta, n, n == 2, b"%d" % n) for n in range(3)]
    whole = None
    for chunk in (chunks[0], chunks[0], chunks[2], chunks[1], chunks[0], chunks[2]):
        _, pieces = receiver.take(chunk)
        whole = whole or pieces
    assert whole == (b"0", b"1", b"2")


def receipts_of_a_former_start_prove_nothing() -> None:
    async def main() -> None:
        config = RaftConfig(
            cluster_id="c",
            raft_id=1,
            node_id="n",
            addr="a",
            chunk_bytes=1,
            chunk_timeout_s=0.1,
            chunk_attempts=2,
        )
        loop = asyncio.get_running_loop()

        def send(chunk: SnapshotChunk) -> None:
            loop.call_soon(sender.on_receipt, ChunkReceipt(2, 1, chunk.transfer - 1, chunk.number + 1))

        async def fetch(make: Callable[[], bytes | None]) -> bytes | None:
            return make()

        sender = SnapshotSender(
            config,
            send,
            fetch,
            to=2,
            term=1,
            transfers=itertools.count(7),
            meta=SnapshotMeta(5, 1, CONF),
            view=[b"abc"],
        )
        assert not await sender.run()

    run(main())


def a_snapshot_survives_the_power_cut_that_follows() -> None:
    for seed in range(20):
        platter = FakeDisk(random.Random(seed))
        log, _ = Log.open(platter.open(), OWNER, segment_bytes=100)
        for i in range(1, 6):
            log.append(HardState(1, 1, i), (Entry(i, 1, 0, bytes(50)),))
        for step in log.snapshot_steps(SnapshotMeta(5, 1, CONF), (b"state",), keep_from=6):
            while step():
                pass
        platter.crash()
        _, back = Log.open(platter.open(), OWNER)
        assert back.snapshot is not None
        assert b"".join(back.snapshot_pieces) == b"state"


# -- schedules: the log comes back ----------------------------------------------------------------------------------------


def torn() -> FakeDisk:
    """A log whose last record was cut in the middle of its write."""
    platter = FakeDisk(random.Random(1))
    log, _ = Log.open(platter.open(), OWNER)
    for i in (1, 2):
        log.append(HardState(1, 1, 0), (Entry(i, 1, 0, bytes(50)),))
    name = next(name for name in platter.contents() if name.endswith(".wal"))
    platter.replace(name, platter.contents()[name][:-20])
    return platter


def a_torn_tail_is_forgotten_for_good() -> None:
    platter = torn()
    log, back = Log.open(platter.open(), OWNER)
    assert len(back.entries) == 1
    log.append(HardState(2, 2, 0), (Entry(2, 2, 0, b"again"),))
    _, back = Log.open(platter.open(), OWNER)
    assert [e.term for e in back.entries] == [1, 2]


def damage_is_no_torn_tail() -> None:
    platter = FakeDisk(random.Random(1))
    log, _ = Log.open(platter.open(), OWNER)
    for i in (1, 2, 3):
        log.append(HardState(1, 1, 0), (Entry(i, 1, 0, bytes(50)),))
    name = next(name for name in platter.contents() if name.endswith(".wal"))
    data = bytearray(platter.contents()[name])
    data[len(data) // 2] ^= 1
    platter.replace(name, bytes(data))
    with pytest.raises(LogCorrupt):
        Log.open(platter.open(), OWNER)


def a_missing_segment_is_noticed() -> None:
    platter = FakeDisk(random.Random(1))
    log, _ = Log.open(platter.open(), OWNER, segment_bytes=100)
    for i in range(1, 8):
        log.append(HardState(1, 1, 0), (Entry(i, 1, 0, bytes(80)),))
    rest = FakeDisk(random.Random(2))
    segments = [name for name in platter.contents() if name.endswith(".wal")]
    for name in segments[:2] + segments[3:]:
        rest.replace(name, platter.contents()[name])
    with pytest.raises(LogCorrupt):
        Log.open(rest.open(), OWNER)


def one_failed_write_is_the_last() -> None:
    platter = FakeDisk(random.Random(1))
    log, _ = Log.open(platter.open(), OWNER)
    platter.faults = DiskFaults(fail_sync=True)
    with pytest.raises(OSError, match="input/output"):
        log.append(HardState(1, 1, 0), (Entry(1, 1, 0, b"x"),))
    platter.faults = DiskFaults()
    with pytest.raises(LogError):
        log.append(HardState(1, 1, 0), (Entry(1, 1, 0, b"x"),))


# -- the bugs ---------------------------------------------------------------------------------------------------------------


def changes_of_membership_overlap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaderState, "conf_change_possible", property(lambda _self: True))


def votes_against_a_leader_that_is_heard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "_in_lease", property(lambda _self: False))


def learners_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ConfState, "voters", lambda self: frozenset(m.raft_id for m in self.members))


def heartbeats_commit_beyond_the_match(patch: pytest.MonkeyPatch) -> None:
    def heartbeat(self: LeaderState) -> None:
        core = self._core
        for raft_id in self.peers:
            core.say(Heartbeat(core.raft_id, raft_id, core.term, core.log.commit, self._round))

    patch.setattr(LeaderState, "heartbeat", heartbeat)


def applied_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    def hand_over(self: EntryLog, most: int) -> tuple[Entry, ...]:
        end = min(self.commit, self.handed + most)
        handed = tuple(self.slice(self.handed + 1, end))
        self.handed = end
        return handed

    patch.setattr(EntryLog, "hand_over", hand_over)


def reads_before_the_own_term(patch: pytest.MonkeyPatch) -> None:
    original = LeaderState._start_round

    def start_round(self: LeaderState) -> None:
        own, self._own_term_start = self._own_term_start, 0
        original(self)
        self._own_term_start = own

    patch.setattr(LeaderState, "_start_round", start_round)


def a_round_confirms_reads_that_came_later(patch: pytest.MonkeyPatch) -> None:
    original = LeaderState._confirm_reads

    def confirm(self: LeaderState) -> None:
        before = len(self._core.reads)
        original(self)
        if len(self._core.reads) > before:
            self._core.reads += [ReadState(context, self._read_index) for _, context in self._reads_next]

    patch.setattr(LeaderState, "_confirm_reads", confirm)


def hands_over_to_whoever_lags(patch: pytest.MonkeyPatch) -> None:
    def hand_over(self: LeaderState) -> None:
        if self.transferee:
            self._core.say(TimeoutNow(self._core.raft_id, self.transferee, self._core.term))

    patch.setattr(LeaderState, "_maybe_hand_over", hand_over)


def proposes_while_handing_over(patch: pytest.MonkeyPatch) -> None:
    def propose(self: Core, batch: list[bytes]) -> int:
        return self.leading.propose(batch) if self.leading else 0

    patch.setattr(Core, "propose_batch", propose)


def leads_without_a_majority(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaderState, "has_quorum", lambda *_: True)


def a_change_is_answered_at_its_commit(patch: pytest.MonkeyPatch) -> None:
    async def change(self: Membership, change: ConfChange) -> None:
        while not (index := self._core.propose_conf(change)):
            await self._driver.progress()
        await self._driver.logged(index)

    patch.setattr(Membership, "_change", change)


def any_entry_at_the_index_is_ours(patch: pytest.MonkeyPatch) -> None:
    def applied(self: Logged, index: int, _term: int, result: object) -> None:
        waiting = self._waiting.pop(index, None)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_result(result)

    patch.setattr(Logged, "applied", applied)


def lost_leadership_is_told_to_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Logged, "lose_older_than", lambda *_: None)


def reads_do_not_wait_for_the_state(patch: pytest.MonkeyPatch) -> None:
    def confirmed(self: Reads, context: int, index: int) -> None:
        future = self._asked.pop(context, None)
        if future is not None:
            future.set_result(index)

    patch.setattr(Reads, "confirmed", confirmed)


def the_outcome_of_a_snapshot_is_not_reported(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "report_snapshot", lambda *_: None)


def snapshots_are_never_asked_for_twice(patch: pytest.MonkeyPatch) -> None:
    original = Driver._start_sender
    served: set[tuple[int, int]] = set()

    def send(self: Driver, raft_id: int) -> None:
        if (id(self), raft_id) not in served:
            served.add((id(self), raft_id))
            original(self, raft_id)

    patch.setattr(Driver, "_start_sender", send)


def pieces_are_taken_as_they_come(patch: pytest.MonkeyPatch) -> None:
    def take(self: SnapshotReceiver, chunk: SnapshotChunk) -> tuple[int, tuple[bytes, ...] | None]:
        self._pieces.append(chunk.data)
        if chunk.last:
            pieces, self._pieces = tuple(self._pieces), []
            return chunk.number + 1, pieces
        return chunk.number + 1, None

    patch.setattr(SnapshotReceiver, "take", take)


def any_receipt_counts(patch: pytest.MonkeyPatch) -> None:
    def on_receipt(self: SnapshotSender, receipt: ChunkReceipt) -> None:
        if self._receipt is not None and not self._receipt.done():
            self._receipt.set_result(receipt.wanted)

    patch.setattr(SnapshotSender, "on_receipt", on_receipt)


def snapshots_are_not_synced(patch: pytest.MonkeyPatch) -> None:
    original = FakeProcessDisk.sync

    def sync(self: FakeProcessDisk, name: str) -> None:
        if ".snap" not in name:
            original(self, name)

    patch.setattr(FakeProcessDisk, "sync", sync)


def a_torn_tail_stays(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Log, "_cut_tail", lambda *_args, **_kw: None)


def all_damage_is_cut_like_a_torn_tail(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(store, "anything_valid_after", lambda *_: None)


def segments_need_not_follow_each_other(patch: pytest.MonkeyPatch) -> None:
    original = Log._replay_segment

    def replay(self: Log, name: str, entries: list[Entry], *, last: bool) -> None:
        before, self._segments = self._segments, []
        original(self, name, entries, last=last)
        self._segments = before + self._segments

    patch.setattr(Log, "_replay_segment", replay)
    patch.setattr(store, "_overwrite", lambda entries, batch, _name: entries.extend(batch))


def failed_writes_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def never_mind(_self: Log) -> Iterator[None]:
        yield

    patch.setattr(Log, "_one_failure_is_enough", never_mind)


BUGS: list[tuple[Patch, Schedule]] = [
    (changes_of_membership_overlap, the_second_change_waits),
    (votes_against_a_leader_that_is_heard, a_contented_follower_stays),
    (learners_count, a_learner_is_no_majority),
    (heartbeats_commit_beyond_the_match, heartbeats_promise_what_is_there),
    (applied_before_it_is_durable, applied_means_durable),
    (reads_before_the_own_term, a_new_leader_reads_late),
    (a_round_confirms_reads_that_came_later, one_round_serves_those_before_it),
    (hands_over_to_whoever_lags, the_successor_has_everything),
    (proposes_while_handing_over, nothing_is_proposed_while_handing_over),
    (leads_without_a_majority, a_leader_alone_gives_up),
    (a_change_is_answered_at_its_commit, the_loss_of_a_leader_right_after_a_change),
    (any_entry_at_the_index_is_ours, another_entry_is_not_mine),
    (lost_leadership_is_told_to_nobody, nobody_waits_for_ever),
    (reads_do_not_wait_for_the_state, reads_wait_for_their_index),
    (the_outcome_of_a_snapshot_is_not_reported, a_follower_that_needs_a_snapshot_catches_up),
    (snapshots_are_never_asked_for_twice, a_follower_that_needs_a_snapshot_catches_up),
    (pieces_are_taken_as_they_come, pieces_arrive_as_they_are),
    (any_receipt_counts, receipts_of_a_former_start_prove_nothing),
    (snapshots_are_not_synced, a_snapshot_survives_the_power_cut_that_follows),
    (a_torn_tail_stays, a_torn_tail_is_forgotten_for_good),
    (all_damage_is_cut_like_a_torn_tail, damage_is_no_torn_tail),
    (segments_need_not_follow_each_other, a_missing_segment_is_noticed),
    (failed_writes_are_forgotten, one_failed_write_is_the_last),
]


@pytest.mark.parametrize(("bug", "schedule"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
def test_the_schedule_catches_the_bug(
    bug: Patch, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule()
    bug(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError, SwarmError, pytest.fail.Exception)):
        schedule()
