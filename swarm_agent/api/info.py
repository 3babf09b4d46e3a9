"""``/info`` and the ``Swarm`` header of ``/_ping``: the engine's answer with our side put in."""

from __future__ import annotations

import logging
from typing import Any

from swarm_agent.api import views
from swarm_agent.api.backend import Backend
from swarm_agent.http.server import HttpError, Request, Response, json_response
from swarm_agent.log_format import LOG_LEVELS
from swarm_agent.objects.base import Spec
from swarm_agent.objects.normalise import normalise, parse_json


class LogLevel(Spec, frozen=True, kw_only=True):
    level: str | None = None


TWO_MANAGERS = (
    "WARNING: Running Swarm in a two-manager configuration. This configuration provides\n"
    "         no fault tolerance, and poses a high risk to lose control over the cluster.\n"
    "         Refer to https://docs.docker.com/engine/swarm/admin_guide/ to configure the\n"
    "         Swarm for fault-tolerance."
)


async def info(backend: Backend, request: Request) -> Response:  # noqa: ARG001
    shown: dict[str, Any] = await backend.engine.call("GET", "/info")
    shown["Swarm"] = swarm_section(backend)
    if backend.is_manager and shown["Swarm"].get("Managers") == 2:
        shown["Warnings"] = [*(shown.get("Warnings") or ()), TWO_MANAGERS]
    return json_response(shown)


async def log_level(backend: Backend, request: Request) -> Response:  # noqa: ARG001 - of this process
    """Set this daemon's log level until it restarts: ``{"Level": "debug"}``."""
    level = normalise(parse_json(await request.body()), LogLevel).level or ""
    if level not in LOG_LEVELS:
        raise HttpError(400, f"Level must be one of {', '.join(LOG_LEVELS)}, not {level!r}")
    logging.getLogger("swarm_agent").setLevel(level.upper())
    return Response()


def swarm_section(backend: Backend) -> dict[str, Any]:
    remote = [{"NodeID": m.node_id, "Addr": m.addr} for m in backend.remote_managers()]
    out: dict[str, Any] = {
        "NodeID": backend.node_id,
        "NodeAddr": backend.node_addr,
        "LocalNodeState": backend.state,
        "ControlAvailable": backend.state == "active" and backend.is_manager,
        "Error": backend.error,
        "RemoteManagers": remote or None,
    }
    if out["ControlAvailable"]:
        nodes = list(backend.store.nodes.all())
        out["Nodes"] = len(nodes)
        out["Managers"] = sum(1 for n in nodes if n.role == "manager")
        out["FeatureLevel"] = backend.store.feature_level
        cluster = backend.store.cluster
        if cluster is not None:
            out["Cluster"] = views.cluster(cluster)
    return out


def ping_header(backend: Backend) -> tuple[str, str]:
    state = backend.state
    if state == "active":
        state = "active/manager" if backend.is_manager else "active/worker"
    return ("Swarm", state)
