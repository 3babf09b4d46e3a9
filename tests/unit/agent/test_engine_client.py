"""The engine client against a server written by hand: connections kept, broken, slow and rude."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from swarm_agent.agent.engine_client import EngineClient, EngineError, json_lines
from swarm_agent.http.client import EngineUnreachable
from tests.unit.api.engine_double import Call, EngineDouble, engine_double

Story = Callable[[EngineDouble, EngineClient], Awaitable[None]]


def play(tmp_path: Path, story: Story) -> None:
    async def run() -> None:
        path = str(tmp_path / "engine.sock")
        async with engine_double(path) as double:
            client = EngineClient(path)
            try:
                await story(double, client)
            finally:
                await client.close()

    asyncio.run(run())


def test_connections_are_used_again(tmp_path: Path) -> None:
    async def story(double: EngineDouble, client: EngineClient) -> None:
        async def answer(call: Call) -> None:
            assert await call.body() == b'{"a":1}'
            assert call.headers["content-type"] == "application/json"
            await call.whole(b'{"ok":true}')

        double.answers["/x"] = answer
        for _ in range(3):
            assert await client.call("POST", "/x", query={"q": "a b"}, body={"a": 1}) == {"ok": True}
        assert double.asked() == ["POST /v1.41/x?q=a+b"] * 3
        assert double.connections == 1
        assert [c.target for c in double.calls].count("/version") == 1

    play(tmp_path, story)


def test_a_kept_connection_the_engine_had_closed(tmp_path: Path) -> None:
    async def story(double: EngineDouble, client: EngineClient) -> None:
        async def answer(call: Call) -> None:
            await call.whole(b"1")
            call.writer.close()

        double.answers["/x"] = answer
        assert await client.call("GET", "/x") == 1
        assert await client.call("GET", "/x") == 1, "asked again on a new connection"

    play(tmp_path, story)


def test_a_write_is_never_sent_twice(tmp_path: Path) -> None:
    async def story(double: EngineDouble, client: EngineClient) -> None:
        async def dies(call: Call) -> None:
            call.writer.close()

        double.answers["/x"] = dies
        await client.versions()
        with pytest.raises(EngineUnreachable, match="lost the Docker Engine"):
            await client.call("POST", "/x")
        assert double.asked() == ["POST /v1.41/x"]

    play(tmp_path, story)


def test_errors_keep_the_engines_words_and_status(tmp_path: Path) -> None:
    async def story(double: EngineDouble, client: EngineClient) -> None:
        async def conflict(call: Call) -> None:
            await call.whole(b'{"message":"name taken"}', "409 Conflict")

        async def plain(call: Call) -> None:
            await call.whole(b" broken \n", "500 Internal Server Error")

        double.answers.update({"/conflict": conflict, "/plain": plain})
        for path, status, text in (
            ("/conflict", 409, "name taken"),
            ("/plain", 500, "broken"),
            ("/no", 404, "page not found"),
        ):
            with pytest.raises(EngineError) as err:
                await client.call("GET", path)
            assert (err.value.status, err.value.http_status, err.value.code, str(err.value)) == (
                status,
                status,
                "",
                text,
            )

    play(tmp_path, story)  # fmt: skip


def test_answers_in_chunks_and_answers_that_are_no_json(tmp_path: Path) -> None:
    async def story(double: EngineDouble, client: EngineClient) -> None:
        async def chunked(call: Call) -> None:
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            await call.say(head, b"3\r\n[1,\r\n", b"2\r\n2]\r\n", b"0\r\n\r\n")

        async def text(call: Call) -> None:
            await call.whole(b"OK")

        async def empty(call: Call) -> None:
            await call.say(b"HTTP/1.1 204 No Content\r\n\r\n")

        double.answers.update({"/chunked": chunked, "/text": text, "/empty": empty})
        assert await client.call("GET", "/chunked") == [1, 2]
        assert await client.call("GET", "/text") == "OK"
        assert await client.call("DELETE", "/empty") is None
        assert double.connections == 1

    play(tmp_path, story)


def test_an_answer_cut_short(tmp_path: Path) -> None:
    async def story(double: EngineDouble, client: EngineClient) -> None:
        async def short(call: Call) -> None:
            await call.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123")
            call.writer.close()

        double.answers["/short"] = short
        with pytest.raises(EngineUnreachable):
            await client.call("GET", "/short")
        with pytest.raises(EngineUnreachable):
            async with client.stream("GET", "/short") as pieces:
                assert [piece async for piece in pieces] == [b"123"]

    play(tmp_path, story)


def test_no_answer_in_time_and_no_engine(tmp_path: Path) -> None:
    async def story(double: EngineDouble, client: EngineClient) -> None:
        async def silent(call: Call) -> None:
            await call.reader.read()

        double.answers["/silent"] = silent
        with pytest.raises(EngineUnreachable, match=r"did not answer GET /silent within 0\.05 s") as err:
            await client.call("GET", "/silent", timeout_s=0.05)
        assert (err.value.http_status, err.value.code) == (503, "")
        await asyncio.wait_for(double.ended.wait(), 5)
        with pytest.raises(EngineUnreachable, match="cannot reach the Docker Engine at"):
            await EngineClient(str(tmp_path / "nobody.sock")).call("GET", "/x")

    play(tmp_path, story)


def test_a_stream_ends_with_its_reader(tmp_path: Path) -> None:
    async def story(double: EngineDouble, client: EngineClient) -> None:
        async def endless(call: Call) -> None:
            await call.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await call.say(b'd\r\n{"a":1}\n{"a":\r\n', b"3\r\n2}\n\r\n")
            await call.reader.read()

        double.answers["/events"] = endless
        async with client.stream("GET", "/events") as pieces:
            lines = json_lines(pieces)
            assert [await anext(lines), await anext(lines)] == [{"a": 1}, {"a": 2}]
        await asyncio.wait_for(double.ended.wait(), 5)
        with pytest.raises(EngineError, match="page not found"):
            async with client.stream("GET", "/none"):
                pytest.fail("an error is no stream")

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("newest", "oldest", "spoken"), [("1.50", "1.24", "1.41"), ("1.40", "1.12", "1.40"), ("1.60", "1.44", "1.44")]
)  # fmt: skip
def test_the_version_spoken(tmp_path: Path, newest: str, oldest: str, spoken: str) -> None:
    async def story(double: EngineDouble, client: EngineClient) -> None:
        said = {"ApiVersion": newest, "MinAPIVersion": oldest}

        async def version(call: Call) -> None:
            await call.whole(str(said).replace("'", '"').encode())

        double.answers["/version"] = version
        assert (await client.versions()).spoken == spoken
        said["ApiVersion"] = "1.99"
        assert (await client.versions()).newest == tuple(map(int, newest.split(".")))
        assert (await client.versions(fresh=True)).newest == (1, 99), "an engine may be upgraded"

    play(tmp_path, story)
