"""Dry runs and explanations: what a change would do, why things are as they are, and what happened in a place."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from swarm_agent.api import services, views
from swarm_agent.api.backend import Backend
from swarm_agent.api.resolve import resolve
from swarm_agent.control.explain import history, standing
from swarm_agent.control.plan import PlanStep, forecast
from swarm_agent.control.transaction import Key
from swarm_agent.http.server import HttpError, Request, Response, json_response
from swarm_agent.objects.diff import service_diff
from swarm_agent.objects.normalise import normalise, parse_json
from swarm_agent.objects.records import Node, Service, Task
from swarm_agent.objects.specs import ServiceSpec

Json = dict[str, Any]
MAX_TASKS = 5000  # a dry run is one call on the leader


async def plan(backend: Backend, request: Request) -> Response:
    """``POST /swarm-agent/plan`` with a ServiceSpec: what creating or (if there is one of this name) updating it would do.

    The same checks as of the real call are made. ``Index`` is the version to update against: when it is no longer the
    service's, the plan is out of date and the update is refused.
    """
    raw = normalise(parse_json(await request.body()), ServiceSpec)
    spec = await services.resolved(backend, raw)
    services.acceptable(backend, spec)
    store = backend.store
    now = next(iter(store.services.by("name", (spec.name or "").lower())), None)
    if max(services.size(store, s) for s in (spec, now.spec if now is not None else spec)) > MAX_TASKS:
        raise HttpError(
            400, f"a plan of more than {MAX_TASKS} tasks is not made: it would hold up the leader"
        )
    if now is None:
        after, revision = services.created(backend, spec, "")
    else:
        after, revision = services.updated(backend, now, spec, now.registry_auth)
    steps = forecast(store, backend.controllers.memory, backend.now(), backend.new_id, after, revision)
    changes = service_diff(now.spec if now is not None else None, spec)
    if now is None:
        action = "create"
    else:
        touched = changes or any(s.action not in ("keep", "wait") for s in steps)
        action = "update" if touched else "none"
    return json_response(
        {
            "Action": action,
            "Index": now.version if now is not None else 0,
            "Changes": [msgspec.to_builtins(c) for c in changes] if now is not None else [],
            "NewRevision": now is None or now.revision_id != revision.id,
            "Tasks": dict(Counter(s.action for s in steps)),
            "Placement": [_step(backend, s) for s in steps],
        }
    )


def _step(backend: Backend, step: PlanStep) -> Json:
    place = (
        {"Slot": step.place}
        if isinstance(step.place, int)
        else {"Node": views.host_name(backend.store, step.place)}
    )
    out: Json = {**place, "Action": step.action}
    for key, node_id in (("From", step.before), ("To", step.after)):
        if node_id:
            out[key] = views.host_name(backend.store, node_id)
    if step.reasons:
        out["Reasons"] = views.reasons(step.reasons)
    return out


async def why(backend: Backend, request: Request, wanted: str) -> Response:  # noqa: ARG001
    """``GET /swarm-agent/services/{id}/why``: what is not as declared, and the reason."""
    service = resolve(backend.store, Service, wanted)
    controllers = backend.controllers
    quarantined = controllers.quarantined.get(Key("service", service.id))
    found = standing(backend.store, controllers.usage, service, backend.now(), quarantined)
    return json_response(
        {
            "Service": service.spec.name,
            "Notes": list(found.notes),
            "Tasks": [
                {
                    "Slot": t.slot or None,
                    "Node": views.host_name(backend.store, t.node_id or t.preset),
                    "TaskID": t.id,
                    "State": t.status.state.word,
                    "DesiredState": t.desired_state.word,
                    "Message": t.status.message,
                    "Err": t.status.err,
                    "Cause": t.cause,
                    "Reasons": views.reasons(reasons),
                    "Notes": list(notes),
                }
                for t, reasons, notes in found.tasks
            ],
        }
    )


async def why_node(backend: Backend, request: Request, wanted: str) -> Response:  # noqa: ARG001
    """``GET /swarm-agent/nodes/{id}/drain``: what a node still runs, and what holds it."""
    node = resolve(backend.store, Node, wanted)
    left = [
        t
        for t in backend.store.tasks.by("node", node.id)
        if not t.status.state.terminal and t.node_id == node.id
    ]
    out = []
    for task in sorted(left, key=lambda t: (t.service_name, t.slot)):
        successor = next(
            (
                t
                for t in backend.store.tasks.by("service", task.service_id)
                if t.replaces == task.id and not t.status.state.terminal
            ),
            None,
        )
        said = "is stopping" if task.desired_state.word in ("shutdown", "remove") else "runs"
        if successor is not None:
            said = f"waits for its successor, which is {successor.status.state.word} on {views.host_name(backend.store, successor.node_id) or 'no node yet'}"
            if successor.status.err:
                said += f": {successor.status.err}"
        out.append({"Service": task.service_name, "Slot": task.slot or None, "TaskID": task.id, "Says": said})
    return json_response(
        {"Node": node.description.hostname, "Availability": node.spec.availability, "Left": out}
    )


async def task_history(backend: Backend, request: Request, wanted: str) -> Response:  # noqa: ARG001
    """``GET /swarm-agent/tasks/{id}/history``: all kept tasks of the slot (or node) of a task, oldest first."""
    task = resolve(backend.store, Task, wanted)
    return json_response(
        [
            {
                "TaskID": c.task.id,
                "Cause": c.task.cause,
                "Revision": c.revision,
                "Image": c.image,
                "Node": views.host_name(backend.store, c.task.node_id),
                "CreatedAt": views.time_text(c.task.created_at),
                "StartedAt": views.time_text(c.task.status.started_at),
                "FinishedAt": views.time_text(c.task.status.finished_at),
                "State": c.task.status.state.word,
                "DesiredState": c.task.desired_state.word,
                "Err": c.task.status.err,
                "Text": c.text,
            }
            for c in history(backend.store, task)
        ]
    )
