"""How tasks are made, moved and judged: the small words every controller speaks."""

from __future__ import annotations

import msgspec

from swarm_agent.control.transaction import Transaction
from swarm_agent.objects import defaults, features
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.options import options
from swarm_agent.objects.records import Node, Revision, Service, Task, TaskStatus
from swarm_agent.store import View

MINUTE = 60 * defaults.SECOND


def goal(service: Service) -> TaskState:
    """What its tasks are to reach: jobs end."""
    return TaskState.COMPLETE if defaults.is_job(service.spec) else TaskState.RUNNING


def make(
    p: Transaction,
    service: Service,
    place: int | str,
    *,
    cause: str,
    ready: bool = False,
    start_after: int = 0,
    attempt: int = 0,
    failures: int = 0,
    replaces: str = "",
    revision_id: str = "",
) -> Task:
    """A new task, not on a node yet, of the service's present revision if no other is given. ``ready``: it is prepared, and
    waits to be started."""
    waits = ready or bool(options(service.spec.labels).depends_on)
    task = Task(
        id=p.new_id(),
        service_id=service.id,
        service_name=service.spec.name or "",
        service_labels=service.spec.labels,
        revision_id=revision_id or service.revision_id,
        slot=place if isinstance(place, int) else 0,
        preset=place if isinstance(place, str) else "",
        desired_state=TaskState.READY if waits else goal(service),
        status=TaskStatus(state=TaskState.NEW, message="created", timestamp=p.now),
        start_after=start_after,
        attempt=attempt,
        failures=failures if p.level >= features.ORCHESTRATION else 0,
        replaces=replaces,
        iteration=service.job.iteration if service.job is not None else 0,
        cause=cause,
    )
    p.put(task)
    return task


def aim(p: Transaction, task: Task, desired: TaskState) -> Task:
    """Change what is wanted of a task. Wishes to stop only ever grow. One that no node ever had has then ended: nobody will report on it."""
    if task.desired_state == desired or (
        task.desired_state >= TaskState.SHUTDOWN and desired < task.desired_state
    ):
        return task
    changed = msgspec.structs.replace(task, desired_state=desired)
    if desired >= TaskState.SHUTDOWN and not task.node_id and not task.status.state.terminal:
        return observe(
            p, changed, TaskState.SHUTDOWN, "stopped before a node was found for it", task.status.err
        )
    p.put(changed)
    return changed


def observe(p: Transaction, task: Task, state: TaskState, message: str, err: str = "") -> Task:
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


def moved_from(view: View, task: Task) -> Task | None:
    """The task whose node a task is to take its work away from; ``None`` when it is no move."""
    replaced = view.tasks.get(task.replaces) if task.replaces else None
    return replaced if replaced is not None and live(replaced) and replaced.node_id else None


def live(task: Task) -> bool:
    """Whether the task is still meant to run (or to run to its end)."""
    return task.desired_state <= TaskState.COMPLETE


def at_work(task: Task) -> bool:
    """Whether it is meant to run and has not ended."""
    return live(task) and not task.status.state.terminal


def lost_node(node: Node | None) -> str:
    """Why what ran on a node is lost: "node down", "node removed"; "" when it is not."""
    if node is None:
        return "node removed"
    return "node down" if node.status.state == NodeState.DOWN else ""


def draining(node: Node | None) -> bool:
    return node is not None and node.spec.availability == "drain"


def invalid_node(node: Node | None) -> str:
    """Why a node may not keep tasks: "node down", "drain", "node removed"; "" when it may."""
    return lost_node(node) or ("drain" if draining(node) else "")


def stopped(view: View, task: Task) -> bool:
    """Whether nothing of the task runs any more, as far as can be known. Of a strict singleton that must be certain: its
    lease has ended too."""
    if task.status.state.terminal or not task.node_id:
        return True
    node = view.nodes.get(task.node_id)
    if node is None or node.status.state != NodeState.DOWN:
        return node is None
    revision = view.revisions.get(task.revision_id)
    return revision is None or not revision.singleton or node.status.fenced


def misplaced(view: View, task: Task, revision: Revision | None) -> bool:
    """Whether an active node no longer meets the constraints of the task it runs."""
    node = view.nodes.get(task.node_id)
    if node is None or revision is None or node.spec.availability != "active":
        return False
    return not node_matches(defaults.constraints(revision.template), node)
