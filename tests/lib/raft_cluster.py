"""Raft members in one process, on virtual time, a fake net and fake disks.

A ``RaftHost`` is a machine: its disk outlives the member that runs on it. ``RaftCluster`` founds, joins, finds the leader and watches
for the invariants of ``raft_checks`` when asked to.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import msgspec

from swarm_agent.raft import Member, RaftConfig, RaftNode
from tests.lib.fake_disk import FakeDisk, FakeProcessDisk
from tests.lib.fake_net import FakeNet, FakeTransport, LinkFaults
from tests.lib.process_loop import HostClock, LoopProcess
from tests.lib.raft_keys import HostKeys

T = TypeVar("T")


async def until(condition: Callable[[], bool], patience_s: float = 30.0) -> None:
    """Virtual time makes looking again every 10 ms free."""
    async with asyncio.timeout(patience_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


class Ledger:
    """A state machine that remembers what it applied, in order. ``apply`` answers with the index."""

    def __init__(self, on_apply: Callable[[int, int, bytes], None] | None = None) -> None:
        self.applied: list[tuple[int, int, bytes]] = []
        self.restored = 0
        self.fail_at: int | None = None
        self._on_apply = on_apply

    def apply(self, index: int, term: int, data: bytes) -> object:
        if self.fail_at is not None and index >= self.fail_at:
            raise RuntimeError(f"planted failure at {index}")
        if self.applied and index <= self.applied[-1][0]:
            raise AssertionError(f"entry {index} applied after {self.applied[-1][0]}")
        self.applied.append((index, term, data))
        if self._on_apply is not None:
            self._on_apply(index, term, data)
        return index

    def snapshot(self) -> Iterable[bytes]:
        """In three pieces, the middle one empty when there is little: where they are cut is to mean nothing."""
        data = msgspec.msgpack.encode(self.applied)
        return (data[:1], data[1:-1], data[-1:]) if len(data) > 1 else (data, b"")

    def restore(self, index: int, pieces: Iterable[bytes]) -> None:
        self.applied = msgspec.msgpack.decode(b"".join(pieces), type=list[tuple[int, int, bytes]])
        self.restored += 1
        if self.applied and self.applied[-1][0] > index:
            raise AssertionError(f"a snapshot at {index} holds entry {self.applied[-1][0]}")

    def values(self) -> list[bytes]:
        return [data for _, _, data in self.applied]


class RaftHost:
    def __init__(self, cluster: RaftCluster, raft_id: int) -> None:
        self._cluster = cluster
        self.raft_id = raft_id
        self.addr = f"host{raft_id}"
        self.disk = FakeDisk(random.Random(cluster.rng.getrandbits(64)))
        self.clock = HostClock()
        """Heeded on a ``ProcessLoop``, for what runs in its process: ``call`` it there."""
        self.process = LoopProcess(self.clock)
        self.node: RaftNode | None = None
        self.keys: HostKeys | None = None
        """Of the process that runs; the log is encrypted with them."""
        self._key_rng = random.Random(f"{cluster.seed} keys {raft_id}")
        self.fsm: Any = cluster.new_fsm(None)
        self.starts = 0
        self._transport: FakeTransport | None = None
        self._disk: FakeProcessDisk | None = None
        self._starting: asyncio.Task[RaftNode] | None = None

    @property
    def member(self) -> Member:
        return Member(self.raft_id, f"node{self.raft_id}", self.addr)

    @property
    def config(self) -> RaftConfig:
        base = self._cluster.config
        return msgspec.structs.replace(
            base,
            raft_id=self.raft_id,
            node_id=f"node{self.raft_id}",
            addr=self.addr,
        )

    async def start(self, *, bootstrap: bool = False) -> RaftNode | None:
        """The running member, or None if the power failed meanwhile."""
        if self.node is not None or self._starting is not None:
            raise RuntimeError(f"{self.addr} runs already")
        self.starts += 1
        self.fsm = self._cluster.new_fsm(self._cluster.on_apply(self))
        self.process = LoopProcess(self.clock)
        self._disk = process = self.disk.open()
        process.on_power_cut = self._power_cut
        self._transport = self._cluster.net.transport(self.addr)
        self._starting = self.call(self._start(process, self._transport, bootstrap=bootstrap))
        try:
            await asyncio.wait([self._starting])
            if self._starting.cancelled():
                return None
            self.node = self._starting.result()
        finally:
            self._starting = None
        self._cluster.net.attach(self.addr, self._receive)
        return self.node

    @property
    def is_up(self) -> bool:
        """It runs or is about to."""
        return self.node is not None or self._starting is not None

    @property
    def disk_failed(self) -> bool:
        """A write or sync of the present process failed: it has to end."""
        return self._disk is not None and self._disk.failed

    def call(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin ``work`` in the host's process: it stands still while the process is stopped."""
        return asyncio.get_running_loop().create_task(work, context=self.process.context)

    def _receive(self, frame: bytes) -> None:
        node, process = self.node, self.process
        if node is None:
            return
        if process.stopped:  # the kernel takes it; the process will see it when it goes on
            asyncio.get_running_loop().call_soon(node.receive, frame, context=process.context)
        else:
            process.context.run(node.receive, frame)

    async def _start(
        self, process: FakeProcessDisk, transport: FakeTransport, *, bootstrap: bool
    ) -> RaftNode:
        self.keys = await process.run(lambda: HostKeys(process, self._key_rng))
        return await RaftNode.start(
            self.config,
            disk=process,
            transport=transport,
            fsm=self.fsm,
            rng=random.Random(self._cluster.rng.getrandbits(64)),
            bootstrap=self.member if bootstrap else None,
            codec=self.keys.codec,
        )

    def _power_cut(self) -> None:
        asyncio.get_running_loop().call_soon(self.crash)

    def crash(self, *, keep: float | None = None) -> None:
        """The process dies without a word, and the disk forgets what was not synced."""
        if self._transport is not None:
            self._transport.close()
        self._cluster.net.detach(self.addr)
        if self._starting is not None:
            self._starting.cancel()
        if self.node is not None:
            self.node.abandon()
            self.node = None
        self.process.resume()  # so that what was abandoned comes to its end
        self.disk.crash(keep=keep)

    async def stop(self, *, transfer: bool = True) -> None:
        if self.node is not None:
            await self.node.stop(transfer=transfer)
            self._cluster.net.detach(self.addr)
            self.node = None


class RaftCluster:
    def __init__(
        self,
        seed: int,
        size: int = 3,
        *,
        faults: LinkFaults | None = None,
        new_fsm: Callable[[Callable[[int, int, bytes], None] | None], Any] = Ledger,
        **settings: object,
    ) -> None:
        self.seed = seed
        """``new_fsm`` makes the state machine of every start; it is told whom to tell what it applies."""
        self.rng = random.Random(seed)
        self.net = FakeNet(random.Random(self.rng.getrandbits(64)), faults)
        self.config = msgspec.convert(
            {"cluster_id": "sim", "raft_id": 1, "node_id": "-", "addr": "-", **settings}, RaftConfig
        )
        self.new_fsm = new_fsm
        self.hosts = [RaftHost(self, i + 1) for i in range(size)]
        self.watch_apply: Callable[[RaftHost, int, int, bytes], None] | None = None

    def on_apply(self, host: RaftHost) -> Callable[[int, int, bytes], None]:
        def applied(index: int, term: int, data: bytes) -> None:
            if self.watch_apply is not None:
                self.watch_apply(host, index, term, data)

        return applied

    async def start(self) -> RaftNode:
        """Found with the first host, join the others; the leader."""
        first = await self.hosts[0].start(bootstrap=True)
        assert first is not None
        await self.leader()
        for host in self.hosts[1:]:
            await host.start()
            await first.add_member(host.member)
        return first

    def new_host(self) -> RaftHost:
        host = RaftHost(self, max(h.raft_id for h in self.hosts) + 1)
        self.hosts.append(host)
        return host

    def host(self, raft_id: int) -> RaftHost:
        return next(host for host in self.hosts if host.raft_id == raft_id)

    @property
    def addresses(self) -> list[str]:
        return [host.addr for host in self.hosts]

    @property
    def nodes(self) -> list[RaftNode]:
        return [host.node for host in self.hosts if host.node is not None]

    def current_leader(self) -> RaftNode | None:
        """The live leader with the highest term."""
        leaders = [node for node in self.nodes if node.is_leader]
        return max(leaders, key=lambda node: node.core.term) if leaders else None

    async def leader(self, patience_s: float = 30.0) -> RaftNode:
        await until(lambda: self.current_leader() is not None, patience_s)
        leader = self.current_leader()
        assert leader is not None
        return leader

    async def converged(self, patience_s: float = 30.0) -> None:
        """Until every live member has applied what the leader has."""

        def agreed() -> bool:
            leader = self.current_leader()
            if leader is None:
                return False
            goal = leader.core.log.last_index
            return all(node.status().applied >= goal for node in self.nodes)

        await until(agreed, patience_s)
