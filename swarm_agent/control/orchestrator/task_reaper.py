"""Which tasks and revisions are forgotten."""

from __future__ import annotations

from swarm_agent.control.orchestrator.slot import newest
from swarm_agent.control.tasks import live
from swarm_agent.control.transaction import Transaction
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Service, Task

KEPT_REVISIONS = 10


def reap_place(p: Transaction, service: Service | None, tasks: list[Task]) -> None:
    """Delete what is to be removed and has ended, then the oldest history of the place beyond the limit. What is told to stop and has
    not ended, for its node is lost perhaps, is no history yet; the last task of a place without a live one stays, for it says why."""
    if len(tasks) == 1 and live(tasks[0]):
        return
    kept = [t for t in tasks if not forget_removed(p, t) and (live(t) or _has_ended(t))]
    limit = history_limit(p, service)
    if limit < 0 or len(kept) <= limit:
        return
    iteration = service.job.iteration if service is not None and service.job is not None else 0
    present = [t for t in tasks if t.iteration == iteration]
    last = newest(present) if present and not any(live(t) for t in present) else None
    history = [t for t in kept if t is not last and _is_history(service, t)]
    history.sort(key=lambda t: (t.status.timestamp, t.created_at))
    for task in history[: len(kept) - limit]:
        p.delete(task)


def _has_ended(task: Task) -> bool:
    return task.status.state.terminal or not task.node_id


def _is_history(service: Service | None, task: Task) -> bool:
    """Ended, and nobody counts on it: a job counts those of its run that are complete, an update those that failed in it."""
    if not _has_ended(task):
        return False
    if service is None:
        return True
    if live(task):
        return service.job is not None and task.iteration != service.job.iteration
    status = service.update_status
    return not (
        status is not None
        and status.state in ("updating", "rollback_started")
        and task.revision_id == service.revision_id
        and task.created_at >= status.started_at
        and task.status.state in (TaskState.FAILED, TaskState.REJECTED)
        and task.failures < 2
    )


def forget_removed(p: Transaction, task: Task) -> bool:
    """Delete a task that is to be removed, once nothing of it can run any more; whether it was."""
    if task.desired_state != TaskState.REMOVE:
        return False
    never_ran = not task.node_id
    if never_ran or task.status.state.terminal or p.view.nodes.get(task.node_id) is None:
        p.delete(task)
        return True
    return False


def history_limit(p: Transaction, service: Service | None) -> int:
    """How many tasks a slot keeps, the live one among them; negative: all."""
    cluster = p.view.cluster
    limit = defaults.history_limit(cluster.spec) if cluster is not None else defaults.TASK_HISTORY_LIMIT
    if service is not None:
        attempts = defaults.restart(service.spec.task_template).max_attempts
        if attempts:
            return attempts + 1
    return limit


def reap_revisions(p: Transaction, service_id: str) -> None:
    """Keep revisions a task points at, the present one, and the last ten; all of a removed service's go with its tasks."""
    service = p.view.services.get(service_id)
    found = list(p.view.revisions.by("service", service_id))
    if service is not None and len(found) <= KEPT_REVISIONS:
        return
    used = {t.revision_id for t in p.view.tasks.by("service", service_id)}
    if service is not None:
        used |= {service.revision_id, service.previous_revision_id}
    revisions = sorted(found, key=lambda r: (r.version == 0, r.created_at))
    spare = [r for r in revisions if r.id not in used]
    surplus = len(spare) if service is None else max(0, len(spare) - KEPT_REVISIONS)
    for revision in spare[:surplus]:
        p.delete(revision)
