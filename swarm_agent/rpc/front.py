"""The RPC port: TLS ends here, and only a member's bytes go on to gRPC, over unix sockets in a folder of root's.

Owns handshakes, and who is at the other end of which connection: each gets a name of its own on its way to gRPC, which gRPC tells the
handler as the peer. There is one way in for each role, so that gRPC's limits differ by role. Refuses to know what is said.

gRPC's own TLS is not used, because it can bound nothing: a thousand connections that say nothing cost it 100 MiB, and it died of handshakes
that met a change of its certificate (``docs/design/sessions.md``).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import socket
import ssl
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import cast
from urllib.parse import unquote

from swarm_agent.ca import tls
from swarm_agent.ca.ca import Subject
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.gate import Gate, GateLimits, Visitor, tcp_listener

log = logging.getLogger(__name__)

ROLES = ("manager", "worker")
HANDSHAKE_S = 5.0
STARTS_PER_SECOND = 500.0  # a new leader is asked by all nodes within seconds
CONNECTIONS_A_MEMBER = 256  # one session, a call now and then, one for each log that is read
SILENCE_MS = 10_000  # unacknowledged for so long, a connection is dead; gRPC asks after five seconds
HIGH_WATER = 256 * 1024  # bytes one side may be ahead of the other
ALPN = "h2"
SAY_S = 60.0
LONGEST_FOLDER = 90  # bytes; the address of a unix socket has 107


class Front:
    """``folder`` holds the unix sockets; a new one if there is none. ``way_in`` says where gRPC listens."""

    def __init__(self, identity: Callable[[], NodeIdentity], folder: Path | None = None) -> None:
        self._identity = identity
        if folder is None or len(os.fsencode(folder)) > LONGEST_FOLDER:
            folder = Path(tempfile.mkdtemp(prefix="swarm-agent-"))
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir(mode=0o700, parents=True)
        self._numbers = itertools.count(1)
        self._gate = Gate(
            "rpc port", self._serve, GateLimits(seconds=HANDSHAKE_S, starts_per_second=STARTS_PER_SECOND)
        )
        self._context: ssl.SSLContext | None = None
        self._peers: dict[str, Subject] = {}
        self._members: Counter[str] = Counter()
        self._said = float("-inf")

    def way_in(self, role: str) -> str:
        """Where gRPC is to listen for members of this role."""
        return f"unix:{self._folder / role}"

    def subject_of(self, peer: str) -> Subject | None:
        """Whose connection this is, by the name gRPC has for it."""
        return self._peers.get(unquote(peer).removeprefix("unix:"))

    def start(self, host: str, port: int) -> int:
        """Let members in; the port. OSError when it is taken."""
        context = tls.mutual_server(self._identity())
        context.set_alpn_protocols([ALPN])
        context.num_tickets = 0  # our clients never resume
        self._context = context
        listener = tcp_listener(host, port)
        found: int = listener.getsockname()[1]
        self._gate.listen(listener)
        return found

    def renewed(self) -> None:
        """Show the identity we have now, from the next handshake on."""
        if self._context is not None:
            tls.load_pair(self._context, self._identity())

    def shut(self) -> None:
        """Let nobody in any more; who is in stays."""
        self._gate.shut()

    async def close(self) -> None:
        await self._gate.close()
        await asyncio.sleep(0)  # the transports let go of their sockets in the loop's next pass
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- one connection ----------------------------------------------------------------------------------------------
    async def _serve(self, sock: socket.socket, visitor: Visitor) -> None:
        loop = asyncio.get_running_loop()
        assert self._context is not None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
        try:
            outer = _End()
            await loop.connect_accepted_socket(
                lambda: outer, sock, ssl=self._context, ssl_handshake_timeout=visitor.seconds_left()
            )
        except BaseException:
            sock.close()
            raise
        try:
            subject = tls.subject_of_peer(outer.transport.get_extra_info("ssl_object"))
        except ValueError as err:
            log.warning("refused a connection from %s: %s", visitor.source, err)
            outer.transport.abort()
            return
        if self._members[subject.node_id] >= CONNECTIONS_A_MEMBER:
            self._say_too_many(subject)
            outer.transport.abort()
            return
        visitor.proved()
        await self._let_in(outer, subject)

    def _say_too_many(self, subject: Subject) -> None:
        """Once a minute: whoever has too many soon tries again."""
        now = asyncio.get_running_loop().time()
        if now - self._said >= SAY_S:
            self._said = now
            log.warning(
                "a node has %d connections to the RPC port open and gets no more",
                CONNECTIONS_A_MEMBER,
                extra={"node": subject.node_id},
            )

    async def _let_in(self, outer: _End, subject: Subject) -> None:
        """To gRPC, under a name nobody else has."""
        loop = asyncio.get_running_loop()
        name = self._folder / str(next(self._numbers))
        self._peers[str(name)] = subject
        self._members[subject.node_id] += 1
        inner: _End | None = None
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as way:
                way.bind(str(name))
                try:
                    await loop.sock_connect(way, str(self._folder / subject.role))
                finally:
                    name.unlink(missing_ok=True)  # gRPC knows the name from the socket, not from the folder
                made = _End()
                await loop.create_unix_connection(lambda: made, sock=_detached(way))
                inner = made
            outer.join(inner)
            await outer.ended
            await inner.ended  # what came last still goes its way
        except OSError as err:
            log.warning("cannot pass a connection on to gRPC: %s", err, extra={"node": subject.node_id})
        finally:
            outer.transport.abort()
            if inner is not None:
                inner.transport.abort()
            del self._peers[str(name)]
            self._members[subject.node_id] -= 1
            if not self._members[subject.node_id]:
                del self._members[subject.node_id]


def _detached(sock: socket.socket) -> socket.socket:
    """The same connection as an object of its own: its transport closes it."""
    return socket.socket(sock.family, sock.type, fileno=sock.detach())


class _End(asyncio.Protocol):
    """One end of a connection: what it gets goes to the other, no faster than the other takes it."""

    def __init__(self) -> None:
        self.other: _End | None = None
        self._early: list[bytes] = []  # a transport may read once before it heeds that it is to wait
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(HIGH_WATER)
        self.transport.pause_reading()  # until there is another end

    def join(self, other: _End) -> None:
        self.other, other.other = other, self
        if self.ended.done() or other.ended.done():
            self.transport.close()
            other.transport.close()
        else:
            for end in (self, other):
                early, end._early = end._early, []
                for data in early:
                    end.data_received(data)
                end.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and not self.other.ended.done():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.ended.done():
            self.other.transport.resume_reading()

    def eof_received(self) -> None:
        """The transport closes itself; ``connection_lost`` tells the other end."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if not self.ended.done():
            self.ended.set_result(None)
        if self.other is not None:
            self.other.transport.close()  # after what it still has to send
