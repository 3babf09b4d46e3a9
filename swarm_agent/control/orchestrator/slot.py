"""One place of a service - a slot, or in global modes a node - and its tasks, which come one after another.

Decides what happens to a task that ended, lost its node or may not stay where it is; when a task that was made to take over
(by an update, a drain, a rebalance) does so; and when a prepared one is started. How many places there are is decided elsewhere
(``replicated``, ``global_``, ``jobs``), and so is which of them are updated or moved now (``update``, ``drain``).
"""

from __future__ import annotations

import msgspec

from swarm_agent.control.names import names_itself
from swarm_agent.control.orchestrator import dependencies
from swarm_agent.control.orchestrator.restart import attempt_of, ended_at, restart
from swarm_agent.control.revisions import same_but_placement
from swarm_agent.control.scheduler.rejections import ADDRESS
from swarm_agent.control.scheduler.usage import takes_tasks
from swarm_agent.control.tasks import (
    MINUTE,
    aim,
    at_work,
    draining,
    goal,
    invalid_node,
    live,
    lost_node,
    make,
    misplaced,
    observe,
    stopped,
)
from swarm_agent.control.transaction import Health, Key, Transaction
from swarm_agent.objects import defaults, features
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.options import options
from swarm_agent.objects.records import ENFORCED, Reason, Service, Task

FREED_BY_THE_OLD = frozenset({"resources", "ports", "addresses", "max-replicas", ADDRESS})
"""Filters that may refuse a new task only because the one it replaces is still there."""


def reconcile_tasks(
    p: Transaction, service: Service, place: int | str, tasks: list[Task] | None = None
) -> list[Task]:
    """Bring one place as far as it can come now; its tasks as they are then. ``tasks``: as they are before, where that is known."""
    if tasks is None:
        tasks = p.at(service.id, place)
    written = p.puts
    for task in tasks:
        if live(task):
            _check(p, service, task)
    if len(tasks) > 1 or p.puts != written:
        tasks, written = _as_they_are(p, service, place, tasks, written)
        _hand_over(p, service, tasks)
        tasks, written = _as_they_are(p, service, place, tasks, written)
    for task in tasks:
        if task.desired_state == TaskState.READY:
            # one that is started keeps the others from it
            tasks, written = _as_they_are(p, service, place, tasks, written)
            _start(p, service, task, tasks)
    return _as_they_are(p, service, place, tasks, written)[0]


def _as_they_are(
    p: Transaction, service: Service, place: int | str, tasks: list[Task], written: int
) -> tuple[list[Task], int]:
    """The tasks of a place, read again if anything was written since ``written``; and how much is written now."""
    return (tasks, written) if p.puts == written else (p.at(service.id, place), p.puts)


def taken(service: Service, tasks: list[Task]) -> bool:
    """Whether a slot counts: it has a live task, or its last one ended and the restart policy leaves it so."""
    return any(live(t) for t in tasks) or given_up(service, tasks)


def given_up(service: Service, tasks: list[Task]) -> bool:
    """Whether a place without a live task is to stay without: its last one ended by itself and policy forbids another."""
    last = decisive(service, tasks)
    return (
        last.desired_state == TaskState.SHUTDOWN
        and last.status.state.terminal
        and restart(service, last, tasks, 0) is None
    )


def decisive(service: Service, tasks: list[Task]) -> Task:
    """Of a place without a live task the one whose end decides what becomes of it: the newest - or, where a rollback has found one of the
    present revision that the newest never took over from, that one once it has ended by itself."""
    last = newest(tasks)
    if last.revision_id == service.revision_id:
        return last
    survivors = [
        t
        for t in tasks
        if t.revision_id == service.revision_id
        and t.status.state in (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED)
        and ended_at(t) > ended_at(last)
    ]
    return newest(survivors) if survivors else last


def newest(tasks: list[Task]) -> Task:
    """The task made last; rows of this pass have no creation time yet and are the newest."""
    return max(tasks, key=lambda t: (t.version == 0, t.created_at, t.attempt, t.id))


def is_current(p: Transaction, service: Service, task: Task) -> bool:
    """Whether a task is as its service declares it now: of its revision, or of one that differs only in where tasks may be
    while its node will do."""
    if task.revision_id == service.revision_id:
        return True
    present, own = p.view.revisions.get(service.revision_id), p.usage.revision(task)
    if present is None or own is None or not task.node_id or not same_but_placement(present, own):
        return False
    node = p.view.nodes.get(task.node_id)
    return node is not None and node_matches(defaults.constraints(present.template), node)


# --- a task that cannot go on ----------------------------------------------------------------------------------------
def _check(p: Transaction, service: Service, task: Task) -> None:
    """End a live task that has ended, lost its node or may not stay there; put another in its place if that is due."""
    if service.job is not None and task.iteration != service.job.iteration:
        # of a run that is over: what is at work goes, what has ended is history, and nothing follows on either
        if at_work(task):
            aim(p, task, TaskState.REMOVE)
        elif task.status.state != TaskState.COMPLETE:
            aim(p, task, TaskState.SHUTDOWN)
        return
    if task.status.state.terminal:
        if not (task.status.state == TaskState.COMPLETE and defaults.is_job(service.spec)):
            _ended(p, service, task)
        return
    if not task.node_id:
        if task.preset and lost_node(p.view.nodes.get(task.preset)):
            aim(p, task, TaskState.SHUTDOWN)
        return
    node = p.view.nodes.get(task.node_id)
    why = lost_node(node)
    if why:
        _lost(p, service, task, why)
    elif draining(node):
        if defaults.is_job(service.spec) or task.preset or p.level < features.ORCHESTRATION:
            _lost(p, service, task, "drain")  # others are moved, so many at a time
    elif misplaced(p.view, task, p.usage.revision(task)):
        evict(p, service, task)


def evict(p: Transaction, service: Service, task: Task) -> None:
    """What the constraint enforcer does to a task whose node changed under it: it counts as rejected, and another follows by the
    restart policy. A strict singleton is stopped, as nobody may say it has ended before it has."""
    if options(service.spec.labels).singleton:
        _lost(p, service, task, "constraint")
        return
    _reject(p, task)
    gone = p.view.tasks.get(task.id)
    if gone is not None:
        _ended(p, service, gone)


def _reject(p: Transaction, task: Task) -> None:
    observe(
        p,
        task,
        TaskState.REJECTED,
        ENFORCED,
        "assigned node no longer meets constraints",
    )


def _lost(p: Transaction, service: Service, task: Task, cause: str) -> None:
    """Its node has gone: another follows at once, elsewhere. In global modes the place has gone with the node."""
    aim(p, task, TaskState.SHUTDOWN)
    if task.preset or _stood_in_for(p, service, task):
        return
    make(
        p,
        service,
        task.place,
        ready=True,
        cause=cause,
        attempt=attempt_of(service, task, 0),
        failures=task.failures,
    )


def _ended(p: Transaction, service: Service, task: Task) -> None:
    if p.now < task.start_after:
        # it failed while it was prepared for later: the next is not prepared any sooner
        p.wake(Key("slot", task.service_id, task.place), task.start_after)
        return
    aim(p, task, TaskState.SHUTDOWN)
    following = restart(service, task, p.at(service.id, task.place), p.now)
    if _stood_in_for(p, service, task):
        mover = next((t for t in p.at(service.id, task.place) if t.replaces == task.id and live(t)), None)
        if mover is not None and mover.desired_state == TaskState.READY and following is not None:
            # it has not begun to run: it follows on an end now, not on a move
            changed = msgspec.structs.replace(
                mover, start_after=following.at, attempt=following.attempt, failures=following.failures
            )
            p.put(changed)
        return
    if task.preset and not _place_stays(p, service, task.preset):
        return
    if following is not None:
        make(
            p,
            service,
            task.place,
            ready=True,
            cause="restart",
            start_after=following.at,
            attempt=following.attempt,
            failures=following.failures,
        )


def _place_stays(p: Transaction, service: Service, node_id: str) -> bool:
    """Whether a node is still one on which a service of a global mode has a task."""
    node = p.view.nodes.get(node_id)
    wanted = defaults.constraints(service.spec.task_template)
    return node is not None and not invalid_node(node) and node_matches(wanted, node)


def _stood_in_for(p: Transaction, service: Service, ended: Task) -> bool:
    """Whether another live task makes one more needless. The old one beside a failed new one does not, nor what an earlier run of a
    job has completed."""
    return any(
        live(t)
        and t.id != ended.id
        and t.iteration == ended.iteration
        and (is_current(p, service, t) or not is_current(p, service, ended))
        for t in p.at(service.id, ended.place)
    )


# --- from one task to the next ---------------------------------------------------------------------------------------
def _hand_over(p: Transaction, service: Service, tasks: list[Task]) -> None:
    """Of several live tasks only one is to stay: the one of the present revision, the one that was made to take over."""
    alive = [t for t in tasks if at_work(t)]
    if len(alive) < 2:
        return
    present = [t for t in alive if is_current(p, service, t)]
    stale = [t for t in alive if t not in present]
    if present and stale:
        best = _best(present)
        over = _may_take_over(p, service, best, stale)
        for task in stale:
            if over or not task.node_id or task.desired_state == TaskState.READY:  # the last two never ran
                aim(p, task, TaskState.SHUTDOWN)
    group = present or stale
    by_id = {t.id: t for t in group}
    pairs = [(t, by_id[t.replaces]) for t in group if t.replaces in by_id]
    for mover, old in pairs:
        _move(p, service, mover, old)
    paired = {t.id for pair in pairs for t in pair}
    rest = [t for t in group if t.id not in paired]
    if len(rest) > 1 or (rest and pairs):
        keep = _best(rest) if not pairs else None
        for task in rest:
            if task is not keep:
                aim(p, task, TaskState.SHUTDOWN)


def _best(tasks: list[Task]) -> Task:
    return max(tasks, key=lambda t: (t.status.state == TaskState.RUNNING, t.version == 0, t.created_at, t.id))


def _may_take_over(p: Transaction, service: Service, new: Task, old: list[Task]) -> bool:
    """Start-first: once it runs. Stop-first: once it is prepared, so that what cannot be had costs no running task; or when it
    finds no place because an old one is still there."""
    if new.status.state >= TaskState.RUNNING:
        return True
    if new.desired_state != TaskState.READY or starts_first(service, new) or dependencies.waits(p, service):
        return False
    if p.level < features.ORCHESTRATION:
        return True  # managers of the release before, one of which may lead next, stop the old one at once
    return p.now >= new.start_after and (
        new.status.state >= TaskState.READY or _blocked(p, service, new, old)
    )


def _blocked(p: Transaction, service: Service, new: Task, old: list[Task]) -> bool:
    """Whether a new task may find a place once the old ones have gone: what they free is free on nodes that take tasks."""
    if new.status.state != TaskState.PENDING:
        return False
    codes = {r.code for r in new.reasons}
    if ADDRESS in codes:
        return True
    if "affinity" in codes and keeps_apart_from_itself(service):
        codes |= FREED_BY_THE_OLD
    if codes.isdisjoint(FREED_BY_THE_OLD):
        return False
    nodes = (p.view.nodes.get(t.node_id) for t in old if t.node_id)
    return any(node is not None and takes_tasks(node) for node in nodes)


def keeps_apart_from_itself(service: Service) -> bool:
    """Whether its labels forbid two of its tasks on one node."""
    wishes = options(service.spec.labels).affinities
    return any(a.hard and not a.together and names_itself(service, a.service) for a in wishes)


def starts_first(service: Service, task: Task) -> bool:
    """Whether ``task`` is to run before the one it takes over from is stopped."""
    if options(service.spec.labels).singleton:
        return False
    if task.replaces:
        return moves_start_first(service)
    status = service.update_status
    back = status is not None and status.state.startswith("rollback")
    config = service.spec.rollback_config if back else service.spec.update_config
    return defaults.update(config).order == "start-first"


def moves_start_first(service: Service) -> bool:
    """Whether a moved task is started before the old one stops: as updates do it; where nothing is said, when there are
    several replicas anyway and none of them mounts a volume, which one more could harm."""
    spec = service.spec
    if options(spec.labels).singleton:
        return False
    if spec.update_config is not None and spec.update_config.order:
        return spec.update_config.order == "start-first"
    mounts = defaults.container(spec.task_template).mounts or ()
    return defaults.replicas(spec) > 1 and all(m.read_only or m.type == "tmpfs" for m in mounts)


def _move(p: Transaction, service: Service, mover: Task, old: Task) -> None:
    """A task that leaves its node for ``mover``. Never more at a time than the declared count of healthy tasks allows."""
    node = p.view.nodes.get(old.node_id)
    wanted = mover.cause != "drain" or draining(node)
    if not wanted and mover.status.state < TaskState.RUNNING:
        aim(p, mover, TaskState.REMOVE)  # the node is active again
        return
    stuck = mover.status.state == TaskState.PENDING
    if stuck and mover.cause != "drain":
        aim(p, mover, TaskState.REMOVE)
        return
    if mover.status.state >= TaskState.RUNNING:
        aim(p, old, TaskState.SHUTDOWN)
        return
    floor = options(service.spec.labels).min_healthy
    ready = _may_take_over(p, service, mover, [old]) or (stuck and floor is None)
    if not ready and not (stuck and floor is not None):
        return
    health = _health(p, service)
    if floor is not None:
        may = health.healthy - 1 >= floor.of(defaults.replicas(service.spec))
    else:  # one at a time; and where there is no place Docker's drain stops it all the same
        may = stuck or not health.between
    if may or old.status.state != TaskState.RUNNING:
        aim(p, old, TaskState.SHUTDOWN)
        fewer = int(old.status.state == TaskState.RUNNING)
        p.health[service.id] = Health(health.healthy - fewer, health.between + (not stuck))
    else:
        p.wait_for_health(Key("slot", service.id, mover.place))


def _health(p: Transaction, service: Service) -> Health:
    """Counted once a pass."""
    found = p.health.get(service.id)
    if found is None:
        rows = list(p.view.tasks.by("service", service.id))
        p.charge(len(rows))
        alive = {t.id for t in rows if live(t)}
        healthy = sum(1 for t in rows if t.status.state == TaskState.RUNNING and t.id in alive)
        between = sum(
            1
            for t in rows
            if t.replaces
            and t.id in alive
            and t.status.state < TaskState.RUNNING
            and t.node_id
            and t.replaces not in alive
        )
        found = p.health[service.id] = Health(healthy, between)
    return found


# --- the start -------------------------------------------------------------------------------------------------------
def _start(p: Transaction, service: Service, task: Task, tasks: list[Task]) -> None:
    """Let a prepared task run: after its delay, when what it waits for is there, and once what it replaces has stopped - a
    minute at most, but for strict singletons, which wait until it is certain."""
    key = Key("slot", task.service_id, task.place)
    if p.now < task.start_after:
        p.wake(key, task.start_after)
        return
    if not task.node_id:
        return  # what has stopped by now may run again by the time there is a place
    status = service.update_status
    if (
        status is not None
        and status.state in ("updating", "rollback_started")
        and not is_current(p, service, task)
    ):
        return  # it never ran, and the update is about to replace it
    others = [t for t in tasks if t.id != task.id]
    first = starts_first(service, task)
    if not first and any(
        live(t) and t.desired_state != TaskState.READY and not t.status.state.terminal for t in others
    ):
        return
    waits = dependencies.waits(p, service)
    _say_waiting(p, task, waits)
    if waits:
        return
    if options(service.spec.labels).singleton:
        every = p.view.tasks.by("service", service.id)
        if any(t.id != task.id and not live(t) and not stopped(p.view, t) for t in every):
            return
    leaving = [t for t in others if not live(t) and not stopped(p.view, t)]
    if leaving and not first:
        patience = max(task.created_at or p.now, task.start_after) + MINUTE
        if p.now < patience:
            p.wake(key, patience)
            return
    current = p.view.tasks.get(task.id)
    if current is not None:
        aim(p, current, goal(service))


def _say_waiting(p: Transaction, task: Task, waits: str) -> None:
    """Keep the reason with the task; the placement's own reasons are gone once it has a node."""
    reasons = (Reason(code="depends-on", nodes=0, text=waits),) if waits else ()
    if task.node_id and [r for r in task.reasons if r.code == "depends-on"] != list(reasons):
        kept = tuple(r for r in task.reasons if r.code != "depends-on")
        p.put(msgspec.structs.replace(task, reasons=kept + reasons))
