"""gRPC without generated code: generic handlers, msgpack bodies, mutual TLS, one rule for who may call.

Every call is checked twice: the certificate names node, role and cluster, and the caller's node record must still say so.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import grpc
import grpc.aio
import msgspec

from swarm_agent.identity.ca import SERVER_NAME, Subject, subject_from_text
from swarm_agent.identity.files import NodeIdentity
from swarm_agent.objects.errors import (
    AlreadyExists,
    FailedPrecondition,
    NoLeader,
    NotFound,
    PermissionDenied,
    SwarmError,
    Unavailable,
    UserError,
)
from swarm_agent.session.wire import TYPES

log = logging.getLogger(__name__)

SERVICE = "swarm"
LEADER_KEY = "swarm-leader"  # trailing metadata of a refusal: ask there
MAX_MESSAGE = 64 << 20
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 3000),
    ("grpc.so_reuseport", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
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


class Method(NamedTuple):
    """One RPC: how it streams, whether workers may call it, and what serves it."""

    name: str
    client_streams: bool
    server_streams: bool
    workers: bool
    serve: Callable[..., Any]


Allow = Callable[[Subject, bool], None]  # raises PermissionDenied


def encode(message: Any) -> bytes:
    return msgspec.msgpack.encode(message)


def _decoder(kind: Any) -> Callable[[bytes], Any]:
    decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(kind).decode
    return decode


_DECODERS = {name: (_decoder(request), _decoder(reply)) for name, (request, reply) in TYPES.items()}


# --- server ----------------------------------------------------------------------------------------------------------
class RpcServer:
    """The manager's RPC server. ``allow`` looks the caller up in the node table."""

    def __init__(self, identity: Callable[[], NodeIdentity], allow: Allow, methods: list[Method]) -> None:
        self._identity = identity
        self._allow = allow
        self._methods = methods
        self._server: grpc.aio.Server | None = None

    async def start(self, addr: str) -> int:
        """Listen; returns the port. Renewed certificates are picked up without a restart."""
        server = grpc.aio.server(options=_OPTIONS)
        handlers = {m.name: self._handler(m) for m in self._methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

        def configuration() -> grpc.ServerCertificateConfiguration:
            own = self._identity()
            return grpc.ssl_server_certificate_configuration([(own.key, own.cert)], own.root)

        credentials = grpc.dynamic_ssl_server_credentials(
            configuration(), configuration, require_client_authentication=True
        )
        try:
            port: int = server.add_secure_port(addr, credentials)
        except RuntimeError as err:
            raise Unavailable(
                f"cannot listen on {addr}: another program holds the port, or the address is not this host's. "
                "Free it or set rpc_port in the agent's configuration"
            ) from err
        await server.start()
        self._server = server
        return port

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0.2)

    def _handler(self, method: Method) -> grpc.RpcMethodHandler:
        decode, _ = _DECODERS[method.name]
        kinds = {
            (False, False): (grpc.unary_unary_rpc_method_handler, self._unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, self._stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, self._unary),
            (True, True): (grpc.stream_stream_rpc_method_handler, self._stream),
        }
        make, wrap = kinds[method.client_streams, method.server_streams]
        return make(wrap(method), request_deserializer=decode, response_serializer=encode)

    def _unary(self, method: Method) -> Callable[[Any, Any], Awaitable[Any]]:
        async def serve(request: Any, context: Any) -> Any:
            try:
                return await method.serve(self._caller(context, method), request)
            except SwarmError as err:
                await _abort(context, err)

        return serve

    def _stream(self, method: Method) -> Callable[[Any, Any], Any]:
        async def serve(request: Any, context: Any) -> Any:
            try:
                async for reply in method.serve(self._caller(context, method), request):
                    yield reply
            except SwarmError as err:
                await _abort(context, err)

        return serve

    def _caller(self, context: Any, method: Method) -> Subject:
        try:
            text = context.auth_context()["x509_subject"][0].decode()
            caller = subject_from_text(text)
        except (KeyError, ValueError) as err:
            raise PermissionDenied(f"Permission denied: {err}") from err
        if caller.role != "manager" and not method.workers:
            raise PermissionDenied("Permission denied: remote certificate not part of OUs: [swarm-manager]")
        self._allow(caller, method.workers)
        return caller


async def _abort(context: Any, err: SwarmError) -> None:
    if isinstance(err, Redirect):
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(err), ((LEADER_KEY, err.addr),))
    name = {v: k for k, v in _CODES.items()}.get(type(err))
    if name is None:
        name = next((k for k, v in _CODES.items() if isinstance(err, v)), "UNKNOWN")
    await context.abort(getattr(grpc.StatusCode, name), str(err))


# --- client ----------------------------------------------------------------------------------------------------------
class RpcClient:
    """A channel to one manager. ``server_name``: a node id to insist on that manager."""

    def __init__(self, addr: str, identity: NodeIdentity, server_name: str = SERVER_NAME) -> None:
        self.addr = addr
        credentials = grpc.ssl_channel_credentials(identity.root, identity.key, identity.cert)
        self.channel = grpc.aio.secure_channel(
            addr, credentials, [*_OPTIONS, ("grpc.ssl_target_name_override", server_name)]
        )

    async def unary(self, name: str, request: Any, timeout_s: float = 10.0) -> Any:
        """One request, one reply. Raises what the manager raised, or Unavailable."""
        _, decode = _DECODERS[name]
        call = self.channel.unary_unary(f"/{SERVICE}/{name}", encode, decode)
        try:
            return await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as err:
            raise translate(err, self.addr) from err

    def bidirectional(self, name: str, requests: Any = None) -> Any:
        _, decode = _DECODERS[name]
        return self.channel.stream_stream(f"/{SERVICE}/{name}", encode, decode)(requests)

    def upload(self, name: str, requests: Any = None) -> Any:
        _, decode = _DECODERS[name]
        return self.channel.stream_unary(f"/{SERVICE}/{name}", encode, decode)(requests)

    def download(self, name: str, request: Any) -> Any:
        _, decode = _DECODERS[name]
        return self.channel.unary_stream(f"/{SERVICE}/{name}", encode, decode)(request)

    async def close(self) -> None:
        await self.channel.close(0)


def translate(err: grpc.aio.AioRpcError, addr: str) -> SwarmError:
    """A gRPC failure as one of our errors."""
    for key, value in err.trailing_metadata() or ():
        if key == LEADER_KEY:
            return Redirect(str(value))
    details = err.details() or ""
    if "does not have a leader" in details:
        return NoLeader()
    kind = _CODES.get(err.code().name)
    if kind is None:
        return SwarmError(details or err.code().name)
    if kind is Unavailable:
        return Unavailable(f"cannot reach the manager at {addr}: {details}")
    return kind(details)
