"""Whole raft members on virtual time, a fake net and fake disks; used by simulations and driver tests."""

from __future__ import annotations

import asyncio
import random

import msgspec

from swarm_agent.raft import Member, RaftConfig, RaftNode
from swarm_agent.testing.fake_disk import FakeDisk, FakeProcessDisk
from swarm_agent.testing.fake_net import FakeNet, FakeTransport


class Ledger:
    """A state machine that remembers what it applied, in order."""

    def __init__(self) -> None:
        self.applied: list[tuple[int, int, bytes]] = []
        self.fail_at: int | None = None

    def apply(self, index: int, term: int, data: bytes) -> object:
        if self.fail_at is not None and index >= self.fail_at:
            raise RuntimeError(f"planted failure at {index}")
        assert not self.applied or index > self.applied[-1][0]
        self.applied.append((index, term, data))
        return len(self.applied)

    def snapshot(self) -> bytes:
        return msgspec.msgpack.encode(self.applied)

    def restore(self, index: int, data: bytes) -> None:
        self.applied = msgspec.msgpack.decode(data, type=list[tuple[int, int, bytes]])
        assert not self.applied or self.applied[-1][0] <= index


class Host:
    """A machine: its disk outlives the member that runs on it."""

    def __init__(self, cluster: Cluster, raft_id: int) -> None:
        self.cluster = cluster
        self.raft_id = raft_id
        self.disk = FakeDisk(random.Random(cluster.rng.getrandbits(64)))
        self.addr = f"host{raft_id}"
        self.node: RaftNode | None = None
        self.fsm = Ledger()
        self.transport: FakeTransport | None = None
        self.process: FakeProcessDisk | None = None
        self.starts = 0

    @property
    def member(self) -> Member:
        return Member(self.raft_id, f"node{self.raft_id}", self.addr)

    async def start(self, *, bootstrap: bool = False) -> RaftNode:
        assert self.node is None
        self.starts += 1
        self.fsm = Ledger()
        self.process = self.disk.open()
        self.process.on_power_cut = self._power_cut
        self.transport = self.cluster.net.transport(self.addr)
        config = msgspec.structs.replace(
            self.cluster.config, raft_id=self.raft_id, node_id=f"node{self.raft_id}", addr=self.addr
        )
        node = await RaftNode.start(
            config,
            disk=self.process,
            transport=self.transport,
            fsm=self.fsm,
            rng=random.Random(self.cluster.rng.getrandbits(64)),
            bootstrap=self.member if bootstrap else None,
        )
        self.node = node
        self.cluster.net.attach(self.addr, node.receive)
        return node

    def _power_cut(self) -> None:
        asyncio.get_running_loop().call_soon(self.crash)

    def crash(self, *, keep: float | None = None) -> None:
        """The process dies without a word, the disk forgets what was not synced."""
        if self.transport is not None:
            self.transport.close()
        self.cluster.net.detach(self.addr)
        if self.node is not None:
            self.node.abandon()
            self.node = None
        self.disk.crash(keep=keep)

    async def stop(self, *, transfer: bool = True) -> None:
        assert self.node is not None
        await self.node.stop(transfer=transfer)
        self.cluster.net.detach(self.addr)
        self.node = None


class Cluster:
    def __init__(self, seed: int, size: int = 3, **settings: object) -> None:
        self.rng = random.Random(seed)
        self.net = FakeNet(random.Random(self.rng.getrandbits(64)))
        self.config = RaftConfig(cluster_id="sim", raft_id=1, node_id="-", addr="-", **settings)  # type: ignore[arg-type]
        self.hosts = [Host(self, i + 1) for i in range(size)]

    async def start(self) -> None:
        """Found with the first host, join the others."""
        first = await self.hosts[0].start(bootstrap=True)
        await self.leader()
        for host in self.hosts[1:]:
            await host.start()
            await first.add_member(host.member)

    @property
    def nodes(self) -> list[RaftNode]:
        return [host.node for host in self.hosts if host.node is not None]

    async def leader(self, patience_s: float = 30.0) -> RaftNode:
        """The leader with the highest term, once there is one."""
        async with asyncio.timeout(patience_s):
            while True:
                leaders = [node for node in self.nodes if node.is_leader]
                if leaders:
                    return max(leaders, key=lambda node: node.status().term)
                await asyncio.sleep(0.01)

    async def applied_everywhere(self, patience_s: float = 30.0) -> None:
        """Until every live member has applied what the leader has."""
        async with asyncio.timeout(patience_s):
            while True:
                leader = await self.leader()
                goal = leader.status().last_index
                if all(node.status().applied >= goal for node in self.nodes):
                    return
                await asyncio.sleep(0.01)

    def host_of(self, node: RaftNode) -> Host:
        return next(host for host in self.hosts if host.node is node)
