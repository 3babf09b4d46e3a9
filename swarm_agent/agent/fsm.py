"""The task state machine of a node: what to do next, given where the task stands and what is wanted (behaviour.md 18.4).

Pure. States only grow; the runner does what :func:`next_step` says and reports the outcome as a new state.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from swarm_agent.objects.enums import TaskState


class Do(enum.Enum):
    """The operations of an executor."""

    PREPARE = "prepare"
    START = "start"
    WAIT = "wait"
    SHUTDOWN = "shutdown"
    MOVE = "move"  # only the state changes
    NOTHING = "nothing"


class Step(NamedTuple):
    do: Do
    then: TaskState | None = None  # the state after success
    message: str = ""


# where the task stands -> what comes next while it is below what is wanted
_PAUSES: dict[TaskState, Step] = {
    TaskState.NEW: Step(Do.MOVE, TaskState.ACCEPTED, "accepted"),
    TaskState.PENDING: Step(Do.MOVE, TaskState.ACCEPTED, "accepted"),
    TaskState.ASSIGNED: Step(Do.MOVE, TaskState.ACCEPTED, "accepted"),
    TaskState.ACCEPTED: Step(Do.MOVE, TaskState.PREPARING, "preparing"),
    TaskState.READY: Step(Do.MOVE, TaskState.STARTING, "starting"),
}
_WORK: dict[TaskState, Step] = {
    TaskState.PREPARING: Step(Do.PREPARE, TaskState.READY, "prepared"),
    TaskState.STARTING: Step(Do.START, TaskState.RUNNING, "started"),
    TaskState.RUNNING: Step(Do.WAIT, TaskState.COMPLETE, "finished"),
}
_IDLE = Step(Do.NOTHING)


def next_step(state: TaskState, desired: TaskState) -> Step:
    """What the runner does now."""
    if desired >= TaskState.SHUTDOWN:
        return _IDLE if state.terminal else Step(Do.SHUTDOWN, TaskState.SHUTDOWN, "shutdown")
    if state in _WORK:
        return _WORK[state]
    if state < desired:
        return _PAUSES.get(state, _IDLE)
    return _IDLE


def after_error(state: TaskState) -> TaskState:
    """Where a task ends that could not go on: never started is REJECTED, started is FAILED."""
    return TaskState.FAILED if state >= TaskState.STARTING else TaskState.REJECTED
