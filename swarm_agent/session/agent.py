"""The node's side of its session: find the leader, say hello, beat, take orders, report."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from swarm_agent.identity.door import Manager
from swarm_agent.identity.files import NodeIdentity
from swarm_agent.network.model import NetworkView
from swarm_agent.node.contents import Piece
from swarm_agent.node.worker import Assignment
from swarm_agent.objects.errors import NotFound, PermissionDenied, SwarmError
from swarm_agent.objects.records import Node, NodeDescription, TaskStatus
from swarm_agent.session.rpc import Call, Redirect, Rpc
from swarm_agent.session.wire import (
    Assignments,
    Beat,
    Contents,
    Described,
    Down,
    Hello,
    Leaving,
    LogsWanted,
    Managers,
    Networks,
    NodeChanged,
    Statuses,
    Up,
    Welcome,
)

log = logging.getLogger(__name__)

BEATS_A_PERIOD = 5
REPORT_COALESCE_S = 0.01
CONNECT_TIMEOUT_S = 1.5
LEAVE_TIMEOUT_S = 2.0
BACK_OFF_S = (0.05, 1.0)  # first and longest pause between attempts


class Orders(Protocol):
    """What a session asks of the daemon it runs in."""

    async def assign(
        self, full: bool, assignments: tuple[Assignment, ...], removed: tuple[str, ...]
    ) -> None: ...
    async def contents(self, pieces: tuple[Piece, ...]) -> None: ...
    async def network(self, view: NetworkView) -> None: ...
    async def node_changed(self, node: Node) -> None: ...
    async def managers_changed(self, managers: tuple[Manager, ...]) -> None: ...
    async def root_changed(self, root: bytes) -> None: ...
    def logs_wanted(self, wanted: LogsWanted) -> None: ...
    def statuses(self) -> list[tuple[str, TaskStatus]]: ...
    async def removed(self) -> None: ...


class SessionAgent:
    """Keeps one session open for as long as it runs. ``report`` may be called at any time."""

    def __init__(
        self,
        orders: Orders,
        identity: Callable[[], NodeIdentity],
        managers: Callable[[], tuple[Manager, ...]],
        hello: Callable[[], Hello],
        rng: random.Random,
        rpc: Rpc,
    ) -> None:
        self._rpc = rpc
        self._orders = orders
        self._identity = identity
        self._managers = managers
        self._hello = hello
        self._rng = rng
        self._pending: dict[str, TaskStatus] = {}
        self._news = asyncio.Event()
        self._described: NodeDescription | None = None
        self._leaving = False
        self._goodbye_sent = asyncio.Event()
        self.leader: str = ""  # RPC address of the manager that serves us
        self.connected = asyncio.Event()

    def report(self, task_id: str, status: TaskStatus) -> None:
        self._pending[task_id] = status
        self._news.set()

    def described(self, description: NodeDescription) -> None:
        self._described = description
        self._news.set()

    async def leave(self) -> None:
        """Say goodbye on the open session, if there is one."""
        if not self.connected.is_set():
            return
        self._leaving = True
        self._news.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await self._goodbye_sent.wait()

    async def run(self) -> None:
        """Until cancelled or removed from the swarm."""
        pause = BACK_OFF_S[0]
        hint = ""
        while True:
            addr = hint or self._choose()
            hint = ""
            if addr:
                started = asyncio.get_running_loop().time()
                try:
                    await self._session(addr)
                except Redirect as err:
                    hint = err.addr
                except NotFound as err:
                    log.warning("this node is no longer part of the swarm: %s", err)
                    await self._orders.removed()
                    return
                except PermissionDenied as err:
                    if "was removed from swarm" in str(err):
                        log.warning("%s", err)
                        await self._orders.removed()
                        return
                    log.warning("manager %s: %s", addr, err)
                except (SwarmError, OSError) as err:
                    log.info("session with %s ended: %s", addr, err)
                except Exception:  # a bug of ours in one message must not end all sessions of this node
                    log.exception("session with %s failed", addr)
                finally:
                    self.connected.clear()
                    self.leader = ""
                if asyncio.get_running_loop().time() - started > BACK_OFF_S[1] or hint:
                    pause = BACK_OFF_S[0]
            await asyncio.sleep(self._rng.uniform(0, pause))
            pause = min(BACK_OFF_S[1], pause * 2)

    def _choose(self) -> str:
        known = [m.rpc_addr for m in self._managers() if m.rpc_addr]
        return self._rng.choice(known) if known else ""

    async def _session(self, addr: str) -> None:
        client = self._rpc.client(addr, self._identity())
        call = client.bidirectional("Session")
        try:
            await call.write(self._hello())
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    welcome = await call.read()
            except TimeoutError as err:
                raise SwarmError("no answer") from err
            if not isinstance(welcome, Welcome):
                raise SwarmError(f"unexpected first message {welcome!r}")
            self.leader = addr
            self.connected.set()
            await self._orders.root_changed(welcome.root)
            self._pending = dict(self._orders.statuses())
            self._news.set()
            beat_s = welcome.heartbeat_period / 1e9 / BEATS_A_PERIOD
            await _first_to_end(self._read(call), self._write(call, beat_s))
        finally:
            await client.close()

    async def _read(self, call: Call) -> None:
        expected = 1
        while True:
            message: Down = await call.read()
            match message:
                case Assignments(sequence, full, assignments, removed):
                    if not full and sequence != expected:
                        raise SwarmError("an assignment message is missing")
                    expected = sequence + 1
                    await self._orders.assign(full, assignments, removed)
                case Contents(pieces):
                    await self._orders.contents(pieces)
                case Networks(view):
                    await self._orders.network(view)
                case NodeChanged(node):
                    await self._orders.node_changed(node)
                case Managers(managers):
                    await self._orders.managers_changed(managers)
                case LogsWanted():
                    self._orders.logs_wanted(message)
                case _:
                    raise SwarmError(f"unexpected message {type(message).__name__}")

    async def _write(self, call: Call, beat_s: float) -> None:
        loop = asyncio.get_running_loop()
        next_beat = loop.time()
        while True:
            for message in self._outgoing():
                await call.write(message)
                if isinstance(message, Leaving):
                    self._goodbye_sent.set()
            now = loop.time()
            if now >= next_beat:
                await call.write(Beat())
                next_beat = now + beat_s
            self._news.clear()
            if self._pending or self._leaving or self._described is not None:
                continue
            try:
                async with asyncio.timeout(max(0.0, next_beat - loop.time())):
                    await self._news.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(REPORT_COALESCE_S)

    def _outgoing(self) -> list[Up]:
        out: list[Up] = []
        if self._described is not None:
            out.append(Described(self._described))
            self._described = None
        if self._pending:
            out.append(Statuses(tuple(self._pending.items())))
            self._pending = {}
        if self._leaving:
            out.append(Leaving())
            self._leaving = False
        return out


async def _first_to_end(*works: Coroutine[Any, Any, None]) -> None:
    """Run side by side; the first that ends, ends them all, and its error is raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
