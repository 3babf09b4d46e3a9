"""The process: wires the rooms, serves the API, becomes a member and ceases to be one."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import random
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import uvloop

from swarm_agent import __version__
from swarm_agent.addresses import own_address, split_addr
from swarm_agent.api.backend import ManagerHealth, RemoteManager
from swarm_agent.api.events import ClusterEvents
from swarm_agent.api.http import HttpError, HttpServer
from swarm_agent.api.server import LOCKED, Api
from swarm_agent.api.swarm import NOT_LOCKED
from swarm_agent.config import DEFAULT_PATH, AgentConfig, check_devices, load_config
from swarm_agent.control.engine import Controllers
from swarm_agent.founding import Place, found, refound
from swarm_agent.identity import ca
from swarm_agent.identity.door import Issued, IssueRequest, JoinRefused, ask_for_certificate, fetch_root
from swarm_agent.identity.files import NodeIdentity, load_certificate, load_identity, save_identity
from swarm_agent.identity.keyfile import KeyFile, LockedKeys, load_keys, remove_keys
from swarm_agent.identity.tokens import parse_token
from swarm_agent.manager.archive import VERSION, Head, Recovery, seal, unseal
from swarm_agent.manager.manager import Manager
from swarm_agent.member import Member
from swarm_agent.membership import (
    Membership,
    load_membership,
    save_membership,
)
from swarm_agent.network.host import HostNetwork
from swarm_agent.network.journal import Journal
from swarm_agent.network.model import NodeNetwork
from swarm_agent.node.describe import check_engine
from swarm_agent.node.engine import EngineClient, EngineError, EngineUnreachable
from swarm_agent.objects import features
from swarm_agent.objects.errors import (
    AlreadyExists,
    InvalidSpec,
    NoLeader,
    NotLeading,
    SwarmError,
    Unavailable,
)
from swarm_agent.objects.ids import new_id
from swarm_agent.objects.records import Cluster, Node, Task, UnlockKey
from swarm_agent.objects.specs import InitRequest, JoinRequest, RecoverOptions
from swarm_agent.observe.logs import set_up_logging
from swarm_agent.observe.server import ObserveServer
from swarm_agent.seams import Seams
from swarm_agent.session.wire import ForwardedAnswer, ForwardedCall, LogPiece
from swarm_agent.store import ApplyResult, Group, Store

log = logging.getLogger(__name__)

JOIN_WAIT_S = 20.0
RETRY_S = 2.0
JOIN_TIMEOUT = (
    "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. "
    'Use the "docker info" command to see the current swarm status of your node.'
)
LAST_MANAGER = (
    "You are attempting to leave the swarm on a node that is participating as a manager. "
    "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. "
)

MakeNetwork = Callable[[AgentConfig, EngineClient], NodeNetwork]


class Daemon:
    """One agent. Implements ``api.backend.Backend``."""

    def __init__(
        self,
        config: AgentConfig,
        engine: EngineClient,
        network: NodeNetwork,
        rng: random.Random,
        seams: Seams | None = None,
    ) -> None:
        self.config = config
        self.engine = engine
        self.rng = rng
        self._network = network
        self._seams = seams or Seams()
        self._state_dir = Path(config.state_dir)
        self.member: Member | None = None
        self._error = ""
        self._pending = False
        self._locked: LockedKeys | None = None  # what an unlock key is wanted for
        self._changing = asyncio.Lock()
        self._reserved: set[str] = set()
        self._events: ClusterEvents | None = None
        self._events_of: Store | None = None
        self.api = Api(self, self._cluster_events)
        self._server = HttpServer(self.api.handle)
        self.observe = ObserveServer(self)
        self._tasks: dict[asyncio.Task[None], None] = {}

    # --- life ----------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Serve the socket, then come back as the member we were."""
        await self._server.start_unix(self.config.socket)
        await self.observe.start(self.config.metrics_addr)
        self.resume()

    def resume(self) -> None:
        """Begin to be the member we were, if we were one."""
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        membership = load_membership(self._state_dir)
        if membership is None:
            return
        membership = self._readdressed(membership)
        keys = load_keys(self._state_dir, self._seams.certificates.entropy)
        if isinstance(keys, LockedKeys):
            log.warning('the keys of this manager are locked: use "docker swarm unlock". Containers go on')
            self._locked = keys
            return
        identity = load_identity(self._state_dir, keys)
        if identity is not None:
            self._pending = True
            self._spawn(self._resume(membership, identity, keys))

    def _readdressed(self, membership: Membership) -> Membership:
        """With the address the configuration names. The leader learns it as soon as we reach it."""
        host = self.config.advertise_addr
        if not host or host == membership.advertise_host:
            return membership
        log.warning("this host moves from %s to %s", membership.advertise_host, host)
        moves = membership.data_addr == membership.advertise_host
        moved = msgspec.structs.replace(
            membership, advertise_host=host, data_addr=host if moves else membership.data_addr
        )
        try:
            save_membership(self._state_dir, moved)
        except OSError as err:  # a full disk is no reason to stay away; the next start says it again
            log.error("cannot write down the new address, free some space in %s: %s", self._state_dir, err)
        return moved

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop()
        if self.member is not None:
            await self.member.stop()
        await self.observe.stop()
        await self.engine.close()

    async def _resume(self, membership: Membership, identity: NodeIdentity, keys: KeyFile | None) -> None:
        """Start the member, again and again while the engine or a port is not there."""
        while True:
            member = self._make_member(membership, identity, keys)
            try:
                await member.start()
            except (SwarmError, OSError) as err:
                if str(err) != self._error:
                    log.error("cannot resume membership yet: %s", err)
                self._error = str(err)
                await asyncio.sleep(RETRY_S)
                continue
            except Exception as err:  # it must not stay away for ever, and silently
                log.exception("cannot resume membership yet")
                self._error = f"internal error, see this node's log: {err!r}"
                await asyncio.sleep(RETRY_S)
                continue
            self.member, self._error, self._pending = member, "", False
            return

    def _spawn(self, work: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)  # type: ignore[arg-type]
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            log.debug("a task of the daemon ended with an error", exc_info=task.exception())

    def _make_member(self, membership: Membership, identity: NodeIdentity, keys: KeyFile | None) -> Member:
        return Member(
            membership,
            identity,
            self._state_dir,
            self.config,
            self.engine,
            self._network,
            self.api.serve_forwarded,
            self.new_id,
            self.rng,
            self._was_removed,
            self._seams,
            keys,
            self.config.level,
        )

    def _was_removed(self) -> None:
        """The cluster does not know this node any more: forget the cluster, stop its tasks."""
        self._spawn(self._forget())

    async def _forget(self) -> None:
        async with self._changing:  # nobody joins on this host until the old membership is gone
            member, self.member = self.member, None
            if member is not None:
                await member.cast_out()

    # --- Backend: this node ------------------------------------------------------------------------------------------
    @property
    def state(self) -> str:
        if self.member is not None:
            return "active"
        if self._locked is not None:
            return "locked"
        if self._pending:
            return "error" if self.error else "pending"
        return "inactive"

    @property
    def error(self) -> str:
        """What is wrong with this node's membership, "" when nothing is."""
        if self._locked is not None:
            return LOCKED
        if self._error or self.member is None:
            return self._error
        manager = self.member.manager
        return self.member.trouble or (manager.lost if manager is not None else "")

    @property
    def node_id(self) -> str:
        return self.member.membership.node_id if self.member is not None else ""

    @property
    def node_addr(self) -> str:
        return self.member.membership.advertise_host if self.member is not None else ""

    @property
    def role(self) -> str:
        return self.member.membership.role if self.member is not None else ""

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
        """Found a cluster. Nothing is left behind when it fails."""
        async with self._changing:
            self._must_be_outside()
            await self._check_engine()
            listen_host, port = split_addr(request.listen_addr or "0.0.0.0:2377", self.config.front_door_port)
            wanted, _ = split_addr(request.advertise_addr or "", port)
            address = self._seams.address
            host = await address(
                wanted or ("" if listen_host == "0.0.0.0" else listen_host), "advertise address"
            )
            data_addr = await address(request.data_path_addr or host, "data path address")
            if request.data_path_port not in (None, 0, 4789):
                raise HttpError(
                    501, "--data-path-port other than 4789 is not supported by this version of swarm-agent"
                )
            place = Place(host, data_addr, listen_host, port, self.config.rpc_port)
            new = found(request, place, self.new_id, self._seams.certificates, self.config.level)
            member = await self._become(new.membership, new.identity, (new.cluster, new.node))
            await member.wait_connected(JOIN_WAIT_S)
            return new.node.id

    async def force_new_cluster(self, request: InitRequest) -> str:
        async with self._changing:
            member = self.member
            if member is None or member.manager is None:
                why = f": {self.error}" if self.error else ""
                raise HttpError(503, f"only a manager can be made the only one, and this node is none{why}")
            if len(member.manager.status.members) > 1 and await self._has_majority(member.manager):
                raise HttpError(
                    503,
                    "this swarm has a majority of its managers and works: --force-new-cluster is for one that has lost it. "
                    'Take managers out with "docker node demote"',
                )
            address = self._seams.address
            was = member.membership
            wanted, _ = split_addr(request.advertise_addr or "", was.front_door_port)
            host = await address(wanted, "advertise address") if wanted else was.advertise_host
            data = request.data_path_addr or (host if wanted else was.data_addr)
            await member.stand_alone(host, await address(data, "data path address"))
            return member.membership.node_id

    async def _has_majority(self, manager: Manager) -> bool:
        try:
            await manager.read_barrier()
        except SwarmError:
            return False
        return True

    async def backup(self, key: bytes) -> Iterator[bytes]:
        manager = self._manager()
        assert manager.raft is not None
        try:
            meta, view = await manager.raft.state()
        except SwarmError as err:
            raise Unavailable(
                f"no majority of managers answers, and a backup without it could be old: {err}"
            ) from err
        head = Head(
            version=VERSION,
            cluster_id=manager.settings.cluster_id,
            created=self.now(),
            index=meta.index,
            feature_level=manager.store.feature_level,
            release=__version__,
            salt=self._seams.certificates.entropy(16),
        )
        return seal(head, key, meta, view)

    async def recover(self, options: RecoverOptions, data: bytes, key: bytes) -> str:
        """Everything is read and checked before anything is written; nothing is left behind when it fails."""
        async with self._changing:
            self._must_be_outside()
            await self._check_engine()
            head, meta, pieces = unseal(data, key)
            if why := features.too_low(self.config.level, head.feature_level):
                raise HttpError(400, f"this backup cannot be recovered here: {why}")
            state = Store(self.config.level)
            state.restore(meta.index, pieces)
            if state.cluster is None:
                raise HttpError(400, "there is no cluster in this backup")
            listen_host, port = split_addr(options.listen_addr or "0.0.0.0:2377", self.config.front_door_port)
            wanted, _ = split_addr(options.advertise_addr or "", port)
            address = self._seams.address
            host = await address(wanted, "advertise address")
            data_addr = await address(options.data_path_addr or host, "data path address")
            place = Place(host, data_addr, listen_host, port, self.config.rpc_port)
            new = refound(state.cluster, place, self.new_id, self._seams.certificates)
            member = await self._become(
                new.membership, new.identity, None, Recovery(meta, pieces, new.node), state.cluster.unlock
            )
            await member.wait_connected(JOIN_WAIT_S)
            log.warning("this swarm was recovered from a backup of %d", head.created)
            return new.node.id

    async def join(self, request: JoinRequest) -> None:
        """Join a cluster; errors before the certificate leave nothing behind."""
        async with self._changing:
            self._must_be_outside()
            token = request.join_token or ""
            parse_token(token)
            hostname = await self._check_engine()
            listen_host, port = split_addr(request.listen_addr or "0.0.0.0:2377", self.config.front_door_port)
            wanted, _ = split_addr(request.advertise_addr or "", port)
            remotes = [":".join(map(str, split_addr(r, 2377))) for r in request.remote_addrs or ()]
            address = self._seams.address
            host = await address(wanted, "advertise address") if wanted else await _address_towards(remotes)
            data_addr = await address(request.data_path_addr or host, "data path address")
            identity, issued = await self._get_certificate(
                remotes, token, request.availability or "", hostname
            )
            membership = Membership(
                cluster_id=issued.cluster_id,
                node_id=issued.node_id,
                role=issued.role,
                advertise_host=host,
                listen_host=listen_host,
                front_door_port=port,
                data_addr=data_addr,
                managers=issued.managers,
            )
            member = await self._become(membership, identity, None)
            if not await self._joined(member):
                raise PlainUnavailable(JOIN_TIMEOUT)

    async def _joined(self, member: Member) -> bool:
        deadline = asyncio.get_running_loop().time() + JOIN_WAIT_S
        if not await member.wait_connected(JOIN_WAIT_S):
            return False
        while member.membership.role == "manager":
            manager = member.manager
            ready = (
                manager is not None
                and manager.store.cluster is not None
                and manager.status.leader is not None
            )
            if ready and any(m.node_id == self.node_id and not m.learner for m in manager.status.members):  # type: ignore[union-attr]
                return True
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def _get_certificate(
        self, remotes: list[str], token: str, availability: str, hostname: str
    ) -> tuple[NodeIdentity, Issued]:
        """Ask one manager after the other."""
        key, csr = ca.make_request(self._seams.certificates)
        request = IssueRequest(
            csr=csr,
            token=token,
            availability=availability,
            hostname=hostname,
            clock=self._seams.now(),
            feature_level=self.config.level,
        )
        error: SwarmError = Unavailable("no manager to join was named")
        for addr in remotes:
            try:
                root = await fetch_root(self._seams.doors, addr, token)
                issued = await ask_for_certificate(self._seams.doors, addr, root, request)
            except JoinRefused as err:
                if err.http_status < 429:
                    raise  # a no to this token or this node; every manager would say it
                error = err
                continue
            except SwarmError as err:
                error = err
                continue
            return NodeIdentity(key, issued.cert, root), issued
        raise error

    async def _become(
        self,
        membership: Membership,
        identity: NodeIdentity,
        founding: tuple[Cluster, Node] | None,
        recovery: Recovery | None = None,
        unlock: UnlockKey | None = None,
    ) -> Member:
        """``founding``, ``recovery``: with it a cluster begins. Its unlock key, if it has one, locks our keys before they reach the disk."""
        if unlock is None:
            unlock = founding[0].unlock if founding is not None else UnlockKey()
        keys: KeyFile | None = None
        try:
            remove_keys(self._state_dir)
            if membership.role == "manager":
                keys = KeyFile.create(
                    self._state_dir,
                    self._seams.certificates.entropy,
                    unlock_key=unlock.key,
                    lock_version=unlock.version,
                )
            member = self._make_member(membership, identity, keys)
            save_identity(self._state_dir, identity, keys)
            save_membership(self._state_dir, membership)
            await member.start(founding, recovery)
        except BaseException:
            await self._make_member(membership, identity, None).forget()
            raise
        self.member = member
        return member

    async def leave(self, *, force: bool) -> None:
        """Leave for good. Once begun it goes on to its end, whether or not whoever asked still waits."""
        await asyncio.shield(self._spawn(self._leave(force=force)))

    async def _leave(self, *, force: bool) -> None:
        async with self._changing:
            member = self.member
            if member is None:
                await self._leave_while_down(force=force)
                return
            if member.manager is not None and not force:
                raise HttpError(503, self._leave_warning(member))
            self.member = None
            await member.leave()

    async def _leave_while_down(self, *, force: bool) -> None:
        """A member that cannot start may still leave."""
        if not force:
            if self._locked is not None:
                raise HttpError(503, LOCKED)
            raise HttpError(
                503, f"this node cannot reach its swarm ({self.error}): use --force to leave it all the same"
            )
        others = [t for t in self._tasks if t is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)  # what it began to start must have ended
        membership, identity = load_membership(self._state_dir), load_certificate(self._state_dir)
        if membership is not None and identity is not None:
            await self._make_member(membership, identity, None).leave_unstarted()
        self._pending, self._error, self._locked = False, "", None

    async def unlock(self, unlock_key: bytes) -> None:
        """Start as the manager we are. It goes on in the background when that takes long, as at any start.

        Raises:
            InvalidUnlockKey: it stays locked, and may be tried again.
        """
        async with self._changing:
            membership = load_membership(self._state_dir)
            if self._locked is None or membership is None:
                raise HttpError(409, NOT_LOCKED)
            keys = self._locked.unlock(unlock_key)
            try:
                identity = load_identity(self._state_dir, keys)
            except ValueError as err:
                raise PlainUnavailable(str(err)) from err
            if identity is None:
                raise PlainUnavailable(
                    f"{self._state_dir}/certificates is gone: leave the swarm by force and join it again"
                )
            log.info("the keys of this manager are unlocked")
            self._locked, self._pending = None, True
            resuming = self._spawn(self._resume(membership, identity, keys))
            await asyncio.wait([resuming], timeout=JOIN_WAIT_S)

    def _leave_warning(self, member: Member) -> str:
        assert member.manager is not None
        voters = [m for m in member.manager.status.members if not m.learner]
        if len(voters) == 1:
            return LAST_MANAGER
        text = "You are attempting to leave the swarm on a node that is participating as a manager. "
        if not member.manager.may_lose(member.membership.node_id):
            return (
                f"{text}Removing this node leaves {len(voters) - 1} managers out of {len(voters)}. Without a Raft quorum your swarm "
                "will be inaccessible. The only way to restore a swarm that has lost consensus is to reinitialize it with "
                "`--force-new-cluster`. Use `--force` to suppress this message."
            )
        return f'{text}Demote it first with "docker node demote", or use `--force` to suppress this message.'

    def _must_be_outside(self) -> None:
        if self.state != "inactive":
            raise HttpError(
                503,
                'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.',
            )

    async def _check_engine(self) -> str:
        """The name the engine knows this host by."""
        try:
            info = await self.engine.call("GET", "/info")
            check_engine(info)
        except EngineUnreachable as err:
            raise PlainUnavailable(f"{err}. Start it (systemctl start docker) and try again") from err
        except EngineError as err:
            raise PlainUnavailable(f"the Docker Engine does not work: {err}") from err
        return str(info.get("Name", ""))

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
        duties = self._manager().duties
        if duties is None:
            raise NotLeading
        return duties.control.controllers

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
        return self._seams.certificates.bits(count)

    def now(self) -> int:
        return self._seams.now()

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
    return HostNetwork(_EngineForNetwork(engine), Journal(Path(config.state_dir) / "net"))


class PlainUnavailable(Unavailable):
    """Plain text at the edge, as Docker's daemon says it."""

    code = ""


async def _address_towards(remotes: list[str]) -> str:
    """The address of ours the way to a manager starts from."""
    for remote in remotes:
        host, _, port = remote.rpartition(":")
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, int(port)))
            address: str = probe.getsockname()[0]
            return address
    return await own_address("", "advertise address")


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
    await daemon.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="swarm-agent", description="A self-healing cluster of Docker Engines."
    )
    parser.add_argument("--config", type=Path, help=f"configuration file (default {DEFAULT_PATH}, if there)")
    parser.add_argument("--version", action="version", version=f"swarm-agent {__version__}")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config or DEFAULT_PATH, must_exist=arguments.config is not None)
        check_devices(config)
    except InvalidSpec as err:
        sys.exit(f"swarm-agent: {err}")
    set_up_logging(config.log_level, config.log_format)
    sys.setswitchinterval(0.0005)
    try:
        uvloop.run(run(config, make_host_network))
    except (SwarmError, OSError, ValueError) as err:
        sys.exit(f"swarm-agent: {err}")


if __name__ == "__main__":
    main()
