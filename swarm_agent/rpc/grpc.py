"""gRPC without generated code: generic handlers, msgpack bodies, mutual TLS, one rule for who may call.

Every call is checked twice: the certificate names node, role and cluster, and the caller's node record must still say so. A message is
decoded once its caller is known, and only if it is no larger than such a caller's message may be (``sizes``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import grpc
import grpc.aio
import msgspec

from swarm_agent.ca.ca import SERVER_NAME, Subject
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.objects.errors import (
    AlreadyExists,
    FailedPrecondition,
    NodeRemoved,
    NoLeader,
    NotFound,
    PermissionDenied,
    ReleaseTooOld,
    SwarmError,
    Unavailable,
    UserError,
)
from swarm_agent.rpc import sizes
from swarm_agent.rpc.front import ROLES, Front
from swarm_agent.rpc.messages import TYPES

log = logging.getLogger(__name__)

SERVICE = "swarm"
LEADER_KEY = "swarm-leader"  # trailing metadata of a refusal: ask there
ERROR_KEY = "swarm-error"  # the same: which of our errors it is, where the status does not say
STOP_S = 0.2
_OPTIONS = [
    ("grpc.max_send_message_length", sizes.REPLY),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 3000),
    ("grpc.so_reuseport", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    (
        "grpc.min_reconnect_backoff_ms",
        500,
    ),  # what an attempt is given at least: a busy manager takes its time to shake hands
    ("grpc.max_reconnect_backoff_ms", 1000),
]

_CODES: dict[str, type[SwarmError]] = {
    "FAILED_PRECONDITION": FailedPrecondition,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "PERMISSION_DENIED": PermissionDenied,
    "INVALID_ARGUMENT": UserError,
    "UNAVAILABLE": Unavailable,
}


class Redirect(SwarmError):
    """Only the leader can do this. ``addr``: its RPC address, "" when there is none."""

    def __init__(self, addr: str) -> None:
        super().__init__("this manager does not lead")
        self.addr = addr


class NotTaken(Unavailable):
    """The call failed before anybody could have acted on it."""


_KINDS: dict[str, type[SwarmError]] = {
    "node-removed": NodeRemoved,
    "no-leader": NoLeader,
    "not-taken": NotTaken,
    "release-too-old": ReleaseTooOld,
}


class Method(NamedTuple):
    """One RPC: how it streams, whether workers may call it, and what serves it."""

    name: str
    client_streams: bool
    server_streams: bool
    workers: bool
    serve: Callable[..., Any]


Allow = Callable[[Subject, Method], None]  # raises PermissionDenied


# --- the seam: what the rest of the project knows of calls ----------------------------------------------------------------
class Call(Protocol):
    """One call that streams. What the manager refused, and whatever ends the call early, is raised as a SwarmError."""

    async def connected(self) -> None:
        """Until the manager was reached."""

    async def write(self, message: Any) -> None: ...

    async def read(self) -> Any:
        """The next message; the end is an error too, for whoever expects another one."""

    def __aiter__(self) -> AsyncIterator[Any]:
        """What comes in, to the end."""
        ...

    async def reply(self) -> Any:
        """Nothing more to write: the one reply."""

    async def ended(self) -> None:
        """Until the call is over, however it ended."""


class Client(Protocol):
    """A way to one manager."""

    addr: str

    async def unary(self, name: str, request: Any, timeout_s: float = 10.0) -> Any:
        """One request, one reply. Raises what the manager raised, or Unavailable."""

    def bidirectional(self, name: str) -> Call: ...
    def upload(self, name: str) -> Call: ...
    def download(self, name: str, request: Any) -> Call: ...
    async def close(self) -> None: ...


class Server(Protocol):
    """A manager's side."""

    async def start(self, addr: str) -> int:
        """Listen; returns the port. Unavailable when it is taken."""
        ...

    def renewed(self) -> None:
        """Show the identity we have now, from the next handshake on."""

    async def stop(self) -> None: ...


class Rpc(Protocol):
    """How daemons call each other. ``Grpc`` is the real one, ``tests.lib.fake_rpc`` its double."""

    def server(self, identity: Callable[[], NodeIdentity], allow: Allow, methods: list[Method]) -> Server: ...
    def client(self, addr: str, identity: NodeIdentity, server_name: str = SERVER_NAME) -> Client: ...


def check_caller(caller: Subject, method: Method, allow: Allow) -> None:
    """Certificate first, node table second; PermissionDenied."""
    if caller.role != "manager" and not method.workers:
        raise PermissionDenied("Permission denied: remote certificate not part of OUs: [swarm-manager]")
    allow(caller, method)


class WireError(NamedTuple):
    """An error as it crosses the wire."""

    status: str  # the name of a gRPC status
    text: str
    leader: str | None = None  # of a redirect: the leader's RPC address, "" when there is none
    kind: str = ""  # a key of ``_KINDS``, where the status alone does not tell which error it is


def refusal_of(err: SwarmError) -> WireError:
    if isinstance(err, Redirect):
        return WireError("FAILED_PRECONDITION", str(err), err.addr)
    kind = next((name for name, cls in _KINDS.items() if isinstance(err, cls)), "")
    name = {v: k for k, v in _CODES.items()}.get(type(err))
    if name is None:
        name = next((k for k, v in _CODES.items() if isinstance(err, v)), "UNKNOWN")
    return WireError(name, str(err), None, kind)


def error_of(refusal: WireError, addr: str) -> SwarmError:
    """What came over the wire from ``addr`` as one of our errors."""
    if refusal.leader is not None:
        return Redirect(refusal.leader)
    cls = _KINDS.get(refusal.kind) or _CODES.get(refusal.status)
    if cls is NoLeader:
        return NoLeader()
    if cls is None:
        return SwarmError(refusal.text or refusal.status)
    if (
        cls is Unavailable and "failed to connect" in refusal.text
    ):  # gRPC's own words: it has no code for that
        cls = NotTaken
    if cls in (NotTaken, Unavailable):
        return cls(f"cannot reach the manager at {addr}: {refusal.text}")
    return cls(refusal.text)


def encode(message: Any) -> bytes:
    return msgspec.msgpack.encode(message)


def _decoder(kind: Any) -> Callable[[bytes], Any]:
    decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(kind).decode
    return decode


DECODERS = {name: (_decoder(request), _decoder(reply)) for name, (request, reply) in TYPES.items()}


# --- server ----------------------------------------------------------------------------------------------------------
class RpcServer:
    """The manager's RPC server: gRPC behind a ``Front``. ``allow`` looks the caller up in the node table."""

    def __init__(
        self,
        identity: Callable[[], NodeIdentity],
        allow: Allow,
        methods: list[Method],
        folder: Path | None = None,
    ) -> None:
        self._identity = identity
        self._allow = allow
        self._methods = methods
        self._folder = folder
        self._front: Front | None = None
        self._servers: list[grpc.aio.Server] = []

    async def start(self, addr: str) -> int:
        """Listen; returns the port. Renewed certificates are picked up without a restart."""
        host, _, port = addr.rpartition(":")
        front = self._front = Front(self._identity, self._folder)
        handlers = {m.name: self._handler(m) for m in self._methods}
        for role in ROLES:
            limit = ("grpc.max_receive_message_length", sizes.CHANNEL[role])
            server = grpc.aio.server(options=[*_OPTIONS, limit])
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
            server.add_insecure_port(front.way_in(role))
            await server.start()
            self._servers.append(server)
        try:
            return front.start(host, int(port))
        except OSError as err:
            raise Unavailable(
                f"cannot listen on {addr}: another program holds the port, or the address is not this host's. "
                "Free it or set rpc_port in the agent's configuration"
            ) from err

    def renewed(self) -> None:
        if self._front is not None:
            self._front.renewed()

    async def stop(self) -> None:
        if self._front is not None:
            self._front.shut()
        await asyncio.gather(*(server.stop(STOP_S) for server in self._servers))
        self._servers.clear()
        if self._front is not None:
            await self._front.close()
            self._front = None

    def _handler(self, method: Method) -> grpc.RpcMethodHandler:
        kinds = {
            (False, False): (grpc.unary_unary_rpc_method_handler, self._unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, self._stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, self._unary),
            (True, True): (grpc.stream_stream_rpc_method_handler, self._stream),
        }
        make, wrap = kinds[method.client_streams, method.server_streams]
        return make(wrap(method), response_serializer=encode)  # requests come as bytes

    def _unary(self, method: Method) -> Callable[[Any, Any], Awaitable[Any]]:
        async def serve(request: Any, context: Any) -> Any:
            try:
                caller = self._caller(context, method)
                return await method.serve(caller, self._decoded(caller, method, request))
            except SwarmError as err:
                await _abort(context, err)

        return serve

    def _stream(self, method: Method) -> Callable[[Any, Any], Any]:
        async def serve(request: Any, context: Any) -> Any:
            try:
                caller = self._caller(context, method)
                async for reply in method.serve(caller, self._decoded(caller, method, request)):
                    yield reply
            except SwarmError as err:
                await _abort(context, err)

        return serve

    def _decoded(self, caller: Subject, method: Method, request: Any) -> Any:
        """The request, or the requests of a call that streams them, each looked at before it is decoded."""
        decode, _ = DECODERS[method.name]

        def one(data: bytes) -> Any:
            sizes.check(method.name, caller.role, data)
            try:
                return decode(data)
            except msgspec.DecodeError as err:
                raise UserError(f"not a {method.name} message: {err}") from err

        async def each() -> AsyncIterator[Any]:
            async for data in request:
                yield one(data)

        return each() if method.client_streams else one(request)

    def _caller(self, context: Any, method: Method) -> Subject:
        assert self._front is not None
        caller = self._front.subject_of(context.peer())
        if caller is None:
            raise PermissionDenied("Permission denied: this connection did not come through the front")
        check_caller(caller, method, self._allow)
        return caller


async def _abort(context: Any, err: SwarmError) -> None:
    refusal = refusal_of(err)
    said = {LEADER_KEY: refusal.leader, ERROR_KEY: refusal.kind or None}
    metadata = tuple((key, value) for key, value in said.items() if value is not None)
    await context.abort(getattr(grpc.StatusCode, refusal.status), refusal.text, metadata)


# --- client ----------------------------------------------------------------------------------------------------------
class RpcClient:
    """A channel to one manager. ``server_name``: a node id to insist on that manager."""

    def __init__(self, addr: str, identity: NodeIdentity, server_name: str = SERVER_NAME) -> None:
        self.addr = addr
        credentials = grpc.ssl_channel_credentials(identity.root, identity.key, identity.cert)
        self.channel = grpc.aio.secure_channel(
            addr,
            credentials,
            [
                *_OPTIONS,
                ("grpc.max_receive_message_length", sizes.REPLY),
                ("grpc.ssl_target_name_override", server_name),
            ],
        )

    async def unary(self, name: str, request: Any, timeout_s: float = 10.0) -> Any:
        """One request, one reply. Raises what the manager raised, or Unavailable."""
        _, decode = DECODERS[name]
        call = self.channel.unary_unary(f"/{SERVICE}/{name}", encode, decode)
        try:
            return await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as err:
            raise translate(err, self.addr) from err

    def bidirectional(self, name: str) -> Call:
        _, decode = DECODERS[name]
        return _GrpcCall(self.channel.stream_stream(f"/{SERVICE}/{name}", encode, decode)(None), self.addr)

    def upload(self, name: str) -> Call:
        _, decode = DECODERS[name]
        return _GrpcCall(self.channel.stream_unary(f"/{SERVICE}/{name}", encode, decode)(None), self.addr)

    def download(self, name: str, request: Any) -> Call:
        _, decode = DECODERS[name]
        return _GrpcCall(self.channel.unary_stream(f"/{SERVICE}/{name}", encode, decode)(request), self.addr)

    async def close(self) -> None:
        await self.channel.close(0)


class _GrpcCall:
    """Implements ``Call``."""

    def __init__(self, call: Any, addr: str) -> None:
        self._call = call
        self._addr = addr

    async def connected(self) -> None:
        await self._run(self._call.wait_for_connection())

    async def write(self, message: Any) -> None:
        await self._run(self._call.write(message))

    async def read(self) -> Any:
        message = await self._run(self._call.read())
        if message is grpc.aio.EOF:
            raise await self._why()
        return message

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for message in self._call:
                yield message
        except grpc.aio.AioRpcError as err:
            raise translate(err, self._addr) from err

    async def reply(self) -> Any:
        await self._run(self._call.done_writing())
        return await self._run(self._call)

    async def ended(self) -> None:
        await self._call.code()

    async def _run(self, work: Awaitable[Any]) -> Any:
        try:
            return await work
        except grpc.aio.AioRpcError as err:
            raise translate(err, self._addr) from err
        except asyncio.InvalidStateError as err:  # all grpc says of a write into a call that ended
            raise await self._why() from err

    async def _why(self) -> SwarmError:
        """What ended the call."""
        code, details = await self._call.code(), await self._call.details()
        metadata = await self._call.trailing_metadata() or ()
        return error_of(_refusal(code.name, details, metadata), self._addr)


class Grpc:
    """Implements ``Rpc``. ``folder``: see ``Front``."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def server(self, identity: Callable[[], NodeIdentity], allow: Allow, methods: list[Method]) -> Server:
        return RpcServer(identity, allow, methods, self._folder)

    def client(self, addr: str, identity: NodeIdentity, server_name: str = SERVER_NAME) -> Client:
        return RpcClient(addr, identity, server_name)


def _refusal(status: str, text: str | None, metadata: Any) -> WireError:
    said = {key: str(value) for key, value in metadata or ()}
    return WireError(status, text or "", said.get(LEADER_KEY), said.get(ERROR_KEY, ""))


def translate(err: grpc.aio.AioRpcError, addr: str) -> SwarmError:
    """A gRPC failure as one of our errors."""
    return error_of(_refusal(err.code().name, err.details(), err.trailing_metadata()), addr)
