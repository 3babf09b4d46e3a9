"""Global modes: one task on every node that may have one. A place is a node."""

from __future__ import annotations

from collections.abc import Container, Iterator

from swarm_agent.control.orchestrator.slot import given_up, newest
from swarm_agent.control.tasks import aim, draining, live, lost_node, make, stopped
from swarm_agent.control.transaction import Key, Transaction
from swarm_agent.objects import defaults
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Node, Service, Task
from swarm_agent.store import View


def keeps(service: Service, node: Node | None) -> bool:
    """Whether a node may go on running a task of the service."""
    return (
        node is not None
        and not lost_node(node)
        and not draining(node)
        and node_matches(defaults.constraints(service.spec.task_template), node)
    )


def gets(service: Service, node: Node | None) -> bool:
    """Whether a node is to get a task it has not; a paused one is not."""
    return keeps(service, node) and node is not None and node.spec.availability == "active"


def places(view: View, service: Service) -> Iterator[str]:
    """The nodes that are to have a task."""
    return (n.id for n in view.nodes.all() if gets(service, n))


def fill(p: Transaction, service: Service, node_id: str) -> None:
    """Give a node the task it should have, and take away what it should not."""
    node = p.view.nodes.get(node_id)
    tasks = p.at(service.id, node_id)
    if node is None:
        for task in tasks:
            p.delete(task)  # its node is no part of the swarm any more
        return
    if not keeps(service, node):
        for task in tasks:
            if live(task) and not _done(service, task):
                aim(p, task, TaskState.SHUTDOWN)
        return
    if gets(service, node) and not _has(service, tasks):
        leaving = any(not stopped(p.view, t) for t in tasks)  # the node was drained, and is active again
        make(p, service, node_id, ready=leaving, cause="create")


def _done(service: Service, task: Task) -> bool:
    return defaults.is_job(service.spec) and task.status.state == TaskState.COMPLETE


def _has(service: Service, tasks: list[Task]) -> bool:
    """Whether the place has a live task, or its last one ended and policy leaves it so. One that was ended because its node
    went away does not count when the node is back."""
    iteration = service.job.iteration if service.job is not None else 0
    mine = [t for t in tasks if t.iteration == iteration]
    if any(live(t) for t in mine):
        return True
    return bool(mine) and newest(mine).status.state != TaskState.SHUTDOWN and given_up(service, mine)


def reconcile(p: Transaction, service: Service, present: Container[int | str] = ()) -> bool:
    """All nodes of a global service; whether anything was written. ``present``: places with one task, as it should be."""
    nodes = list(p.view.nodes.all())
    p.charge(len(nodes))
    before = p.puts
    gone = {t.preset for t in p.view.tasks.by("service", service.id)} - {n.id for n in nodes}
    wanting = (n.id for n in nodes if n.id not in present or n.spec.availability != "active")
    for node_id in [*sorted(gone), *wanting]:
        if p.full:
            p.more(Key("service", service.id))
            break
        fill(p, service, node_id)
    return p.puts != before
