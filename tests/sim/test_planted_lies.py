"""Bugs that tell clients something untrue, planted on purpose: the clients' histories alone must give them away.

The invariants inside the members are switched off (``invariants=False``): what is left is what a user could see. The same stories are
explained by one order when nothing is planted.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swarm_agent.raft import NotLeader, RaftNode
from swarm_agent.raft.core.leading import LeaderState
from swarm_agent.raft.pending import Logged, Proposals
from tests.lib.key_value import Applied, Command, KeyValue
from tests.lib.linearizability import NotLinearizable
from tests.lib.raft_chaos import ChaosPlan, chaos

Patch = Callable[[pytest.MonkeyPatch], None]
SEEDS = range(1, 13)


def reads_without_the_barrier(patch: pytest.MonkeyPatch) -> None:
    async def read_barrier(self: RaftNode) -> int:
        return self.status().applied

    patch.setattr(RaftNode, "read_barrier", read_barrier)


def read_index_without_a_majority(patch: pytest.MonkeyPatch) -> None:
    original = LeaderState._confirm_reads

    def confirm(self: LeaderState) -> None:
        for peer in self.peers.values():
            peer.read_round = self._round
        original(self)

    patch.setattr(LeaderState, "_confirm_reads", confirm)


def acknowledged_when_logged(patch: pytest.MonkeyPatch) -> None:
    """The write may be lost: a later leader may never have heard of it."""
    original = Proposals.logged

    def logged(self: Proposals, tickets: tuple[int, ...], first_index: int, term: int) -> None:
        for offset, ticket in enumerate(tickets):
            future = self._offered.get(ticket)
            if future is not None and not future.done():
                future.set_result(Applied(first_index + offset, done=True))
        original(self, tickets, first_index, term)

    patch.setattr(Proposals, "logged", logged)


def unknown_outcomes_are_called_failures(patch: pytest.MonkeyPatch) -> None:
    def lose(self: Logged, term: int) -> None:
        for index in [index for index, waiting in self._waiting.items() if waiting.term < term]:
            future = self._waiting.pop(index).future
            if not future.done():
                future.set_exception(NotLeader(None))

    patch.setattr(Logged, "lose_older_than", lose)


def one_write_in_a_hundred_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Everywhere alike: no comparison of members could find it."""
    original = KeyValue._carry_out

    def carry_out(self: KeyValue, command: Command) -> bool:
        return True if command.serial % 100 == 0 else original(self, command)

    patch.setattr(KeyValue, "_carry_out", carry_out)


def writes_are_applied_twice(patch: pytest.MonkeyPatch) -> None:
    original = KeyValue._carry_out

    def carry_out(self: KeyValue, command: Command) -> bool:
        if command.kind == "append" and command.serial % 50 == 0:
            original(self, command)
        return original(self, command)

    patch.setattr(KeyValue, "_carry_out", carry_out)


EVERYTHING = ChaosPlan(size=3, seconds=20, operations=0, faults=0, nemesis_s=(0.1, 1.5), invariants=False)
DEPOSED = ChaosPlan(
    size=3,
    seconds=20,
    operations=0,
    faults=0,
    nemesis_s=(0.3, 2.0),
    invariants=False,
    deeds=("reject_leader", "heal_network"),
)
LIES: list[tuple[Patch, ChaosPlan]] = [
    (reads_without_the_barrier, EVERYTHING),
    (read_index_without_a_majority, DEPOSED),
    (acknowledged_when_logged, EVERYTHING),
    (unknown_outcomes_are_called_failures, EVERYTHING),
    (one_write_in_a_hundred_is_forgotten, EVERYTHING),
    (writes_are_applied_twice, EVERYTHING),
]


@pytest.mark.slow
@pytest.mark.parametrize(("lie", "plan"), LIES, ids=[lie.__name__ for lie, _ in LIES])
def test_the_answers_give_the_lie_away(lie: Patch, plan: ChaosPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    lie(monkeypatch)
    for seed in SEEDS:
        try:
            chaos(seed, plan)
        except NotLinearizable:
            break
    else:
        pytest.fail(f"{len(SEEDS)} histories and no answer was wrong")
    monkeypatch.undo()
    chaos(seed, plan)
