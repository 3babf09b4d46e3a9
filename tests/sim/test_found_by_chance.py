"""Planted bugs that the simulator finds although nobody pointed at them, each within a few stories that pass without the bug.

Of the bugs planted beside this file it finds about half within fifteen short stories; those here are found in every fifth story or oftener,
so that a change of the draw does not hide them. The others need a coincidence that their schedules make by hand: that is what
the schedules are for.
"""

from __future__ import annotations

import pytest

from tests.lib.raft_chaos import ChaosPlan, ChaosResult, Failure, attempt
from tests.sim import test_planted_bugs as core_bugs
from tests.sim import test_planted_driver_bugs as driver_bugs

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
FOUND: list[core_bugs.Patch] = [
    core_bugs.commit_passes_the_matched_prefix,
    core_bugs.no_check_of_the_previous_term,
    core_bugs.votes_for_incomplete_logs,
    core_bugs.reads_without_a_majority,
    core_bugs.entries_are_not_synced,
    core_bugs.directory_is_not_synced,
    core_bugs.read_contexts_get_lost,
    driver_bugs.heartbeats_commit_beyond_the_match,
    driver_bugs.applied_before_it_is_durable,
    driver_bugs.reads_before_the_own_term,
    driver_bugs.reads_do_not_wait_for_the_state,
    driver_bugs.snapshots_are_not_synced,
    driver_bugs.a_torn_tail_stays,
    driver_bugs.segments_need_not_follow_each_other,
]
SEEDS = range(1, 31)


@pytest.mark.slow
@pytest.mark.parametrize("bug", FOUND, ids=lambda bug: bug.__name__)
def test_the_simulator_finds_it(bug: core_bugs.Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    seed = next((seed for seed in SEEDS if isinstance(attempt(seed, DUELS), Failure)), None)
    assert seed is not None, f"{len(SEEDS)} stories and nobody noticed"
    monkeypatch.undo()
    assert isinstance(attempt(seed, DUELS), ChaosResult)
