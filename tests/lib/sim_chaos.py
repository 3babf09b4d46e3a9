"""One seeded story of a whole cluster: people change services while hosts, links, engines and tasks fail; then peace.

``chaos(seed)`` raises ``Violation`` or ``NotSettled`` when the story goes wrong. The same seed is the same story, to the last call.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec

from swarm_agent.objects import defaults
from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.options import options
from tests.lib.fake_engine import EngineFaults
from tests.lib.fake_rpc import RpcFaults
from tests.lib.sim_checks import ClusterChecks, Violation, unsettled
from tests.lib.sim_cluster import NotSettled, SimCluster, simulation
from tests.lib.sim_host import SimHost
from tests.lib.workload import CALL_S, Workload


class SimPlan(msgspec.Struct, frozen=True, kw_only=True):
    managers: int = 3
    workers: int = 2
    seconds: float = 25.0
    people: int = 2
    heal_s: float = 150.0
    """Within so long after the last fault everything must be as declared: a minute of patience with a task that does not stop, twice."""
    roles: bool = True
    """Nodes are promoted and demoted."""
    leaving: bool = True
    """Nodes leave for good and join anew."""


class SimResult(msgspec.Struct, frozen=True):
    """Two runs of one seed give equal results."""

    trace: str
    events: int
    seconds: float
    acknowledged: int
    deeds: int


def chaos(seed: int, plan: SimPlan | None = None) -> SimResult:
    with simulation(seed) as sim:
        story = _Story(sim.cluster, plan or SimPlan())
        sim.loop.after_step = story.checks
        return sim.run(story.run())


class _Story:
    def __init__(self, cluster: SimCluster, plan: SimPlan) -> None:
        self.cluster = cluster
        self.plan = plan
        self.checks = ClusterChecks(cluster)
        self.rng = random.Random(cluster.rng.getrandbits(64))
        self.people = Workload(cluster, self.rng)
        self._deeds = 0
        self._leaving: dict[str, None] = {}  # names of hosts
        self._work: dict[asyncio.Task[None], None] = {}

    async def run(self) -> SimResult:
        cluster, plan = self.cluster, self.plan
        await cluster.start(plan.managers, plan.workers)
        await self.people.prepare()
        people = [asyncio.create_task(self.people.run()) for _ in range(plan.people)]
        nemesis = asyncio.create_task(self._nemesis())
        done, _ = await asyncio.wait(
            [*people, nemesis], timeout=plan.seconds, return_when=asyncio.FIRST_EXCEPTION
        )
        for task in done:
            task.result()
        self.people.over = True
        nemesis.cancel()
        await asyncio.wait([nemesis, *people])
        for task in people:
            task.result()
        for task in list(self._work):
            task.cancel()
        if self._work:
            await asyncio.wait(list(self._work))
        await self._heal()
        await self._peace()
        self.people.nothing_lost()
        await asyncio.sleep(3.0)
        second = cluster.leader().now() // defaults.SECOND % 60
        if (
            second >= 55 or second < 8
        ):  # what is due at the full minute begins, and what was kept of it before is cleaned up
            await asyncio.sleep((68 - second) % 60)
        if said := unsettled(cluster, scheduled=False):
            raise Violation(f"seed {cluster.seed}: it settled, and then: {said}")
        await self._calm()
        loop = asyncio.get_running_loop()
        return SimResult(cluster.trace, cluster.events, loop.time(), self.people.acknowledged, self._deeds)

    # --- the nemesis ---------------------------------------------------------------------------------------------------------
    async def _nemesis(self) -> None:
        deeds: list[Callable[[], None]] = [
            self._kill,
            self._kill,
            self._kill_leader,
            self._restart,
            self._power_cut,
            self._partition,
            self._isolate_leader,
            self._cut_one_way,
            self._heal_net,
            self._heal_net,
            self._bad_net,
            self._reset_connections,
            self._full_disk,
            self._engine_down,
            self._engine_errs,
            self._engine_errs,
            self._fail_tasks,
            self._fail_tasks,
            self._drain,
            self._skew,
            self._meddle,
        ]
        if self.plan.roles:
            deeds.append(self._change_role)
        if self.plan.leaving:
            deeds += [self._leave, self._lose_state]
        while True:
            await asyncio.sleep(self.rng.uniform(0.1, 2.0))
            deed = self.rng.choice(deeds)
            self._deeds += 1
            self.cluster.note(deed.__name__)
            deed()

    def _later(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._work[task] = None
        task.add_done_callback(lambda done: self._work.pop(done, None))

    def _some_host(self) -> SimHost | None:
        running = [h for h in self.cluster.hosts.values() if h.process is not None]
        return self.rng.choice(running) if len(running) > 2 else None

    def _kill(self) -> None:
        self._down(self._some_host(), "kill")

    def _kill_leader(self) -> None:
        self._down(self.cluster.leading(), "kill")

    def _restart(self) -> None:
        self._down(self._some_host(), "stop")

    def _power_cut(self) -> None:
        self._down(self._some_host(), "power_cut")

    def _down(self, host: SimHost | None, how: str) -> None:
        if host is not None and host.process is not None:
            self._later(self._down_and_up(host, how, self.rng.uniform(0.05, 8.0)))

    async def _down_and_up(self, host: SimHost, how: str, after_s: float) -> None:
        await getattr(host, how)()
        await asyncio.sleep(after_s)
        if host.process is None:
            host.start()

    def _partition(self) -> None:
        addresses = self.cluster.addresses
        self.rng.shuffle(addresses)
        at = self.rng.randrange(1, len(addresses))
        self.cluster.net.partition(addresses[:at], addresses[at:])

    def _isolate_leader(self) -> None:
        leader = self.cluster.leading()
        if leader is not None:
            self.cluster.isolate(leader.name)

    def _cut_one_way(self) -> None:
        self.cluster.net.cut(*self.rng.sample(self.cluster.addresses, 2))

    def _heal_net(self) -> None:
        self.cluster.net.heal()
        self.cluster.net.faults = RpcFaults()

    def _bad_net(self) -> None:
        self.cluster.net.faults = RpcFaults(
            delay_max=self.rng.uniform(0.001, 0.1), reset=self.rng.choice([0.0, 0.001, 0.01])
        )

    def _reset_connections(self) -> None:
        self.cluster.net.reset(self.rng.choice(self.cluster.addresses))

    def _full_disk(self) -> None:
        """Of a manager, the leader's as likely as all others' together."""
        managers = [h for h, _ in self.cluster.managers()]
        leader = self.cluster.leading()
        if managers:
            host = leader if leader is not None and self.rng.random() < 0.5 else self.rng.choice(managers)
            if host.fill_disk(self.rng.randrange(3000)):
                self._later(self._space_returns(host, self.rng.uniform(0.5, 12.0)))

    async def _space_returns(self, host: SimHost, after_s: float) -> None:
        await asyncio.sleep(after_s)
        host.free_disks()

    def _engine_down(self) -> None:
        host = self.rng.choice(list(self.cluster.hosts.values()))
        if not host.engine.faults.down:
            self._later(self._outage(host, self.rng.uniform(0.1, 6.0)))

    async def _outage(self, host: SimHost, seconds: float) -> None:
        host.engine.go_down()
        await asyncio.sleep(seconds)
        host.engine.come_up()

    def _engine_errs(self) -> None:
        engine = self.rng.choice(list(self.cluster.hosts.values())).engine
        down = engine.faults.down
        if self.rng.random() < 0.4:
            engine.faults = EngineFaults(down=down)
        else:
            engine.faults = EngineFaults(
                latency_max=self.rng.choice([0.01, 0.5]),
                error=self.rng.choice([0.0, 0.05, 0.3]),
                lost_answer=self.rng.choice([0.0, 0.05, 0.3]),
                down=down,
            )

    def _fail_tasks(self) -> None:
        for host in self.cluster.hosts.values():
            for container in host.engine.running():
                if self.rng.random() < 0.2:
                    host.engine.fail(container, self.rng.choice([0, 1, 137]))

    def _drain(self) -> None:
        name = self.rng.choice(list(self.cluster.hosts))
        word = self.rng.choice(["drain", "active", "active", "pause"])
        self._later(self._attempt(self.cluster.set_node(name, Availability=word)))

    def _change_role(self) -> None:
        name = self.rng.choice(list(self.cluster.hosts))
        self._later(
            self._attempt(self.cluster.set_node(name, Role=self.rng.choice(["manager", "worker", "manager"])))
        )

    def _leave(self) -> None:
        host = self._some_host()
        if host is not None:
            self._later(self._leave_and_join(host, self.rng.uniform(0.5, 5.0)))

    async def _leave_and_join(self, host: SimHost, after_s: float) -> None:
        if host.is_manager and not self._majority_without(host):
            return  # people who break the majority by force get what they asked for
        self._leaving[host.name] = None
        try:
            await self._attempt(self.cluster.leave(host.name, force=True))
        finally:
            self._leaving.pop(host.name, None)
        await asyncio.sleep(after_s)
        await self._attempt(self.cluster.join(host, "Worker"))

    def _majority_without(self, host: SimHost) -> bool:
        """Whether the managers that stay are more than half of those Raft counts: who leaves by force may not have been heard."""
        leader = self.cluster.leading()
        if leader is None or leader.manager is None:
            return False
        voters = {m.node_id for m in leader.manager.status.members if not m.learner}
        stay = {
            h.node_id
            for h in self.cluster.hosts.values()
            if h is not host and h.is_manager and h.name not in self._leaving
        }
        return 2 * len(voters & stay) > len(voters)

    def _meddle(self) -> None:
        """People start containers that should not run, and restart those that should. Not of strict singletons: nobody can keep a person from that."""
        host = self.rng.choice(list(self.cluster.hosts.values()))
        found = [
            c
            for c in host.engine.containers.values()
            if c.labels.get("com.docker.swarm.service.name", "") not in self.cluster.singletons
        ]
        if found:
            self._later(host.engine.meddle(self.rng.choice(found)))

    def _lose_state(self) -> None:
        workers = [h for h in self.cluster.hosts.values() if h.process is not None and not h.is_manager]
        if workers:
            self._later(self._lose_and_join(self.rng.choice(workers), self.rng.uniform(0.1, 5.0)))

    async def _lose_and_join(self, host: SimHost, after_s: float) -> None:
        await host.lose_state()
        await asyncio.sleep(after_s)
        await self._attempt(self.cluster.join(host, "Worker"))

    def _skew(self) -> None:
        host = self.rng.choice(list(self.cluster.hosts.values()))
        host.skew_ns = int(self.rng.uniform(-3, 3) * 1e9)

    async def _attempt(self, work: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(CALL_S):
                await work
        except (TimeoutError, SwarmError, AssertionError) as err:
            self.cluster.note("refused", type(err).__name__)

    # --- peace -----------------------------------------------------------------------------------------------------------------
    async def _heal(self) -> None:
        """No more faults; every host is up and active."""
        self._heal_net()
        for host in self.cluster.hosts.values():
            host.engine.faults = EngineFaults()
            host.free_disks()
            if host.process is None:
                host.start()
        names = dict.fromkeys(self.cluster.hosts)
        deadline = asyncio.get_running_loop().time() + self.plan.heal_s
        while names:
            if asyncio.get_running_loop().time() > deadline:
                raise Violation(f"seed {self.cluster.seed}: cannot make {list(names)} active again")
            await asyncio.sleep(0.5)
            for name in list(names):
                try:
                    async with asyncio.timeout(CALL_S):
                        if self.cluster[name].daemon.state == "inactive":
                            await self.cluster.join(self.cluster[name], "Worker")
                        labels = self.people.labels_of(name)
                        await self.cluster.set_node(name, Availability="active", Labels=labels)
                except (TimeoutError, SwarmError, AssertionError):
                    continue
                del names[name]

    async def _calm(self) -> None:
        """One deed that costs no more healthy tasks than was promised, now that nothing is broken. While something is, no
        promise can be told from a broken one."""
        cluster, people = self.cluster, self.people
        floors = {
            s.spec.name or "": defaults.replicas(s.spec)
            for s in cluster.store.services.all()
            if s.spec.mode.replicated is not None
        }
        deed = self.rng.choice(["update", "drain", "rebalance"])
        if deed == "update":
            service = self.rng.choice([s for s in cluster.store.services.all() if s.spec.name in floors])
            config, name = defaults.update(service.spec.update_config), service.spec.name or ""
            if config.order == "stop-first":
                floors[name] -= config.parallelism or floors[name]
            self.checks.floors = floors
            await people.calm_update(name)
        else:
            self.checks.floors = {name: replicas - 1 for name, replicas in floors.items()}
            spare = self._hosts_without_required_volumes()
            if deed == "drain" and spare:
                name = self.rng.choice(spare)
                await cluster.set_node(name, Availability="drain")
                await self._peace()
                await cluster.set_node(name, Availability="active")
            else:
                await cluster.api("POST", "/swarm-agent/rebalance", {"Apply": True, "Parallel": 1})
        await self._peace()
        self.checks.floors = {}
        people.nothing_lost()

    def _hosts_without_required_volumes(self) -> list[str]:
        """Those that can be drained, and everything still runs."""
        required = {
            mount.source
            for service in self.cluster.store.services.all()
            if options(service.spec.labels).volume_affinity == "require"
            for mount in defaults.container(service.spec.task_template).mounts or ()
        }
        return [
            host.name
            for host in self.cluster.hosts.values()
            if (node := self.cluster.store.nodes.get(host.node_id)) is not None
            and required.isdisjoint(node.description.volumes)
        ]

    async def _peace(self) -> None:
        """Until everything is as declared, with people who put right what is theirs to put right."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.plan.heal_s
        while said := unsettled(self.cluster):
            if loop.time() > deadline:
                raise NotSettled(f"seed {self.cluster.seed}: not within {self.plan.heal_s:g} s: {said}")
            if self.cluster.leading() is not None:
                await self.people.mend()
            for _ in range(25):
                await asyncio.sleep(0.02)
                if not unsettled(self.cluster):
                    return
