"""One seeded story of a raft cluster under everything that can go wrong, and its peaceful end.

``chaos(seed)`` runs clients against members while a nemesis crashes, stops, cuts, slows, fills and changes membership; then it heals everything,
demands progress within a few election timeouts, and asks whether one order explains every answer the clients got. The same seed is the
same story, step by step.

    chaos(7)                                   # the plan of seed 7: 3, 5 or 7 members
    chaos(7, plan_of(7, quick=True))           # a short one
    chaos(7, ChaosPlan(size=3, only=(4, 9)))   # of its deeds only the fourth and the ninth
"""

from __future__ import annotations

import asyncio
import random

import msgspec

from tests.lib.key_value import KeyValue
from tests.lib.process_loop import ProcessLoop
from tests.lib.raft_checks import RaftChecks, Violation
from tests.lib.raft_clients import Clients
from tests.lib.raft_cluster import RaftCluster, RaftHost, until
from tests.lib.raft_nemesis import DEEDS, Nemesis

SIZES = (3, 5, 3, 7)  # three is what most people run


class ChaosPlan(msgspec.Struct, frozen=True, kw_only=True):
    size: int = 3
    seconds: float = 60.0
    operations: int = 500
    """The story goes on until so many operations were answered and ``faults`` happened, eight times ``seconds`` at most."""
    faults: int = 5
    clients: int = 6
    pause_s: float = 0.15
    """Between a client's operations, on average."""
    nemesis_s: tuple[float, float] = (0.1, 2.2)
    """Least and most seconds between two deeds."""
    deeds: tuple[str, ...] = DEEDS
    only: tuple[int, ...] | None = None
    """Do only these of the deeds, counted from one; None: all."""
    invariants: bool = True
    """Look inside the members after every step. Without it only the clients' answers are judged."""
    heal_s: float = 15.0
    """Within so many seconds after the end of all faults a write must succeed and all members must agree."""


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, in one story or in many."""

    seconds: float = 0
    operations: int = 0
    reads: int = 0
    faults: int = 0
    elections: int = 0
    snapshots_installed: int = 0
    membership_changes: int = 0
    truncations: int = 0
    torn_tails: int = 0
    crashes: int = 0
    paused: int = 0
    disk_failures: int = 0
    transfers: int = 0
    clock_jumps: int = 0
    demoted: int = 0
    promoted: int = 0
    moved: int = 0

    def __add__(self, other: Totals) -> Totals:
        names = self.__struct_fields__
        return Totals(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def __str__(self) -> str:
        return ", ".join(
            f"{getattr(self, name):.0f} {name.replace('_', ' ')}" for name in self.__struct_fields__
        )


class Failure(msgspec.Struct, frozen=True):
    error: Exception
    """With notes: the deeds, where the members stood, and the line that replays it."""
    at: float
    deeds: tuple[int, ...]


class ChaosResult(msgspec.Struct, frozen=True):
    """Two runs of one seed give equal results."""

    totals: Totals
    steps: int
    term: int
    state: tuple[int, int, int]
    power_cuts: dict[str, int]
    """By the disk call they came in."""
    deeds: tuple[tuple[int, float, str], ...]


def plan_of(seed: int, *, quick: bool = False) -> ChaosPlan:
    """The plan that a seed stands for in the test runs."""
    size = SIZES[seed % len(SIZES)]
    if quick:
        return ChaosPlan(size=size, seconds=10, operations=80, faults=2, nemesis_s=(0.05, 0.9))
    return ChaosPlan(size=size)


def chaos(seed: int, plan: ChaosPlan | None = None) -> ChaosResult:
    """Raises ``Violation``, ``NotLinearizable`` or what else broke if the story goes wrong."""
    outcome = attempt(seed, plan or plan_of(seed))
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


def attempt(seed: int, plan: ChaosPlan) -> ChaosResult | Failure:
    """As ``chaos``, for those who go on with a failure: it is returned."""
    story = _Story(seed, plan)
    with ProcessLoop() as loop:
        loop.after_step = story.step
        try:
            return loop.run_until_complete(story.run())
        except Exception as error:  # noqa: BLE001
            for number, at, name in story.nemesis.log:
                error.add_note(f"{at:9.4f} s: deed {number}, {name}")
            for host in story.cluster.hosts:
                error.add_note(f"member {host.raft_id}: {_outline(host)}")
            error.add_note(f"failed at {loop.world_time:.4f} s; replay with chaos({seed}, {_told(plan)})")
            return Failure(error, loop.world_time, tuple(number for number, _, _ in story.nemesis.log))
        finally:
            loop.after_step = None
            story.end()


def _told(plan: ChaosPlan) -> str:
    """What differs from the default, ready to be pasted."""
    plain = ChaosPlan()
    changed = {
        name: getattr(plan, name)
        for name in plan.__struct_fields__
        if getattr(plan, name) != getattr(plain, name)
    }
    return f"ChaosPlan({', '.join(f'{name}={value!r}' for name, value in changed.items())})"


def _outline(host: RaftHost) -> str:
    if host.node is None:
        return "down"
    core, status = host.node.core, host.node.status()
    members = ",".join(f"{m.raft_id}{'l' if m.learner else ''}" for m in core.conf.members)
    state = "stopped " if host.process.stopped else ""
    return (
        f"{state}{status.role}, term {core.term}, leader {core.leader}, commit {core.log.commit}, last {core.log.last_index},"
        f" members {members}{', removed' if core.removed else ''} {status.failure}"
    )


class _Story:
    def __init__(self, seed: int, plan: ChaosPlan) -> None:
        self.plan = plan
        rng = random.Random(seed)
        self.cluster = RaftCluster(
            seed,
            plan.size,
            new_fsm=KeyValue,
            snapshot_interval=60,
            keep_entries=10,
            chunk_bytes=300,
            chunk_timeout_s=0.3,
            segment_bytes=4000,
            max_append_bytes=400,
            max_in_flight=4,
        )
        for host in self.cluster.hosts:
            host.clock.change(0.0, rate=rng.uniform(0.85, 1.2))
        self.checks = RaftChecks(self.cluster) if plan.invariants else None
        self.clients = Clients(self.cluster, self.checks, seed, count=plan.clients, pause_s=plan.pause_s)
        self.nemesis = Nemesis(
            self.cluster, seed, size=plan.size, pause_s=plan.nemesis_s, deeds=plan.deeds, only=plan.only
        )
        self._steps = 0

    def step(self) -> None:
        self._steps += 1
        if self.checks is not None:
            self.checks()

    def end(self) -> None:
        for host in self.cluster.hosts:
            if host.node is not None:
                host.node.abandon()

    async def run(self) -> ChaosResult:
        plan, cluster, clients, nemesis = self.plan, self.cluster, self.clients, self.nemesis
        async with asyncio.timeout(plan.heal_s):
            await self._found()
        changes = self.checks.conf_entries if self.checks else 0
        people = clients.start()
        trouble = asyncio.ensure_future(nemesis.run())
        await self._watch([*people, trouble])
        trouble.cancel()
        await asyncio.wait([trouble])
        await nemesis.end()
        await self._progress()
        clients.finish()
        await asyncio.gather(*people)
        await cluster.converged(plan.heal_s)
        if self.checks is not None:
            self.checks.finished()
        clients.history.check()
        leader = await cluster.leader()
        nemesis.count_installed()
        did, checks = nemesis.did, self.checks
        disks = [host.disk for host in cluster.hosts]
        return ChaosResult(
            Totals(
                seconds=asyncio.get_running_loop().time(),
                operations=len(clients.history),
                reads=clients.reads,
                faults=nemesis.faults,
                elections=checks.elections if checks else 0,
                snapshots_installed=nemesis.installed,
                membership_changes=checks.conf_entries - changes if checks else 0,
                truncations=checks.truncations if checks else 0,
                torn_tails=sum(disk.torn_tails for disk in disks),
                crashes=did["crashes"] + sum(sum(disk.cuts.values()) for disk in disks),
                paused=did["paused"],
                disk_failures=did["disk_failures"],
                transfers=did["transfers"],
                clock_jumps=did["clock_jump"],
                demoted=did["demoted"],
                promoted=did["promoted"],
                moved=did["moved"],
            ),
            self._steps,
            leader.core.term,
            cluster.host(leader.core.raft_id).fsm.digest,
            {
                call: sum(disk.cuts.get(call, 0) for disk in disks)
                for call in sorted({call for disk in disks for call in disk.cuts})
            },
            tuple(nemesis.log),
        )

    async def _found(self) -> None:
        """Each in its own process, or its clock would not be its own."""
        first, *others = self.cluster.hosts
        node = await first.start(bootstrap=True)
        assert node is not None
        await self.cluster.leader()
        for host in others:
            await host.start()
            await first.call(node.add_member(host.member))

    async def _watch(self, tasks: list[asyncio.Task[None]]) -> None:
        """Until the story was long enough, or something broke."""
        plan, loop = self.plan, asyncio.get_running_loop()
        started = loop.time()
        while True:
            done, _ = await asyncio.wait(tasks, timeout=1.0, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            passed = loop.time() - started
            enough = len(self.clients.history) >= plan.operations and self.nemesis.faults >= plan.faults
            if passed >= plan.seconds * (1 if enough or plan.only is not None else 8):
                return

    async def _progress(self) -> None:
        """No more faults: within ``heal_s`` a write succeeds and every former member knows that it is one."""
        async with asyncio.timeout(self.plan.heal_s):
            while not await self.clients.write_now():
                await asyncio.sleep(0.05)
            leader = await self.cluster.leader()
            await self.clients.read_everywhere({m.raft_id for m in leader.core.conf.members})
            gone = {m.raft_id for m in leader.core.conf.removed}
            await until(lambda: self._all_know(gone), self.plan.heal_s)
        members = {m.raft_id for m in (await self.cluster.leader()).status().members}
        for host in self.cluster.hosts:
            if host.node is not None and host.raft_id not in members:
                await host.stop()

    def _all_know(self, gone: set[int]) -> bool:
        former = [node for node in self.cluster.nodes if node.core.raft_id in gone]
        return all(node.status().removed or not node.core.conf.members for node in former)


__all__ = ["ChaosPlan", "ChaosResult", "Failure", "Totals", "Violation", "attempt", "chaos", "plan_of"]
