"""The properties of figure 3 of "In Search of an Understandable Consensus Algorithm", each by trying many worlds: every arrangement of a
small cluster, or random losses and orders. ``test_paper`` has the single rules they follow from."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping

import pytest

from swarm_agent.raft.core import (
    Append,
    AppendReply,
    ConfChange,
    Core,
    Entry,
    EntryKind,
    HardState,
    Member,
    Message,
    Role,
    VoteReply,
    VoteRequest,
)
from swarm_agent.raft.core.conf import encode_change
from tests.lib.raft_cores import CoreGroup, drain, elect, make, members, of

FIVE = (1, 2, 3, 4, 5)


class World:
    """Cores and their mail, delivered in any order, lost and repeated at will. Remembers every leader there was."""

    def __init__(self, count: int, seed: int) -> None:
        self.rng = random.Random(seed)
        conf = members(*range(1, count + 1))
        self.cores = {i: make(i, conf, seed=seed * 10 + i) for i in range(1, count + 1)}
        self.mail: list[Message] = []
        self.leaders: dict[int, set[int]] = {}  # term -> who led
        self.applied: dict[int, list[Entry]] = {i: [] for i in self.cores}
        self.committed: dict[int, Entry] = {}
        self._serial = 0

    def step(self) -> None:
        rng = self.rng
        what = rng.random()
        if rng.random() < 0.002:
            for core in self.cores.values():
                core.peer_lost(core.leader)  # everybody runs for election, more or less at once
        elif self.mail and what < 0.8:
            m = self.mail[rng.randrange(len(self.mail))]
            if rng.random() < 0.9:
                self.mail.remove(m)
            if rng.random() < 0.85:
                self.cores[m.to].step(m)
        elif what < 0.96:
            rng.choice(list(self.cores.values())).tick()
        else:
            self._serial += 1
            for core in self.cores.values():
                core.propose_batch([b"%d" % self._serial])
        self._settle()

    def _settle(self) -> None:
        for raft_id, core in self.cores.items():
            effects = core.flush()
            self.applied[raft_id] += effects.committed
            self.mail += effects.messages
            if core.has_ready():
                ready = core.ready()
                core.advance()
                self.mail += ready.messages
            if core.role is Role.LEADER:
                self.leaders.setdefault(core.term, set()).add(raft_id)
            core.validate()
        del self.mail[:-60]  # the oldest are lost


def entries_of(core: Core) -> list[Entry]:
    return core.log.slice(core.log.first_index, core.log.last_index)


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    found = []
    for seed in range(12):
        world = World(3 + 2 * (seed % 2), seed)
        for _ in range(2500):
            world.step()
        found.append(world)
    return found


def test_5_2_election_safety_at_most_one_leader_in_a_term(worlds: list[World]) -> None:
    assert sum(len(world.leaders) for world in worlds) > len(worlds), "there must have been elections"
    for world in worlds:
        assert all(len(who) == 1 for who in world.leaders.values())


def test_5_3_leader_append_only() -> None:
    """A leader never overwrites or deletes entries of its own log, whatever it is told."""
    for seed in range(6):
        world = World(3, seed)
        before: dict[int, tuple[int, list[Entry]]] = {}
        for _ in range(1500):
            world.step()
            for raft_id, core in world.cores.items():
                if core.role is not Role.LEADER:
                    before.pop(raft_id, None)
                    continue
                term, old = before.get(raft_id, (core.term, []))
                now = entries_of(core)
                if term == core.term:
                    assert now[: len(old)] == old
                before[raft_id] = (core.term, now)


def test_5_3_log_matching(worlds: list[World]) -> None:
    """Two logs that hold an entry of one index and term are equal up to it."""
    compared = 0
    for world in worlds:
        for a, b in itertools.combinations(world.cores.values(), 2):
            mine, theirs = entries_of(a), entries_of(b)
            same = [i for i, (x, y) in enumerate(zip(mine, theirs, strict=False)) if x.term == y.term]
            if same:
                compared += same[-1]
                assert mine[: same[-1] + 1] == theirs[: same[-1] + 1]
    assert compared > 100


def test_5_4_3_state_machine_safety(worlds: list[World]) -> None:
    """No two members apply different entries at an index, and each applies in order without gaps."""
    applied = 0
    for world in worlds:
        for mine in world.applied.values():
            assert [e.index for e in mine] == list(range(1, len(mine) + 1))
            applied += len(mine)
        for a, b in itertools.combinations(world.applied.values(), 2):
            assert all(x == y for x, y in zip(a, b, strict=False))
    assert applied > 100


def winners(logs: Mapping[int, Iterable[int]], term: int) -> Iterable[int]:
    """Who is elected when it asks everybody."""
    for candidate in logs:
        group = CoreGroup(
            [make(i, members(*FIVE), term=term, terms=terms, seed=i) for i, terms in logs.items()]
        )
        group.cores[candidate].campaign()
        group.deliver()
        if group.cores[candidate].role is Role.LEADER:
            yield candidate


@pytest.mark.parametrize("others", [[1], [1, 1], [1, 1, 1], []])
def test_5_4_3_leader_completeness(others: list[int]) -> None:
    """Entry 2 of term 2 is on a majority of five, any majority; what the others hold is older. Whoever wins has entry 2."""
    for holders in itertools.combinations(FIVE, 3):
        logs = {i: [1, 2] if i in holders else others for i in FIVE}
        elected = set(winners(logs, term=2))
        assert elected == set(holders)


def test_5_4_1_a_longer_log_of_an_older_term_loses_against_a_later_term() -> None:
    logs = {1: [1, 1, 1, 1, 1], 2: [1, 3], 3: [1, 3], 4: [1, 3], 5: [1, 1]}
    assert set(winners(logs, term=3)) == {2, 3, 4}


def test_5_5_requests_may_arrive_twice_also_around_a_restart() -> None:
    """ "Raft RPCs are idempotent": a follower that crashed after it answered gets the request again."""
    core = make(term=1)
    append = Append(2, 1, 1, 0, 0, 0, (Entry(1, 1, 0, b"a"), Entry(2, 1, 0, b"b")))
    answers = []
    for _ in range(2):
        core.step(append)
        answers.append(of(AppendReply, drain(core)))
    assert answers[0] == answers[1]
    again = make(term=1, terms=[1, 1])
    again.step(append)
    assert of(AppendReply, drain(again)) == answers[0]
    assert again.log.last_index == 2

    vote = VoteRequest(3, 1, 5, 9, 4)
    replies = []
    for raft in (make(term=4), make(term=5, vote=3)):
        raft.step(vote)
        replies.append(of(VoteReply, drain(raft)))
    assert replies[0] == replies[1]
    assert all(m.granted for m in replies[0] if isinstance(m, VoteReply))


def test_t_3_8_the_term_survives_a_restart_as_the_vote_does() -> None:
    core = make(term=4)
    core.step(VoteRequest(2, 1, 7, 9, 6))
    ready = core.ready()
    assert (ready.hard_state.term, ready.hard_state.vote, ready.must_sync) == (7, 2, True)
    back = make(term=ready.hard_state.term, vote=ready.hard_state.vote)
    back.step(Append(3, 1, 6, 0, 0, 0, (Entry(1, 6, 0, b"old"),)))
    back.step(VoteRequest(3, 1, 7, 99, 6))
    assert back.log.last_index == 0
    assert [m.granted for m in of(VoteReply, drain(back)) if isinstance(m, VoteReply)] == [False]


# -- 6 and T4: the cluster changes --------------------------------------------------------------------------------------------


def test_t_4_1_majorities_of_neighbouring_memberships_always_meet() -> None:
    """What makes one change at a time safe, by trying all: add, remove, promote, demote from every membership of up to five."""
    tried = 0
    for count in range(1, 6):
        for learners in range(count):
            voters = range(1, count - learners + 1)
            before = members(*voters, learners=range(count - learners + 1, count + 1))
            for raft_id, learner, remove in itertools.product(range(1, 7), (False, True), (False, True)):
                after = before.apply(
                    ConfChange(Member(raft_id, f"n{raft_id}", f"a{raft_id}", learner), remove)
                )
                assert after.voters(), "somebody always votes"
                for old in majorities(before.voters()):
                    for new in majorities(after.voters()):
                        tried += 1
                        assert old & new
    assert tried > 1000


def majorities(voters: frozenset[int]) -> list[frozenset[int]]:
    need = len(voters) // 2 + 1
    return [frozenset(some) for some in itertools.combinations(sorted(voters), need)]


def test_t_4_1_a_new_voter_counts_only_once_its_change_is_committed() -> None:
    core = make(conf=members(1, 2, 3))
    elect(core)
    core.step(AppendReply(2, 1, core.term, 1))
    drain(core)
    core.propose_conf(ConfChange(Member(4, "n4", "a4")))
    drain(core)
    core.step(AppendReply(4, 1, core.term, 2))
    assert core.log.commit == 1, "4 is nobody yet"
    core.step(AppendReply(3, 1, core.term, 2))
    assert core.log.commit == 2
    assert core.conf_voters == {1, 2, 3, 4}


def test_t_4_2_4_a_leader_is_followed_by_members_that_do_not_know_it() -> None:
    """Its own change may not have reached them: "a server accepts AppendEntries requests from a leader that is not part of the
    server's latest configuration"."""
    core = make(1, members(1, 2, 3), term=2)
    change = Entry(1, 5, EntryKind.CONF, encode_change(ConfChange(Member(9, "n9", "a9"))))
    core.step(Append(9, 1, 5, 0, 0, 1, (change,)))
    drain(core)
    assert (core.leader, core.term, core.log.commit) == (9, 5, 1)
    assert 9 in core.conf_voters


def test_t_4_2_4_and_voted_for() -> None:
    core = make(1, members(1, 2, 3), term=2)
    core.step(VoteRequest(9, 1, 5, 0, 0))
    assert [m.granted for m in of(VoteReply, drain(core)) if isinstance(m, VoteReply)] == [True]
    assert core.hard_state == HardState(5, 9, 0)


# -- 7: compaction -----------------------------------------------------------------------------------------------------------


def test_7_what_is_compacted_is_still_checked_against_by_index_and_term() -> None:
    """A snapshot keeps index and term of the last entry it replaces, for the consistency check of the first entry after it."""
    core = make(term=2, terms=[1, 1, 2], commit=3)
    core.flush()
    core.compact(2)
    assert (core.log.base_index, core.log.base_term) == (2, 1)
    core.step(Append(2, 1, 2, 3, 2, 3, (Entry(4, 2, 0, b"x"),)))
    assert core.log.last_index == 4
    with pytest.raises(ValueError, match="cannot compact"):
        core.compact(4)


# -- 8: clients --------------------------------------------------------------------------------------------------------------


def test_8_a_follower_takes_no_proposals_and_says_who_leads() -> None:
    core = make(term=2)
    core.step(Append(3, 1, 2, 0, 0, 0))
    assert core.propose_batch([b"x"]) == 0
    assert core.propose_conf(ConfChange(Member(4, "n4", "a4"))) == 0
    assert core.leader == 3
