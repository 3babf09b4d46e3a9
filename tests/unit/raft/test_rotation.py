"""Changing a running member's data key: on virtual time, cut short at every step, without a majority."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from swarm_agent.raft import LogCorrupt, Stopped
from swarm_agent.raft.log import DataKeys, Log, Owner, SealedCodec
from tests.lib.raft_cluster import RaftCluster, RaftHost, until
from tests.lib.raft_rotation import check_only_key
from tests.lib.virtual_loop import run

SMALL: dict[str, Any] = {"snapshot_interval": 25, "keep_entries": 10, "segment_bytes": 2000}


async def rotate(host: RaftHost) -> None:
    assert host.keys is not None
    assert host.node is not None
    await host.keys.rotate(host.node)


def open_with(host: RaftHost, keys: DataKeys) -> None:
    Log.open(
        host.disk.copy().open(),
        Owner("sim", f"node{host.raft_id}", host.raft_id),
        codec=SealedCodec(keys),
    )


def test_after_a_rotation_the_new_key_opens_everything_and_the_old_one_nothing() -> None:
    async def main() -> None:
        cluster = RaftCluster(1, 3)
        leader = await cluster.start()
        for i in range(40):
            await leader.propose(b"%d" % i)
        for host in cluster.hosts:
            assert host.keys is not None
            old = host.keys.codec.keys
            open_with(host, old)
            await rotate(host)
            check_only_key(host)
            with pytest.raises(LogCorrupt):
                open_with(host, old)
        await leader.propose(b"last")
        await cluster.converged()
        for host in cluster.hosts:
            host.crash()
        for host in cluster.hosts:
            await host.start()
        await cluster.leader()
        await cluster.converged()
        assert all(h.fsm.values() == [*(b"%d" % i for i in range(40)), b"last"] for h in cluster.hosts)

    run(main())


def test_followers_that_lag_still_get_entries_and_no_snapshot() -> None:
    async def main() -> None:
        cluster = RaftCluster(1, 3)
        leader = await cluster.start()
        await cluster.converged()
        behind = next(h for h in cluster.hosts if h.node is not leader)
        cluster.net.isolate(behind.addr, cluster.addresses)
        for i in range(20):
            await leader.propose(b"%d" % i)
        await rotate(cluster.host(leader.core.raft_id))
        cluster.net.heal()
        await cluster.converged()
        assert behind.fsm.restored == 0
        assert len(behind.fsm.values()) == 20

    run(main())


def test_writes_go_on_while_keys_change_and_while_snapshots_are_written() -> None:
    async def main() -> None:
        cluster = RaftCluster(3, 3, **SMALL)
        leader = await cluster.start()
        over = False

        async def write() -> int:
            count = 0
            while not over:
                await leader.propose(b"%d" % count)
                count += 1
            return count

        writers = [asyncio.ensure_future(write()) for _ in range(4)]
        for _ in range(5):
            await asyncio.gather(*(rotate(host) for host in cluster.hosts))
        over = True
        counts = await asyncio.gather(*writers)
        await cluster.converged()
        for host in cluster.hosts:
            check_only_key(host)
            assert len(host.fsm.values()) == sum(counts) > 100

    run(main())


@pytest.mark.parametrize("which", ["leader", "follower"])
def test_a_power_cut_at_every_step_of_a_rotation(which: str) -> None:
    async def life(cut_at: int, seed: int) -> bool:
        """Whether the power went before the rotation was over."""
        cluster = RaftCluster(seed, 3, **SMALL)
        leader = await cluster.start()
        for i in range(60):
            await leader.propose(b"%d" % i)
        await cluster.converged()
        host = next(h for h in cluster.hosts if (h.node is leader) == (which == "leader"))
        host.disk.faults.crash_at_step = cut_at
        rotating = asyncio.ensure_future(rotate(host))
        await until(lambda: rotating.done() or host.node is None)
        cut = host.node is None
        rotating.cancel()
        await asyncio.wait([rotating])
        host.disk.faults.crash_at_step = None
        if not cut:
            return False
        again = await host.start()
        assert again is not None
        assert host.keys is not None
        await cluster.leader()
        if not host.keys.codec.keys.settled:
            await host.keys.finish(again)
        check_only_key(host)
        await (await cluster.leader()).propose(b"last")
        await cluster.converged()
        assert host.fsm.values() == [*(b"%d" % i for i in range(60)), b"last"]
        for each in cluster.hosts:
            await each.stop(transfer=False)
        return True

    steps = 0
    while run(life(steps, seed=steps)):
        steps += 1
    assert steps > 20


def test_without_a_majority_a_rotation_waits_and_keeps_the_old_key() -> None:
    async def main() -> None:
        cluster = RaftCluster(5, 3)
        leader = await cluster.start()
        await leader.propose(b"x")
        host = cluster.host(leader.core.raft_id)
        others = [h for h in cluster.hosts if h is not host]
        for other in others:
            cluster.net.isolate(other.addr, cluster.addresses)
        lost = asyncio.ensure_future(leader.propose(b"uncommitted"))
        await until(lambda: leader.core.log.last_index > leader.core.log.commit)
        rotating = asyncio.ensure_future(rotate(host))
        await asyncio.sleep(20)
        assert not rotating.done()
        assert host.keys is not None
        assert [k.id for k in host.keys.codec.keys.keys] == [1, 2]
        cluster.net.heal()
        await asyncio.wait_for(rotating, 20)
        check_only_key(host)
        await asyncio.wait([lost])
        if lost.exception() is None:
            assert b"uncommitted" in host.fsm.values()

    run(main())


def test_a_snapshot_begun_under_the_old_key_does_not_stay() -> None:
    async def main() -> None:
        cluster = RaftCluster(6, 1)
        node = await cluster.start()
        host = cluster.hosts[0]
        for i in range(20):
            await node.propose(b"%d" % i)
        node.driver.keep_snapshot(node._meta(), node._fsm.snapshot())
        older = next(iter(node.driver._tasks))
        await asyncio.sleep(0)  # its first step is on its way, under the old key
        await rotate(host)
        assert older.done()
        check_only_key(host)

    run(main())


def test_a_member_that_stops_ends_its_rotation() -> None:
    async def main() -> None:
        cluster = RaftCluster(5, 3)
        leader = await cluster.start()
        host = cluster.host(leader.core.raft_id)
        for other in cluster.hosts:
            if other is not host:
                cluster.net.isolate(other.addr, cluster.addresses)
        lost = asyncio.ensure_future(leader.propose(b"uncommitted"))
        await until(lambda: leader.core.log.last_index > leader.core.log.commit)
        rotating = asyncio.ensure_future(rotate(host))
        await asyncio.sleep(1)
        await host.stop(transfer=False)
        with pytest.raises(Stopped):
            await rotating
        await asyncio.wait([lost])
        assert lost.exception() is not None
        with pytest.raises(Stopped):
            await rotate(host) if host.node else await leader.rotate_log()

    run(main())
