"""Whole clusters on virtual time under seeded faults. SWARM_SIM_SEEDS=500 runs more stories, SWARM_SIM_FIRST=1000 begins elsewhere."""

from __future__ import annotations

import os

import pytest

from swarm_agent.testing.raft_chaos import ChaosPlan, chaos

SEEDS = int(os.environ.get("SWARM_SIM_SEEDS", "20"))
FIRST = int(os.environ.get("SWARM_SIM_FIRST", "1"))


def story(seed: int, plan: ChaosPlan) -> None:
    try:
        result = chaos(seed, plan)
    except BaseException as error:
        error.add_note(f"replay with chaos({seed}, {plan})")
        raise
    assert result.acknowledged > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_three_members_keep_every_promise(seed: int) -> None:
    story(seed, ChaosPlan(size=3))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST, FIRST + max(1, SEEDS // 2)))
def test_five_members_keep_every_promise(seed: int) -> None:
    story(seed, ChaosPlan(size=5, seconds=8))


@pytest.mark.slow
def test_the_same_seed_is_the_same_story() -> None:
    plan = ChaosPlan(size=3, seconds=5)
    assert chaos(7, plan) == chaos(7, plan)
    assert chaos(7, plan) != chaos(8, plan)
