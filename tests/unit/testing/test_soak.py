"""What the soak says of a failure can be pasted: the line that replays it and the entry that keeps it."""

from __future__ import annotations

import tomllib

import msgspec
import pytest

from swarm_agent.raft import RaftNode
from tests.lib import raft_chaos, sim_chaos
from tests.lib.raft_chaos import ChaosPlan, Failure, attempt
from tests.lib.sim_checks import Violation
from tests.sim.soak import Soak, entry

SHORT = ChaosPlan(size=3, seconds=8, operations=0, faults=0, invariants=False)


@pytest.mark.slow
def test_a_failure_is_told_so_that_it_can_be_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def read_barrier(self: RaftNode) -> int:
        return self.status().applied

    monkeypatch.setattr(RaftNode, "read_barrier", read_barrier)
    monkeypatch.setattr(raft_chaos, "plan_of", lambda _seed: SHORT)
    soak = Soak()
    soak.raft_story(3)
    assert (soak.raft_stories, soak.failures, soak.raft.operations) == (1, 1, 0)
    out, err = capsys.readouterr()
    assert "replay with chaos(3, ChaosPlan(" in out + err
    kept = tomllib.loads(out.partition("for once_failed.toml:\n")[2])
    (one,) = kept["raft"]
    plan = msgspec.convert(one["plan"], ChaosPlan)
    assert one["seed"] == 3
    assert isinstance(attempt(3, plan), Failure)


@pytest.mark.slow
def test_a_failure_of_a_whole_cluster_is_made_small_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chaos(seed: int, plan: sim_chaos.SimPlan | None = None) -> sim_chaos.SimResult:
        plan = plan or sim_chaos.SimPlan()
        if plan.managers >= 3 and plan.seconds > 3:
            raise Violation("two managers had duties")
        return sim_chaos.SimResult("", 0, plan.seconds, 4, 2)

    monkeypatch.setattr(sim_chaos, "chaos", chaos)
    soak = Soak()
    soak.cluster_story(5)
    (one,) = tomllib.loads(capsys.readouterr().out.partition("for once_failed.toml:\n")[2])["cluster"]
    plan = msgspec.convert(one["plan"], sim_chaos.SimPlan)
    assert (plan.managers, plan.workers, plan.people, plan.roles) == (3, 0, 1, False)
    assert plan.seconds < 6
    assert one["found"] == "two managers had duties"


@pytest.mark.slow
def test_without_failures_it_counts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raft_chaos, "plan_of", lambda _seed: SHORT)
    soak = Soak()
    soak.run(iter([3, 4]), minutes=1e-9)
    soak.raft_story(3)
    soak.cluster_story(3)
    soak.tell()
    assert soak.raft.operations > 50
    assert "0 failures; 1 raft stories" in capsys.readouterr().out


def test_plain_plans_need_no_plan() -> None:
    assert "plan" not in entry("raft", 1, ValueError("x"), ChaosPlan())
