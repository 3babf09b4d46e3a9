"""Why a service is as it is, and what happened in one of its places: read from the rows, and the reasons of waiting tasks
from the nodes as they are now."""

from __future__ import annotations

from typing import NamedTuple

from swarm_agent.control.admission import held_ingress
from swarm_agent.control.controllers import Quarantine
from swarm_agent.control.orchestrator import dependencies, global_, jobs
from swarm_agent.control.scheduler.rejections import ADDRESS, Explanation, explain
from swarm_agent.control.scheduler.usage import ClusterUsage
from swarm_agent.control.tasks import at_work, draining, live, lost_node, moved_from
from swarm_agent.objects import defaults
from swarm_agent.objects.durations import duration_text
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.options import options
from swarm_agent.objects.records import Reason, Service, Task
from swarm_agent.objects.timetable import Timetable
from swarm_agent.store import View


class TaskReport(NamedTuple):
    """What is to be said of a task that is not simply running."""

    task: Task
    reasons: tuple[Reason, ...]
    notes: tuple[str, ...]


class ServiceReport(NamedTuple):
    """What is to be said of a service, and of those of its tasks that are not simply running."""

    notes: tuple[str, ...]
    tasks: tuple[TaskReport, ...]


class HistoryEntry(NamedTuple):
    task: Task
    revision: int
    image: str
    text: str


def standing(
    view: View, usage: ClusterUsage, service: Service, now: int, quarantine: Quarantine | None = None
) -> ServiceReport:
    """``now``: nanoseconds. Looks at every node for each revision that waits."""
    tasks = sorted(view.tasks.by("service", service.id), key=lambda t: (str(t.place), t.created_at))
    told = []
    seen: dict[tuple[str, str, str], Explanation] = {}
    for task in tasks:
        status = task.status
        if not live(task) or (status.state == TaskState.RUNNING and not task.reasons and not status.err):
            continue
        if task.status.state == TaskState.COMPLETE:
            continue
        found = _explained(view, usage, service, task, seen)
        notes = _task(view, task, now)
        if found is not None and found.fits:
            notes.append(f"{found.fits} node{'' if found.fits == 1 else 's'} would take it by now")
        told.append(TaskReport(task, task.reasons if found is None else found.reasons, tuple(notes)))
    notes = _service(view, service, tasks, now)
    if quarantine is not None:
        rest = max(0, quarantine.until - now) // defaults.SECOND * defaults.SECOND
        notes.insert(
            0,
            f"nothing is decided about it for {duration_text(rest)} more: the last decision failed with an internal error,"
            f" see the leader's log: {quarantine.error}",
        )
    return ServiceReport(tuple(notes), tuple(told))


def _explained(
    view: View,
    usage: ClusterUsage,
    service: Service,
    task: Task,
    seen: dict[tuple[str, str, str], Explanation],
) -> Explanation | None:
    """Why no node takes a task now; None when that is not what it waits for.

    The reasons in its row were true when the counts last changed: another node may be the nearest miss since.
    """
    revision = view.revisions.get(task.revision_id)
    if revision is None or task.node_id or not task.reasons or any(r.code == ADDRESS for r in task.reasons):
        return None
    replaced = moved_from(view, task)
    key = (task.revision_id, "" if replaced is None else replaced.node_id, task.preset)
    if key not in seen:
        seen[key] = explain(view, usage, revision, service, key[1], key[2])
    return seen[key]


def _service(view: View, service: Service, tasks: list[Task], now: int) -> list[str]:
    out = []
    status = service.update_status
    if status is not None and status.state not in ("completed", "rollback_completed"):
        out.append(f"{status.state}: {status.message}")
    waits = dependencies.unmet(view, service)
    if waits:
        out.append(waits)
    out += held_ingress(view, service)
    alive = [t for t in tasks if at_work(t)]
    if defaults.is_job(service.spec):
        out += _job(service, tasks, now)
    elif defaults.is_global(service.spec):
        if not alive and next(global_.places(view, service), None) is None:
            out.append("no node is to have a task of it: none is active and meets its constraints")
    else:
        wanted = defaults.replicas(service.spec)
        given_up = _places_given_up(tasks)
        if given_up:
            out.append(
                f"{given_up} of {wanted} places are given up: their last task ended and the restart policy forbids another"
            )
        if not alive and not wanted:
            out.append("it is declared with 0 replicas")
    if service.rebalancing:
        out.append(f"it is being rebalanced, {service.rebalancing} tasks at a time")
    return out


def _places_given_up(tasks: list[Task]) -> int:
    places = {t.place for t in tasks if live(t)}
    ended = {t.place for t in tasks if t.desired_state == TaskState.SHUTDOWN}
    return len(ended - places)


def _job(service: Service, tasks: list[Task], now: int) -> list[str]:
    out = []
    wanted = options(service.spec.labels).schedule
    job = service.job
    if wanted is not None and job is not None:
        due = Timetable.parse(wanted.cron, wanted.timezone).after(max(job.due, now))
        rest = max(0, due - now) // defaults.SECOND * defaults.SECOND
        out.append(f"it runs next in {duration_text(rest)}, by {wanted.cron!r} in {wanted.timezone}")
        if job.skipped:
            out.append(f"{job.skipped} runs were skipped because the one before was still going on")
    if jobs.waits_for_its_time(service):
        return out
    iteration = job.iteration if job is not None else 0
    mine = [t for t in tasks if t.iteration == iteration]
    done = sum(1 for t in mine if t.status.state == TaskState.COMPLETE)
    if not defaults.is_global(service.spec):
        out.append(f"{done} of {defaults.job(service.spec).total} completed in run {iteration}")
    lost = _places_given_up(mine)
    if lost:
        out.append(f"{lost} are given up: they failed and the restart policy forbids another try")
    return out


def _task(view: View, task: Task, now: int) -> list[str]:
    out = []
    if task.desired_state == TaskState.READY and now < task.start_after:
        rest = (task.start_after - now) // defaults.SECOND * defaults.SECOND
        again = f" after {task.failures} failures in a row" if task.failures > 1 else ""
        out.append(f"waits out its restart delay{again}: {duration_text(rest)} more")
    leaving = [
        t
        for t in view.tasks.by("service", task.service_id)
        if t.place == task.place and t.id != task.id and t.node_id and not t.status.state.terminal
    ]
    for other in leaving:
        node = view.nodes.get(other.node_id)
        if live(other):
            out.append(f"is to take over from task {other.id}, which is {other.status.state.word}")
        elif lost_node(node):
            fenced = node is not None and node.status.fenced
            out.append(
                f"task {other.id} was on a node that is lost{', and is certain to have ended' if fenced else ''}"
            )
        else:
            out.append(f"waits for task {other.id} to stop")
    node = view.nodes.get(task.node_id)
    if draining(node):
        out.append("its node is being drained")
    return out


def history(view: View, task: Task) -> tuple[HistoryEntry, ...]:
    """All kept tasks of a task's place, oldest first."""
    rows = [t for t in view.tasks.by("service", task.service_id) if t.place == task.place]
    out = []
    for row in sorted(rows, key=lambda t: (t.created_at, t.attempt, t.id)):
        revision = view.revisions.get(row.revision_id)
        image = "" if revision is None else defaults.container(revision.template).image or ""
        out.append(HistoryEntry(row, revision.number if revision is not None else 0, image, _sentence(row)))
    return tuple(out)


_CAUSES = {
    "create": "made with the service",
    "scale": "made when the service was scaled up",
    "update": "made by an update",
    "restart": "made after the one before ended",
    "node down": "made because the node of the one before was lost",
    "node removed": "made because the node of the one before was removed",
    "drain": "made because the node of the one before is drained",
    "rebalance": "made to even the service out",
    "run": "made for another run of the job",
}


def _sentence(task: Task) -> str:
    text = _CAUSES.get(task.cause, task.cause)
    if task.attempt:
        text += f", restart {task.attempt} of this revision"
    ran = task.status.finished_at - task.status.started_at
    if task.status.started_at and task.status.finished_at:
        text += f"; ran {duration_text(max(0, ran) // defaults.SECOND * defaults.SECOND)}"
    if task.status.err:
        text += f"; {task.status.err}"
    return text
