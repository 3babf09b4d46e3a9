"""``/networks``: the cluster's overlays together with the local engine's networks."""

from __future__ import annotations

import functools
import ipaddress
from typing import Any

import msgspec

from swarm_agent.api import views
from swarm_agent.api.backend import Backend
from swarm_agent.api.filters import keep, label_matches, parse_filters
from swarm_agent.api.resolve import resolve
from swarm_agent.api.writes import write, write_until
from swarm_agent.control import subnets
from swarm_agent.control.subnets import NODE_NETWORK
from swarm_agent.http.server import HttpError, Request, Response, json_response
from swarm_agent.network.engine_networks import DRIVER
from swarm_agent.objects import validate
from swarm_agent.objects.errors import AlreadyExists, FailedPrecondition, InvalidSpec
from swarm_agent.objects.normalise import normalise, parse_json
from swarm_agent.objects.records import Network
from swarm_agent.objects.specs import NetworkCreate
from swarm_agent.store import Delete, Put

_TESTS = {
    "driver": lambda n, v: v == "overlay",  # noqa: ARG005
    "id": lambda n, v: n.id.startswith(v),
    "name": lambda n, v: v in (n.spec.name or ""),
    "label": lambda n, v: label_matches(n.spec.labels or {}, v),
    "scope": lambda n, v: v == "swarm",  # noqa: ARG005
    "type": lambda n, v: v == "custom",  # noqa: ARG005
    "dangling": lambda n, v: v in ("1", "true") or v in ("0", "false"),  # noqa: ARG005
}


def is_overlay(raw: Any) -> bool:
    """Whether a create body is about a cluster network."""
    if not isinstance(raw, dict):
        return False
    lower = {k.lower(): v for k, v in raw.items()}
    return lower.get("driver") == "overlay" or lower.get("scope") == "swarm"


async def merged_list(backend: Backend, request: Request, local: list[dict[str, Any]]) -> Response:
    """The engine's list (already filtered by it) with the cluster's networks."""
    filters = parse_filters(request.query.get("filters", ""), _TESTS)
    ours = [views.network(n) for n in keep(backend.store.networks.all(), filters, _TESTS)]
    ids = {n["Id"] for n in ours}
    shown = [n for n in local if n["Id"] not in ids and not is_own(n)]
    return json_response(shown + ours)


def predefined(name: str) -> Response:
    """An engine's own network as the swarm knows it: by name, because each engine has another id for it."""
    return json_response(
        {
            **views.network(Network(id=name, spec=NetworkCreate(name=name))),
            "Driver": "null" if name == "none" else name,
            "Options": None,
        }
    )


def is_own(network: dict[str, Any]) -> bool:
    """Whether an engine network is the local end of one of ours."""
    return network.get("Driver") == DRIVER


async def list_(backend: Backend, request: Request) -> Response:
    """The cluster's networks alone (what a follower asks its leader for)."""
    return await merged_list(backend, request, [])


async def inspect(backend: Backend, request: Request, wanted: str) -> Response:  # noqa: ARG001
    return json_response(views.network(resolve(backend.store, Network, wanted)))


async def create(backend: Backend, request: Request) -> Response:
    spec = normalise(parse_json(await request.body()), NetworkCreate)
    validate.network(spec)
    name = (spec.name or "").lower()
    if name in ("bridge", "host", "none", "ingress"):
        raise HttpError(409, f"network with name {spec.name} already exists")
    with backend.reserve(f"network/{name}", *_subnet_names(spec)):
        if any(backend.store.networks.by("name", name)):
            raise HttpError(409, f"network with name {spec.name} already exists")
        _subnet_is_free(backend, spec)
        network = Network(id=backend.new_id(), spec=msgspec.structs.replace(spec, driver="overlay"))
        await write(backend, f"network/{network.id}", Put(network, 0))
    return json_response({"Id": network.id, "Warning": ""}, 201)


def _subnet_names(spec: NetworkCreate) -> list[str]:
    return ["subnet"] if _wanted_subnet(spec) else []


def _wanted_subnet(spec: NetworkCreate) -> str:
    config = next(iter((spec.ipam and spec.ipam.config) or ()), None)
    return (config and config.subnet) or ""


def _subnet_is_free(backend: Backend, spec: NetworkCreate) -> None:
    text = _wanted_subnet(spec)
    if not text:
        return
    wanted = ipaddress.IPv4Network(text)
    if wanted.overlaps(NODE_NETWORK):
        raise InvalidSpec(
            f"subnet {text} overlaps {NODE_NETWORK}, which the hosts' own network uses",
            "IPAM.Config[0].Subnet",
        )
    used = subnets.collision(wanted, backend.store.nodes.all())
    if used is not None:
        raise AlreadyExists(
            f"subnet {text} overlaps what a host uses itself: {used}. Tasks on it could not answer clients there; choose another"
        )
    for other in backend.store.networks.all():
        taken = other.subnet or _wanted_subnet(other.spec)
        if taken and wanted.overlaps(ipaddress.IPv4Network(taken)):
            raise AlreadyExists(f"subnet {text} overlaps network {other.spec.name} ({taken})")


async def remove(backend: Backend, request: Request, wanted: str) -> Response:  # noqa: ARG001
    id_ = resolve(backend.store, Network, wanted).id
    await write_until(backend, f"network/{id_}", functools.partial(removal, backend, id_))
    return Response(204)


def removal(backend: Backend, id_: str) -> list[Put | Delete]:
    """The writes. Raises FailedPrecondition for a network that is in use."""
    network = resolve(backend.store, Network, id_)
    for service in backend.store.services.all():
        revision = backend.store.revisions.get(service.revision_id)
        if revision is not None and network.id in revision.networks:
            raise FailedPrecondition(f"network {network.id} is in use by service {service.id}")
    for task in backend.store.tasks.all():
        live = not task.status.state.terminal and backend.store.services.get(task.service_id) is not None
        if live and any(a.network_id == network.id for a in task.networks):
            raise FailedPrecondition(f"network {network.id} is in use by task {task.id}")
    return [Delete("network", network.id, network.version)]
