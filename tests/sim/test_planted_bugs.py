"""Bugs planted on purpose: a simulator and checks that do not find them prove nothing about the code without them.

Each bug is a patch. It must be caught by the simulator within a few seeds or, where luck alone finds it too rarely, by a
schedule that was made for it. The same seeds and schedules pass without the patch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

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
from swarm_agent.raft.core.leading import Leading
from swarm_agent.raft.log import Log
from swarm_agent.raft.waiters import Reads
from swarm_agent.testing.fake_disk import FakeProcessDisk
from swarm_agent.testing.raft_cluster import RaftCluster
from swarm_agent.testing.raft_cores import drain, elect, make, of
from swarm_agent.testing.virtual_loop import run

Patch = Callable[[pytest.MonkeyPatch], None]
Schedule = Callable[[], None]

SEEDS = 12


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


# -- the bugs -------------------------------------------------------------------------------------------------------------


def leader_counts_its_unsynced_self(patch: pytest.MonkeyPatch) -> None:
    original = Leading._append

    def append(self: Leading, *args: Any) -> int:
        first = original(self, *args)
        self._own_match = self._core.log.last_index
        return first

    patch.setattr(Leading, "_append", append)


def older_terms_are_committed_by_counting(patch: pytest.MonkeyPatch) -> None:
    def maybe_commit(self: Leading) -> None:
        self._core.commit_to(quorum.agreed_index(self.match_of(v) for v in self._core.conf_voters))

    patch.setattr(Leading, "maybe_commit", maybe_commit)


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
    original = Leading._confirm_reads

    def confirm(self: Leading) -> None:
        for peer in self.peers.values():
            peer.read_round = self._round
        original(self)

    patch.setattr(Leading, "_confirm_reads", confirm)


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


BUGS: list[tuple[Patch, Schedule | None]] = [
    (leader_counts_its_unsynced_self, unsynced_leader),
    (older_terms_are_committed_by_counting, figure_8),
    (commit_passes_the_matched_prefix, stale_tail),
    (no_check_of_the_previous_term, None),
    (two_votes_in_a_term, two_candidates),
    (votes_for_incomplete_logs, None),
    (every_append_truncates, overtaken_append),
    (reads_without_a_majority, old_leader_reads),
    (promises_before_the_sync, promises_wait),
    (hard_state_is_not_synced, None),
    (entries_are_not_synced, None),
    (directory_is_not_synced, None),
    (read_contexts_get_lost, reads_return),
]
