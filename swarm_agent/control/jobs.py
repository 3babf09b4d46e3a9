"""Jobs: tasks that are to end with 0, so many in all, so many at a time, or one on every node; and when they run again.

A run is an iteration: a number that grows with every update, every due time of the job's timetable, and every time somebody runs
it by hand. Tasks of other iterations are history.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import msgspec

from swarm_agent.control import everywhere
from swarm_agent.control.passes import Key, Pass
from swarm_agent.control.reap import forget_removed, history_limit, reap_place
from swarm_agent.control.slots import given_up, settle
from swarm_agent.control.tasks import aim, invalid_node, live, make
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.options import options
from swarm_agent.objects.records import JobStatus, Service, Task
from swarm_agent.objects.timetable import Timetable


def reconcile(p: Pass, service: Service) -> None:
    """Begin a run that is due, end what is left of older ones, and make the tasks the present one still needs."""
    service = _by_the_clock(p, service)
    job = service.job or JobStatus()
    places: defaultdict[int | str, list[Task]] = defaultdict(list)
    rows = list(p.view.tasks.by("service", service.id))
    p.looked(len(rows))
    everything: Counter[int | str] = Counter()
    for task in rows:
        everything[task.place] += 1
        if task.desired_state == TaskState.REMOVE:
            forget_removed(p, task)
        elif task.iteration == job.iteration:
            places[task.place].append(task)
        elif live(task) and not task.status.state.terminal:
            if p.full:
                p.more(Key("service", service.id))
                return
            forget_removed(p, aim(p, task, TaskState.REMOVE))
    for place, tasks in places.items():
        for task in tasks if any(t.status.state == TaskState.COMPLETE for t in tasks) else ():
            if (
                live(task) and not task.status.state.terminal
            ):  # it took over from one that was lost, and was not
                aim(p, task, TaskState.SHUTDOWN)
        if any(_to_decide(p, t) for t in tasks):
            if p.full:
                p.more(Key("service", service.id))
                return
            settle(p, service, place)
            places[place] = [t for t in p.at(service.id, place) if t.iteration == job.iteration]
    limit = history_limit(p, service)
    for place, count in everything.items():
        if 0 <= limit < count:
            reap_place(p, service, p.at(service.id, place))
    if waits_for_its_time(service):
        return
    if defaults.is_global(service.spec):
        everywhere.reconcile(p, service)
    else:
        _fill(p, service, places)


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


def _to_decide(p: Pass, task: Task) -> bool:
    if not live(task) or task.status.state == TaskState.COMPLETE:
        return False
    if task.status.state.terminal or task.desired_state == TaskState.READY:
        return True
    return bool(task.node_id and invalid_node(p.view.nodes.get(task.node_id)))


def _fill(p: Pass, service: Service, places: dict[int | str, list[Task]]) -> None:
    """As many tasks as may run at once, in the lowest slots that are neither complete nor given up."""
    wanted = defaults.job(service.spec)
    places = {n: tasks for n, tasks in places.items() if isinstance(n, int) and n < wanted.total}
    complete = {n for n, tasks in places.items() if any(t.status.state == TaskState.COMPLETE for t in tasks)}
    busy = {n for n, tasks in places.items() if n not in complete and any(live(t) for t in tasks)}
    lost = {
        n for n, tasks in places.items() if n not in complete and n not in busy and given_up(service, tasks)
    }
    room = min(wanted.max_concurrent - len(busy), wanted.total - len(complete) - len(busy) - len(lost))
    for slot in range(wanted.total):
        if room <= 0:
            return
        if slot in complete or slot in busy or slot in lost:
            continue
        if p.full:
            p.more(Key("service", service.id))
            return
        make(p, service, slot, cause="create" if not places else "run")
        room -= 1


# --- the timetable -----------------------------------------------------------------------------------------------------
def _by_the_clock(p: Pass, service: Service) -> Service:
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
