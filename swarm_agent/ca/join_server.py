"""The join server, 2377/tcp: HTTPS for whoever has no certificate yet, two calls and no more.

``GET /v1/root`` hands out the root certificate; ``POST /v1/issue`` takes a signing request with a join token. The joiner
reads the root over an unverified connection, checks it against the token's digest, reconnects verified, and only then
sends the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import hmac
import logging
import socket
import ssl
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import h11
import msgspec

from swarm_agent.ca.ca import SERVER_NAME
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.ca.tls import load_pair
from swarm_agent.ca.tokens import parse_token, root_digest
from swarm_agent.gate import Gate, GateLimits, Visitor, open_streams, tcp_listener
from swarm_agent.objects import features
from swarm_agent.objects.errors import SwarmError, Unavailable, UserError

log = logging.getLogger(__name__)

CALLS_A_MINUTE = 60  # from one address; a whole rack joining at once stays below
MAX_BODY = 64 * 1024
CLOSE_TIMEOUT_S = 1.0  # what calls under way are waited for
CALL_TIMEOUT_S = 10.0
LIMITS = GateLimits(seconds=CALL_TIMEOUT_S, starts_per_second=100.0)  # until a request is complete
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class IssueRequest(msgspec.Struct):
    csr: bytes
    token: str
    availability: str = ""
    hostname: str = ""
    clock: int = 0  # the joiner's, nanoseconds
    feature_level: int = features.FIRST  # the joiner's; the first release does not say


class ManagerAddress(msgspec.Struct, frozen=True):
    """Where a manager is: its join server and its RPC server, ``ip:port``."""

    node_id: str
    addr: str
    rpc_addr: str


class Issued(msgspec.Struct):
    node_id: str
    cluster_id: str
    role: str
    cert: bytes
    managers: tuple[ManagerAddress, ...]


class Root(msgspec.Struct):
    root: bytes


class Refusal(msgspec.Struct):
    message: str
    status: int = 500


class JoinRefused(UserError):
    """The manager said no, or is not who the token says."""


A = TypeVar("A")
Issue = Callable[[IssueRequest], Awaitable[Issued]]


# --- the seam ----------------------------------------------------------------------------------------------------------
class Answering(Protocol):
    """A join server that is asked: (status, body)."""

    async def answer(self, method: str, target: str, body: bytes, address: str) -> tuple[int, bytes]: ...


class JoinTransport(Protocol):
    """How calls reach a join server. ``Https`` is the real one, ``tests.lib.fake_rpc`` its double."""

    async def listen(
        self, host: str, port: int, identity: NodeIdentity, door: Answering
    ) -> Callable[[], Awaitable[None]]:
        """Serve; what is returned ends it. OSError when the port is taken."""
        ...

    async def call(
        self, addr: str, root: bytes | None, method: str, target: str, body: bytes
    ) -> tuple[int, bytes]:
        """One call, over a connection verified against ``root`` if there is one. JoinRefused, Unavailable."""
        ...


# --- server ----------------------------------------------------------------------------------------------------------
class JoinServer:
    """Serves joiners on a manager. ``issue`` is asked for certificates; it may forward to the leader."""

    def __init__(self, identity: Callable[[], NodeIdentity], issue: Issue, transport: JoinTransport) -> None:
        self._identity = identity
        self._issue = issue
        self._transport = transport
        self._close: Callable[[], Awaitable[None]] | None = None
        self._where = ("", 0)
        self._calls: defaultdict[str, list[float]] = defaultdict(list)

    async def start(self, host: str, port: int) -> None:
        self._where = (host, port)
        self._close = await self._transport.listen(host, port, self._identity(), self)

    async def renewed(self) -> None:
        """Show the present certificate to whoever connects from now on."""
        if self._close is not None:
            await self._close()
            self._close = await self._transport.listen(*self._where, self._identity(), self)

    async def stop(self) -> None:
        if self._close is not None:
            await self._close()

    async def answer(self, method: str, target: str, body: bytes, address: str) -> tuple[int, bytes]:
        if not self._may(address):
            return _refusal(429, "too many calls from your address: wait a minute and join again")
        if (method, target) == ("GET", "/v1/root"):
            return 200, msgspec.json.encode(Root(self._identity().root))
        if (method, target) == ("POST", "/v1/issue"):
            try:
                asked = msgspec.json.decode(body, type=IssueRequest)
            except _NOT_JSON as err:
                return _refusal(400, f"malformed request: {err}")
            try:
                issued = await self._issue(asked)
            except SwarmError as err:
                text = f"rpc error: code = {err.code} desc = {err}" if err.code else str(err)
                return _refusal(err.http_status, text)
            return 200, msgspec.json.encode(issued)
        return _refusal(404, "page not found")

    def _may(self, address: str) -> bool:
        now = asyncio.get_running_loop().time()
        recent = [t for t in self._calls[address] if t > now - 60]
        allowed = len(recent) < CALLS_A_MINUTE
        self._calls[address] = (
            [*recent, now] if allowed else recent
        )  # refused ones cost nothing, however many
        if len(self._calls) > 10_000:
            self._calls.clear()
        return allowed


class Https:
    """Implements ``JoinTransport``."""

    async def listen(
        self, host: str, port: int, identity: NodeIdentity, door: Answering
    ) -> Callable[[], Awaitable[None]]:
        gate = Gate("join server", functools.partial(_serve, door, server_context(identity)), LIMITS)
        gate.listen(tcp_listener(host, port))
        return functools.partial(gate.close, CLOSE_TIMEOUT_S)

    async def call(
        self, addr: str, root: bytes | None, method: str, target: str, body: bytes
    ) -> tuple[int, bytes]:
        return await _https(addr, _client_context(root), method, target, body)


async def _serve(door: Answering, context: ssl.SSLContext, sock: socket.socket, visitor: Visitor) -> None:
    async with asyncio.timeout(CALL_TIMEOUT_S):
        reader, writer = await open_streams(sock, context)
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S * 2):
            request, asked = await _read_request(reader)
            visitor.proved()
            address = str(writer.get_extra_info("peername")[0])
            status, body = await door.answer(request.method.decode(), request.target.decode(), asked, address)
            writer.write(
                b"HTTP/1.1 %d x\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
                % (status, len(body))
                + body
            )
            await writer.drain()
    except (OSError, TimeoutError, h11.ProtocolError, asyncio.IncompleteReadError) as err:
        log.debug("join server: %s", err)
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await writer.wait_closed()


async def _read_request(reader: asyncio.StreamReader) -> tuple[h11.Request, bytes]:
    connection = h11.Connection(h11.SERVER)
    request: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(MAX_BODY))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY:
                raise h11.RemoteProtocolError("body too large")
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return request, body
        else:
            raise h11.RemoteProtocolError("connection closed early")


def _refusal(status: int, message: str) -> tuple[int, bytes]:
    return status, msgspec.json.encode(Refusal(message, status))


def server_context(identity: NodeIdentity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_pair(context, identity)
    return context


# --- client ----------------------------------------------------------------------------------------------------------
def _client_context(root: bytes | None) -> ssl.SSLContext:
    if root is None:
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname = False
        unverified.verify_mode = ssl.CERT_NONE
        return unverified
    verified = ssl.create_default_context(cadata=root.decode())
    verified.minimum_version = ssl.TLSVersion.TLSv1_2
    return verified


async def fetch_root(transport: JoinTransport, addr: str, token: str) -> bytes:
    """The root certificate of the manager at ``addr``, checked against the token.

    Raises:
        InvalidJoinToken, JoinRefused (another cluster's token), Unavailable (nobody there).
    """
    digest = parse_token(token).digest
    answer = await _call(transport, addr, None, "GET", "/v1/root", b"")
    root = _decoded(addr, answer, Root).root
    if not hmac.compare_digest(root_digest(root), digest):
        expected = hashlib.sha256(root).hexdigest()
        raise JoinRefused(
            f"remote CA does not match fingerprint. The manager at {addr} has a root certificate with digest {expected}, "
            "which is not the one this token was made for: the token belongs to another cluster, or its root CA was rotated. "
            'Get a new token with "docker swarm join-token" on a manager of the cluster you want to join'
        )
    return root


async def ask_for_certificate(
    transport: JoinTransport, addr: str, root: bytes, request: IssueRequest
) -> Issued:
    """Send the token and the signing request, over a connection verified against ``root``."""
    answer = await _call(transport, addr, root, "POST", "/v1/issue", msgspec.json.encode(request))
    return _decoded(addr, answer, Issued)


def _decoded(addr: str, answer: bytes, kind: type[A]) -> A:
    try:
        return msgspec.json.decode(answer, type=kind)
    except _NOT_JSON as err:
        raise JoinRefused(
            f"what answers at {addr} is no manager of this kind of swarm ({err}). Check the address and the port"
        ) from err


async def _call(
    transport: JoinTransport, addr: str, root: bytes | None, method: str, target: str, body: bytes
) -> bytes:
    status, answer = await transport.call(addr, root, method, target, body)
    if status >= 400:
        refusal = _decoded(addr, answer, Refusal)
        error = JoinRefused(refusal.message)
        error.http_status = status
        error.code = ""
        raise error
    return answer


async def _https(
    addr: str, context: ssl.SSLContext, method: str, target: str, body: bytes
) -> tuple[int, bytes]:
    host, _, port = addr.rpartition(":")
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(
                host.strip("[]"), int(port), ssl=context, server_hostname=SERVER_NAME
            )
            try:
                head = f"{method} {target} HTTP/1.1\r\nHost: {SERVER_NAME}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
                return await _read_answer(reader)
            finally:
                writer.close()
    except ssl.SSLCertVerificationError as err:
        raise JoinRefused(
            f"the manager at {addr} does not prove to be part of the cluster: {err.verify_message}. "
            "If the clocks of the two hosts differ, set them right and join again"
        ) from err
    except TimeoutError as err:
        raise Unavailable(
            f"the manager at {addr} did not answer within {CALL_TIMEOUT_S:g} s: is port {port} open?"
        ) from err
    except (OSError, h11.ProtocolError) as err:
        raise Unavailable(
            f"cannot reach a manager at {addr}: {err}. Check the address, that swarm-agent runs there and that port {port} is open"
        ) from err


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    status, body = 0, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(MAX_BODY))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return status, body
        else:
            raise h11.RemoteProtocolError("the manager closed the connection early")
