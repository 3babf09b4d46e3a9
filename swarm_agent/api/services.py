"""``/services``."""

from __future__ import annotations

import re
from urllib.parse import quote

import msgspec

from swarm_agent.agent.engine_client import EngineError
from swarm_agent.api import views
from swarm_agent.api.backend import Backend
from swarm_agent.api.filters import keep, label_matches, parse_filters
from swarm_agent.api.resolve import resolve
from swarm_agent.api.writes import version_of, write, write_spec, write_until
from swarm_agent.control.admission import held, held_everywhere, must_be_free, must_not_be_the_swarms
from swarm_agent.control.orchestrator import jobs
from swarm_agent.control.orchestrator.dependencies import cycle
from swarm_agent.control.orchestrator.update import going
from swarm_agent.control.references import dealt_with, must_be_kept, resolve_contents
from swarm_agent.control.revisions import next_number, previous_of, revision_of
from swarm_agent.http.client import EngineUnreachable
from swarm_agent.http.server import HttpError, Request, Response, json_response
from swarm_agent.objects import defaults, features, validate
from swarm_agent.objects.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidSpec,
    Unimplemented,
)
from swarm_agent.objects.normalise import normalise, parse_json
from swarm_agent.objects.options import PREFIX, options
from swarm_agent.objects.records import JobStatus, Network, Revision, Service, UpdateStatus
from swarm_agent.objects.specs import NetworkAttachmentConfig, ServiceSpec
from swarm_agent.objects.validate import PREDEFINED_NETWORKS
from swarm_agent.store import Delete, Put, Store

_ENGINE_ID = re.compile(r"[0-9a-f]{64}")
_TESTS = {
    "id": lambda s, v: s.id.startswith(v),
    "name": lambda s, v: (s.spec.name or "").startswith(v),
    "label": lambda s, v: label_matches(s.spec.labels, v),
    "mode": lambda s, v: defaults.mode(s.spec) == v,
    "runtime": lambda s, v: (s.spec.task_template.runtime or "container") == v,
}


async def list_(backend: Backend, request: Request) -> Response:
    filters = parse_filters(request.query.get("filters", ""), _TESTS)
    with_status = request.query.get("status", "").lower() in ("1", "true", "t")
    out = []
    for service in keep(backend.store.services.all(), filters, _TESTS):
        shown = views.service(service, nowhere=held_everywhere(backend.store, service))
        if with_status:
            shown["ServiceStatus"] = views.service_status(service, backend.store)
        out.append(shown)
    return json_response(out)


async def inspect(backend: Backend, request: Request, wanted: str) -> Response:
    service = resolve(backend.store, Service, wanted)
    insert = request.query.get("insertDefaults", "").lower() in ("1", "true", "t")
    nowhere = held_everywhere(backend.store, service)
    return json_response(views.service(service, nowhere=nowhere, insert_defaults=insert))


async def create(backend: Backend, request: Request) -> Response:
    spec = await resolved(backend, _named(backend, normalise(parse_json(await request.body()), ServiceSpec)))
    acceptable(backend, spec)
    name = (spec.name or "").lower()
    with backend.reserve(f"service/{name}", *_port_names(spec)):
        if any(backend.store.services.by("name", name)):
            raise AlreadyExists(f"name conflicts with an existing object: service {spec.name} already exists")
        must_be_free(backend.store, spec, "")
        service, revision = created(backend, spec, request.header("x-registry-auth"))
        await write(backend, service.id, Put(revision, 0), Put(service, 0))
    warnings = held(backend.store, spec)
    return json_response({"ID": service.id, **({"Warnings": warnings} if warnings else {})}, 201)


async def update(backend: Backend, request: Request, wanted: str) -> Response:
    version = version_of(request, "service")
    raw = parse_json(await request.body())
    service = resolve(backend.store, Service, wanted)
    rollback = request.query.get("rollback", "")
    if rollback not in ("", "previous"):
        raise HttpError(500, f"unrecognized rollback option {rollback}")
    if rollback:
        normalise(raw, ServiceSpec)  # Docker checks the body too, and does not look at it any further
        await roll_back(backend, service.id, version)
        return json_response({"Warnings": None})
    auth = _registry_auth(request, service)
    spec = await resolved(backend, normalise(raw, ServiceSpec))
    acceptable(backend, spec, service.spec)
    with backend.reserve(*_port_names(spec)):
        updated(backend, service, spec, auth)  # raises what is wrong with it

        def change(now: Service) -> list[Put | Delete]:
            changed, revision = updated(backend, now, spec, auth)  # tracking may have moved it meanwhile
            known = backend.store.revisions.get(revision.id) is not None
            return [*(() if known else (Put(revision, 0),)), Put(changed, now.version)]

        await write_spec(backend, Service, service.id, version, service.id, change)
    return json_response({"Warnings": held(backend.store, spec) or None})


def size(store: Store, spec: ServiceSpec) -> int:
    """How many tasks a service of this spec has at once."""
    if defaults.is_global(spec):
        return len(store.nodes)
    return defaults.job(spec).max_concurrent if defaults.is_job(spec) else defaults.replicas(spec)


def created(backend: Backend, spec: ServiceSpec, auth: str) -> tuple[Service, Revision]:
    """A new service of an acceptable spec, as it would be stored, and its revision; raises what the cluster has against it."""
    must_be_free(backend.store, spec, "")
    service_id = backend.new_id()
    contents = resolve_contents(backend.store, spec)
    number = _number(backend, service_id)
    revision = revision_of(service_id, spec, network_ids(backend, spec), contents.contents, number)
    service = Service(
        id=service_id,
        spec=spec,
        revision_id=revision.id,
        job=JobStatus(last_execution=backend.now()) if defaults.is_job(spec) else None,
        registry_auth=auth,
        tracked=contents.tracked,
    )
    _no_circle(backend, service)
    return service, revision


def updated(backend: Backend, now: Service, spec: ServiceSpec, auth: str) -> tuple[Service, Revision]:
    """A service after an update with an acceptable spec, as it would be stored, and its revision."""
    if spec.name != now.spec.name:
        raise Unimplemented("renaming services is not supported")
    if defaults.mode(spec) != defaults.mode(now.spec):
        raise Unimplemented("service mode change is not allowed")
    must_be_free(backend.store, spec, now.id)
    contents = resolve_contents(backend.store, spec, now)
    number = _number(backend, now.id)
    revision = revision_of(now.id, spec, network_ids(backend, spec), contents.contents, number)
    same = revision.id == now.revision_id and going(now)
    changed = msgspec.structs.replace(
        now,
        spec=spec,
        previous_spec=(_before(now, spec) if same else None) or now.spec,
        revision_id=revision.id,
        previous_revision_id=(now.previous_revision_id if same else now.revision_id)
        if _leveled(backend)
        else "",
        registry_auth=auth,
        update_status=now.update_status if same else None,
        tracked=contents.tracked,
    )
    if _runs_again(now, spec):
        changed = jobs.again(changed, backend.now())
    changed = _timed(backend, changed, now.spec)
    _no_circle(backend, changed)
    return changed, revision


async def roll_back(backend: Backend, service_id: str, version: int) -> None:
    """Exchange a service's spec and its previous one.

    Raises:
        FailedPrecondition: there is no previous one.
        OutOfSequence: somebody changed the spec meanwhile.
    """
    must_know_rollback(backend)

    def change(now: Service) -> list[Put | Delete]:
        before = previous_of(backend.store, now)
        if now.previous_spec is None or before is None:
            raise FailedPrecondition(f"service {now.id} does not have a previous spec")
        return back_to(backend, now, now.previous_spec, before, "manually requested rollback")

    await write_spec(backend, Service, service_id, version, service_id, change)


def back_to(
    backend: Backend, now: Service, spec: ServiceSpec, revision: Revision, message: str
) -> list[Put | Delete]:
    """The writes of a rollback to ``spec`` and its ``revision``."""
    must_be_free(backend.store, spec, now.id)
    must_be_kept(backend.store, revision)
    known = backend.store.revisions.get(revision.id) is not None
    status = UpdateStatus(state="rollback_started", message=message, started_at=backend.now())
    changed = msgspec.structs.replace(
        now,
        spec=spec,
        previous_spec=now.spec,
        revision_id=revision.id,
        previous_revision_id=now.revision_id,
        tracked=dealt_with(backend.store, spec),
        update_status=None if defaults.is_job(spec) else status,
    )
    if _runs_again(now, spec):
        changed = jobs.again(changed, backend.now())
    changed = _timed(backend, changed, now.spec)
    return [*(() if known else (Put(revision, 0),)), Put(changed, now.version)]


def must_know_rollback(backend: Backend) -> None:
    if not _leveled(backend):
        raise Unimplemented(
            f"rollback needs feature level {features.ORCHESTRATION}, and this swarm is at level {backend.store.feature_level}: "
            "upgrade every manager (swarmctl status shows each one's level)"
        )


def _leveled(backend: Backend) -> bool:
    return backend.store.feature_level >= features.ORCHESTRATION


def _number(backend: Backend, service_id: str) -> int:
    return next_number(backend.store, service_id) if _leveled(backend) else 0


def _before(now: Service, spec: ServiceSpec) -> ServiceSpec | None:
    """What an update that goes on would be taken back to, after a change that makes no new revision (a scale, say)."""
    before = now.previous_spec
    if before is None:
        return None
    return msgspec.structs.replace(
        spec, task_template=before.task_template, endpoint_spec=before.endpoint_spec
    )


def _timed(backend: Backend, changed: Service, before: ServiceSpec) -> Service:
    """A timetable that is new counts from now, not from when the service was made."""
    wanted = options(changed.spec.labels).schedule
    if wanted is None or changed.job is None or wanted == options(before.labels).schedule:
        return changed
    return msgspec.structs.replace(changed, job=msgspec.structs.replace(changed.job, due=backend.now()))


def _runs_again(now: Service, spec: ServiceSpec) -> bool:
    """Any update runs a job again, as with Docker; one that has a timetable only when it is forced."""
    if not defaults.is_job(spec):
        return False
    if options(spec.labels).schedule is None:
        return True
    return spec.task_template.force_update != now.spec.task_template.force_update


def _no_circle(backend: Backend, service: Service) -> None:
    circle = cycle(backend.store, service)
    if circle:
        label = f"{PREFIX}depends-on"
        raise InvalidSpec(
            f"label {label}: these services would wait for each other for ever: {' -> '.join(circle)}",
            f"Labels['{label}']",
        )


async def remove(backend: Backend, request: Request, wanted: str) -> Response:  # noqa: ARG001
    id_ = resolve(backend.store, Service, wanted).id
    await write_until(backend, id_, lambda: [_removal(backend, id_)])
    return Response()


def _removal(backend: Backend, id_: str) -> Delete:
    service = resolve(backend.store, Service, id_)
    return Delete("service", service.id, service.version)


def acceptable(backend: Backend, spec: ServiceSpec, before: ServiceSpec | None = None) -> None:
    """Raises what is wrong with it, or what this cluster cannot hold yet. ``before``: the spec an update replaces."""
    validate.service(spec)
    must_not_be_the_swarms(spec, backend.own_ports, before)
    level, what = backend.store.feature_level, validate.needs(spec)
    if what and level < features.ORCHESTRATION:
        raise Unimplemented(
            f"{what} needs feature level {features.ORCHESTRATION}, and this swarm is at level {level}: upgrade every manager "
            "(swarmctl status shows each one's level)"
        )


# --- from what was sent to what is stored -------------------------------------------------------------------------------
def _named(backend: Backend, spec: ServiceSpec) -> ServiceSpec:
    """A service without a name gets one, as Docker gives."""
    if spec.name:
        return spec
    return msgspec.structs.replace(spec, name=f"service-{backend.new_id()[:8]}")


async def resolved(backend: Backend, spec: ServiceSpec) -> ServiceSpec:
    """Networks by id; Docker's old place for them is read when the new one is empty."""
    template = spec.task_template
    wanted = template.networks or spec.networks or ()
    networks = tuple([msgspec.structs.replace(n, target=await _network_id(backend, n)) for n in wanted])
    if not networks:
        return spec
    return msgspec.structs.replace(
        spec, task_template=msgspec.structs.replace(template, networks=networks), networks=None
    )


async def _network_id(backend: Backend, attachment: NetworkAttachmentConfig) -> str:
    target = attachment.target or ""
    if target in PREDEFINED_NETWORKS:
        return target
    if target == "ingress":
        raise InvalidSpec(f'Service cannot be explicitly attached to the ingress network "{target}"')
    if attachment.driver_opts:
        raise Unimplemented(
            "not supported by this version of swarm-agent: driver options of a network attachment "
            f"(TaskTemplate.Networks: DriverOpts {', '.join(sorted(attachment.driver_opts))} of {target}); no overlay here takes any"
        )
    try:
        return resolve(backend.store, Network, target).id
    except HttpError as err:
        if err.http_status != 404:
            raise
        name = await _local_name(backend, target)
        if name in PREDEFINED_NETWORKS:
            return name
        if name:
            raise HttpError(
                403,
                f"The network {name} cannot be used with services. Only networks scoped to the swarm can be used, "
                "such as those created with the overlay driver.",
            ) from err
        raise HttpError(500, f"network {target} not found") from err


async def localised(backend: Backend, body: bytes) -> bytes:
    """A body for the leader, which knows another id for this host's predefined networks: those by name."""
    spec = normalise(parse_json(body), ServiceSpec)
    names: dict[str, str] = {}
    for attachment in (*(spec.task_template.networks or ()), *(spec.networks or ())):
        target = attachment.target or ""
        if _ENGINE_ID.fullmatch(target):
            names[target] = await _local_name(backend, target)
    for target, name in names.items():
        if name in PREDEFINED_NETWORKS:
            body = body.replace(f'"{target}"'.encode(), f'"{name}"'.encode())
    return body


async def _local_name(backend: Backend, wanted: str) -> str:
    """The name of this host's own network, "" when it has none such."""
    try:
        found = await backend.engine.call("GET", f"/networks/{quote(wanted, safe='')}")
    except (EngineError, EngineUnreachable):
        return ""
    return str(found["Name"])


def network_ids(backend: Backend, spec: ServiceSpec) -> tuple[str, ...]:
    """The overlays of a resolved spec, in order; predefined local networks are the container's business."""
    targets = [n.target or "" for n in spec.task_template.networks or ()]
    return tuple(
        t for t in targets if t not in PREDEFINED_NETWORKS and backend.store.networks.get(t) is not None
    )


def _registry_auth(request: Request, service: Service) -> str:
    source = request.query.get("registryAuthFrom", "")
    if source not in ("", "spec", "previous-spec"):
        raise HttpError(400, f"invalid registryAuthFrom '{source}'")
    return request.header("x-registry-auth") or service.registry_auth


def _port_names(spec: ServiceSpec) -> list[str]:
    ports = (spec.endpoint_spec and spec.endpoint_spec.ports) or ()
    return [f"port/{defaults.protocol(p)}/{p.published_port}" for p in ports if p.published_port]
