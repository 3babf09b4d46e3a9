"""Collecting the logs of many tasks: the leader asks their nodes, the nodes send, the API reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from swarm_agent.ca.ca import Subject
from swarm_agent.dispatcher.dispatcher import Dispatcher
from swarm_agent.objects.records import Task
from swarm_agent.rpc.messages import LogPiece, LogsWanted, Nothing

MAX_QUEUED = 256  # pieces of one reader; a node waits when its reader is slow
LOOK_S = 1.0  # how often a silent node's session is looked at


class _Reader(NamedTuple):
    """Who waits for pieces, and whose word counts for which task."""

    queue: asyncio.Queue[LogPiece]
    waiting: dict[str, str]  # task id -> node id


class LogBroker:
    """Joins readers (the API) with writers (nodes)."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._readers: dict[str, _Reader] = {}

    async def read(
        self, dispatcher: Dispatcher, tasks: list[Task], query: dict[str, str]
    ) -> AsyncIterator[LogPiece]:
        """Pieces of all the tasks' logs until every one is done; a task whose node is away ends with an error."""
        request_id = self._new_id()
        queue: asyncio.Queue[LogPiece] = asyncio.Queue(MAX_QUEUED)
        waiting: dict[str, str] = {t.id: t.node_id for t in tasks}
        self._readers[request_id] = _Reader(queue, waiting)
        try:
            for node_id in dict.fromkeys(waiting.values()):
                ids = tuple(t for t, n in waiting.items() if n == node_id)
                dispatcher.ask_logs(node_id, LogsWanted(request_id, ids, query))
            while waiting:
                try:
                    async with asyncio.timeout(LOOK_S):
                        piece = await queue.get()
                except TimeoutError:
                    for task_id, node_id in [i for i in waiting.items() if i[1] not in dispatcher.sessions]:
                        del waiting[task_id]
                        yield LogPiece(
                            request_id, task_id, done=True, error=f"node {node_id} is not available"
                        )
                    continue
                if piece.done:
                    waiting.pop(piece.task_id, None)
                yield piece
        finally:
            del self._readers[request_id]

    async def serve(self, caller: Subject, pieces: AsyncIterator[LogPiece]) -> Nothing:
        """Take a node's pieces, of its own tasks only; ends early when nobody reads any more."""
        async for piece in pieces:
            if not await self._hand_over(caller.node_id, piece):
                break
        return Nothing()

    async def _hand_over(self, node_id: str, piece: LogPiece) -> bool:
        """False when the reader is gone, also when it goes while we wait for room."""
        while True:
            reader = self._readers.get(piece.request_id)
            if reader is None:
                return False
            if reader.waiting.get(piece.task_id) != node_id:
                return True  # not asked of this node, or ended already
            try:
                async with asyncio.timeout(LOOK_S):
                    await reader.queue.put(piece)
            except TimeoutError:
                continue
            return True
