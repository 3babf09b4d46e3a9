"""What one term of leadership runs: the controllers, the dispatcher, and those who keep roles and the feature level."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from swarm_agent.control.loop import ControlLoop
from swarm_agent.dispatcher.dispatcher import Dispatcher
from swarm_agent.manager.feature_level import FeatureLevelManager
from swarm_agent.manager.role_manager import RoleManager
from swarm_agent.objects.errors import NotLeading
from swarm_agent.raft import RaftNode
from swarm_agent.store import ApplyResult, Group, Store


class Leadership:
    """Of the term that is on when it is made. ``task`` ends with an error when one of them does."""

    def __init__(
        self,
        raft: RaftNode,
        store: Store,
        propose: Callable[[tuple[Group, ...]], Awaitable[ApplyResult]],
        new_id: Callable[[], str],
        now: Callable[[], int],
        own: str,
    ) -> None:
        """``own``: the node this manager runs on."""
        self._raft, self._term = raft, raft.status().term
        self.control = ControlLoop(store, propose, new_id, now)
        self.dispatcher = Dispatcher(store, propose, new_id, self._confirm, own)
        self.roles = RoleManager(store, raft, propose)
        self.levels = FeatureLevelManager(store, raft, propose, self.dispatcher.levels)
        self.dispatcher.on_level = self.levels.wake
        self.task = asyncio.create_task(self._run(), name="leadership")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.control.run())
            group.create_task(self.dispatcher.run())
            group.create_task(self.roles.run())
            group.create_task(self.levels.run())

    async def _confirm(self) -> None:
        """Return when this manager led in the term of this leadership after the call. A barrier alone would pass on any member that
        hears a leader, so who we are by then is part of it."""
        await self._raft.read_barrier()
        status = self._raft.status()
        if status.role != "leader" or status.term != self._term:
            raise NotLeading

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.control.close()  # each again: a task that was cancelled before its first step has closed nothing
        self.roles.close()
        self.levels.close()
        self.dispatcher.close()
