"""How tasks are made, moved and judged: the small words every controller speaks."""

from __future__ import annotations

import msgspec

from swarm_agent.control.passes import Pass
from swarm_agent.objects import defaults
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import Node, Revision, Service, Task, TaskStatus
from swarm_agent.store import View

MINUTE = 60 * defaults.SECOND


def make(
    p: Pass,
    service: Service,
    slot: int,
    *,
    desired: TaskState,
    cause: str,
    start_after: int = 0,
    attempt: int = 0,
) -> Task:
    """A new task of the service's present revision, not placed yet."""
    task = Task(
        id=p.new_id(),
        service_id=service.id,
        service_name=service.spec.name or "",
        service_labels=service.spec.labels,
        revision_id=service.revision_id,
        slot=slot,
        desired_state=desired,
        status=TaskStatus(state=TaskState.NEW, message="created", timestamp=p.now),
        start_after=start_after,
        attempt=attempt,
        cause=cause,
    )
    p.put(task)
    return task


def aim(p: Pass, task: Task, desired: TaskState) -> Task:
    """Change what is wanted of a task. Wishes to stop only ever grow."""
    if task.desired_state == desired or (
        task.desired_state > TaskState.RUNNING and desired < task.desired_state
    ):
        return task
    changed = msgspec.structs.replace(task, desired_state=desired)
    p.put(changed)
    return changed


def observe(p: Pass, task: Task, state: TaskState, message: str, err: str = "") -> Task:
    """Set the observed state of a task no node will report on."""
    status = msgspec.structs.replace(
        task.status,
        state=state,
        message=message,
        err=err,
        timestamp=p.now,
        finished_at=p.now if state.terminal else 0,
    )
    changed = msgspec.structs.replace(task, status=status)
    p.put(changed)
    return changed


def live(task: Task) -> bool:
    """Whether the task is still meant to run."""
    return task.desired_state <= TaskState.RUNNING


def invalid_node(node: Node | None) -> str:
    """Why a node may not keep tasks: "node down", "drain", "node removed"; "" when it may."""
    if node is None:
        return "node removed"
    if node.status.state == NodeState.DOWN:
        return "node down"
    return "drain" if node.spec.availability == "drain" else ""


def stopped(view: View, task: Task) -> bool:
    """Whether nothing of the task runs any more, as far as can be known."""
    if task.status.state.terminal or not task.node_id:
        return True
    node = view.nodes.get(task.node_id)
    return node is None or node.status.state == NodeState.DOWN


def misplaced(view: View, task: Task, revision: Revision | None) -> bool:
    """Whether an active node no longer meets the constraints of the task it runs."""
    node = view.nodes.get(task.node_id)
    if node is None or revision is None or node.spec.availability != "active":
        return False
    return not node_matches(defaults.constraints(revision.template), node)
