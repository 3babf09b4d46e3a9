"""One member: its worker side, its session, and its manager side while it has one; how it starts, works and leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from swarm_agent.agent.describe import describe, volume_events
from swarm_agent.agent.engine_client import Engine
from swarm_agent.agent.held_ports import HeldPorts
from swarm_agent.agent.lease import Lease
from swarm_agent.agent.log_sender import send_logs
from swarm_agent.agent.network_applier import NetworkApplier
from swarm_agent.agent.session import SessionAgent
from swarm_agent.agent.worker import Worker
from swarm_agent.ca import ca
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.ca.join_server import ManagerAddress
from swarm_agent.ca.key_file import KeyFile
from swarm_agent.config import AgentConfig
from swarm_agent.environment import Environment
from swarm_agent.manager.backup import Recovery
from swarm_agent.manager.manager import Manager
from swarm_agent.manager.rpc_handlers import ServeForwarded
from swarm_agent.network.model import NetworkView, NodeNetwork
from swarm_agent.node.manager_role import ManagerRole
from swarm_agent.node.membership import MembershipRecord
from swarm_agent.node.state import NodeStateFiles
from swarm_agent.objects import features
from swarm_agent.objects.errors import SwarmError, Unavailable
from swarm_agent.objects.records import Cluster, HostSubnet, Node, NodeDescription, TaskStatus
from swarm_agent.rpc.grpc import Client, Redirect
from swarm_agent.rpc.messages import Assignment, Hello, Leave, LogsWanted, Piece

log = logging.getLogger(__name__)

DESCRIBE_EVERY_S = 20.0
LOOK_EVERY_S = 1.0
HAND_OVER_S = 2.0
LOOK_AT_PORTS_EVERY_S = 2.0
REDIRECTS = 3
LEAVE_TIMEOUT_S = 12.0
FORCED_S = 2.0  # what tasks get of a node that leaves by force
FORCED_TELL_S = 5.0  # and what managers get to let it go


class LocalMember:
    """See the module. Implements ``agent.session.Orders``."""

    def __init__(
        self,
        membership: MembershipRecord,
        identity: NodeIdentity,
        state_dir: Path,
        config: AgentConfig,
        engine: Engine,
        network: NodeNetwork,
        serve_forwarded: ServeForwarded,
        new_id: Callable[[], str],
        rng: random.Random,
        on_removed: Callable[[], None],
        environment: Environment,
        keys: KeyFile | None,
        level: int = features.LEVEL,
    ) -> None:
        self._environment = environment
        self._level = level
        self._papers = NodeStateFiles(state_dir, membership, identity, keys)
        self._config = config
        self._engine = engine
        self._network = network
        self._on_removed = on_removed
        self._description = NodeDescription()
        self._held_ports = HeldPorts()
        self._host_net: tuple[tuple[HostSubnet, ...], tuple[str, ...]] = ((), ())
        self._describe_now = asyncio.Event()
        self._room = environment.room(state_dir)
        self._told = NodeDescription()  # what a session last said of us
        self._tasks: dict[asyncio.Task[None], None] = {}  # in order, so that they end in order
        self.session = SessionAgent(
            self, lambda: self.identity, self._known_managers, self._hello, rng, environment.rpc
        )
        self._views = NetworkApplier(network, environment.echoes)
        self.worker = Worker(
            membership.node_id,
            engine,
            network,
            self.session.report,
            environment.files,
            environment.now,
            Lease(engine, environment.guard(config.engine_socket), environment.boottime),
            environment.port_is_free,
            self._cannot_write,
            membership.cluster_id,
            self._views.engine_changed,
        )
        self._managing = ManagerRole(
            self._papers,
            config,
            serve_forwarded,
            new_id,
            rng,
            environment,
            level,
            self._ask_leader,
            self._spawn,
            self._room,
        )

    # --- what we are -----------------------------------------------------------------------------------------------
    @property
    def membership(self) -> MembershipRecord:
        return self._papers.membership

    @property
    def identity(self) -> NodeIdentity:
        return self._papers.identity

    @property
    def manager(self) -> Manager | None:
        return self._managing.manager

    @property
    def trouble(self) -> str:
        """What is wrong with this host, or why this manager cannot serve; "" when nothing is."""
        return self._managing.trouble or self._room.trouble

    @property
    def network_trouble(self) -> str:
        """What is wrong with this node's network, "" when nothing is."""
        return self._network.trouble()

    # --- life ----------------------------------------------------------------------------------------------------
    async def start(
        self,
        founding: tuple[Cluster, Node] | None = None,
        recovery: Recovery | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Bring everything up. ``founding``: this host starts a new cluster; ``recovery``: an old one from a backup; ``again``: it
        was a member before, and is one without a manager side while that cannot start."""
        try:
            await self._describe()
            self._room.look()
            await self._managing.start(founding, recovery, again=again)
            await self._network.start()
            await self.worker.start()
        except BaseException:
            await self.stop()
            raise
        self._spawn(self.session.run(), "session")
        self._spawn(self._views.run(), "network")
        self._spawn(self._views.keep(), "network check")
        self._spawn(self._views.prober.run(), "peer probe")
        self._spawn(self._keep_described(), "describe")
        self._spawn(self._watch_trouble(), "trouble")
        self._spawn(self._watch_volumes(), "volume events")
        self._spawn(self._watch_ports(), "ports of the host")
        self._spawn(self._managing.certificate.keep(), "certificate")

    async def pause(self) -> None:
        """Tell the leader that we stop to start again; if we lead, tell the next one."""
        manager = self.manager
        if manager is not None and manager.is_leader:
            assert manager.raft is not None
            with contextlib.suppress(SwarmError, TimeoutError):
                async with asyncio.timeout(HAND_OVER_S):
                    await manager.raft.transfer()
                    while self.session.leader in ("", manager.settings.rpc_addr):
                        await asyncio.sleep(0.02)
        await self.session.pause()

    async def stop(self) -> None:
        """Let go of everything. Containers, networks and the data path go on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.worker.stop()
        await self._network.stop()
        await self._managing.stop()

    async def stand_alone(self, host: str, data_addr: str) -> None:
        """See ``ManagerRole.stand_alone``."""
        await self._managing.stand_alone(host, data_addr)

    async def wait_connected(self, seconds: float) -> bool:
        """Whether a session was open within this time."""
        try:
            async with asyncio.timeout(seconds):
                await self.session.connected.wait()
        except TimeoutError:
            return False
        return True

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s failed", task.get_name(), exc_info=task.exception())

    async def _ask_leader(self, name: str, request: object, timeout_s: float) -> Any:
        """A call only the leader answers; any manager may send us on to it."""
        addresses = [m.rpc_addr for m in self._known_managers() if m.rpc_addr]
        if self.session.leader:
            addresses.insert(0, self.session.leader)
        error: SwarmError = Unavailable("no manager is known")
        for addr in dict.fromkeys(addresses):
            target = addr
            for _ in range(REDIRECTS):
                client = self._environment.rpc.client(target, self.identity)
                try:
                    return await client.unary(name, request, timeout_s)
                except Redirect as err:
                    if not err.addr:
                        break
                    target = err.addr
                except SwarmError as err:
                    error = err
                    break
                finally:
                    await client.close()
        raise error

    # --- what we say -----------------------------------------------------------------------------------------------
    def _known_managers(self) -> tuple[ManagerAddress, ...]:
        manager = self.manager
        if manager is None:
            return self.membership.managers
        own = ManagerAddress(
            self.membership.node_id, manager.settings.manager_addr, manager.settings.rpc_addr
        )
        return (own, *(m for m in self.membership.managers if m.node_id != own.node_id))

    def _hello(self) -> Hello:
        manager = self.manager
        self._told = self._whole_description()
        return Hello(
            self._told,
            self.membership.data_addr,
            manager.settings.manager_addr if manager is not None else "",
            manager.settings.rpc_addr if manager is not None else "",
            self._level,
        )

    async def _describe(self) -> None:
        """Raises what the engine raises. Where the host's network cannot be read, what was read last is said again."""
        try:
            self._host_net = await self._network.host_net()
        except (SwarmError, OSError) as err:
            log.warning("cannot read the addresses and routes of this host: %s", err)
        self._description = await describe(
            self._engine,
            ca.issuer_of(self.identity.root),
            self._config.generic,
            self._held_ports.ports,
            self._host_net,
        )

    async def _watch_volumes(self) -> None:
        async for _ in volume_events(self._engine):
            self._describe_now.set()

    async def _watch_ports(self) -> None:
        """No event tells of programs that begin to listen."""
        while True:
            try:
                if self._held_ports.look(await self._network.port_holders()):
                    self._describe_now.set()
                await self._views.look_at_ports()
            except (SwarmError, OSError) as err:
                log.warning("cannot look at the ports of this host: %s", err)
            await asyncio.sleep(LOOK_AT_PORTS_EVERY_S)

    async def _keep_described(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DESCRIBE_EVERY_S):
                    await self._describe_now.wait()
            self._describe_now.clear()
            try:
                await self._describe()
            except (SwarmError, OSError) as err:
                log.warning("cannot describe this node: %s", err)
                continue
            self._tell()

    async def _watch_trouble(self) -> None:
        """Whether this host can write, and whether its manager side works: managers hear of both."""
        while True:
            self._room.look()
            self._tell()
            await asyncio.sleep(LOOK_EVERY_S)

    def _cannot_write(self, err: OSError) -> bool:
        """A task's files could not be written. Managers hear of it before they hear that the task failed."""
        found = self._room.failed(err)
        self._tell()
        return found

    def _whole_description(self) -> NodeDescription:
        return msgspec.structs.replace(
            self._description, trouble=self._room.trouble, manager_trouble=self._managing.trouble
        )

    def _tell(self) -> None:
        whole = self._whole_description()
        if whole != self._told:
            self._told = whole
            self.session.described(whole)

    # --- Orders: what a manager tells us -------------------------------------------------------------------------------
    async def assign(self, full: bool, assignments: tuple[Assignment, ...], removed: tuple[str, ...]) -> None:
        await self._views.ready()
        await self.worker.assign(full, assignments, removed)

    async def contents(self, pieces: tuple[Piece, ...]) -> None:
        self.worker.take(pieces)

    async def network(self, view: NetworkView) -> None:
        self._views.take(view)

    async def node_changed(self, node: Node) -> None:
        self.worker.node_changed(node)
        self._managing.follow(node)

    async def managers_changed(self, managers: tuple[ManagerAddress, ...]) -> None:
        if managers:
            self._papers.hear_of(managers)

    async def root_changed(self, root: bytes) -> None:
        if root and root != self.identity.root:
            raise SwarmError("the manager has another root certificate than the one this node joined with")

    def silent(self, nodes: tuple[str, ...]) -> None:
        self._views.prober.silent(nodes)

    def logs_wanted(self, wanted: LogsWanted) -> None:
        def connect() -> Client:
            return self._environment.rpc.client(self.session.leader, self.identity)

        self._spawn(send_logs(connect, self._engine, self.worker, wanted), "logs")

    def statuses(self) -> list[tuple[str, TaskStatus]]:
        return self.worker.statuses()

    def lease_wanted(self) -> bool:
        return self.worker.lease_wanted()

    def lease_beat(self) -> int:
        return self.worker.lease.beat()

    def leased(self, number: int) -> None:
        self.worker.lease.confirmed(number)

    async def removed(self) -> None:
        self._on_removed()

    # --- leaving -----------------------------------------------------------------------------------------------------
    async def leave(self, *, force: bool) -> None:
        """Leave for good: stop our tasks, tell the leader, forget who we were. Nobody need answer for it to succeed. ``force``: tasks
        get two seconds, and managers five to answer."""
        self.worker.leave()
        removing = asyncio.create_task(self.worker.remove_all(FORCED_S if force else None))
        alone = self.manager is not None and len(self.manager.status.members) <= 1
        if not alone:
            with contextlib.suppress(SwarmError, TimeoutError):
                async with asyncio.timeout(FORCED_TELL_S if force else None):
                    if self.manager is not None:
                        await self._ask_leader("Leave", Leave(), LEAVE_TIMEOUT_S)
                    await self.session.leave()
        for task in self._tasks:
            if task.get_name() != "session":
                task.cancel()
        await removing
        await self._leave_network()
        await self.stop()
        await self.forget()

    async def cast_out(self) -> None:
        """The cluster let us go without asking: nobody to tell, everything else as for leaving by force: our tasks run elsewhere by now."""
        await self.worker.remove_all(FORCED_S)
        await self._leave_network()
        await self.stop()
        await self.forget()

    async def leave_unstarted(self) -> None:
        """Leave although we never started, as while our keys are locked or the engine does not answer: as for being cast out."""
        try:
            await self._network.start()
        except Exception:  # what it would take away stays then, as said there
            log.exception("the network of this host cannot be started to be taken away")
        await self.cast_out()

    async def _leave_network(self) -> None:
        try:
            await self._network.leave()
        except Exception:  # the kernel's, nft's, the engine's: no reason to stay half a member
            log.exception("parts of the swarm's network are left on this host: a reboot takes them away")

    async def forget(self) -> None:
        """Remove what makes this host a member."""
        self._papers.forget()
