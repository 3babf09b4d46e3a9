"""What goes wrong in a simulated raft cluster: one deed after the other, each drawn from its own seed.

Owns the deeds and bringing back what they broke. Deed ``n`` of a story draws from a generator of its own, so that leaving one out (to
find the smallest story that still fails) leaves the others as they are.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec

from swarm_agent.raft import Member, RaftNode
from tests.lib.fake_disk import DiskFaults
from tests.lib.fake_net import LinkFaults
from tests.lib.process_loop import ProcessLoop
from tests.lib.raft_checks import Violation
from tests.lib.raft_clients import REFUSALS
from tests.lib.raft_cluster import RaftCluster, RaftHost

DEEDS = (
    *("crash",) * 2,
    "crash_leader",
    "crash_all",
    *("power_cut_in_a_write",) * 3,
    *("pause",) * 2,
    "pause_leader",
    "partition",
    "isolate_leader",
    *("reject_leader",) * 2,
    "cut_one_way",
    *("heal_network",) * 5,
    "bad_network",
    "slow_disk",
    "failing_disk",
    "full_disk",
    "clock_rate",
    "clock_jump",
    *("hand_over",) * 2,
    "reset_connections",
    *("demote",) * 2,
    *("promote",) * 2,
    "new_address",
    *("replace_member",) * 2,
)
HARMLESS = {"heal_network", "hand_over", "promote"}  # no faults


class Nemesis:
    def __init__(
        self,
        cluster: RaftCluster,
        seed: int,
        *,
        size: int,
        pause_s: tuple[float, float],
        deeds: tuple[str, ...] = DEEDS,
        only: tuple[int, ...] | None = None,
    ) -> None:
        self.did: Counter[str] = Counter()
        self.log: list[tuple[int, float, str]] = []
        self.retired: set[int] = set()
        """Raft ids that are removed for good."""
        self.installed = 0
        """Snapshots from leaders that members took over, as far as they have ended."""
        self._cluster = cluster
        self._seed = seed
        self._size = size
        self._pause_s = pause_s
        self._deeds = deeds
        self._only = None if only is None else frozenset(only)
        self._rng = random.Random(f"{seed} nemesis")
        self._drawn = self._rng
        self._work: dict[asyncio.Task[None], None] = {}
        self._failures: list[BaseException] = []
        self._rising: set[int] = set()
        self._down_before: set[int] = set()
        self._ended = 0

    @property
    def faults(self) -> int:
        return sum(count for name, count in self.did.items() if name in DEEDS and name not in HARMLESS)

    async def run(self) -> None:
        number = 0
        while True:
            await asyncio.sleep(self._rng.uniform(*self._pause_s))
            name = self._rng.choice(self._deeds)
            number += 1
            if self._only is None or number in self._only:
                self._drawn = random.Random(f"{self._seed} {number}")
                if getattr(self, "_" + name)():
                    self.did[name] += 1
                    self.log.append((number, asyncio.get_running_loop().time(), name))
            self._revive()
            if self._failures:
                raise self._failures[0]

    def _revive(self) -> None:
        """A power cut that was laid for one process may hit a later one, for which nobody waits any more."""
        down = {
            host.raft_id
            for host in self._cluster.hosts
            if not host.is_up and host.raft_id not in self.retired | self._rising
        }
        for raft_id in sorted(down & self._down_before):
            self._later(self._up(self._cluster.host(raft_id), 0.0))
        self._down_before = down

    async def end(self) -> None:
        """No more faults, and everybody who belongs to the cluster runs."""
        for task in self._work:
            task.cancel()
        if self._work:
            await asyncio.wait(self._work)
        self._heal_network()
        for host in self._cluster.hosts:
            host.disk.faults = DiskFaults()
            host.process.resume()
        await asyncio.sleep(0.1)  # who found a broken disk ends now
        for host in self._cluster.hosts:
            if host.node is not None and host.node.status().failure:
                self._bury(host)
            if not host.is_up and host.raft_id not in self.retired:
                await self._begin(host)
        if self._failures:
            raise self._failures[0]

    def count_installed(self) -> None:
        """Of the members that live."""
        for host in self._cluster.hosts:
            self._count_installed(host)

    # -- bringing back ------------------------------------------------------------------------------------------------

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._work[task] = None
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._work[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)

    async def _begin(self, host: RaftHost) -> bool:
        if await host.start() is None:
            return False
        host.fsm.restored = 0  # its own snapshot does not count
        return True

    def _count_installed(self, host: RaftHost) -> None:
        self.installed += host.fsm.restored
        host.fsm.restored = 0

    def _bury(self, host: RaftHost, *, keep: float | None = None) -> None:
        if host.node is not None:
            self._count_installed(host)
        host.crash(keep=keep)

    async def _up(self, host: RaftHost, after_s: float) -> None:
        self._rising.add(host.raft_id)
        try:
            await asyncio.sleep(after_s)
            while not host.is_up and host.raft_id not in self.retired:
                if not await self._begin(host):
                    await asyncio.sleep(0.1)
        finally:
            self._rising.discard(host.raft_id)

    def _running(self) -> list[RaftHost]:
        return [host for host in self._cluster.hosts if host.node is not None]

    def _leader(self) -> RaftHost | None:
        leader = self._cluster.current_leader()
        return self._cluster.host(leader.core.raft_id) if leader is not None else None

    def _somebody(self) -> RaftHost | None:
        running = self._running()
        return self._drawn.choice(running) if running else None

    # -- crashes and pauses -------------------------------------------------------------------------------------------

    def _crash(self) -> bool:
        return self._down(self._somebody())

    def _crash_leader(self) -> bool:
        return self._down(self._leader())

    def _crash_all(self) -> bool:
        running = self._running()
        for host in running:
            self._down(host)
        return bool(running)

    def _down(self, host: RaftHost | None) -> bool:
        if host is None:
            return False
        self.did["crashes"] += 1
        self._bury(host)
        self._later(self._up(host, self._drawn.uniform(0.01, 3.0)))
        return True

    def _power_cut_in_a_write(self) -> bool:
        host = self._somebody()
        if host is None:
            return False
        if self._drawn.random() < 0.5:
            host.disk.faults.crash_at_step = self._drawn.randrange(0, 14)
        else:
            host.disk.faults.crash_in = self._drawn.choice(
                ["append", "rename", "remove", "sync_dir", "truncate"]
            )
        self._later(self._up_when_down(host, host.node, self._drawn.uniform(0.01, 1.5)))
        return True

    async def _up_when_down(self, host: RaftHost, node: RaftNode | None, after_s: float) -> None:
        """``node``: the one that is to be hit, which may have happened before this has its first turn. Something else may end it
        first: then the cut is still to come, to the next one."""

        def replaced(node: RaftNode | None) -> bool:
            return host.node is not node

        faults, pending = host.disk.faults, True
        while pending:
            await _when(partial(replaced, node))
            if host.node is None:
                self._count_installed(host)
                await self._up(host, after_s)
            node, pending = host.node, host.disk.faults is faults and faults.cut_is_coming

    def _pause(self) -> bool:
        return self._stop(self._somebody())

    def _pause_leader(self) -> bool:
        return self._stop(self._leader())

    def _stop(self, host: RaftHost | None) -> bool:
        """SIGSTOP, or a hypervisor that has better things to do."""
        if host is None or host.process.stopped:
            return False
        self.did["paused"] += 1
        host.process.stop()
        self._later(self._go_on(host, self._drawn.choice([0.1, 0.7, 1.5, 4.0]), self._drawn.random() < 0.5))
        return True

    async def _go_on(self, host: RaftHost, after_s: float, timers_first: bool) -> None:
        process = host.process
        await asyncio.sleep(after_s)
        process.resume(timers_first=timers_first)

    # -- the network --------------------------------------------------------------------------------------------------

    def _partition(self) -> bool:
        addresses = self._cluster.addresses
        self._drawn.shuffle(addresses)
        at = self._drawn.randrange(1, len(addresses))
        self._cluster.net.partition(addresses[:at], addresses[at:])
        return True

    def _isolate_leader(self) -> bool:
        host = self._leader()
        if host is not None:
            self._cluster.net.isolate(host.addr, self._cluster.addresses)
        return host is not None

    def _reject_leader(self) -> bool:
        """A firewall that answers with resets: the others know at once and elect, while the leader still believes."""
        host = self._leader()
        if host is None or not self._isolate_leader():
            return False
        for other in self._running():
            if other is not host and not other.process.stopped:
                assert other.node is not None
                other.process.context.run(other.node.peer_lost, host.raft_id)
        return True

    def _cut_one_way(self) -> bool:
        source, target = self._drawn.sample(self._cluster.addresses, 2)
        self._cluster.net.cut(source, target)
        return True

    def _heal_network(self) -> bool:
        self._cluster.net.heal()
        self._cluster.net.faults = LinkFaults()
        return True

    def _bad_network(self) -> bool:
        uniform = self._drawn.uniform
        self._cluster.net.faults = LinkFaults(
            delay_max=uniform(0.0005, 0.05),
            drop=uniform(0, 0.25),
            duplicate=uniform(0, 0.3),
            reorder=uniform(0, 0.4),
            reorder_s=uniform(0.01, 1.5),
        )
        return True

    def _reset_connections(self) -> bool:
        for host in self._running():
            if self._drawn.random() < 0.5:
                node, lost = host.node, self._drawn.choice(self._cluster.hosts).raft_id
                assert node is not None
                if not host.process.stopped:
                    host.process.context.run(node.peer_lost, lost)
        return True

    # -- disks --------------------------------------------------------------------------------------------------------

    def _slow_disk(self) -> bool:
        host = self._drawn.choice(self._cluster.hosts)
        host.disk.faults.latency_max = self._drawn.choice([0.001, 0.02, 0.2])
        return True

    def _failing_disk(self) -> bool:
        """Syncs fail; what they were for is lost at the next start."""
        host = self._somebody()
        if host is None or host.disk.faults.fail_sync:
            return False
        host.disk.faults.fail_sync = True
        self._later(self._end_of_a_disk(host, self._drawn.uniform(0.1, 2.0), keep=None))
        return True

    def _full_disk(self) -> bool:
        """Nothing is lost but what did not fit: the tail of a record remains."""
        host = self._somebody()
        if host is None or host.disk.faults.capacity is not None:
            return False
        host.disk.faults.capacity = host.disk.used + self._drawn.randrange(3000)
        self._later(self._end_of_a_disk(host, self._drawn.uniform(0.1, 2.0), keep=1.0))
        return True

    async def _end_of_a_disk(self, host: RaftHost, after_s: float, *, keep: float | None) -> None:
        """A member whose disk fails ends by itself and says so; then somebody repairs the disk and starts it again."""
        node = host.node
        assert node is not None
        await _when(lambda: host.node is not node or host.disk_failed)
        host.disk.faults = DiskFaults()  # a transient error: only whoever goes on after it can be hurt again
        await _when(lambda: host.node is not node or node.status().role == "stopped")
        if host.node is not node:
            return  # something else ended it first
        if not host.disk_failed or not node.status().failure:
            raise Violation(f"member {host.raft_id} ended without saying that its disk had failed")
        try:
            await node.wait_closed()
        except OSError:
            self.did["disk_failures"] += 1
        else:
            raise Violation(f"member {host.raft_id} ended as if its disk had not failed")
        self._bury(host, keep=keep)
        await self._up(host, after_s)

    # -- clocks -------------------------------------------------------------------------------------------------------

    def _clock_rate(self) -> bool:
        loop = asyncio.get_running_loop()
        host = self._drawn.choice(self._cluster.hosts)
        host.clock.change(loop.time(), rate=self._drawn.uniform(0.8, 1.2))
        return isinstance(loop, ProcessLoop)

    def _clock_jump(self) -> bool:
        """Forward, as after a suspended machine: its process finds that many ticks are missing."""
        loop = asyncio.get_running_loop()
        host = self._drawn.choice(self._cluster.hosts)
        host.clock.change(loop.time(), jump_s=self._drawn.choice([0.2, 1.0, 30.0]))
        return isinstance(loop, ProcessLoop)

    # -- leadership and membership ------------------------------------------------------------------------------------

    def _hand_over(self) -> bool:
        return self._try("transfers", lambda leader: leader.transfer())

    def _demote(self) -> bool:
        """And back, after a while: a cluster that shrinks for ever proves little."""
        if not self._set_learner(learner=True):
            return False
        self._later(self._restore_voters(self._drawn.uniform(1.0, 5.0)))
        return True

    async def _restore_voters(self, after_s: float) -> None:
        for _ in range(5):
            await asyncio.sleep(after_s)
            if self._leader() is not None and not self._promote():
                return

    def _promote(self) -> bool:
        return self._set_learner(learner=False)

    def _set_learner(self, *, learner: bool) -> bool:
        leader = self._leader()
        if leader is None or leader.node is None:
            return False
        members = [m for m in leader.node.status().members if m.learner is not learner]
        if learner and len(members) < 3:
            return False
        wanted = [msgspec.structs.replace(m, learner=learner) for m in members]
        if not wanted:
            return False
        chosen = self._drawn.choice(wanted)
        return self._try("demoted" if learner else "promoted", lambda node: node.update_member(chosen))

    def _new_address(self) -> bool:
        """A host comes back elsewhere; its peers hear it and the membership is told. One at a time: who moves while it does
        not know where the others went is lost to any protocol."""
        leader, host = self._leader(), self._somebody()
        if leader is None or leader.node is None or host is None or host is leader:
            return False
        for member in leader.node.status().members:
            if self._cluster.host(member.raft_id).addr != member.addr:
                return self._announce(self._cluster.host(member.raft_id))
        if not all(self._knows_everybody(m.raft_id) for m in leader.node.status().members):
            return False
        self._bury(host)
        host.addr = f"{host.addr.split('/')[0]}/{self.did['new_address'] + 1}"
        self._later(self._moved(host))
        return True

    def _knows_everybody(self, raft_id: int) -> bool:
        node = self._cluster.host(raft_id).node
        known = node.status().members if node is not None else ()
        return bool(known) and all(self._cluster.host(m.raft_id).addr == m.addr for m in known)

    async def _moved(self, host: RaftHost) -> None:
        await self._up(host, self._drawn.uniform(0.01, 1.0))
        self._announce(host)

    def _announce(self, host: RaftHost) -> bool:
        def move(node: RaftNode) -> Coroutine[Any, Any, None]:
            known = next((m for m in node.status().members if m.raft_id == host.raft_id), host.member)
            return node.update_member(msgspec.structs.replace(known, addr=host.addr))

        return self._try("moved", move)

    def _replace_member(self) -> bool:
        """Remove somebody for good; a new host joins in its place."""
        leader = self._leader()
        if leader is None or leader.node is None:
            return False
        victims: list[Member] = [m for m in leader.node.status().members if m.raft_id not in self.retired]
        if len(victims) > self._size - 1 and self._drawn.random() < 0.5:
            victim = self._drawn.choice(victims)
            return self._try("removed", lambda node: self._remove(node, victim.raft_id))
        if 0 < len(victims) <= self._size:
            host = self._cluster.new_host()
            return self._try("joined", lambda node: node.add_member(host.member), first=self._begin(host))
        return False

    async def _remove(self, leader: RaftNode, raft_id: int) -> None:
        await leader.remove_member(raft_id)
        self.retired.add(raft_id)

    def _try(
        self,
        name: str,
        work: Callable[[RaftNode], Coroutine[Any, Any, None]],
        *,
        first: Coroutine[Any, Any, bool] | None = None,
    ) -> bool:
        """At the leader, with the patience of a few seconds; refusals and silence are part of life."""
        leader = self._leader()
        if leader is None or leader.node is None:
            if first is not None:
                first.close()
            return False
        self._later(self._attempt(name, leader, leader.node, work, first))
        return True

    async def _attempt(
        self,
        name: str,
        leader: RaftHost,
        node: RaftNode,
        work: Callable[[RaftNode], Coroutine[Any, Any, None]],
        first: Coroutine[Any, Any, bool] | None,
    ) -> None:
        if first is not None:
            await first
        task = leader.call(work(node))
        try:
            await asyncio.wait([task], timeout=5.0)
        finally:
            if not task.done():
                task.cancel()
        if task.done() and not task.cancelled():
            error = task.exception()
            if error is None:
                self.did[name] += 1
            elif not isinstance(error, REFUSALS):
                raise error


async def _when(condition: Callable[[], bool]) -> None:
    """However long it takes."""
    while not condition():
        await asyncio.sleep(0.05)
