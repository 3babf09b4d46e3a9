"""``python -m tests.bench.store``: what the store and the controllers cost with 1,000 nodes, 100 services, 100,000 tasks.

Prints figures, judges nothing: a machine's speed is no property of the code. What grows with what is tested by counting
(``tests/unit/control/test_cost_of_a_pass.py``).
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec

from swarm_agent.control.controllers import Controllers
from swarm_agent.control.revisions import revision_of
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.ids import new_id
from swarm_agent.objects.records import (
    Cluster,
    ContainerStatus,
    JoinTokens,
    Network,
    NetworkAddress,
    Node,
    NodeDescription,
    NodeStatus,
    RootCA,
    Service,
    Task,
    TaskStatus,
)
from swarm_agent.objects.specs import (
    ClusterSpec,
    ContainerSpec,
    NetworkCreate,
    NodeSpec,
    Replicated,
    ServiceMode,
    ServiceSpec,
    TaskTemplate,
    UpdateConfig,
)
from swarm_agent.store import (
    Change,
    Delete,
    Group,
    PendingView,
    Put,
    SetStatus,
    Store,
    StoreEntry,
    encode_entry,
)

replace = msgspec.structs.replace
BATCH = 1000


class World:
    """A store, the entries that made it, and the words to write more."""

    def __init__(self, nodes: int, services: int, replicas: int) -> None:
        self.rng = random.Random(1)
        self.store = Store()
        self.now = 1_800_000_000_000_000_000
        self.nodes = [self.node(i) for i in range(nodes)]
        self.services = [self.service(i, replicas) for i in range(services)]
        self.replicas = replicas

    def id(self) -> str:
        return new_id(self.rng)

    def node(self, number: int) -> Node:
        return Node(
            id=self.id(),
            spec=NodeSpec(),
            number=number + 1,
            data_addr=f"10.1.{number // 250}.{number % 250}",
            status=NodeStatus(state=NodeState.READY, addr=f"10.1.{number // 250}.{number % 250}"),
            description=NodeDescription(
                hostname=f"host-{number}",
                architecture="x86_64",
                os="linux",
                nano_cpus=64 * 10**9,
                memory_bytes=1 << 38,
                engine_version="28.0.1",
            ),
        )

    def service(self, number: int, replicas: int) -> Service:
        template = TaskTemplate(
            container_spec=ContainerSpec(image=f"registry.example.org/team/app-{number}:1.2.3")
        )
        spec = ServiceSpec(
            name=f"app-{number}",
            labels={"com.docker.stack.namespace": f"stack-{number % 10}"},
            task_template=template,
            mode=ServiceMode(replicated=Replicated(replicas=replicas)),
        )
        id_ = self.id()
        return Service(id=id_, spec=spec, revision_id=revision_of(id_, spec, ()).id)

    def entry(self, *groups: Group) -> bytes:
        self.now += 1_000_000
        return encode_entry(StoreEntry(self.now, groups))

    def apply(self, data: bytes) -> None:
        assert all(self.store.apply(self.store.index + 1, 1, data).accepted)

    def found(self) -> None:
        spec = defaults.cluster_defaults(ClusterSpec())
        cluster = Cluster(
            id=self.id(),
            spec=spec,
            root_ca=RootCA(cert=b"", key=b"", digest=""),
            join_tokens=JoinTokens(worker="", manager=""),
        )
        self.apply(self.entry(Group("", (Put(cluster, 0),))))
        self.apply(
            self.entry(
                Group("", (Put(Network(id="net", spec=NetworkCreate(name="net"), subnet="10.0.0.0/8"), 0),))
            )
        )
        self.apply(self.entry(*(Group(f"node/{n.id}", (Put(n, 0),)) for n in self.nodes)))
        for service in self.services:
            revision = revision_of(service.id, service.spec, ())
            self.apply(self.entry(Group(service.id, (Put(revision, 0), Put(service, 0)))))

    def task(self, service: Service, slot: int, at: int) -> Task:
        return Task(
            id=self.id(),
            service_id=service.id,
            service_name=service.spec.name or "",
            service_labels=service.spec.labels,
            revision_id=service.revision_id,
            slot=slot,
            node_id=self.nodes[at % len(self.nodes)].id,
            status=TaskStatus(
                state=TaskState.ASSIGNED, message="scheduler assigned task to node", timestamp=self.now
            ),
            networks=(
                NetworkAddress(network_id="net", address=f"10.{at >> 16}.{(at >> 8) & 255}.{at & 255}/8"),
            ),
            node_address=f"10.240.{at % 250}.{at % 1000 // 4}",
            cause="create",
        )

    def create_entries(self) -> Iterator[bytes]:
        """Entries that create every task, a thousand each."""
        at = 0
        for service in self.services:
            for start in range(0, self.replicas, BATCH):
                batch = range(start, min(start + BATCH, self.replicas))
                writes = tuple(Put(self.task(service, s + 1, at + s), 0) for s in batch)
                yield self.entry(Group(service.id, writes))
            at += self.replicas

    def running(self, task: Task) -> TaskStatus:
        return TaskStatus(
            state=TaskState.RUNNING,
            message="started",
            timestamp=self.now,
            container=ContainerStatus(container_id=f"{self.rng.getrandbits(256):064x}", pid=4711),
            started_at=self.now,
        )


def timed(work: Callable[[], Any]) -> float:
    """CPU of this thread: others share the machine."""
    started = time.thread_time()
    work()
    return time.thread_time() - started


def say(name: str, text: str) -> None:
    print(f"{name:58} {text}", flush=True)


def spread(values: list[float], unit: float, name: str) -> str:
    values = sorted(v * unit for v in values)
    return f"{statistics.median(values):9.2f} {name} median {values[-1]:9.2f} worst"


def bench_store(world: World) -> None:
    world.found()
    entries = list(world.create_entries())
    tasks = len(world.services) * world.replicas
    say("create entries, bytes per task", f"{sum(map(len, entries)) / tasks:9.0f}")
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for data in entries[:10]:
        world.apply(data)
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    made = len(world.store.tasks)
    say(
        "memory per task, as it is created",
        f"{held / made:9.0f} bytes ({held / made * 10_000 / 2**20:.1f} MiB per 10,000)",
    )
    times = [timed(partial(world.apply, d)) for d in entries[10:]]
    say("apply an entry that creates 1,000 tasks", spread(times, 1e3, "ms"))
    say("  CPU per write", f"{sum(times) / (tasks - made) * 1e6:9.2f} us")
    bench_statuses(world)
    bench_views(world)


def bench_statuses(world: World) -> None:
    ids = [t.id for t in world.store.tasks.all()]
    for size in (1, 100, 1000):
        for kind in KINDS:
            chosen = world.rng.sample(ids, min(len(ids), size * (300 if size == 1 else 30)))
            entries = [kind(world, world.store.tasks.get(id_)) for id_ in chosen]
            batches = [world.entry(*entries[i : i + size]) for i in range(0, len(entries), size)]
            say(
                f"status entry, {size} task(s), {kind.__name__}: bytes per task",
                f"{sum(map(len, batches)) / len(entries):9.0f}",
            )
            times = [timed(partial(world.apply, d)) for d in batches]
            say("  apply", spread(times, 1e6, "us") + f" {sum(times) / len(entries) * 1e6:9.2f} us per write")


def put(world: World, task: Any) -> Group:
    return Group(task.id, (Put(replace(task, status=world.running(task)), task.version),))


def set_status(world: World, task: Any) -> Group:
    return Group(task.id, (SetStatus(task.id, world.running(task), task.version),))


KINDS: list[Callable[[World, Any], Group]] = [put, set_status]


def bench_views(world: World) -> None:
    store = world.store
    tasks = list(store.tasks.all())

    def overlay_pass() -> None:
        view = PendingView(store)
        for task in tasks[:1000]:
            view.group(task.service_id)
            view.put(replace(task, desired_state=TaskState.SHUTDOWN))
            for _ in view.tasks.by("slot", (task.service_id, task.slot, task.preset)):
                pass
        view.groups()

    say(
        "overlay: 1,000 rows written, looked up, made groups",
        spread([timed(overlay_pass) for _ in range(5)], 1e3, "ms"),
    )
    say("snapshot: the call", spread([timed(store.snapshot) for _ in range(5)], 1e3, "ms"))
    pieces: list[bytes] = []
    steps: list[float] = []
    iterator = iter(store.snapshot())
    while True:
        started = time.perf_counter()
        piece = next(iterator, None)
        if piece is None:
            break
        steps.append(time.perf_counter() - started)
        pieces.append(piece)
    say(
        "snapshot: a piece",
        spread(steps, 1e3, "ms") + f", {sum(map(len, pieces)) / 2**20:.1f} MiB in {sum(steps):.2f} s",
    )
    gc.collect()
    tracemalloc.start()
    other = Store()
    other.restore(store.index, pieces)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    say(
        "memory per task, restored and running",
        f"{held / len(tasks):9.0f} bytes ({held / len(tasks) * 10_000 / 2**20:.1f} MiB per 10,000)",
    )
    del other
    gc.collect()
    say("restore", spread([timed(lambda: Store().restore(store.index, pieces)) for _ in range(3)], 1e3, "ms"))


class Leader:
    """Controllers over a world whose nodes obey at once, and what their calls cost."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.runs: list[float] = []
        self.books: list[float] = []
        self.cost = 0
        self._news: dict[str, None] = {}
        self.made = timed(self._make)
        world.store.watch(self._on_commit)

    def _make(self) -> None:
        self.controllers = Controllers(self.world.store, self.world.id)

    def _on_commit(self, index: int, changes: Sequence[Change]) -> None:
        self.books.append(timed(lambda: self.controllers.changed(changes)))
        for change in changes:
            if isinstance(change.row, Task) and change.new is not None and change.new.node_id:
                self._news[change.row.id] = None

    def drive(self, *, obey: bool = True) -> str:
        """Until nothing is left to do. The calls' times."""
        world, controllers = self.world, self.controllers
        self.runs, self.books, self.cost = [], [], 0
        for _ in range(1_000_000):
            groups: tuple[Group, ...] = ()
            at = controllers.next_wake()
            if at is not None and at <= world.now:

                def call() -> None:
                    nonlocal groups
                    groups = controllers.run(world.now)

                self.runs.append(timed(call))
                self.cost = max(self.cost, controllers.cost)
            elif not (obey and self._news):
                if at is None or at > world.now + 3600 * 10**9:
                    break
                world.now = at
            if not groups and obey and self._news:
                groups = tuple(filter(None, map(self._report, list(self._news)[:1000])))
                for id_ in list(self._news)[:1000]:
                    del self._news[id_]
            if groups:
                world.store.apply(world.store.index + 1, 1, world.entry(*groups))
        return (
            f"{len(self.runs):5} passes, {spread(self.runs, 1e3, 'ms')}, {self.cost} rows looked at in one; "
            f"changed worst {max(self.books, default=0) * 1e3:.2f} ms; {sum(self.runs) + sum(self.books):.2f} s in all"
        )

    def _report(self, id_: str) -> Group | None:
        task = self.world.store.tasks.get(id_)
        if task is None or task.status.state.terminal:
            return None
        if task.desired_state > TaskState.RUNNING:
            ended = replace(
                task.status, state=TaskState.SHUTDOWN, message="shutdown", finished_at=self.world.now
            )
            return Group(id_, (SetStatus(id_, ended, task.version),))
        if task.desired_state == TaskState.READY and task.status.state < TaskState.READY:
            ready = replace(task.status, state=TaskState.READY, message="prepared", timestamp=self.world.now)
            return Group(id_, (SetStatus(id_, ready, task.version),))
        if task.status.state == TaskState.RUNNING or task.desired_state != TaskState.RUNNING:
            return None
        return set_status(self.world, task)


def change_service(world: World, **more: Any) -> None:
    """Of the first service's spec; with a new image a new revision too."""
    service = world.store.services.get(world.services[0].id)
    assert service is not None
    spec = replace(service.spec, **more)
    revision = revision_of(service.id, spec, ())
    writes: list[Any] = [Put(replace(service, spec=spec, revision_id=revision.id), service.version)]
    if world.store.revisions.get(revision.id) is None:
        writes.insert(0, Put(revision, 0))
    world.apply(world.entry(Group("", tuple(writes))))


def replicas(count: int) -> ServiceMode:
    return ServiceMode(replicated=Replicated(replicas=count))


def bench_control(nodes: int, services: int, count: int) -> None:
    world = World(nodes, services, count)
    world.found()
    leader = Leader(world)
    print(f"--- {services} x {count} replicas over {nodes} nodes")
    say("bring-up", leader.drive(obey=False))
    say("all of them report that they run", leader.drive())
    change_service(world, mode=replicas(count + 1))
    say("one service scaled by one", leader.drive())
    change_service(world, mode=replicas(count // 2))
    say("one service scaled to a half", leader.drive())
    change_service(world, mode=replicas(count))
    say("and back", leader.drive())
    update = UpdateConfig(parallelism=100, monitor=1, order="stop-first")
    template = TaskTemplate(container_spec=ContainerSpec(image="registry.example.org/team/app-0:2"))
    change_service(world, task_template=template, update_config=update)
    say("one service updated, 100 at a time", leader.drive())
    template = TaskTemplate(container_spec=ContainerSpec(image="registry.example.org/team/app-0:3"))
    change_service(world, task_template=template, update_config=replace(update, parallelism=0))
    say("one service updated, all at once", leader.drive())
    node = world.store.nodes.get(world.nodes[0].id)
    assert node is not None
    down = replace(node, status=NodeStatus(state=NodeState.DOWN))
    world.apply(world.entry(Group("", (Put(down, node.version),))))
    say("one node down", leader.drive())
    say("a new leader's controllers: made", f"{Leader(world).made * 1e3:9.2f} ms")
    say("a new leader's first passes", Leader(world).drive())
    gone = world.store.services.get(world.services[0].id)
    assert gone is not None
    world.apply(world.entry(Group("", (Delete("service", gone.id, gone.version),))))
    say("one service removed", leader.drive())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.store", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--services", type=int, default=100)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--only", choices=("store", "control"), default=None)
    chosen = parser.parse_args()
    sizes = (chosen.nodes, chosen.services, chosen.replicas)
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # as the daemon does
    if chosen.only in (None, "store"):
        world = World(*sizes)
        bench_store(world)
    if chosen.only in (None, "control"):
        bench_control(*sizes)
        bench_control(sizes[0], 1, 10 * sizes[2])


if __name__ == "__main__":
    main()
