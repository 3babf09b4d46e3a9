"""Whole clusters in one process and in virtual time: real daemons on hosts whose engine, network, disk and clock are doubles.

    with simulation(seed) as sim:
        sim.run(story(sim.cluster))

What is real and what is not: ``docs/design/simulation.md``. The same seed is the same run, to the last call: ``cluster.trace`` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import random
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from swarm_agent.manager.manager import Manager
from swarm_agent.objects import features
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import Service, Task
from swarm_agent.store import Store
from tests.lib.fake_engine import Program
from tests.lib.fake_rpc import RpcNet
from tests.lib.sim_host import FRONT_DOOR, Killed, SimHost, task_factory
from tests.lib.virtual_loop import VirtualLoop

T = TypeVar("T")

PROGRAMS = {
    "web:1": Program(),
    "web:2": Program(),
    "slow:1": Program(start_s=1.5, stop_s=2.0),
    "deaf:1": Program(stop_s=1000.0),  # does not hear SIGTERM
    "crash:1": Program(runs_s=0.5, exit_code=3),
    "batch:1": Program(runs_s=2.0),
    "sick:1": Program(healthy_after_s=None),
    "broken:1": Program(start_error="exec: no such file"),
}


class NotSettled(AssertionError):
    """Something that was awaited did not happen in time; says what is still wrong."""


class SimCluster:
    """Hosts ``m1``.. and ``w1``.. and words for what one does with them."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.net = RpcNet(random.Random(self.rng.getrandbits(64)))
        self.hosts: dict[str, SimHost] = {}
        self._directory = directory
        self.feature_level: int | None = None  # of the hosts that are added
        self.singletons: set[str] = set()  # names of services that were once asked to be strict singletons
        self._trace = hashlib.sha256()
        self.events = 0

    # --- the trace -------------------------------------------------------------------------------------------------------
    def note(self, *what: object) -> None:
        """Put something into the fingerprint of this run."""
        self.events += 1
        self._trace.update(repr((asyncio.get_running_loop().time(), self.net.messages, *what)).encode())

    @property
    def trace(self) -> str:
        return self._trace.hexdigest()

    # --- hosts --------------------------------------------------------------------------------------------------------------
    def add_host(self, name: str) -> SimHost:
        host = SimHost(
            name,
            f"10.9.0.{len(self.hosts) + 1}",
            self.net,
            random.Random(self.rng.getrandbits(64)),
            self._directory / name,
        )
        host.engine.registry.update(PROGRAMS)
        host.engine.on_call = lambda method, path: self.note(name, method, path)
        host.feature_level = self.feature_level
        self.hosts[name] = host
        host.start()
        return host

    def __getitem__(self, name: str) -> SimHost:
        return self.hosts[name]

    @property
    def addresses(self) -> list[str]:
        return [h.addr for h in self.hosts.values()]

    def host_of(self, node_id: str) -> SimHost:
        return next(h for h in self.hosts.values() if h.node_id == node_id)

    async def start(self, managers: int = 3, workers: int = 2) -> None:
        """Found a cluster on ``m1``, join the others by token."""
        first = self.add_host("m1")
        await first.api("POST", "/swarm/init", {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": first.addr})
        for number in range(2, managers + 1):
            await self.join(self.add_host(f"m{number}"), "Manager")
        for number in range(1, workers + 1):
            await self.join(self.add_host(f"w{number}"), "Worker")
        await self.until("all nodes are ready", self.nodes_trouble)

    async def join(self, host: SimHost, role: str) -> None:
        tokens = (await self.leader().api("GET", "/swarm"))["JoinTokens"]
        remotes = [f"{h.addr}:{FRONT_DOOR}" for h in self.hosts.values() if h.manager is not None]
        request = {
            "ListenAddr": "0.0.0.0:2377",
            "AdvertiseAddr": host.addr,
            "RemoteAddrs": remotes,
            "JoinToken": tokens[role],
        }
        await host.api("POST", "/swarm/join", request)

    async def leave(self, name: str, *, force: bool = False) -> None:
        await self[name].api("POST", "/swarm/leave", query="force=1" if force else "")

    def isolate(self, name: str) -> None:
        """Nothing passes between this host and the others."""
        addr = self[name].addr
        self.net.partition([addr], [a for a in self.addresses if a != addr])

    def freeze(self, name: str) -> None:
        """As SIGSTOP of the daemon: nothing it does reaches anything until ``thaw``. Its containers and its guard run on."""
        process = self[name].process
        assert process is not None
        process.engine.moves.clear()
        self.isolate(name)

    def thaw(self, name: str) -> None:
        process = self[name].process
        if process is not None:
            process.engine.moves.set()
        self.heal()

    def heal(self) -> None:
        self.net.heal()

    # --- who leads -----------------------------------------------------------------------------------------------------------
    def managers(self) -> list[tuple[SimHost, Manager]]:
        return [
            (h, h.manager)
            for h in self.hosts.values()
            if h.manager is not None and h.manager.raft is not None
        ]

    def leading(self) -> SimHost | None:
        """The host with duties in the highest term, and with a majority that hears it."""
        found = [
            (m.status.term, h)
            for h, m in self.managers()
            if m.leadership is not None and m.status.role == "leader"
        ]
        return max(found, key=lambda item: item[0])[1] if found else None

    def leader(self) -> SimHost:
        host = self.leading()
        if host is None:
            raise NotSettled("nobody leads")
        return host

    async def any_leader(self, patience_s: float = 15.0, besides: str = "") -> SimHost:
        await self.until(
            "somebody leads",
            lambda: "" if (h := self.leading()) is not None and h.name != besides else "nobody leads",
            patience_s,
        )
        return self.leader()

    @property
    def store(self) -> Store:
        """The leader's."""
        manager = self.leader().manager
        assert manager is not None
        return manager.store

    # --- what people do --------------------------------------------------------------------------------------------------------
    async def api(self, method: str, path: str, body: Any = None, query: str = "") -> Any:
        """At the leader's socket."""
        return await (await self.any_leader()).api(method, path, body, query)

    async def create(self, name: str, replicas: int = 1, image: str = "web:1", **more: Any) -> str:
        """``more`` goes into the spec; ``Container`` into the container's."""
        if "swarm-agent.singleton" in more.get("Labels", {}):
            self.singletons.add(name)
        answer = await self.api("POST", "/services/create", service_spec(name, replicas, image, **more))
        service_id: str = answer["ID"]
        return service_id

    async def update(self, wanted: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Read, change, write."""
        shown = await self.api("GET", f"/services/{wanted}")
        spec = shown["Spec"]
        change(spec)
        version = shown["Version"]["Index"]
        await self.api("POST", f"/services/{wanted}/update", spec, f"version={version}")

    async def scale(self, wanted: str, replicas: int) -> None:
        await self.update(wanted, lambda spec: spec["Mode"].update({"Replicated": {"Replicas": replicas}}))

    async def set_image(self, wanted: str, image: str) -> None:
        await self.update(wanted, lambda spec: spec["TaskTemplate"]["ContainerSpec"].update({"Image": image}))

    async def remove(self, wanted: str) -> None:
        await self.api("DELETE", f"/services/{wanted}")

    async def set_node(self, name: str, **change: Any) -> None:
        """``Availability="drain"``, ``Role="manager"``, ``Labels={..}``."""
        node_id = self[name].node_id
        if not node_id:
            raise Killed(f"{name} is no member now")
        await self.change_node(node_id, **change)

    async def change_node(self, node_id: str, **change: Any) -> None:
        """The same for a node whose host may be another node by now."""
        shown = await self.api("GET", f"/nodes/{node_id}")
        version = shown["Version"]["Index"]
        await self.api("POST", f"/nodes/{node_id}/update", {**shown["Spec"], **change}, f"version={version}")

    # --- what one looks at -------------------------------------------------------------------------------------------------------
    def service(self, name: str) -> Service:
        return next(s for s in self.store.services.all() if s.spec.name == name)

    def tasks(self, name: str) -> list[Task]:
        return sorted(
            (t for t in self.store.tasks.all() if t.service_name == name),
            key=lambda t: (t.slot, t.created_at),
        )

    def running(self, name: str) -> list[Task]:
        return [
            t
            for t in self.tasks(name)
            if t.status.state == TaskState.RUNNING and t.desired_state == TaskState.RUNNING
        ]

    def nodes_trouble(self) -> str:
        """Why not every host is a ready node in the role it should have; "" when they are."""
        if self.leading() is None:
            return "nobody leads"
        known = {n.id: n for n in self.store.nodes.all()}
        for host in self.hosts.values():
            node = known.get(host.node_id)
            if host.node_id and (node is None or node.status.state != NodeState.READY):
                return f"{host.name} is {'not a node' if node is None else node.status.state.word}"
            told = self.store.feature_level >= features.ORCHESTRATION
            if told and node is not None and (node.spec.availability == "active") != bool(node.active_since):
                return f"{host.name} is {node.spec.availability}, active since {node.active_since}"
            if node is not None and (
                node.role != node.spec.role or (node.role == "manager") != (host.manager is not None)
            ):
                return f"{host.name} is to be a {node.spec.role}, is a {node.role}"
        return ""

    def replicas_trouble(self, name: str, replicas: int) -> str:
        if self.leading() is None:
            return "nobody leads"
        found = len(self.running(name))
        return "" if found == replicas else f"{name} has {found} of {replicas} running"

    async def until_running(self, name: str, replicas: int, patience_s: float = 30.0) -> None:
        await self.until(
            f"{replicas} of {name} run", lambda: self.replicas_trouble(name, replicas), patience_s
        )

    async def until(self, what: str, trouble: Callable[[], str], patience_s: float = 30.0) -> None:
        """Until ``trouble`` has nothing to say; ``NotSettled`` with its last word."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        while said := trouble():
            if loop.time() > deadline:
                raise NotSettled(f"seed {self.seed}: not within {patience_s:g} s: {what}: {said}")
            await asyncio.sleep(0.02)


def service_spec(name: str, replicas: int, image: str, **more: Any) -> dict[str, Any]:
    container = {"Image": image, **more.pop("Container", {})}
    template = {"ContainerSpec": container, **more.pop("TaskTemplate", {})}
    spec: dict[str, Any] = {
        "Name": name,
        "TaskTemplate": template,
        "Mode": {"Replicated": {"Replicas": replicas}},
        **more,
    }
    return spec


class Simulation:
    """A loop and a cluster on it."""

    def __init__(self, loop: VirtualLoop, cluster: SimCluster) -> None:
        self.loop = loop
        self.cluster = cluster

    def run(self, story: Coroutine[Any, Any, T]) -> T:
        """Run to the end; what nobody handled on the way fails it too."""
        try:
            result = self.loop.run_until_complete(story)
        finally:
            self.loop.after_step = None
        self.loop.raise_unhandled()
        return result


@contextlib.contextmanager
def simulation(seed: int) -> Iterator[Simulation]:
    """A fresh world. The garbage collector rests meanwhile: when it finalises is not the seed's to say."""
    memory = Path("/dev/shm")
    collects = gc.isenabled()
    gc.disable()
    try:
        with (
            tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory,
            VirtualLoop() as loop,
        ):
            loop.set_task_factory(task_factory)
            cluster = SimCluster(seed, Path(directory))
            try:
                yield Simulation(loop, cluster)
            finally:
                loop.after_step = None
                for host in cluster.hosts.values():
                    loop.run_until_complete(host.kill())
    finally:
        if collects:
            gc.enable()
