"""What ``docker service`` has no verb for: kept revisions and the way back to any of them, another run of a job, rebalancing."""

from __future__ import annotations

from typing import Any

import msgspec

from swarm_agent.api.backend import Backend
from swarm_agent.api.resolve import resolve
from swarm_agent.api.services import back_to, must_know_rollback
from swarm_agent.api.views import host_name, time_text
from swarm_agent.api.writes import write_spec
from swarm_agent.control.orchestrator import jobs
from swarm_agent.control.orchestrator.rebalance import movable, suggest
from swarm_agent.http.server import HttpError, Request, Response, json_response
from swarm_agent.objects import defaults, features
from swarm_agent.objects.errors import FailedPrecondition, InvalidSpec, Unimplemented
from swarm_agent.objects.normalise import parse_json
from swarm_agent.objects.options import PREFIX, options
from swarm_agent.objects.records import Revision, Service
from swarm_agent.store import Delete, Put

Json = dict[str, Any]
MAX_PARALLEL = 1000  # tasks of one service that move at a time


async def list_(backend: Backend, request: Request, wanted: str) -> Response:  # noqa: ARG001
    """``GET /swarm-agent/services/{id}/revisions``: those that are kept, newest first."""
    service = resolve(backend.store, Service, wanted)
    found = sorted(
        backend.store.revisions.by("service", service.id),
        key=lambda r: (r.number, r.created_at),
        reverse=True,
    )
    tasks: dict[str, int] = {}
    for task in backend.store.tasks.by("service", service.id):
        if not task.status.state.terminal:
            tasks[task.revision_id] = tasks.get(task.revision_id, 0) + 1
    return json_response(
        [
            {
                "Number": r.number,
                "ID": r.id,
                "CreatedAt": time_text(r.created_at),
                "Image": defaults.container(r.template).image or "",
                "Tasks": tasks.get(r.id, 0),
                "Current": r.id == service.revision_id,
                "Previous": r.id == service.previous_revision_id,
            }
            for r in found
        ]
    )


async def roll_back_to(backend: Backend, request: Request, wanted: str) -> Response:
    """``POST /swarm-agent/services/{id}/rollback?to=N``: the tasks' part of the spec as revision N had it."""
    must_know_rollback(backend)
    service = resolve(backend.store, Service, wanted)
    text = request.query.get("to", "")
    found = [r for r in backend.store.revisions.by("service", service.id) if str(r.number) == text]
    if not found:
        kept = sorted(r.number for r in backend.store.revisions.by("service", service.id))
        raise HttpError(
            404,
            f"service {service.spec.name} has no revision {text or '(none given)'}: {', '.join(map(str, kept))} are kept",
        )
    revision = found[0]
    if revision.id == service.revision_id:
        raise FailedPrecondition(f"service {service.spec.name} is at revision {revision.number} already")
    await write_spec(
        backend, Service, service.id, service.version, service.id, lambda now: _back(backend, now, revision)
    )
    return Response()


def _back(backend: Backend, now: Service, revision: Revision) -> list[Put | Delete]:
    wanted = options(now.spec.labels)
    for what, asked, had in (
        ("singleton", wanted.singleton, revision.singleton),
        ("pre-start", wanted.pre_start, revision.pre_start),
    ):
        if asked != had:
            raise FailedPrecondition(
                f"revision {revision.number} was made when label {PREFIX}{what} said something else: "
                "change the label back first, or update to what that revision ran"
            )
    spec = msgspec.structs.replace(now.spec, task_template=revision.template, endpoint_spec=revision.endpoint)
    return back_to(backend, now, spec, revision, f"manually requested rollback to revision {revision.number}")


async def run(backend: Backend, request: Request, wanted: str) -> Response:  # noqa: ARG001
    """``POST /swarm-agent/services/{id}/run``: run a job again, now."""
    service = resolve(backend.store, Service, wanted)
    if not defaults.is_job(service.spec):
        raise InvalidSpec(f"service {service.spec.name} is no job: it is running all the time")
    await write_spec(
        backend,
        Service,
        service.id,
        service.version,
        service.id,
        lambda now: [Put(jobs.again(now, backend.now()), now.version)],
    )
    return Response()


async def rebalance(backend: Backend, request: Request) -> Response:
    """``POST /swarm-agent/rebalance``: what would move, and with ``{"Apply": true}`` have it moved.

    ``{"Services": [name or id..]}``: these alone; ``{"Parallel": n}``: so many tasks of a service at a time (1).
    """
    raw = parse_json(await request.body())
    if not isinstance(raw, dict):
        raise HttpError(400, "the body is not an object of Services, Parallel and Apply")
    asked: Json = raw
    unknown = set(asked) - {"Services", "Parallel", "Apply"}
    if unknown:
        raise HttpError(400, f"unknown field {min(unknown)}: known are Services, Parallel, Apply")
    parallel = asked.get("Parallel", 1)
    if not isinstance(parallel, int) or isinstance(parallel, bool) or not 0 < parallel <= MAX_PARALLEL:
        raise HttpError(400, f"Parallel: {parallel!r} is not a number from 1 to {MAX_PARALLEL}")
    if not isinstance(asked.get("Apply") or False, bool):
        raise HttpError(400, f"Apply: {asked['Apply']!r} is neither true nor false")
    names = asked.get("Services") or []
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise HttpError(400, "Services is not a list of names or ids")
    store = backend.store
    named = [resolve(store, Service, name) for name in names]
    services = named or sorted(store.services.all(), key=lambda s: s.spec.name or "")
    left_out = {s.spec.name: movable(s) for s in services if movable(s)}
    found = suggest(store, backend.controllers.memory, backend.now(), backend.new_id, services)
    if asked.get("Apply"):
        if store.feature_level < features.ORCHESTRATION:
            raise Unimplemented(
                f"rebalancing needs feature level {features.ORCHESTRATION}, and this swarm is at level {store.feature_level}: "
                "upgrade every manager (swarmctl status shows each one's level)"
            )
        for service_id in dict.fromkeys(s.service_id for s in found):
            await _wish(backend, service_id, parallel)
    counted = [s for s in services if not movable(s)]
    total = sum(
        1 for s in counted for t in store.tasks.by("service", s.id) if t.desired_state.word == "running"
    )
    return json_response(
        {
            "Moves": [
                {
                    "Service": _name(store.services.get(s.service_id)),
                    "Slot": s.place,
                    "TaskID": s.task_id,
                    "From": host_name(store, s.before),
                    "To": host_name(store, s.after),
                    "Why": s.text,
                }
                for s in found
            ],
            "Tasks": total,
            "LeftOut": left_out,
            "Applied": bool(asked.get("Apply")) and bool(found),
        }
    )


async def _wish(backend: Backend, service_id: str, parallel: int) -> None:
    service = backend.store.services.get(service_id)
    if service is not None:
        await write_spec(
            backend,
            Service,
            service_id,
            service.version,
            service_id,
            lambda now: [Put(msgspec.structs.replace(now, rebalancing=parallel), now.version)],
        )


def _name(service: Service | None) -> str:
    return "" if service is None else service.spec.name or ""
