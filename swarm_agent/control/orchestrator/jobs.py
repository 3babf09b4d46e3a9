"""Jobs: tasks that are to end with 0, so many in all, so many at a time, or one on every node; and when they run again.

A run is an iteration: a number that grows with every update, every due time of the job's timetable, and every time somebody runs
it by hand. Tasks of other iterations are history.
"""

from __future__ import annotations

import msgspec

from swarm_agent.control.orchestrator import global_
from swarm_agent.control.orchestrator.slot import given_up, reconcile_tasks
from swarm_agent.control.orchestrator.slot_index import AGAIN, KEPT
from swarm_agent.control.orchestrator.task_reaper import forget_removed, history_limit, reap_place
from swarm_agent.control.tasks import aim, at_work, invalid_node, live, make
from swarm_agent.control.transaction import SETTLING, Key, Transaction
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.options import options
from swarm_agent.objects.records import JobStatus, Service, Task
from swarm_agent.objects.timetable import Timetable


class Run:
    """How the places of a job's present run stand: kept from look to look, so that one costs what was written since the last
    (``Memory.slots``)."""

    __slots__ = ("begun", "busy", "changed", "complete", "lost", "open_from", "stamp")

    def __init__(self, stamp: object, places: set[int | str]) -> None:
        self.stamp = stamp  # what decides how places stand, besides their tasks and nodes
        self.changed = places  # to be looked at
        self.complete: set[int | str] = set()
        self.busy: set[int | str] = set()
        self.lost: set[int | str] = set()  # they failed, and are not tried again
        self.begun = False  # whether any had a task
        self.open_from = 0  # all slots below are one of the three

    def outdated(self, part: int) -> bool:  # noqa: ARG002 - as that of other services
        """It holds no rows, and may be kept as long as there is room."""
        return False

    def note(self, service: Service, place: int | str, tasks: list[Task]) -> None:
        """``tasks``: of this run."""
        for kept in (self.complete, self.busy, self.lost):
            kept.discard(place)
        if not isinstance(place, int) or place >= defaults.job(service.spec).total:
            return
        self.begun = self.begun or bool(tasks)
        if any(t.status.state == TaskState.COMPLETE for t in tasks):
            self.complete.add(place)
        elif any(live(t) for t in tasks):
            self.busy.add(place)
        elif tasks and given_up(service, tasks):
            self.lost.add(place)
        else:
            self.open_from = min(self.open_from, place)


def reconcile(p: Transaction, service: Service) -> None:
    """Begin a run that is due, end what is left of older ones, and make the tasks the present one still needs."""
    service = _by_the_clock(p, service)
    run = _look(p, service)
    places, run.changed = sorted(run.changed), set()
    for number, place in enumerate(places):
        if p.full or (number >= KEPT and p.spent):
            run.changed.update(places[number:])
            p.more(Key("service", service.id))
            return
        run.note(service, place, _place(p, service, place))
    if waits_for_its_time(service):
        return
    if defaults.is_global(service.spec):
        global_.reconcile(p, service)
    else:
        _fill(p, service, run)


def _look(p: Transaction, service: Service) -> Run:
    """How the present run stood when it was last looked at, and where something was written since then."""
    iteration = service.job.iteration if service.job is not None else 0
    stamp = (iteration, service.revision_id, service.spec_version, history_limit(p, service))
    known = p.memory.slots.get(service.id)
    if isinstance(known, Run) and known.stamp == stamp:
        return known
    rows = list(p.view.tasks.by("service", service.id))
    p.charge(len(rows))
    run = Run(stamp, {t.place for t in rows})
    p.memory.slots.pop(service.id, None)
    if len(run.changed) >= KEPT:
        p.memory.slots[service.id] = run
    return run


def _place(p: Transaction, service: Service, place: int | str) -> list[Task]:
    """Decide about one place; its tasks of the present run that are not to be removed."""
    tasks = p.at(service.id, place)
    p.charge(AGAIN)
    iteration = service.job.iteration if service.job is not None else 0
    before = p.puts
    for task in tasks:
        if task.desired_state == TaskState.REMOVE:
            forget_removed(p, task)
        elif task.iteration != iteration and at_work(task):
            forget_removed(p, aim(p, task, TaskState.REMOVE))
    mine = [t for t in tasks if t.iteration == iteration and t.desired_state != TaskState.REMOVE]
    for task in mine if any(t.status.state == TaskState.COMPLETE for t in mine) else ():
        if at_work(task):
            aim(p, task, TaskState.SHUTDOWN)  # it took over from one that was lost, and was not
    if any(_to_decide(p, t) for t in mine):
        reconcile_tasks(p, service, place)
        p.charge(SETTLING)
    if p.puts != before:
        tasks = p.at(service.id, place)
    if 0 <= history_limit(p, service) < len(tasks):
        reap_place(p, service, tasks)
        tasks = p.at(service.id, place)
    return [t for t in tasks if t.iteration == iteration and t.desired_state != TaskState.REMOVE]


def waits_for_its_time(service: Service) -> bool:
    """A scheduled job has no run before its first time."""
    return options(service.spec.labels).schedule is not None and not (service.job and service.job.iteration)


def finished(service: Service, tasks: list[Task]) -> bool:
    """Whether nothing of the present run is still to come; ``tasks``: all of the service."""
    iteration = service.job.iteration if service.job is not None else 0
    mine = [t for t in tasks if t.iteration == iteration]
    if any(live(t) and t.status.state != TaskState.COMPLETE for t in mine):
        return False
    if defaults.is_global(service.spec):
        return True
    total = defaults.job(service.spec).total
    return len({t.slot for t in mine if t.slot < total}) >= total


def again(service: Service, now: int) -> Service:
    """The service with another run begun."""
    job = service.job or JobStatus()
    begun = msgspec.structs.replace(job, iteration=job.iteration + 1, last_execution=now)
    return msgspec.structs.replace(service, job=begun)


def _to_decide(p: Transaction, task: Task) -> bool:
    if not live(task) or task.status.state == TaskState.COMPLETE:
        return False
    if task.status.state.terminal or task.desired_state == TaskState.READY:
        return True
    return bool(task.node_id and invalid_node(p.view.nodes.get(task.node_id)))


def _fill(p: Transaction, service: Service, run: Run) -> None:
    """As many tasks as may run at once, in the lowest slots that are neither complete nor given up."""
    wanted = defaults.job(service.spec)
    complete, busy, lost = run.complete, run.busy, run.lost
    room = min(wanted.max_concurrent - len(busy), wanted.total - len(complete) - len(busy) - len(lost))
    cause = "run" if run.begun else "create"
    while room > 0 and run.open_from < wanted.total:
        slot = run.open_from
        if slot not in complete and slot not in busy and slot not in lost:
            if p.full:
                p.more(Key("service", service.id))
                return
            make(p, service, slot, cause=cause)
            busy.add(slot)
            room -= 1
        run.open_from += 1


# --- the timetable -----------------------------------------------------------------------------------------------------
def _by_the_clock(p: Transaction, service: Service) -> Service:
    """Begin the run that is due. Of several that were missed (nobody led) one is made up for."""
    schedule = options(service.spec.labels).schedule
    if schedule is None:
        return service
    job = service.job or JobStatus()
    table = Timetable.parse(schedule.cron, schedule.timezone)
    due = table.after(job.due or service.created_at or p.now)
    if due > p.now:
        p.wake(Key("service", service.id), due)
        return service
    due = table.latest(job.due or service.created_at or p.now, p.now)
    p.wake(Key("service", service.id), table.after(p.now))
    job = msgspec.structs.replace(job, due=due)
    tasks = list(p.view.tasks.by("service", service.id))
    if schedule.overlap == "forbid" and job.iteration and not finished(service, tasks):
        changed = msgspec.structs.replace(service, job=msgspec.structs.replace(job, skipped=job.skipped + 1))
    else:
        changed = again(msgspec.structs.replace(service, job=job), p.now)
    p.put(changed)
    return changed
