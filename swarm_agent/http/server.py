"""HTTP/1.1 server on asyncio and h11: heads parsed once, bodies streamed, upgrades spliced raw.

A connection is served request after request. What a handler answers is a :class:`Response`, a :class:`Streamed`, or
:data:`HANDED_OVER` when it took the connection for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import h11
import msgspec

from swarm_agent.gate import BACKLOG, Gate, GateLimits, Visitor, open_streams
from swarm_agent.objects.errors import SwarmError, UserError

log = logging.getLogger(__name__)

CHUNK = 64 * 1024
MAX_HEAD = 1 << 20  # registry credentials and filters travel in heads
MAX_IDLE = 1000  # connections between two requests; beyond it the one that has waited longest is closed
# Until the head of a first request is complete. The number of those that are read bounds the memory: a head may be large.
LIMITS = GateLimits(seconds=30.0, speaking=64, starts_per_second=10_000.0)
MAX_BODY = 8 << 20  # of calls we answer ourselves; what is passed through is not limited


class Response(msgspec.Struct):
    """A whole answer. ``json`` wins over ``body``."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class Streamed(msgspec.Struct):
    """An answer in pieces."""

    pieces: AsyncIterator[bytes]
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


HANDED_OVER = object()
_STATUSES = frozenset(map(int, http.HTTPStatus))
_json = msgspec.json.Encoder()


def json_response(value: Any, status: int = 200) -> Response:
    return Response(status, _json.encode(value) + b"\n", (("Content-Type", "application/json"),))


class HttpError(UserError):
    """An answer other than success, with plain text as Docker's HTTP layer gives it."""

    code = ""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.http_status = status


def error_response(err: SwarmError) -> Response:
    """Docker's error body; gRPC-born errors keep the prefix clients match on."""
    text = str(err)
    if err.code:
        text = f"rpc error: code = {err.code} desc = {text}"
    return json_response({"message": text}, err.http_status)


class Request:
    """One request; its body is read on demand."""

    def __init__(self, head: h11.Request, connection: ClientConnection | None) -> None:
        self.head = head
        self._connection = connection
        self._whole: bytes | None = None
        self.method = head.method.decode()
        self.target = head.target.decode("latin-1")
        try:
            split = urlsplit(self.target)
        except ValueError as err:
            raise HttpError(400, f"malformed request target {self.target[:200]!r}: {err}") from err
        self.path = split.path
        self.raw_query = split.query
        self.query: dict[str, str] = dict(parse_qsl(split.query, keep_blank_values=True))

    @property
    def connection(self) -> ClientConnection:
        """The client's; a forwarded request has none here."""
        assert self._connection is not None, "a forwarded request cannot take its connection over"
        return self._connection

    def header(self, name: str) -> str:
        wanted = name.lower().encode()
        return next((v.decode("latin-1") for k, v in self.head.headers if k == wanted), "")

    async def body(self, most: int = MAX_BODY) -> bytes:
        """All of it; asked again, the same. Refused above ``most`` bytes."""
        if self._whole is None:
            self._whole = await self._read_body(most)
        return self._whole

    async def _read_body(self, most: int) -> bytes:
        pieces, size = [], 0
        async for piece in self.connection.request_body():
            size += len(piece)
            if size > most:
                raise HttpError(413, f"request body is larger than {most >> 20} MiB")
            pieces.append(piece)
        return b"".join(pieces)


Handler = Callable[[Request], Awaitable[Any]]


class ClientConnection:
    """One client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)

    async def next_event(self) -> Any:
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self.http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            self.http.receive_data(await self.reader.read(CHUNK))

    async def request_body(self) -> AsyncIterator[bytes]:
        while self.http.their_state is h11.SEND_BODY:
            event = await self.next_event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise h11.RemoteProtocolError("the client closed the connection early")

    async def send(self, *events: h11.Event) -> None:
        for event in events:
            data = self.http.send(event)
            if data:
                self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Return when the client has closed its side."""
        while True:
            data = await self.reader.read(CHUNK)
            if not data:
                return
            self.http.receive_data(data)


def _head(status: int, headers: list[tuple[str, str]]) -> h11.Response:
    """With the reason in words, which some clients show and none should miss."""
    reason = http.HTTPStatus(status).phrase if status in _STATUSES else ""
    return h11.Response(status_code=status, headers=headers, reason=reason.encode())


class HttpServer:
    """Serves a unix socket."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._gate = Gate("api socket", self._serve, LIMITS)
        self._idle: dict[asyncio.StreamWriter, None] = {}  # between two requests, longest first

    async def start_unix(self, path: str, group: str = "docker") -> None:
        """Listen on a unix socket, root and ``group`` only, like the engine's."""
        socket_path = Path(path)
        socket_path.parent.mkdir(parents=True, exist_ok=True)
        socket_path.unlink(missing_ok=True)  # noqa: ASYNC240 - once, at start
        old = os.umask(0o117)
        try:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(path)
            listener.listen(BACKLOG)
        finally:
            os.umask(old)
        self._gate.listen(listener)
        with contextlib.suppress(KeyError, ImportError, PermissionError):
            import grp  # noqa: PLC0415 - not on every platform a test may run on

            os.chown(path, 0, grp.getgrnam(group).gr_gid)

    async def stop(self) -> None:
        await self._gate.close()

    async def _serve(self, sock: socket.socket, visitor: Visitor) -> None:
        reader, writer = await open_streams(sock, limit=MAX_HEAD)
        connection = ClientConnection(reader, writer)
        try:
            first = await connection.next_event()
            visitor.proved()
            while await self._one(connection, first):
                connection.http.start_next_cycle()
                first = await self._next_request(connection)
        except h11.RemoteProtocolError as err:
            log.debug("client connection ended: %s", err)
            await self._refuse(connection, err)
        except (OSError, h11.ProtocolError, EOFError) as err:
            log.debug("client connection ended: %s", err)
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()

    async def _next_request(self, connection: ClientConnection) -> Any:
        """Who asked once may keep the connection, as long as there are not too many of that kind."""
        self._idle[connection.writer] = None
        if len(self._idle) > MAX_IDLE:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            oldest.close()
        try:
            return await connection.next_event()
        finally:
            self._idle.pop(connection.writer, None)

    async def _refuse(self, connection: ClientConnection, err: h11.RemoteProtocolError) -> None:
        """Say what was wrong with the request, if nothing was said yet and somebody may listen."""
        if connection.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = f"400 Bad Request: {err}".encode()
        headers = [
            ("Content-Type", "text/plain"),
            ("Connection", "close"),
            ("Content-Length", str(len(body))),
        ]
        with contextlib.suppress(OSError, h11.ProtocolError):
            await connection.send(
                _head(err.error_status_hint, headers), h11.Data(data=body), h11.EndOfMessage()
            )

    async def _one(self, connection: ClientConnection, event: Any) -> bool:
        """Serve one request; whether another may follow."""
        if not isinstance(event, h11.Request):
            return False
        try:
            request = Request(event, connection)
            answer = await self._handler(request)
        except SwarmError as err:
            answer = error_response(err)
        except (OSError, h11.ProtocolError):
            raise
        except Exception as err:  # a bug must not take the connection down without a word
            log.exception("%s %s", event.method, event.target)
            answer = json_response({"message": f"internal error: {err!r}"}, 500)
        if answer is HANDED_OVER:
            return False
        async for _ in connection.request_body():
            pass
        if isinstance(answer, Streamed):
            await self._send_stream(connection, event, answer)
        else:
            await self._send_whole(connection, event, answer)
        return connection.http.our_state is h11.DONE and connection.http.their_state is h11.DONE

    async def _send_whole(self, connection: ClientConnection, request: h11.Request, answer: Response) -> None:
        headers = [*answer.headers, ("Content-Length", str(len(answer.body)))]
        events: list[h11.Event] = [_head(answer.status, headers)]
        if answer.body and request.method != b"HEAD":
            events.append(h11.Data(data=answer.body))
        await connection.send(*events, h11.EndOfMessage())

    async def _send_stream(
        self, connection: ClientConnection, request: h11.Request, answer: Streamed
    ) -> None:
        """Send pieces as they come; a client that goes away ends the source."""
        await connection.send(_head(answer.status, list(answer.headers)))
        gone = asyncio.create_task(connection.gone())
        source = asyncio.create_task(self._pump(connection, answer.pieces))
        try:
            await asyncio.wait({gone, source}, return_when=asyncio.FIRST_COMPLETED)
            if source.done():
                source.result()
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)
                await connection.send(h11.EndOfMessage())
            else:
                log.debug("client of %s went away", request.target)
        finally:
            gone.cancel()
            source.cancel()
            await asyncio.gather(gone, source, return_exceptions=True)

    async def _pump(self, connection: ClientConnection, pieces: AsyncIterator[bytes]) -> None:
        async for piece in pieces:
            if piece:
                await connection.send(h11.Data(data=piece))
