"""The task state machine, as a table."""

from __future__ import annotations

import itertools

import pytest

from swarm_agent.agent.fsm import Do, after_error, next_step
from swarm_agent.objects.enums import TaskState as S

DESIRED = (S.READY, S.RUNNING, S.SHUTDOWN, S.REMOVE)


@pytest.mark.parametrize(
    ("state", "desired", "do", "then", "message"),
    [
        (S.NEW, S.RUNNING, Do.MOVE, S.ACCEPTED, "accepted"),
        (S.ASSIGNED, S.RUNNING, Do.MOVE, S.ACCEPTED, "accepted"),
        (S.ACCEPTED, S.RUNNING, Do.MOVE, S.PREPARING, "preparing"),
        (S.PREPARING, S.RUNNING, Do.PREPARE, S.READY, "prepared"),
        (S.READY, S.RUNNING, Do.MOVE, S.STARTING, "starting"),
        (S.STARTING, S.RUNNING, Do.START, S.RUNNING, "started"),
        (S.RUNNING, S.RUNNING, Do.WAIT, S.COMPLETE, "finished"),
        (S.ASSIGNED, S.READY, Do.MOVE, S.ACCEPTED, "accepted"),
        (S.PREPARING, S.READY, Do.PREPARE, S.READY, "prepared"),
        (S.READY, S.READY, Do.NOTHING, None, ""),
        (S.NEW, S.SHUTDOWN, Do.SHUTDOWN, S.SHUTDOWN, "shutdown"),
        (S.PREPARING, S.SHUTDOWN, Do.SHUTDOWN, S.SHUTDOWN, "shutdown"),
        (S.RUNNING, S.REMOVE, Do.SHUTDOWN, S.SHUTDOWN, "shutdown"),
        (S.COMPLETE, S.RUNNING, Do.NOTHING, None, ""),
        (S.FAILED, S.SHUTDOWN, Do.NOTHING, None, ""),
        (S.SHUTDOWN, S.REMOVE, Do.NOTHING, None, ""),
        (S.REJECTED, S.RUNNING, Do.NOTHING, None, ""),
    ],
)
def test_a_step(state: S, desired: S, do: Do, then: S | None, message: str) -> None:
    assert next_step(state, desired) == (do, then, message)


def test_states_only_grow_and_every_walk_ends() -> None:
    for start, desired in itertools.product(S, DESIRED):
        state, steps = start, 0
        while (step := next_step(state, desired)).do is not Do.NOTHING:
            assert step.then is not None
            assert step.then > state
            state, steps = step.then, steps + 1
        assert steps <= 6
        assert state.terminal or desired == S.READY == state or start > S.READY


@pytest.mark.parametrize("state", [s for s in S if s <= S.RUNNING])
def test_what_never_started_is_rejected(state: S) -> None:
    assert after_error(state) == (S.FAILED if state in (S.STARTING, S.RUNNING) else S.REJECTED)
