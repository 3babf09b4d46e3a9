"""Members under chaos that change the keys of their logs all the time."""

from __future__ import annotations

import os

import pytest

from tests.lib.raft_rotation import rotating_chaos

pytestmark = pytest.mark.slow

SEEDS = int(os.environ.get("SWARM_SIM_SEEDS", "10"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_keys_change_all_the_time(seed: int) -> None:
    result = rotating_chaos(seed)
    assert result.rotations > 0
    assert result.chaos.totals.operations >= 80


def test_the_same_seed_is_the_same_story() -> None:
    assert rotating_chaos(3) == rotating_chaos(3)


def test_stories_cut_rotations_short_and_finish_them() -> None:
    results = [rotating_chaos(seed) for seed in range(100, 105)]
    assert sum(r.cut_short for r in results) > 5
    assert sum(r.finished for r in results) > 2
