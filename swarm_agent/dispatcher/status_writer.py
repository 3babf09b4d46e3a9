"""What nodes report of their tasks, written to the store: many reports in one entry, a lost race tried again on the newer row.

Refuses to judge who may report what (``dispatcher``), and to write what a report that came later has overtaken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from swarm_agent.objects import features
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.records import TaskStatus
from swarm_agent.raft import EntryTooLarge
from swarm_agent.store import ApplyResult, Group, Put, SetStatus, Store

log = logging.getLogger(__name__)

STATUS_COALESCE_S = 0.01
MAX_STATUSES = 1000  # in one entry
RETRY_S = 0.05


class StatusWriter:
    """``run`` until leadership ends."""

    def __init__(self, store: Store, propose: Callable[[tuple[Group, ...]], Awaitable[ApplyResult]]) -> None:
        self._store = store
        self._propose = propose
        self._statuses: dict[str, tuple[str, TaskStatus]] = {}  # task id -> (reporter, status)
        self._news = asyncio.Event()

    def report(self, task_id: str, node_id: str, status: TaskStatus) -> None:
        """To be written soon, unless a newer one of the same task comes first."""
        self._statuses[task_id] = (node_id, status)
        self._news.set()

    async def run(self) -> None:
        """Reports become writes, many at a time; what lost a race is tried again on the newer row."""
        most = MAX_STATUSES
        while True:
            await self._news.wait()
            await asyncio.sleep(STATUS_COALESCE_S)
            self._news.clear()
            batch = dict(list(self._statuses.items())[:most])
            groups = tuple(filter(None, (self._group(t, *item) for t, item in batch.items())))
            if groups:
                try:
                    result = await self._propose(groups)
                except EntryTooLarge as err:
                    if most == 1:
                        log.error("a task's report is dropped: %s", err, extra={"task": groups[0].key})
                        del self._statuses[groups[0].key]
                    most = max(1, len(batch) // 2)
                    self._news.set()
                    continue
                except SwarmError as err:
                    log.info("reports are not written yet: %s", err)
                    await asyncio.sleep(RETRY_S)
                    self._news.set()
                    continue
                lost = {g.key for g, done in zip(groups, result.accepted, strict=True) if not done}
            else:
                lost = set()
            most = min(MAX_STATUSES, most * 2)
            for task_id, item in batch.items():
                if task_id not in lost and self._statuses.get(task_id) == item:
                    del self._statuses[task_id]
            if self._statuses:
                self._news.set()

    def _group(self, task_id: str, node_id: str, status: TaskStatus) -> Group | None:
        task = self._store.tasks.get(task_id)
        if task is None or task.node_id != node_id or status.state < task.status.state:
            return None
        if (
            task.status.state.terminal
            or status == task.status
            or status.state in (TaskState.NEW, TaskState.PENDING)
        ):
            return None
        if self._store.feature_level >= features.COMPACT_STATUS:
            return Group(task_id, (SetStatus(task_id, status, task.version),))
        return Group(task_id, (Put(msgspec.structs.replace(task, status=status), task.version),))
