"""``/tasks``."""

from __future__ import annotations

from swarm_agent.api import views
from swarm_agent.api.backend import Backend
from swarm_agent.api.filters import Filters, keep, label_matches, one_of, parse_filters
from swarm_agent.api.resolve import resolve
from swarm_agent.control.admission import held_ingress
from swarm_agent.control.revisions import same_but_placement
from swarm_agent.http.server import Request, Response, json_response
from swarm_agent.objects import defaults
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Node, Service, Task

_KEYS = ("id", "name", "label", "service", "node", "desired-state", "runtime", "_up-to-date")
_TESTS = {
    "id": lambda t, v: t.id.startswith(v),
    "name": lambda t, v: t.name.startswith(v),
    "label": lambda t, v: label_matches(t.service_labels, v),
    "service": lambda t, v: t.service_id == v,
    "node": lambda t, v: (t.node_id or t.preset) == v,
    "desired-state": lambda t, v: t.desired_state.word == v.lower(),
    "runtime": lambda t, v: v == "container",  # noqa: ARG005
}
_DESIRED = tuple(state.word for state in TaskState)


async def list_(backend: Backend, request: Request) -> Response:
    filters = parse_filters(request.query.get("filters", ""), _KEYS)
    up_to_date = filters.pop("_up-to-date", [])
    for state in filters.get("desired-state", ()):
        one_of(state.lower(), _DESIRED, "desired-state")
    _resolve_references(backend, filters)
    rows = keep(_candidates(backend, filters), filters, _TESTS)
    if up_to_date:
        wanted = up_to_date[0].lower() in ("1", "true", "t")
        rows = [t for t in rows if _current(backend, t) == wanted]
    return json_response(_shown(backend, rows))


async def inspect(backend: Backend, request: Request, wanted: str) -> Response:  # noqa: ARG001
    return json_response(_shown(backend, [resolve(backend.store, Task, wanted)])[0])


def _shown(backend: Backend, rows: list[Task]) -> list[views.Json]:
    """With what is to be said of their services' ports."""
    store = backend.store
    not_taken: dict[str, str] = {}
    for service_id in {t.service_id for t in rows if t.node_address}:
        service = store.services.get(service_id)
        if service is not None:
            not_taken[service_id] = "; ".join(held_ingress(store, service))
    return [views.task(t, store, not_taken.get(t.service_id, "")) for t in rows]


def _resolve_references(backend: Backend, filters: Filters) -> None:
    if "service" in filters:
        filters["service"] = [resolve(backend.store, Service, v).id for v in filters["service"]]
    if "node" in filters:
        filters["node"] = [resolve(backend.store, Node, v).id for v in filters["node"]]


def _candidates(backend: Backend, filters: Filters) -> list[Task]:
    """The smallest set an index gives."""
    tasks = backend.store.tasks
    for key in ("service", "node"):
        if filters.get(key):
            return [t for v in dict.fromkeys(filters[key]) for t in tasks.by(key, v)]
    return list(tasks.all())


def _current(backend: Backend, task: Task) -> bool:
    """Whether the task is as its service's present revision declares it; of a job, of the present run."""
    store = backend.store
    service = store.services.get(task.service_id)
    if service is None:
        return False
    if service.job is not None:
        return task.iteration == service.job.iteration
    present, own = store.revisions.get(service.revision_id), store.revisions.get(task.revision_id)
    if present is None or own is None or not same_but_placement(present, own):
        return False
    node = store.nodes.get(task.node_id)
    return present.id == own.id or (
        node is not None and node_matches(defaults.constraints(present.template), node)
    )
