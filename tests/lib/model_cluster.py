"""A cluster on paper: a real store and the real controllers, nodes that obey at once, and a clock one turns by hand.

For tests of decisions. Nothing here runs, waits or talks; :meth:`ModelCluster.settle` applies passes and node reports
until nothing changes any more.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from swarm_agent.control.controllers import Controllers
from swarm_agent.control.orchestrator import jobs
from swarm_agent.control.orchestrator.update import going
from swarm_agent.control.revisions import revision_of
from swarm_agent.control.scheduler.feasibility import local_volumes
from swarm_agent.objects import defaults, features
from swarm_agent.objects.defaults import SECOND
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.ids import new_id
from swarm_agent.objects.records import (
    AnyRecord,
    Cluster,
    ContainerStatus,
    JobStatus,
    JoinTokens,
    Network,
    Node,
    NodeDescription,
    NodeStatus,
    RootCA,
    Service,
    Task,
    TaskStatus,
    UpdateStatus,
)
from swarm_agent.objects.specs import ClusterSpec, NetworkCreate, NodeSpec, ServiceSpec
from swarm_agent.store import Delete, Group, Put, Store, StoreEntry, encode_entry

GiB = 1 << 30


class ModelCluster:
    """See the module. ``start`` is the clock at the beginning, nanoseconds."""

    def __init__(self, seed: int = 1, start: int = 1_000_000 * SECOND, level: int = features.LEVEL) -> None:
        self.now = start
        self.store = Store()
        self.rng = random.Random(seed)
        self.frozen: set[str] = set()  # nodes that report nothing
        self.prepares: Callable[[Task], bool] = lambda task: True
        self.outcome: Callable[[Task], TaskState] = lambda task: TaskState.RUNNING
        self.keeps_volumes = False  # nodes hold, and tell of, the volumes of containers they made
        self._index = 0
        self.write(
            Cluster(
                id=self.id(),
                spec=ClusterSpec(name="default"),
                root_ca=RootCA(cert=b"", key=b"", digest=""),
                join_tokens=JoinTokens(worker="", manager=""),
                feature_level=level,
            )
        )
        self.controllers = Controllers(self.store, self.id)
        self.store.watch(lambda index, changes: self.controllers.changed(changes))

    def id(self) -> str:
        return new_id(self.rng)

    # --- writing -----------------------------------------------------------------------------------------------
    def commit(self, groups: tuple[Group, ...]) -> tuple[bool, ...]:
        self._index += 1
        return self.store.apply(self._index, 1, encode_entry(StoreEntry(self.now, groups))).accepted

    def write(self, *rows: AnyRecord) -> None:
        writes = []
        for row in rows:
            stored = self.store.tables[type(row)].get(row.id)
            writes.append(Put(row, 0 if stored is None else stored.version))
        assert self.commit((Group("test", tuple(writes)),)) == (True,)

    @classmethod
    def of(cls, *names: str) -> ModelCluster:
        """With these nodes, not settled yet."""
        made = cls()
        for name in names:
            made.add_node(name)
        return made

    def image_of(self, task: Task) -> str:
        revision = self.store.revisions.get(task.revision_id)
        assert revision is not None
        assert revision.template.container_spec is not None
        return revision.template.container_spec.image or ""

    def add_node(
        self, name: str, *, cpus: int = 4, memory: int = 8 * GiB, labels: dict[str, str] | None = None
    ) -> Node:
        node = Node(
            id=name,
            spec=NodeSpec(labels=labels or {}),
            description=NodeDescription(
                hostname=name, nano_cpus=cpus * SECOND, memory_bytes=memory, os="linux", architecture="x86_64"
            ),
            status=NodeStatus(state=NodeState.READY, addr="192.0.2.1"),
            feature_level=features.LEVEL,
        )
        self.write(node)
        return node

    def set_node(self, name: str, *, state: NodeState | None = None, availability: str | None = None) -> None:
        node = self.node(name)
        if state is not None:
            node = msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, state=state))
        if availability is not None:
            node = msgspec.structs.replace(
                node, spec=msgspec.structs.replace(node.spec, availability=availability)
            )
        self.write(node)

    def add_network(self, name: str) -> Network:
        network = Network(id=self.id(), spec=NetworkCreate(name=name, driver="overlay"))
        self.write(network)
        self.settle()
        return self.store.networks.get(network.id) or network

    def create(self, spec: ServiceSpec, networks: tuple[str, ...] = ()) -> str:
        service_id = self.id()
        revision = revision_of(service_id, spec, networks)
        job = JobStatus(last_execution=self.now) if defaults.is_job(spec) else None
        self.write(revision, Service(id=service_id, spec=spec, revision_id=revision.id, job=job))
        return service_id

    def update(self, service_id: str, spec: ServiceSpec, networks: tuple[str, ...] = ()) -> None:
        service = self.service(service_id)
        revision = revision_of(service_id, spec, networks)
        same = revision.id == service.revision_id and going(service)
        status = service.update_status if same else None
        changed = msgspec.structs.replace(
            service,
            spec=spec,
            previous_spec=service.spec,
            revision_id=revision.id,
            previous_revision_id=service.revision_id,
            update_status=status,
        )
        if service.job is not None:
            changed = jobs.again(changed, self.now)
        self.write(*(() if self.store.revisions.get(revision.id) else (revision,)), changed)

    def roll_back(self, service_id: str) -> None:
        """As a person asks for it."""
        service = self.service(service_id)
        assert service.previous_spec is not None
        status = UpdateStatus(
            state="rollback_started", message="manually requested rollback", started_at=self.now
        )
        self.write(
            msgspec.structs.replace(
                service,
                spec=service.previous_spec,
                previous_spec=service.spec,
                revision_id=service.previous_revision_id,
                previous_revision_id=service.revision_id,
                update_status=status,
            )
        )

    def new_leader(self) -> None:
        """Another manager leads from here on: it knows what is in the store, and nothing else."""
        self.controllers = Controllers(self.store, self.id)

    def remove(self, service_id: str) -> None:
        service = self.service(service_id)
        assert self.commit((Group(service_id, (Delete("service", service_id, service.version),)),)) == (True,)

    # --- reading -----------------------------------------------------------------------------------------------
    def node(self, name: str) -> Node:
        node = self.store.nodes.get(name)
        assert node is not None, name
        return node

    def service(self, service_id: str) -> Service:
        service = self.store.services.get(service_id)
        assert service is not None, service_id
        return service

    def tasks(self, service_id: str, *, live: bool = True) -> list[Task]:
        found = [
            t
            for t in self.store.tasks.by("service", service_id)
            if not live or t.desired_state <= TaskState.COMPLETE
        ]
        return sorted(found, key=lambda t: (t.slot, t.preset, t.created_at, t.id))

    def running(self, service_id: str) -> list[Task]:
        return [t for t in self.tasks(service_id) if t.status.state == TaskState.RUNNING]

    # --- time --------------------------------------------------------------------------------------------------
    def step(self) -> bool:
        """One pass and one report of every node; whether anything changed."""
        before = self._index
        while self.controllers.next_wake() is not None and (self.controllers.next_wake() or 0) <= self.now:
            groups = self.controllers.run(self.now)
            if not groups:
                continue
            assert all(self.commit(groups)), "a pass on the latest state must be accepted"
        self._report()
        return self._index != before

    def settle(self) -> None:
        for _ in range(500):
            if not self.step():
                return
        raise AssertionError("the cluster does not come to rest")

    def advance(self, seconds: float) -> None:
        """Turn the clock, stopping wherever a controller asked to be woken."""
        end = self.now + int(seconds * SECOND)
        self.settle()
        while True:
            wake = self.controllers.next_wake()
            if wake is None or wake > end:
                break
            self.now = max(self.now, wake)
            self.settle()
        self.now = end
        self.settle()

    # --- nodes that obey -----------------------------------------------------------------------------------------
    def _report(self) -> None:
        rows = []
        for task in self.store.tasks.all():
            node = self.store.nodes.get(task.node_id)
            if node is None or node.id in self.frozen or node.status.state == NodeState.DOWN:
                continue
            state = self._obey(task)
            if state is not None:
                rows.append(self._with_state(task, state))
        if rows:
            self.write(*rows)
        if self.keeps_volumes:
            self._tell_volumes([t for t in rows if t.status.state == TaskState.READY])

    def _tell_volumes(self, made: list[Task]) -> None:
        for task in made:
            revision, node = self.store.revisions.get(task.revision_id), self.node(task.node_id)
            held = {*node.description.volumes, *(local_volumes(revision) if revision is not None else ())}
            if len(held) > len(node.description.volumes):
                about = msgspec.structs.replace(node.description, volumes=tuple(sorted(held)))
                self.write(msgspec.structs.replace(node, description=about))

    def _obey(self, task: Task) -> TaskState | None:
        state = task.status.state
        if state.terminal:
            return None
        if task.desired_state >= TaskState.SHUTDOWN:
            return TaskState.SHUTDOWN
        if state < TaskState.READY:
            return TaskState.READY if self.prepares(task) else TaskState.REJECTED
        if task.desired_state >= TaskState.RUNNING and state < TaskState.RUNNING:
            return self.outcome(task)
        return None

    def _with_state(self, task: Task, state: TaskState) -> Task:
        status = TaskStatus(
            state=state,
            message=state.word,
            timestamp=self.now,
            container=ContainerStatus(container_id=task.id),
            started_at=self.now if state == TaskState.RUNNING else task.status.started_at,
            finished_at=self.now if state.terminal else 0,
        )
        return msgspec.structs.replace(task, status=status)

    def fail(self, task: Task, state: TaskState = TaskState.FAILED) -> None:
        """The container of a task ends by itself."""
        current = self.store.tasks.get(task.id)
        assert current is not None
        self.write(self._with_state(current, state))
