"""Tasks that are to leave their node while it runs: another is made for the same place, and takes over (``slot``).

A drain moves every replicated task of a node. How many at a time is not counted here: all successors are prepared, and each takes
over when enough tasks of its service are healthy.
"""

from __future__ import annotations

from swarm_agent.control.orchestrator.restart import delay, ended_at, ran_long
from swarm_agent.control.orchestrator.slot import is_current, moves_start_first
from swarm_agent.control.tasks import aim, at_work, draining, live, make
from swarm_agent.control.transaction import Key, Transaction
from swarm_agent.objects import defaults, features
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Service, Task


def drain(p: Transaction, node_id: str) -> None:
    """Make a successor for each task that is still on a draining node."""
    node = p.view.nodes.get(node_id)
    if not draining(node) or p.level < features.ORCHESTRATION:
        return  # below that level a place of a draining node is simply filled elsewhere (``slot``)
    rows = [t for t in p.view.tasks.by("node", node_id) if at_work(t)]
    p.charge(len(rows))
    leaving: list[Task] = []
    begun = False
    for task in sorted(rows, key=lambda t: (t.service_id, t.slot)):
        service = p.view.services.get(task.service_id)
        if service is None or task.preset or defaults.is_job(service.spec) or service.id in p.quarantined:
            continue
        leaving.append(task)
        if p.full:
            p.more(Key("drain", node_id))
            break
        p.view.group(service.id)
        if _rests(p, task):
            _go_on_elsewhere(p, service, task)
        else:
            begun = move(p, service, task, "drain", Key("drain", node_id)) or begun
    for task in leaving if begun else ():
        p.discount(task)  # also those whose successors an earlier pass made: they would count twice


def _rests(p: Transaction, task: Task) -> bool:
    """Whether a task is prepared and waits out its delay after a failure: nothing of its place runs."""
    others = (t for t in p.at(task.service_id, task.place) if t.id != task.id)
    return (
        task.desired_state == TaskState.READY
        and p.now < task.start_after
        and not task.replaces
        and not any(at_work(t) for t in others)
    )


def _go_on_elsewhere(p: Transaction, service: Service, task: Task) -> None:
    """Its rest, and what is counted of its failures, are those of the place, not of the node."""
    aim(p, task, TaskState.SHUTDOWN)
    make(
        p,
        service,
        task.place,
        ready=True,
        cause="drain",
        start_after=task.start_after,
        attempt=task.attempt,
        failures=task.failures,
        revision_id=_revision(p, service, task),
    )


def _revision(p: Transaction, service: Service, task: Task) -> str:
    """What follows a task that leaves its node is of its revision; of the present one if that asks for nothing but another place. (Without
    a node the old one would count as stale, and be ended at once.)"""
    return service.revision_id if is_current(p, service, task) else task.revision_id


def move(p: Transaction, service: Service, task: Task, cause: str, key: Key) -> bool:
    """Make the task that takes over from ``task``; False when there is one, or it has to wait after a failure (``key`` is
    then looked at again)."""
    tasks = p.at(service.id, task.place)
    if any(live(t) and t.id != task.id and not t.status.state.terminal for t in tasks):
        return False
    failed = [t for t in tasks if t.replaces == task.id and t.status.state.terminal]
    failures = 0 if ran_long(task, p.now) else task.failures
    if failed:
        last = max(failed, key=ended_at)
        failures = last.failures + 1
        rested = ended_at(last) + delay(service, task.place, failures)
        if p.now < rested:
            p.wake(key, rested)
            return False
    make(
        p,
        service,
        task.place,
        ready=not moves_start_first(service),
        cause=cause,
        revision_id=_revision(p, service, task),
        replaces=task.id,
        failures=failures,
    )
    return True
