"""Majorities against the definition, tried out by brute force."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm_agent.raft.core import quorum
from swarm_agent.raft.core.conf import ConfChange, ConfState, Member
from swarm_agent.raft.core.quorum import Vote


@given(st.lists(st.integers(0, 20), max_size=9))
def test_agreed_index_is_the_highest_that_a_majority_reached(indexes: list[int]) -> None:
    reached = [i for i in range(21) if indexes and sum(x >= i for x in indexes) * 2 > len(indexes)]
    assert quorum.agreed_index(indexes) == max(reached, default=0)


@given(st.sets(st.integers(1, 7)), st.dictionaries(st.integers(1, 9), st.booleans()))
def test_tally_is_decided_exactly_when_no_further_vote_can_change_it(
    voters: set[int], votes: dict[int, bool]
) -> None:
    def majority(yes: int) -> bool:
        return bool(voters) and yes * 2 > len(voters)

    yes = sum(votes.get(v) is True for v in voters)
    open_votes = sum(v not in votes for v in voters)
    expected = Vote.WON if majority(yes) else Vote.PENDING if majority(yes + open_votes) else Vote.LOST
    assert quorum.tally(voters, votes) is expected


def test_a_majority_of_so_many() -> None:
    assert [quorum.size(n) for n in range(1, 8)] == [1, 2, 2, 3, 3, 4, 4]


def member(raft_id: int, *, learner: bool = False) -> Member:
    return Member(raft_id, f"n{raft_id}", f"a{raft_id}", learner)


def majorities(conf: ConfState) -> list[frozenset[int]]:
    voters = sorted(conf.voters())
    subsets = [
        frozenset(v for i, v in enumerate(voters) if mask >> i & 1) for mask in range(1 << len(voters))
    ]
    return [s for s in subsets if len(s) * 2 > len(voters)]


@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["voter", "learner", "remove"])), max_size=12))
def test_neighbouring_memberships_share_a_voter_in_any_two_majorities(changes: list[tuple[int, str]]) -> None:
    """Thesis section 4.1: why one change at a time needs no joint consensus."""
    conf = ConfState((member(1),))
    for raft_id, kind in changes:
        change = ConfChange(member(raft_id, learner=kind == "learner"), remove=kind == "remove")
        after = conf.apply(change)
        assert after.voters(), "somebody must be able to decide"
        assert not after.voters() & after.removed_ids()
        assert conf.removed_ids() <= after.removed_ids()
        for a in majorities(conf):
            for b in majorities(after):
                assert a & b
        conf = after


def test_the_last_voter_stays_and_the_removed_do_not_come_back() -> None:
    alone = ConfState((member(1),))
    assert alone.apply(ConfChange(member(1), remove=True)) == alone
    assert alone.apply(ConfChange(member(1, learner=True))) == alone
    two = alone.apply(ConfChange(member(2)))
    gone = two.apply(ConfChange(member(2), remove=True))
    assert gone.apply(ConfChange(member(2))) == gone
    assert [m.raft_id for m in gone.removed] == [2]
