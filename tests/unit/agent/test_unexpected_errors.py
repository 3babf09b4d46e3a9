"""Loops of a node that must outlive what they did not expect."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from swarm_agent.agent.engine_client import EngineClient, EngineError
from swarm_agent.agent.executor import container_events
from swarm_agent.agent.runner import RETRY_S, Runner
from swarm_agent.agent.session import SessionAgent
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import ContainerStatus, Task, TaskStatus


def test_events_come_again_after_one_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [[b'{"Type":"container"}\n'], [b'{"Actor":{"Attributes":{"com.docker.swarm.task.id":"t1"}}}\n']]

    class Engine:
        @contextlib.asynccontextmanager
        async def stream(self, *_: object, **__: object) -> AsyncIterator[AsyncIterator[bytes]]:
            lines = streams.pop(0)

            async def pieces() -> AsyncIterator[bytes]:
                for line in lines:
                    yield line

            yield pieces()

    async def main() -> list[str | None]:
        engine: Any = Engine()
        real = asyncio.sleep
        monkeypatch.setattr(asyncio, "sleep", lambda _: real(0))
        news = container_events(engine)
        return [await anext(news) for _ in range(3)]

    assert asyncio.run(main()) == [None, None, "t1"]


def test_a_bug_while_stopping_does_not_leave_a_task_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_agent.agent.runner.RETRY_S", RETRY_S / 1000)

    class Executor:
        status = TaskStatus(state=TaskState.RUNNING)
        task = Task(id="t", service_id="s", service_name="web", revision_id="s.1", status=status)
        container = ContainerStatus()
        ports = ()
        shutdowns = 0

        async def wait(self, runs: object) -> None:
            raise KeyError("State")

        async def shutdown(self) -> None:
            self.shutdowns += 1
            if self.shutdowns == 1:
                raise KeyError("State")

    async def main() -> TaskStatus:
        executor: Any = Executor()
        runner = Runner(executor, lambda _id, _status: None, lambda: 1)
        async with asyncio.timeout(2):
            while not runner.status.state.terminal:
                await asyncio.sleep(0.001)
        await runner._cancel()
        return runner.status

    assert asyncio.run(main()).state == TaskState.FAILED


def test_a_session_that_fails_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> int:
        nothing: Any = None
        agent = SessionAgent(nothing, nothing, lambda: (), nothing, random.Random(1), nothing)
        tries = 0

        async def session(addr: str) -> None:
            nonlocal tries
            tries += 1
            if tries == 2:
                raise asyncio.CancelledError
            raise TypeError("a bug")

        monkeypatch.setattr(agent, "_choose", lambda tried: "10.0.0.1:2378")
        monkeypatch.setattr(agent, "_session", session)
        with contextlib.suppress(asyncio.CancelledError):
            await agent.run()
        return tries

    assert asyncio.run(main()) == 2


class Raw:
    """An engine that answers what it is told and ends the connection when it is told."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode().partition(" HTTP")[0])
                writer.write(self.answers.pop(0))
                await writer.drain()


VERSION = b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"ApiVersion":"1.41"}'


def test_an_engine_that_is_just_starting_is_no_bug(tmp_path: Path) -> None:
    async def main() -> None:
        raw = Raw(b"HTTP/1.1 500 x\r\nContent-Length: 8\r\n\r\nstarting", VERSION)
        server = await asyncio.start_unix_server(raw.serve, tmp_path / "s")
        client = EngineClient(str(tmp_path / "s"))
        with pytest.raises(EngineError, match="starting"):
            await client.versions()
        assert (await client.versions()).newest == (1, 41)
        await client.close()
        server.close()
        for writer in raw.writers:
            writer.close()
        await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_write_takes_no_connection_the_engine_closed_meanwhile(tmp_path: Path) -> None:
    async def main() -> None:
        raw = Raw(VERSION, b"HTTP/1.1 204 x\r\n\r\n")
        server = await asyncio.start_unix_server(raw.serve, tmp_path / "s")
        client = EngineClient(str(tmp_path / "s"))
        await client.versions()
        raw.writers[0].close()
        await asyncio.sleep(0.05)
        assert await client.call("POST", "/containers/x/start") is None
        await client.close()
        server.close()
        for writer in raw.writers:
            writer.close()
        await asyncio.sleep(0.01)

    asyncio.run(main())
