"""Replicated services: as many live slots as declared, each with one live task.

A slot is a numbered place of a service; its tasks come one after another. A slot counts as taken while it has a live task,
or when its last task ended and the restart policy says to leave it so.
"""

from __future__ import annotations

from collections import defaultdict

from swarm_agent.control import update
from swarm_agent.control.passes import Key, Pass
from swarm_agent.control.reap import reap_slot
from swarm_agent.control.tasks import MINUTE, aim, invalid_node, live, make, misplaced, observe, stopped
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Service, Task

Slots = dict[int, list[Task]]
MAX_SLOTS = 1000  # made or removed in one pass: an entry of the log is bounded


def reconcile_service(p: Pass, service_id: str) -> None:
    """Bring the whole service towards its spec: slots, count, update, history."""
    service = p.view.services.get(service_id)
    slots = slots_of(p, service_id)
    if service is None:
        _remove_all(p, slots)
        return
    for slot in sorted(slots):
        if p.full:
            p.more(Key("service", service.id))
            return
        _slot(p, service, slots[slot])
    _scale(p, service, slots_of(p, service_id))
    update.advance(p, service, slots_of(p, service_id))
    for slot, tasks in slots_of(p, service_id).items():
        reap_slot(p, service, slot, tasks)


def reconcile_slot(p: Pass, service_id: str, slot: int) -> None:
    """One slot after one of its tasks changed. An update in progress makes the caller look at the service instead."""
    service = p.view.services.get(service_id)
    tasks = list(p.view.tasks.by("slot", (service_id, slot)))
    if service is None:
        _remove_all(p, {slot: tasks})
        return
    _slot(p, service, tasks)
    reap_slot(p, service, slot, list(p.view.tasks.by("slot", (service_id, slot))))


def slots_of(p: Pass, service_id: str) -> Slots:
    slots: defaultdict[int, list[Task]] = defaultdict(list)
    for task in p.view.tasks.by("service", service_id):
        slots[task.slot].append(task)
    return slots


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
    now = list(p.view.tasks.by("slot", (service.id, tasks[0].slot))) if tasks else []
    for task in now:
        if task.desired_state == TaskState.READY:
            _start(p, task, [t for t in now if t.id != task.id])


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
    if any(_stands_in(t, task, service) for t in p.view.tasks.by("slot", (service.id, task.slot))):
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
        for t in p.view.tasks.by("slot", (service.id, task.slot))
        if t.revision_id == task.revision_id and t.attempt and ended - policy.window < t.created_at <= ended
    ]
    return len(recent) < policy.max_attempts


def _start(p: Pass, task: Task, others: list[Task]) -> None:
    """Let a prepared task run: after its delay, and once what it replaces has stopped (a minute at most)."""
    key = Key("slot", task.service_id, task.slot)
    if p.now < task.start_after:
        p.wake(key, task.start_after)
        return
    waiting_for = [t for t in others if not live(t) and not stopped(p.view, t)]
    if waiting_for:
        patience = max(task.created_at or p.now, task.start_after) + MINUTE
        if p.now < patience:
            p.wake(key, patience)
            return
    aim(p, task, TaskState.RUNNING)


# --- the count -------------------------------------------------------------------------------------------------------
def _scale(p: Pass, service: Service, slots: Slots) -> None:
    wanted = defaults.replicas(service.spec)
    most = min(MAX_SLOTS, p.most)
    have = [s for s, tasks in slots.items() if taken(tasks)]
    if len(have) < wanted:
        free = (n for n in range(1, wanted + len(have) + 1) if n not in set(have))
        if wanted - len(have) > most:
            p.more(Key("service", service.id))
        for _ in range(min(wanted - len(have), most)):
            cause = "scale" if have else "create"
            make(p, service, next(free), desired=TaskState.RUNNING, cause=cause)
    elif len(have) > wanted:
        surplus = _surplus(slots, have, wanted)
        if len(surplus) > most:
            p.more(Key("service", service.id))
        for slot in surplus[:most]:
            for task in slots[slot]:
                aim(p, task, TaskState.REMOVE)


def _surplus(slots: Slots, have: list[int], wanted: int) -> list[int]:
    """Which slots go: those on the most crowded nodes, not running before running, high numbers first (BEHAVIOUR 9.4)."""
    running_first = sorted(
        have, key=lambda s: (not any(t.status.state == TaskState.RUNNING for t in slots[s] if live(t)), s)
    )
    copies: defaultdict[str, int] = defaultdict(int)
    rank: dict[int, int] = {}
    for slot in running_first:
        node_ids = {t.node_id for t in slots[slot] if live(t)}
        node_id = node_ids.pop() if len(node_ids) == 1 else ""
        rank[slot] = copies[node_id] if node_id else 1 << 30
        copies[node_id] += 1
    order = {slot: i for i, slot in enumerate(running_first)}
    return sorted(have, key=lambda s: (rank[s], order[s]))[wanted:]


def _remove_all(p: Pass, slots: Slots) -> None:
    """Of a removed service everything goes, so many slots a pass."""
    for done, (slot, tasks) in enumerate(slots.items()):
        if done == min(MAX_SLOTS, p.most):
            p.more(Key("service", tasks[0].service_id))
            return
        for task in tasks:
            aim(p, task, TaskState.REMOVE)
        reap_slot(p, None, slot, [t for t in (p.view.tasks.get(t.id) for t in tasks) if t is not None])
