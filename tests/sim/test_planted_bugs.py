"""Bugs planted on purpose: a simulator and checks that do not find them prove nothing about the code without them.

Each bug is a patch. A schedule made for its kind passes without the patch and fails with it: random stories alone find
some of these too rarely to be a gate. ``test_found_by_chance`` shows which of them the simulator finds without being told where.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import pytest

from swarm_agent.objects.errors import SwarmError
from swarm_agent.raft.core import (
    Append,
    AppendReply,
    Core,
    Entry,
    EntryLog,
    HardState,
    Heartbeat,
    VoteReply,
    VoteRequest,
    quorum,
)
from swarm_agent.raft.core.leading import LeaderState
from swarm_agent.raft.log import Log, Owner
from swarm_agent.raft.pending import Reads
from tests.lib.fake_disk import FakeDisk, FakeProcessDisk
from tests.lib.raft_cluster import RaftCluster
from tests.lib.raft_cores import drain, elect, make, members, of
from tests.lib.virtual_loop import run

Patch = Callable[[pytest.MonkeyPatch], None]
Schedule = Callable[[], None]

OWNER = Owner("c", "n", 1)


# -- schedules made for one kind of bug -----------------------------------------------------------------------------------


def figure_8() -> None:
    """An entry of an older term on a majority is not committed."""
    core = make(term=3, terms=[1, 2])
    elect(core)
    core.step(AppendReply(2, 1, core.term, 2))
    assert core.log.commit == 0


def unsynced_leader() -> None:
    """One follower and a leader whose disk still works are no majority."""
    core = make()
    elect(core)
    core.step(AppendReply(2, 1, core.term, 1))
    core.propose_batch([b"x"])
    core.flush()
    core.ready()
    core.step(AppendReply(2, 1, core.term, 2))
    assert core.log.commit == 1


def stale_tail() -> None:
    """What lies beyond the checked prefix may be anybody's."""
    core = make(term=2, terms=[1, 1, 1])
    core.step(Append(2, 1, 2, 1, 1, 3))
    assert core.log.commit == 1


def overtaken_append() -> None:
    """A late copy of an append does not undo an acknowledged one."""
    core = make(term=1)
    two = (Entry(1, 1, 0, b"a"), Entry(2, 1, 0, b"b"))
    core.step(Append(2, 1, 1, 0, 0, 0, two))
    core.step(Append(2, 1, 1, 0, 0, 0, two[:1]))
    assert core.log.last_index == 2


def two_candidates() -> None:
    core = make(term=1)
    core.step(VoteRequest(2, 1, 2, 0, 0))
    core.step(VoteRequest(3, 1, 2, 0, 0))
    assert sum(m.granted for m in of(VoteReply, drain(core)) if isinstance(m, VoteReply)) == 1


def old_leader_reads() -> None:
    """A leader that nobody hears answers no reads."""
    core = make()
    elect(core)
    core.step(AppendReply(2, 1, core.term, 1))
    drain(core)
    core.read_index(1)
    assert not core.flush().reads


def promises_wait() -> None:
    core = make(term=1)
    core.step(VoteRequest(2, 1, 2, 0, 0))
    core.step(Heartbeat(2, 1, 2, 0))
    core.step(Append(2, 1, 2, 0, 0, 0, (Entry(1, 2, 0, b"a"),)))
    assert not core.flush().messages


def reads_return() -> None:
    async def main() -> None:
        cluster = RaftCluster(1, 3)
        leader = await cluster.start()
        async with asyncio.timeout(1):
            await leader.read_barrier()

    run(main())


def fits_nowhere() -> None:
    core = make(term=2, terms=[1])
    core.step(Append(2, 1, 2, 1, 2, 0, (Entry(2, 2, 0, b"x"),)))
    assert core.log.last_index == 1


def voter_knows_more() -> None:
    core = make(term=2, terms=[1, 2])
    core.step(VoteRequest(2, 1, 3, 5, 1))
    assert not any(m.granted for m in of(VoteReply, drain(core)) if isinstance(m, VoteReply))


def alone_with_a_slow_disk() -> None:
    core = make(conf=members(1, learners=[2]))
    core.campaign()
    core.flush()
    assert core.leading is None


def power_cuts() -> None:
    """What the log said is durable survives, whatever the disk forgets."""
    for seed in range(20):
        platter = FakeDisk(random.Random(seed))
        log, _ = Log.open(platter.open(), OWNER, segment_bytes=100)
        batch = tuple(Entry(i, 1, 0, bytes(50)) for i in range(1, 4))
        for entry in batch:
            log.append(HardState(1, 1, 0), (entry,))
        log.append(HardState(5, 2, 3), ())
        platter.crash()
        _, back = Log.open(platter.open(), OWNER)
        assert (back.hard_state, back.entries) == (HardState(5, 2, 3), list(batch))


# -- the bugs -------------------------------------------------------------------------------------------------------------


def leader_counts_its_unsynced_self(patch: pytest.MonkeyPatch) -> None:
    original = LeaderState.match_of

    def match_of(self: LeaderState, raft_id: int) -> int:
        core = self._core
        return core.log.last_index if raft_id == core.raft_id else original(self, raft_id)

    patch.setattr(LeaderState, "match_of", match_of)


def older_terms_are_committed_by_counting(patch: pytest.MonkeyPatch) -> None:
    def maybe_commit(self: LeaderState) -> None:
        self._core.commit_to(quorum.agreed_index(self.match_of(v) for v in self._core.conf_voters))

    patch.setattr(LeaderState, "maybe_commit", maybe_commit)


def commit_passes_the_matched_prefix(patch: pytest.MonkeyPatch) -> None:
    original = Core._on_append

    def on_append(self: Core, m: Append) -> None:
        original(self, m)
        self.commit_to(min(m.commit, self.log.last_index))

    patch.setattr(Core, "_on_append", on_append)


def no_check_of_the_previous_term(patch: pytest.MonkeyPatch) -> None:
    original = EntryLog.merge

    def merge(self: EntryLog, prev_index: int, prev_term: int, entries: Sequence[Entry]) -> int | None:
        return original(self, prev_index, self.term(prev_index) or prev_term, entries)

    patch.setattr(EntryLog, "merge", merge)


def two_votes_in_a_term(patch: pytest.MonkeyPatch) -> None:
    original = Core._on_vote_request

    def on_vote_request(self: Core, m: VoteRequest) -> None:
        if self.leading is None and not m.pre:
            self.vote = 0
        original(self, m)

    patch.setattr(Core, "_on_vote_request", on_vote_request)


def votes_for_incomplete_logs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EntryLog, "is_up_to_date", lambda *_: True)


def every_append_truncates(patch: pytest.MonkeyPatch) -> None:
    original = EntryLog.merge

    def merge(self: EntryLog, prev_index: int, prev_term: int, entries: Sequence[Entry]) -> int | None:
        last = original(self, prev_index, prev_term, entries)
        if last is not None and self.last_index > max(last, self.commit):
            self._cut(max(last, self.commit) + 1)
        return last

    patch.setattr(EntryLog, "merge", merge)


def reads_without_a_majority(patch: pytest.MonkeyPatch) -> None:
    original = LeaderState._confirm_reads

    def confirm(self: LeaderState) -> None:
        for peer in self.peers.values():
            peer.read_round = self._round
        original(self)

    patch.setattr(LeaderState, "_confirm_reads", confirm)


def promises_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "promise", Core.say)


def hard_state_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    original = Log.append

    def append(self: Log, hard_state: HardState, entries: Sequence[Entry]) -> None:
        if entries:
            original(self, hard_state, entries)

    patch.setattr(Log, "append", append)


def entries_are_not_synced(patch: pytest.MonkeyPatch) -> None:
    original = FakeProcessDisk.sync

    def sync(self: FakeProcessDisk, name: str) -> None:
        if not name.endswith(".wal"):
            original(self, name)

    patch.setattr(FakeProcessDisk, "sync", sync)


def directory_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FakeProcessDisk, "sync_dir", lambda _self: None)


def read_contexts_get_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reads, "confirmed", lambda self, context, _index: self._asked.pop(context, None))


def own_vote_counts_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    original = Core.become_candidate

    def become_candidate(self: Core, *, transfer: bool = False) -> None:
        original(self, transfer=transfer)
        self._count_vote(self.raft_id, granted=True)

    patch.setattr(Core, "become_candidate", become_candidate)


BUGS: list[tuple[Patch, Schedule]] = [
    (leader_counts_its_unsynced_self, unsynced_leader),
    (older_terms_are_committed_by_counting, figure_8),
    (commit_passes_the_matched_prefix, stale_tail),
    (no_check_of_the_previous_term, fits_nowhere),
    (two_votes_in_a_term, two_candidates),
    (votes_for_incomplete_logs, voter_knows_more),
    (every_append_truncates, overtaken_append),
    (reads_without_a_majority, old_leader_reads),
    (promises_before_the_sync, promises_wait),
    (hard_state_is_not_synced, power_cuts),
    (entries_are_not_synced, power_cuts),
    (directory_is_not_synced, power_cuts),
    (read_contexts_get_lost, reads_return),
    (own_vote_counts_before_it_is_durable, alone_with_a_slow_disk),
]


@pytest.mark.parametrize(("bug", "schedule"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
def test_the_schedule_catches_the_bug(
    bug: Patch, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule()
    bug(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError, SwarmError)):
        schedule()
