"""The tasks of this node: takes assignments, runs one runner each, adopts and cleans up what the engine has."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable

from swarm_agent.agent.content_store import ContentStore
from swarm_agent.agent.engine_client import Engine
from swarm_agent.agent.executor import MAX_PARALLEL, Executor, Shared, container_events, network_events
from swarm_agent.agent.host_ports import HostPorts, IsFree, nobody_listens
from swarm_agent.agent.images import Images
from swarm_agent.agent.lease import Lease
from swarm_agent.agent.runner import RETRY_S, CannotWrite, Report, Runner
from swarm_agent.agent.strays import Strays, strays
from swarm_agent.agent.tmpfs_files import Files
from swarm_agent.network.model import NodeNetwork
from swarm_agent.network.veth import port_name
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.records import Node, TaskStatus
from swarm_agent.rpc.messages import Assignment, Piece

log = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0  # seconds between looks for containers that no event told of
LEAVE_S = 60.0  # a leaving node waits so long for an engine that does not remove its containers
LEAVE_MARGIN_S = 0.5  # beyond the longest grace period


class Worker:
    """Owns the containers labelled with this cluster's id. Everything else in the engine is none of its business."""

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
        cluster_id: str = "",
        engine_networks_changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine_networks_changed = engine_networks_changed
        self.node_id = node_id
        self._engine = engine
        self._report = report
        self._cannot_write = cannot_write
        self._now = now
        self._contents = ContentStore(node_id, files)
        self._shared = Shared(
            engine,
            network,
            Images(engine),
            asyncio.Semaphore(MAX_PARALLEL),
            self._contents,
            lease,
            HostPorts(port_is_free),
            cluster_id,
        )
        self.lease = lease
        self.runners: dict[str, Runner] = {}
        self._closing: dict[str, asyncio.Task[None]] = {}
        self._again: dict[str, Assignment] = {}  # assigned anew while their old container goes
        self._strays = Strays(engine, cluster_id, self._stray_gone)
        self._look = asyncio.Event()  # there may be strays
        self._told = False  # all our tasks are known
        self._leaving = False  # no more assignments are taken
        self._sweeping: asyncio.Task[None] | None = None
        self._events: asyncio.Task[None] | None = None
        self._cut_off: asyncio.Task[None] | None = None
        self._leasing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._events = asyncio.create_task(self._listen(), name="engine events")
        self._cut_off = asyncio.create_task(self._listen_for_networks(), name="network events")
        self._shared.network.tell(self._network_told)
        self._leasing = asyncio.create_task(self.lease.run(), name="lease")
        self._sweeping = asyncio.create_task(self._sweep(), name="strays")

    async def stop(self) -> None:
        """Let go of everything; the containers go on."""
        for task in (self._events, self._cut_off, self._leasing, self._sweeping):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._again.clear()
        ending = list(self._closing.values())
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        await asyncio.gather(*(r.detach() for r in self.runners.values()))
        self.runners.clear()

    # --- assignments ---------------------------------------------------------------------------------------------
    async def assign(self, full: bool, assignments: Iterable[Assignment], removed: Iterable[str]) -> None:
        """Take over a full list, or a change to the last one. Who is leaving takes none."""
        if self._leaving:
            return
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
            self._told = True
            self._look.set()

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
    async def _sweep(self) -> None:
        """For ever: look when the engine tells of a container nobody assigned, and once in a while in any case."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._look.wait()
            self._look.clear()
            if self._told and not await self._remove_strays():
                await asyncio.sleep(RETRY_S)
                self._look.set()

    async def _remove_strays(self) -> bool:
        """Also secrets of tasks that were removed while we were away. False when some are left."""
        try:
            found = await self._strays.look()
        except SwarmError as err:
            log.warning("cannot look for strays: %s", err)
            return False
        names = {task_id: runner.executor.names for task_id, runner in self.runners.items()}
        gone = [await self._strays.remove(c) for c in strays(found, names, [*self._closing, *self._again])]
        return all([*gone, await self._wipe_strays()])

    async def _stray_gone(self, container: str, task_id: str) -> None:
        self.lease.ended(container)
        if not self._owns(task_id):
            await self._shared.network.detach(task_id)

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

    # --- leaving -----------------------------------------------------------------------------------------------------
    def leave(self) -> None:
        """From now on nothing is taken on."""
        self._leaving = True
        self._again.clear()

    async def remove_all(self, patience_s: float | None = None) -> None:
        """Leaving the swarm: all tasks are stopped at once, and what of ours is still there after its grace period is killed; as far as
        the engine answers. ``patience_s``: no task gets more time than this; None: each its own grace period."""
        self.leave()
        graces = [r.executor.grace_s for r in self.runners.values()]
        for task_id in list(self.runners):
            self._unassign(task_id)
        if patience_s is None:
            patience_s = max(graces, default=0.0) + LEAVE_MARGIN_S
        if self._closing:
            await asyncio.wait(self._closing.values(), timeout=patience_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                while not await self._kill_all():
                    await asyncio.sleep(RETRY_S)
        left = list(self._closing.values())
        for closing in left:
            closing.cancel()
        if left:
            await asyncio.gather(*left, return_exceptions=True)
            await self._kill_all()  # what the engine was making meanwhile

    async def _kill_all(self) -> bool:
        try:
            found = await self._strays.look()
        except SwarmError as err:
            log.warning("cannot look for what is left of this swarm: %s", err)
            return False
        gone = await asyncio.gather(*(self._strays.remove(c) for c in found))
        return all([*gone, await self._wipe_strays()])

    # --- the engine's news -----------------------------------------------------------------------------------------
    async def _listen(self) -> None:
        async for task_id in container_events(self._engine):
            if task_id is None or not self._owns(task_id):
                self._look.set()
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
