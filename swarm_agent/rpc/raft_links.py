"""Links between managers: raw TLS connections that carry Raft's frames, one way each.

Owns handshakes and framing. Refuses to know what a frame says, and to hold back a sender: what a peer does not take in time is dropped, Raft
sends it again. Raw TLS instead of gRPC because a frame costs a fifth of the CPU, heartbeats included, and because a link lives on Raft's
loop, which gRPC's one reader for all loops cannot promise.

    length 4 | frame                                                         big endian
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any, Protocol, cast

from swarm_agent.ca import ca, tls
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.gate import Gate, GateLimits, Visitor, tcp_listener
from swarm_agent.objects.errors import PermissionDenied, Unavailable

log = logging.getLogger(__name__)

_LENGTH = struct.Struct(">I")
MAX_FRAME = 16 << 20
MAX_BACKLOG = 32 << 20  # bytes a peer may owe us; beyond it frames are dropped
HANDSHAKE_S = 5.0
LIMITS = GateLimits(seconds=HANDSHAKE_S, speaking=32, starts_per_second=100.0)
SILENCE_MS = 5000  # unacknowledged for so long, a connection is dead
ALPN = "swarm-raft/1"

Take = Callable[[bytes, str], None]
"""Gets each frame and the node id its sender proved."""


class RaftLink(Protocol):
    """A way to one manager."""

    def send(self, frame: bytes) -> None:
        """Never blocks; may drop."""

    async def ended(self) -> None:
        """Until the connection is gone."""

    def close(self) -> None: ...


class LinkListener(Protocol):
    def renewed(self) -> None:
        """Show the identity we have now, from the next handshake on."""

    async def close(self) -> None: ...


class RaftLinks(Protocol):
    """How managers connect. ``Tls`` is the real one, ``tests.lib.fake_rpc.FakeLinks`` its double. Everything runs on the loop it is
    called on."""

    async def listen(
        self,
        host: str,
        port: int,
        identity: Callable[[], NodeIdentity],
        admit: Callable[[ca.Subject], None],
        take: Take,
    ) -> LinkListener:
        """``admit`` raises PermissionDenied for managers that are not wanted. Raises Unavailable when the port is taken."""
        ...

    async def connect(self, addr: str, identity: NodeIdentity, node_id: str) -> RaftLink:
        """To the manager ``node_id`` and no other. Raises Unavailable."""
        ...


class Tls:
    """Implements ``RaftLinks``."""

    async def listen(
        self,
        host: str,
        port: int,
        identity: Callable[[], NodeIdentity],
        admit: Callable[[ca.Subject], None],
        take: Take,
    ) -> LinkListener:
        listener = _TlsListener(identity, admit, take)
        try:
            listener.start(host, port)
        except OSError as err:
            raise Unavailable(
                f"cannot listen on {host}:{port}: {err.strerror}. Free the port or set raft_port, "
                "on all managers alike, in the agent's configuration"
            ) from err
        return listener

    async def connect(self, addr: str, identity: NodeIdentity, node_id: str) -> RaftLink:
        host, _, port = addr.rpartition(":")
        context = tls.mutual_client(identity)
        context.set_alpn_protocols([ALPN])
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                _, link = await asyncio.get_running_loop().create_connection(
                    _Outgoing, host.strip("[]"), int(port), ssl=context, server_hostname=node_id
                )
        except TimeoutError as err:
            raise Unavailable(f"the manager at {addr} did not answer within {HANDSHAKE_S:g} s") from err
        except (OSError, ValueError) as err:  # refused, reset, no route; ssl's errors are OSErrors
            raise Unavailable(f"cannot reach the manager at {addr}: {err}") from err
        return link


class _Outgoing(asyncio.Protocol):
    """Implements ``RaftLink``."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        _tune(transport)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - the other end has nothing to say on this link
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        if not self._ended.done():
            self._ended.set_result(None)

    def send(self, frame: bytes) -> None:
        transport = self._transport
        if transport is not None and transport.get_write_buffer_size() <= MAX_BACKLOG:
            transport.write(_LENGTH.pack(len(frame)) + frame)

    async def ended(self) -> None:
        await asyncio.wait([self._ended])

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Incoming(asyncio.Protocol):
    def __init__(self, listener: _TlsListener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._peer_id = ""
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        _tune(transport)
        try:
            self._peer_id = self._listener.admit(transport.get_extra_info("ssl_object"))
        except (ValueError, PermissionDenied) as err:
            log.warning("refused a link from %s: %s", transport.get_extra_info("peername"), err)
            self._transport.abort()
            return
        self._listener.open[self] = None

    def data_received(self, data: bytes) -> None:
        if not self._peer_id:
            return
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > MAX_FRAME:
                log.warning("a frame of %d bytes from %s: not one of ours", length, self._peer_id)
                self.close()
                return
            end = at + _LENGTH.size + length
            if end > len(buffer):
                break
            self._listener.take(bytes(buffer[at + _LENGTH.size : end]), self._peer_id)
            at = end
        if at:
            del buffer[:at]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._listener.open.pop(self, None)
        self._transport = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _TlsListener:
    """Implements ``LinkListener``."""

    def __init__(
        self, identity: Callable[[], NodeIdentity], admit: Callable[[ca.Subject], None], take: Take
    ) -> None:
        self._identity = identity
        self._admit = admit
        self.take = take
        self.open: dict[_Incoming, None] = {}
        self._context: ssl.SSLContext | None = None
        self._gate = Gate("raft port", self._serve, LIMITS)

    def start(self, host: str, port: int) -> None:
        context = self._context = tls.mutual_server(self._identity())
        context.set_alpn_protocols([ALPN])
        context.num_tickets = 0  # our links never resume
        self._gate.listen(tcp_listener(host, port))

    async def _serve(self, sock: socket.socket, visitor: Visitor) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Incoming(self),
                sock,
                ssl=self._context,
                ssl_handshake_timeout=visitor.seconds_left(),
            )
        except BaseException:
            sock.close()
            raise

    def admit(self, session: Any) -> str:
        """The node id of a manager that is wanted; ValueError or PermissionDenied for anybody else."""
        if session.selected_alpn_protocol() != ALPN:
            raise ValueError(f"it does not speak {ALPN}")
        caller = tls.subject_of_peer(session)
        if caller.role != "manager":
            raise ValueError(f"{caller.node_id} is no manager")
        self._admit(caller)
        return caller.node_id

    def renewed(self) -> None:
        if self._context is not None:
            tls.load_pair(self._context, self._identity())

    async def close(self) -> None:
        await self._gate.close()
        for link in list(self.open):
            link.close()
        await asyncio.sleep(0)  # the transports let go of their sockets in the loop's next pass


def _tune(transport: asyncio.BaseTransport) -> None:
    """Small frames leave at once, and a peer whose host died is noticed without a word from it."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
