"""The join server over real TLS sockets: client and server, friends and strangers."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from swarm_agent.ca import ca, join_server
from swarm_agent.ca.ca import Subject
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.ca.join_server import (
    Https,
    Issued,
    IssueRequest,
    JoinRefused,
    JoinServer,
    ManagerAddress,
    ask_for_certificate,
    fetch_root,
)
from swarm_agent.ca.tokens import new_token
from swarm_agent.objects.errors import InvalidSpec, NoLeader, Unavailable
from swarm_agent.objects.records import RootCA

HOUR = 3600 * 10**9
ISSUED = Issued("n2", "c", "worker", b"pem", (ManagerAddress("n1", "10.0.0.1:2377", "10.0.0.1:2378"),))
REQUEST = IssueRequest(b"csr", "token", hostname="h", clock=7)


def identity_of(root: RootCA, role: str = "manager", life: int = HOUR) -> NodeIdentity:
    key, csr = ca.make_request()
    return NodeIdentity(key, ca.sign(root, csr, Subject("n1", role, "c"), life)[0], root.cert)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class House(NamedTuple):
    addr: str
    root: RootCA
    token: str
    asked: list[IssueRequest]
    door: JoinServer


@asynccontextmanager
async def house(
    answer: Issued | Exception = ISSUED, identity: Callable[[RootCA], NodeIdentity] = identity_of
) -> AsyncIterator[House]:
    root = ca.make_root()
    shown = identity(root)
    asked: list[IssueRequest] = []

    async def issue(request: IssueRequest) -> Issued:
        asked.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    front = JoinServer(lambda: shown, issue, Https())
    port = free_port()
    await front.start("127.0.0.1", port)
    try:
        yield House(f"127.0.0.1:{port}", root, new_token(root.digest), asked, front)
    finally:
        await front.stop()


async def raw(addr: str, data: bytes, *, eof: bool = False) -> bytes:
    """What the door answers to these bytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    host, _, port = addr.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    writer.write(data)
    if eof:
        writer.close()
        return b""
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def test_joining() -> None:
    async def run() -> None:
        async with house() as home:
            assert await fetch_root(Https(), home.addr, home.token) == home.root.cert
            assert await ask_for_certificate(Https(), home.addr, home.root.cert, REQUEST) == ISSUED
            assert home.asked == [REQUEST]

    asyncio.run(run())


def test_a_token_of_another_cluster() -> None:
    async def run() -> None:
        async with house() as home:
            with pytest.raises(JoinRefused, match="remote CA does not match fingerprint") as err:
                await fetch_root(Https(), home.addr, new_token(ca.make_root().digest))
            assert home.addr in str(err.value)
            assert home.asked == [], "the token was not sent"

    asyncio.run(run())


def test_a_manager_that_is_none() -> None:
    """A worker's certificate, or one of another root, gets no token sent."""

    async def run(identity: Callable[[RootCA], NodeIdentity]) -> None:
        async with house(identity=identity) as home:
            with pytest.raises(JoinRefused, match="does not prove to be part of the cluster"):
                await ask_for_certificate(Https(), home.addr, home.root.cert, REQUEST)
            assert home.asked == []

    asyncio.run(run(lambda root: identity_of(root, "worker")))
    asyncio.run(run(lambda _: identity_of(ca.make_root())))
    asyncio.run(run(lambda root: identity_of(root, life=-HOUR // 2)))


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (InvalidSpec("A valid join token is necessary to join this cluster"), 400, "rpc error: code = InvalidArgument desc = A valid join"),
        (NoLeader(), 500, "The swarm does not have a leader"),
        (Unavailable("busy"), 503, "busy"),
    ],
)  # fmt: skip
def test_the_managers_no_reaches_the_joiner(error: Exception, status: int, text: str) -> None:
    async def run() -> None:
        async with house(error) as home:
            with pytest.raises(JoinRefused, match=text) as err:
                await ask_for_certificate(Https(), home.addr, home.root.cert, REQUEST)
            assert (err.value.http_status, err.value.code) == (status, "")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (b"GET /v1/nothing HTTP/1.1", b"", 404),
        (b"POST /v1/root HTTP/1.1", b"", 404),
        (b"POST /v1/issue HTTP/1.1", b"", 400),
        (b"POST /v1/issue HTTP/1.1", b"{", 400),
        (b"POST /v1/issue HTTP/1.1", b"[]", 400),
        (b"POST /v1/issue HTTP/1.1", b'{"csr":"%%%","token":1}', 400),
        (b"POST /v1/issue HTTP/1.1", b'{"token":"\xff"}', 400),
        (b"POST /v1/issue HTTP/1.1", b"[" * 50_000, 400),
    ],
)
def test_malformed_calls_are_answered(head: bytes, body: bytes, status: int) -> None:
    async def run() -> None:
        async with house() as home:
            answer = await raw(
                home.addr, head + b"\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            assert answer.startswith(b"HTTP/1.1 %d " % status), answer
            assert b'"message"' in answer
            assert home.asked == []
            assert await fetch_root(Https(), home.addr, home.token), "the door still works"

    asyncio.run(run())


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET /v1/root\r\n\r\n",
        b"POST /v1/issue HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000,
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 200_000,
    ],
)
def test_noise_ends_the_connection(data: bytes) -> None:
    async def run() -> None:
        async with house() as home:
            assert await raw(home.addr, data) == b""
            await raw(
                home.addr, b"POST /v1/issue HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab", eof=True
            )
            assert home.asked == []
            assert await fetch_root(Https(), home.addr, home.token)

    asyncio.run(run())


def test_too_many_calls_from_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join_server, "CALLS_A_MINUTE", 3)

    async def run() -> None:
        async with house() as home:
            for _ in range(3):
                await fetch_root(Https(), home.addr, home.token)
            with pytest.raises(JoinRefused, match="too many calls") as err:
                await fetch_root(Https(), home.addr, home.token)
            assert err.value.http_status == 429

    asyncio.run(run())


def test_nobody_there() -> None:
    async def run() -> None:
        async with house() as home:
            addr, token = home.addr, home.token
        with pytest.raises(Unavailable, match="cannot reach a manager at"):
            await fetch_root(Https(), addr, token)

    asyncio.run(run())


def test_a_manager_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join_server, "CALL_TIMEOUT_S", 0.05)

    async def run() -> None:
        held: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(lambda _, w: held.append(w), "127.0.0.1", 0)
        addr = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(Unavailable, match="did not answer within"):
            await fetch_root(Https(), addr, new_token("a" * 50))
        for writer in held:
            writer.close()
        server.close()

    asyncio.run(run())


def test_a_renewed_certificate_is_shown() -> None:
    async def run() -> None:
        root = ca.make_root()
        shown = identity_of(ca.make_root())
        async with house(identity=lambda _: shown) as home:
            with pytest.raises(JoinRefused):
                await ask_for_certificate(Https(), home.addr, root.cert, REQUEST)
            home.door._identity = lambda: identity_of(root)
            await home.door.renewed()
            assert await ask_for_certificate(Https(), home.addr, root.cert, REQUEST) == ISSUED

    asyncio.run(run())


def test_somebody_elses_server() -> None:
    """A web server, say: TLS and HTTP, but not ours."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\n<html>")
        await writer.drain()
        writer.close()

    async def run() -> None:
        context = join_server.server_context(identity_of(ca.make_root()))
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        addr = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(JoinRefused, match="is no manager of this kind of swarm"):
            await fetch_root(Https(), addr, new_token("a" * 50))
        server.close()
        await server.wait_closed()

    asyncio.run(run())
