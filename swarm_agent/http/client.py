"""A connection to the Docker Engine's unix socket: asyncio on h11, one request after another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import h11

from swarm_agent.objects.errors import SwarmError

_CHUNK = 64 * 1024
MAX_HEAD = 1 << 20


class EngineUnreachable(SwarmError):
    """No answer from the engine's socket: it is down, restarting or not installed."""

    http_status = 503
    code = ""


class EngineConnection:
    """One connection, request after request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)

    @classmethod
    async def open(cls, path: str) -> EngineConnection:
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
        except OSError as err:
            raise EngineUnreachable(
                f"cannot reach the Docker Engine at {path}: {err.strerror or err}"
            ) from err
        return cls(reader, writer)

    async def send(self, *events: h11.Event) -> None:
        for event in events:
            data = self.http.send(event)
            if data:
                self.writer.write(data)
        await self.writer.drain()

    async def next_event(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        while True:
            try:
                event = self.http.next_event()
            except h11.RemoteProtocolError as err:
                raise EngineUnreachable(f"the Docker Engine ended an answer early: {err}") from err
            if event is not h11.NEED_DATA:
                return event
            self.http.receive_data(await self.reader.read(_CHUNK))

    async def response(self) -> h11.Response:
        """The head of the answer, 1xx other than an upgrade skipped."""
        while True:
            event = await self.next_event()
            if isinstance(event, h11.Response):
                return event
            if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                continue
            raise EngineUnreachable(f"the Docker Engine closed the connection ({event!r})")

    async def body(self) -> AsyncIterator[bytes]:
        while True:
            event = await self.next_event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise EngineUnreachable("the Docker Engine ended an answer early")

    def reusable(self) -> bool:
        """Whether another request may follow on this connection; prepares it for one."""
        if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
            return False
        self.http.start_next_cycle()
        return not self.reader.at_eof()

    def close(self) -> None:
        self.writer.close()
