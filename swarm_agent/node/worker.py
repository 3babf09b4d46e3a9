"""The tasks of this node: takes assignments, runs one runner each, adopts and cleans up what the engine has."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable

import msgspec

from swarm_agent.network.model import NodeNetwork
from swarm_agent.network.ports import port_name
from swarm_agent.node.container import LABEL_NODE, LABEL_TASK
from swarm_agent.node.contents import Contents, Piece
from swarm_agent.node.engine import Engine
from swarm_agent.node.executor import (
    MAX_PARALLEL,
    Executor,
    Shared,
    container_events,
    missing_is_fine,
    network_events,
)
from swarm_agent.node.files import Files
from swarm_agent.node.images import Images
from swarm_agent.node.lease import Lease
from swarm_agent.node.ports import HostPorts, IsFree, nobody_listens
from swarm_agent.node.runner import RETRY_S, CannotWrite, Report, Runner
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.records import Node, Revision, Task, TaskStatus

log = logging.getLogger(__name__)

LEAVE_S = 90.0  # a leaving node waits so long for its containers to go


class Assignment(msgspec.Struct, frozen=True):
    """A task this node is to run, with what it needs for it."""

    task: Task
    revision: Revision
    registry_auth: str = ""


class Worker:
    """Owns the containers labelled with this node's id. Everything else in the engine is none of its business."""

    def __init__(
        self,
        node_id: str,
        engine: Engine,
        network: NodeNetwork,
        report: Report,
        files: Files,
        now: Callable[[], int],
        lease: Lease,
        port_is_free: IsFree = nobody_listens,
        cannot_write: CannotWrite = lambda err: False,  # noqa: ARG005
        engine_networks_changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine_networks_changed = engine_networks_changed
        self.node_id = node_id
        self._engine = engine
        self._report = report
        self._cannot_write = cannot_write
        self._now = now
        self._contents = Contents(node_id, files)
        self._shared = Shared(
            engine,
            network,
            Images(engine),
            asyncio.Semaphore(MAX_PARALLEL),
            self._contents,
            lease,
            HostPorts(port_is_free),
        )
        self.lease = lease
        self.runners: dict[str, Runner] = {}
        self._closing: dict[str, asyncio.Task[None]] = {}
        self._again: dict[str, Assignment] = {}  # assigned anew while their old container goes
        self._sweep: asyncio.Task[None] | None = None
        self._events: asyncio.Task[None] | None = None
        self._cut_off: asyncio.Task[None] | None = None
        self._leasing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._events = asyncio.create_task(self._listen(), name="engine events")
        self._cut_off = asyncio.create_task(self._listen_for_networks(), name="network events")
        self._shared.network.tell(self._network_told)
        self._leasing = asyncio.create_task(self.lease.run(), name="lease")

    async def stop(self) -> None:
        """Let go of everything; the containers go on."""
        for task in (self._events, self._cut_off, self._leasing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._again.clear()
        ending = [*self._closing.values(), *([self._sweep] if self._sweep is not None else [])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        await asyncio.gather(*(r.detach() for r in self.runners.values()))
        self.runners.clear()

    # --- assignments ---------------------------------------------------------------------------------------------
    async def assign(self, full: bool, assignments: Iterable[Assignment], removed: Iterable[str]) -> None:
        """Take over a full list, or a change to the last one."""
        given = {a.task.id: a for a in assignments}
        for assignment in given.values():
            self._assign(assignment)
        gone = dict.fromkeys(removed)
        if full:
            gone |= dict.fromkeys(i for i in (*self.runners, *self._again) if i not in given)
        for task_id in gone:
            self._unassign(task_id)
        waiting = (a.revision for a in self._again.values())
        self._contents.keep(itertools.chain((r.executor.revision for r in self.runners.values()), waiting))
        if full:
            self._start_sweep()

    def take(self, pieces: Iterable[Piece]) -> None:
        """Contents that the next assignments need."""
        self._contents.take(pieces)

    def node_changed(self, node: Node) -> None:
        """This node's own record, which templates see."""
        self._contents.node = node

    def _assign(self, assignment: Assignment) -> None:
        task = assignment.task
        runner = self.runners.get(task.id)
        if runner is not None:
            runner.aim(task.desired_state)
            return
        if task.id in self._closing:
            self._again[task.id] = assignment
            return
        executor = Executor(self._shared, task, assignment.revision, assignment.registry_auth)
        self.runners[task.id] = Runner(executor, self._report, self._now, self._cannot_write)

    def _unassign(self, task_id: str) -> None:
        self._again.pop(task_id, None)
        runner = self.runners.pop(task_id, None)
        if runner is None:
            return
        closing = asyncio.create_task(runner.close(), name=f"remove {task_id}")
        self._closing[task_id] = closing
        closing.add_done_callback(lambda _: self._closed(task_id))

    def _closed(self, task_id: str) -> None:
        del self._closing[task_id]
        again = self._again.pop(task_id, None)
        if again is not None:
            self._assign(again)

    def lease_wanted(self) -> bool:
        """Whether a strict singleton is here, or is to be."""
        return self.lease.in_use or any(
            r.executor.revision.singleton and not r.status.state.terminal for r in self.runners.values()
        )

    def statuses(self) -> list[tuple[str, TaskStatus]]:
        """What this node knows of its tasks, for a manager that asks anew."""
        return [(task_id, runner.status) for task_id, runner in self.runners.items()]

    # --- strays ------------------------------------------------------------------------------------------------------
    def _start_sweep(self) -> None:
        """Now that all our tasks are known, what else is there goes, however long the engine takes."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep = asyncio.create_task(self._sweep_up(), name="strays")

    async def _sweep_up(self) -> None:
        while not await self._remove_strays():
            await asyncio.sleep(RETRY_S)

    async def _remove_strays(self) -> bool:
        """Containers of ours that no manager knows: left by tasks removed while we were away. False when some are left."""
        filters = f'{{"label":["{LABEL_NODE}={self.node_id}"]}}'
        try:
            found = await self._engine.call("GET", "/containers/json", query={"all": "1", "filters": filters})
        except SwarmError as err:
            log.warning("cannot look for strays: %s", err)
            return False
        gone = [await self._remove_stray(c["Id"], c["Labels"].get(LABEL_TASK, "")) for c in found or ()]
        return all([*gone, await self._wipe_strays()])

    async def _wipe_strays(self) -> bool:
        """Secrets of tasks that were removed while we were away."""
        try:
            for task_id in await self._contents.tasks():
                if not self._owns(task_id):
                    await self._contents.wipe(task_id)
        except (SwarmError, OSError) as err:
            log.warning("%s", err)
            return False
        return True

    def _owns(self, task_id: str) -> bool:
        return task_id in self.runners or task_id in self._closing or task_id in self._again

    async def _remove_stray(self, container: str, task_id: str) -> bool:
        if task_id in self.runners or task_id in self._closing:
            return True
        log.info("removing container %s: no manager knows its task", container[:12], extra={"task": task_id})
        try:
            with missing_is_fine():
                await self._engine.call("DELETE", f"/containers/{container}", query={"force": "1", "v": "1"})
            self.lease.ended(container)
            await self._shared.network.detach(task_id)
        except (SwarmError, OSError) as err:
            log.warning("cannot remove container %s: %s", container[:12], err)
            return False
        return True

    async def remove_all(self) -> None:
        """Leaving the swarm: every container of ours goes, as far as the engine answers."""
        for task_id in [*self._again, *self.runners]:
            self._unassign(task_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await asyncio.gather(*self._closing.values(), return_exceptions=True)
                await self._sweep_up()

    # --- the engine's news -----------------------------------------------------------------------------------------
    async def _listen(self) -> None:
        async for task_id in container_events(self._engine):
            runners = self.runners.values() if task_id is None else filter(None, (self.runners.get(task_id),))
            for runner in list(runners):
                runner.poke()

    async def _listen_for_networks(self) -> None:
        async for container in network_events(self._engine):
            if container is None:
                self._engine_networks_changed()
                continue
            for runner in list(self.runners.values()):
                if runner.executor.container.container_id == container:
                    runner.poke()

    def _network_told(self, gone: frozenset[str], networks: frozenset[str]) -> None:
        """Links of containers have gone, or something about these networks is wrong or right again."""
        for runner in list(self.runners.values()):
            executor = runner.executor
            if gone & {port_name(endpoint) for endpoint in executor.endpoints} or networks & set(
                executor.networks()
            ):
                runner.poke()

    def running(self) -> int:
        return sum(1 for r in self.runners.values() if r.status.state == TaskState.RUNNING)
