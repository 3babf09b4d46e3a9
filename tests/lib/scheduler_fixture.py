"""The scheduler alone: a store, its books and tasks that wait, without orchestrators, nodes or a clock that runs.

For tests of placement and for the bench. Each :meth:`SchedulerFixture.run` is one pass of the scheduler over everything that waits, committed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec

from swarm_agent.control.memory import Memory
from swarm_agent.control.revisions import revision_of
from swarm_agent.control.scheduler.scheduler import place
from swarm_agent.control.scheduler.usage import ClusterUsage
from swarm_agent.control.transaction import Transaction
from swarm_agent.objects import features
from swarm_agent.objects.base import Record
from swarm_agent.objects.defaults import SECOND
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.ids import new_id
from swarm_agent.objects.records import (
    AnyRecord,
    Cluster,
    EnginePlugin,
    Generic,
    JoinTokens,
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
    EndpointSpec,
    NodeSpec,
    PortConfig,
    ServiceSpec,
    TaskTemplate,
)
from swarm_agent.store import Change, Delete, Group, Put, Store, StoreEntry, encode_entry

replace = msgspec.structs.replace
GiB = 1 << 30


class SchedulerFixture:
    """See the module. Nodes and services are known by their names; a service's id is its name."""

    def __init__(self, start: int = 1_000_000 * SECOND) -> None:
        self.now = start
        self.store = Store()
        self.usage = ClusterUsage(self.store)
        self.memory = Memory(self.usage)
        self.store.watch(self._book)
        self._rng = random.Random(1)
        self._made = 0
        self.write(
            Cluster(
                id="cluster",
                spec=ClusterSpec(name="default"),
                root_ca=RootCA(cert=b"", key=b"", digest=""),
                join_tokens=JoinTokens(worker="", manager=""),
                feature_level=features.LEVEL,
            )
        )

    def _book(self, index: int, changes: Sequence[Change]) -> None:
        for change in changes:
            self.usage.apply(change)
            if isinstance(change.row, Task):
                self.usage.note_failure(change.old, change.new)

    # --- writing -------------------------------------------------------------------------------------------------------
    def commit(self, groups: tuple[Group, ...]) -> None:
        result = self.store.apply(self.store.index + 1, 1, encode_entry(StoreEntry(self.now, groups)))
        assert all(result.accepted)

    def write(self, *rows: AnyRecord) -> None:
        stored = [(row, self.store.tables[type(row)].get(row.id)) for row in rows]
        self.commit((Group("", tuple(Put(row, old.version if old else 0) for row, old in stored)),))

    def delete(self, row: Record) -> None:
        stored = self.store.tables[type(row)].get(row.id)
        assert stored is not None, row.id
        self.commit((Group("", (Delete(type(row).__name__.lower(), row.id, stored.version),)),))

    def node(
        self,
        name: str,
        *,
        cpus: float = 4,
        memory: int = 8 * GiB,
        labels: dict[str, str] | None = None,
        engine_labels: dict[str, str] | None = None,
        generic: tuple[Generic, ...] = (),
        volumes: tuple[str, ...] = (),
        plugins: tuple[tuple[str, str], ...] = (),
        platform: tuple[str, str] = ("linux", "x86_64"),
        state: NodeState = NodeState.READY,
        availability: str = "active",
    ) -> Node:
        """Write a node, new or changed."""
        description = NodeDescription(
            hostname=name,
            nano_cpus=int(cpus * SECOND),
            memory_bytes=memory,
            os=platform[0],
            architecture=platform[1],
            engine_labels=engine_labels or {},
            generic=generic,
            volumes=volumes,
            plugins=tuple(EnginePlugin(type=kind, name=plugin) for kind, plugin in plugins),
        )
        old = self.store.nodes.get(name)
        node = Node(
            id=name,
            number=len(self.store.nodes) + 1 if old is None else old.number,
            spec=NodeSpec(labels=labels or {}, availability=availability),
            description=description,
            status=NodeStatus(state=state, addr="192.0.2.1"),
        )
        self.write(node)
        return node

    def service(
        self,
        name: str,
        *,
        labels: dict[str, str] | None = None,
        ports: tuple[PortConfig, ...] = (),
        **template: Any,
    ) -> Service:
        """Write a service, new or changed; ``template``: fields of its task template."""
        template.setdefault("container_spec", ContainerSpec(image="web:1"))
        spec = ServiceSpec(
            name=name,
            labels={f"swarm-agent.{key}": value for key, value in (labels or {}).items()},
            task_template=TaskTemplate(**template),
            endpoint_spec=EndpointSpec(ports=ports) if ports else None,
        )
        revision = revision_of(name, spec, ())
        service = Service(id=name, spec=spec, revision_id=revision.id)
        self.write(*(() if self.store.revisions.get(revision.id) else (revision,)), service)
        return service

    def tasks(self, name: str, count: int = 1, *, preset: str = "", replaces: str = "") -> list[Task]:
        """Write so many new tasks of a service."""
        service = self.store.services.get(name)
        assert service is not None, name
        made = []
        for _ in range(count):
            self._made += 1
            made.append(
                Task(
                    id=new_id(self._rng),
                    service_id=name,
                    service_name=name,
                    revision_id=service.revision_id,
                    slot=0 if preset else self._made,
                    preset=preset,
                    replaces=replaces,
                    status=TaskStatus(state=TaskState.NEW, message="created", timestamp=self.now),
                )
            )
        self.write(*made)
        return made

    def end(self, task: Task, state: TaskState = TaskState.FAILED) -> None:
        current = self.task(task)
        status = replace(current.status, state=state, finished_at=self.now)
        self.write(replace(current, status=status, desired_state=TaskState.SHUTDOWN))

    # --- placing -------------------------------------------------------------------------------------------------------
    def waiting(self) -> list[Task]:
        return [t for t in self.store.tasks.by("node", "") if not t.status.state.terminal]

    def pass_of(self, tasks: list[Task], most: int = 1 << 30) -> tuple[tuple[Group, ...], list[Task]]:
        """The writes of one pass over these tasks, and those it left for the next."""
        p = Transaction(self.store, self.memory, self.now, lambda: new_id(self._rng), most)
        try:
            left = place(p, tasks)
        finally:
            groups = p.finish()
        return groups, left

    def run(self) -> None:
        """Place everything that waits, in as many passes as that takes."""
        tasks = self.waiting()
        while tasks:
            groups, tasks = self.pass_of(tasks)
            if groups:
                self.commit(groups)

    def place(self, name: str, count: int = 1, **how: str) -> list[Task]:
        """Make tasks and have everything that waits placed; the tasks as they are then."""
        made = self.tasks(name, count, **how)
        self.run()
        return [self.task(t) for t in made]

    def task(self, task: Task) -> Task:
        found = self.store.tasks.get(task.id)
        assert found is not None, task.id
        return found
