"""Whole clusters on virtual time under seeded faults: 3, 5 and 7 members, a minute and five hundred operations each.

SWARM_SIM_SEEDS=1000 runs more stories, SWARM_SIM_FIRST=1000 begins elsewhere, SWARM_SIM_QUICK=1 makes them short. A failure says how to replay
it; ``python -m tests.sim.soak --raft SEED`` makes it small. Stories that failed once are in ``once_failed.toml`` and run always.
"""

from __future__ import annotations

import functools
import os
import tomllib
from pathlib import Path

import msgspec
import pytest

from tests.lib.raft_chaos import ChaosPlan, ChaosResult, Totals, chaos, plan_of

SEEDS = int(os.environ.get("SWARM_SIM_SEEDS", "20"))
FIRST = int(os.environ.get("SWARM_SIM_FIRST", "1"))
QUICK = os.environ.get("SWARM_SIM_QUICK", "") == "1"
MUST_HAPPEN = (
    "elections",
    "snapshots_installed",
    "membership_changes",
    "truncations",
    "torn_tails",
    "crashes",
    "paused",
    "disk_failures",
    "transfers",
    "clock_jumps",
    "demoted",
    "promoted",
    "moved",
)


class OnceFailed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seed: int
    found: str
    plan: ChaosPlan | None = None


def once_failed() -> list[OnceFailed]:
    entries = tomllib.loads((Path(__file__).parent / "once_failed.toml").read_text())
    return msgspec.convert(entries.get("raft", []), list[OnceFailed])


@functools.cache
def story(seed: int) -> ChaosResult:
    return chaos(seed, plan_of(seed, quick=QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_every_promise_is_kept(seed: int) -> None:
    totals, plan = story(seed).totals, plan_of(seed, quick=QUICK)
    assert totals.seconds >= plan.seconds
    assert totals.operations >= plan.operations
    assert totals.faults >= plan.faults


@pytest.mark.slow
def test_every_kind_of_trouble_came(capsys: pytest.CaptureFixture[str]) -> None:
    """Stories in which nothing happens prove nothing."""
    totals = sum((story(seed).totals for seed in range(FIRST, FIRST + SEEDS)), start=Totals())
    with capsys.disabled():
        print(f"\n{SEEDS} stories of raft clusters: {totals}")
    missing = [name for name in MUST_HAPPEN if not getattr(totals, name)]
    assert not missing, f"in {SEEDS} stories there was never any of: {', '.join(missing)}"


@pytest.mark.slow
def test_the_power_fails_in_every_kind_of_disk_call() -> None:
    """Crashes at write boundaries are drawn from the seed: all kinds of call must come up."""
    plan = ChaosPlan(size=3, seconds=60, operations=0, deeds=("power_cut_in_a_write",), nemesis_s=(0.2, 1.5))
    result = chaos(1, plan)
    assert set(result.power_cuts) == {"append", "sync", "rename", "remove", "sync_dir", "truncate"}


@pytest.mark.slow
@pytest.mark.parametrize("entry", once_failed(), ids=lambda entry: f"{entry.seed}")
def test_what_failed_once_does_not_fail_again(entry: OnceFailed) -> None:
    assert chaos(entry.seed, entry.plan or plan_of(entry.seed)).totals.operations, entry.found


@pytest.mark.slow
def test_the_same_seed_is_the_same_story() -> None:
    plan = ChaosPlan(size=3, seconds=10, operations=0, faults=0)
    assert chaos(7, plan) == chaos(7, plan)
    assert chaos(7, plan) != chaos(8, plan)


@pytest.mark.slow
def test_leaving_out_deeds_leaves_the_others_as_they_are() -> None:
    """What makes a failing story small."""
    plan = ChaosPlan(size=3, seconds=10, operations=0, faults=0)
    everything = {(number, name) for number, _, name in chaos(7, plan).deeds}
    some = tuple(sorted(number for number, _ in everything))[::2]
    fewer = {(number, name) for number, _, name in chaos(7, msgspec.structs.replace(plan, only=some)).deeds}
    assert fewer
    assert {number for number, _ in fewer} <= set(some)
    assert {name for number, name in fewer if (number, name) not in everything} == set()
