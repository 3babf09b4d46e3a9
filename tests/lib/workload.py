"""People of a simulated cluster: what they ask for, what they were promised, and what they put right when it is quiet again."""

from __future__ import annotations

import asyncio
import base64
import copy
import random
from collections.abc import Awaitable, Callable
from typing import Any

from swarm_agent.control.orchestrator.update import going
from swarm_agent.control.orchestrator.update_progress import PAUSED
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import NodeState
from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.records import Service
from tests.lib.sim_checks import Violation
from tests.lib.sim_cluster import SimCluster, service_spec
from tests.lib.sim_host import ApiError, SimHost

GOOD = ("web:1", "web:2", "slow:1", "deaf:1")
BAD = ("crash:1", "broken:1", "missing:1")
"""Ends at once, cannot be started, cannot be pulled."""
CALL_S = 8.0  # people's patience with one call
MOST = 5  # services at a time
GPUS = ("a", "b", "c", "d")  # of every host

Json = dict[str, Any]


class _Declared:
    """What somebody asked for and what may have become of it: an unanswered call may have been done.

    Each wish is known by its number, in the order of asking: several people may ask for the same count.
    """

    def __init__(self, replicas: int, most: int) -> None:
        self.most = most  # replicas the cluster certainly has room for
        self.wishes = {0: replicas}
        self.ever = {replicas}
        self.goes_back = False  # may have been rolled back: any spec it ever had may be there
        self._serial = 0
        self.removed = False  # asked for
        self.acknowledged = False
        self.gone = False  # removal acknowledged

    def ask(self, replicas: int) -> int:
        self._serial += 1
        self.wishes[self._serial] = replicas
        self.ever.add(replicas)
        return self._serial

    def refused(self, wish: int) -> None:
        """Surely not done; what others asked meanwhile stays."""
        self.wishes.pop(wish, None)

    def done(self, wish: int) -> None:
        """Whatever was asked for earlier was asked of an earlier version: overwritten, or refused. What was asked for
        later may have been done on top, though this answer comes after it."""
        self.wishes = {n: replicas for n, replicas in self.wishes.items() if n >= wish}

    @property
    def may_be(self) -> set[int]:
        return self.ever if self.goes_back else set(self.wishes.values())


class Workload:
    """``run`` as many as there are people, each at the socket of some manager."""

    def __init__(self, cluster: SimCluster, rng: random.Random) -> None:
        self.cluster = cluster
        self.rng = rng
        self.over = False
        self.acknowledged = 0
        self._declared: dict[str, _Declared] = {}
        self._serial = 0
        self._network = ""
        self._owners: dict[str, Json] = {}  # "secret", "config" -> as a service refers to it

    async def prepare(self) -> None:
        """What all services may lean on, while everything is well."""
        c = self.cluster
        for host in c.hosts.values():
            host.engine.generic = [
                *({"NamedResourceSpec": {"Kind": "gpu", "Value": name}} for name in GPUS),
                {"DiscreteResourceSpec": {"Kind": "disk", "Value": 8}},
            ]
        for name in c.hosts:
            await c.set_node(name, Labels=self.labels_of(name))
        self._network = (await c.api("POST", "/networks/create", {"Name": "net", "Driver": "overlay"}))["Id"]
        for kind in ("secret", "config"):
            body = {"Name": f"the-{kind}", "Data": _b64(f"{kind} 1")}
            made = await c.api("POST", f"/{kind}s/create", body)
            word = kind.capitalize()
            self._owners[kind] = {
                f"{word}ID": made["ID"],
                f"{word}Name": f"the-{kind}",
                "File": {"Name": kind},
            }
        await c.create("base", 1, RollbackConfig={"FailureAction": "continue"})
        await c.create(
            "setup",
            0,
            "batch:1",
            Mode={"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 2}},
            TaskTemplate={"RestartPolicy": {"Condition": "on-failure", "Delay": 500_000_000}},
        )

    def labels_of(self, name: str) -> dict[str, str]:
        """Those a host begins with and is given back; in between people change them."""
        number = list(self.cluster.hosts).index(name)
        return {"zone": f"z{number % 2}", "disk": "slow" if number % 2 else "fast"}

    async def run(self) -> None:
        wishes: list[Callable[[SimHost], Awaitable[None]]] = [
            *(self._create,) * 5,
            *(self._scale,) * 3,
            *(self._update,) * 4,
            *(self._remove,) * 2,
            *(self._roll_back,) * 2,
            self._roll_back_to,
            self._run_again,
            self._set_up_again,
            self._rebalance,
            self._relabel,
            self._relabel,
            self._new_version,
            self._new_version,
            self._secret_of_nobody,
        ]
        while not self.over:
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
                self.acknowledged += 1

    def _somebodys(self) -> str:
        alive = [n for n, d in self._declared.items() if not d.removed]
        return self.rng.choice(alive) if alive else ""

    # --- new ones ----------------------------------------------------------------------------------------------------------
    async def _create(self, host: SimHost) -> None:
        if sum(1 for d in self._declared.values() if not d.removed) >= MOST:
            return
        self._serial += 1
        name = f"s-{self._serial}"  # no identifier has a dash, and the beginning of one would do for a name
        kind = self.rng.choice(["replicated"] * 5 + ["global", "job", "job", "globaljob", "single"])
        declared = _Declared(self.rng.randrange(0, 6), 6)
        spec = self._service(name, kind, declared)
        self._declared[name] = declared
        if "swarm-agent.singleton" in spec["Labels"]:
            self.cluster.singletons.add(name)
        await host.api("POST", "/services/create", spec)
        declared.acknowledged = True

    def _service(self, name: str, kind: str, declared: _Declared) -> Json:
        rng = self.rng
        spec = service_spec(
            name, 0, rng.choice(GOOD), Container={"StopGracePeriod": 3_000_000_000}, Labels={}
        )
        template: Json = spec["TaskTemplate"]
        template["RestartPolicy"] = {"Delay": rng.choice([0, 500_000_000, 2_000_000_000])}
        if rng.random() < 0.5:
            template["Networks"] = [{"Target": self._network}]
        self._contents(spec)
        if "job" in kind:
            self._job(spec, kind)
            return spec
        if rng.random() < 0.25:
            spec["Labels"]["swarm-agent.depends-on"] = rng.choice(
                ["base:started", "base:healthy", "setup:completed", "base:healthy, setup:completed"]
            )
        spec["UpdateConfig"] = self._policy("rollback")
        spec["RollbackConfig"] = self._policy("pause")
        if kind == "global":
            spec["Mode"] = {"Global": {}}
            if rng.random() < 0.3:
                template["Placement"] = {"Constraints": ["node.role == worker"]}
            return spec
        if kind == "single":
            spec["Labels"]["swarm-agent.singleton"] = "strict"
            spec["UpdateConfig"]["Order"] = spec["RollbackConfig"]["Order"] = "stop-first"
            declared.most = 1
        else:
            self._wants(spec, declared)
        declared.wishes = {0: min(declared.most, declared.wishes[0])}
        declared.ever = set(declared.wishes.values())
        spec["Mode"] = {"Replicated": {"Replicas": declared.wishes[0]}}
        return spec

    def _policy(self, action: str) -> Json:
        rng = self.rng
        return {
            "Parallelism": rng.choice([0, 1, 2]),
            "Order": rng.choice(["stop-first", "stop-first", "start-first"]),
            "FailureAction": rng.choice(["continue", "pause", action]),
            "Monitor": rng.choice([1_000_000_000, 3_000_000_000]),
        }

    def _contents(self, spec: Json) -> None:
        for kind, owner in self._owners.items():
            if self.rng.random() < 0.25:
                spec["TaskTemplate"]["ContainerSpec"][f"{kind.capitalize()}s"] = [owner]
                spec["Labels"][f"swarm-agent.{kind}s"] = self.rng.choice(["track", "track", "pin"])

    def _job(self, spec: Json, kind: str) -> None:
        rng = self.rng
        spec["TaskTemplate"]["ContainerSpec"]["Image"] = rng.choice(["batch:1", "batch:1", *BAD])
        spec["TaskTemplate"]["RestartPolicy"] = {
            "Condition": rng.choice(["on-failure", "none"]),
            "MaxAttempts": rng.choice([1, 2]),
            "Delay": 500_000_000,
        }
        if kind == "globaljob":
            spec["Mode"] = {"GlobalJob": {}}
        else:
            together = rng.choice([1, 2, 3])
            spec["Mode"] = {
                "ReplicatedJob": {
                    "MaxConcurrent": together,
                    "TotalCompletions": together + rng.choice([0, 2]),
                }
            }
        if rng.random() < 0.25:
            spec["Labels"]["swarm-agent.schedule"] = "* * * * *"
            spec["Labels"]["swarm-agent.schedule.overlap"] = rng.choice(["forbid", "replace"])

    def _wants(self, spec: Json, declared: _Declared) -> None:
        """One thing that is scarce, or a wish for places."""
        rng = self.rng
        template: Json = spec["TaskTemplate"]
        if rng.random() < 0.3:
            spec["Labels"]["swarm-agent.rebalance"] = rng.choice(["on-join", "on-join", "continuous"])
        wanted = [
            "ingress",
            "host",
            "cpu",
            "gpu",
            "disk",
            "spread",
            "volume",
            "volume",
            "apart",
            "fast",
            "",
            "",
        ]
        match rng.choice(wanted):
            case "ingress":
                spec["EndpointSpec"] = {"Ports": [_port("ingress")]}
            case "host":
                spec["EndpointSpec"] = {"Ports": [{**_port("host"), "PublishedPort": 9000 + self._serial}]}
                declared.most = 2
            case "cpu":
                template["Resources"] = {"Reservations": {"NanoCPUs": 200_000_000, "MemoryBytes": 1 << 28}}
            case "gpu":
                template["Resources"] = _generic("gpu", 1)
                declared.most = 2
            case "disk":
                template["Resources"] = _generic("disk", 2)
                declared.most = 3
            case "spread":
                wish = {"Spread": {"SpreadDescriptor": "node.labels.zone"}}
                template["Placement"] = {"Preferences": [wish]}
            case "volume":
                mount = {"Type": "volume", "Source": f"v-{self._serial}", "Target": "/data"}
                template["ContainerSpec"]["Mounts"] = [mount]
                spec["Labels"]["swarm-agent.volume-affinity"] = rng.choice(
                    ["prefer", "ignore", "require", "require"]
                )
                declared.most = 2
            case "fast":
                template["Placement"] = {"Constraints": ["node.labels.disk == fast"]}
            case "apart":
                template["Placement"] = {"MaxReplicas": 1}
                declared.most = 2
            case _:
                pass

    # --- changes -----------------------------------------------------------------------------------------------------------
    async def _scale(self, host: SimHost) -> None:
        if name := self._somebodys():
            replicas = min(self.rng.randrange(0, 6), self._declared[name].most)

            def change(spec: Json) -> None:
                if "Replicated" in spec["Mode"]:
                    spec["Mode"] = {"Replicated": {"Replicas": replicas}}

            await self._change(host, name, change)

    async def _update(self, host: SimHost) -> None:
        if name := self._somebodys():
            image = self.rng.choice([*GOOD * 2, *BAD])

            def change(spec: Json) -> None:
                if _is_job(spec):
                    spec["TaskTemplate"]["ForceUpdate"] = spec["TaskTemplate"].get("ForceUpdate", 0) + 1
                else:
                    spec["TaskTemplate"]["ContainerSpec"]["Image"] = image

            await self._change(host, name, change)

    async def _change(self, host: SimHost, name: str, change: Callable[[Json], None]) -> None:
        declared = self._declared[name]
        shown = await host.api("GET", f"/services/{name}")
        spec = copy.deepcopy(shown["Spec"])
        change(spec)
        if spec.get("UpdateConfig", {}).get("FailureAction") == "rollback":
            declared.goes_back = True
        wish = declared.ask((spec["Mode"].get("Replicated") or {}).get("Replicas", 0))
        try:
            await host.api("POST", f"/services/{name}/update", spec, f"version={shown['Version']['Index']}")
        except ApiError as err:
            if "update out of sequence" in str(err):
                declared.refused(wish)
            raise
        if spec != shown["Spec"]:  # else calls from before it are still in sequence, and may yet be done
            declared.done(wish)

    async def _roll_back(self, host: SimHost) -> None:
        if name := self._somebodys():
            shown = await host.api("GET", f"/services/{name}")
            self._declared[name].goes_back = True
            query = f"version={shown['Version']['Index']}&rollback=previous"
            await host.api("POST", f"/services/{name}/update", shown["Spec"], query)

    async def _roll_back_to(self, host: SimHost) -> None:
        if name := self._somebodys():
            kept = await host.api("GET", f"/swarm-agent/services/{name}/revisions")
            number = self.rng.choice(kept)["Number"]
            await host.api("POST", f"/swarm-agent/services/{name}/rollback", None, f"to={number}")

    async def _run_again(self, host: SimHost) -> None:
        if name := self._somebodys():
            await host.api("POST", f"/swarm-agent/services/{name}/run")

    async def _set_up_again(self, host: SimHost) -> None:
        """Whoever waits for it waits anew."""
        await host.api("POST", "/swarm-agent/services/setup/run")

    async def _relabel(self, host: SimHost) -> None:
        name = self.rng.choice(list(self.cluster.hosts))
        labels = {
            "zone": self.rng.choice(["z0", "z1", "z2"]),
            "disk": self.rng.choice(["fast", "fast", "slow"]),
        }
        node_id = self.cluster[name].node_id
        if node_id:
            shown = await host.api("GET", f"/nodes/{node_id}")
            query = f"version={shown['Version']['Index']}"
            await host.api("POST", f"/nodes/{node_id}/update", {**shown["Spec"], "Labels": labels}, query)

    async def _rebalance(self, host: SimHost) -> None:
        body = {"Apply": True, "Parallel": self.rng.choice([1, 2])}
        await host.api("POST", "/swarm-agent/rebalance", body)

    async def _new_version(self, host: SimHost) -> None:
        kind = self.rng.choice(["secret", "config"])
        self._serial += 1
        body = {"Data": _b64(f"{kind} {self._serial}")}
        await host.api("POST", f"/swarm-agent/{kind}s/the-{kind}/versions", body)

    async def _secret_of_nobody(self, host: SimHost) -> None:
        self._serial += 1
        name = f"k-{self._serial}"
        await host.api("POST", "/secrets/create", {"Name": name, "Data": _b64(name)})
        await host.api("DELETE", f"/secrets/{name}")

    async def _remove(self, host: SimHost) -> None:
        if sum(1 for d in self._declared.values() if not d.removed) < 2:
            return
        if name := self._somebodys():
            self._declared[name].removed = True
            await host.api("DELETE", f"/services/{name}")
            self._declared[name].gone = True

    # --- afterwards ----------------------------------------------------------------------------------------------------------
    async def mend(self) -> None:
        """Put right what no cluster can: images that do not run, updates that have stopped to ask, managers that left for good while nobody
        heard it: they count as voters, and another manager may be needed for as long as they do."""
        members = {host.node_id for host in self.cluster.hosts.values()}
        for node in list(self.cluster.store.nodes.all()):
            if node.spec.role == "manager" and node.status.state == NodeState.DOWN and node.id not in members:
                await self._try(self.cluster.change_node(node.id, Role="worker"))
        for service in list(self.cluster.store.services.all()):
            name = service.spec.name or ""
            if defaults.is_job(service.spec) or not (_sick(service) or _asks(service)):
                continue

            def change(spec: Json) -> None:
                template = spec["TaskTemplate"]
                template["ForceUpdate"] = template.get("ForceUpdate", 0) + 1
                if template["ContainerSpec"]["Image"] in BAD:
                    template["ContainerSpec"]["Image"] = "web:1"

            self.cluster.note("mend", name)
            await self._try(self._change(self.cluster.leader(), name, change))

    async def _try(self, work: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(CALL_S):
                await work
        except (TimeoutError, SwarmError) as err:
            self.cluster.note("refused", type(err).__name__)

    async def calm_update(self, name: str) -> None:
        """To an image that runs."""

        def change(spec: Json) -> None:
            spec["TaskTemplate"]["ContainerSpec"]["Image"] = self.rng.choice(GOOD)
            spec["TaskTemplate"]["ForceUpdate"] = spec["TaskTemplate"].get("ForceUpdate", 0) + 1

        if name in self._declared:
            await self._change(self.cluster.leader(), name, change)

    def nothing_lost(self) -> None:
        there = {s.spec.name: s for s in self.cluster.store.services.all()}
        seed = self.cluster.seed
        for name, declared in self._declared.items():
            service = there.get(name)
            if service is None:
                if declared.acknowledged and not declared.removed:
                    raise Violation(f"seed {seed}: service {name} was acknowledged and is lost")
                continue
            if declared.gone:
                raise Violation(f"seed {seed}: the removal of {name} was acknowledged and is lost")
            mode = service.spec.mode.replicated
            if mode is not None and mode.replicas not in declared.may_be:
                raise Violation(
                    f"seed {seed}: {name} has {mode.replicas} replicas, asked for was {sorted(declared.may_be)}"
                )


def _sick(service: Service) -> bool:
    return defaults.container(service.spec.task_template).image in BAD


def _asks(service: Service) -> bool:
    return service.update_status is not None and service.update_status.state in PAUSED and not going(service)


def _is_job(spec: Json) -> bool:
    return any("Job" in mode for mode in spec["Mode"])


def _port(mode: str) -> Json:
    return {"Protocol": "tcp", "TargetPort": 80, "PublishMode": mode}


def _generic(kind: str, count: int) -> Json:
    wanted = [{"DiscreteResourceSpec": {"Kind": kind, "Value": count}}]
    return {"Reservations": {"GenericResources": wanted}}


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
