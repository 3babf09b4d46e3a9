"""One test per safety rule of "In Search of an Understandable Consensus Algorithm" (numbers are its sections) and of the
thesis it grew into (numbers after T)."""

from __future__ import annotations

import pytest

from swarm_agent.raft.core import (
    Append,
    AppendReply,
    ConfChange,
    Core,
    Divergence,
    Entry,
    Heartbeat,
    HeartbeatReply,
    IllegalMove,
    InstallSnapshot,
    Knock,
    ReadReply,
    RemovedNotice,
    Role,
    SnapshotMeta,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from tests.lib.raft_cores import CoreGroup, drain, elect, group_of, make, members, of, ticks


def vote(
    frm: int, term: int, last: tuple[int, int] = (0, 0), *, pre: bool = False, transfer: bool = False
) -> VoteRequest:
    return VoteRequest(frm, 1, term, last[0], last[1], pre, transfer)


def entry(index: int, term: int) -> Entry:
    return Entry(index, term, 0, b"%d.%d" % (index, term))


def log_of(core: Core) -> list[tuple[int, int]]:
    return [(e.index, e.term) for e in core.log.slice(core.log.first_index, core.log.last_index)]


# -- 5.1 terms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message", [Append(2, 1, 3, 0, 0, 0), Heartbeat(2, 1, 3, 0), vote(2, 3), AppendReply(2, 1, 3, 0)]
)
def test_5_1_a_higher_term_is_taken_over(message: Append | Heartbeat | VoteRequest | AppendReply) -> None:
    core = make(term=1)
    core.step(message)
    assert (core.term, core.role) == (3, Role.FOLLOWER)


def test_5_1_a_leader_that_sees_a_higher_term_steps_down() -> None:
    core = make()
    elect(core)
    core.step(AppendReply(2, 1, core.term + 1, 0, rejected=True))
    assert core.role is Role.FOLLOWER


def test_5_1_messages_of_older_terms_change_nothing_and_their_leader_is_told() -> None:
    core = make(term=5, terms=[1])
    core.step(Append(2, 1, 4, 0, 0, 1, (entry(1, 4),)))
    assert (core.term, core.leader, log_of(core)) == (5, 0, [(1, 1)])
    assert [m.term for m in of(AppendReply, drain(core))] == [5]


# -- 5.2 elections ------------------------------------------------------------------------------------------------------


def test_5_2_one_vote_a_term() -> None:
    core = make(term=1)
    core.step(vote(2, 2))
    core.step(vote(3, 2))
    core.step(vote(2, 2))
    replies = [(m.to, m.granted) for m in of(VoteReply, drain(core)) if isinstance(m, VoteReply)]
    assert replies == [(2, True), (3, False), (2, True)]


def test_5_2_a_vote_survives_a_restart() -> None:
    core = make(term=2, vote=2)
    core.step(vote(3, 2))
    assert [m.granted for m in of(VoteReply, drain(core)) if isinstance(m, VoteReply)] == [False]


def test_5_2_a_vote_leaves_only_after_it_is_durable() -> None:
    core = make()
    core.step(vote(2, 2))
    assert not of(VoteReply, core.flush().messages)
    ready = core.ready()
    assert ready.must_sync
    assert (ready.hard_state.term, ready.hard_state.vote) == (2, 2)
    assert of(VoteReply, ready.messages)


def test_5_2_a_candidate_counts_its_own_vote_only_once_it_is_durable() -> None:
    core = make(conf=members(1))
    core.campaign()
    core.flush()
    assert core.leading is None
    assert core.ready().hard_state.vote == 1
    assert core.leading is None
    core.advance()
    assert core.leading is not None


def test_5_2_a_candidate_needs_a_majority_of_the_voters() -> None:
    core = make(conf=members(1, 2, 3, 4, 5, learners=[6]))
    core.campaign()
    for frm in (2, 3):
        core.step(VoteReply(frm, 1, 2, granted=True, pre=True))
    drain(core)
    assert core.leading is None
    for frm in (2, 2, 6, 9):
        core.step(VoteReply(frm, 1, 2, granted=True))
    assert core.leading is None, "twice the same, a learner and a stranger make no majority"
    core.step(VoteReply(3, 1, 2, granted=True))
    assert core.leading is not None


def test_5_2_a_candidate_follows_the_leader_of_its_term() -> None:
    core = make()
    core.campaign()
    core.step(VoteReply(2, 1, 2, granted=True, pre=True))
    assert core.role is Role.CANDIDATE
    core.step(Heartbeat(3, 1, 2, 0))
    assert (core.role, core.leader) == (Role.FOLLOWER, 3)


def test_5_2_a_candidate_without_answers_tries_again_in_time() -> None:
    core = make()
    requests = of(VoteRequest, ticks(core, 70))
    assert len(requests) >= 6
    assert core.term == 1, "asking first disturbs nobody's term"


def test_5_2_timeouts_are_spread() -> None:
    drawn = {
        next(i for i in range(40) if of(VoteRequest, ticks(core, 1)))
        for core in (make(seed=s) for s in range(60))
    }
    assert min(drawn) >= 11
    assert max(drawn) <= 19
    assert len(drawn) > 5


def test_roles_change_only_as_raft_knows() -> None:
    with pytest.raises(IllegalMove):
        make().become_leader()
    leader = make()
    elect(leader)
    before = (leader.role, leader.term, leader.vote)
    with pytest.raises(IllegalMove):
        leader.become_candidate()
    with pytest.raises(IllegalMove):
        leader.become_pre_candidate()
    with pytest.raises(IllegalMove):
        leader.become_follower(0, 0)
    assert (leader.role, leader.term, leader.vote) == before


# -- 5.3 log replication ------------------------------------------------------------------------------------------------


def test_5_3_an_append_that_does_not_fit_is_refused_with_a_hint() -> None:
    core = make(term=3, terms=[1, 1, 2, 2])
    core.step(Append(2, 1, 3, 3, 1, 0, (entry(4, 3),)))
    (reply,) = of(AppendReply, drain(core))
    assert reply == AppendReply(1, 2, 3, 3, True, 2, 1)
    assert log_of(core) == [(1, 1), (2, 1), (3, 2), (4, 2)]


def test_5_3_conflicting_entries_are_replaced() -> None:
    core = make(term=3, terms=[1, 2, 2])
    core.step(Append(2, 1, 3, 1, 1, 0, (entry(2, 3),)))
    assert log_of(core) == [(1, 1), (2, 3)]


def test_5_3_a_late_shorter_append_cuts_nothing() -> None:
    core = make(term=1)
    core.step(Append(2, 1, 1, 0, 0, 0, (entry(1, 1), entry(2, 1))))
    core.step(Append(2, 1, 1, 0, 0, 0, (entry(1, 1),)))
    core.step(Append(2, 1, 1, 0, 0, 0))
    assert log_of(core) == [(1, 1), (2, 1)]


def test_5_3_an_acknowledgement_names_what_was_checked_and_leaves_after_the_sync() -> None:
    core = make(term=1, terms=[1, 1, 1])
    core.step(Append(2, 1, 1, 0, 0, 0, (entry(1, 1),)))
    assert not of(AppendReply, core.flush().messages)
    assert [m.index for m in of(AppendReply, core.ready().messages) if isinstance(m, AppendReply)] == [1]


def test_5_3_commit_goes_no_further_than_what_was_checked() -> None:
    """Entries beyond the append may be another leader's."""
    core = make(term=2, terms=[1, 1, 1])
    core.step(Append(2, 1, 2, 1, 1, 3))
    assert core.log.commit == 1


def test_5_3_a_heartbeat_commits_no_more_than_the_follower_acknowledged() -> None:
    core = make(terms=[1])
    elect(core)
    core.step(AppendReply(2, 1, core.term, core.log.last_index))
    assert core.log.commit == 2
    beats = {m.to: m.commit for m in of(Heartbeat, ticks(core, 2)) if isinstance(m, Heartbeat)}
    assert beats == {2: 2, 3: 0}


def test_5_3_committed_entries_are_never_replaced() -> None:
    core = make(term=2, terms=[1, 1], commit=2)
    with pytest.raises(Divergence):
        core.step(Append(2, 1, 2, 1, 1, 2, (entry(2, 2),)))


def test_5_3_a_leader_brings_every_follower_log_in_line() -> None:
    """Figure 7: missing entries, extra entries, both."""
    leader_terms = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    followers = {
        2: [1, 1, 1, 4, 4, 5, 5, 6, 6],
        3: [1, 1, 1, 4],
        4: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        5: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        6: [1, 1, 1, 4, 4, 4, 4],
        7: [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    }
    conf = members(1, 2, 3, 4, 5, 6, 7)

    group = CoreGroup(
        [make(i, conf, term=7, terms=t, seed=i) for i, t in {1: leader_terms, **followers}.items()]
    )
    group.cores[1].campaign()
    group.deliver()
    group.tick(4)
    leader = group.leader
    assert leader.raft_id == 1
    assert leader.log.commit == leader.log.last_index == 11
    for core in group.cores.values():
        assert log_of(core) == log_of(leader)


def test_5_3_the_hint_skips_whole_terms() -> None:
    conf = members(1, 2, 3)

    group = CoreGroup(
        [
            make(1, conf, term=9, terms=[1] + [5] * 50),
            make(2, conf, term=9, terms=[1] + [3] * 40, seed=2),
            make(3, conf, term=9, terms=[1] + [5] * 50, seed=3),
        ]
    )
    group.cores[1].campaign()
    group.deliver()
    refusals = [m for m in group.log if isinstance(m, AppendReply) and m.rejected]
    assert 1 <= len(refusals) <= 3
    assert log_of(group.cores[2]) == log_of(group.cores[1])


# -- 5.4 safety ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "granted"), [((3, 1), False), ((1, 2), False), ((2, 2), True), ((3, 2), True), ((1, 3), True)]
)
def test_5_4_1_votes_go_only_to_logs_as_complete_as_ours(last: tuple[int, int], granted: bool) -> None:
    for pre in (False, True):
        core = make(term=3, terms=[1, 2])
        core.step(vote(2, 4, last, pre=pre))
        assert [m.granted for m in of(VoteReply, drain(core)) if isinstance(m, VoteReply)] == [granted]


def test_5_4_2_entries_of_older_terms_are_not_committed_by_counting() -> None:
    """Figure 8: a majority holds entry 2 of term 2, yet a leader of term 4 may not call it committed."""
    core = make(term=3, terms=[1, 2])
    elect(core)
    core.step(AppendReply(2, 1, core.term, 2))
    assert core.log.commit == 0
    core.step(AppendReply(2, 1, core.term, 3))
    assert core.log.commit == 3


def test_t_10_2_1_a_leader_counts_itself_only_after_its_own_sync() -> None:
    core = make(conf=members(1, 2, 3))
    elect(core)
    core.step(AppendReply(2, 1, core.term, 1))
    assert core.log.commit == 1
    core.propose_batch([b"x"])
    core.flush()
    core.ready()
    core.step(AppendReply(2, 1, core.term, 2))
    assert core.log.commit == 1, "one follower and an unsynced leader are no majority"
    core.advance()
    assert core.log.commit == 2


def test_t_10_2_1_appends_leave_while_the_disk_works() -> None:
    core = make()
    elect(core)
    core.step(AppendReply(2, 1, core.term, 1))
    drain(core)
    core.propose_batch([b"x", b"y"])
    (append,) = of(Append, core.flush().messages)
    assert isinstance(append, Append)
    assert [e.data for e in append.entries] == [b"x", b"y"]


def test_nothing_is_applied_before_it_is_durable_here() -> None:
    core = make(term=1)
    core.step(Append(2, 1, 1, 0, 0, 1, (entry(1, 1),)))
    assert core.flush().committed == ()
    core.ready()
    assert core.flush().committed == ()
    core.advance()
    assert [e.index for e in core.flush().committed] == [1]
    assert core.flush().committed == ()


def test_what_is_cut_while_it_is_written_does_not_count_as_durable() -> None:
    core = make(term=1)
    core.step(Append(2, 1, 1, 0, 0, 0, (entry(1, 1), entry(2, 1))))
    core.ready()
    core.step(Append(3, 1, 2, 0, 0, 2, (entry(1, 2), entry(2, 2))))
    core.advance()
    assert core.log.stable == 0
    assert core.flush().committed == ()
    assert [e.term for e in core.ready().entries] == [2, 2]


# -- 6 and T4 membership ------------------------------------------------------------------------------------------------


def change(raft_id: int, *, learner: bool = False, remove: bool = False) -> ConfChange:
    return ConfChange(
        members(*(() if learner else (raft_id,)), learners=[raft_id] if learner else ()).members[0], remove
    )


def test_t_4_1_one_change_at_a_time_and_not_before_an_entry_of_the_own_term_is_committed() -> None:
    core = make()
    elect(core)
    assert core.propose_conf(change(4)) == 0
    core.step(AppendReply(2, 1, core.term, 1))
    assert core.propose_conf(change(4)) == 2
    assert core.propose_conf(change(5)) == 0
    drain(core)
    core.step(AppendReply(2, 1, core.term, 2))
    assert core.conf_voters == {1, 2, 3, 4}
    assert core.propose_conf(change(5)) == 3


def test_t_4_1_what_follows_a_change_is_counted_with_the_new_membership() -> None:
    core = make(conf=members(1, 2))
    elect(core)
    core.step(AppendReply(2, 1, core.term, 1))
    core.propose_conf(change(3))
    core.propose_batch([b"after"])
    drain(core)
    core.step(AppendReply(2, 1, core.term, 3))
    assert core.conf_voters == {1, 2, 3}
    assert core.log.commit == 3, "two of three"


def test_t_4_2_1_a_learner_neither_counts_nor_runs() -> None:
    conf = members(1, learners=[2])
    core = make(2, conf)
    assert not of(VoteRequest, ticks(core, 50))
    leader = make(1, members(1, 3, learners=[2]))
    elect(leader)
    leader.step(AppendReply(2, 1, leader.term, 1))
    assert leader.log.commit == 0


def test_t_4_2_2_a_leader_is_not_removed_while_it_leads() -> None:
    core = make()
    elect(core)
    core.step(AppendReply(2, 1, core.term, 1))
    for gone in (change(1, remove=True), change(1, learner=True)):
        with pytest.raises(IllegalMove):
            core.propose_conf(gone)


def test_t_4_2_3_whoever_hears_a_leader_does_not_vote_against_it() -> None:
    core = make(term=2)
    core.step(Heartbeat(2, 1, 2, 0))
    core.step(vote(3, 9, (99, 9)))
    assert (core.term, drain(core)[1:]) == (2, [])
    core.step(vote(3, 3, (99, 9), transfer=True))
    assert core.term == 3, "unless the leader itself asked for it"


def test_a_removed_member_learns_it_when_it_asks_for_votes_or_knocks() -> None:
    core = make(term=2)
    elect(core)
    core.step(AppendReply(2, 1, core.term, 1))
    core.propose_conf(change(3, remove=True))
    drain(core)
    core.step(AppendReply(2, 1, core.term, 2))
    assert core.conf_voters == {1, 2}
    term = core.term
    core.step(VoteRequest(3, 1, 50, 99, 50))
    core.step(Knock(3, 1, 50))
    notices = of(RemovedNotice, drain(core))
    assert [(m.to, m.term) for m in notices] == [(3, term), (3, term)]
    gone = make(3, term=1)
    gone.step(notices[0])
    assert gone.removed
    assert not of(VoteRequest, ticks(gone, 60))


# -- T 9.6 pre-vote, T 6.2 check-quorum ----------------------------------------------------------------------------------


def test_t_9_6_pre_votes_bind_nobody_and_change_no_term() -> None:
    core = make(term=2)
    core.step(vote(2, 3, pre=True))
    core.step(vote(3, 3, pre=True))
    assert [m.granted for m in of(VoteReply, drain(core)) if isinstance(m, VoteReply)] == [True, True]
    assert (core.term, core.vote) == (2, 0)


def test_t_9_6_a_member_that_was_cut_off_does_not_unseat_the_leader_when_it_returns() -> None:
    group = group_of(3)
    term = group.leader.term
    group.cut(3)
    group.tick(100)
    assert group.cores[3].term == term
    group.heal()
    group.tick(10)
    assert (group.leader.raft_id, group.leader.term) == (1, term)
    assert group.cores[3].leader == 1


def test_t_6_2_a_leader_without_a_majority_steps_down() -> None:
    group = group_of(3)
    group.cut(1)
    group.tick(12)
    assert group.cores[1].role is not Role.LEADER
    group.tick(30)
    assert group.leader.raft_id in {2, 3}


def test_a_lost_connection_makes_a_follower_ask_at_once_and_a_living_leader_stays() -> None:
    group = group_of(3)
    term = group.leader.term
    group.cores[2].peer_lost(1)
    group.tick(4)
    assert any(isinstance(m, VoteRequest) and m.pre and m.frm == 2 for m in group.log)
    assert (group.leader.raft_id, group.leader.term) == (1, term)
    group.tick(4)
    assert group.cores[2].leader == 1


def test_a_dead_leader_whose_connections_broke_is_replaced_within_a_few_ticks() -> None:
    """Ticks in step are the worst case: who draws the same number splits the vote, and then a timeout passes."""
    needed = []
    for seed in range(30):
        group = group_of(3, seed=seed)
        del group.cores[1]
        for core in group.cores.values():
            core.peer_lost(1)
        waited = 0
        while not group.elected:
            group.tick()
            waited += 1
        needed.append(waited)
    assert sum(n <= 4 for n in needed) >= 15
    assert max(needed) <= 50


# -- T 3.10 transfer ----------------------------------------------------------------------------------------------------


def test_t_3_10_leadership_is_handed_over_within_one_exchange() -> None:
    group = group_of(3)
    assert group.cores[1].transfer(3) == 3
    group.deliver()
    assert group.leader.raft_id == 3


def test_t_3_10_a_successor_gets_all_entries_first() -> None:
    group = group_of(3)
    group.cut(3)
    group.cores[1].propose_batch([b"x"])
    group.deliver()
    group.heal()
    group.cores[1].transfer(3)
    group.deliver()
    assert not any(isinstance(m, TimeoutNow) for m in group.log)
    group.tick(3)
    assert group.leader.raft_id == 3
    assert [e.data for e in group.cores[3].log.slice(2, 2)] == [b"x"]


def test_t_3_10_a_transfer_that_does_not_work_is_given_up() -> None:
    group = group_of(3)
    group.cut(3)
    leader = group.cores[1]
    leader.transfer(3)
    assert leader.propose_batch([b"x"]) == 0
    group.tick(12)
    assert leader.role is Role.LEADER
    assert leader.propose_batch([b"x"]) == 1


# -- 7 snapshots --------------------------------------------------------------------------------------------------------


def test_7_a_follower_behind_the_log_gets_a_snapshot_and_then_the_rest() -> None:
    group = group_of(3)
    group.cut(3)
    leader = group.cores[1]
    leader.propose_batch([b"%d" % i for i in range(10)])
    group.deliver()
    leader.compact(leader.log.handed)
    leader.propose_batch([b"more"])
    group.deliver()
    group.heal()
    group.tick(4)
    assert (1, 3) in group.snapshots
    assert leader.leading is not None
    assert leader.leading.peers[3].flow == "snapshot"
    meta = SnapshotMeta(leader.log.base_index, leader.log.base_term, leader.conf)
    group.cores[3].step(InstallSnapshot(1, 3, leader.term, meta))
    leader.report_snapshot(3, meta.index)
    group.tick(4)
    assert group.cores[3].log.last_index == leader.log.last_index == group.cores[3].log.commit


def test_7_a_failed_snapshot_is_tried_again() -> None:
    core = make(terms=[1], base=(10, 1))
    elect(core)
    core.step(AppendReply(2, 1, core.term, 11, True, 3, 1))
    assert core.flush().snapshots == (2,)
    assert core.flush().snapshots == ()
    core.report_snapshot(2, None)
    core.step(HeartbeatReply(2, 1, core.term))
    assert core.flush().snapshots == (2,)


def test_7_an_old_snapshot_changes_nothing() -> None:
    core = make(term=2, terms=[1, 1, 2], commit=2)
    core.step(InstallSnapshot(2, 1, 2, SnapshotMeta(1, 1, members(1, 2, 3))))
    assert core.pending_snapshot is None
    assert log_of(core) == [(1, 1), (2, 1), (3, 2)]
    assert of(AppendReply, drain(core)) == [AppendReply(1, 2, 2, 2)]


def test_7_a_snapshot_of_what_we_hold_only_commits_it() -> None:
    core = make(term=2, terms=[1, 1, 2])
    core.step(InstallSnapshot(2, 1, 2, SnapshotMeta(2, 1, members(1, 2, 3))))
    assert core.pending_snapshot is None
    assert (core.log.commit, core.log.last_index) == (2, 3)


def test_7_a_snapshot_replaces_a_log_that_disagrees_and_brings_the_membership() -> None:
    core = make(term=2, terms=[1, 1, 1])
    core.step(InstallSnapshot(2, 1, 3, SnapshotMeta(8, 3, members(1, 2))))
    ready = core.ready()
    assert ready.snapshot is not None
    assert ready.must_sync
    assert of(AppendReply, ready.messages) == [AppendReply(1, 2, 3, 8)]
    core.advance()
    assert (core.log.base_index, core.log.commit, set(core.conf_voters)) == (8, 8, {1, 2})


# -- 8 and T 6.4 reads --------------------------------------------------------------------------------------------------


def test_8_a_new_leader_answers_no_read_before_it_committed_an_entry_of_its_term() -> None:
    core = make(terms=[1])
    elect(core)
    core.read_index(7)
    assert not core.flush().reads
    core.step(AppendReply(2, 1, core.term, 2))
    (beat, _) = of(Heartbeat, drain(core))
    assert isinstance(beat, Heartbeat)
    core.step(HeartbeatReply(2, 1, core.term, beat.round))
    assert [(r.context, r.index) for r in core.flush().reads] == [(7, 2)]


def ready_leader() -> Core:
    core = make()
    elect(core)
    core.step(AppendReply(2, 1, core.term, 1))
    drain(core)
    return core


def test_t_6_4_a_read_needs_a_majority_that_answered_after_it_arrived() -> None:
    core = ready_leader()
    core.step(HeartbeatReply(2, 1, core.term, 0))
    core.read_index(1)
    drain(core)
    core.step(HeartbeatReply(2, 1, core.term, 0))
    assert not core.flush().reads, "an answer to an earlier heartbeat proves nothing"
    core.step(HeartbeatReply(2, 1, core.term, 1))
    assert len(core.flush().reads) == 1


def test_t_6_4_reads_share_a_round_and_later_ones_wait_for_the_next() -> None:
    core = ready_leader()
    core.read_index(1)
    core.read_index(2)
    assert len(of(Heartbeat, core.flush().messages)) == 2
    core.read_index(3)
    assert not of(Heartbeat, core.flush().messages)
    core.step(HeartbeatReply(3, 1, core.term, 1))
    assert [r.context for r in core.flush().reads] == [1, 2]
    core.step(HeartbeatReply(3, 1, core.term, 2))
    assert [r.context for r in core.flush().reads] == [3]


def test_t_6_4_a_lost_round_is_repeated_by_the_next_heartbeat() -> None:
    core = ready_leader()
    core.read_index(1)
    drain(core)
    assert {m.round for m in of(Heartbeat, ticks(core, 2)) if isinstance(m, Heartbeat)} == {1}


def test_t_6_4_followers_read_through_the_leader() -> None:
    group = group_of(3)
    follower = group.cores[2]
    follower.read_index(42)
    group.deliver()
    assert any(isinstance(m, ReadReply) and m.context == 42 and m.index == 1 for m in group.log)
    assert make().read_index(1) is False


# -- flow control -------------------------------------------------------------------------------------------------------


def test_appends_in_flight_are_bounded_and_flow_again_when_answered() -> None:
    core = make(max_in_flight=2, max_append_bytes=1)
    elect(core)
    core.step(AppendReply(2, 1, core.term, 1))
    core.step(AppendReply(3, 1, core.term, 1))
    drain(core)
    core.propose_batch([b"a", b"b", b"c", b"d"])
    sent = [m for m in of(Append, drain(core)) if m.to == 2 and isinstance(m, Append) and m.entries]
    assert [m.entries[0].index for m in sent] == [2, 3]
    core.step(AppendReply(2, 1, core.term, 2))
    sent = [m for m in of(Append, drain(core)) if m.to == 2 and isinstance(m, Append) and m.entries]
    assert [m.entries[0].index for m in sent] == [4]


def test_uncommitted_bytes_are_bounded_and_one_entry_always_fits() -> None:
    core = make(max_uncommitted_bytes=100)
    elect(core)
    assert core.propose_batch([bytes(500)]) == 1
    assert core.propose_batch([b"x"]) == 0
    drain(core)
    core.step(AppendReply(2, 1, core.term, 2))
    assert core.propose_batch([bytes(60), bytes(60)]) == 1


def test_stale_and_repeated_answers_change_nothing() -> None:
    core = ready_leader()
    core.propose_batch([b"x"])
    drain(core)
    core.step(AppendReply(2, 1, core.term, 2))
    assert core.leading is not None
    for _ in range(2):
        core.step(AppendReply(2, 1, core.term, 1))
        core.step(AppendReply(2, 1, core.term, 0, True, 0, 0))
        assert core.leading.peers[2].match == 2
    core.validate()
