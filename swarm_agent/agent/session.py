"""The node's side of its session: find the leader, say hello, beat, take orders, report."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.ca.join_server import ManagerAddress
from swarm_agent.network.model import NetworkView
from swarm_agent.objects.errors import NodeRemoved, NotFound, PermissionDenied, SwarmError
from swarm_agent.objects.leases import RENEW_S
from swarm_agent.objects.records import Node, NodeDescription, TaskStatus
from swarm_agent.rpc.grpc import Call, Redirect, Rpc
from swarm_agent.rpc.messages import (
    BEATS_A_PERIOD,
    Assignment,
    Assignments,
    Beat,
    Contents,
    Described,
    Down,
    Heard,
    Hello,
    Leased,
    Leaving,
    LogsWanted,
    Managers,
    Networks,
    NodeChanged,
    Pausing,
    Piece,
    Silent,
    Statuses,
    Up,
    Welcome,
)

log = logging.getLogger(__name__)

REPORT_COALESCE_S = 0.01
STATUSES_AT_ONCE = 250  # in one message: however long their reasons, it is one a manager takes
CONNECT_TIMEOUT_S = 3.0
WELCOME_TIMEOUT_S = 1.5
CONFIRM_TIMEOUT_S = 2.5  # a manager that confirms no beat for so long leads no more: another one does
CONFIRM_BEATS = 2.5  # so many beats, where they are more than a second apart
LATE_S = 0.25
LEAVE_TIMEOUT_S = 2.0
PAUSE_S = 10.0  # what a stop and a start take on a busy host
PAUSE_TIMEOUT_S = 0.5
BACK_OFF_S = (0.05, 1.0)  # first and longest pause between attempts
SAID = 10_000  # characters of what was told already


class Orders(Protocol):
    """What a session asks of the daemon it runs in."""

    async def assign(
        self, full: bool, assignments: tuple[Assignment, ...], removed: tuple[str, ...]
    ) -> None: ...
    async def contents(self, pieces: tuple[Piece, ...]) -> None: ...
    async def network(self, view: NetworkView) -> None: ...
    async def node_changed(self, node: Node) -> None: ...
    async def managers_changed(self, managers: tuple[ManagerAddress, ...]) -> None: ...
    async def root_changed(self, root: bytes) -> None: ...
    def silent(self, nodes: tuple[str, ...]) -> None: ...
    def logs_wanted(self, wanted: LogsWanted) -> None: ...
    def statuses(self) -> list[tuple[str, TaskStatus]]: ...
    def lease_wanted(self) -> bool: ...
    def lease_beat(self) -> int: ...
    def leased(self, number: int) -> None: ...
    async def removed(self) -> None: ...


class SessionAgent:
    """Keeps one session open for as long as it runs. ``report`` may be called at any time."""

    def __init__(
        self,
        orders: Orders,
        identity: Callable[[], NodeIdentity],
        managers: Callable[[], tuple[ManagerAddress, ...]],
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
        self._assigned = False  # this session has told us all our tasks
        self._beat_now = False
        self._answers = False  # the manager confirms beats
        self._leasing = False  # the last beat asked for a lease
        self._confirmed_at: float | None = None  # the last confirmation, or the first beat that asked for one
        self._goodbye_sent = asyncio.Event()
        self._pauses = False  # the manager knows of pauses
        self._pausing = False
        self._paused = False  # the manager was told: no session from here on
        self._over = asyncio.Event()
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

    async def pause(self) -> None:
        """Say on the open session, if there is one, that this process stops to start again, which is no reason to replace its tasks."""
        if not self.connected.is_set() or not self._pauses:
            return
        self._pausing = True
        self._news.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_TIMEOUT_S):
                await self._over.wait()

    async def run(self) -> None:
        """Until cancelled or removed from the swarm.

        Whoever sends us on is believed at once the first time; managers that go on naming a leader that does not serve are asked less and less
        often, as all others are. Only a session that was open begins anew.
        """
        pause = BACK_OFF_S[0]
        hint = tried = ""
        vain = said = ""  # where we were sent last, and got no session; what was told of that
        while True:
            addr = tried = hint or self._choose(tried)
            vain = hint or vain
            hint = ""
            if addr:
                opened = False
                try:
                    await self._session(addr)
                except Redirect as err:
                    hint = err.addr
                    opened = self.connected.is_set()
                except NotFound as err:
                    log.warning("this node is no longer part of the swarm: %s", err)
                    await self._orders.removed()
                    return
                except NodeRemoved as err:
                    log.warning("%s", err)
                    await self._orders.removed()
                    return
                except PermissionDenied as err:
                    log.warning("manager %s: %s", addr, err)
                except (SwarmError, OSError) as err:
                    opened = self.connected.is_set()
                    # a swarm without a leader is told of once for each way it fails, and not again with every attempt
                    level = logging.DEBUG if not opened and str(err) in said else logging.INFO
                    log.log(level, "session with %s ended: %s", addr, err)
                    said = "" if opened else f"{said}\n{err}"[-SAID:]
                except Exception:  # a bug of ours in one message must not end all sessions of this node
                    opened = self.connected.is_set()
                    log.exception("session with %s failed", addr)
                finally:
                    self.connected.clear()
                    self.leader = ""
                if opened:
                    pause, vain, said = BACK_OFF_S[0], "", ""
            if self._paused:
                break
            if hint and hint != vain:
                await asyncio.sleep(self._rng.uniform(0, BACK_OFF_S[0]))
            else:
                await asyncio.sleep(self._rng.uniform(0, pause))
                pause = min(BACK_OFF_S[1], pause * 2)
        self._over.set()

    def _choose(self, tried: str) -> str:
        """Any manager, but another than the one that was just in vain."""
        known = [m.rpc_addr for m in self._managers() if m.rpc_addr]
        known = [addr for addr in known if addr != tried] or known
        return self._rng.choice(known) if known else ""

    async def _session(self, addr: str) -> None:
        client = self._rpc.client(addr, self._identity())
        call = client.bidirectional("Session")
        try:
            try:
                async with asyncio.timeout(
                    CONNECT_TIMEOUT_S
                ):  # gRPC would try a host that is gone for twenty seconds
                    self._described = None  # what waited to be said is older than what hello says
                    await call.write(self._hello())
                async with asyncio.timeout(WELCOME_TIMEOUT_S):
                    welcome = await call.read()
            except TimeoutError as err:
                raise SwarmError("no answer") from err
            if not isinstance(welcome, Welcome):
                raise SwarmError(f"unexpected first message {welcome!r}")
            self.leader = addr
            self.connected.set()
            await self._orders.root_changed(welcome.root)
            self._assigned, self._confirmed_at = False, None
            self._answers, self._leasing = welcome.answers, False
            self._pauses = welcome.pauses
            self._pending = dict(self._orders.statuses())
            self._news.set()
            beat_s = welcome.heartbeat_period / 1e9 / BEATS_A_PERIOD
            orders: asyncio.Queue[Down] = asyncio.Queue()
            await _first_to_end(self._read(call, orders), self._obey(orders), self._write(call, beat_s))
        finally:
            await client.close()

    async def _read(self, call: Call, orders: asyncio.Queue[Down]) -> None:
        """A lease waits behind nothing: a network that takes its time must not end it."""
        while True:
            message: Down = await call.read()
            if isinstance(message, Leased):
                self._confirmed_at = asyncio.get_running_loop().time()
                self._orders.leased(message.number)
            elif isinstance(message, Heard):
                if not self._leasing:  # who is refused a lease has to say hello again
                    self._confirmed_at = asyncio.get_running_loop().time()
            else:
                orders.put_nowait(message)

    async def _obey(self, orders: asyncio.Queue[Down]) -> None:
        expected = 1
        while True:
            message = await orders.get()
            match message:
                case Assignments(sequence, full, assignments, removed):
                    if not full and sequence != expected:
                        raise SwarmError("an assignment message is missing")
                    expected = sequence + 1
                    await self._orders.assign(full, assignments, removed)
                    # Not before: a lease is no leave to start what was given to others while we were away.
                    self._assigned = self._assigned or full
                    self._beat_now = self._orders.lease_wanted()
                    self._news.set()
                case Contents(pieces):
                    await self._orders.contents(pieces)
                case Networks(view):
                    await self._orders.network(view)
                case NodeChanged(node):
                    await self._orders.node_changed(node)
                case Managers(managers):
                    await self._orders.managers_changed(managers)
                case Silent(nodes):
                    self._orders.silent(nodes)
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
                if isinstance(message, Pausing):
                    self._paused = True
                    await (
                        asyncio.Event().wait()
                    )  # until the manager, which has it then, ends the session; a beat would take it back
            now = loop.time()
            leasing = self._assigned and self._orders.lease_wanted()
            if now >= next_beat or (leasing and self._beat_now):
                self._beat_now = False
                await call.write(Beat(self._orders.lease_beat()) if leasing else Beat(answer=self._answers))
                self._asked(now, leasing)
                next_beat = now + (min(beat_s, RENEW_S) if leasing else beat_s)
            patience = CONFIRM_TIMEOUT_S if leasing else max(CONFIRM_TIMEOUT_S, CONFIRM_BEATS * beat_s)
            self._must_be_confirmed(loop.time(), patience)
            self._news.clear()
            if self._pending or self._leaving or self._pausing or self._described is not None:
                continue
            until = next_beat
            if self._confirmed_at is not None:
                until = min(until, self._confirmed_at + patience)
            try:
                async with asyncio.timeout_at(until):
                    await self._news.wait()
            except TimeoutError:
                late = loop.time() - until
                if late > LATE_S and self._confirmed_at is not None:
                    self._confirmed_at += late  # time we did not run is not the manager's
                continue
            await asyncio.sleep(REPORT_COALESCE_S)

    def _asked(self, now: float, leasing: bool) -> None:
        """A beat was sent."""
        if not leasing and not self._answers:
            self._confirmed_at = None
        elif self._confirmed_at is None or leasing != self._leasing:
            self._confirmed_at = now
        self._leasing = leasing

    def _must_be_confirmed(self, now: float, patience_s: float) -> None:
        if self._confirmed_at is not None and now >= self._confirmed_at + patience_s:
            raise SwarmError("this manager does not confirm that it leads")

    def _outgoing(self) -> list[Up]:
        out: list[Up] = []
        if self._described is not None:
            out.append(Described(self._described))
            self._described = None
        if self._pending:
            items = tuple(self._pending.items())
            out += [Statuses(items[n : n + STATUSES_AT_ONCE]) for n in range(0, len(items), STATUSES_AT_ONCE)]
            self._pending = {}
        if self._leaving:
            out.append(Leaving())
            self._leaving = False
        if self._pausing:
            out.append(Pausing(PAUSE_S))
            self._pausing = False
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
