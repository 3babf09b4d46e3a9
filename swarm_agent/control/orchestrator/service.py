"""A service as a whole: its places are settled, counted or spread, updated, and their history is trimmed; by its mode."""

from __future__ import annotations

from swarm_agent.control.orchestrator import dependencies, global_, jobs, replicated, update
from swarm_agent.control.orchestrator.slot import is_current, reconcile_tasks
from swarm_agent.control.orchestrator.slot_index import PORTION, survey
from swarm_agent.control.orchestrator.task_reaper import forget_removed, reap_place
from swarm_agent.control.tasks import aim, live
from swarm_agent.control.transaction import SETTLING, Key, Transaction
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import TaskState

MAX_OPEN = 100  # places with something to decide that a look at the whole service decides; the others follow one by one


def reconcile_service(p: Transaction, service_id: str) -> None:
    """Bring the whole service towards its spec: places, count, update, history."""
    service = p.view.services.get(service_id)
    if service is None:
        _remove_all(p, service_id)
        return
    if defaults.is_job(service.spec):
        jobs.reconcile(p, service)
        return
    seen = survey(p, service)
    if seen is None:
        p.more(Key("service", service.id))
        return
    places = sorted(place for place in seen.open if place not in seen.waiting)
    now, later = places[:MAX_OPEN], places[MAX_OPEN:]
    for place in now:
        if p.full:
            p.more(Key("service", service.id))
            return
        reconcile_tasks(p, service, place)
        p.charge(SETTLING)
    for place in later:
        p.more(Key("slot", service.id, place))
    seen.look_again(p, service, now)
    if defaults.is_global(service.spec):
        if global_.reconcile(p, service, seen.present):
            seen = survey(p, service)
            if seen is None:
                p.more(Key("service", service.id))
                return
    else:
        replicated.scale(p, service, seen)
    handed = update.advance(p, service, seen)
    unread = seen.waiting.union(later)  # those that wait have no history
    for place in dict.fromkeys([*(n for n in seen.open if n not in unread), *handed]):
        reap_place(p, service, p.at(service.id, place))


def reconcile_prepared(p: Transaction, service_id: str, ids: list[str]) -> list[str]:
    """Have every place looked at in which a task waits to be started or to take over: nobody may have asked for it by now.
    ``ids``: of the tasks that are left to look at; returns those that are left for the next pass."""
    service = p.view.services.get(service_id)
    waits = dependencies.waits(p, service) if service is not None else ""
    for number, id_ in enumerate(ids):
        if number >= PORTION and p.cost >= p.most_cost:
            return ids[number:]
        p.charge(2)
        task = p.view.tasks.get(id_)
        if task is None or not live(task):
            continue
        if task.desired_state == TaskState.READY:
            asked = not (waits and any(r.text == waits for r in task.reasons))  # else it says so already
        else:
            asked = sum(1 for t in p.at(service_id, task.place) if live(t)) > 1
            p.charge(2)
        if asked:
            p.more(Key("slot", service_id, task.place))
            p.charge(2)
    return []


def reconcile_slot(p: Transaction, service_id: str, place: int | str) -> None:
    """One place after one of its tasks, or its node, changed. An update in progress makes the caller look at the service too."""
    service = p.view.services.get(service_id)
    tasks = p.at(service_id, place)
    p.charge(SETTLING + len(tasks))
    if service is None:
        for task in tasks:
            forget_removed(p, aim(p, task, TaskState.REMOVE))
        return
    after = reconcile_tasks(p, service, place, tasks)
    if isinstance(place, str) and not jobs.waits_for_its_time(service):
        global_.fill(p, service, place)
        if any(live(t) and not is_current(p, service, t) for t in tasks):
            p.more(Key("service", service_id))  # it was passed over while its node took no new tasks
        after = p.at(service_id, place)
    reap_place(p, service, after)


def _remove_all(p: Transaction, service_id: str) -> None:
    """Of a removed service everything goes, so much a pass."""
    tasks = list(p.view.tasks.by("service", service_id))
    p.charge(len(tasks))
    for task in tasks:
        if p.full:
            p.more(Key("service", service_id))
            return
        forget_removed(p, aim(p, task, TaskState.REMOVE))
