"""Three members as managers run them: Raft on a thread of its own, TLS links between them, real disks. One process, one main loop."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Self

import pytest
import uvloop

from swarm_agent.ca import ca
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.objects.errors import PermissionDenied, Unavailable
from swarm_agent.objects.records import RootCA
from swarm_agent.raft import Member, OwnThread, RaftConfig, RaftNode, RealDisk, run_on
from swarm_agent.rpc.raft_links import Tls
from swarm_agent.rpc.raft_transport import PeerTransport
from tests.lib.raft_cluster import Ledger, until

PORT = 27946
ROOT = ca.make_root()


def has_leader(node: RaftNode) -> bool:
    return node.status().leader is not None


def identity_of(node_id: str, role: str = "manager", root: RootCA = ROOT) -> NodeIdentity:
    key, csr = ca.make_request()
    cert, _ = ca.sign(root, csr, ca.Subject(node_id, role, "cluster"), 3600 * 10**9)
    return NodeIdentity(key, cert, root.cert)


class Manager:
    """What a manager has of Raft, without the rest."""

    def __init__(self, number: int, directory: Path) -> None:
        self.member = Member(number, f"n{number}", f"127.0.0.{number}:2378")
        self.identity = identity_of(self.member.node_id)
        self.directory = directory
        self.refused: list[str] = []

    def admit(self, caller: ca.Subject) -> None:
        if caller.node_id == "banned":
            self.refused.append(caller.node_id)
            raise PermissionDenied("removed")

    async def start(self, *, found: bool = False) -> RaftNode:
        self.fsm = Ledger()
        self.home = OwnThread()
        self.home.enter()
        self.disk = RealDisk(self.directory)
        self.transport = PeerTransport(lambda: self.identity, Tls(), PORT, self.admit)
        host = self.member.addr.partition(":")[0]
        await run_on(self.home, lambda: self.transport.start(host))
        config = RaftConfig(
            cluster_id="cluster",
            raft_id=self.member.raft_id,
            node_id=self.member.node_id,
            addr=self.member.addr,
            snapshot_interval=500,
            keep_entries=20,
        )
        self.node = await RaftNode.start(
            config,
            disk=self.disk,
            transport=self.transport,
            fsm=self.fsm,
            rng=random.Random(),
            bootstrap=self.member if found else None,
            home=self.home,
        )
        self.transport.receive = self.node.receive
        self.transport.lost = self.node.peer_lost
        return self.node

    async def stop(self, *, transfer: bool = False) -> None:
        await self.node.stop(transfer=transfer)
        await run_on(self.home, self.transport.stop)
        await self.home.leave()
        self.disk.close()


class Cluster:
    def __init__(self, directory: Path) -> None:
        self.managers = [Manager(i, directory / str(i)) for i in (1, 2, 3)]

    async def __aenter__(self) -> Self:
        first = await self.managers[0].start(found=True)
        await until(lambda: first.is_leader)
        for manager in self.managers[1:]:
            await manager.start()
            await first.add_member(manager.member)
        return self

    async def __aexit__(self, *_: object) -> None:
        for manager in self.managers:
            await manager.stop()

    def leader(self) -> Manager | None:
        return next((m for m in self.managers if m.node.is_leader), None)

    async def led(self) -> Manager:
        await until(lambda: self.leader() is not None)
        leader = self.leader()
        assert leader is not None
        return leader


@pytest.fixture(autouse=True)
def _as_the_daemon_runs() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    yield
    sys.setswitchinterval(before)


def busy(seconds: float) -> None:
    """Python that never lets go by itself, as a long pass does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


def test_what_is_acknowledged_is_everywhere_over_restarts(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.led()
            await asyncio.gather(*(leader.node.propose(b"%d" % i) for i in range(2000)))
            await leader.stop(transfer=True)
            second = await cluster.led()
            assert second is not leader
            await second.node.propose(b"without the first")
            await leader.start()
            await second.node.propose(b"with it")
            wanted = [*(b"%d" % i for i in range(2000)), b"without the first", b"with it"]
            for manager in cluster.managers:
                await until(partial(has_leader, manager.node))
                await manager.node.read_barrier()
                assert manager.fsm.values() == wanted

    uvloop.run(main())


def test_a_main_loop_that_is_busy_unseats_nobody(tmp_path: Path) -> None:
    """Three seconds are five election timeouts."""

    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.led()
            term = leader.node.core.term
            writes = [asyncio.ensure_future(leader.node.propose(b"%d" % i)) for i in range(100)]
            await asyncio.sleep(0)
            busy(3.0)
            await asyncio.gather(*writes)
            assert [m.node.core.term for m in cluster.managers] == [term] * 3
            assert leader.node.is_leader

    uvloop.run(main())


def test_a_link_is_for_managers_of_this_cluster(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            served = cluster.managers[0]
            for stranger, wanted in (
                (identity_of("w1", "worker"), "n1"),
                (identity_of("banned"), "n1"),
                (identity_of("n9", root=ca.make_root()), "n1"),
                (identity_of("n9"), "n2"),  # asks for another manager than stands there
            ):
                try:
                    link = await Tls().connect(f"127.0.0.1:{PORT}", stranger, wanted)
                except Unavailable:  # refused in the handshake already
                    continue
                async with asyncio.timeout(5):
                    await link.ended()
            assert served.refused == ["banned"]
            await (await cluster.led()).node.propose(b"x")

    uvloop.run(main())
