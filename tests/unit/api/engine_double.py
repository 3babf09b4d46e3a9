"""An engine for tests: an HTTP server on a unix socket whose answers are written by hand, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

Answer = Callable[["Call"], Awaitable[None]]
VERSION = b'{"ApiVersion":"1.41","MinAPIVersion":"1.12"}'


class Call:
    """One request as the engine got it; ``reader`` and ``writer`` for what comes after its head."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = head.decode().split("\r\n")
        self.method, self.target, _ = lines[0].split(" ", 2)
        self.headers = {
            k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)
        }
        self.reader = reader
        self.writer = writer

    async def body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return await self.reader.readexactly(int(self.headers.get("content-length", "0")))
        out = b""
        while size := int(await self.reader.readline(), 16):
            out += await self.reader.readexactly(size)
            await self.reader.readline()
        await self.reader.readline()
        return out

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def whole(self, body: bytes, status: str = "200 OK", *headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        await self.say("\r\n".join(lines).encode() + (b"" if self.method == "HEAD" else body))


class EngineDouble:
    """Remembers what it was asked; answers with ``answers[path]``, with 404 elsewhere."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.connections = 0
        self.answers: dict[str, Answer] = {}
        self.ended = asyncio.Event()  # a connection was closed by the other side
        self._serving: set[asyncio.Task[None]] = set()

    def asked(self) -> list[str]:
        return [f"{c.method} {c.target}" for c in self.calls if not c.target.endswith("/version")]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while head := await reader.readuntil(b"\r\n\r\n"):
                    call = Call(head, reader, writer)
                    self.calls.append(call)
                    path = call.target.partition("?")[0]
                    if path.startswith("/v1."):
                        path = "/" + path.split("/", 2)[2]
                    await self.answers.get(path, missing)(call)
                    if writer.is_closing():
                        return
            self.ended.set()
        finally:
            self._serving.discard(task)
            writer.close()

    async def close(self) -> None:
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


async def missing(call: Call) -> None:
    await call.body()
    await call.whole(b'{"message":"page not found"}\n', "404 Not Found", "Content-Type: application/json")


@contextlib.asynccontextmanager
async def engine_double(path: str) -> AsyncIterator[EngineDouble]:
    double = EngineDouble()

    async def version(call: Call) -> None:
        await call.whole(VERSION)

    double.answers["/version"] = version
    server = await asyncio.start_unix_server(double.serve, path)
    try:
        yield double
    finally:
        server.close()
        await double.close()
