"""A host of a simulated cluster: a machine with disk, engine and network that outlives the daemons run on it.

The daemon is the real ``Daemon`` with everything below it; ``Process`` is one run of it. A killed process does nothing any more, not even in
its clean-up: its connections, its disk and its engine are taken away before its tasks are cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from swarm_agent.agent.disk_room import Room
from swarm_agent.api.router import ForwardedRequest
from swarm_agent.ca import ca
from swarm_agent.config import AgentConfig
from swarm_agent.daemon import Daemon
from swarm_agent.environment import Environment
from swarm_agent.http.server import error_response
from swarm_agent.manager.manager import Manager
from swarm_agent.node.membership import load_membership
from swarm_agent.objects.errors import SwarmError
from swarm_agent.raft import Disk, SameLoop
from swarm_agent.rpc.messages import ForwardedCall
from tests.lib.fake_disk import FakeDisk
from tests.lib.fake_engine import FakeEngine
from tests.lib.fake_files import FakeFiles
from tests.lib.fake_guard import FakeGuard
from tests.lib.fake_network import FakeNodeNetwork
from tests.lib.fake_rpc import FakeLinks, RpcEndpoint, RpcNet

T = TypeVar("T")
EPOCH = 1_800_000_000 * 1_000_000_000
FRONT_DOOR = 2377
SIM_LOW = 1000  # bytes left on a disk that counts as full; less than what a test leaves, now and then

_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Killed(SwarmError):
    """The process that worked on this was killed."""


class ApiError(SwarmError):
    """The API answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def task_factory(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
    """Every task belongs to the process it was started in."""
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **more)
    context = more.get("context")
    process = context.get(_process) if context is not None else _process.get()
    if process is not None:
        process.adopt(task)
    return task


class SimSource(ca.Source):
    """Keys from a seed."""

    def __init__(self, rng: random.Random, now: Callable[[], int]) -> None:
        self._rng = rng
        self._now = now

    def now(self) -> int:
        return self._now()

    def key(self) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(self._rng.getrandbits(250) | 1, ec.SECP256R1())

    def bits(self, count: int) -> int:
        return self._rng.getrandbits(count)

    def serial(self) -> int:
        return self._rng.getrandbits(150) | 1 << 149


class SimHost:
    """One machine. ``start`` a daemon on it, ``kill`` or ``stop`` that, ``power_cut`` it all."""

    def __init__(self, name: str, addr: str, net: RpcNet, rng: random.Random, directory: Path) -> None:
        self.name = name
        self.addr = addr
        self.net = net
        self.rng = rng
        self.directory = directory
        self.engine = FakeEngine(name, self._random())
        self.network = FakeNodeNetwork()
        self.files = FakeFiles()
        self.skew_ns = 0
        self.pace = 1.0  # of the clock nobody sets, against the others'
        self.guard = FakeGuard(self.engine, self.boottime)
        self.feature_level: int | None = None  # what agent.toml says at the next start
        self.process: Process | None = None
        self._disks: dict[str, FakeDisk] = {}

    def _random(self) -> random.Random:
        return random.Random(self.rng.getrandbits(64))

    def now(self) -> int:
        return EPOCH + int(asyncio.get_running_loop().time() * 1e9) + self.skew_ns

    def boottime(self) -> float:
        """Of no meaning but on this host."""
        return 1000.0 * len(self.name) + asyncio.get_running_loop().time() * self.pace

    # --- the daemon's life ----------------------------------------------------------------------------------------------
    def start(self) -> Process:
        if self.process is not None:
            raise RuntimeError(f"{self.name} runs already")
        self.process = Process(self)
        self.process.resume()
        return self.process

    async def kill(self) -> None:
        """As SIGKILL; containers run on."""
        process, self.process = self.process, None
        if process is not None:
            await process.kill()

    async def stop(self) -> None:
        """As SIGTERM."""
        process, self.process = self.process, None
        if process is not None:
            try:
                await process.stop()
            finally:  # whoever loses patience kills it: another one is started here
                if not process.dead:
                    await process.kill()

    async def power_cut(self) -> None:
        """The machine is gone, with everything that ran on it."""
        await self.kill()
        self.engine.power_cut()
        self.guard.power_cut()
        self.files.reboot()

    async def lose_state(self) -> None:
        """As a reinstalled system: the daemon knows of no swarm, and its containers run on."""
        await self.kill()
        for path in list(self.directory.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        self.start()

    # --- what is asked of it -------------------------------------------------------------------------------------------
    @property
    def daemon(self) -> Daemon:
        if self.process is None:
            raise Killed(f"no daemon runs on {self.name}")
        return self.process.daemon

    @property
    def manager(self) -> Manager | None:
        if self.process is None or self.process.daemon.member is None:
            return None
        return self.process.daemon.member.manager

    @property
    def is_manager(self) -> bool:
        """By what its disk says: whether its manager side runs or not."""
        membership = load_membership(self.directory)
        return membership is not None and membership.role == "manager"

    @property
    def node_id(self) -> str:
        return self.process.daemon.node_id if self.process is not None else ""

    async def api(self, method: str, path: str, body: Any = None, query: str = "") -> Any:
        """A call at this host's socket; the decoded answer. ``ApiError``, or ``Killed`` with the outcome unknown."""
        if self.process is None:
            raise Killed(f"no daemon runs on {self.name}")
        payload = b"" if body is None else msgspec.json.encode(body)
        call = ForwardedCall(method, path, query, (), payload)
        status, answer = await self.process.run(_serve(self.process.daemon, call))
        decoded: Any = msgspec.json.decode(answer) if answer else None
        if status >= 400:
            raise ApiError(status, str(decoded["message"]))
        return decoded

    # --- disks ------------------------------------------------------------------------------------------------------------
    def open_disk(self, directory: Path) -> Disk:
        """Raft's disk: as old as its directory, so that removing that wipes it."""
        marker = directory / "disk"
        if not marker.exists():
            number = str(len(self._disks) + 1)
            self._disks[number] = FakeDisk(self._random())
            marker.write_text(number)
        return self._disks[marker.read_text()].open()

    def raft_disk(self) -> FakeDisk:
        """The one Raft uses now."""
        return self._disks[(self.directory / "raft" / "disk").read_text()]

    def fill_disk(self, room: int) -> bool:
        """Let Raft's disk take so many bytes more and then no more; whether there is one that was not full already."""
        if not (self.directory / "raft" / "disk").exists():
            return False
        disk = self.raft_disk()
        if disk.faults.capacity is not None:
            return False
        disk.faults.capacity = disk.used + room
        return True

    def disk_is_full(self) -> bool:
        """Whether a small write may fail."""
        if not (self.directory / "raft" / "disk").exists():
            return False
        disk = self.raft_disk()
        return disk.faults.capacity is not None and disk.faults.capacity - disk.used < SIM_LOW

    def free_disks(self) -> None:
        for disk in self._disks.values():
            disk.faults.capacity = None

    def crash_disks(self) -> None:
        for disk in self._disks.values():
            disk.crash()


class SimEchoes:
    """Every kernel answers: hosts of a simulation have no packets of their own."""

    def __init__(self) -> None:
        self._asked: set[str] = set()

    def ask(self, address: str) -> None:
        self._asked.add(address)

    def answered(self) -> set[str]:
        asked, self._asked = self._asked, set()
        return asked

    def close(self) -> None:
        self._asked.clear()


class SimRoom(Room):
    """Of a host whose file systems are Raft's disk alone."""

    def __init__(self, host: SimHost, folder: Path) -> None:
        super().__init__(folder)
        self._host = host

    def look(self) -> str:
        self.trouble = "No space left on device" if self._host.disk_is_full() else ""
        return self.trouble


async def _serve(daemon: Daemon, call: ForwardedCall) -> tuple[int, bytes]:
    try:
        answer = await daemon.api.handle(ForwardedRequest(call))
    except SwarmError as err:
        answer = error_response(err)
    return answer.status, answer.body


class Process:
    """One run of a daemon."""

    def __init__(self, host: SimHost) -> None:
        self.host = host
        self.dead = False
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._context = contextvars.Context()
        self._context.run(_process.set, self)
        self.engine = host.engine.client()
        host.network = (
            FakeNodeNetwork()
        )  # what the real one keeps on disk it derives anew from the first view
        random_ = random.Random(host.rng.getrandbits(64))
        endpoint = RpcEndpoint(host.net, host.addr, host.now, self.spawn)
        environment = Environment(
            now=host.now,
            boottime=host.boottime,
            guard=lambda _: host.guard,
            rpc=endpoint,
            join_transport=endpoint,
            links=FakeLinks(endpoint),
            home=SameLoop,
            disk=host.open_disk,
            files=host.files,
            echoes=SimEchoes,
            room=lambda folder: SimRoom(host, folder),
            port_is_free=lambda protocol, port: True,
            certificates=SimSource(random.Random(host.rng.getrandbits(64)), host.now),
            address=_address,
        )
        config = AgentConfig(state_dir=str(host.directory), feature_level=host.feature_level)
        self.daemon = Daemon(config, self.engine, host.network, random_, environment)

    def adopt(self, task: asyncio.Task[Any]) -> None:
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        if self.dead:
            task.cancel()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start something in this process."""
        return asyncio.get_running_loop().create_task(work, context=self._context.copy())

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in this process and wait for it. ``Killed`` when the process ends first."""
        if self.dead:
            work.close()
            raise Killed("this process is dead")
        task = self.spawn(work)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
        if task.cancelled():
            raise Killed(f"the daemon of {self.host.name} was killed")
        return task.result()

    def resume(self) -> None:
        self._context.run(self.daemon.resume)

    async def stop(self) -> None:
        await self.run(self.daemon.stop(pausing=True))
        await self.kill()

    async def kill(self) -> None:
        """Nothing it does from here on reaches anything."""
        self.dead = True
        self.engine.gone = True
        self.host.net.vanish(self.host.addr)
        self.host.crash_disks()
        member = self.daemon.member
        manager = member.manager if member is not None else None
        if manager is not None and manager.raft is not None:
            manager.raft.abandon()
        for _ in range(20):
            for task in list(self._tasks):
                task.cancel()
            await asyncio.sleep(0)
        deadline = asyncio.get_running_loop().time() + 1.0
        while self._tasks:
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"tasks that cannot be cancelled: {list(self._tasks)}")
            for task in list(self._tasks):
                task.cancel()
            await asyncio.sleep(0.01)


async def _address(wanted: str, word: str) -> str:
    return wanted
