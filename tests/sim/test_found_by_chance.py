"""Planted bugs that the simulator finds although nobody pointed at them, each within a few stories that pass without the bug.

Of the bugs planted beside this file it finds about half within fifteen short stories; those here are found fast enough to be a gate. The others
need a coincidence that their schedules make by hand: that is what the schedules are for.
"""

from __future__ import annotations

import pytest

from swarm_agent.testing.raft_chaos import ChaosPlan, ChaosResult, Failure, attempt
from tests.sim import test_planted_bugs as core_bugs
from tests.sim import test_planted_driver_bugs as driver_bugs

EVERYTHING = ChaosPlan(size=3, seconds=20, operations=0, faults=0, nemesis_s=(0.1, 1.5))
DUELS = ChaosPlan(
    size=5,
    seconds=40,
    operations=0,
    faults=0,
    nemesis_s=(0.1, 1.5),
    deeds=(
        "crash_leader",
        "reject_leader",
        "heal_network",
        "hand_over",
        "power_cut_in_a_write",
        "bad_network",
        "crash_all",
        "reset_connections",
        "slow_disk",
    ),
)
FOUND: list[tuple[core_bugs.Patch, ChaosPlan]] = [
    (core_bugs.commit_passes_the_matched_prefix, EVERYTHING),
    (core_bugs.votes_for_incomplete_logs, EVERYTHING),
    (core_bugs.reads_without_a_majority, EVERYTHING),
    (core_bugs.promises_before_the_sync, EVERYTHING),
    (core_bugs.entries_are_not_synced, EVERYTHING),
    (core_bugs.directory_is_not_synced, EVERYTHING),
    (core_bugs.read_contexts_get_lost, EVERYTHING),
    (core_bugs.two_votes_in_a_term, DUELS),
    (core_bugs.every_append_truncates, DUELS),
    (driver_bugs.heartbeats_commit_beyond_the_match, EVERYTHING),
    (driver_bugs.applied_before_it_is_durable, EVERYTHING),
    (driver_bugs.reads_do_not_wait_for_the_state, EVERYTHING),
    (driver_bugs.a_round_confirms_reads_that_came_later, EVERYTHING),
    (driver_bugs.snapshots_are_not_synced, EVERYTHING),
    (driver_bugs.a_torn_tail_stays, EVERYTHING),
]
SEEDS = range(1, 31)


@pytest.mark.slow
@pytest.mark.parametrize(("bug", "plan"), FOUND, ids=[bug.__name__ for bug, _ in FOUND])
def test_the_simulator_finds_it(
    bug: core_bugs.Patch, plan: ChaosPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    seed = next((seed for seed in SEEDS if isinstance(attempt(seed, plan), Failure)), None)
    assert seed is not None, f"{len(SEEDS)} stories and nobody noticed"
    monkeypatch.undo()
    assert isinstance(attempt(seed, plan), ChaosResult)
