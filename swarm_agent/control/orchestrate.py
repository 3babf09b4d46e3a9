"""Replicated services: as many live slots as declared, each with one live task.

A slot is a numbered place of a service; its tasks come one after another. A slot counts as taken while it has a live task,
or when its last task ended and the restart policy says to leave it so.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

from swarm_agent.control import update
from swarm_agent.control.passes import Key, Pass
from swarm_agent.control.reap import forget_removed, reap_slot
from swarm_agent.control.survey import Survey
from swarm_agent.control.tasks import MINUTE, aim, invalid_node, live, make, misplaced, observe, stopped
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Service, Task

MAX_SLOTS = 1000  # made or removed in one pass: an entry of the log is bounded
MAX_OPEN = 500  # slots with something to decide that a look at the whole service decides; the others follow one by one


def reconcile_service(p: Pass, service_id: str) -> None:
    """Bring the whole service towards its spec: slots, count, update, history."""
    service = p.view.services.get(service_id)
    if service is None:
        _remove_all(p, service_id)
        return
    seen = Survey(p, service)
    numbers = sorted(seen.open)
    now, later = numbers[:MAX_OPEN], numbers[MAX_OPEN:]
    for slot in now:
        if p.full:
            p.more(Key("service", service.id))
            return
        _slot(p, service, seen.open[slot])
    for slot in later:
        p.more(Key("slot", service.id, slot))
    seen.look_again(now)
    _scale(p, service, seen)
    handed = update.advance(p, service, seen)
    for slot in {**seen.open, **dict.fromkeys(handed)}.keys() - later:
        reap_slot(p, service, slot, p.at(service.id, slot))


def reconcile_prepared(p: Pass, service_id: str) -> None:
    """Have every slot looked at in which a task waits to be started: nobody may have asked for it by now."""
    tasks = list(p.view.tasks.by("service", service_id))
    p.looked(len(tasks))
    for task in tasks:
        if task.desired_state == TaskState.READY:
            p.more(Key("slot", service_id, task.place))


def reconcile_slot(p: Pass, service_id: str, slot: int | str) -> None:
    """One slot after one of its tasks changed. An update in progress makes the caller look at the service too."""
    service = p.view.services.get(service_id)
    tasks = p.at(service_id, slot)
    p.looked(1 + len(tasks))
    if service is None:
        for task in tasks:
            forget_removed(p, aim(p, task, TaskState.REMOVE))
        return
    _slot(p, service, tasks)
    reap_slot(p, service, slot, p.at(service_id, slot))


def taken(tasks: list[Task]) -> bool:
    if any(live(t) for t in tasks):
        return True
    return newest(tasks).desired_state == TaskState.SHUTDOWN


def newest(tasks: list[Task]) -> Task:
    """The task made last; rows of this pass have no creation time yet and are the newest."""
    return max(tasks, key=lambda t: (t.version == 0, t.created_at, t.attempt, t.id))


# --- one slot --------------------------------------------------------------------------------------------------------
def _slot(p: Pass, service: Service, tasks: list[Task]) -> None:
    for task in [t for t in tasks if live(t)]:
        _check(p, service, task)
    now = p.at(service.id, tasks[0].place) if tasks else []
    _start(p, now)


def _check(p: Pass, service: Service, task: Task) -> None:
    """End a live task that has ended, lost its node or may not stay there; put another in its place if policy says so."""
    if task.status.state.terminal:
        _replace(p, service, task, cause="restart")
        return
    if not task.node_id:
        return
    why = invalid_node(p.view.nodes.get(task.node_id))
    if why:
        _replace(p, service, task, cause=why)
    elif misplaced(p.view, task, p.ledger.revision(task)):
        gone = observe(
            p,
            task,
            TaskState.REJECTED,
            "task rejected by constraint enforcer",
            "assigned node no longer meets constraints",
        )
        _replace(p, service, gone, cause="restart")


def _replace(p: Pass, service: Service, task: Task, cause: str) -> None:
    aim(p, task, TaskState.SHUTDOWN)
    if any(_stands_in(t, task, service) for t in p.at(service.id, task.place)):
        return
    policy = defaults.restart(service.spec.task_template)
    if cause != "restart":
        make(p, service, task.slot, desired=TaskState.READY, cause=cause, attempt=_attempt(service, task, 0))
        return
    if not _may_restart(p, service, task, policy):
        return
    ended = task.status.finished_at or task.status.timestamp
    make(
        p,
        service,
        task.slot,
        desired=TaskState.READY,
        cause="restart",
        start_after=min(ended, p.now) + policy.delay,
        attempt=_attempt(service, task, 1),
    )


def _stands_in(other: Task, ended: Task, service: Service) -> bool:
    """Whether another live task makes a replacement needless. The old one beside a failed new one does not (start-first)."""
    return live(other) and (
        other.revision_id == service.revision_id or ended.revision_id != service.revision_id
    )


def _attempt(service: Service, task: Task, step: int) -> int:
    """Restarts counted so far; a new revision starts at none."""
    return task.attempt + step if task.revision_id == service.revision_id else 0


def _may_restart(p: Pass, service: Service, task: Task, policy: defaults.Restart) -> bool:
    if policy.condition == "none" or (
        policy.condition == "on-failure" and task.status.state == TaskState.COMPLETE
    ):
        return False
    if not policy.max_attempts or task.revision_id != service.revision_id:
        return True
    if not policy.window:
        return task.attempt < policy.max_attempts
    ended = task.status.finished_at or task.status.timestamp
    recent = [
        t
        for t in p.at(service.id, task.place)
        if t.revision_id == task.revision_id and t.attempt and ended - policy.window < t.created_at <= ended
    ]
    return len(recent) < policy.max_attempts


def _start(p: Pass, tasks: list[Task]) -> None:
    """Let a slot's prepared tasks run: after their delay, and once what they replace has stopped (a minute at most)."""
    for task in tasks:
        if task.desired_state != TaskState.READY:
            continue
        key = Key("slot", task.service_id, task.place)
        if p.now < task.start_after:
            p.wake(key, task.start_after)
            continue
        if any(not live(t) and not stopped(p.view, t) for t in tasks):
            patience = max(task.created_at or p.now, task.start_after) + MINUTE
            if p.now < patience:
                p.wake(key, patience)
                continue
        aim(p, task, TaskState.RUNNING)


# --- the count -------------------------------------------------------------------------------------------------------
def _scale(p: Pass, service: Service, seen: Survey) -> None:
    """Make or remove slots."""
    wanted = defaults.replicas(service.spec)
    most = min(MAX_SLOTS, p.most)
    open_taken = {slot for slot, tasks in seen.open.items() if taken(tasks)}
    have = len(seen.present) + len(seen.older) + len(open_taken)
    if have < wanted:
        free = (
            n
            for n in range(1, wanted + have + 1)
            if n not in seen.present and n not in seen.older and n not in open_taken
        )
        if wanted - have > most:
            p.more(Key("service", service.id))
        numbers = list(itertools.islice(free, min(wanted - have, most)))
        for number in numbers:
            task = make(p, service, number, desired=TaskState.RUNNING, cause="scale" if have else "create")
            if number in seen.open:
                seen.look_again([number])
            else:
                seen.present[number] = task
    elif have > wanted:
        surplus = _surplus(seen, open_taken, wanted)
        if len(surplus) > most:
            p.more(Key("service", service.id))
        for slot in surplus[:most]:
            for task in p.at(service.id, slot):
                aim(p, task, TaskState.REMOVE)
        seen.look_again(surplus[:most])


def _surplus(seen: Survey, open_taken: set[int], wanted: int) -> list[int]:
    """Which slots go: those on the most crowded nodes, not running before running, high numbers first (BEHAVIOUR 9.4)."""
    places = [
        (task.status.state != TaskState.RUNNING, slot, task.node_id)
        for settled in (seen.present, seen.older)
        for slot, task in settled.items()
    ]
    for slot in open_taken:
        alive = [t for t in seen.open[slot] if live(t)]
        node_ids = {t.node_id for t in alive}
        running = any(t.status.state == TaskState.RUNNING for t in alive)
        places.append((not running, slot, node_ids.pop() if len(node_ids) == 1 else ""))
    places.sort()
    copies: defaultdict[str, int] = defaultdict(int)
    ranked = []
    for order, (_, slot, node_id) in enumerate(places):
        ranked.append((copies[node_id] if node_id else 1 << 30, order, slot))
        copies[node_id] += 1
    ranked.sort()
    return [slot for _, _, slot in ranked[wanted:]]


# --- the end ---------------------------------------------------------------------------------------------------------
def _remove_all(p: Pass, service_id: str) -> None:
    """Of a removed service everything goes, so much a pass."""
    tasks = list(p.view.tasks.by("service", service_id))
    p.looked(len(tasks))
    for task in tasks:
        if p.full:
            p.more(Key("service", service_id))
            return
        forget_removed(p, aim(p, task, TaskState.REMOVE))
