"""The local socket under clients that connect and say nothing, say half of it, or stay for ever after one request."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from swarm_agent.gate import GateLimits
from swarm_agent.http import server
from swarm_agent.http.server import HttpServer, Request, Response

ASK = b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def handler(request: Request) -> Response:
    return Response(body=b"OK")


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[HttpServer, str]]:
    server = HttpServer(handler)
    path = str(folder / "socket")
    await server.start_unix(path, group="no such group")
    try:
        yield server, path
    finally:
        await server.stop()


async def connect(path: str) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.setblocking(False)
    while True:
        try:
            one.connect(path)
        except BlockingIOError:
            await asyncio.sleep(0.001)  # the server has not accepted the last ones yet
        else:
            return one


async def ask(one: socket.socket, data: bytes = ASK) -> bytes:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(5):
        await loop.sock_sendall(one, data)
        return await loop.sock_recv(one, 1000)


def is_open(one: socket.socket) -> bool:
    try:
        return one.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


async def until(condition: object, seconds: float = 5.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"", b"GET / HT"], ids=["silent", "half"])
def test_a_storm_of_connections_that_ask_nothing(tmp_path: Path, data: bytes) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, path):
            kept = await connect(path)
            assert b"200 OK" in await ask(kept)
            held = []
            for number in range(3000):
                held.append(await connect(path))
                if data:
                    with suppress(OSError):
                        held[-1].send(data)
                if number % 500 == 0:
                    assert b"200 OK" in await ask(kept)
                    fresh = await connect(path)
                    assert b"200 OK" in await ask(fresh)
                    fresh.close()
            await until(lambda: sum(map(is_open, held)) <= server.LIMITS.waiting)
            for one in (*held, kept):
                one.close()

    asyncio.run(main())


def test_half_a_request_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LIMITS", GateLimits(seconds=0.2))

    async def main() -> None:
        async with serving(tmp_path) as (_, path):
            kept, half = await connect(path), await connect(path)
            assert b"200 OK" in await ask(kept)
            half.send(b"GET / HT")
            await until(lambda: not is_open(half))
            await asyncio.sleep(0.5)
            assert b"200 OK" in await ask(kept)  # who asked once may take its time
            kept.close()
            half.close()

    asyncio.run(main())


def test_so_many_stay_between_two_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_IDLE", 5)

    async def main() -> None:
        async with serving(tmp_path) as (_, path):
            held = []
            for _ in range(12):
                held.append(await connect(path))
                assert b"200 OK" in await ask(held[-1])
            await until(lambda: sum(map(is_open, held)) <= 5)
            assert all(map(is_open, held[-5:]))
            assert b"200 OK" in await ask(held[-5])
            for one in held:
                one.close()

    asyncio.run(main())
