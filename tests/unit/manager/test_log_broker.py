"""Logs on their way from nodes to a reader: whose word counts, and what a reader that left holds up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from swarm_agent.ca.ca import Subject
from swarm_agent.manager import log_broker
from swarm_agent.manager.log_broker import MAX_QUEUED, LogBroker
from swarm_agent.objects.records import Task
from swarm_agent.rpc.messages import LogPiece


class Sessions:
    """As much of a dispatcher as the broker asks for."""

    sessions = {"n1": None, "n2": None}

    def ask_logs(self, node_id: str, wanted: object) -> bool:
        return True


def task(id_: str, node_id: str) -> Task:
    return Task(id=id_, service_id="s", service_name="web", revision_id="s.1", node_id=node_id)


def worker(node_id: str) -> Subject:
    return Subject(node_id, "worker", "c")


async def sent(*pieces: LogPiece) -> AsyncIterator[LogPiece]:
    for piece in pieces:
        yield piece


def test_a_node_speaks_for_its_own_tasks_only() -> None:
    async def main() -> list[LogPiece]:
        broker = LogBroker(lambda: "r")
        dispatcher: Any = Sessions()
        reading = broker.read(dispatcher, [task("t1", "n1"), task("t2", "n2")], {})
        assert isinstance(reading, AsyncGenerator)
        first = asyncio.create_task(anext(reading))
        await asyncio.sleep(0)
        forged = (
            LogPiece("r", "t2", b"forged"),
            LogPiece("r", "t2", done=True),
            LogPiece("r", "t9", b"none"),
        )
        await broker.serve(
            worker("n1"), sent(*forged, LogPiece("r", "t1", b"a"), LogPiece("r", "t1", done=True))
        )
        await broker.serve(worker("n2"), sent(LogPiece("r", "t2", b"b"), LogPiece("r", "t2", done=True)))
        return [await first, *[piece async for piece in reading]]

    assert [(p.task_id, p.data) for p in asyncio.run(main()) if p.data] == [("t1", b"a"), ("t2", b"b")]


def test_a_reader_that_leaves_holds_up_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_broker, "LOOK_S", 0.01)

    async def main() -> None:
        broker = LogBroker(lambda: "r")
        dispatcher: Any = Sessions()
        reading = broker.read(dispatcher, [task("t1", "n1")], {})
        assert isinstance(reading, AsyncGenerator)
        first = asyncio.create_task(anext(reading))
        await asyncio.sleep(0)
        many = [LogPiece("r", "t1", b"x") for _ in range(MAX_QUEUED + 10)]
        serving = asyncio.create_task(broker.serve(worker("n1"), sent(*many)))
        await first
        while not broker._readers["r"].queue.full():
            await asyncio.sleep(0)
        await reading.aclose()
        async with asyncio.timeout(2):
            await serving

    asyncio.run(main())
