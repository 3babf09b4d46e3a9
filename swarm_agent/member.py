"""This host as a member of a swarm: its identity, its worker side, its session, and its manager side while it has one.

Owns the order in which these start, change role and end. ``daemon.py`` owns the process around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from swarm_agent.config import AgentConfig
from swarm_agent.identity import ca
from swarm_agent.identity.door import Issued
from swarm_agent.identity.door import Manager as ManagerAddress
from swarm_agent.identity.files import NodeIdentity, remove_identity, save_identity
from swarm_agent.identity.keyfile import KeyFile, remove_keys
from swarm_agent.manager.archive import Recovery
from swarm_agent.manager.manager import Manager, ManagerSettings, ServeForwarded
from swarm_agent.membership import Membership, forget_membership, save_membership
from swarm_agent.network.model import NetworkView, NodeNetwork
from swarm_agent.node.container import container_name
from swarm_agent.node.contents import Piece
from swarm_agent.node.describe import describe, volume_events
from swarm_agent.node.engine import Engine, EngineError, EngineUnreachable
from swarm_agent.node.lease import Lease
from swarm_agent.node.worker import Assignment, Worker
from swarm_agent.objects import features
from swarm_agent.objects.errors import FailedPrecondition, ReleaseTooOld, SwarmError, Unavailable
from swarm_agent.objects.records import Cluster, Node, NodeDescription, TaskStatus
from swarm_agent.seams import Seams
from swarm_agent.session.agent import SessionAgent
from swarm_agent.session.rpc import Redirect
from swarm_agent.session.wire import Hello, JoinRaft, Leave, LogPiece, LogsWanted, Renew

log = logging.getLogger(__name__)

DESCRIBE_EVERY_S = 20.0
RECHECK_EVERY_S = 60.0
ROLE_WAIT_S = 20.0
RETRY_S = 0.5
FAILED_RETRY_S = 5.0  # between attempts to bring a failed raft member back
RENEW_AT = (0.5, 0.8)  # of a certificate's life, drawn at random between


class Member:
    """See the module. Implements ``session.agent.Orders``."""

    def __init__(
        self,
        membership: Membership,
        identity: NodeIdentity,
        state_dir: Path,
        config: AgentConfig,
        engine: Engine,
        network: NodeNetwork,
        serve_forwarded: ServeForwarded,
        new_id: Callable[[], str],
        rng: random.Random,
        on_removed: Callable[[], None],
        seams: Seams,
        keys: KeyFile | None,
        level: int = features.LEVEL,
    ) -> None:
        self._seams = seams
        self._keys = keys  # a manager's, and of one on its way down until its certificate says so
        self._level = level
        self._outgrown = (
            False  # the cluster is above our feature level: no manager side until we are started anew
        )
        self.membership = membership
        self._saved = membership  # as it is on disk
        self.identity = identity
        self._state_dir = state_dir
        self._config = config
        self._engine = engine
        self._network = network
        self._serve_forwarded = serve_forwarded
        self._new_id = new_id
        self._rng = rng
        self._on_removed = on_removed
        self.manager: Manager | None = None
        self._ending: Manager | None = None
        self._description = NodeDescription()
        self.session = SessionAgent(
            self, lambda: self.identity, self._known_managers, self._hello, rng, seams.rpc
        )
        self.worker = Worker(
            membership.node_id,
            engine,
            network,
            self.session.report,
            seams.files,
            seams.now,
            Lease(engine, seams.guard(config.engine_socket), seams.boottime),
            seams.port_is_free,
        )
        self._tasks: dict[asyncio.Task[None], None] = {}  # in order, so that they end in order
        self._role_lock = asyncio.Lock()
        self.node: Node | None = None
        self.trouble = ""  # why this manager cannot serve, "" when it can
        self._view: NetworkView | None = None
        self._view_done: NetworkView | None = None
        self._view_news = asyncio.Event()
        self._view_applied = asyncio.Event()
        self._describe_now = asyncio.Event()

    # --- life ----------------------------------------------------------------------------------------------------
    async def start(
        self, founding: tuple[Cluster, Node] | None = None, recovery: Recovery | None = None
    ) -> None:
        """Bring everything up. ``founding``: this host starts a new cluster; ``recovery``: an old one from a backup."""
        try:
            await self._describe()
            if self.membership.role == "manager":
                try:
                    await self._start_manager(founding, recovery=recovery)
                except ReleaseTooOld as err:
                    self._refuse(err)
            self._drop_keys_of_a_worker()
            await self._network.start()
            await self.worker.start()
        except BaseException:
            await self.stop()
            raise
        self._spawn(self.session.run(), "session")
        self._spawn(self._apply_views(), "network")
        self._spawn(self._keep_network(), "network check")
        self._spawn(self._keep_described(), "describe")
        self._spawn(self._watch_volumes(), "volume events")
        self._spawn(self._keep_certificate(), "certificate")

    async def stop(self) -> None:
        """Let go of everything. Containers, networks and the data path go on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.worker.stop()
        await self._network.stop()
        for manager in (self.manager, self._ending):  # one that was being ended may have been cut short
            if manager is not None:
                await self._end(manager)
        self.manager = None

    async def wait_connected(self, seconds: float) -> bool:
        """Whether a session was open within this time."""
        try:
            async with asyncio.timeout(seconds):
                await self.session.connected.wait()
        except TimeoutError:
            return False
        return True

    def _spawn(self, work: object, name: str) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)  # type: ignore[arg-type]
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s failed", task.get_name(), exc_info=task.exception())

    # --- the manager side ------------------------------------------------------------------------------------------
    async def stand_alone(self, host: str, data_addr: str) -> None:
        """Go on as the only manager, with everything this one has: the others are gone for good, or are told when they return.

        ``host``, ``data_addr``: where this host stands from now on. When it fails, the manager is started again with what is on its disk by
        then: the others may be removed already.
        """
        async with self._role_lock:
            manager, self.manager = self.manager, None
            if manager is None:
                raise FailedPrecondition("this node has no running manager to go on with")
            log.warning("this manager goes on alone: all others are removed")
            await self._end(manager)
            before = self.membership
            try:
                self._remember(advertise_host=host, data_addr=data_addr)
                await self._start_manager(alone=True)
            except BaseException:
                self._remember(advertise_host=before.advertise_host, data_addr=before.data_addr)
                await self._start_manager()
                raise

    async def _start_manager(
        self,
        founding: tuple[Cluster, Node] | None = None,
        *,
        recovery: Recovery | None = None,
        alone: bool = False,
    ) -> None:
        if not self.membership.raft_id:
            self._remember(raft_id=self._rng.getrandbits(62) | 1)
        settings = ManagerSettings(
            node_id=self.membership.node_id,
            cluster_id=self.membership.cluster_id,
            raft_id=self.membership.raft_id,
            listen_host=self.membership.listen_host,
            front_door_port=self.membership.front_door_port,
            rpc_port=self._config.rpc_port,
            raft_port=self._config.raft_port,
            timing=self._config.timing,
            advertise_host=self.membership.advertise_host,
            raft_dir=self._state_dir / "raft",
            feature_level=self._level,
        )
        if self._keys is None:
            self._keys = KeyFile.create(
                self._state_dir,
                self._seams.certificates.entropy,
                plain_log=any(settings.raft_dir.glob("*.wal")),  # of a release that did not encrypt
            )
        manager = Manager(
            settings,
            lambda: self.identity,
            self._serve_forwarded,
            self._new_id,
            self._rng,
            self._seams,
            self._keys,
            self._renew,
        )
        await manager.start(founding, recovery=recovery, alone=alone)
        self.manager = manager
        if founding is None:
            self._spawn(self._join_raft(manager), "join raft")
        self._spawn(self._watch_removal(manager), "watch removal")
        self._spawn(self._watch_failure(manager), "watch raft")

    async def _join_raft(self, manager: Manager) -> None:
        """Ask whoever leads to take us in (or to learn our address), until it is done."""
        settings = manager.settings
        request = JoinRaft(settings.raft_id, settings.rpc_addr, settings.manager_addr, self._level)
        while self.manager is manager:
            try:
                if manager.is_leader:
                    await manager.tell_addresses()  # ours may be new: nobody else would tell
                else:
                    await self._ask_leader("JoinRaft", request, 15.0)
            except ReleaseTooOld as err:
                await self._give_up(manager, err)
                return
            except SwarmError as err:
                log.info("not yet a member of raft: %s", err)
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _give_up(self, manager: Manager, why: ReleaseTooOld) -> None:
        """The cluster went on without us. What we have stays as it is, for the release that can read on."""
        async with self._role_lock:
            if self.manager is manager:
                self.manager = None
                self._refuse(why)
                await self._end(manager)

    async def _end(self, manager: Manager) -> None:
        """Stop it; remembered until it has stopped, or its ports would stay open when whoever does this is cancelled."""
        self._ending = manager
        await manager.stop()
        self._ending = None

    def _refuse(self, why: ReleaseTooOld) -> None:
        self._outgrown = True
        self.trouble = f"this node does not work as a manager: {why}. Its data is untouched"
        log.error("%s", self.trouble, extra={"node": self.membership.node_id})

    async def _watch_removal(self, manager: Manager) -> None:
        """Raft let us go: stop being a manager, the rest of the role change follows by session."""
        while self.manager is manager and not manager.status.removed:
            await asyncio.sleep(RETRY_S)
        if self.manager is manager:
            async with self._role_lock:
                await self._end_manager()
            await self._follow_role()

    async def _watch_failure(self, manager: Manager) -> None:
        """Raft ended by itself (a full disk, a failing one): say so, and come back once it works again.

        The tasks of this host run on meanwhile; the other managers go on without us.
        """
        await manager.wait_failed()
        if self.manager is not manager or manager.status.removed:
            return
        if manager.store.refused:
            await self._give_up(manager, ReleaseTooOld(manager.store.refused))
            return
        self.trouble = f"this manager's raft member stopped: {manager.status.failure}"
        log.error("%s", self.trouble)
        async with self._role_lock:
            self.manager = None
            await self._end(manager)
            while self.membership.role == "manager":
                await asyncio.sleep(FAILED_RETRY_S)
                try:
                    await self._start_manager()
                except (SwarmError, OSError) as err:
                    self.trouble = f"this manager's raft member cannot start: {err}"
                    log.error("%s", self.trouble)
                else:
                    self._spawn(self._watch_recovery(self.manager), "watch recovery")
                    return

    async def _watch_recovery(self, manager: Manager | None) -> None:
        """The trouble is over once it leads or follows. That it started proves nothing: a full disk can be read."""
        while manager is not None and self.manager is manager and not manager.works:
            await asyncio.sleep(RETRY_S)
        if manager is not None and self.manager is manager:
            self.trouble = ""

    async def _end_manager(self) -> None:
        manager, self.manager = self.manager, None
        if manager is None and not self._outgrown:
            return
        log.info("this node is no manager any more")
        if manager is not None:
            await self._end(manager)
        if self._outgrown:
            self._outgrown, self.trouble = False, ""
        shutil.rmtree(self._state_dir / "raft", ignore_errors=True)
        self._remember(raft_id=0)

    def _role_fits(self, node: Node) -> bool:
        """Whether certificate and manager side are as our record says. One on its way down is not brought up again."""
        if node.role != self.identity.subject.role:
            return False
        if self._outgrown:
            return node.role == "manager"
        if self.manager is None:
            return node.role == "worker" or node.spec.role == "worker"
        return node.role == "manager"

    async def _follow_role(self) -> None:
        """Make certificate and manager side fit the role our record has by now: it may change while we are at it."""
        async with self._role_lock:
            while self.node is not None and not self._role_fits(self.node):
                try:
                    await self._step_towards(self.node)
                except (SwarmError, OSError) as err:
                    log.info("cannot become a %s yet: %s", self.node.role, err)
                    await asyncio.sleep(RETRY_S)
            self._drop_keys_of_a_worker()

    async def _step_towards(self, node: Node) -> None:
        if node.role == "worker" and (self.manager is not None or self._outgrown):
            self._remember(role="worker")
            await self._end_manager()
        elif node.role != self.identity.subject.role:
            await self._renew()
            if node.role != self.identity.subject.role:
                await asyncio.sleep(RETRY_S)  # the record has changed again, news of it is on the way
        elif self.manager is None:
            self._remember(role="manager")
            await self._start_manager()

    def _drop_keys_of_a_worker(self) -> None:
        """No lock on a worker: its private key is plain by now, and no log is left to read."""
        if self._keys is not None and self.manager is None and self.identity.subject.role == "worker":
            save_identity(self._state_dir, self.identity)
            remove_keys(self._state_dir)
            self._keys = None

    # --- certificates ------------------------------------------------------------------------------------------------
    async def _renew(self) -> None:
        key, csr = ca.make_request(self._seams.certificates)
        issued: Issued = await self._ask_leader("Renew", Renew(csr), 10.0)
        renewed = NodeIdentity(key, issued.cert, self.identity.root)
        # first: a start after the old one's end must find the new one
        save_identity(self._state_dir, renewed, self._keys)
        self.identity = renewed
        if self.manager is not None:
            await self.manager.certificate_renewed()
        log.info("certificate renewed, role %s", issued.role)

    async def _keep_certificate(self) -> None:
        """Renew somewhere between half and four fifths of a certificate's life."""
        while True:
            life = ca.life_of(self.identity.cert)
            at = life.begins + int((life.ends - life.begins) * self._rng.uniform(*RENEW_AT))
            while self._seams.now() < at and ca.life_of(self.identity.cert) == life:
                await asyncio.sleep(min(60.0, max(0.1, (at - self._seams.now()) / 1e9)))
            if ca.life_of(self.identity.cert) != life:
                continue
            try:
                await self._renew()
            except (SwarmError, OSError) as err:
                log.warning("cannot renew the certificate, trying again: %s", err)
                await asyncio.sleep(30.0)

    async def _ask_leader(self, name: str, request: object, timeout_s: float) -> Any:
        """A call only the leader answers; any manager may send us on to it."""
        addresses = [m.rpc_addr for m in self._known_managers() if m.rpc_addr]
        if self.session.leader:
            addresses.insert(0, self.session.leader)
        error: SwarmError = Unavailable("no manager is known")
        for addr in dict.fromkeys(addresses):
            target = addr
            for _ in range(3):
                client = self._seams.rpc.client(target, self.identity)
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
        return Hello(
            self._description,
            self.membership.data_addr,
            manager.settings.manager_addr if manager is not None else "",
            manager.settings.rpc_addr if manager is not None else "",
            self._level,
        )

    async def _describe(self) -> None:
        self._description = await describe(
            self._engine, ca.issuer_of(self.identity.root), self._config.generic
        )

    async def _watch_volumes(self) -> None:
        async for _ in volume_events(self._engine):
            self._describe_now.set()

    async def _keep_described(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DESCRIBE_EVERY_S):
                    await self._describe_now.wait()
            self._describe_now.clear()
            before = self._description
            try:
                await self._describe()
            except (EngineError, EngineUnreachable) as err:
                log.warning("cannot describe this node: %s", err)
                continue
            if self._description != before:
                self.session.described(self._description)

    def _remember(self, **changes: object) -> None:
        """Change our membership, on disk first."""
        changed = msgspec.structs.replace(self.membership, **changes)
        if changed != self._saved:
            save_membership(self._state_dir, changed)
            self._saved = changed
        self.membership = changed

    # --- Orders: what a manager tells us -------------------------------------------------------------------------------
    async def assign(self, full: bool, assignments: tuple[Assignment, ...], removed: tuple[str, ...]) -> None:
        await self._view_ready()
        await self.worker.assign(full, assignments, removed)

    async def contents(self, pieces: tuple[Piece, ...]) -> None:
        self.worker.take(pieces)

    async def network(self, view: NetworkView) -> None:
        """The latest view counts; one that is overtaken is never applied."""
        self._view = view
        self._view_news.set()

    async def _apply_views(self) -> None:
        while True:
            await self._view_news.wait()
            self._view_news.clear()
            view = self._view
            if view is None:
                continue
            try:
                await self._network.apply(view)
            except SwarmError as err:
                log.error("%s", err)
                self._spawn(self._apply_again(), "apply again")
            except Exception:  # a bug of ours in one view must not end the network of this host
                log.exception("the network of this node could not be set up")
                self._spawn(self._apply_again(), "apply again")
            self._view_done = view
            self._view_applied.set()

    async def _keep_network(self) -> None:
        """Against drift: other programs change firewalls and links too. Look at everything once in a while."""
        while True:
            await asyncio.sleep(RECHECK_EVERY_S)
            await self._network.recheck()
            self._view_news.set()

    async def _apply_again(self) -> None:
        """What failed is tried again for as long as it is wanted; tasks that do not need it go on meanwhile."""
        await asyncio.sleep(RETRY_S)
        self._view_news.set()

    async def _view_ready(self) -> None:
        """Tasks need the networks of the view that came before them."""
        wanted = self._view
        while self._view_done is not wanted and self._view is wanted:
            self._view_applied.clear()
            await self._view_applied.wait()

    async def node_changed(self, node: Node) -> None:
        self.node = node
        self.worker.node_changed(node)
        if not self._role_fits(node):
            self._spawn(self._follow_role(), "role change")

    async def managers_changed(self, managers: tuple[ManagerAddress, ...]) -> None:
        if not managers:
            return
        try:
            self._remember(managers=managers)
        except OSError as err:  # a full disk is no reason to end the session: the next one tells us again
            self.membership = msgspec.structs.replace(self.membership, managers=managers)
            log.error(
                "cannot write down where the managers are, free some space in %s: %s", self._state_dir, err
            )

    async def root_changed(self, root: bytes) -> None:
        if root and root != self.identity.root:
            raise SwarmError("the manager has another root certificate than the one this node joined with")

    def logs_wanted(self, wanted: LogsWanted) -> None:
        self._spawn(self._send_logs(wanted), "logs")

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

    # --- logs --------------------------------------------------------------------------------------------------------
    async def _send_logs(self, wanted: LogsWanted) -> None:
        client = self._seams.rpc.client(self.session.leader, self.identity)
        queue: asyncio.Queue[LogPiece | None] = asyncio.Queue(64)
        readers = [asyncio.create_task(self._read_log(wanted, t, queue)) for t in wanted.task_ids]
        try:
            call = client.upload("Logs")
            left = len(readers)
            while left:
                piece = await queue.get()
                if piece is not None:
                    await call.write(piece)
                    left -= piece.done
            await call.reply()
        except SwarmError as err:
            log.debug("the reader of logs is gone: %s", err)
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            await client.close()

    async def _read_log(
        self, wanted: LogsWanted, task_id: str, queue: asyncio.Queue[LogPiece | None]
    ) -> None:
        error = ""
        runner = self.worker.runners.get(task_id)
        if runner is None:
            error = f"task {task_id} has no container on this node"
        else:
            with contextlib.suppress(EngineUnreachable):
                try:
                    async with self._engine.stream(
                        "GET", f"/containers/{container_name(runner.task)}/logs", query=wanted.query
                    ) as pieces:
                        async for data in pieces:
                            await queue.put(LogPiece(wanted.request_id, task_id, data))
                except EngineError as err:
                    error = "" if err.status == 404 else str(err)
        await queue.put(LogPiece(wanted.request_id, task_id, done=True, error=error))

    # --- leaving -----------------------------------------------------------------------------------------------------
    async def leave(self) -> None:
        """Leave for good: tell the leader, stop our tasks, forget who we were. Nobody need answer for it to succeed."""
        alone = self.manager is not None and len(self.manager.status.members) <= 1
        if not alone:
            with contextlib.suppress(SwarmError):
                if self.manager is not None:
                    await self._ask_leader("Leave", Leave(), 12.0)
                await self.session.leave()
        for task in self._tasks:
            if task.get_name() != "session":
                task.cancel()
        await self.worker.remove_all()
        await self._leave_network()
        await self.stop()
        await self.forget()

    async def cast_out(self) -> None:
        """The cluster let us go without asking: nobody to tell, everything else as for leaving."""
        await self.worker.remove_all()
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
        shutil.rmtree(self._state_dir / "raft", ignore_errors=True)
        forget_membership(self._state_dir)
        remove_identity(self._state_dir)
        remove_keys(self._state_dir)
