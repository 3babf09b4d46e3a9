"""Who may keep a port busy before anybody knows who they are: an accept loop that owns every connection nobody vouches for.

Owns such connections from the moment they are accepted until whoever serves the port says ``proved`` (a handshake with a member's
certificate, a complete request) or is through with them. It bounds them in number, in number for each source, in time and in memory:

- *silent*: nothing was sent. Costs a socket and a reader, no TLS. When there are too many, the oldest of the heaviest source goes.
- *ready*: something can be read; waits for its turn. Sources take turns, and of one source the newest goes first: in a storm it is the
  one most likely to have somebody waiting at the other end.
- *speaking*: being served. Few at a time, no source more than half of them, so many begun a second. One that holds its place for longer
  than a handshake takes makes room as soon as another waits.

Refuses to know what is spoken. Everything runs on the loop it is made on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec

log = logging.getLogger(__name__)

ACCEPTS_AT_ONCE = 32  # then everything else on the loop has its turn
BACKLOG = 4096  # a unix socket whose backlog is full refuses at once (EAGAIN), where TCP tries again; the kernel's own default bound
LOOK_S = 0.5
RETRY_S = 0.05
OUT_OF_FILES_S = 0.1
SLOW_S = 1.0  # longer than an honest handshake takes, also on a busy host
REPORT_S = 60.0
SOURCES = 1000  # that are counted apart
_UCRED = struct.Struct("iII")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what is closed leaves nothing behind in the kernel
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class GateLimits(msgspec.Struct, frozen=True):
    """Of the connections nobody vouches for."""

    seconds: float = 10.0
    """From accepting to ``proved``."""

    waiting: int = 1024
    per_source: int = 512
    speaking: int = 64
    starts_per_second: float = 200.0


class Visitor:
    """One connection nobody vouches for yet."""

    __slots__ = ("_gate", "at", "since", "sock", "source", "task")

    def __init__(self, gate: Gate, sock: socket.socket, source: str, now: float) -> None:
        self._gate = gate
        self.sock = sock
        self.source = source
        self.since = now
        self.at = now  # when it came to the stage it is in
        self.task: asyncio.Task[None] | None = None

    def proved(self) -> None:
        """It is somebody: from here on it is its server's alone."""
        self._gate.forget(self)

    def seconds_left(self) -> float:
        left = self.since + self._gate.limits.seconds - asyncio.get_running_loop().time()
        return max(0.01, left)


Serve = Callable[[socket.socket, Visitor], Awaitable[None]]
"""Gets a connection that has something to say. Closes it, also when it is cancelled."""


class _Source:
    """The visitors of one source, each stage in the order they came to it."""

    __slots__ = ("ready", "silent", "speaking")

    def __init__(self) -> None:
        self.silent: dict[Visitor, None] = {}
        self.ready: dict[Visitor, None] = {}
        self.speaking: dict[Visitor, None] = {}

    def __len__(self) -> int:
        return len(self.silent) + len(self.ready) + len(self.speaking)

    def least(self) -> Visitor | None:
        """Whom we would miss least; nobody who is being served."""
        return next(iter(self.silent), None) or next(iter(self.ready), None)

    def drop(self, visitor: Visitor) -> None:
        for stage in (self.silent, self.ready, self.speaking):
            stage.pop(visitor, None)


class Gate:
    """``name`` is for the log: which port. ``serve`` is run in a task of its own for each connection."""

    def __init__(self, name: str, serve: Serve, limits: GateLimits | None = None) -> None:
        self._name = name
        self._serve = serve
        self.limits = limits or GateLimits()
        self._listeners: dict[socket.socket, None] = {}
        self._sources: dict[str, _Source] = {}
        self._waiting: dict[Visitor, None] = {}  # all of them, oldest first
        self._speaking: dict[Visitor, None] = {}
        self._ready: dict[str, None] = {}  # sources that have somebody ready, whose turn is next first
        self._tasks: set[asyncio.Task[None]] = set()
        self._starts = self.limits.starts_per_second  # how many may begin now
        self._filled = 0.0
        self._pump_timer: asyncio.TimerHandle | None = None  # set while somebody is ready and has to wait
        self._look_timer: asyncio.TimerHandle | None = None
        self._woken = False
        self._reported = float("-inf")
        self._blamed: Counter[str] = Counter()  # refused by source since the last report
        self.refused = 0  # closed before anybody vouched for them: too many, too slow

    # --- life ----------------------------------------------------------------------------------------------------
    def listen(self, listener: socket.socket) -> None:
        """Accept on it; it is ours from here on."""
        listener.setblocking(False)
        self._listeners[listener] = None
        asyncio.get_running_loop().add_reader(listener, self._acceptable, listener)

    def shut(self) -> None:
        """Accept no more, and close whom nobody vouches for."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()
        for visitor in list(self._waiting):
            self._close(visitor)
        for timer in (self._pump_timer, self._look_timer):
            if timer is not None:
                timer.cancel()

    async def close(self, patience_s: float = 0.0) -> None:
        """The same, and end what is served, after ``patience_s`` to end by itself."""
        self.shut()
        if self._tasks and patience_s:
            await asyncio.wait(self._tasks, timeout=patience_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def waiting(self) -> int:
        """How many nobody vouches for."""
        return len(self._waiting)

    # --- accepting -------------------------------------------------------------------------------------------------
    def _acceptable(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as err:
                if err.errno in _OUT_OF_FILES and not self._make_room(self._heaviest()):
                    self._pause(listener)
                    return
                continue
            self._accepted(sock, address)

    def _pause(self, listener: socket.socket) -> None:
        """No file descriptor is left, and none of those we could close is ours."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)

        def resume() -> None:
            if listener in self._listeners:
                loop.add_reader(listener, self._acceptable, listener)

        loop.call_later(OUT_OF_FILES_S, resume)

    def _accepted(self, sock: socket.socket, address: object) -> None:
        sock.setblocking(False)
        name = _source(sock, address)
        source = self._sources.get(name)
        limits = self.limits
        room = True
        if source is not None and len(source) >= limits.per_source:
            room = self._make_room(source)
        elif len(self._waiting) >= limits.waiting:
            room = self._make_room(self._heaviest())
        if not room:
            self._blame(name)
            _reset(sock)
            return
        loop = asyncio.get_running_loop()
        visitor = Visitor(self, sock, name, loop.time())
        self._sources.setdefault(name, _Source()).silent[visitor] = None
        self._waiting[visitor] = None
        loop.add_reader(sock, self._readable, visitor)
        if self._look_timer is None:
            self._look_timer = loop.call_later(LOOK_S, self._look)

    def _heaviest(self) -> _Source | None:
        return max(self._sources.values(), key=len, default=None)

    def _make_room(self, source: _Source | None) -> bool:
        victim = source.least() if source is not None else None
        if victim is None:
            return False
        self._refuse(victim)
        return True

    # --- whose turn it is --------------------------------------------------------------------------------------------
    def _readable(self, visitor: Visitor) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(visitor.sock)
        try:
            gone = not visitor.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            loop.add_reader(visitor.sock, self._readable, visitor)
            return
        except OSError:
            gone = True
        if gone:
            self._close(visitor)
            return
        source = self._sources[visitor.source]
        source.silent.pop(visitor, None)
        source.ready[visitor] = None
        self._ready[visitor.source] = None
        self._pump()

    def _pump(self) -> None:
        """Serve who may be served now; look again a little later while somebody has to wait."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        rate = self.limits.starts_per_second
        self._starts = min(rate / 4, self._starts + (now - self._filled) * rate)
        self._filled = now
        while self._starts >= 1 and (name := self._next(now)) is not None:
            self._starts -= 1
            source = self._sources[name]
            visitor = next(reversed(source.ready))
            del source.ready[visitor]
            del self._ready[name]
            if source.ready:
                self._ready[name] = None  # behind the others
            self._start(visitor, source, now)
        if self._ready and self._pump_timer is None:
            self._pump_timer = loop.call_later(RETRY_S, self._pump_later)

    def _pump_later(self) -> None:
        self._pump_timer = None
        self._pump()

    def _wake(self) -> None:
        """A place became free. Not at once: it may be whoever looks for one that freed it."""
        self._woken = False
        self._pump()

    def _next(self, now: float) -> str | None:
        """The source whose turn it is. Makes room for it where somebody has been served for too long."""
        if not self._ready:
            return None
        if len(self._speaking) >= self.limits.speaking and not self._hurry(self._speaking, now):
            return None
        for name in self._ready:
            speaking = self._sources[name].speaking
            if len(speaking) < max(1, self.limits.speaking // 2) or self._hurry(speaking, now):
                return name
        return None

    def _hurry(self, speaking: dict[Visitor, None], now: float) -> bool:
        oldest = next(iter(speaking))
        if now - oldest.at < SLOW_S:
            return False
        self._refuse(oldest)
        return True

    def _start(self, visitor: Visitor, source: _Source, now: float) -> None:
        visitor.at = now
        source.speaking[visitor] = None
        self._speaking[visitor] = None
        visitor.task = asyncio.get_running_loop().create_task(
            self._run(visitor), name=f"{self._name} visitor"
        )
        self._tasks.add(visitor.task)
        visitor.task.add_done_callback(self._tasks.discard)

    async def _run(self, visitor: Visitor) -> None:
        try:
            await self._serve(visitor.sock, visitor)
        except (OSError, TimeoutError, EOFError) as err:
            log.debug("%s: %s: %s", self._name, visitor.source, err)
        except Exception:  # one connection must not go without a word
            log.exception("%s: a connection from %s failed", self._name, visitor.source)
        finally:
            self.forget(visitor)

    # --- the end of it -----------------------------------------------------------------------------------------------
    def forget(self, visitor: Visitor) -> None:
        """It is proved, or gone: ours no more."""
        if visitor not in self._waiting:
            return
        del self._waiting[visitor]
        self._speaking.pop(visitor, None)
        source = self._sources[visitor.source]
        source.drop(visitor)
        if not source.ready:
            self._ready.pop(visitor.source, None)
        if not len(source):
            del self._sources[visitor.source]
        if self._ready and not self._woken:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _close(self, visitor: Visitor) -> None:
        if visitor.task is None:
            asyncio.get_running_loop().remove_reader(visitor.sock)
            _reset(visitor.sock)
        else:
            with contextlib.suppress(OSError):  # whatever its transport is at, there is nothing more to read
                visitor.sock.shutdown(socket.SHUT_RDWR)
            visitor.task.cancel()
        self.forget(visitor)

    def _refuse(self, visitor: Visitor) -> None:
        self._blame(visitor.source)
        self._close(visitor)

    def _blame(self, source: str) -> None:
        self.refused += 1
        if source in self._blamed or len(self._blamed) < SOURCES:
            self._blamed[source] += 1

    def _look(self) -> None:
        """Close those whose time is over."""
        loop = asyncio.get_running_loop()
        self._look_timer = None
        now = loop.time()
        for visitor in list(self._waiting):
            if now - visitor.since < self.limits.seconds:
                break
            self._refuse(visitor)
        self._report(now)
        if self._waiting:
            self._look_timer = loop.call_later(LOOK_S, self._look)

    def _report(self, now: float) -> None:
        """Once a minute, or a storm would fill the log too."""
        if now - self._reported < REPORT_S or not self._blamed:
            return
        self._reported = now
        (worst, count), *_ = self._blamed.most_common(1)
        log.warning(
            "%s: %d connections were closed lately because they proved nothing in time or were too many, %d of them from %s",
            self._name,
            self._blamed.total(),
            count,
            worst,
        )
        self._blamed.clear()


def _source(sock: socket.socket, address: object) -> str:
    """What counts as one source: an IPv4 address, an IPv6 /64, the process at the other end of a unix socket."""
    if sock.family == socket.AF_UNIX:
        pid, _, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return f"process {pid}"
    host = str(address[0])  # type: ignore[index]
    if sock.family == socket.AF_INET6:
        ip = ipaddress.IPv6Address(host.partition("%")[0])
        return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))
    return host


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def tcp_listener(host: str, port: int) -> socket.socket:
    """OSError when the port is taken or the address is not ours."""
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=host == "::")


async def open_streams(
    sock: socket.socket, context: ssl.SSLContext | None = None, limit: int = 64 * 1024
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An accepted connection as streams, after a TLS handshake if there is a context. OSError, TimeoutError; the connection is closed then."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    try:
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=context)
    except BaseException:
        sock.close()
        raise
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
