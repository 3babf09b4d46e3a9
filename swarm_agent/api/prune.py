"""``/networks/prune``: what nobody uses goes, of the engine's networks and of the cluster's. ``docker system prune`` asks for the same."""

from __future__ import annotations

import datetime as dt
import functools
import re
from typing import Any

import msgspec

from swarm_agent.api import networks
from swarm_agent.api.backend import Backend
from swarm_agent.api.filters import Filters, label_matches, parse_filters
from swarm_agent.api.writes import write_until
from swarm_agent.http.server import HttpError, Request, Response, json_response
from swarm_agent.network.engine_networks import OPTION
from swarm_agent.objects.durations import parse_duration
from swarm_agent.objects.errors import FailedPrecondition
from swarm_agent.objects.records import Network

KEYS = ("label", "label!", "until")
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?")
_SECOND = 1_000_000_000


async def local(backend: Backend, request: Request) -> list[str]:
    """Prune the engine's networks, but for the local ends of ours, which the next task needs; the names of those that went."""
    filters = parse_filters(request.query.get("filters", ""), KEYS)
    _until(filters, backend.now())  # a bad one is refused before anything goes
    filters["label!"] = [*filters.get("label!", []), OPTION]
    query = {"filters": msgspec.json.encode(filters).decode()}
    found: dict[str, Any] = await backend.engine.call("POST", "/networks/prune", query=query)
    return list(found.get("NetworksDeleted") or ())


async def cluster(backend: Backend, request: Request) -> Response:
    """Remove the cluster's networks that no service and no task uses, and that the filters mean."""
    filters = parse_filters(request.query.get("filters", ""), KEYS)
    until = _until(filters, backend.now())
    gone = []
    for network in sorted(backend.store.networks.all(), key=lambda n: n.spec.name or ""):
        if not _meant(network, filters, until):
            continue
        removal = functools.partial(networks.removal, backend, network.id)
        try:
            await write_until(backend, f"network/{network.id}", removal)
        except FailedPrecondition:
            continue  # in use
        except HttpError as err:
            if err.http_status != 404:
                raise
            continue  # somebody else removed it
        gone.append(network.spec.name)
    return json_response({"NetworksDeleted": gone or None})


def _meant(network: Network, filters: Filters, until: int | None) -> bool:
    labels = network.spec.labels or {}
    return (
        (until is None or network.created_at <= until)
        and all(label_matches(labels, v) for v in filters.get("label", ()))
        and not any(label_matches(labels, v) for v in filters.get("label!", ()))
    )


def _until(filters: Filters, now: int) -> int | None:
    """Nanoseconds since the epoch: a time, or a duration before now."""
    given = filters.get("until", [])
    if not given:
        return None
    if len(given) > 1:
        raise HttpError(400, "more than one until filter specified")
    text = given[0]
    if _SECONDS.fullmatch(text):
        return round(float(text) * _SECOND)
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as err:
        raise HttpError(
            400, f"invalid until filter {text!r}: neither a duration such as 24h nor a time"
        ) from err
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return round(moment.timestamp() * _SECOND)
