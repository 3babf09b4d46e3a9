"""A failing story becomes smaller and still fails; what does not matter goes."""

from __future__ import annotations

import pytest

from swarm_agent.raft import RaftNode
from tests.lib.raft_chaos import ChaosPlan, Failure, attempt
from tests.sim.minimise import minimise_raft


@pytest.mark.slow
def test_a_planted_bug_is_shown_by_a_small_story(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read_barrier(self: RaftNode) -> int:
        return self.status().applied

    monkeypatch.setattr(RaftNode, "read_barrier", read_barrier)
    plan = ChaosPlan(size=5, seconds=20, operations=0, faults=0, invariants=False)
    failure = attempt(3, plan)
    assert isinstance(failure, Failure)
    small = minimise_raft(3, failure, plan, attempts=40)
    assert small.seconds < plan.seconds or small.size < plan.size
    assert small.only is not None
    assert len(small.only) < len(failure.deeds)
    again = attempt(3, small)
    assert isinstance(again, Failure)
    assert type(again.error) is type(failure.error)
    assert any("replay with chaos(3, ChaosPlan(" in note for note in again.error.__notes__)
