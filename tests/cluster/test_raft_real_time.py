"""Three members in real time: real disks, real threads, in-process transport, two event loops (asyncio's and uvloop)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from swarm_agent.raft import Member, RaftConfig, RaftNode, RealDisk
from tests.lib.raft_cluster import Ledger


class Wire:
    """Hands frames over on the next pass of the loop."""

    def __init__(self) -> None:
        self.receivers: dict[str, Callable[[bytes], None]] = {}

    def send(self, to: Member, frame: bytes) -> None:
        receive = self.receivers.get(to.addr)
        if receive is not None:
            asyncio.get_running_loop().call_soon(receive, frame)


class Machine:
    def __init__(self, wire: Wire, raft_id: int, directory: Path) -> None:
        self.wire = wire
        self.directory = directory
        self.member = Member(raft_id, f"n{raft_id}", f"a{raft_id}")
        self.fsm = Ledger()

    async def start(self, *, found: bool = False) -> RaftNode:
        self.disk = RealDisk(self.directory)
        self.fsm = Ledger()
        config = RaftConfig(
            cluster_id="real",
            raft_id=self.member.raft_id,
            node_id=self.member.node_id,
            addr=self.member.addr,
            snapshot_interval=300,
            keep_entries=20,
            segment_bytes=1 << 16,
        )
        self.node = await RaftNode.start(
            config,
            disk=self.disk,
            transport=self.wire,
            fsm=self.fsm,
            rng=random.Random(self.member.raft_id),
            bootstrap=self.member if found else None,
        )
        self.wire.receivers[self.member.addr] = self.node.receive
        return self.node

    async def stop(self, *, transfer: bool = True) -> None:
        await self.node.stop(transfer=transfer)
        del self.wire.receivers[self.member.addr]
        self.disk.close()


async def leader_of(machines: list[Machine]) -> RaftNode:
    """By the members' own announcements, not by looking again and again."""
    found: asyncio.Future[RaftNode] = asyncio.get_running_loop().create_future()

    def look(*_: object) -> None:
        for machine in machines:
            if machine.node.is_leader and not found.done():
                found.set_result(machine.node)

    for machine in machines:
        machine.node.on_change(look)
    look()
    return await asyncio.wait_for(found, 10)


async def story(tmp_path: Path) -> None:
    wire = Wire()
    machines = [Machine(wire, i, tmp_path / str(i)) for i in (1, 2, 3)]
    first = await machines[0].start(found=True)
    await leader_of(machines[:1])
    for machine in machines[1:]:
        await machine.start()
        await first.add_member(machine.member)
    await asyncio.gather(*(first.propose(b"%d" % i) for i in range(1000)))

    await machines[0].stop()
    leader = await leader_of(machines[1:])
    await leader.propose(b"without the first")
    await machines[0].start()
    await leader.propose(b"with it")

    for machine in machines:
        await machine.stop(transfer=False)
    for machine in machines:
        await machine.start()
    leader = await leader_of(machines)
    await leader.propose(b"after a full restart")
    for machine in machines:
        if machine.node.is_leader:
            await machine.node.read_barrier()
    expected = [b"%d" % i for i in range(1000)] + [b"without the first", b"with it", b"after a full restart"]
    for machine in machines:
        while machine.fsm.values() != expected:
            await machine.node.read_barrier()
        assert machine.node.status().failure == ""
    assert any(machine.node.status().snapshot_index for machine in machines)
    for machine in machines:
        await machine.stop(transfer=False)


@pytest.mark.slow
@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_three_members_in_real_time_over_restarts(
    runner: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    runner(story(tmp_path))
