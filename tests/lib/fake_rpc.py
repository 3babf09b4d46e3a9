"""Calls between daemons of one process: the double of gRPC and of the join server's HTTPS.

Every message is encoded, delayed as a seed says and decoded. Connections behave as TCP's: in order, nothing is lost on an open one; a cut link holds
bytes back until it heals or both ends give the connection up (``KEEPALIVE_S``); a killed process resets its connections at once, if
the news gets through. Certificates are real and checked as TLS would.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any

import msgspec

from swarm_agent.ca import ca
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.ca.join_server import Answering, JoinRefused
from swarm_agent.objects.errors import SwarmError, Unavailable
from swarm_agent.rpc import sizes
from swarm_agent.rpc.grpc import (
    DECODERS,
    Allow,
    Method,
    WireError,
    check_caller,
    encode,
    error_of,
    refusal_of,
)
from swarm_agent.rpc.messages import Nothing

KEEPALIVE_S = 10.0  # as the real one's options: five seconds of silence, five for the answer
CONNECT_S = 20.0
DOOR_TIMEOUT_S = 10.0


FRAMES = "Frames"
_DECODERS = {
    **DECODERS,
    FRAMES: (msgspec.msgpack.Decoder(bytes).decode, msgspec.msgpack.Decoder(Nothing).decode),
}


class RpcFaults(msgspec.Struct, kw_only=True):
    """What the network does. Times in seconds, the others probabilities."""

    delay_min: float = 0.0002
    delay_max: float = 0.001
    reset: float = 0.0
    """Per message: the connection breaks instead."""


class RpcNet:
    """All the links. Hosts are named by their address."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.faults = RpcFaults()
        self.servers: dict[str, FakeServer] = {}
        self.doors: dict[str, tuple[NodeIdentity, Answering, RpcEndpoint]] = {}
        self._cut: dict[tuple[str, str], float] = {}  # link -> since when
        self._connections: dict[int, Connection] = {}
        self._serial = 0
        self.messages = 0

    # --- links -------------------------------------------------------------------------------------------------------
    def cut(self, source: str, target: str) -> None:
        """One way."""
        if source != target:
            self._cut.setdefault((source, target), asyncio.get_running_loop().time())

    def partition(self, *groups: Iterable[str]) -> None:
        """Both ways between the groups, besides what is cut already."""
        sides = [list(group) for group in groups]
        for i, side in enumerate(sides):
            for other in sides[i + 1 :]:
                for a in side:
                    for b in other:
                        self.cut(a, b)
                        self.cut(b, a)

    def heal(self) -> None:
        self._cut.clear()
        for connection in list(self._connections.values()):
            connection.healed()

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cut

    def reset(self, host: str, other: str = "") -> None:
        """Break the connections of a host (to one other)."""
        for connection in list(self._connections.values()):
            ends = (connection.client, connection.server)
            if host in ends and (not other or other in ends):
                connection.break_("connection reset by peer")

    # --- connections ---------------------------------------------------------------------------------------------------
    def add(self, connection: Connection) -> int:
        self._serial += 1
        self._connections[self._serial] = connection
        return self._serial

    def forget(self, number: int) -> None:
        self._connections.pop(number, None)

    def delay(self) -> float:
        return self.rng.uniform(self.faults.delay_min, self.faults.delay_max)

    async def travel(self, source: str, target: str) -> None:
        """One way of a handshake."""
        await asyncio.sleep(self.delay())
        while self.is_cut(source, target):
            await asyncio.sleep(0.1)

    def vanish(self, host: str) -> None:
        """A process is killed: its ports close, its connections are reset."""
        self.servers = {a: s for a, s in self.servers.items() if s.endpoint.host != host}
        self.doors = {a: d for a, d in self.doors.items() if d[2].host != host}
        for connection in list(self._connections.values()):
            connection.lose_end(host)


class _Pipe:
    """One direction of a connection: what is sent arrives in order, late, and not while the link is cut."""

    def __init__(self, net: RpcNet, source: str, target: str, deliver: Callable[[Any], None]) -> None:
        self._net = net
        self._source = source
        self._target = target
        self._deliver = deliver
        self._queue: deque[tuple[float, Any]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0.0

    def send(self, item: Any) -> None:
        now = asyncio.get_running_loop().time()
        self._last = max(self._last + 1e-7, now + self._net.delay())
        self._queue.append((self._last, item))
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and self._queue and not self._net.is_cut(self._source, self._target):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._queue[0][0], self._arrive)

    def _arrive(self) -> None:
        self._timer = None
        if self._queue and not self._net.is_cut(self._source, self._target):
            self._deliver(self._queue.popleft()[1])
        self._arm()

    def healed(self) -> None:
        self._arm()

    def close(self) -> None:
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_END = object()


class Connection:
    """One call and its two directions. Implements ``Call`` for the client."""

    def __init__(
        self,
        net: RpcNet,
        endpoint: RpcEndpoint,
        identity: NodeIdentity,
        addr: str,
        server_name: str,
        name: str,
    ) -> None:
        self._net = net
        self._endpoint = endpoint
        self._identity = identity
        self._addr = addr
        self._server_name = server_name
        self._name = name
        self._decode_request, self._decode_reply = _DECODERS[name]
        self.client = endpoint.host
        self.server = addr.rpartition(":")[0]
        self._up = _Pipe(net, self.client, self.server, self._at_server)
        self._down = _Pipe(net, self.server, self.client, self._at_client)
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._replies: asyncio.Queue[Any] = asyncio.Queue()
        self._failure: SwarmError | None = None
        self._over = asyncio.Event()
        self._reached = asyncio.Event()
        self._handler: asyncio.Task[None] | None = None
        self._context = contextvars.copy_context()
        self._number = net.add(self)
        self._keepalive = asyncio.get_running_loop().call_later(KEEPALIVE_S / 2, self._probe)
        self._silent = 0
        self._held: list[bytes | None] = []  # the request of a call that does not stream up
        self._opening = endpoint.spawn(self._open())

    # --- opening ----------------------------------------------------------------------------------------------------------
    async def _open(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._net.travel(self.client, self.server)
                server = self._net.servers.get(self._addr)
                await self._net.travel(self.server, self.client)
        except TimeoutError:
            self._client_ends(self._error("UNAVAILABLE", "failed to connect: timed out"))
            return
        if server is None or server is not self._net.servers.get(self._addr):
            self._client_ends(self._error("UNAVAILABLE", "failed to connect: connection refused"))
            return
        why = server.refuses(self._identity, self._server_name)
        if why:
            self._client_ends(self._error("UNAVAILABLE", f"failed to connect: {why}"))
            return
        caller = server.caller(self._identity)
        self._handler = server.endpoint.spawn(server.serve(self, self._name, caller))
        self._reached.set()
        for item in self._held:
            self._up.send(item)

    # --- the client's side ------------------------------------------------------------------------------------------------
    async def connected(self) -> None:
        over = asyncio.ensure_future(self._over.wait())
        reached = asyncio.ensure_future(self._reached.wait())
        try:
            await asyncio.wait([over, reached], return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            reached.cancel()
        if not self._reached.is_set():
            raise self._why()

    async def write(self, message: Any) -> None:
        await self.connected()
        if self._over.is_set():
            raise self._why()
        self._send_up(encode(message))

    def push(self, message: Any) -> None:
        """Write without waiting, once connected; nothing happens after the end."""
        self._send_up(encode(message))

    async def read(self) -> Any:
        item = await self._replies.get()
        if item is _END:
            self._replies.put_nowait(_END)
            raise self._why()
        return self._decode_reply(item)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            item = await self._replies.get()
            if item is _END:
                if self._failure is not None:
                    raise self._failure
                return
            yield self._decode_reply(item)

    async def reply(self) -> Any:
        await self.connected()
        self._send_up(None)
        return await self.read()

    async def ended(self) -> None:
        await self._over.wait()

    def request(self, message: Any) -> None:
        """The one request of a call that does not stream up."""
        self._held = [encode(message), None]

    def cancel(self) -> None:
        """The client lets go; the server learns of it."""
        if not self._over.is_set():
            if self._handler is not None:
                self._up.send(_END)
            self._client_ends(Unavailable("the call was given up here"))

    def _why(self) -> SwarmError:
        return self._failure or SwarmError("the manager ended the call")

    def _send_up(self, item: Any) -> None:
        if not self._over.is_set() and not self._dies():
            self._up.send(item)

    def _at_client(self, item: Any) -> None:
        if isinstance(item, tuple):
            refusal = WireError(*item)
            self._client_ends(None if refusal.status == "OK" else error_of(refusal, self._addr))
        elif not self._over.is_set():
            self._replies.put_nowait(item)

    def _error(self, code: str, details: str) -> SwarmError:
        return error_of(WireError(code, details), self._addr)

    def _client_ends(self, failure: SwarmError | None) -> None:
        if self._over.is_set():
            return
        self._failure = failure
        self._over.set()
        self._replies.put_nowait(_END)
        self._opening.cancel()
        self._settle()

    # --- the server's side --------------------------------------------------------------------------------------------------
    def _at_server(self, item: Any) -> None:
        if item is _END:
            self._server_ends()
        else:
            self._requests.put_nowait(item)

    async def requests(self) -> AsyncIterator[Any]:
        while True:
            item = await self._requests.get()
            if item is None:
                return
            if self._name != FRAMES:
                sizes.check(self._name, "manager", item)
            yield self._decode_request(item)

    def answer(self, message: Any) -> None:
        if not self._dies():
            self._down.send(encode(message))

    def end(self, code: str = "OK", details: str = "", leader: str | None = None, kind: str = "") -> None:
        """The server's last word."""
        self._down.send((code, details, leader, kind))
        self._handler = None

    def _server_ends(self) -> None:
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.cancel()
        self._settle()

    # --- what happens to connections ------------------------------------------------------------------------------------------
    def _dies(self) -> bool:
        net = self._net
        self._net.messages += 1
        if net.faults.reset and net.rng.random() < net.faults.reset:
            self.break_("connection reset by peer")
            return True
        return False

    def break_(self, why: str) -> None:
        """Both ends see it at once."""
        self._server_ends()
        self._client_ends(self._error("UNAVAILABLE", why))

    def lose_end(self, host: str) -> None:
        """A process at one end was killed. The other end learns of it as soon as a packet gets through."""
        if host == self.server and host != self.client:
            self._handler = None
            self._up.close()
            if self._reached.is_set():
                self._down.close()
                self._down.send(("UNAVAILABLE", "connection reset by peer", None))
        elif host == self.client:
            self._client_ends(Unavailable("this process was killed"))
            self._up.close()
            self._up.send(_END)

    def healed(self) -> None:
        self._up.healed()
        self._down.healed()

    def _probe(self) -> None:
        """Both sides give up a connection that was silent for as long as keepalive takes, in either direction."""
        cut = self._net.is_cut(self.client, self.server) or self._net.is_cut(self.server, self.client)
        self._silent = self._silent + 1 if cut else 0
        if self._silent * KEEPALIVE_S / 2 >= KEEPALIVE_S and self._reached.is_set():
            self.break_("keepalive watchdog timeout")
            return
        self._keepalive = asyncio.get_running_loop().call_later(
            KEEPALIVE_S / 2, self._probe, context=self._context
        )

    def _settle(self) -> None:
        """Once both ends are done with it."""
        if self._over.is_set() and self._handler is None:
            self._keepalive.cancel()
            self._net.forget(self._number)


class FakeServer:
    """Implements ``rpc.Server``."""

    def __init__(
        self,
        net: RpcNet,
        endpoint: RpcEndpoint,
        identity: Callable[[], NodeIdentity],
        allow: Allow,
        methods: list[Method],
    ) -> None:
        self._net = net
        self.endpoint = endpoint
        self._identity = identity
        self._allow = allow
        self._methods = {m.name: m for m in methods}
        self._addr = ""
        self._calls: dict[asyncio.Task[None], None] = {}

    async def start(self, addr: str) -> int:
        port = int(addr.rpartition(":")[2])
        self._addr = f"{self.endpoint.host}:{port}"
        if self._addr in self._net.servers:
            raise Unavailable(f"cannot listen on {self._addr}: another program holds the port")
        self._net.servers[self._addr] = self
        return port

    def renewed(self) -> None:
        """Certificates are looked up at each handshake."""

    async def stop(self) -> None:
        if self._net.servers.get(self._addr) is self:
            del self._net.servers[self._addr]
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def refuses(self, identity: NodeIdentity, server_name: str) -> str:
        """Why TLS would fail; "" if it would not."""
        own = self._identity()
        me = subject_of(own.cert)
        now = self.endpoint.now()
        if not issued_by(identity.cert, own.root) or not issued_by(own.cert, identity.root):
            return "certificate verify failed"
        if now > life_of(identity.cert).ends or now > life_of(own.cert).ends:
            return "certificate has expired"
        if me.role != "manager" or server_name not in (ca.OU["manager"], me.node_id):
            return f"hostname mismatch, {me.node_id} is not {server_name}"
        return ""

    def caller(self, identity: NodeIdentity) -> ca.Subject:
        return subject_of(identity.cert)

    async def serve(self, call: Connection, name: str, caller: ca.Subject) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls[task] = None
        method = self._methods[name]
        try:
            check_caller(caller, method, self._allow)
            incoming = call.requests()
            request: Any = incoming if method.client_streams else await anext(incoming)
            if method.server_streams:
                async for reply in method.serve(caller, request):
                    call.answer(reply)
            else:
                call.answer(await method.serve(caller, request))
        except SwarmError as err:
            call.end(*refusal_of(err))
        except asyncio.CancelledError:
            call.end("UNAVAILABLE", "the server goes away")
            raise
        except Exception as err:
            call.end("UNKNOWN", f"Unexpected {type(err)}: {err}")
            raise
        else:
            call.end()
        finally:
            del self._calls[task]


class FakeClient:
    """Implements ``rpc.Client``."""

    def __init__(
        self, net: RpcNet, endpoint: RpcEndpoint, addr: str, identity: NodeIdentity, server_name: str
    ) -> None:
        self.addr = addr
        self._make = functools.partial(Connection, net, endpoint, identity, addr, server_name)
        self._calls: list[Connection] = []

    async def unary(self, name: str, request: Any, timeout_s: float = 10.0) -> Any:
        call = self._call(name)
        call.request(request)
        try:
            async with asyncio.timeout(timeout_s):
                return await call.read()
        except TimeoutError as err:
            raise SwarmError("Deadline Exceeded") from err
        finally:
            call.cancel()
            self._calls.remove(call)

    def bidirectional(self, name: str) -> Connection:
        return self._call(name)

    def upload(self, name: str) -> Connection:
        return self._call(name)

    def download(self, name: str, request: Any) -> Connection:
        call = self._call(name)
        call.request(request)
        return call

    def _call(self, name: str) -> Connection:
        self._calls = [c for c in self._calls if not c._over.is_set()]
        call = self._make(name)
        self._calls.append(call)
        return call

    async def close(self) -> None:
        for call in self._calls:
            call.cancel()


class RpcEndpoint:
    """One process on the net: implements ``rpc.Rpc`` and ``door.Doors``."""

    def __init__(
        self,
        net: RpcNet,
        host: str,
        now: Callable[[], int],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._net = net
        self.host = host
        self.now = now
        self.spawn = spawn

    def server(self, identity: Callable[[], NodeIdentity], allow: Allow, methods: list[Method]) -> FakeServer:
        return FakeServer(self._net, self, identity, allow, methods)

    def client(self, addr: str, identity: NodeIdentity, server_name: str = ca.SERVER_NAME) -> FakeClient:
        return FakeClient(self._net, self, addr, identity, server_name)

    # --- session.links.Links: a link is a call whose one side says nothing -----------------------------------------------
    async def links(
        self,
        port: int,
        identity: Callable[[], NodeIdentity],
        admit: Callable[[ca.Subject], None],
        take: Callable[[bytes, str], None],
    ) -> FakeListener:
        async def serve(caller: ca.Subject, frames: AsyncIterator[bytes]) -> Nothing:
            async for frame in frames:
                take(frame, caller.node_id)
            return Nothing()

        server = self.server(
            identity, lambda caller, _: admit(caller), [Method(FRAMES, True, False, False, serve)]
        )
        await server.start(f"{self.host}:{port}")
        return FakeListener(server)

    async def link(self, addr: str, identity: NodeIdentity, node_id: str) -> FakeLink:
        client = self.client(addr, identity, node_id)
        call = client.upload(FRAMES)
        await call.connected()
        return FakeLink(client, call)

    async def listen(
        self,
        host: str,
        port: int,
        identity: NodeIdentity,
        door: Answering,
    ) -> Callable[[], Awaitable[None]]:
        addr = f"{self.host}:{port}"
        if addr in self._net.doors:
            raise OSError(98, "Address already in use")
        self._net.doors[addr] = (identity, door, self)

        async def close() -> None:
            self._net.doors.pop(addr, None)

        return close

    async def call(
        self, addr: str, root: bytes | None, method: str, target: str, body: bytes
    ) -> tuple[int, bytes]:
        server = addr.rpartition(":")[0]
        try:
            async with asyncio.timeout(DOOR_TIMEOUT_S):
                await self._net.travel(self.host, server)
                found = self._net.doors.get(addr)
                await self._net.travel(server, self.host)
                if found is None:
                    raise Unavailable(f"cannot reach a manager at {addr}: connection refused")
                identity, door, endpoint = found
                if root is not None and not issued_by(identity.cert, root):
                    raise JoinRefused(f"the manager at {addr} does not prove to be part of the cluster")
                answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
                endpoint.spawn(_answer(answer, door, method, target, body, self.host))
                result = await answer
                await self._net.travel(server, self.host)
                return result
        except TimeoutError as err:
            raise Unavailable(f"the manager at {addr} did not answer within {DOOR_TIMEOUT_S:g} s") from err


class FakeListener:
    """Implements ``links.Listener``."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def renewed(self) -> None:
        """The server asks for its identity at every handshake."""

    async def close(self) -> None:
        await self._server.stop()


class FakeLink:
    """Implements ``links.Link``."""

    def __init__(self, client: FakeClient, call: Connection) -> None:
        self._client = client
        self._call = call

    def send(self, frame: bytes) -> None:
        self._call.push(frame)

    async def ended(self) -> None:
        await self._call.ended()

    def close(self) -> None:
        self._call.cancel()


class FakeLinks:
    """Implements ``links.Links``."""

    def __init__(self, endpoint: RpcEndpoint) -> None:
        self._endpoint = endpoint

    async def listen(
        self,
        host: str,
        port: int,
        identity: Callable[[], NodeIdentity],
        admit: Callable[[ca.Subject], None],
        take: Callable[[bytes, str], None],
    ) -> FakeListener:
        return await self._endpoint.links(port, identity, admit, take)

    async def connect(self, addr: str, identity: NodeIdentity, node_id: str) -> FakeLink:
        return await self._endpoint.link(addr, identity, node_id)


async def _answer(
    answer: asyncio.Future[tuple[int, bytes]],
    door: Answering,
    method: str,
    target: str,
    body: bytes,
    host: str,
) -> None:
    result = await door.answer(method, target, body, host)
    if not answer.done():
        answer.set_result(result)


# certificates are looked at for every call: once is enough for each
subject_of = functools.lru_cache(maxsize=4096)(ca.subject_of)
issued_by = functools.lru_cache(maxsize=4096)(ca.issued_by)
life_of = functools.lru_cache(maxsize=4096)(ca.life_of)
