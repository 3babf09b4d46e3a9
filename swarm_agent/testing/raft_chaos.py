"""One seeded story of a raft cluster under everything that can go wrong, and its peaceful end.

``chaos(seed)`` runs clients against members while a nemesis crashes, cuts, slows and changes membership; then it heals everything and demands
progress within a few election timeouts. The same seed is the same story, step by step.
"""

from __future__ import annotations

import asyncio
import random

import msgspec

from swarm_agent.raft import (
    MembershipRefused,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RaftNode,
    Stopped,
    TransferFailed,
)
from swarm_agent.testing.fake_disk import DiskFaults
from swarm_agent.testing.fake_net import LinkFaults
from swarm_agent.testing.raft_checks import RaftChecks, Violation
from swarm_agent.testing.raft_cluster import RaftCluster, RaftHost, until
from swarm_agent.testing.virtual_loop import VirtualLoop

REFUSALS = (NotLeader, OutcomeUnknown, Overloaded, Stopped, TransferFailed, MembershipRefused, TimeoutError)


class ChaosPlan(msgspec.Struct, frozen=True, kw_only=True):
    size: int = 3
    seconds: float = 12.0
    clients: int = 3
    churn: bool = True
    """Members are removed for good and new ones join."""
    heal_s: float = 15.0
    """Within so many seconds after the end of all faults a write must succeed and all members must agree."""


class ChaosResult(msgspec.Struct, frozen=True):
    """Two runs of one seed give equal results."""

    seconds: float
    steps: int
    acknowledged: int
    reads: int
    crashes: int
    changes: int
    snapshots_installed: int
    terms: int
    state: int


def chaos(seed: int, plan: ChaosPlan | None = None) -> ChaosResult:
    """Raises ``Violation`` (or what else broke) if the story goes wrong."""
    story = _Story(seed, plan or ChaosPlan())
    with VirtualLoop() as loop:
        loop.after_step = story.step
        try:
            return loop.run_until_complete(story.run())
        finally:
            loop.after_step = None
            story.end()


class _Story:
    def __init__(self, seed: int, plan: ChaosPlan) -> None:
        self._plan = plan
        self._rng = random.Random(seed)
        size = plan.size
        self.cluster = RaftCluster(
            seed,
            size,
            snapshot_interval=60,
            keep_entries=10,
            chunk_bytes=300,
            chunk_timeout_s=0.3,
            segment_bytes=4000,
            max_append_bytes=400,
            max_in_flight=4,
        )
        for host in self.cluster.hosts:
            host.clock_rate = self._rng.uniform(0.85, 1.2)
        self.checks = RaftChecks(self.cluster)
        self._steps = 0
        self._serial = 0
        self._reads = self._crashes = self._changes = self._installed = 0
        self._acknowledged = 0
        self._over = False
        self._retired: dict[int, None] = {}  # raft ids that are, or may be, removed
        self._work: list[asyncio.Task[None]] = []

    def step(self) -> None:
        self._steps += 1
        self.checks()

    def end(self) -> None:
        for host in self.cluster.hosts:
            if host.node is not None:
                host.node.abandon()

    async def run(self) -> ChaosResult:
        plan = self._plan
        async with asyncio.timeout(plan.heal_s):
            await self.cluster.start()
        work = [asyncio.ensure_future(self._client()) for _ in range(plan.clients)]
        work.append(asyncio.ensure_future(self._reader()))
        nemesis = asyncio.ensure_future(self._nemesis())
        done, _ = await asyncio.wait(
            [*work, nemesis], timeout=plan.seconds, return_when=asyncio.FIRST_EXCEPTION
        )
        for task in done:
            task.result()
        self._over = True
        nemesis.cancel()
        await asyncio.wait([nemesis])
        for task in self._work:
            task.cancel()
        if self._work:
            await asyncio.wait(self._work)
        await self._heal()
        for task in work:
            task.cancel()
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        await self.cluster.converged(plan.heal_s)
        self.checks.finished()
        leader = await self.cluster.leader()
        fsm = self.cluster.host(leader.core.raft_id).fsm
        loop = asyncio.get_running_loop()
        state = hash(
            tuple((index, term, int.from_bytes(data[:8], "big")) for index, term, data in fsm.applied)
        )
        self._installed += sum(host.fsm.restored for host in self.cluster.hosts)
        return ChaosResult(
            loop.time(),
            self._steps,
            self._acknowledged,
            self._reads,
            self._crashes,
            self._changes,
            self._installed,
            leader.core.term,
            state,
        )

    # -- clients ------------------------------------------------------------------------------------------------------

    def _somebody(self) -> RaftNode | None:
        nodes = self.cluster.nodes
        return self._rng.choice(nodes) if nodes else None

    async def _client(self) -> None:
        node = self._somebody()
        while not self._over:
            await asyncio.sleep(self._rng.uniform(0.002, 0.03))
            if node is None or node not in self.cluster.nodes:
                node = self._somebody()
                continue
            self._serial += 1
            data = b"%08d" % self._serial + bytes(self._rng.randrange(0, 60))
            try:
                async with asyncio.timeout(3):
                    index = await node.propose(data)
            except NotLeader as error:
                leader = error.leader
                node = self.cluster.host(leader.raft_id).node if leader else self._somebody()
            except REFUSALS:
                node = self._somebody()
            else:
                assert isinstance(index, int)
                self._acknowledged += 1
                self.checks.acknowledged(data, index)

    async def _reader(self) -> None:
        while not self._over:
            await asyncio.sleep(self._rng.uniform(0.005, 0.05))
            node = self._somebody()
            if node is None:
                continue
            floor = self.checks.highest_acknowledged
            try:
                index = await node.read_barrier()
            except REFUSALS:
                continue
            self._reads += 1
            self.checks.read(index, floor)
            if node.status().applied < index:
                raise Violation(f"a read barrier at {index} returned with {node.status().applied} applied")

    # -- the nemesis --------------------------------------------------------------------------------------------------

    async def _nemesis(self) -> None:
        deeds = [
            self._crash,
            self._crash,
            self._crash_leader,
            self._power_cut_in_a_write,
            self._partition,
            self._isolate_leader,
            self._cut_one_way,
            self._heal_network,
            self._heal_network,
            self._bad_network,
            self._slow_disk,
            self._hand_over,
            self._reset_connections,
        ]
        if self._plan.churn:
            deeds += [self._replace_member, self._replace_member]
        while True:
            await asyncio.sleep(self._rng.uniform(0.05, 0.9))
            self._rng.choice(deeds)()

    def _later(self, work: object) -> None:
        self._work.append(asyncio.ensure_future(work))  # type: ignore[call-overload]

    def _crash(self) -> None:
        running = [host for host in self.cluster.hosts if host.node is not None]
        if len(running) > 1:
            self._down(self._rng.choice(running))

    def _crash_leader(self) -> None:
        leader = self.cluster.current_leader()
        if leader is not None:
            self._down(self.cluster.host(leader.core.raft_id))

    def _down(self, host: RaftHost) -> None:
        self._crashes += 1
        self._installed += host.fsm.restored
        host.crash()
        self._later(self._up(host, self._rng.uniform(0.01, 2.0)))

    async def _up(self, host: RaftHost, after_s: float) -> None:
        await asyncio.sleep(after_s)
        while host.node is None and host.raft_id not in self._retired:
            if await host.start() is None:
                await asyncio.sleep(0.1)

    def _power_cut_in_a_write(self) -> None:
        host = self._rng.choice(self.cluster.hosts)
        if host.node is None:
            return
        self._crashes += 1
        host.disk.faults.crash_at_step = self._rng.randrange(0, 12)
        self._later(self._up_when_down(host))

    async def _up_when_down(self, host: RaftHost) -> None:
        await until(lambda: host.node is None, patience_s=1e9)
        await self._up(host, self._rng.uniform(0.01, 1.0))

    def _partition(self) -> None:
        addresses = self.cluster.addresses
        self._rng.shuffle(addresses)
        at = self._rng.randrange(1, len(addresses))
        self.cluster.net.partition(addresses[:at], addresses[at:])

    def _isolate_leader(self) -> None:
        leader = self.cluster.current_leader()
        if leader is not None:
            self.cluster.net.isolate(self.cluster.host(leader.core.raft_id).addr, self.cluster.addresses)

    def _cut_one_way(self) -> None:
        source, target = self._rng.sample(self.cluster.addresses, 2)
        self.cluster.net.cut(source, target)

    def _heal_network(self) -> None:
        self.cluster.net.heal()
        self.cluster.net.faults = LinkFaults()

    def _bad_network(self) -> None:
        uniform = self._rng.uniform
        self.cluster.net.faults = LinkFaults(
            delay_max=uniform(0.0005, 0.05),
            drop=uniform(0, 0.25),
            duplicate=uniform(0, 0.3),
            reorder=uniform(0, 0.4),
            reorder_s=uniform(0.01, 1.5),
        )

    def _slow_disk(self) -> None:
        faults = self._rng.choice(self.cluster.hosts).disk.faults
        faults.latency_max = self._rng.choice([0.001, 0.02, 0.2])

    def _hand_over(self) -> None:
        leader = self.cluster.current_leader()
        if leader is not None:
            self._later(self._attempt(leader.transfer()))

    def _reset_connections(self) -> None:
        for node in self.cluster.nodes:
            if self._rng.random() < 0.5:
                node.peer_lost(self._rng.choice(self.cluster.hosts).raft_id)

    async def _attempt(self, work: object) -> None:
        try:
            async with asyncio.timeout(4):
                await work  # type: ignore[misc]
        except REFUSALS:
            return
        self._changes += 1

    def _replace_member(self) -> None:
        """Remove somebody for good; a new host joins in its place."""
        leader = self.cluster.current_leader()
        victims = [m for m in (leader.status().members if leader else ()) if m.raft_id not in self._retired]
        if leader is None or not victims:
            return
        if len(victims) > self._plan.size - 1 and self._rng.random() < 0.5:
            victim = self._rng.choice(victims)
            if victim.raft_id != leader.core.raft_id:
                self._later(self._attempt(self._remove(leader, victim.raft_id)))
        elif len(victims) <= self._plan.size:
            self._later(self._attempt(self._join(leader)))

    async def _remove(self, leader: RaftNode, raft_id: int) -> None:
        await leader.remove_member(raft_id)
        self._retired[raft_id] = None

    async def _join(self, leader: RaftNode) -> None:
        host = self.cluster.new_host()
        await host.start()
        await leader.add_member(host.member)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _heal(self) -> None:
        """No more faults: within ``heal_s`` a write succeeds and every member of the membership agrees."""
        self._heal_network()
        for host in self.cluster.hosts:
            host.disk.faults = DiskFaults()
        for host in self.cluster.hosts:
            if host.node is None and host.raft_id not in self._retired:
                await host.start()
        async with asyncio.timeout(self._plan.heal_s):
            await self._final_write()
            await self._all_removed_know()
        members = {m.raft_id for m in (await self.cluster.leader()).status().members}
        for host in self.cluster.hosts:
            if host.node is not None and host.raft_id not in members:
                self._installed += host.fsm.restored
                await host.stop()

    async def _final_write(self) -> None:
        while True:
            leader = await self.cluster.leader()
            data = b"the end %d" % self._serial
            self._serial += 1
            try:
                async with asyncio.timeout(2):
                    index = await leader.propose(data)
            except REFUSALS:
                await asyncio.sleep(0.05)
                continue
            assert isinstance(index, int)
            self.checks.acknowledged(data, index)
            return

    async def _all_removed_know(self) -> None:
        leader = await self.cluster.leader()
        gone = {m.raft_id for m in leader.core.conf.removed}

        def know() -> bool:
            former = [node for node in self.cluster.nodes if node.core.raft_id in gone]
            return all(node.status().removed or not node.core.conf.members for node in former)

        await until(know, self._plan.heal_s)
