"""What is taken: node resources, host ports, addresses, published ports, numbers.

Derived from the stored rows and kept up to date change by change, so that a decision about one service costs what that
service costs. A pass books its tentative writes here and takes them back at its end; commits book them for good. What
changed about nodes stands in a changelog, from which the scheduler repairs what it remembers (``control.memory``).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from swarm_agent.objects import defaults, ports
from swarm_agent.objects.base import Record
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import ENFORCED, Network, Node, Revision, Service, Task
from swarm_agent.store import Change, Store

_Key = TypeVar("_Key")

FAILURE_MEMORY = 300 * defaults.SECOND  # a node's failures of a revision count this long against it
FAILURES_THAT_COUNT = 5  # fewer are bad luck
_RUNNING, _COMPLETE = int(TaskState.RUNNING), int(TaskState.COMPLETE)
MAX_CHANGELOG = 20_000  # entries; whoever read none of the last so many looks at every node again


class NodeUsage:
    """What the tasks of one node take."""

    __slots__ = ("active", "by_service", "cpu", "failures", "generic", "memory", "names", "ports")

    def __init__(self) -> None:
        self.active = 0
        self.cpu = 0  # nano CPUs reserved
        self.memory = 0  # bytes reserved
        self.by_service: defaultdict[str, int] = defaultdict(int)
        self.ports: Counter[tuple[str, int]] = Counter()  # host-mode published ports
        self.generic: Counter[str] = Counter()  # kind -> how many are given, of those that are counted
        self.names: Counter[tuple[str, str]] = Counter()  # (kind, name), of those that have names
        self.failures: defaultdict[str, list[int]] = defaultdict(list)  # revision id -> times, nanoseconds


class _Taken(NamedTuple):
    cpu: int
    memory: int
    ports: tuple[tuple[str, int], ...]


class ClusterUsage:
    """Books of what is taken. ``apply`` is its own inverse when old and new are swapped."""

    def __init__(self, store: Store, *, at_once: bool = True) -> None:
        """``at_once``: book every task now. Without it they are booked by :meth:`book`, so many at a time; changes that come
        meanwhile are applied as ever."""
        self._store = store
        self.nodes: defaultdict[str, NodeUsage] = defaultdict(NodeUsage)
        self.addresses: defaultdict[str, Counter[str]] = defaultdict(Counter)  # network id -> bare addresses
        self.node_addresses: defaultdict[str, Counter[str]] = defaultdict(
            Counter
        )  # node id -> bare addresses
        self.published: dict[tuple[str, int], str] = {}  # (protocol, ingress port) -> service id
        self.subnets: dict[str, str] = {}  # network id -> subnet
        self.vnis: dict[int, str] = {}
        self.numbers: dict[int, str] = {}  # node number -> node id
        self.cursors: dict[str, int] = {}  # where the last serial allocation stopped, per pool
        self.rows: dict[str, Node] = {}  # nodes as the books know them, tentative writes among them
        self.up: set[str] = set()  # those that take new tasks
        self.hosting: dict[str, dict[str, None]] = {}  # service id -> nodes that have active tasks of it
        self.failed: dict[str, dict[str, None]] = {}  # revision id -> nodes it failed on, however long ago
        self.volumes: dict[str, dict[str, None]] = {}  # volume -> nodes that hold it
        self.held_ports: dict[
            tuple[str, int], dict[str, None]
        ] = {}  # (protocol, port) -> nodes whose host holds it
        self.changelog: list[
            str
        ] = []  # ids of nodes whose row or use changed, in order, the newest part of it
        self.written = 0  # how many entries it ever had
        self.on_task: Callable[[Task], None] = lambda task: None  # noqa: ARG005 - told of each task whose row changes, tentatively too
        self._revisions: dict[str, Revision] = {}
        self._taken: dict[str, _Taken] = {}  # revision id -> what each of its tasks takes
        for table in (store.revisions, store.nodes, store.networks, store.services):
            for row in table.all():
                self.apply(Change(None, row))
        self._unbooked: dict[str, Task] = dict(store.tasks.rows)
        if at_once:
            self.book(len(self._unbooked))

    @property
    def complete(self) -> bool:
        """Whether every task is booked."""
        return not self._unbooked

    def book(self, most: int) -> None:
        """Book so many of the tasks that were there at the beginning."""
        for _ in range(min(most, len(self._unbooked))):
            self._book(self._unbooked.popitem()[1], +1)

    def apply(self, change: Change) -> None:
        """Book one row's change."""
        self.book_change(change.old, change.new)

    def book_change(self, old: Record | None, new: Record | None) -> None:
        """As :meth:`apply`; exactly one of the two may be ``None``."""
        kind = type(old if new is None else new)
        if kind is Task:
            self._task_changed(old, new)  # type: ignore[arg-type]
        elif kind is Service:
            self._service(old, new)  # type: ignore[arg-type]
        elif kind is Network:
            self._network(old, new)  # type: ignore[arg-type]
        elif kind is Node:
            self._node(old, new)  # type: ignore[arg-type]
        elif kind is Revision and new is not None:
            self._revisions[new.id] = new  # type: ignore[assignment]

    def revision(self, task: Task) -> Revision | None:
        return self.known_revision(task.revision_id)

    def known_revision(self, id_: str) -> Revision | None:
        return self._revisions.get(id_) or self._store.revisions.get(id_)

    def forget_revision(self, id_: str) -> None:
        """After the last task that pointed at it was booked out."""
        self._revisions.pop(id_, None)
        self._taken.pop(id_, None)
        for node_id in self.failed.pop(id_, ()):
            if node_id in self.nodes:
                self.nodes[node_id].failures.pop(id_, None)

    def failures(self, node_id: str, revision_id: str, now: int) -> int:
        """How often a revision failed on a node lately, if often enough to count against the node."""
        use = self.nodes.get(node_id)
        times = use.failures.get(revision_id, ()) if use is not None and use.failures else ()
        recent = sum(1 for at in times if at > now - FAILURE_MEMORY)
        return recent if recent >= FAILURES_THAT_COUNT else 0

    def forgiven_at(self, revision_id: str, now: int) -> int:
        """When the first failure of a revision that is remembered now will not count any more; far away when there is none."""
        times = [
            at
            for node_id in self.failed.get(revision_id, ())
            for at in self.nodes[node_id].failures.get(revision_id, ())
            if at > now - FAILURE_MEMORY
        ]
        return min(times, default=1 << 62) + FAILURE_MEMORY

    # --- tasks -------------------------------------------------------------------------------------------------
    def _task_changed(self, old: Task | None, new: Task | None) -> None:
        task = new or old
        assert task is not None
        self.on_task(task)
        if self._unbooked:
            self._book(self._unbooked.pop(task.id, None), +1)
        if not _takes_the_same(old, new):
            self._book(old, -1)
            self._book(new, +1)

    def _book(self, task: Task | None, sign: int) -> None:
        """What a task holds until it has ended, for it (+1) or back (-1)."""
        if task is None or not (task.node_id or task.networks) or task.status.state > _RUNNING:
            return
        for part in task.networks:
            _count(self.addresses[part.network_id], bare(part.address), sign)
        node_id = task.node_id
        if not node_id:
            return
        if task.node_address:
            _count(self.node_addresses[node_id], task.node_address, sign)
        use = self.nodes[node_id]
        self._touch(node_id)
        if task.desired_state <= _COMPLETE:
            service_id = task.service_id
            use.active += sign
            mine = use.by_service.get(service_id, 0) + sign
            if mine:
                use.by_service[service_id] = mine
                if mine == sign == 1:
                    self.hosting.setdefault(service_id, {})[node_id] = None
            else:
                del use.by_service[service_id]
                _leave(self.hosting, service_id, node_id)
        for given in task.generic:
            if given.name:
                _count(use.names, (given.kind, given.name), sign)
            else:
                _count(use.generic, given.kind, sign * given.count)
        taken = self._taken.get(task.revision_id) or self._takes(task)
        use.cpu += sign * taken.cpu
        use.memory += sign * taken.memory
        for port in taken.ports:
            _count(use.ports, port, sign)

    def _takes(self, task: Task) -> _Taken:
        revision = self.revision(task)
        if revision is None:
            return _Taken(0, 0, ())
        taken = self._taken[revision.id] = _Taken(*reserved(revision), tuple(ports.host_ports(revision)))
        return taken

    def note_failure(self, old: Task | None, new: Task | None) -> None:
        """Remember where a task of a revision failed (committed changes only: this has no inverse)."""
        if new is None or not new.node_id or new.status.state not in (TaskState.FAILED, TaskState.REJECTED):
            return
        if new.status.message == ENFORCED:
            return
        if old is None or old.status.state != new.status.state:
            times = self.nodes[new.node_id].failures[new.revision_id]
            times.append(new.status.finished_at or new.status.timestamp)
            del times[:-10]
            self.failed.setdefault(new.revision_id, {})[new.node_id] = None
            self._touch(new.node_id)

    def _touch(self, node_id: str) -> None:
        self.changelog.append(node_id)
        self.written += 1
        if len(self.changelog) > MAX_CHANGELOG and len(self.changelog) > 4 * len(self.rows):
            del self.changelog[: len(self.changelog) // 2]

    # --- the rest ----------------------------------------------------------------------------------------------
    def _service(self, old: Service | None, new: Service | None) -> None:
        for service, sign in ((old, -1), (new, +1)):
            if service is None or service.endpoint is None:
                continue
            for vip in service.endpoint.virtual_ips:
                _count(self.addresses[vip.network_id], bare(vip.address), sign)
            for port in service.endpoint.ports:
                if defaults.publish_mode(port) != "ingress" or not port.published_port:
                    continue
                key = (defaults.protocol(port), port.published_port)
                if sign > 0:
                    self.published[key] = service.id
                elif self.published.get(key) == service.id:
                    del self.published[key]

    def _network(self, old: Network | None, new: Network | None) -> None:
        if old is not None:
            self.subnets.pop(old.id, None)
            if self.vnis.get(old.vni) == old.id:
                del self.vnis[old.vni]
        if new is not None and new.subnet:
            self.subnets[new.id] = new.subnet
            self.vnis[new.vni] = new.id

    def _node(self, old: Node | None, new: Node | None) -> None:
        if old is not None and self.numbers.get(old.number) == old.id:
            del self.numbers[old.number]
        if new is not None and new.number:
            self.numbers[new.number] = new.id
        row = new or old
        if new is None and old is not None:
            use = self.nodes.pop(old.id, NodeUsage())
            for index, keys in ((self.hosting, use.by_service), (self.failed, use.failures)):
                for key in keys:
                    _leave(index, key, old.id)
        if row is not None:
            self._node_row(row.id, new)

    def _node_row(self, id_: str, new: Node | None) -> None:
        known = self.rows.pop(id_, None)
        if known is not None:
            self.up.discard(id_)
            for name in known.description.volumes:
                _leave(self.volumes, name, id_)
            for port in known.description.held_ports:
                _leave(self.held_ports, ports.key(port), id_)
        if new is not None:
            self.rows[id_] = new
            if takes_tasks(new):
                self.up.add(id_)
            for name in new.description.volumes:
                self.volumes.setdefault(name, {})[id_] = None
            for port in new.description.held_ports:
                self.held_ports.setdefault(ports.key(port), {})[id_] = None
        self._touch(id_)


def takes_tasks(node: Node) -> bool:
    """Whether it is there, active and able to, which is the first of the scheduler's filters."""
    return (
        node.status.state == NodeState.READY
        and node.spec.availability == "active"
        and not node.description.trouble
    )


def _takes_the_same(old: Task | None, new: Task | None) -> bool:
    """Whether a change of a task, such as most reports of its node, takes and frees nothing."""
    return (
        old is not None
        and new is not None
        and old.node_id == new.node_id
        and old.status.state <= _RUNNING
        and new.status.state <= _RUNNING
        and (old.desired_state <= _COMPLETE) == (new.desired_state <= _COMPLETE)
        and old.revision_id == new.revision_id
        and old.service_id == new.service_id
        and old.node_address == new.node_address
        and old.networks == new.networks
        and old.generic == new.generic
    )


def bare(address: str) -> str:
    """The address without its prefix length."""
    return address.partition("/")[0]


def reserved(revision: Revision) -> tuple[int, int]:
    """(nano CPUs, bytes) a task of this revision reserves."""
    resources = revision.template.resources
    if resources is None or resources.reservations is None:
        return (0, 0)
    return (resources.reservations.nano_cpus or 0, resources.reservations.memory_bytes or 0)


def _leave(index: dict[_Key, dict[str, None]], key: _Key, id_: str) -> None:
    members = index.get(key)
    if members is not None:
        members.pop(id_, None)
        if not members:
            del index[key]


def _count(counter: Counter[Any], key: Any, change: int) -> None:
    value = counter.get(key, 0) + change  # a Counter's own way with what is missing is slow
    if value:
        counter[key] = value
    else:
        counter.pop(key, None)
