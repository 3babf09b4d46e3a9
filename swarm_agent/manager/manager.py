"""A manager's parts and their life: Raft, store, RPC server, join server, and what it runs while it leads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from swarm_agent.ca.ca import Subject
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.ca.join_server import Issued, IssueRequest, JoinServer
from swarm_agent.ca.key_file import KeyFile
from swarm_agent.environment import Environment
from swarm_agent.manager import leaderless
from swarm_agent.manager.backup import Recovery
from swarm_agent.manager.certificate_issuer import CertificateIssuer
from swarm_agent.manager.key_manager import KeyManager
from swarm_agent.manager.leadership import Leadership
from swarm_agent.manager.log_broker import LogBroker
from swarm_agent.manager.role_manager import admit
from swarm_agent.manager.rpc_handlers import RpcHandlers, ServeForwarded
from swarm_agent.objects import defaults, features
from swarm_agent.objects.errors import (
    NodeRemoved,
    NoLeader,
    NotLeading,
    PermissionDenied,
    SwarmError,
    Unavailable,
)
from swarm_agent.objects.records import Cluster, Node, Task
from swarm_agent.raft import (
    Disk,
    LoopHost,
    Member,
    NotLeader,
    RaftConfig,
    RaftNode,
    RaftStatus,
    Retention,
    run_on,
)
from swarm_agent.raft.force_new_cluster import begin_from, stand_alone
from swarm_agent.raft.node import Begin
from swarm_agent.rpc.grpc import Client, NotTaken, Redirect
from swarm_agent.rpc.messages import (
    ForwardedAnswer,
    ForwardedCall,
    IssueFor,
    LogPiece,
)
from swarm_agent.rpc.raft_transport import PeerTransport
from swarm_agent.store import ApplyResult, Group, Put, Store, StoreEntry, encode_entry

log = logging.getLogger(__name__)

RETRY_S = 0.05
LEADER_WAIT_S = 5.0  # how long a call waits out an election before it says there is no leader


class ManagerSettings(msgspec.Struct, frozen=True):
    """What a manager needs to know of its host."""

    node_id: str
    cluster_id: str
    raft_id: int
    listen_host: str
    join_port: int
    rpc_port: int
    raft_port: int
    advertise_host: str
    raft_dir: Path
    timing: str = "lan"
    feature_level: int = features.LEVEL

    @property
    def rpc_addr(self) -> str:
        return f"{self.advertise_host}:{self.rpc_port}"

    @property
    def manager_addr(self) -> str:
        return f"{self.advertise_host}:{self.join_port}"


def _beginning(me: Member, recovery: Recovery | None, *, alone: bool) -> Begin | None:
    if recovery is not None:
        return lambda log_, found: begin_from(log_, found, me, recovery.meta, recovery.pieces)
    return (lambda log_, found: stand_alone(log_, found, me)) if alone else None


class Manager:
    """One manager. ``start`` it after construction; ``serve_forwarded`` is the API's answer to calls followers pass on."""

    def __init__(
        self,
        settings: ManagerSettings,
        identity: Callable[[], NodeIdentity],
        serve_forwarded: ServeForwarded,
        new_id: Callable[[], str],
        rng: random.Random,
        environment: Environment,
        keys: KeyFile,
        renew: Callable[[], Awaitable[None]],
    ) -> None:
        self.settings = settings
        self.environment = environment
        self.store = Store(settings.feature_level)
        self.new_id = new_id
        self._identity = identity
        self._serve_forwarded = serve_forwarded
        self._rng = rng
        self._transport = PeerTransport(identity, environment.links, settings.raft_port, self.admit)
        self._home: LoopHost | None = None
        self._disk: Disk | None = None
        self.raft: RaftNode | None = None
        self.leadership: Leadership | None = None
        self._authority = CertificateIssuer(self.store, self.propose, new_id, environment.certificates)
        self._unwatch_cluster: Callable[[], None] = lambda: None
        self.keys = KeyManager(self.store, keys, renew, environment.certificates.entropy)
        self.logs = LogBroker(new_id)
        surface = RpcHandlers(self, self._authority, serve_forwarded)
        self._rpc = environment.rpc.server(identity, surface.allow, surface.methods())
        self._door = JoinServer(identity, self.issue, environment.join_transport)
        self._clients: dict[str, Client] = {}
        self._leading = asyncio.Lock()
        self._changed = asyncio.Event()
        self._follow: asyncio.Task[None] | None = None
        self._resigning: asyncio.Task[None] | None = None
        self._serving = False
        self._leaderless_since: float | None = None

    # --- life ----------------------------------------------------------------------------------------------------
    async def start(
        self,
        founding: tuple[Cluster, Node] | None = None,
        *,
        recovery: Recovery | None = None,
        alone: bool = False,
    ) -> None:
        """Recover or found (``founding``: the first records; ``recovery``: from a backup), then serve. ``alone``: go on without all
        other managers.

        Raises:
            Unavailable: a port is taken; nothing is left running.
        """
        settings = self.settings
        try:
            await self._rpc.start(f"{settings.listen_host}:{settings.rpc_port}")
            try:
                await self._door.start(settings.listen_host, settings.join_port)
            except OSError as err:
                raise Unavailable(
                    f"cannot listen on {settings.listen_host}:{settings.join_port}: {err.strerror}. "
                    "Free the port or set join_port in the agent's configuration"
                ) from err
            self._serving = True
            home = self._home = self.environment.home()
            home.enter()
            await run_on(home, lambda: self._transport.start(settings.listen_host))
            settings.raft_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._disk = self.environment.disk(settings.raft_dir)
            me = Member(raft_id=settings.raft_id, node_id=settings.node_id, addr=settings.rpc_addr)
            self.raft = await RaftNode.start(
                RaftConfig(
                    cluster_id=settings.cluster_id,
                    raft_id=settings.raft_id,
                    node_id=settings.node_id,
                    addr=settings.rpc_addr,
                ).timed(settings.timing),
                disk=self._disk,
                transport=self._transport,
                fsm=self.store,
                rng=self._rng,
                bootstrap=me if founding is not None else None,
                codec=self.keys.codec,
                begin=_beginning(me, recovery, alone=alone),
                home=home,
            )
            await self._begin_work(self.raft, founding, recovery, alone=alone)
        except BaseException:
            await self.stop()
            raise

    async def _begin_work(
        self,
        raft: RaftNode,
        founding: tuple[Cluster, Node] | None,
        recovery: Recovery | None,
        *,
        alone: bool,
    ) -> None:
        self._transport.receive = raft.receive
        self._transport.lost = raft.peer_lost
        self._leaderless_since = asyncio.get_running_loop().time()
        raft.on_change(self._on_raft_change)
        self._on_raft_change(raft.status())
        assert self._disk is not None
        self.keys.start(raft, self._disk)
        self._unwatch_cluster = self.store.watch(lambda *_: self._retain(), Cluster)
        self._retain()
        self._follow = asyncio.create_task(self._follow_leadership(), name="follow leadership")
        self._changed.set()
        if founding is not None:
            await self.wait_until(lambda: self.is_leader, 20.0, "to lead the new cluster")
            if self.store.cluster is None:
                await self.propose((Group("founding", tuple(Put(r, 0) for r in founding)),))
        if recovery is not None:
            await self.wait_until(lambda: self.is_leader, 20.0, "to lead the recovered cluster")
            await self._settle(recovery.node)
        if alone:
            await self.wait_until(lambda: self.is_leader, 20.0, "to lead alone")
            await self._stay_manager()
            await self.tell_addresses()

    def _retain(self) -> None:
        """What of Raft's log and snapshots is kept, as the cluster's spec says."""
        if self.raft is None or self.store.cluster is None:
            return
        wanted = defaults.cluster_defaults(self.store.cluster.spec).raft
        self.raft.retain(
            Retention(
                wanted.snapshot_interval or defaults.SNAPSHOT_INTERVAL,
                wanted.log_entries_for_slow_followers or defaults.SLOW_FOLLOWER_ENTRIES,
                wanted.keep_old_snapshots or 0,
            )
        )

    async def _settle(self, own: Node) -> None:
        """This node is the only manager. The former ones stay known, as workers that are away: whoever returns is one, and may be promoted."""
        while True:
            rows = [own] if self.store.nodes.get(own.id) is None else []
            for node in self.store.nodes.all():
                if node.id != own.id and "manager" in (node.role, node.spec.role):
                    spec = msgspec.structs.replace(node.spec, role="worker")
                    rows.append(
                        msgspec.structs.replace(
                            node, spec=spec, role="worker", raft_id=0, rpc_addr="", manager_addr=""
                        )
                    )
            if not rows:
                return
            await self.propose(tuple(Group(f"node/{row.id}", (Put(row, row.version),)) for row in rows))

    async def _stay_manager(self) -> None:
        """A demotion that was asked for before the majority went cannot be done by the last manager."""
        while True:
            node = self.store.nodes.get(self.settings.node_id)
            if node is None or (node.role, node.spec.role) == ("manager", "manager"):
                return
            spec = msgspec.structs.replace(node.spec, role="manager")
            changed = msgspec.structs.replace(node, spec=spec, role="manager")
            await self.propose((Group(f"node/{node.id}", (Put(changed, node.version),)),))

    async def tell_addresses(self) -> None:
        settings = self.settings
        assert self.raft is not None
        await admit(
            self.raft,
            self.store,
            self.propose,
            settings.node_id,
            settings.raft_id,
            settings.rpc_addr,
            settings.manager_addr,
            settings.feature_level,
        )

    async def certificate_renewed(self) -> None:
        """Whoever connects from now on sees it.

        Ways to leaders are opened anew: a channel that reconnects years later would still show the old one. Calls
        that run on an old one keep it until they end.
        """
        self._clients.clear()
        if self._home is not None:
            self._home.raft.put(self._transport.renewed)
        self._rpc.renewed()
        await self._door.renewed()

    async def wait_failed(self) -> None:
        """Return when Raft ended without being asked to, as when the disk is full."""
        assert self.raft is not None
        await self.raft.wait_closed(quietly=True)

    async def stop(self) -> None:
        """Hand over what can be handed over, then close. Containers and networks of the host are not our business."""
        following = [task for task in (self._follow, self._resigning) if task is not None]
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        self._unwatch_cluster()
        await self.keys.stop()
        if self.leadership is not None:
            await self.leadership.stop()
            self.leadership = None
        if self.raft is not None:
            await self.raft.stop(transfer=True)
        if self._serving:
            await self._door.stop()
        await self._rpc.stop()
        if self._home is not None:
            await run_on(self._home, self._transport.stop)
            home, self._home = self._home, None  # a second stop finds its mailboxes closed
            await home.leave()
        for client in self._clients.values():
            await client.close()
        self._clients.clear()
        if self._disk is not None:
            self._disk.close()
            self._disk = None

    # --- leadership ------------------------------------------------------------------------------------------------
    @property
    def status(self) -> RaftStatus:
        assert self.raft is not None, "the manager is not started"
        return self.raft.status()

    @property
    def is_leader(self) -> bool:
        """Leads and has caught up with its own log: may decide."""
        return self.leadership is not None

    @property
    def works(self) -> bool:
        """Leads, or follows a leader it knows. One that has just won leads once an entry of its own is on its disk."""
        status = self.status
        if status.failure or status.leader is None:
            return False
        return self.is_leader or status.leader.raft_id != self.settings.raft_id

    @property
    def lost(self) -> str:
        """Who is missing and what can be done, once there was no leader for longer than an election takes; "" while all is well."""
        since = self._leaderless_since
        if since is None or asyncio.get_running_loop().time() - since < LEADER_WAIT_S:
            return ""
        voters = [m for m in self.status.members if not m.learner]
        if all(m.raft_id != self.settings.raft_id for m in voters):
            return "this manager has not heard from the swarm yet: see that another manager runs and is reachable"
        reached = self._transport.reached()
        others = [
            leaderless.Other(self._name_of(m.node_id), m.addr.rpartition(":")[0], m.raft_id in reached)
            for m in voters
            if m.raft_id != self.settings.raft_id
        ]
        return leaderless.say(others, self.settings.raft_port)

    def _name_of(self, node_id: str) -> str:
        node = self.store.nodes.get(node_id)
        return node.description.hostname if node is not None and node.description.hostname else node_id

    def _on_raft_change(self, status: RaftStatus) -> None:
        if status.leader is not None:
            self._leaderless_since = None
        elif self._leaderless_since is None:
            self._leaderless_since = asyncio.get_running_loop().time()
        if self._home is not None:
            self._home.raft.put(self._transport.keep, frozenset(m.raft_id for m in status.members))
        self._changed.set()

    async def _follow_leadership(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            leads = self.status.role == "leader"
            if leads and self.leadership is None:
                assert self.raft is not None
                try:
                    await self.raft.read_barrier()
                except SwarmError as err:
                    log.info("cannot lead yet: %s", err)
                    await asyncio.sleep(RETRY_S)
                    self._changed.set()
                    continue
                if self.status.role == "leader":
                    log.info("this manager leads now", extra={"node": self.settings.node_id})
                    self.leadership = Leadership(
                        self.raft, self.store, self.propose, self.new_id, self.now, self.settings.node_id
                    )
                    self.leadership.task.add_done_callback(self._leadership_ended)
            elif not leads and self.leadership is not None:
                log.info("this manager leads no more", extra={"node": self.settings.node_id})
                leadership, self.leadership = self.leadership, None
                await leadership.stop()

    def _leadership_ended(self, task: asyncio.Task[None]) -> None:
        """A leader whose leadership failed must not stay leader: another may do better."""
        if task.cancelled() or task.exception() is None:
            return
        log.error("leadership failed, handing leadership over", exc_info=task.exception())
        if self.leadership is None or self.leadership.task is not task:
            return  # it ended because leadership did, which is known already
        self._resigning = asyncio.create_task(self._resign(self.leadership), name="resign")

    async def _resign(self, failed: Leadership) -> None:
        if self.leadership is failed:
            self.leadership = None
        await failed.stop()
        assert self.raft is not None
        with contextlib.suppress(SwarmError):
            await self.raft.transfer()
        await asyncio.sleep(RETRY_S)  # what fails at once must not fail without a pause
        self._changed.set()  # alone we go on with a new leadership

    async def wait_until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    await asyncio.sleep(0.01)
        except TimeoutError as err:
            raise Unavailable(f"waited {seconds:g} s {what}, in vain: see this node's log") from err

    def now(self) -> int:
        """The clock decisions are made by: never behind what is written, whoever led then with whatever clock."""
        return max(self.environment.now(), self.store.now)

    # --- state -----------------------------------------------------------------------------------------------------
    async def propose(self, groups: tuple[Group, ...]) -> ApplyResult:
        """Commit an entry; its result once it is applied here. NotLeading when this manager does not lead."""
        assert self.raft is not None
        try:
            result = await self.raft.propose(encode_entry(StoreEntry(self.now(), groups)))
        except NotLeader as err:
            raise NotLeading from err
        assert isinstance(result, ApplyResult)
        return result

    async def read_barrier(self) -> None:
        """After this, reads of the local store see everything acknowledged before."""
        assert self.raft is not None
        try:
            async with asyncio.timeout(LEADER_WAIT_S):
                await self.raft.read_barrier()
        except NotLeader as err:
            raise NotLeading from err
        except TimeoutError as err:
            raise NoLeader from err

    async def leader_addr(self) -> str:
        """The leader's RPC address, waiting out a short election; NoLeader when there is none."""
        deadline = asyncio.get_running_loop().time() + LEADER_WAIT_S
        while asyncio.get_running_loop().time() < deadline:
            leader = self.status.leader
            if leader is not None and (leader.raft_id != self.settings.raft_id or self.is_leader):
                return leader.addr
            await asyncio.sleep(0.02)
        raise NoLeader

    async def _leader_client(self) -> Client:
        addr = await self.leader_addr()
        client = self._clients.get(addr)
        if client is None:
            client = self._clients[addr] = self.environment.rpc.client(addr, self._identity())
        return client

    async def forward(self, call: ForwardedCall) -> AsyncIterator[ForwardedAnswer]:
        """Have the leader answer an API call; this manager may have become it meanwhile.

        While nobody took the call it is offered again, to whoever leads by then; once a leader took it, its outcome
        is the leader's word or unknown, and it is never sent twice.
        """
        deadline = asyncio.get_running_loop().time() + LEADER_WAIT_S
        while True:
            try:
                if await self.leader_addr() == self.settings.rpc_addr:
                    async for piece in self._serve_forwarded(call):
                        yield piece
                    return
                client = await self._leader_client()
                stream = client.download("Forward", call)
                await stream.connected()
                async for piece in stream:
                    yield piece
            except (Redirect, NotTaken, NotLeading):
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.02)
            else:
                return

    # --- who is served, and by whom ----------------------------------------------------------------------------------
    def admit(self, caller: Subject) -> None:
        """What holds of every call, and for Raft's links too; called on either loop, reads single rows only.

        The node table cannot decide there: it comes through Raft, and a manager that missed a promotion while it was
        away would refuse the very leader that could tell it. Raft itself knows which members were let go.
        """
        if caller.cluster_id != self.settings.cluster_id:
            raise PermissionDenied("Permission denied: remote certificate is of another cluster")
        cluster = self.store.cluster
        if cluster is not None and caller.node_id in cluster.removed_nodes:
            raise NodeRemoved(f"Permission denied: node {caller.node_id} was removed from swarm")

    def must_lead(self) -> Leadership:
        """Our leadership, or at once a redirect to whoever leads: the caller knows other managers to ask."""
        if self.leadership is None:
            leader = self.status.leader if self.raft is not None else None
            if leader is None or leader.raft_id == self.settings.raft_id:
                raise NotTaken("this manager knows no leader now")
            raise Redirect(leader.addr)
        return self.leadership

    async def issue(self, request: IssueRequest) -> Issued:
        """The join server's call: here when we lead, else at the leader."""
        if self.is_leader:
            return await self._authority.issue(request)
        client = await self._leader_client()
        issued: Issued = await client.unary("Issue", IssueFor(request))
        return issued

    # --- what the API asks ---------------------------------------------------------------------------------------------
    async def read_logs(self, tasks: list[Task], query: dict[str, str]) -> AsyncIterator[LogPiece]:
        leadership = self.must_lead()
        async for piece in self.logs.read(leadership.dispatcher, tasks, query):
            yield piece

    def may_lose(self, node_id: str) -> bool:
        """Whether enough reachable voters remain without this manager."""
        status = self.status
        voters = [m for m in status.members if not m.learner]
        active = {p.raft_id for p in status.peers if p.active} | {status.raft_id}
        left = [m for m in voters if m.node_id != node_id]
        return sum(1 for m in left if m.raft_id in active) >= len(left) // 2 + 1
