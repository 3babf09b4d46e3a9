"""``/nodes``."""

from __future__ import annotations

import msgspec

from swarm_agent.api import views
from swarm_agent.api.backend import Backend
from swarm_agent.api.filters import keep, label_matches, one_of, parse_filters
from swarm_agent.api.resolve import resolve
from swarm_agent.api.swarm import the_cluster
from swarm_agent.api.writes import version_of, write_spec, write_until
from swarm_agent.http.server import HttpError, Request, Response, json_response
from swarm_agent.objects import validate
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.errors import FailedPrecondition
from swarm_agent.objects.leases import FENCE_S
from swarm_agent.objects.normalise import normalise, parse_json
from swarm_agent.objects.records import Node
from swarm_agent.objects.specs import NodeSpec
from swarm_agent.store import Delete, Put

_TESTS = {
    "id": lambda n, v: n.id.startswith(v),
    "name": lambda n, v: n.description.hostname.startswith(v),
    "label": lambda n, v: label_matches(n.description.engine_labels, v),
    "node.label": lambda n, v: label_matches(n.spec.labels, v),
    "role": lambda n, v: n.spec.role == v,
    "membership": lambda n, v: v == "accepted",  # noqa: ARG005 - there are no pending nodes
}


async def list_(backend: Backend, request: Request) -> Response:
    filters = parse_filters(request.query.get("filters", ""), _TESTS)
    for role in filters.get("role", ()):
        one_of(role, ("manager", "worker"), "role")
    for membership in filters.get("membership", ()):
        one_of(membership, ("accepted", "pending"), "membership")
    rows = keep(backend.store.nodes.all(), filters, _TESTS)
    tls = views.tls_info(the_cluster(backend).root_ca.cert)
    health = backend.manager_health()
    return json_response([views.node(n, tls, health.get(n.id)) for n in rows])


async def inspect(backend: Backend, request: Request, wanted: str) -> Response:  # noqa: ARG001
    node = resolve(backend.store, Node, wanted)
    tls = views.tls_info(the_cluster(backend).root_ca.cert)
    return json_response(views.node(node, tls, backend.manager_health().get(node.id)))


async def update(backend: Backend, request: Request, wanted: str) -> Response:
    version = version_of(request, "node")
    raw = parse_json(await request.body())
    node = resolve(backend.store, Node, wanted)
    if isinstance(raw, dict):
        for key in ("Role", "Availability"):
            found = next((k for k in raw if k.lower() == key.lower()), None)
            if found is None or not raw[found]:
                raise HttpError(400, f'invalid {key}: ""')
    spec = normalise(raw, NodeSpec)
    validate.node(spec)
    if node.spec.role == "manager" and spec.role == "worker":
        _may_demote(backend, node)
    await write_spec(
        backend,
        Node,
        node.id,
        version,
        f"node/{node.id}",
        lambda now: [Put(msgspec.structs.replace(now, spec=spec), now.version)],
    )
    return Response()


def _may_demote(backend: Backend, node: Node) -> None:
    managers = [n for n in backend.store.nodes.all() if n.spec.role == "manager"]
    if len(managers) == 1:
        raise FailedPrecondition("attempting to demote the last manager of the swarm")
    if not backend.may_lose(node.id):
        raise FailedPrecondition("can't remove member from the raft: this would result in a loss of quorum")


async def remove(backend: Backend, request: Request, wanted: str) -> Response:
    force = request.query.get("force", "").lower() in ("1", "true", "t")
    id_ = resolve(backend.store, Node, wanted).id

    def decide() -> list[Put | Delete]:
        node = resolve(backend.store, Node, id_)
        _may_remove(node, force=force)
        _may_be_forgotten(backend, node)
        return _removal(backend, node)

    await write_until(backend, f"node/{id_}", decide)
    return Response()


def _may_remove(node: Node, *, force: bool) -> None:
    if node.role == "manager" or node.spec.role == "manager":
        raise FailedPrecondition(
            f"node {node.id} is a cluster manager and is a member of the raft cluster. "
            "It must be demoted to worker before removal"
        )
    if node.status.state != NodeState.DOWN and not force:
        raise FailedPrecondition(f"node {node.id} is not down and can't be removed")


def _may_be_forgotten(backend: Backend, node: Node) -> None:
    """Nobody waits for what ran on a node that is gone: so nothing that must not run twice may be left on it."""
    if node.status.fenced:
        return
    for task in backend.store.tasks.by("node", node.id):
        revision = backend.store.revisions.get(task.revision_id)
        if revision is not None and revision.singleton and not task.status.state.terminal:
            raise FailedPrecondition(
                f"node {node.id} may still run the strict singleton {task.service_name}: shut the node down or let it stop the task, "
                f"and try again once it is known to have ended, at the latest {FENCE_S:g} s after the node was last heard of"
            )


def _removal(backend: Backend, node: Node) -> list[Put | Delete]:
    """The node goes, its certificate is worth nothing any more, its tasks are orphans."""
    cluster = the_cluster(backend)
    now = backend.now()
    week = 7 * 24 * 3600 * 1_000_000_000
    removed = {i: end for i, end in cluster.removed_nodes.items() if end + week > now}
    removed[node.id] = node.cert_not_after
    writes: list[Put | Delete] = [
        Put(msgspec.structs.replace(cluster, removed_nodes=removed), cluster.version),
        Delete("node", node.id, node.version),
    ]
    for task in backend.store.tasks.by("node", node.id):
        if task.status.state < TaskState.COMPLETE:
            status = msgspec.structs.replace(
                task.status,
                state=TaskState.ORPHANED,
                message="Task belonged to a node that has been deleted",
                timestamp=now,
                finished_at=now,
            )
            writes.append(Put(msgspec.structs.replace(task, status=status), task.version))
    return writes
