"""What a node is assigned, as a function of the store: tasks with what they need, and how long one that lost its node is kept. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from swarm_agent.ca.join_server import ManagerAddress
from swarm_agent.objects import defaults, features, templates
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import Revision, Task
from swarm_agent.rpc.messages import Assignment, Piece
from swarm_agent.store import Store, slot_key

SILENT = "heartbeat failure"  # the message of a node that is down because it was not heard
NODE_DOWN = "node down"  # the cause of a task that was made because the one before it lost its node


def ready(task: Task) -> bool:
    """Whether the task takes traffic."""
    return task.status.state == TaskState.RUNNING and task.desired_state <= TaskState.COMPLETE


def kept(store: Store, task: Task) -> bool:
    """Whether a task that another is to replace goes on taking traffic: its node is silent, which says nothing of the task, and nothing runs
    in its place yet. One that ran under a lease that is over has ended."""
    if task.status.state != TaskState.RUNNING or task.desired_state != TaskState.SHUTDOWN:
        return False
    if held(store, task):
        return True
    node = store.nodes.get(task.node_id)
    if node is None or node.status.state != NodeState.DOWN or node.status.message != SILENT:
        return False
    if node.status.fenced and _singleton(store, task):
        return False
    return not any(ready(other) for other in store.tasks.by("slot", slot_key(task.service_id, task.place)))


def held(store: Store, task: Task) -> bool:
    """Whether a task whose node was taken for lost, and is back, runs on for a while: one was begun elsewhere in its place and does not run yet. To
    stop it now would leave the place without any. Not for those of which there may be only one, nor for one that waits for this to end."""
    if task.status.state != TaskState.RUNNING or task.desired_state != TaskState.SHUTDOWN:
        return False
    node, service = store.nodes.get(task.node_id), store.services.get(task.service_id)
    if node is None or node.status.state == NodeState.DOWN or service is None:
        return False
    if node.spec.availability == "drain" or defaults.is_job(service.spec) or _singleton(store, task):
        return False
    following = None
    for other in store.tasks.by("slot", slot_key(task.service_id, task.place)):
        if ready(other):
            return False
        if (
            other.id != task.id
            and other.desired_state == TaskState.RUNNING
            and not other.status.state.terminal
        ):
            following = other
    return (
        following is not None and following.cause == NODE_DOWN and following.node_id not in ("", task.node_id)
    )


def told(store: Store, task: Task) -> Task:
    """The task as its node is told of it."""
    if held(store, task):
        return msgspec.structs.replace(task, desired_state=TaskState.RUNNING)
    return task


def _singleton(store: Store, task: Task) -> bool:
    revision = store.revisions.get(task.revision_id)
    return revision is not None and revision.singleton


def draining(task: Task) -> bool:
    """Whether it is being stopped: no new connections, but those it has go on until it ends."""
    return task.status.state == TaskState.RUNNING and task.desired_state > TaskState.COMPLETE


def assignment(store: Store, task: Task) -> Assignment | None:
    revision = store.revisions.get(task.revision_id)
    if revision is None:
        return None
    service = store.services.get(task.service_id)
    cluster = store.cluster
    log_driver = cluster.spec.task_defaults.log_driver if cluster is not None else None
    if log_driver is not None and revision.template.log_driver is None:
        template = msgspec.structs.replace(revision.template, log_driver=log_driver)
        revision = msgspec.structs.replace(revision, template=template)
    return Assignment(task, revision, service.registry_auth if service is not None else "")


def needs_level(revision: Revision) -> int:
    """The feature level a node must know to run its tasks."""
    ctr = defaults.container(revision.template)
    unnumbered = any(
        defaults.publish_mode(port) == "host" and not port.published_port
        for port in revision.endpoint.ports or ()
    )
    later = revision.contents or revision.pre_start is not None or unnumbered or templates.has_template(ctr)
    return features.ORCHESTRATION if later else features.FIRST


def pieces(store: Store, ids: Iterable[str]) -> Iterator[Piece]:
    """The contents of these ids, as far as they are kept."""
    for id_ in ids:
        content = store.contents.get(id_)
        if content is None:
            continue
        owner = store.secrets.get(content.owner) or store.configs.get(content.owner)
        if owner is not None:
            yield Piece(id_, content.data, owner.spec.templating is not None)


def managers(store: Store) -> tuple[ManagerAddress, ...]:
    return tuple(
        ManagerAddress(n.id, n.manager_addr, n.rpc_addr)
        for n in sorted(store.nodes.by("role", "manager"), key=lambda n: n.id)
        if n.rpc_addr
    )
