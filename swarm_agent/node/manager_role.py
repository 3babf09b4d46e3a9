"""The manager side of this host: whether it has one, and what is wrong with it.

Starts it, follows the role our record has, brings it back after its disk failed, and ends it when the cluster lets it go.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

from swarm_agent.agent.disk_room import Room
from swarm_agent.config import AgentConfig
from swarm_agent.environment import Environment
from swarm_agent.manager.backup import Recovery
from swarm_agent.manager.manager import Manager, ManagerSettings
from swarm_agent.manager.rpc_handlers import ServeForwarded
from swarm_agent.node.certificate import AskLeader, Certificate
from swarm_agent.node.state import NodeStateFiles
from swarm_agent.objects.errors import FailedPrecondition, ReleaseTooOld, SwarmError, Unavailable
from swarm_agent.objects.records import Cluster, Node
from swarm_agent.raft.errors import LogError
from swarm_agent.rpc.messages import JoinRaft

log = logging.getLogger(__name__)

RETRY_S = 0.5
FAILED_RETRY_S = (
    1.0  # before the first attempt to bring a failed raft member back; each that fails doubles it
)
LONGEST_RETRY_S = 15.0
STEADY_S = 60.0  # so long it has to work before the next failure counts as the first one
ROOM_S = 1.0
JOIN_TIMEOUT_S = 15.0

Spawn = Callable[[Coroutine[Any, Any, None], str], None]


class ManagerRole:
    """``manager`` is the running one, None on a worker and while there is trouble."""

    def __init__(
        self,
        papers: NodeStateFiles,
        config: AgentConfig,
        serve_forwarded: ServeForwarded,
        new_id: Callable[[], str],
        rng: random.Random,
        environment: Environment,
        level: int,
        ask_leader: AskLeader,
        spawn: Spawn,
        room: Room,
    ) -> None:
        self._papers = papers
        self._config = config
        self._serve_forwarded = serve_forwarded
        self._new_id = new_id
        self._rng = rng
        self._environment = environment
        self._level = level
        self._ask_leader = ask_leader
        self._spawn = spawn
        self._room = room
        self.certificate = Certificate(papers, ask_leader, self._renewed, rng, environment)
        self.manager: Manager | None = None
        self.trouble = ""  # why this manager cannot serve, "" when it can
        self._ending: Manager | None = None
        # the cluster is above our feature level: no manager side until we are started anew
        self._outgrown = False
        self._failed = False  # its raft member ended by itself, and has not been brought back yet
        self._node: Node | None = None
        self._pause = FAILED_RETRY_S
        self._changing = asyncio.Lock()

    # --- life ----------------------------------------------------------------------------------------------------
    async def start(
        self, founding: tuple[Cluster, Node] | None, recovery: Recovery | None, *, again: bool = False
    ) -> None:
        """As our membership says. One that the cluster has outgrown is none, and says so; so is one that was a manager before (``again``)
        and cannot start: its log is damaged, its disk full, a port taken. What this host is besides goes on."""
        if self._papers.membership.role == "manager":
            try:
                if again:
                    self._must_have_room()
                await self._start(founding, recovery=recovery)
            except ReleaseTooOld as err:
                self._refuse(err)
            except (SwarmError, OSError) as err:
                if not again:
                    raise
                self._failed = True
                self._say(_cannot_start(err))
                self._spawn(self._until_back(), "watch raft")
        self._keep_a_workers_papers()

    async def stop(self) -> None:
        for manager in (self.manager, self._ending):  # one that was being ended may have been cut short
            if manager is not None:
                await self._end(manager)
        self.manager = None

    async def stand_alone(self, host: str, data_addr: str) -> None:
        """Go on as the only manager, with everything this one has: the others are gone for good, or are told when they return.

        ``host``, ``data_addr``: where this host stands from now on. When it fails, the manager is started again with what is on its disk by
        then: the others may be removed already.
        """
        async with self._changing:
            manager, self.manager = self.manager, None
            if manager is None:
                raise FailedPrecondition("this node has no running manager to go on with")
            log.warning("this manager goes on alone: all others are removed")
            await self._end(manager)
            before = self._papers.membership
            try:
                self._papers.remember(advertise_host=host, data_addr=data_addr)
                await self._start(alone=True)
            except BaseException:
                self._papers.remember(advertise_host=before.advertise_host, data_addr=before.data_addr)
                await self._start()
                raise

    async def _start(
        self,
        founding: tuple[Cluster, Node] | None = None,
        *,
        recovery: Recovery | None = None,
        alone: bool = False,
    ) -> Manager:
        papers, config = self._papers, self._config
        if not papers.membership.raft_id:
            papers.remember(raft_id=self._rng.getrandbits(62) | 1)
        membership = papers.membership
        settings = ManagerSettings(
            node_id=membership.node_id,
            cluster_id=membership.cluster_id,
            raft_id=membership.raft_id,
            listen_host=membership.listen_host,
            join_port=membership.join_port,
            rpc_port=config.rpc_port,
            raft_port=config.raft_port,
            timing=config.timing,
            advertise_host=membership.advertise_host,
            raft_dir=papers.raft_dir,
            feature_level=self._level,
        )
        manager = Manager(
            settings,
            lambda: papers.identity,
            self._serve_forwarded,
            self._new_id,
            self._rng,
            self._environment,
            papers.have_keys(self._environment.certificates.entropy),
            self.certificate.renew,
        )
        await manager.start(founding, recovery=recovery, alone=alone)
        self.manager = manager
        if founding is None:
            self._spawn(self._join_raft(manager), "join raft")
        self._spawn(self._watch_removal(manager), "watch removal")
        self._spawn(self._watch_failure(manager), "watch raft")
        self._spawn(self._watch_room(manager), "watch room")
        return manager

    async def _end(self, manager: Manager) -> None:
        """Stop it; remembered until it has stopped, or its ports would stay open when whoever does this is cancelled."""
        self._ending = manager
        await manager.stop()
        self._ending = None

    async def _join_raft(self, manager: Manager) -> None:
        """Ask whoever leads to take us in (or to learn our address), until it is done."""
        settings = manager.settings
        request = JoinRaft(settings.raft_id, settings.rpc_addr, settings.manager_addr, self._level)
        while self.manager is manager:
            try:
                if manager.is_leader:
                    await manager.tell_addresses()  # ours may be new: nobody else would tell
                else:
                    await self._ask_leader("JoinRaft", request, JOIN_TIMEOUT_S)
            except ReleaseTooOld as err:
                await self._give_up(manager, err)
                return
            except SwarmError as err:
                log.info("not yet a member of raft: %s", err)
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _renewed(self) -> None:
        if self.manager is not None:
            await self.manager.certificate_renewed()

    # --- trouble ---------------------------------------------------------------------------------------------------
    async def _give_up(self, manager: Manager, why: ReleaseTooOld) -> None:
        """The cluster went on without us. What we have stays as it is, for the release that can read on."""
        async with self._changing:
            if self.manager is manager:
                self.manager = None
                self._refuse(why)
                await self._end(manager)

    def _refuse(self, why: ReleaseTooOld) -> None:
        self._outgrown = True
        self.trouble = f"this node does not work as a manager: {why}. Its data is untouched"
        log.error("%s", self.trouble, extra={"node": self._papers.membership.node_id})

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
        await self._set_aside(manager, f"raft member stopped: {manager.status.failure}")

    async def _watch_room(self, manager: Manager) -> None:
        """One that cannot write leads nobody, and is not elected: it hands over and stops before a write fails, if there is time."""
        while self.manager is manager and not self._room.trouble:
            await asyncio.sleep(ROOM_S)
        if self.manager is manager and not manager.status.removed:
            await self._set_aside(manager, f"cannot write: {self._room.trouble}")

    async def _set_aside(self, manager: Manager, why: str) -> None:
        """This host has no manager side from here on until it can have one again."""
        before = self.trouble
        self._say(why)
        async with self._changing:
            if self.manager is not manager:  # it was ended for another reason meanwhile
                if self.trouble == why:
                    self.trouble = before
                return
            self.manager, self._failed = None, True
            await self._end(manager)
        await self._until_back()

    async def _until_back(self) -> None:
        """Try again once there is room, and less often each time it did not help."""
        pause = self._pause
        while self._failed:
            await asyncio.sleep(pause)
            while self._failed and self._room.look():
                self._say(f"cannot write: {self._room.trouble}")
                await asyncio.sleep(ROOM_S)
            async with self._changing:  # not in between: the cluster may have made a worker of us
                if self._failed:
                    await self._bring_back()
            pause = min(LONGEST_RETRY_S, pause * 2)
        self._pause = pause

    async def _bring_back(self) -> None:
        try:
            self._must_have_room()
            started = await self._start()
        except (SwarmError, OSError) as err:
            self._say(_cannot_start(err))
        else:
            self._failed = False
            self._spawn(self._watch_recovery(started), "watch recovery")

    def _must_have_room(self) -> None:
        if self._room.look():
            raise Unavailable(f"cannot write: {self._room.trouble}")

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            log.error("this node does not work as a manager: %s", trouble)

    async def _watch_recovery(self, manager: Manager) -> None:
        """The trouble is over once it leads or follows. That it started proves nothing: a full disk can be read."""
        while self.manager is manager and not manager.works:
            await asyncio.sleep(RETRY_S)
        if self.manager is manager:
            self.trouble = ""
        await asyncio.sleep(STEADY_S)
        if self.manager is manager:
            self._pause = FAILED_RETRY_S

    @property
    def _is_wanting(self) -> bool:
        """Whether this host is a manager without a manager side, for a reason of its own."""
        return self._outgrown or self._failed

    # --- the role our record has -----------------------------------------------------------------------------------
    async def _watch_removal(self, manager: Manager) -> None:
        """Raft let us go: stop being a manager, the rest of the role change follows by session."""
        while self.manager is manager and not manager.status.removed:
            await asyncio.sleep(RETRY_S)
        if self.manager is manager:
            async with self._changing:
                if self.manager is not manager:
                    return  # another goes on in its place
                await self._end_for_good()
            await self._follow()

    async def _end_for_good(self) -> None:
        manager, self.manager = self.manager, None
        if manager is None and not self._is_wanting:
            return
        log.info("this node is no manager any more")
        if manager is not None:
            await self._end(manager)
        if self._is_wanting:
            self._outgrown, self._failed, self.trouble = False, False, ""
        self._papers.drop_log()

    def follow(self, node: Node) -> None:
        """Our record as it is now: be what it says, in the background."""
        self._node = node
        if not self._fits(node):
            self._spawn(self._follow(), "role change")

    def _fits(self, node: Node) -> bool:
        """Whether certificate and manager side are as our record says. One on its way down is not brought up again."""
        if node.role != self._papers.identity.subject.role:
            return False
        if self._is_wanting:
            return node.role == "manager"
        if self.manager is None:
            return node.role == "worker" or node.spec.role == "worker"
        return node.role == "manager"

    async def _follow(self) -> None:
        """Make certificate and manager side fit the role our record has by now: it may change while we are at it."""
        async with self._changing:
            while self._node is not None and not self._fits(self._node):
                try:
                    await self._step_towards(self._node)
                except (SwarmError, OSError) as err:
                    log.info("cannot become a %s yet: %s", self._node.role, err)
                    await asyncio.sleep(RETRY_S)
            self._keep_a_workers_papers()

    async def _step_towards(self, node: Node) -> None:
        if node.role == "worker" and (self.manager is not None or self._is_wanting):
            self._papers.remember(role="worker")
            await self._end_for_good()
        elif node.role != self._papers.identity.subject.role:
            await self.certificate.renew()
            if node.role != self._papers.identity.subject.role:
                await asyncio.sleep(RETRY_S)  # the record has changed again, news of it is on the way
        elif self.manager is None:
            self._papers.remember(role="manager")
            await self._start()

    def _keep_a_workers_papers(self) -> None:
        if self.manager is None and self._papers.identity.subject.role == "worker":
            self._papers.remember(role="worker")  # where Raft let go of us before our record said so
            self._papers.drop_keys()


def _cannot_start(err: Exception) -> str:
    if isinstance(err, LogError):
        return (
            f"damaged log: {err}. Another manager gives it a whole one: there, docker node demote this node, then promote it. "
            "Without other managers recover from a backup (docs/recovery.md)"
        )
    return str(err) if str(err).startswith("cannot write") else f"cannot start: {err}"
