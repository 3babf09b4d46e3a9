"""Whatever happens to a cluster, the scheduler never gives anything twice, and what it remembers changes no placement.

The examples are the same in every run. SWARM_EXAMPLES=5000 tries so many, others each time.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from typing import Any
from unittest import mock

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swarm_agent.control.scheduler import ranking_cache
from swarm_agent.control.scheduler.feasibility import (
    ARCHITECTURES,
    demand_of,
    local_volumes,
    options_of,
)
from swarm_agent.control.scheduler.spread import path_of
from swarm_agent.control.tasks import live
from swarm_agent.objects import defaults
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.ports import host_ports
from swarm_agent.objects.records import Generic, Node, Revision, Task
from swarm_agent.objects.specs import (
    ContainerSpec,
    GenericDiscrete,
    GenericResource,
    Mount,
    Placement,
    Platform,
    PortConfig,
    Preference,
    Reservations,
    Resources,
    SpreadOver,
)
from tests.lib.optional import unwrap
from tests.lib.scheduler_fixture import GiB, SchedulerFixture

replace = msgspec.structs.replace
EXAMPLES = int(os.environ.get("SWARM_EXAMPLES", "0"))
NODES = [f"n{i}" for i in range(7)]
SERVICES = [f"s{i}" for i in range(5)]

NODE = st.fixed_dictionaries(
    {
        "cpus": st.sampled_from((1, 2, 4)),
        "memory": st.sampled_from((1, 2, 4)).map(lambda n: n * GiB),
        "labels": st.sampled_from(({}, {"zone": "a"}, {"zone": "b"}, {"zone": "a", "rack": "1"}, {"zone": "a", "rack": "2"})),
        "generic": st.sampled_from(
            ((), (Generic(kind="gpu", count=2),), (Generic(kind="gpu", name="x"), Generic(kind="gpu", name="y")))
        ),
        "volumes": st.sampled_from(((), (), ("data",))),
        "platform": st.sampled_from((("linux", "x86_64"), ("linux", "aarch64"))),
        "state": st.sampled_from((NodeState.READY, NodeState.READY, NodeState.READY, NodeState.DOWN)),
        "availability": st.sampled_from(("active", "active", "active", "pause")),
    }
)  # fmt: skip


def _spread(*descriptors: str) -> tuple[Preference, ...]:
    return tuple(Preference(spread=SpreadOver(spread_descriptor=d)) for d in descriptors)


def _gpus(count: int) -> tuple[GenericResource, ...]:
    return (
        (GenericResource(discrete_resource_spec=GenericDiscrete(kind="gpu", value=count)),) if count else ()
    )


SERVICE = st.fixed_dictionaries(
    {
        "placement": st.builds(
            Placement,
            constraints=st.sampled_from((None, None, ("node.labels.zone == a",), ("node.labels.zone != b",))),
            preferences=st.sampled_from((None, None, _spread("node.labels.zone"), _spread("node.labels.zone", "node.labels.rack"), _spread("node.id"))),
            max_replicas=st.sampled_from((None, None, 1, 2)),
            platforms=st.sampled_from((None, None, (Platform(os="linux", architecture="amd64"),))),
        ),
        "resources": st.builds(
            lambda cpu, memory, gpus: Resources(
                reservations=Reservations(nano_cpus=cpu, memory_bytes=memory << 28, generic_resources=_gpus(gpus))
            ),
            st.sampled_from((0, 0, 10**9 // 2, 10**9)), st.sampled_from((0, 0, 1, 3)), st.sampled_from((0, 0, 0, 1, 2)),
        ),
        "ports": st.sampled_from(
            ((), (), (PortConfig(target_port=80, published_port=8080, publish_mode="host"),))
        ),
        "container_spec": st.sampled_from(
            (ContainerSpec(image="a:1"), ContainerSpec(image="a:1"), ContainerSpec(image="a:1", mounts=(Mount(type="volume", source="data", target="/d"),)))
        ),
        "labels": st.sampled_from((
            {}, {}, {"placement.strategy": "binpack"}, {"placement.affinity": "service==s0"}, {"placement.affinity": "service!=s1"},
            {"placement.affinity": "service==~s2"}, {"placement.affinity": "service!=~s0"}, {"volume-affinity": "require"},
        )),
    }
)  # fmt: skip
STEP = st.one_of(
    st.tuples(st.just("node"), st.sampled_from(NODES), NODE),
    st.tuples(st.just("service"), st.sampled_from(SERVICES), SERVICE),
    st.tuples(st.just("tasks"), st.sampled_from(SERVICES), st.integers(1, 6)),
    st.tuples(st.just("tasks"), st.sampled_from(SERVICES), st.integers(1, 6)),
    st.tuples(st.just("preset"), st.sampled_from(SERVICES), st.sampled_from(NODES)),
    st.tuples(st.just("move"), st.integers(0, 50), st.none()),
    st.tuples(st.just("fail"), st.integers(0, 50), st.integers(1, 6)),
    st.tuples(st.just("delete"), st.integers(0, 50), st.none()),
    st.tuples(st.just("stop"), st.integers(0, 50), st.none()),
    st.tuples(st.just("lose"), st.sampled_from(NODES), st.none()),
    st.tuples(st.just("wait"), st.just(""), st.sampled_from((1, 100, 400))),
)
STEPS = st.tuples(
    *(st.tuples(st.just("node"), st.just(name), NODE) for name in NODES[:5]),
    *(st.tuples(st.just("service"), st.just(name), SERVICE) for name in SERVICES),
    st.lists(STEP, min_size=4, max_size=16),
).map(lambda parts: [*parts[:-1], *parts[-1]])


def do(desk: SchedulerFixture, step: tuple[str, Any, Any]) -> None:
    what, who, how = step
    running = sorted(
        (t for t in desk.store.tasks.all() if t.node_id and not t.status.state.terminal), key=lambda t: t.id
    )
    task = running[who % len(running)] if running and isinstance(who, int) else None
    if what == "node":
        desk.node(who, **how)
    elif what == "service":
        desk.service(who, **how)
    elif what == "tasks" and desk.store.services.get(who):
        desk.tasks(who, how)
    elif what == "preset" and desk.store.services.get(who):
        desk.tasks(who, preset=how)
    elif what == "wait":
        desk.now += how * defaults.SECOND
    elif what == "lose" and desk.store.nodes.get(who):
        for lost in list(desk.store.tasks.by("node", who)):
            desk.delete(lost)
        desk.delete(unwrap(desk.store.nodes.get(who)))
    elif task is not None and what == "move" and not task.preset:
        desk.tasks(task.service_id, replaces=task.id)
    elif task is not None and what == "delete":
        desk.delete(task)
    elif task is not None and what == "stop":
        desk.write(replace(task, desired_state=TaskState.SHUTDOWN))
    elif task is not None and what == "fail":
        for _ in range(how):
            (again,) = desk.tasks(task.service_id)
            desk.write(
                replace(again, node_id=task.node_id, status=replace(again.status, state=TaskState.RUNNING))
            )
            desk.end(again)


# --- what must always hold ----------------------------------------------------------------------------------------------------
def check(desk: SchedulerFixture, new: list[Task]) -> None:
    tasks = [t for t in desk.store.tasks.all() if t.node_id and not t.status.state.terminal]
    on: defaultdict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        on[task.node_id].append(task)
    touched = {t.node_id for t in new}
    for node_id in touched:
        node = desk.store.nodes.get(node_id)
        assert node is not None
        _within(desk, node, on[node_id])
    for task in new:
        _allowed(desk, task, on[task.node_id])


def revision(desk: SchedulerFixture, task: Task) -> Revision:
    found = desk.store.revisions.get(task.revision_id)
    assert found is not None
    return found


def _within(desk: SchedulerFixture, node: Node, tasks: list[Task]) -> None:
    """A node that just got a task has no more than it has, and gave nothing twice."""
    demands = [demand_of(revision(desk, t), desk.store) for t in tasks]
    if any(d.cpu for d in demands):
        newest = max(tasks, key=lambda t: t.version)
        if demand_of(revision(desk, newest), desk.store).cpu:
            assert sum(d.cpu for d in demands) <= node.description.nano_cpus
    ports = Counter(port for d in demands for port in d.ports)
    assert max(ports.values(), default=0) <= 1, ports
    names = Counter((g.kind, g.name) for t in tasks for g in t.generic if g.name)
    assert max(names.values(), default=0) <= 1, names


def _allowed(desk: SchedulerFixture, task: Task, together: list[Task]) -> None:
    node, rev = desk.store.nodes.get(task.node_id), revision(desk, task)
    assert node is not None
    requirements = demand_of(rev, desk.store)
    assert node.status.state == NodeState.READY
    assert node.spec.availability == "active"
    assert node_matches(defaults.constraints(rev.template), node)
    if requirements.platforms:
        assert ARCHITECTURES[node.description.architecture] == "amd64"
    if requirements.memory:
        reserved = sum(demand_of(revision(desk, t), desk.store).memory for t in together)
        assert reserved <= node.description.memory_bytes
    assert sum(g.count or 1 for g in task.generic) == sum(n for _, n in requirements.generic)
    for kind, _ in requirements.generic:
        has = sum(g.count or 1 for g in node.description.generic if g.kind == kind)
        gone = {g for t in together for g in t.generic if g.name and g not in node.description.generic}
        if not any(g.kind == kind and g.name for g in node.description.generic):
            gone = set()  # told by count now: one that had a name is one of them
        given = [g for t in together for g in t.generic if g.kind == kind and g not in gone]
        assert sum(g.count or 1 for g in given) <= has
    limit = (rev.template.placement and rev.template.placement.max_replicas) or 0
    if limit:
        assert (
            sum(t.service_id == task.service_id and t.desired_state <= TaskState.COMPLETE for t in together)
            <= limit
        )
    if task.replaces:
        replaced = desk.store.tasks.get(task.replaces)
        assert replaced is None or not live(replaced) or replaced.node_id != task.node_id
    if task.preset:
        assert task.node_id == task.preset


# --- the same, thought through without memory ----------------------------------------------------------------------------------
class Plain:
    """The rules of placement said once more, over plain lists, looking at every node for every task."""

    def __init__(self, desk: SchedulerFixture) -> None:
        self.store, self.now = desk.store, desk.now
        self.nodes = {n.id: n for n in desk.store.nodes.all()}
        self.tasks = [t for t in desk.store.tasks.all() if t.node_id and not t.status.state.terminal]
        self.failed = {
            (i, r): sum(at > desk.now - 300 * defaults.SECOND for at in times)
            for i, use in desk.usage.nodes.items()
            for r, times in use.failures.items()
        }

    def place(self, tasks: list[Task]) -> dict[str, str]:
        groups: dict[tuple[str, str], list[Task]] = {}
        out: dict[str, str] = {}
        leaving: defaultdict[str, set[str]] = defaultdict(set)
        for task in tasks:
            if task.preset:
                node = self.nodes.get(task.preset)
                fits = node is not None and self.fits(task, node, "")
                out[task.id] = self.take(task, task.preset if fits else "")
            else:
                replaced = self.store.tasks.get(task.replaces) if task.replaces else None
                avoid = replaced.node_id if replaced is not None and live(replaced) else ""
                if avoid:
                    leaving[avoid].add(task.replaces)
                groups.setdefault((task.revision_id, avoid), []).append(task)
        for (_, avoid), group in sorted(groups.items(), key=lambda item: item[0][1] != ""):
            before = {t.id: t for t in self.tasks}
            # what is about to leave does not count while its successor is placed
            self.tasks = [
                replace(t, desired_state=TaskState.SHUTDOWN) if t.id in leaving[avoid] else t
                for t in self.tasks
            ]
            for task in sorted(group, key=lambda t: t.slot):
                out[task.id] = self.take(task, self.best(task, avoid))
            self.tasks = [before.get(t.id, t) for t in self.tasks]
        return out

    def take(self, task: Task, node_id: str) -> str:
        if node_id:
            wanted = demand_of(self.revision(task), self.store).generic
            self.tasks.append(replace(task, node_id=node_id, generic=tuple(self.pick(node_id, wanted))))
        return node_id

    def pick(self, node_id: str, wanted: tuple[tuple[str, int], ...]) -> list[Generic]:
        given = {g for t in self.on(node_id) for g in t.generic}
        out = []
        for kind, count in wanted:
            names = [g for g in self.nodes[node_id].description.generic if g.kind == kind and g.name]
            free = sorted((g for g in names if g not in given), key=lambda g: g.name)
            out += free[:count] if names else [Generic(kind=kind, count=count)]
        return out

    def revision(self, task: Task) -> Revision:
        found = self.store.revisions.get(task.revision_id)
        assert found is not None
        return found

    def on(self, node_id: str) -> list[Task]:
        return [t for t in self.tasks if t.node_id == node_id]

    def runs(self, service_id: str, node_id: str) -> int:
        return sum(
            t.service_id == service_id and t.desired_state <= TaskState.COMPLETE for t in self.on(node_id)
        )

    def fits(self, task: Task, node: Node, avoid: str) -> bool:
        rev, about, here = self.revision(task), node.description, self.on(node.id)
        requirements, used = (
            demand_of(rev, self.store),
            [demand_of(self.revision(t), self.store) for t in here],
        )
        wanted = options_of(self.store.services.get(task.service_id))
        if node.status.state != NodeState.READY or node.spec.availability != "active" or node.id == avoid:
            return False
        if requirements.cpu and sum(d.cpu for d in used) + requirements.cpu > about.nano_cpus:
            return False
        if requirements.memory and sum(d.memory for d in used) + requirements.memory > about.memory_bytes:
            return False
        given = [g for t in here for g in t.generic]
        for kind, count in requirements.generic:
            names = [g for g in about.generic if g.kind == kind and g.name]
            mine = [g for g in given if g.kind == kind and (not names or not g.name or g in names)]
            total = len(names) or sum(g.count for g in about.generic if g.kind == kind)
            free = total - sum(1 if g.name else g.count for g in mine)
            if free < count:
                return False
        if not node_matches(requirements.constraints, node):
            return False
        if requirements.platforms and ARCHITECTURES[about.architecture] not in {
            a for _, a in requirements.platforms
        }:
            return False
        if set(host_ports(rev)) & {p for t in here for p in host_ports(self.revision(t))}:
            return False
        limit = (rev.template.placement and rev.template.placement.max_replicas) or 0
        if limit and self.runs(task.service_id, node.id) >= limit:
            return False
        if any(
            a.hard and self.near(a.service, node) != a.together
            for a in wanted.affinities
            if not self.first(a, task)
        ):
            return False
        held = [v for v in local_volumes(rev) if any(v in n.description.volumes for n in self.nodes.values())]
        required = wanted.volume_affinity == "require" and not task.preset
        return not required or all(v in about.volumes for v in held)

    def near(self, service: str, node: Node) -> bool:
        return self.runs(service, node.id) > 0

    def first(self, affinity: Any, task: Task) -> bool:
        return bool(
            affinity.service == task.service_id
            and affinity.together
            and not any(self.runs(task.service_id, n) for n in self.nodes)
        )

    def rank(self, task: Task, node: Node) -> Any:
        rev, about = self.revision(task), node.description
        wanted = options_of(self.store.services.get(task.service_id))
        failed = self.failed.get((node.id, rev.id), 0)
        held = [v for v in local_volumes(rev) if any(v in n.description.volumes for n in self.nodes.values())]
        unmet = sum(
            self.near(a.service, node) != a.together
            for a in wanted.affinities
            if not a.hard and not self.first(a, task)
        )
        if wanted.volume_affinity == "prefer":
            unmet += sum(v not in about.volumes for v in held)
        used = [demand_of(self.revision(t), self.store) for t in self.on(node.id)]
        active = sum(t.desired_state <= TaskState.COMPLETE for t in self.on(node.id))
        if wanted.strategy == "binpack":
            share = (
                sum(d.cpu for d in used) * 1_000_000 // about.nano_cpus
                + sum(d.memory for d in used) * 1_000_000 // about.memory_bytes
            )
            return (failed if failed >= 5 else 0, unmet, -share, -active, node.id)
        return (failed if failed >= 5 else 0, unmet, self.runs(task.service_id, node.id), active, node.id)

    def best(self, task: Task, avoid: str) -> str:
        placement = self.revision(task).template.placement
        over = tuple(
            p.spread.spread_descriptor or "" for p in (placement and placement.preferences) or () if p.spread
        )
        nodes = [n for n in self.nodes.values() if self.fits(task, n, avoid)]
        for depth in range(1, len(over) + 1):
            if not nodes:
                return ""
            sums: Counter[Any] = Counter()
            for node in self.nodes.values():
                sums[path_of(node, over)[:depth]] += self.runs(task.service_id, node.id)
            fewest = min((sums[path_of(n, over)[:depth]], path_of(n, over)[:depth]) for n in nodes)[1]
            nodes = [n for n in nodes if path_of(n, over)[:depth] == fewest]
        return min((self.rank(task, n) for n in nodes), default=("",))[-1]


COUNTED, NAMED = (
    (Generic(kind="gpu", count=2),),
    (Generic(kind="gpu", name="x"), Generic(kind="gpu", name="y")),
)
GPU = {"resources": Resources(reservations=Reservations(generic_resources=_gpus(1)))}


def _retold(before: tuple[Generic, ...], after: tuple[Generic, ...]) -> list[Any]:
    """A node tells of its generic resources by count and then by name, or the other way round, while tasks have them."""
    return [
        ("node", "n0", {"generic": before}),
        ("service", "s4", GPU),
        ("service", "s0", {}),
        ("tasks", "s4", 3),
        ("move", 0, None),
        ("tasks", "s0", 1),
        ("node", "n0", {"generic": after}),
    ]


ONE_EACH = {"placement": Placement(max_replicas=1)}
# a node that has lost the only task of a service stands in its order twice: as it was, and as one like all others
EMPTIED = [
    ("node", "n0", {}),
    ("node", "n1", {}),
    ("service", "s3", ONE_EACH),
    ("tasks", "s3", 2),
    ("stop", 1, None),
    ("tasks", "s3", 3),
]


# a task that is to move still stands on its node: none of those that wait may have its place
MOVING = [
    ("node", "n0", {}),
    ("service", "s4", ONE_EACH),
    ("tasks", "s4", 4),
    ("move", 0, None),
]


@settings(max_examples=EXAMPLES or 120, derandomize=not EXAMPLES, database=None, deadline=None)
@example(steps=EMPTIED, large=False)
@example(steps=MOVING, large=True)
@example(steps=_retold(COUNTED, NAMED), large=False)
@example(steps=_retold(NAMED, COUNTED), large=False)
@example(steps=_retold(COUNTED, NAMED), large=True)
@given(STEPS, st.booleans())
def test_placements_are_those_of_the_plain_rules_and_give_nothing_twice(
    steps: list[Any], large: bool
) -> None:
    """``large``: as if these few nodes were many."""
    few, again, kept = (0, 2, 2) if large else (8, 4, 1000)
    with mock.patch.multiple(ranking_cache, FEW=few, AGAIN=again, MAX_REMEMBERED=kept):
        _go(steps)


def _go(steps: list[Any]) -> None:
    desk, forgetful = SchedulerFixture(), SchedulerFixture()
    for step in steps:
        do(desk, step)
        do(forgetful, step)
        waiting = desk.waiting()
        expected = Plain(desk).place(waiting)
        desk.run()
        forgetful.memory.rankings = ranking_cache.RankingCache(forgetful.usage)
        forgetful.run()
        assert {t.id: desk.task(t).node_id for t in waiting} == expected
        assert {t.id: t for t in desk.store.tasks.all()} == {t.id: t for t in forgetful.store.tasks.all()}
        check(desk, [desk.task(t) for t in waiting if desk.task(t).node_id])


@settings(max_examples=EXAMPLES or 60, derandomize=not EXAMPLES, database=None, deadline=None)
@given(
    st.lists(st.sampled_from(("a", "b", "c")), min_size=1, max_size=7),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_zones_and_nodes_are_filled_evenly(zones: list[str], batches: list[int]) -> None:
    desk = SchedulerFixture()
    for number, zone in enumerate(zones):
        desk.node(f"n{number}", labels={"zone": zone})
    desk.service("plain")
    desk.service("zoned", placement=Placement(preferences=_spread("node.labels.zone")))
    for batch in batches:
        for name in ("plain", "zoned"):
            desk.place(name, batch)
        nodes = Counter(t.node_id for t in desk.store.tasks.by("service", "plain"))
        counts = [nodes[f"n{i}"] for i in range(len(zones))]
        assert max(counts) - min(counts) <= 1
        zoned = Counter(zones[int(t.node_id[1:])] for t in desk.store.tasks.by("service", "zoned"))
        filled = [zoned[z] for z in set(zones)]
        assert max(filled) - min(filled) <= 1
