"""Where tasks go: filters say which nodes can, ranking says which should, and each refusal leaves its reason.

Tasks of one revision are placed one after another, each on the node that is then best: fewest recent failures, most soft
wishes met, fewest tasks of the service, fewest tasks. What is known about nodes is kept (``rankings``). A task whose
node is set from the beginning is only asked whether it can run there.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from swarm_agent.control.allocator import allocate_task
from swarm_agent.control.names import names_itself
from swarm_agent.control.scheduler.feasibility import (
    Preferences,
    Requirements,
    options_of,
    pick_generic,
    preferences_of,
)
from swarm_agent.control.scheduler.rejections import (
    ADDRESS,
    count_refusals,
    reasons,
    refusal_of,
    texts,
    where,
)
from swarm_agent.control.subnets import Exhausted
from swarm_agent.control.tasks import moved_from
from swarm_agent.control.transaction import PLACING, Transaction
from swarm_agent.objects import features
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Node, Reason, Revision, Service, Task

_ASSIGNED = "scheduler assigned task to node"
_CONFIRMED = "scheduler confirmed task can run on preassigned node"


def place(p: Transaction, tasks: list[Task], *, in_any_case: bool = False) -> list[Task]:
    """Assign every task that can be; the others get PENDING with the reasons. Returns those this pass has no room for, or no looks left
    (``in_any_case``: it has)."""
    left: list[Task] = []
    groups: dict[tuple[str, str], list[Task]] = {}
    moving: dict[str, list[Task]] = {}  # node -> tasks whose successors are to be placed
    for task in tasks:
        if task.preset:
            _confirm(p, task, left)
            continue
        replaced = moved_from(p.view, task)
        avoid = "" if replaced is None else replaced.node_id
        if replaced is not None:
            moving.setdefault(avoid, []).append(replaced)
        groups.setdefault((task.revision_id, avoid), []).append(task)
    # what moves comes last, and counts no more where it stands while its successor is placed; nobody may take its place before it has left
    for (revision_id, avoid), group in sorted(groups.items(), key=lambda item: item[0][1] != ""):
        revision = p.view.revisions.get(revision_id)
        if revision is None:
            continue
        if not in_any_case and (
            p.cost >= 2 * p.most_cost
            or (p.cost >= p.most_cost and not any(t.id in p.unplaced for t in group))
        ):
            left += group
            continue
        p.view.group(group[0].service_id)
        before = p.memory.rankings.cost
        discounted = [task for task in moving.get(avoid, ()) if p.discount(task)]
        left += _place_group(p, revision, avoid, sorted(group, key=lambda t: t.slot))
        for task in discounted:
            p.recount(task)
        p.charge(PLACING + p.memory.rankings.cost - before)
    return left


# --- tasks that may go anywhere -------------------------------------------------------------------------------------------
def _place_group(p: Transaction, revision: Revision, avoid: str, tasks: list[Task]) -> list[Task]:
    service = p.view.services.get(revision.service_id)
    rankings = p.memory.rankings
    requirements = rankings.requirements(revision, p.view)
    preferences = preferences_of(revision, service, p.view, p.usage, avoid)
    pool = rankings.pool(requirements, preferences.strategy)
    one = rankings.single(preferences, pool, p.now) if len(tasks) == 1 and pool.best() is not None else None
    group = rankings.group(preferences, pool, p.now) if one is None and pool.best() is not None else None
    together = _keeps_together(service)
    left: list[Task] = []
    refused: Mapping[str, int] | None = None
    trouble = ""
    for task in tasks:
        if not p.room_for(task):
            left.append(task)
            continue
        node_id = one or ""
        if group is not None and refused is None and not trouble:
            node_id = group.best(p.now)
        if node_id:
            try:
                _assign(p, task, p.usage.rows[node_id], revision, requirements, preferences, _ASSIGNED)
            except Exhausted as err:
                trouble = str(err)
            if trouble:
                pend(p, task, trouble)
            elif group is not None:
                group.placed(node_id)
                if together:
                    preferences = preferences_of(revision, service, p.view, p.usage, avoid)
                    group = rankings.group(preferences, pool, p.now)
            continue
        if trouble:
            pend(p, task, trouble)
            continue
        if refused is None:
            refused = count_refusals(pool, preferences)
        _pend_refused(p, task, requirements, preferences, refused)
    return left


def _keeps_together(service: Service | None) -> bool:
    """Whether a service's tasks go where others of it are: the first may go anywhere, the rest follows."""
    return service is not None and any(
        a.together and names_itself(service, a.service) for a in options_of(service).affinities
    )


def _assign(
    p: Transaction,
    task: Task,
    node: Node,
    revision: Revision,
    requirements: Requirements,
    preferences: Preferences,
    message: str,
) -> None:
    status = msgspec.structs.replace(
        task.status, state=TaskState.ASSIGNED, message=message, err="", timestamp=p.now
    )
    generic = pick_generic(node, p.usage.nodes[node.id], requirements.generic) if requirements.generic else ()
    placed = msgspec.structs.replace(
        task,
        node_id=node.id,
        status=status,
        reasons=_moved(p, preferences, node) if preferences.preferred else (),
        generic=generic,
    )
    allocate_task(p, placed, revision)


def _moved(p: Transaction, preferences: Preferences, node: Node) -> tuple[Reason, ...]:
    """A warning for a task that does not go where its volume is: it begins with an empty one."""
    elsewhere = [v for v in preferences.preferred if node.id not in p.usage.volumes.get(v, ())]
    if not elsewhere:
        return ()
    here = node.description.hostname or node.id
    text = "; ".join(f"{where(p.usage, v)}, the task starts without it on {here}" for v in elsewhere)
    return (Reason(code="volume-moved", nodes=0, text=text),)


# --- tasks that have their node -------------------------------------------------------------------------------------------
def _confirm(p: Transaction, task: Task, left: list[Task]) -> None:
    revision = p.view.revisions.get(task.revision_id)
    if revision is None:
        return
    if not p.room_for(task):
        left.append(task)
        return
    p.charge(1)
    p.view.group(task.service_id)
    requirements = p.memory.rankings.requirements(revision, p.view)
    service = p.view.services.get(task.service_id)
    preferences = preferences_of(revision, service, p.view, p.usage, preset=True)
    node = p.usage.rows.get(task.preset)
    code = "ready" if node is None else refusal_of(p.usage, requirements, preferences, node)
    if node is not None and not code:
        try:
            _assign(p, task, node, revision, requirements, preferences, _CONFIRMED)
        except Exhausted as err:
            pend(p, task, str(err))
        return
    _pend_refused(p, task, requirements, preferences, {code: 1})


# --- tasks that have to wait ------------------------------------------------------------------------------------------------
def pend(p: Transaction, task: Task, trouble: str) -> None:
    """Say that a task waits for something that is no node's matter: an address, a port, a network."""
    _pend(p, task, (Reason(code=ADDRESS, nodes=0, text=trouble),))


def _pend_refused(
    p: Transaction,
    task: Task,
    requirements: Requirements,
    preferences: Preferences,
    refused: Mapping[str, int],
) -> None:
    """Say which filters refused how many nodes. The nearest misses are found only when something is to be written."""
    p.memory.rankings.awaited.update(preferences.with_hard)
    brief = texts(p.usage, preferences, refused)
    if _is_told(task, brief):
        return
    if p.level >= features.ORCHESTRATION:
        p.charge(1 if task.preset else len(p.usage.rows))
        _pend(p, task, reasons(p.usage, p.view, requirements, preferences, refused, task.preset))
    else:
        _pend(p, task, brief)


def _pend(p: Transaction, task: Task, why: tuple[Reason, ...]) -> None:
    """Written only when the reason changed; a nearest miss that did is none."""
    if _is_told(task, why):
        return
    status = msgspec.structs.replace(
        task.status,
        state=TaskState.PENDING,
        message="pending task scheduling",
        err=_line(task, why),
        timestamp=p.now,
    )
    p.put(msgspec.structs.replace(task, status=status, reasons=why))


def _is_told(task: Task, why: tuple[Reason, ...]) -> bool:
    return (
        task.status.state == TaskState.PENDING
        and task.status.err == _line(task, why)
        and [(r.code, r.nodes, r.text) for r in task.reasons] == [(r.code, r.nodes, r.text) for r in why]
    )


def _line(task: Task, why: tuple[Reason, ...]) -> str:
    """Docker's one line."""
    explanation = "; ".join(r.text for r in why)
    if task.preset:
        return explanation
    return f"no suitable node ({explanation})" if explanation else "no suitable node"
