"""Whether this host is a member of a swarm: how it becomes one, comes back as one after a start, and ceases to be one.

Owns the files that say so and the one running member there is meanwhile; one change at a time, each done as a whole or not at all.
Refuses to do a member's work (``member``) and to know of HTTP more than the words of a refusal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec

from swarm_agent import __version__
from swarm_agent.addresses import own_address, split_addr
from swarm_agent.agent.describe import check_engine
from swarm_agent.agent.engine_client import EngineClient, EngineError
from swarm_agent.api.router import LOCKED
from swarm_agent.api.swarm import NOT_LOCKED
from swarm_agent.ca import ca
from swarm_agent.ca.identity_files import NodeIdentity, load_certificate, load_identity, save_identity
from swarm_agent.ca.join_server import Issued, IssueRequest, JoinRefused, ask_for_certificate, fetch_root
from swarm_agent.ca.key_file import KeyFile, LockedKeys, load_keys, remove_keys
from swarm_agent.ca.tokens import parse_token
from swarm_agent.config import AgentConfig
from swarm_agent.environment import Environment
from swarm_agent.http.client import EngineUnreachable
from swarm_agent.http.server import HttpError
from swarm_agent.manager.backup import VERSION, BackupHeader, Recovery, seal, unseal
from swarm_agent.manager.manager import Manager
from swarm_agent.manager.rpc_handlers import ServeForwarded
from swarm_agent.network.model import NodeNetwork
from swarm_agent.node.bootstrap import ManagerAddresses, bootstrap, recover
from swarm_agent.node.member import LocalMember
from swarm_agent.node.membership import MembershipRecord, load_membership, save_membership
from swarm_agent.objects import features
from swarm_agent.objects.errors import NoLeader, SwarmError, Unavailable
from swarm_agent.objects.records import Cluster, Node, UnlockKey
from swarm_agent.objects.specs import InitRequest, JoinRequest, RecoverOptions
from swarm_agent.store import Store

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


class LocalNode:
    """``member`` is None while this host is none, or cannot be one yet."""

    def __init__(
        self,
        config: AgentConfig,
        engine: EngineClient,
        network: NodeNetwork,
        serve_forwarded: ServeForwarded,
        new_id: Callable[[], str],
        rng: random.Random,
        environment: Environment,
    ) -> None:
        self._config = config
        self._engine = engine
        self._network = network
        self._serve_forwarded = serve_forwarded
        self._new_id = new_id
        self._rng = rng
        self._environment = environment
        self._state_dir = Path(config.state_dir)
        self.member: LocalMember | None = None
        self._error = ""
        self._pending = False
        self._locked: LockedKeys | None = None  # what an unlock key is wanted for
        self._changing = asyncio.Lock()
        self._tasks: dict[asyncio.Task[None], None] = {}

    # --- what this host is -------------------------------------------------------------------------------------------
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

    # --- coming back ---------------------------------------------------------------------------------------------------
    def resume(self) -> None:
        """Begin to be the member we were, if we were one."""
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        membership = load_membership(self._state_dir)
        if membership is None:
            return
        membership = self._readdressed(membership)
        keys = load_keys(self._state_dir, self._environment.certificates.entropy)
        if isinstance(keys, LockedKeys):
            log.warning('the keys of this manager are locked: use "docker swarm unlock". Containers go on')
            self._locked = keys
            return
        identity = load_identity(self._state_dir, keys)
        if identity is not None:
            self._pending = True
            self._spawn(self._resume(membership, identity, keys))

    def _readdressed(self, membership: MembershipRecord) -> MembershipRecord:
        """With the address the configuration names. The leader learns it as soon as we reach it."""
        host = self._config.advertise_addr
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

    async def stop(self, *, pausing: bool = False) -> None:
        """Let go of everything; it stays the member it is. ``pausing``: it will be back in a moment."""
        if self.member is not None and pausing:
            await self.member.pause()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.member is not None:
            await self.member.stop()

    async def _resume(
        self, membership: MembershipRecord, identity: NodeIdentity, keys: KeyFile | None
    ) -> None:
        """Start the member, again and again while the engine or a port is not there."""
        while True:
            member = self._make_member(membership, identity, keys)
            try:
                await member.start(again=True)
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

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            log.debug("a change of this host's membership ended with an error", exc_info=task.exception())

    def _make_member(
        self, membership: MembershipRecord, identity: NodeIdentity, keys: KeyFile | None
    ) -> LocalMember:
        return LocalMember(
            membership,
            identity,
            self._state_dir,
            self._config,
            self._engine,
            self._network,
            self._serve_forwarded,
            self._new_id,
            self._rng,
            self._was_removed,
            self._environment,
            keys,
            self._config.level,
        )

    def _was_removed(self) -> None:
        """The cluster does not know this node any more: forget the cluster, stop its tasks."""
        self._spawn(self._forget())

    async def _forget(self) -> None:
        async with self._changing:  # nobody joins on this host until the old membership is gone
            member, self.member = self.member, None
            if member is not None:
                await member.cast_out()

    # --- becoming one, ceasing to be one -------------------------------------------------------------------------------
    async def init(self, request: InitRequest) -> str:
        """Found a cluster. Nothing is left behind when it fails."""
        async with self._changing:
            self._must_be_outside()
            await self._check_engine()
            listen_host, port = split_addr(request.listen_addr or "0.0.0.0:2377", self._config.join_port)
            wanted, _ = split_addr(request.advertise_addr or "", port)
            address = self._environment.address
            host = await address(
                wanted or ("" if listen_host == "0.0.0.0" else listen_host), "advertise address"
            )
            data_addr = await address(request.data_path_addr or host, "data path address")
            if request.data_path_port not in (None, 0, 4789):
                raise HttpError(
                    501, "--data-path-port other than 4789 is not supported by this version of swarm-agent"
                )
            place = ManagerAddresses(host, data_addr, listen_host, port, self._config.rpc_port)
            new = bootstrap(request, place, self._new_id, self._environment.certificates, self._config.level)
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
            address = self._environment.address
            was = member.membership
            wanted, _ = split_addr(request.advertise_addr or "", was.join_port)
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
        manager = self.member.manager if self.member is not None else None
        if manager is None:
            raise NoLeader
        assert manager.raft is not None
        try:
            meta, view = await manager.raft.state()
        except SwarmError as err:
            raise Unavailable(
                f"no majority of managers answers, and a backup without it could be old: {err}"
            ) from err
        head = BackupHeader(
            version=VERSION,
            cluster_id=manager.settings.cluster_id,
            created=self._environment.now(),
            index=meta.index,
            feature_level=manager.store.feature_level,
            release=__version__,
            salt=self._environment.certificates.entropy(16),
        )
        return seal(head, key, meta, view)

    async def recover(self, options: RecoverOptions, data: bytes, key: bytes) -> str:
        """Everything is read and checked before anything is written; nothing is left behind when it fails."""
        async with self._changing:
            self._must_be_outside()
            await self._check_engine()
            head, meta, pieces = unseal(data, key)
            if why := features.too_low(self._config.level, head.feature_level):
                raise HttpError(400, f"this backup cannot be recovered here: {why}")
            state = Store(self._config.level)
            state.restore(meta.index, pieces)
            if state.cluster is None:
                raise HttpError(400, "there is no cluster in this backup")
            listen_host, port = split_addr(options.listen_addr or "0.0.0.0:2377", self._config.join_port)
            wanted, _ = split_addr(options.advertise_addr or "", port)
            address = self._environment.address
            host = await address(wanted, "advertise address")
            data_addr = await address(options.data_path_addr or host, "data path address")
            place = ManagerAddresses(host, data_addr, listen_host, port, self._config.rpc_port)
            new = recover(state.cluster, place, self._new_id, self._environment.certificates)
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
            listen_host, port = split_addr(request.listen_addr or "0.0.0.0:2377", self._config.join_port)
            wanted, _ = split_addr(request.advertise_addr or "", port)
            remotes = [":".join(map(str, split_addr(r, 2377))) for r in request.remote_addrs or ()]
            address = self._environment.address
            host = await address(wanted, "advertise address") if wanted else await _address_towards(remotes)
            data_addr = await address(request.data_path_addr or host, "data path address")
            identity, issued = await self._get_certificate(
                remotes, token, request.availability or "", hostname
            )
            membership = MembershipRecord(
                cluster_id=issued.cluster_id,
                node_id=issued.node_id,
                role=issued.role,
                advertise_host=host,
                listen_host=listen_host,
                join_port=port,
                data_addr=data_addr,
                managers=issued.managers,
            )
            member = await self._become(membership, identity, None)
            if not await self._joined(member):
                raise PlainUnavailable(JOIN_TIMEOUT)

    async def _joined(self, member: LocalMember) -> bool:
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
        key, csr = ca.make_request(self._environment.certificates)
        request = IssueRequest(
            csr=csr,
            token=token,
            availability=availability,
            hostname=hostname,
            clock=self._environment.now(),
            feature_level=self._config.level,
        )
        error: SwarmError = Unavailable("no manager to join was named")
        for addr in remotes:
            try:
                root = await fetch_root(self._environment.join_transport, addr, token)
                issued = await ask_for_certificate(self._environment.join_transport, addr, root, request)
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
        membership: MembershipRecord,
        identity: NodeIdentity,
        founding: tuple[Cluster, Node] | None,
        recovery: Recovery | None = None,
        unlock: UnlockKey | None = None,
    ) -> LocalMember:
        """``founding``, ``recovery``: with it a cluster begins. Its unlock key, if it has one, locks our keys before they reach the disk."""
        if unlock is None:
            unlock = founding[0].unlock if founding is not None else UnlockKey()
        keys: KeyFile | None = None
        try:
            remove_keys(self._state_dir)
            if membership.role == "manager":
                keys = KeyFile.create(
                    self._state_dir,
                    self._environment.certificates.entropy,
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
            await member.leave(force=force)

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

    def _leave_warning(self, member: LocalMember) -> str:
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
            info = await self._engine.call("GET", "/info")
            check_engine(info)
        except EngineUnreachable as err:
            raise PlainUnavailable(f"{err}. Start it (systemctl start docker) and try again") from err
        except EngineError as err:
            raise PlainUnavailable(f"the Docker Engine does not work: {err}") from err
        return str(info.get("Name", ""))


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
