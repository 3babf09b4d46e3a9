"""The process: wires the rooms, serves the API, and answers it for this host and its manager."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import hashlib
import logging
import os
import random
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import uvloop

from swarm_agent import __version__
from swarm_agent.agent.engine_client import EngineClient
from swarm_agent.api.backend import ManagerHealth, RemoteManager
from swarm_agent.api.events import ClusterEvents
from swarm_agent.api.router import Api
from swarm_agent.config import DEFAULT_PATH, AgentConfig, check_devices, parse_config, read_config
from swarm_agent.control.controllers import Controllers
from swarm_agent.environment import Environment
from swarm_agent.http.server import HttpServer
from swarm_agent.log_format import set_up_logging
from swarm_agent.manager.manager import Manager
from swarm_agent.network.host import HostNetwork
from swarm_agent.network.model import NodeNetwork
from swarm_agent.network.state_files import StateFiles
from swarm_agent.node.member import LocalMember
from swarm_agent.node.node import LocalNode
from swarm_agent.objects.errors import (
    AlreadyExists,
    InvalidSpec,
    NoLeader,
    NotLeading,
    SwarmError,
)
from swarm_agent.objects.ids import new_id
from swarm_agent.objects.ports import PortKey
from swarm_agent.objects.records import Task
from swarm_agent.objects.specs import InitRequest, JoinRequest, RecoverOptions
from swarm_agent.observe.server import ObserveServer
from swarm_agent.rpc.grpc import Grpc
from swarm_agent.rpc.messages import ForwardedAnswer, ForwardedCall, LogPiece
from swarm_agent.store import ApplyResult, Group, Store

log = logging.getLogger(__name__)

MakeNetwork = Callable[[AgentConfig, EngineClient], NodeNetwork]


class Daemon:
    """One agent. Implements ``api.backend.Backend``."""

    def __init__(
        self,
        config: AgentConfig,
        engine: EngineClient,
        network: NodeNetwork,
        rng: random.Random,
        environment: Environment | None = None,
    ) -> None:
        self.config = config
        self.engine = engine
        self.rng = rng
        self._environment = environment or Environment(rpc=Grpc(Path(f"{config.socket}.rpc")))
        self._reserved: set[str] = set()
        self._events: ClusterEvents | None = None
        self._events_of: Store | None = None
        self.api = Api(self, self._cluster_events)
        self._server = HttpServer(self.api.handle)
        self.observe = ObserveServer(self)
        self.host = LocalNode(
            config, engine, network, self.api.serve_forwarded, self.new_id, rng, self._environment
        )

    # --- life ----------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Serve the socket, then come back as the member we were."""
        await self._server.start_unix(self.config.socket)
        await self.observe.start(self.config.metrics_addr)
        self.resume()

    def resume(self) -> None:
        """Begin to be the member we were, if we were one."""
        self.host.resume()

    async def stop(self, *, pausing: bool = False) -> None:
        """``pausing``: the process is to start again in a moment."""
        await self._server.stop()
        await self.host.stop(pausing=pausing)
        await self.observe.stop()
        await self.engine.close()

    # --- Backend: this node ------------------------------------------------------------------------------------------
    @property
    def member(self) -> LocalMember | None:
        return self.host.member

    @property
    def state(self) -> str:
        return self.host.state

    @property
    def error(self) -> str:
        return self.host.error

    @property
    def node_id(self) -> str:
        return self.host.node_id

    @property
    def node_addr(self) -> str:
        return self.host.node_addr

    @property
    def role(self) -> str:
        return self.host.role

    @property
    def own_ports(self) -> Mapping[PortKey, str]:
        return self.config.own_ports

    @property
    def is_manager(self) -> bool:
        return self.member is not None and self.member.manager is not None

    @property
    def is_leader(self) -> bool:
        return self.member is not None and self.member.manager is not None and self.member.manager.is_leader

    def remote_managers(self) -> list[RemoteManager]:
        if self.member is None:
            return []
        known = [RemoteManager(m.node_id, m.addr) for m in self.member.membership.managers]
        manager = self.member.manager
        if manager is not None and all(m.node_id != self.node_id for m in known):
            known.append(RemoteManager(self.node_id, manager.settings.manager_addr))
        return known

    def manager_health(self) -> dict[str, ManagerHealth]:
        member = self.member
        if member is None or member.manager is None or member.manager.raft is None:
            return {}
        status = member.manager.status
        active = {p.raft_id for p in status.peers if p.active} | {status.raft_id}
        leader = status.leader.raft_id if status.leader is not None else 0
        return {m.node_id: ManagerHealth(m.raft_id == leader, m.raft_id in active) for m in status.members}

    # --- Backend: membership -------------------------------------------------------------------------------------------
    async def init(self, request: InitRequest) -> str:
        return await self.host.init(request)

    async def force_new_cluster(self, request: InitRequest) -> str:
        return await self.host.force_new_cluster(request)

    async def backup(self, key: bytes) -> Iterator[bytes]:
        return await self.host.backup(key)

    async def recover(self, options: RecoverOptions, data: bytes, key: bytes) -> str:
        return await self.host.recover(options, data, key)

    async def join(self, request: JoinRequest) -> None:
        await self.host.join(request)

    async def leave(self, *, force: bool) -> None:
        await self.host.leave(force=force)

    async def unlock(self, unlock_key: bytes) -> None:
        await self.host.unlock(unlock_key)

    # --- Backend: the cluster's state ----------------------------------------------------------------------------------
    @property
    def store(self) -> Store:
        return self._manager().store

    def _manager(self) -> Manager:
        if self.member is None or self.member.manager is None:
            raise NoLeader
        return self.member.manager

    @property
    def controllers(self) -> Controllers:
        leadership = self._manager().leadership
        if leadership is None:
            raise NotLeading
        return leadership.control.controllers

    async def propose(self, groups: tuple[Group, ...]) -> ApplyResult:
        return await self._manager().propose(groups)

    async def read_barrier(self) -> None:
        await self._manager().read_barrier()

    @contextlib.contextmanager
    def reserve(self, *names: str) -> Iterator[None]:
        for name in names:
            if name in self._reserved:
                raise AlreadyExists(f"{name} is being created by another request")
        self._reserved.update(names)
        try:
            yield
        finally:
            self._reserved.difference_update(names)

    def forward(self, call: ForwardedCall) -> AsyncIterator[ForwardedAnswer]:
        return self._manager().forward(call)

    def logs(self, tasks: list[Task], query: dict[str, str]) -> AsyncIterator[LogPiece]:
        return self._manager().read_logs(tasks, query)

    def may_lose(self, node_id: str) -> bool:
        return self._manager().may_lose(node_id)

    def new_id(self) -> str:
        return new_id(self.rng)

    def secret_bits(self, count: int) -> int:
        return self._environment.certificates.bits(count)

    def now(self) -> int:
        return self._environment.now()

    def _cluster_events(self) -> ClusterEvents | None:
        if self.member is None or self.member.manager is None:
            return None
        store = self.member.manager.store
        if self._events_of is not store:
            self._events, self._events_of = ClusterEvents(store, self.now), store
        return self._events


class _EngineForNetwork:
    """The engine as the network room asks for it."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    async def request(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        answer = await self._engine.answer(method, path, body=body)
        return answer.status, answer.json()


def make_host_network(config: AgentConfig, engine: EngineClient) -> NodeNetwork:
    """This host's real network."""
    ports = (config.join_port, config.rpc_port, config.raft_port)
    journal = StateFiles(Path(config.state_dir) / "net")
    return HostNetwork(_EngineForNetwork(engine), journal, control_ports=ports)


# --- the process -------------------------------------------------------------------------------------------------------
def notify(text: str) -> None:
    """Tell systemd, where there is one."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.connect("\0" + path[1:] if path.startswith("@") else path)
            sock.send(text.encode())


async def _watchdog() -> None:
    """Feed systemd's watchdog as long as the loop turns."""
    period = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
    while period:
        notify("WATCHDOG=1")
        await asyncio.sleep(period)


async def run(config: AgentConfig, make_network: MakeNetwork) -> None:
    """Until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    engine = EngineClient(config.engine_socket)
    rng = random.Random(secrets.randbits(128))
    daemon = Daemon(config, engine, make_network(config, engine), rng)
    await daemon.start()
    watchdog = asyncio.create_task(_watchdog())
    log.info("swarm-agent %s serves %s", __version__, config.socket)
    notify("READY=1")
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    await ended.wait()
    notify("STOPPING=1")
    log.info("stopping; containers go on")
    watchdog.cancel()
    await daemon.stop(pausing=not await _host_is_stopping())


async def _host_is_stopping() -> bool:
    """Whether not only this process stops: then its tasks do too, and others are to take them at once."""
    if "NOTIFY_SOCKET" not in os.environ:
        return False
    try:
        asked = await asyncio.create_subprocess_exec(
            "systemctl",
            "is-system-running",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(1):
            said, _ = await asked.communicate()
    except (OSError, TimeoutError):
        return False
    return said.strip() == b"stopping"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="swarm-agent", description="A self-healing cluster of Docker Engines."
    )
    parser.add_argument("--config", type=Path, help=f"configuration file (default {DEFAULT_PATH}, if there)")
    parser.add_argument("--version", action="version", version=f"swarm-agent {__version__}")
    arguments = parser.parse_args()
    path = arguments.config or DEFAULT_PATH
    try:
        text = read_config(path, must_exist=arguments.config is not None)
        config = parse_config(path, text)
        check_devices(config)
    except InvalidSpec as err:
        sys.exit(f"swarm-agent: {err}")
    # `systemctl status` shows it: whoever wrote the file sees whether this process has read what stands there now.
    notify(f"STATUS=configuration {hashlib.sha256(text.encode()).hexdigest()}")
    set_up_logging(config.log_level, config.log_format)
    sys.setswitchinterval(0.0005)
    try:
        uvloop.run(run(config, make_host_network))
    except (SwarmError, OSError, ValueError) as err:
        sys.exit(f"swarm-agent: {err}")


if __name__ == "__main__":
    main()
