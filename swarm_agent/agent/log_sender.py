"""What containers of this host say, sent to the manager that asked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from swarm_agent.agent.container import container_name
from swarm_agent.agent.engine_client import Engine, EngineError
from swarm_agent.agent.worker import Worker
from swarm_agent.http.client import EngineUnreachable
from swarm_agent.objects.errors import SwarmError
from swarm_agent.rpc.grpc import Client
from swarm_agent.rpc.messages import LogPiece, LogsWanted

log = logging.getLogger(__name__)

AHEAD = 64  # pieces read before the reader has taken them


async def send_logs(
    connect: Callable[[], Client], engine: Engine, worker: Worker, wanted: LogsWanted
) -> None:
    """Until all logs have ended or nobody reads any more."""
    client = connect()
    queue: asyncio.Queue[LogPiece] = asyncio.Queue(AHEAD)
    readers = [asyncio.create_task(_read(engine, worker, wanted, t, queue)) for t in wanted.task_ids]
    try:
        call = client.upload("Logs")
        left = len(readers)
        while left:
            piece = await queue.get()
            await call.write(piece)
            left -= piece.done
        await call.reply()
    except SwarmError as err:
        log.debug("the reader of logs is gone: %s", err)
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        await client.close()


async def _read(
    engine: Engine, worker: Worker, wanted: LogsWanted, task_id: str, queue: asyncio.Queue[LogPiece]
) -> None:
    error = ""
    runner = worker.runners.get(task_id)
    if runner is None:
        error = f"task {task_id} has no container on this node"
    else:
        with contextlib.suppress(EngineUnreachable):
            try:
                path = f"/containers/{container_name(runner.task)}/logs"
                async with engine.stream("GET", path, query=wanted.query) as pieces:
                    async for data in pieces:
                        await queue.put(LogPiece(wanted.request_id, task_id, data))
            except EngineError as err:
                error = "" if err.status == 404 else str(err)
    await queue.put(LogPiece(wanted.request_id, task_id, done=True, error=error))
