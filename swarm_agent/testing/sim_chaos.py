"""One seeded story of a whole cluster: people change services while hosts, links, engines and tasks fail; then peace.

``chaos(seed)`` raises ``Violation`` or ``NotSettled`` when the story goes wrong. The same seed is the same story, to the last call.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from swarm_agent.objects.errors import SwarmError
from swarm_agent.testing.fake_engine import EngineFaults
from swarm_agent.testing.fake_rpc import RpcFaults
from swarm_agent.testing.sim_checks import ClusterChecks, Violation, unsettled
from swarm_agent.testing.sim_cluster import SimCluster, service_spec, simulation
from swarm_agent.testing.sim_host import ApiError, SimHost

IMAGES = ("web:1", "web:2", "slow:1", "deaf:1")
CALL_S = 8.0  # people's patience with one call


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


class _Declared:
    """What somebody asked for and what may have become of it: an unanswered call may have been done.

    Each wish is known by its number, in the order of asking: several people may ask for the same count.
    """

    def __init__(self, replicas: int) -> None:
        self.wishes = {0: replicas}
        self._serial = 0
        self.removed = False  # asked for
        self.acknowledged = False
        self.gone = False  # removal acknowledged

    def ask(self, replicas: int) -> int:
        self._serial += 1
        self.wishes[self._serial] = replicas
        return self._serial

    def refused(self, wish: int) -> None:
        """Surely not done; what others asked meanwhile stays."""
        self.wishes.pop(wish, None)

    def done(self, wish: int) -> None:
        """Whatever was asked for earlier was asked of an earlier version: overwritten, or refused. What was asked for
        later may have been done on top, though this answer comes after it."""
        self.wishes = {n: replicas for n, replicas in self.wishes.items() if n >= wish}


class _Story:
    def __init__(self, cluster: SimCluster, plan: SimPlan) -> None:
        self.cluster = cluster
        self.plan = plan
        self.checks = ClusterChecks(cluster)
        self.rng = random.Random(cluster.rng.getrandbits(64))
        self._declared: dict[str, _Declared] = {}
        self._serial = 0
        self._over = False
        self._network = ""
        self._acknowledged = 0
        self._deeds = 0
        self._work: dict[asyncio.Task[None], None] = {}

    async def run(self) -> SimResult:
        cluster, plan = self.cluster, self.plan
        await cluster.start(plan.managers, plan.workers)
        answer = await cluster.api("POST", "/networks/create", {"Name": "net", "Driver": "overlay"})
        self._network = answer["Id"]
        people = [asyncio.create_task(self._person()) for _ in range(plan.people)]
        nemesis = asyncio.create_task(self._nemesis())
        done, _ = await asyncio.wait(
            [*people, nemesis], timeout=plan.seconds, return_when=asyncio.FIRST_EXCEPTION
        )
        for task in done:
            task.result()
        self._over = True
        nemesis.cancel()
        await asyncio.wait([nemesis, *people])
        for task in people:
            task.result()
        for task in list(self._work):
            task.cancel()
        if self._work:
            await asyncio.wait(list(self._work))
        await self._heal()
        await cluster.until("everything is as declared", lambda: unsettled(cluster), plan.heal_s)
        self._nothing_lost()
        await asyncio.sleep(3.0)
        if said := unsettled(cluster):
            raise Violation(f"seed {cluster.seed}: it settled, and then: {said}")
        loop = asyncio.get_running_loop()
        return SimResult(cluster.trace, cluster.events, loop.time(), self._acknowledged, self._deeds)

    # --- people ------------------------------------------------------------------------------------------------------------
    async def _person(self) -> None:
        wishes = [
            self._create,
            self._create,
            self._scale,
            self._scale,
            self._update,
            self._update,
            self._remove,
        ]
        while not self._over:
            await asyncio.sleep(self.rng.uniform(0.2, 2.0))
            asked = [h for h in self.cluster.hosts.values() if h.manager is not None]
            if not asked:
                continue
            try:
                async with asyncio.timeout(CALL_S):
                    await self.rng.choice(wishes)(self.rng.choice(asked))
            except (TimeoutError, SwarmError) as err:
                self.cluster.note("refused", type(err).__name__)
            else:
                self._acknowledged += 1

    async def _create(self, host: SimHost) -> None:
        if sum(1 for d in self._declared.values() if not d.removed) >= 4:
            return
        self._serial += 1
        name = f"s-{self._serial}"  # no identifier has a dash, and the beginning of one would do for a name
        replicas = self.rng.randrange(0, 6)
        self._declared[name] = declared = _Declared(replicas)
        await host.api("POST", "/services/create", self._spec(name, replicas))
        declared.acknowledged = True

    def _spec(self, name: str, replicas: int) -> dict[str, Any]:
        rng = self.rng
        template: dict[str, Any] = {"RestartPolicy": {"Delay": rng.choice([0, 500_000_000, 2_000_000_000])}}
        more: dict[str, Any] = {}
        if rng.random() < 0.5:
            template["Networks"] = [{"Target": self._network}]
        if rng.random() < 0.3:
            port = {"Protocol": "tcp", "TargetPort": 80, "PublishMode": "ingress"}
            more["EndpointSpec"] = {"Ports": [port]}
        elif rng.random() < 0.3:
            port = {
                "Protocol": "tcp",
                "TargetPort": 80,
                "PublishedPort": 9000 + self._serial,
                "PublishMode": "host",
            }
            more["EndpointSpec"] = {"Ports": [port]}
            replicas = min(replicas, 2)
            self._declared[name].wishes = {0: replicas}
        if rng.random() < 0.3:
            template["Resources"] = {"Reservations": {"NanoCPUs": 200_000_000, "MemoryBytes": 1 << 28}}
        more["UpdateConfig"] = {
            "Parallelism": rng.choice([0, 1, 2]),
            "Order": rng.choice(["stop-first", "stop-first", "start-first"]),
            "FailureAction": "continue",
            "Monitor": 1_000_000_000,
        }
        if "EndpointSpec" in more:
            more["UpdateConfig"]["Order"] = "stop-first"
        container = {"StopGracePeriod": 3_000_000_000}
        return service_spec(
            name, replicas, rng.choice(IMAGES), TaskTemplate=template, Container=container, **more
        )

    def _somebodys(self) -> str:
        alive = [n for n, d in self._declared.items() if not d.removed]
        return self.rng.choice(alive) if alive else ""

    async def _scale(self, host: SimHost) -> None:
        if name := self._somebodys():
            replicas = self.rng.randrange(0, 6)

            def change(spec: dict[str, Any]) -> None:
                mode = (spec.get("EndpointSpec") or {}).get("Ports") or [{}]
                wanted = min(replicas, 2) if mode[0].get("PublishMode") == "host" else replicas
                spec["Mode"] = {"Replicated": {"Replicas": wanted}}

            await self._change(host, name, change)

    async def _update(self, host: SimHost) -> None:
        if name := self._somebodys():
            image = self.rng.choice(IMAGES)
            await self._change(
                host, name, lambda spec: spec["TaskTemplate"]["ContainerSpec"].update({"Image": image})
            )

    async def _change(self, host: SimHost, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        declared = self._declared[name]
        shown = await host.api("GET", f"/services/{name}")
        spec = copy.deepcopy(shown["Spec"])
        change(spec)
        replicas = spec["Mode"]["Replicated"]["Replicas"]
        wish = declared.ask(replicas)
        try:
            await host.api("POST", f"/services/{name}/update", spec, f"version={shown['Version']['Index']}")
        except ApiError as err:
            if "update out of sequence" in str(err):
                declared.refused(wish)
            raise
        if spec != shown["Spec"]:  # else calls from before it are still in sequence, and may yet be done
            declared.done(wish)

    async def _remove(self, host: SimHost) -> None:
        if sum(1 for d in self._declared.values() if not d.removed) < 2:
            return
        if name := self._somebodys():
            self._declared[name].removed = True
            await host.api("DELETE", f"/services/{name}")
            self._declared[name].gone = True

    def _nothing_lost(self) -> None:
        there = {s.spec.name: s for s in self.cluster.store.services.all()}
        for name, declared in self._declared.items():
            service = there.get(name)
            if service is None:
                if declared.acknowledged and not declared.removed:
                    raise Violation(f"seed {self.cluster.seed}: service {name} was acknowledged and is lost")
                continue
            if declared.gone:
                raise Violation(
                    f"seed {self.cluster.seed}: the removal of {name} was acknowledged and is lost"
                )
            mode = service.spec.mode.replicated
            if mode is None or mode.replicas not in declared.wishes.values():
                raise Violation(
                    f"seed {self.cluster.seed}: {name} has {mode and mode.replicas} replicas, asked for was {list(declared.wishes.values())}"
                )

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
            self._engine_down,
            self._engine_errs,
            self._engine_errs,
            self._fail_tasks,
            self._fail_tasks,
            self._drain,
            self._skew,
        ]
        if self.plan.roles:
            deeds.append(self._change_role)
        if self.plan.leaving:
            deeds.append(self._leave)
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
        voters = [h for h in self.cluster.hosts.values() if h.manager is not None]
        if host in voters and len(voters) <= 3:
            return  # people who break the majority by force get what they asked for
        await self._attempt(self.cluster.leave(host.name, force=True))
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
                        await self.cluster.set_node(name, Availability="active")
                except (TimeoutError, SwarmError, AssertionError):
                    continue
                del names[name]
