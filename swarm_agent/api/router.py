"""Which call is ours: routes, who may serve them, and where the rest goes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import h11

from swarm_agent.agent.engine_client import EngineError, parse_version
from swarm_agent.api import (
    backup,
    events,
    info,
    logs,
    networks,
    nodes,
    plan,
    prune,
    revisions,
    services,
    swarm,
    tasks,
    views,
)
from swarm_agent.api.backend import Backend
from swarm_agent.api.filters import parse_filters
from swarm_agent.api.resolve import resolve
from swarm_agent.api.secrets import CONFIGS, SECRETS, SecretHandlers
from swarm_agent.http.client import EngineUnreachable
from swarm_agent.http.proxy import pass_through
from swarm_agent.http.server import (
    HttpError,
    Request,
    Response,
    Streamed,
    error_response,
    json_response,
)
from swarm_agent.objects.errors import NotLeading, SwarmError
from swarm_agent.objects.normalise import parse_json
from swarm_agent.objects.records import Network
from swarm_agent.objects.validate import PREDEFINED_NETWORKS
from swarm_agent.rpc.messages import ForwardedAnswer, ForwardedCall

NOT_IN_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" '
    "to connect this node to swarm and try again."
)
ON_WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. "
    "Please run this command on a manager node or promote the current node to a manager."
)
PREPARING = (
    "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster."
)
LOCKED = (
    "Swarm is encrypted and needs to be unlocked before it can be used. "
    'Please use "docker swarm unlock" to unlock it.'
)
_VERSION = re.compile(r"/v(\d{1,4}\.\d{1,4})(/.*)")
_HOP_HEADERS = ("host", "connection", "content-length", "transfer-encoding", "upgrade")


class ApiRoute(NamedTuple):
    method: str
    pattern: re.Pattern[str]
    serve: Callable[..., Awaitable[Any]]
    local: bool = False  # answered by this node, in whatever state it is


def _route(method: str, path: str, serve: Callable[..., Awaitable[Any]], *, local: bool = False) -> ApiRoute:
    return ApiRoute(method, re.compile(path.replace("{id}", "(?P<wanted>[^/]+)")), serve, local)


def _content_routes(word: str, own: SecretHandlers) -> tuple[ApiRoute, ...]:
    return (
        _route("GET", f"/{word}", own.list_),
        _route("POST", f"/{word}/create", own.create),
        _route("GET", f"/{word}/{{id}}", own.inspect),
        _route("DELETE", f"/{word}/{{id}}", own.remove),
        _route("POST", f"/{word}/{{id}}/update", own.update),
        _route("GET", f"/swarm-agent/{word}/{{id}}/versions", own.versions),
        _route("POST", f"/swarm-agent/{word}/{{id}}/versions", own.add_version),
    )


ROUTES: tuple[ApiRoute, ...] = (
    _route("POST", "/swarm/init", swarm.init, local=True),
    _route("POST", "/swarm/join", swarm.join, local=True),
    _route("POST", "/swarm/leave", swarm.leave, local=True),
    _route("POST", "/swarm/unlock", swarm.unlock, local=True),
    _route("GET", "/info", info.info, local=True),
    _route("GET", "/swarm", swarm.inspect),
    _route("GET", "/swarm/unlockkey", swarm.unlock_key),
    _route("POST", "/swarm/update", swarm.update),
    _route("GET", "/nodes", nodes.list_),
    _route("GET", "/nodes/{id}", nodes.inspect),
    _route("POST", "/nodes/{id}/update", nodes.update),
    _route("DELETE", "/nodes/{id}", nodes.remove),
    _route("GET", "/services", services.list_),
    _route("POST", "/services/create", services.create),
    _route("GET", "/services/{id}", services.inspect),
    _route("POST", "/services/{id}/update", services.update),
    _route("DELETE", "/services/{id}", services.remove),
    _route("GET", "/services/{id}/logs", logs.service_logs),
    _route("GET", "/tasks", tasks.list_),
    _route("GET", "/tasks/{id}", tasks.inspect),
    _route("GET", "/tasks/{id}/logs", logs.task_logs),
    *_content_routes("secrets", SECRETS),
    *_content_routes("configs", CONFIGS),
)
# what the docker CLI has no verb for
OWN_ROUTES: tuple[ApiRoute, ...] = (
    _route("POST", "/swarm-agent/log-level", info.log_level, local=True),
    _route("POST", "/swarm-agent/backup", backup.backup, local=True),
    _route("POST", "/swarm-agent/recover", backup.recover, local=True),
)
# the same, about the cluster: the leader answers
EXTRA_ROUTES: tuple[ApiRoute, ...] = (
    _route("POST", "/swarm-agent/plan", plan.plan),
    _route("POST", "/swarm-agent/rebalance", revisions.rebalance),
    _route("GET", "/swarm-agent/services/{id}/revisions", revisions.list_),
    _route("POST", "/swarm-agent/services/{id}/rollback", revisions.roll_back_to),
    _route("POST", "/swarm-agent/services/{id}/run", revisions.run),
    _route("GET", "/swarm-agent/services/{id}/why", plan.why),
    _route("GET", "/swarm-agent/nodes/{id}/drain", plan.why_node),
    _route("GET", "/swarm-agent/tasks/{id}/history", plan.task_history),
)
# cluster networks share their paths with the engine's: which is meant shows only in the call
CLUSTER_NETWORK_ROUTES: tuple[ApiRoute, ...] = (
    _route("GET", "/cluster-networks", networks.list_),
    _route("GET", "/cluster-networks/{id}", networks.inspect),
    _route("POST", "/cluster-networks/create", networks.create),
    _route("DELETE", "/cluster-networks/{id}", networks.remove),
    _route("POST", "/cluster-networks/prune", prune.cluster),
)


class Api:
    """The handler behind the socket."""

    def __init__(self, backend: Backend, cluster_events: Callable[[], events.ClusterEvents | None]) -> None:
        self._backend = backend
        self._cluster_events = cluster_events

    async def handle(self, request: Request) -> Any:
        match = _VERSION.fullmatch(request.path)
        path = match[2] if match else request.path
        found = find_route(request.method, path)
        if match is not None and (found is not None or path.startswith("/networks")):
            await self._check_version(match[1])
        if found is not None:
            route, arguments = found
            if route.local:
                return await route.serve(self._backend, request, **arguments)
            return await self._cluster(route, request, path, arguments)
        if path == "/networks" or path.startswith("/networks/"):
            return await self._networks(request, path)
        if path == "/_ping":
            return await self._pass(request, (info.ping_header(self._backend),))
        if path == "/events" and request.method == "GET":
            return self._events(request)
        return await self._pass(request)

    async def _check_version(self, text: str) -> None:
        """A client may speak what the engine speaks: it learned that from the engine's own answers."""
        wanted = parse_version(text)
        try:
            served = await self._backend.engine.versions()
            if not served.oldest <= wanted <= served.newest:
                served = await self._backend.engine.versions(fresh=True)
        except EngineUnreachable:
            return  # the swarm is there without the engine
        if wanted > served.newest:
            newest = ".".join(map(str, served.newest))
            raise HttpError(
                400, f"client version {text} is too new. Maximum supported API version is {newest}"
            )
        if wanted < served.oldest:
            oldest = ".".join(map(str, served.oldest))
            raise HttpError(
                400,
                f"client version {text} is too old. Minimum supported API version is {oldest}, "
                "please upgrade your client to a newer version",
            )

    async def _pass(self, request: Request, extra: tuple[tuple[str, str], ...] = ()) -> Any:
        return await pass_through(request, self._backend.engine.socket_path, extra)

    # --- the cluster's calls -----------------------------------------------------------------------------------------
    async def _cluster(self, route: ApiRoute, request: Request, path: str, arguments: dict[str, str]) -> Any:
        """Answer as the leader, or have the leader answer."""
        self._must_be_manager()
        if self._backend.is_leader:
            with contextlib.suppress(NotLeading):  # nothing was done: whoever leads now answers
                await self._barrier(request.method)
                return await route.serve(self._backend, request, **arguments)
        body = await request.body()
        if route.serve in (services.create, services.update, plan.plan):
            body = await services.localised(self._backend, body)
        return await self._forward(request, path, body)

    async def _barrier(self, method: str) -> None:
        """Reads see all that was acknowledged before. Writes need no barrier: they are checked when they are applied."""
        if method == "GET":
            await self._backend.read_barrier()

    def _must_be_manager(self, status: int = 503) -> None:
        backend = self._backend
        if backend.state == "locked":
            raise HttpError(status, LOCKED)
        if backend.state != "active":
            raise HttpError(status, NOT_IN_SWARM)
        if not backend.is_manager:
            if backend.role == "manager":
                why = f" ({backend.error})" if backend.error else ""
                raise HttpError(status, PREPARING + why)
            raise HttpError(status, ON_WORKER)
        self._cluster_events()  # remembers for who asks for the past

    async def _forward(self, request: Request, path: str, body: bytes) -> Any:
        headers = tuple(
            (k.decode(), v.decode("latin-1"))
            for k, v in request.head.headers
            if k.decode() not in _HOP_HEADERS
        )
        call = ForwardedCall(request.method, path, request.raw_query, headers, body)
        pieces = self._backend.forward(call)
        head = await anext(pieces)
        kept = tuple((k, v) for k, v in head.headers if k.lower() not in _HOP_HEADERS)
        if any(k.lower() == "x-swarm-streamed" for k, _ in kept):
            kept = tuple((k, v) for k, v in kept if k.lower() != "x-swarm-streamed")
            return Streamed(_bodies(head, pieces), head.status, kept)
        return Response(head.status, b"".join([p async for p in _bodies(head, pieces)]), kept)

    async def serve_forwarded(self, call: ForwardedCall) -> AsyncIterator[ForwardedAnswer]:
        """The leader's side of :meth:`_forward`: never forwards again. NotLeading when leadership went before anything
        was done."""
        request = ForwardedRequest(call)
        try:
            found = find_route(call.method, call.path, ROUTES + EXTRA_ROUTES + CLUSTER_NETWORK_ROUTES)
            if found is None or found[0].local:
                raise HttpError(404, "page not found")
            self._cluster_events()
            await self._barrier(call.method)
            answer = await found[0].serve(self._backend, request, **found[1])
        except NotLeading:
            raise
        except SwarmError as err:
            answer = error_response(err)
        if isinstance(answer, Streamed):
            yield ForwardedAnswer(answer.status, (*answer.headers, ("X-Swarm-Streamed", "1")))
            async for piece in answer.pieces:
                yield ForwardedAnswer(body=piece)
        else:
            yield ForwardedAnswer(answer.status, answer.headers, answer.body)

    # --- networks ----------------------------------------------------------------------------------------------------
    async def _networks(self, request: Request, path: str) -> Any:
        """The cluster's overlays and the engine's networks under one roof."""
        backend = self._backend
        manager = backend.state == "active" and backend.is_manager
        if request.method == "POST" and path == "/networks/create":
            body = await request.body()
            if networks.is_overlay(parse_json(body)):
                self._must_be_manager(500)
                return await self._network_call(request, "POST", "/cluster-networks/create", body)
            return await self._engine_call(request, body)
        if request.method == "POST" and path == "/networks/prune":
            return await self._prune(request, manager=manager)
        if not manager:
            return await self._pass(request)
        if request.method == "GET" and path == "/networks":
            local = await backend.engine.call("GET", "/networks", query=request.query)
            return await networks.merged_list(backend, request, local)
        match = re.fullmatch(r"/networks/([^/]+)", path)
        if match is None or request.method not in ("GET", "DELETE"):
            return await self._pass(request)
        wanted = unquote(match[1])
        if wanted in PREDEFINED_NETWORKS and request.query.get("scope") == "swarm":
            return networks.predefined(wanted)
        found = await self._cluster_network(request, wanted)
        if found is None:
            return await self._pass(request)
        if request.method == "GET":
            return json_response(views.network(found))
        return await self._network_call(request, "DELETE", f"/cluster-networks/{found.id}", b"")

    async def _prune(self, request: Request, *, manager: bool) -> Response:
        """The engine's first, as Docker does; a worker's, or a host's in no swarm, alone."""
        gone = await prune.local(self._backend, request)
        if manager:
            answer: Response = await self._network_call(request, "POST", "/cluster-networks/prune", b"")
            if answer.status != 200:
                return answer
            gone = [*(parse_json(answer.body)["NetworksDeleted"] or ()), *gone]
        return json_response({"NetworksDeleted": gone or None})

    async def _cluster_network(self, request: Request, wanted: str) -> Network | None:
        """The cluster network meant, unless the engine has one of exactly this id or name (local goes first)."""
        scope = request.query.get("scope", "")
        if scope == "local":
            return None
        store = self._backend.store
        if not self._backend.is_leader:
            await self._backend.read_barrier()
        try:
            found = resolve(store, Network, wanted)
        except HttpError:
            return None
        if scope == "swarm" or wanted == found.id:
            return found
        try:
            local = await self._backend.engine.call("GET", f"/networks/{quote(wanted, safe='')}")
        except EngineError:
            return found
        exact = wanted in (local["Id"], local["Name"])
        return None if exact and not networks.is_own(local) else found

    async def _network_call(self, request: Request, method: str, path: str, body: bytes) -> Any:
        call = ForwardedCall(method, path, request.raw_query, (), body)
        if self._backend.is_leader:
            with contextlib.suppress(NotLeading):
                return await self._answer(self.serve_forwarded(call))
        return await self._answer(self._backend.forward(call))

    async def _answer(self, pieces: AsyncIterator[ForwardedAnswer]) -> Response:
        head = await anext(pieces)
        return Response(head.status, b"".join([p async for p in _bodies(head, pieces)]), head.headers)

    async def _engine_call(self, request: Request, body: bytes) -> Response:
        """Pass on a call whose body was read to see whose it is."""
        headers = (
            {"X-Registry-Auth": request.header("x-registry-auth")}
            if request.header("x-registry-auth")
            else {}
        )
        answer = await self._backend.engine.answer(
            request.method, _VERSION.sub(r"\2", request.path), query=request.query, body=body, headers=headers
        )
        kept = tuple(
            (k.decode(), v.decode("latin-1"))
            for k, v in answer.headers
            if k.decode().lower() not in _HOP_HEADERS
        )
        return Response(answer.status, answer.body, kept)

    # --- events ------------------------------------------------------------------------------------------------------
    def _events(self, request: Request) -> Any:
        known = [
            "config",
            "container",
            "daemon",
            "event",
            "image",
            "label",
            "network",
            "node",
            "plugin",
            "scope",
            "secret",
            "service",
            "type",
            "volume",
        ]
        filters = parse_filters(request.query.get("filters", ""), known)
        window = events.parse_window(request.query)
        cluster = self._cluster_events() if self._backend.is_manager else None
        pieces = events.stream(self._backend.engine, cluster, dict(request.query), filters, window)
        return Streamed(pieces, headers=(("Content-Type", "application/json"),))


def find_route(
    method: str, path: str, routes: tuple[ApiRoute, ...] = ROUTES + OWN_ROUTES + EXTRA_ROUTES
) -> tuple[ApiRoute, dict[str, str]] | None:
    for route in routes:
        if route.method == method:
            match = route.pattern.fullmatch(path)
            if match is not None:
                return route, {k: unquote(v) for k, v in match.groupdict().items()}
    return None


async def _bodies(head: ForwardedAnswer, pieces: AsyncIterator[ForwardedAnswer]) -> AsyncIterator[bytes]:
    yield head.body
    async for piece in pieces:
        yield piece.body


class ForwardedRequest(Request):
    """A request that arrived by RPC: its body is here already."""

    def __init__(self, call: ForwardedCall) -> None:
        target = f"{call.path}?{call.query}" if call.query else call.path
        head = h11.Request(method=call.method, target=target, headers=[("Host", "swarm"), *call.headers])
        super().__init__(head, None)
        self._body = call.body

    async def body(self, most: int = 0) -> bytes:  # noqa: ARG002 - it was bounded on its way
        return self._body
