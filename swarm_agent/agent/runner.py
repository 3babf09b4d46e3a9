"""One task of this node, from assignment to removal: asks the state machine, lets the executor work, reports."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from swarm_agent.agent.executor import Executor, TaskFailed
from swarm_agent.agent.fsm import Do, after_error, next_step
from swarm_agent.http.client import EngineUnreachable
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.errors import SwarmError, Unavailable
from swarm_agent.objects.records import Task, TaskStatus

log = logging.getLogger(__name__)

Report = Callable[[str, TaskStatus], None]
CannotWrite = Callable[[OSError], bool]
"""Told of a failed write; whether it failed for want of room, so that the node takes no more tasks."""

RETRY_S = 1.0  # after an engine that did not answer
JUDGED = (
    TaskState.REJECTED,
    TaskState.ORPHANED,
)  # ends a leader writes of its own accord: the container may run


class Runner:
    """Owns the asyncio task that walks one assignment. ``aim`` changes what is wanted, ``close`` ends and removes."""

    def __init__(
        self,
        executor: Executor,
        report: Report,
        now: Callable[[], int],
        cannot_write: CannotWrite = lambda err: False,  # noqa: ARG005
    ) -> None:
        self.executor = executor
        self._report = report
        self._now = now
        self._cannot_write = cannot_write
        self.status = executor.task.status
        self.desired = executor.task.desired_state
        self._changed = asyncio.Event()
        self._loop_task = asyncio.create_task(self._run(), name=f"task {executor.task.id}")

    @property
    def task(self) -> Task:
        return self.executor.task

    def poke(self) -> None:
        self.executor.poke()

    def aim(self, desired: TaskState) -> None:
        """Change what is wanted; a wish below the present one is an old message."""
        if desired > self.desired:
            self.desired = desired
            self._changed.set()

    async def close(self) -> None:
        """End the walk and remove the container. Returns when nothing of the task is left."""
        await self._cancel()
        while True:
            try:
                await self.executor.remove()
            except (SwarmError, OSError) as err:  # the engine's, the state directory's
                log.warning("cannot remove %s yet: %s", self.task.name, err, extra={"task": self.task.id})
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def detach(self) -> None:
        """End the walk, leave the container as it is: the daemon stops, the task goes on."""
        await self._cancel()
        self.executor.let_go()

    async def _cancel(self) -> None:
        self._loop_task.cancel()
        await asyncio.gather(self._loop_task, return_exceptions=True)

    # --- the walk ------------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        if self.status.state in JUDGED:  # before this run of the daemon began; nobody else would stop it
            await self._stop()
        while True:
            self._changed.clear()
            step = next_step(self.status.state, self.desired)
            if step.do is Do.NOTHING:
                if self.status.state in (TaskState.FAILED, TaskState.REJECTED):
                    await self._wipe()  # between its files and its container, maybe
                await self._idle()
                continue
            try:
                if await self._do(step.do) and step.then is not None:
                    self._move(step.then, step.message)
            except TaskFailed as err:
                self._fail(str(err))
            except (EngineUnreachable, Unavailable) as err:
                self._note(str(err))
                await asyncio.sleep(RETRY_S)
            except SwarmError as err:
                await self._give_up(step.do, str(err))
            except OSError as err:
                if self._cannot_write(err):
                    text = f"this node cannot write what the task needs: {err.strerror}"
                else:
                    log.exception("task %s", self.task.id, extra={"task": self.task.id})
                    text = f"this node's system refused what the task needs, see its log: {err}"
                await self._give_up(step.do, text)
            except Exception as err:  # a bug of ours must end the task visibly, not hang it
                log.exception("task %s", self.task.id, extra={"task": self.task.id})
                await self._give_up(step.do, f"internal error on this node, see its log: {err!r}")

    async def _idle(self) -> None:
        """Until something else is wanted. A container that runs meanwhile was started outside the swarm: nobody counts on it, and its
        task may have a successor."""
        change = asyncio.create_task(self._changed.wait())
        news: asyncio.Task[None] | None = None
        try:
            while not change.done():
                news = asyncio.create_task(self.executor.news())
                again: float | None = None
                try:
                    if await self._stop_what_nobody_started():
                        return
                except (SwarmError, OSError) as err:
                    log.info("cannot look at %s: %s", self.task.name, err, extra={"task": self.task.id})
                    again = RETRY_S
                await asyncio.wait({change, news}, timeout=again, return_when=asyncio.FIRST_COMPLETED)
                if not news.done():
                    news.cancel()
        finally:
            for task in (change, news):
                if task is not None:
                    task.cancel()

    async def _stop_what_nobody_started(self) -> bool:
        if not await self.executor.runs():
            return False
        log.warning(
            "%s runs and should not: it was started outside the swarm, and is stopped",
            self.task.name,
            extra={"task": self.task.id},
        )
        await self._stop()
        if not self.status.state.terminal:
            self._fail("the container was started outside the swarm before its task was")
        return True

    async def _wipe(self) -> None:
        while True:
            try:
                await self.executor.wipe()
            except (SwarmError, OSError) as err:
                log.warning("cannot wipe the secrets of %s yet: %s", self.task.name, err)
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _give_up(self, do: Do, err: str) -> None:
        """An operation failed, and nobody knows how far it came. What is reported as ended must have ended: until the
        engine has stopped the container its addresses, ports and place are taken."""
        self._note(err)
        if self.status.state >= TaskState.STARTING or do is Do.SHUTDOWN:
            await self._stop()
        self._fail(err)

    async def _stop(self) -> None:
        while True:
            try:
                await self.executor.shutdown()
            except Exception as trouble:  # noqa: BLE001 - a bug of ours included: the walk must not end here
                log.warning("cannot stop %s yet: %s", self.task.name, trouble, extra={"task": self.task.id})
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _do(self, do: Do) -> bool:
        """Run the operation; False when a new wish made it pointless."""
        operations: dict[Do, Callable[[], Coroutine[Any, Any, None]]] = {
            Do.PREPARE: self.executor.prepare,
            Do.START: self.executor.start,
            Do.WAIT: lambda: self.executor.wait(self._well),
            Do.SHUTDOWN: self.executor.shutdown,
        }
        operation = operations.get(do)
        if operation is None:
            return True
        work = asyncio.create_task(operation())
        change = asyncio.create_task(self._changed.wait())
        try:
            while True:
                await asyncio.wait({work, change}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()
                    return True
                if next_step(self.status.state, self.desired).do is not do:
                    return False
                self._changed.clear()
                change = asyncio.create_task(self._changed.wait())
        finally:
            for task in (work, change):
                task.cancel()
            await asyncio.gather(work, change, return_exceptions=True)

    # --- status --------------------------------------------------------------------------------------------------
    def _move(self, state: TaskState, message: str, err: str = "") -> None:
        now = self._now()
        container = self.executor.container if self.executor.container.container_id else None
        self.status = msgspec.structs.replace(
            self.status,
            state=state,
            message=message,
            err=err,
            timestamp=now,
            container=container or self.status.container,
            ports=self.executor.ports,
            started_at=now if state == TaskState.RUNNING else self.status.started_at,
            finished_at=now if state.terminal else 0,
        )
        self._report(self.task.id, self.status)

    def _fail(self, err: str) -> None:
        if self.desired >= TaskState.SHUTDOWN:
            self._move(TaskState.SHUTDOWN, "shutdown", err)
            return
        log.info("%s: %s", self.task.name, err, extra={"task": self.task.id})
        self._move(after_error(self.status.state), self.status.message, err)

    def _well(self, trouble: str) -> None:
        """The engine answers again, and says that it runs; ``trouble``: what is wrong around it."""
        self._note(trouble)

    def _note(self, err: str) -> None:
        """Trouble that may pass: shown, but the state stays."""
        if self.status.err != err:
            self.status = msgspec.structs.replace(self.status, err=err, timestamp=self._now())
            self._report(self.task.id, self.status)
