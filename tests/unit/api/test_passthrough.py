"""What goes to the engine, byte for byte, through our socket."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.unit.api.backend_double import House, play
from tests.unit.api.engine_double import Call

SWITCH = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
HIJACK = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"


class Wire:
    """A client that writes its own bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, home: House, data: bytes) -> Wire:
        wire = cls(*await asyncio.open_unix_connection(home.path))
        wire.writer.write(data)
        return wire

    async def head(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(), 5)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):  # the other side did not read all of it
            await self.writer.wait_closed()


def upgrade(path: str, body: bytes = b"") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def test_a_call_reaches_the_engine_as_it_was(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        async def answer(call: Call) -> None:
            assert await call.body() == b'{"a": 1}'
            await call.whole(b"made", "201 Created", "X-Own: yes", "Content-Type: text/plain")

        home.engine.answers["/containers/create"] = answer
        wire = await Wire.to(
            home,
            b"POST /v1.41/containers/create?name=a%20b HTTP/1.1\r\nHost: x\r\nX-Registry-Auth: abc\r\nContent-Length: 8\r\n\r\n"
            b'{"a": 1}',
        )
        head = await wire.head()
        assert head.startswith(b"HTTP/1.1 201 Created\r\n")
        assert b"X-Own: yes\r\n" in head
        assert await wire.rest() == b"made"
        (call,) = home.engine.calls
        assert call.target == "/v1.41/containers/create?name=a%20b"
        assert call.headers["x-registry-auth"] == "abc"
        await wire.close()

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("path", "status"), [("/nosuch", 404), ("/v1.99/containers/json", 404), ("/v9/x", 404)]
)
def test_unknown_paths_and_versions_of_its_own_calls_are_the_engines_business(
    tmp_path: Path, path: str, status: int
) -> None:
    async def story(home: House) -> None:
        assert await home.refusal("GET", path) == (status, "page not found")
        assert home.engine.calls[-1].target == path

    play(tmp_path, story)


def test_pieces_are_passed_on_as_they_come(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        seen = asyncio.Event()

        async def drip(call: Call) -> None:
            await call.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\none\r\n")
            await asyncio.wait_for(seen.wait(), 5)
            await call.say(b"3\r\ntwo\r\n0\r\n\r\n")

        home.engine.answers["/build"] = drip
        wire = await Wire.to(home, b"GET /build HTTP/1.1\r\nHost: x\r\n\r\n")
        await wire.head()
        assert await asyncio.wait_for(wire.reader.readexactly(8), 5) == b"3\r\none\r\n"
        seen.set()
        assert await wire.rest() == b"3\r\ntwo\r\n0\r\n\r\n"
        await wire.close()

    play(tmp_path, story)


def test_a_large_body_in_chunks(tmp_path: Path) -> None:
    """Larger than any buffer of ours: a build context has no limit."""

    async def story(home: House) -> None:
        async def count(call: Call) -> None:
            await call.whole(str(len(await call.body())).encode())

        home.engine.answers["/build"] = count
        wire = await Wire.to(home, b"POST /build HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"x" * 100_000
        for _ in range(120):
            wire.writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await wire.writer.drain()
        wire.writer.write(b"0\r\n\r\n")
        await wire.head()
        assert await wire.rest() == b"12000000"
        await wire.close()

    play(tmp_path, story)


def test_a_client_that_waits_to_be_told_to_go_on(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        async def echo(call: Call) -> None:
            await call.whole(await call.body())

        home.engine.answers["/images/load"] = echo
        wire = await Wire.to(
            home,
            b"POST /images/load HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
        )
        assert (await wire.head()).startswith(b"HTTP/1.1 100")
        wire.writer.write(b"data")
        assert (await wire.head()).startswith(b"HTTP/1.1 200")
        assert await wire.rest() == b"data"
        await wire.close()

    play(tmp_path, story)


def test_head_requests(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        async def ping(call: Call) -> None:
            await call.whole(b"OK", "200 OK", "Api-Version: 1.41", "Swarm: inactive")

        home.engine.answers["/_ping"] = ping
        for method, body in ((b"HEAD", b""), (b"GET", b"OK")):
            wire = await Wire.to(home, method + b" /v1.41/_ping HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await wire.head()
            assert b"Content-Length: 2\r\n" in head
            assert b"Api-Version: 1.41\r\n" in head
            assert head.count(b"Swarm: ") == 1, "the engine knows nothing of our swarm"
            assert b"Swarm: active/manager\r\n" in head
            assert await wire.rest() == body
            await wire.close()

    play(tmp_path, story)


@pytest.mark.parametrize("head", [SWITCH, HIJACK], ids=["101", "hijacked 200"])
def test_a_taken_over_connection_closes_half_by_half(tmp_path: Path, head: bytes) -> None:
    """``run -i`` piped into: the client's end comes first, the container's last words after it."""

    async def story(home: House) -> None:
        async def attach(call: Call) -> None:
            assert call.headers["upgrade"] == "tcp"
            assert await call.body() == b'{"Detach":false}'
            await call.say(head, b"early ")
            heard = await call.reader.read()
            await call.say(b"heard " + heard)
            call.writer.close()

        home.engine.answers["/exec/1/start"] = attach
        wire = await Wire.to(home, upgrade("/exec/1/start", b'{"Detach":false}'))
        assert (await wire.head()).split(b"\r\n")[0] == head.split(b"\r\n")[0]
        assert await asyncio.wait_for(wire.reader.readexactly(6), 5) == b"early "
        wire.writer.write(b"input")
        wire.writer.write_eof()
        assert await wire.rest() == b"heard input"
        await wire.close()

    play(tmp_path, story)


def test_an_upgrade_the_engine_refuses(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        wire = await Wire.to(home, upgrade("/containers/none/attach"))
        assert (await wire.head()).startswith(b"HTTP/1.1 404")
        assert await wire.rest() == b'{"message":"page not found"}\n'
        await wire.close()

    play(tmp_path, story)


@pytest.mark.parametrize("request_head", [b"GET /events/x HTTP/1.1\r\nHost: x\r\n\r\n", upgrade("/events/x")])
def test_a_client_that_hangs_up_ends_the_engines_stream(tmp_path: Path, request_head: bytes) -> None:
    async def story(home: House) -> None:
        async def endless(call: Call) -> None:
            await call.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
            await call.reader.read()

        home.engine.answers["/events/x"] = endless
        wire = await Wire.to(home, request_head)
        await wire.head()
        await wire.close()
        await asyncio.wait_for(home.engine.ended.wait(), 5)

    play(tmp_path, story)


def test_an_engine_that_hangs_up(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        async def dies(call: Call) -> None:
            call.writer.close()

        async def dies_later(call: Call) -> None:
            await call.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
            call.writer.close()

        home.engine.answers.update({"/dies": dies, "/later": dies_later})
        status, text = await home.refusal("GET", "/dies")
        assert status == 503
        assert text.startswith("the Docker Engine ended an answer early")
        wire = await Wire.to(home, b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n")
        await wire.head()
        with contextlib.suppress(ConnectionError):
            assert await wire.rest() == b"abc"
        await wire.close()
        assert (await home.ask("GET", "/nodes"))[0] == 200

    play(tmp_path, story)


def test_no_engine(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        (tmp_path / "engine.sock").unlink()
        status, text = await home.refusal("GET", "/containers/json")
        assert status == 503
        assert text.startswith("cannot reach the Docker Engine at")
        assert (await home.ask("GET", "/v1.41/nodes"))[0] == 200, "the swarm is there without it"

    play(tmp_path, story)


@pytest.mark.parametrize(
    "data",
    [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"GET /a HTTP/1.1\r\n" + b"A: b\r\n" * 300_000],
)  # fmt: skip
def test_what_is_no_http_is_told_so(tmp_path: Path, data: bytes) -> None:
    async def story(home: House) -> None:
        wire = await Wire.to(home, data)
        assert (await wire.head()).startswith(b"HTTP/1.1 4")
        await wire.close()
        assert home.engine.calls == []
        assert (await home.ask("GET", "/nodes"))[0] == 200

    play(tmp_path, story)


def test_requests_one_after_the_other_on_one_connection(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        wire = await Wire.to(home, b"GET /nodes/x HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        for _ in range(3):
            assert (await wire.head()).startswith(b"HTTP/1.1 404 Not Found\r\n")
            await wire.reader.readuntil(b"\n")
        await wire.close()

    play(tmp_path, story)
