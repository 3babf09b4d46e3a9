"""What would happen: the controllers themselves, run to their end on a copy that is thrown away.

Nodes obey at once there, and an update goes over all places together: when it would be where is not foretold, only where
everything would be in the end, as things are now.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from swarm_agent.control.allocator import allocate_service
from swarm_agent.control.memory import Memory
from swarm_agent.control.orchestrator.service import reconcile_service
from swarm_agent.control.scheduler.scheduler import place
from swarm_agent.control.tasks import live
from swarm_agent.control.transaction import Transaction
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Reason, Revision, Service, Task, TaskStatus
from swarm_agent.objects.specs import UpdateConfig
from swarm_agent.store import Store

ROUNDS = 40
EVERYTHING = 1 << 30


class PlanStep(msgspec.Struct, frozen=True):
    """What becomes of one place of a service."""

    place: int | str
    action: str  # create, replace, move, remove, keep, wait
    before: str = ""  # node ids
    after: str = ""
    reasons: tuple[Reason, ...] = ()  # why it finds no place, or what is to be said of the one it finds


def forecast(
    store: Store,
    memory: Memory,
    now: int,
    new_id: Callable[[], str],
    service: Service,
    revision: Revision,
) -> tuple[PlanStep, ...]:
    """Each place of ``service`` (as it would be written) before and after; the books are as they were when it returns."""
    p = Transaction(store, memory, now, new_id, most=EVERYTHING)
    try:
        p.view.group(service.id)
        before = {t.place: t for t in p.view.tasks.by("service", service.id) if _has_its_place(t)}
        if p.view.revisions.get(revision.id) is None:
            p.put(revision)
        p.put(_at_once(service))
        _run(p, service.id)
        after: dict[int | str, Task] = {}
        for task in p.view.tasks.by("service", service.id):
            if _has_its_place(task):
                after[task.place] = task
    finally:
        p.finish()
    places = sorted({*before, *after}, key=str)
    if all(isinstance(x, int) for x in places):
        places.sort(key=int)
    return tuple(_step(x, before.get(x), after.get(x)) for x in places)


def _has_its_place(task: Task) -> bool:
    return live(task) and (not task.status.state.terminal or task.status.state == TaskState.COMPLETE)


def _at_once(service: Service) -> Service:
    """All places in one go, and failures of the past forgotten."""
    if service.spec.update_config is None and service.job is not None:
        return service
    config = msgspec.structs.replace(
        service.spec.update_config or UpdateConfig(), parallelism=0, delay=0, failure_action="continue"
    )
    spec = msgspec.structs.replace(service.spec, update_config=config)
    return msgspec.structs.replace(service, spec=spec, update_status=None)


def _run(p: Transaction, service_id: str) -> None:
    for _ in range(ROUNDS):
        reconcile_service(p, service_id)
        service = p.view.services.get(service_id)
        revision = p.view.revisions.get(service.revision_id) if service is not None else None
        if service is None or revision is None:
            return
        trouble = allocate_service(p, service, revision)
        ids = list(p.unplaced)
        p.unplaced.clear()
        waiting = [t for t in map(p.view.tasks.get, ids) if t is not None and not t.node_id and live(t)]
        if not trouble:
            place(p, waiting)
        if not _obey(p, service_id):
            return


def _obey(p: Transaction, service_id: str) -> bool:
    """Nodes do what they are told; whether anything changed."""
    moved = False
    for task in list(p.view.tasks.by("service", service_id)):
        state = task.status.state
        if state.terminal:
            continue
        to = None
        if task.desired_state >= TaskState.SHUTDOWN:
            to = TaskState.SHUTDOWN
        elif task.node_id and state < TaskState.READY:
            to = TaskState.READY
        elif task.node_id and task.desired_state >= TaskState.RUNNING and state < TaskState.RUNNING:
            to = TaskState.RUNNING
        if to is not None:
            moved = True
            status = TaskStatus(state=to, timestamp=p.now, started_at=p.now if to == TaskState.RUNNING else 0)
            p.put(
                msgspec.structs.replace(
                    task, status=status, start_after=0, created_at=task.created_at or p.now
                )
            )
    return moved


def _step(place_: int | str, before: Task | None, after: Task | None) -> PlanStep:
    if before is None and after is not None:
        action = "create" if after.node_id else "wait"
        return PlanStep(place_, action, "", after.node_id, after.reasons)
    if after is None:
        return PlanStep(place_, "remove", before.node_id if before is not None else "")
    assert before is not None
    if before.id == after.id:
        action = "keep" if after.node_id or after.status.state != TaskState.PENDING else "wait"
        return PlanStep(place_, action, before.node_id, after.node_id, after.reasons)
    if not after.node_id:
        return PlanStep(place_, "wait", before.node_id, "", after.reasons)
    return PlanStep(
        place_, "replace" if before.node_id == after.node_id else "move", before.node_id, after.node_id
    )
