"""The queue of keys to reconcile and one pass over it: dirty keys in, groups of writes and wake-up times out."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from swarm_agent.control.allocator import allocate_network, allocate_node, allocate_service
from swarm_agent.control.memory import Memory
from swarm_agent.control.names import STACK
from swarm_agent.control.orchestrator.constraint_enforcer import fit_in, orphan
from swarm_agent.control.orchestrator.content_rollout import (
    CONTENTS,
    TRACK,
    all_trackers,
    reap_contents,
    reconcile_tracking,
    trackers,
)
from swarm_agent.control.orchestrator.drain import drain
from swarm_agent.control.orchestrator.rebalance import SETTLING, note_join, rebalance, wish
from swarm_agent.control.orchestrator.service import (
    reconcile_prepared,
    reconcile_service,
    reconcile_slot,
)
from swarm_agent.control.orchestrator.task_reaper import reap_revisions
from swarm_agent.control.orchestrator.update import going
from swarm_agent.control.scheduler.scheduler import pend, place
from swarm_agent.control.scheduler.usage import ClusterUsage, takes_tasks
from swarm_agent.control.tasks import at_work, draining, live
from swarm_agent.control.transaction import MAX_WRITES, RESCHEDULE, Key, Transaction
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.options import options
from swarm_agent.objects.records import Cluster, Config, Network, Node, Revision, Secret, Service, Task
from swarm_agent.store import Change, Group, Store, slot_key

MAX_KEYS = 200  # a pass looks at this many keys, the rest waits for the next
MAX_BOOKED = 5000  # tasks a new leader books in one call
MAX_PLACED = 1000  # waiting tasks a pass looks at again
LARGE = 1000  # tasks; the looks at a larger service that its tasks ask for while it is updated are spaced
SPACING = (
    10_000  # nanoseconds for each task between two of them: so they take a tenth of the leader's time at most
)
OF_A_SERVICE = (
    "service",
    "prepared",
    "slot",
    "rebalance",
    "even",
    TRACK,
)  # kinds of keys whose id is a service's


class Quarantine(NamedTuple):
    """What is left alone for a while because a decision about it failed, so that one service of which a controller makes nothing does
    not stop all others."""

    until: int  # nanoseconds
    error: str


class Controllers:
    """The leader's controllers over one store. Pure: the loop feeds changes and time, and proposes what comes out."""

    def __init__(
        self, store: Store, new_id: Callable[[], str], quarantined: Mapping[Key, Quarantine] | None = None
    ) -> None:
        """``quarantined``: ("service", id) of services, and other keys, to be left alone."""
        self.store = store
        self.quarantined = dict(quarantined or {})
        self.failed_key: Key | None = None  # what the pass that failed was about; None: nobody can say
        self._at = RESCHEDULE  # the key in hand; this one while tasks are placed
        self.usage = ClusterUsage(store, at_once=False)
        self.memory = Memory(self.usage)
        self._new_id = new_id
        self.most = MAX_WRITES  # rows a pass may write, about; less while they are large
        self._dirty: dict[Key, None] = {}
        self._timers: list[tuple[int, Key]] = []
        self._due: dict[Key, int] = {}
        self._waiting: dict[str, None] = {}  # tasks without a node that are to be looked at again
        # service id -> what waits for its health
        self._for_health: defaultdict[str, set[Key]] = defaultdict(set)
        self._prepared: dict[str, list[str]] = {}  # service id -> tasks that "prepared" has still to look at
        self._everywhere: dict[str, None] = {}  # services and jobs of a global mode
        # service id -> when it is evened out by itself: "on-join", "continuous"
        self._evened: dict[str, str] = {}
        # name of a service -> who waits for it
        self._dependents: defaultdict[str, set[str]] = defaultdict(set)
        self._nodes_changed = True  # since the last pass began, whose decisions may not be committed yet
        self.cost = 0  # of the last pass: rows looked at, about
        for service in store.services.all():
            self._note_service(None, service)
            self._ask_all(service)
        for service_id in store.tasks.keys("service"):
            if store.services.get(service_id) is None:
                self._dirty[Key("service", service_id)] = None
        for node in store.nodes.all():
            self._dirty[Key("node", node.id)] = None
            if draining(node):
                self._dirty[Key("drain", node.id)] = None
        for network in store.networks.all():
            self._dirty[Key("network", network.id)] = None
        for service_id in all_trackers(store):
            self._dirty[Key(TRACK, service_id)] = None
        for owner in (*store.secrets.all(), *store.configs.all()):
            self._dirty[Key(CONTENTS, owner.id)] = None
        self._dirty[RESCHEDULE] = None
        for key, left in self.quarantined.items():
            self._look_later(key, left.until)

    # --- what became dirty -------------------------------------------------------------------------------------
    def changed(self, changes: Iterable[Change]) -> None:
        """Book committed changes and mark what they concern."""
        forgotten = []
        for change in changes:
            self.usage.apply(change)
            match change.row:
                case Task():
                    self.usage.note_failure(change.old, change.new)
                    self._task_changed(change)
                case Service() as service:
                    policy = self._evened.get(service.id)
                    self._note_service(change.old, change.new)
                    if policy != self._evened.get(service.id):
                        self._evens_out(service.id)
                    self._dirty[Key("service", service.id)] = None
                    if service.rebalancing and change.new is not None:
                        self._dirty[Key("rebalance", service.id)] = None
                    if _asks_anew(change):
                        self._ask_prepared(service.id)
                    if change.old is None or change.new is None:
                        self._wake_dependents(service)
                        self.memory.forget_service(service.id)
                    self.memory.make_room()
                    if _frees_something(change):
                        self._dirty[RESCHEDULE] = None
                case Node():
                    self._node_changed(change)
                case Cluster():
                    if _raised(change):  # nodes may be told more about from now on
                        self._dirty.update({Key("node", node.id): None for node in self.store.nodes.all()})
                    if _keeps_less(change):
                        self._dirty.update({Key("service", s.id): None for s in self.store.services.all()})
                case Network() as network:
                    self._dirty[Key("network", network.id)] = None
                    self._dirty[RESCHEDULE] = None
                case Revision() as revision if change.new is None:
                    forgotten.append(revision.id)
                    self._dirty.update({Key(CONTENTS, ref.owner): None for ref in revision.contents})
                case Secret() | Config() as owner:
                    self._dirty[Key(CONTENTS, owner.id)] = None
                    self._dirty.update({Key(TRACK, id_): None for id_ in trackers(self.store, owner.id)})
                case _:
                    pass
        for id_ in forgotten:
            self.usage.forget_revision(id_)
            self.memory.forget_revision(id_)

    def retry(self, keys: Iterable[str]) -> None:
        """Groups that were rejected: look again."""
        for key in keys:
            kind, slash, id_ = key.rpartition("/")
            self._dirty[Key(kind if slash else "service", id_)] = None
            if not slash:
                self._dirty[Key(TRACK, id_)] = None
                self._ask_prepared(id_)
                self._dirty[Key("rebalance", id_)] = None
                self._dirty[Key("even", id_)] = None
                for node in self.store.nodes.all():  # the group may have held successors of theirs
                    if draining(node):
                        self._dirty[Key("drain", node.id)] = None
        self._dirty[RESCHEDULE] = None

    def _note_service(self, old: Service | None, new: Service | None) -> None:
        if old is not None:
            self._everywhere.pop(old.id, None)
            self._evened.pop(old.id, None)
            for wanted in options(old.spec.labels).depends_on:
                self._dependents[wanted.service.lower()].discard(old.id)
        if new is not None:
            if defaults.is_global(new.spec):
                self._everywhere[new.id] = None
            policy = options(new.spec.labels).rebalance
            if policy in ("on-join", "continuous"):
                self._evened[new.id] = policy
            for wanted in options(new.spec.labels).depends_on:
                self._dependents[wanted.service.lower()].add(new.id)

    def _ask_all(self, service: Service) -> None:
        """Have everything about a service looked at, as it is new to us."""
        self._dirty[Key("service", service.id)] = None
        self._ask_prepared(service.id)
        if service.rebalancing:
            self._dirty[Key("rebalance", service.id)] = None
        self._evens_out(service.id)

    def _ask_prepared(self, service_id: str) -> None:
        """Have all its prepared tasks looked at, from the first on."""
        self._prepared.pop(service_id, None)
        self._dirty[Key("prepared", service_id)] = None

    def _wake_dependents(self, service: Service) -> None:
        name = (service.spec.name or "").lower()
        stack = service.spec.labels.get(STACK, "").lower()
        short = name.removeprefix(f"{stack}_") if stack else name
        for dependent in self._dependents.get(name, set()) | self._dependents.get(short, set()):
            self._ask_prepared(dependent)

    def _task_changed(self, change: Change) -> None:
        task: Task = change.row
        service = self.store.services.get(task.service_id)
        moved_on = (
            change.old is None or change.new is None or change.old.status.state != change.new.status.state
        )
        # the wish alone changes where a node is lost: nothing more is heard of its tasks
        shifted = moved_on or (
            change.old is not None
            and change.new is not None
            and change.old.desired_state != change.new.desired_state
        )
        if service is None or change.new is None:
            self._dirty[Key("service", task.service_id)] = None
        elif defaults.is_job(service.spec):
            if (
                change.new.status.state.terminal
            ):  # another may take its turn; all else is about its place alone
                self._progressed(service)
        elif going(service):
            self._progressed(service)
        if service is not None:
            if not self._goes_on_alone(change.old, change.new):
                self._dirty[Key("slot", task.service_id, task.place)] = None
            if moved_on and self._dependents:
                self._wake_dependents(service)
            if service.rebalancing and shifted:
                self._dirty[Key("rebalance", service.id)] = None
            elif moved_on and self._evened.get(service.id) == "continuous":
                self._look_later(Key("even", service.id), self.store.now + SETTLING)
            for key in self._for_health.pop(task.service_id, ()) if shifted else ():
                self._dirty[key] = None
        if task.replaces:
            old = self.store.tasks.get(task.replaces)
            if old is not None and draining(self.store.nodes.get(old.node_id)):
                self._dirty[Key("drain", old.node_id)] = None
        if (
            change.old is not None
            and at_work(change.old)
            and not (change.new is not None and at_work(change.new))
        ):
            self._leave_alone(task)
        freed = change.new is None or (
            change.new.status.state.terminal and not (change.old and change.old.status.state.terminal)
        )
        if change.new is not None and not change.new.node_id and live(change.new):
            self._waiting[task.id] = None
        if (freed or self.memory.rankings.is_awaited(task)) and self.store.tasks.has("node", ""):
            self._dirty[RESCHEDULE] = None

    def _leave_alone(self, ended: Task) -> None:
        """Another task of its place that is on a draining node was not moved beside it, and may be now."""
        for task in self.store.tasks.by("slot", slot_key(ended.service_id, ended.place)):
            if draining(self.store.nodes.get(task.node_id)) and at_work(task):
                self._dirty[Key("drain", task.node_id)] = None

    def _goes_on_alone(self, old: Task | None, new: Task | None) -> bool:
        """Whether nothing is to be decided about a slot: its only task is to go on where it is, or was just put there, and has not
        ended. What becomes of its node is asked when that changes."""
        if (
            new is None
            or new.status.state > TaskState.RUNNING
            or new.desired_state == TaskState.READY
            or not live(new)
            or not new.node_id
            or new.preset
        ):
            return False
        if old is None or not old.node_id:
            if self._nodes_changed:  # it was decided about another node than there is now
                return False
        elif old.node_id != new.node_id:
            return False
        if old is not None and old.desired_state != new.desired_state:
            return False
        return self.store.tasks.count("slot", slot_key(new.service_id, new.slot)) == 1

    def _node_changed(self, change: Change) -> None:
        old, new = change.old, change.new
        node_id = change.row.id
        self._dirty[Key("node", node_id)] = None
        if new is not None and new.active_since and (old is None or not old.active_since):
            for service_id in self._evened:
                self._evens_out(service_id)
        if old is not None and new is not None and _same_for_tasks(old, new):
            return
        self._nodes_changed = True
        self.memory.node_changed(node_id)
        self._dirty[RESCHEDULE] = None
        for service_id in self._everywhere:
            self._dirty[Key("slot", service_id, node_id)] = None
            self.memory.look_again(service_id, node_id)
        if draining(new):
            self._dirty[Key("drain", node_id)] = None
        if new is not None and takes_tasks(new):
            for service_id, policy in self._evened.items():
                if policy == "continuous":  # its labels may have changed
                    self._look_later(Key("even", service_id), self.store.now + SETTLING)
        for task in self.store.tasks.by("node", node_id):
            self._dirty[Key("slot", task.service_id, task.place)] = None
            self.memory.look_again(task.service_id, task.place)

    def _progressed(self, service: Service) -> None:
        """Something happened to a task of a service that is being updated."""
        key = Key("service", service.id)
        tasks = self.store.tasks.count("service", service.id)
        if tasks <= LARGE:
            self._dirty[key] = None
        elif key not in self._dirty:
            at = self.store.now + tasks * SPACING
            if self._due.get(key, at + 1) > at:
                self._due[key] = at
                heapq.heappush(self._timers, (at, key))

    def _evens_out(self, service_id: str) -> None:
        """A node has come, or it may have while nobody looked: a service whose policy says so is evened out."""
        match self._evened.get(service_id):
            case "on-join":
                self._dirty[Key("even", service_id)] = None  # it knows when
            case "continuous":
                self._look_later(Key("even", service_id), self.store.now + SETTLING)
            case _:
                pass

    def _look_later(self, key: Key, at: int) -> None:
        """At the latest then."""
        if self._due.get(key, at + 1) > at:
            self._due[key] = at
            heapq.heappush(self._timers, (at, key))

    # --- one look ------------------------------------------------------------------------------------------------
    def next_wake(self) -> int | None:
        """When to look again if nothing changes, nanoseconds; now (0) while keys are dirty."""
        if self._dirty or self._waiting:
            return 0
        return self._timers[0][0] if self._timers else None

    def run(self, now: int) -> tuple[Group, ...]:
        """One pass over the dirty keys; the groups are to be proposed as one entry. After an exception the books are of no use any
        more: make new controllers, with ``failed_key`` quarantined."""
        while self._timers and self._timers[0][0] <= now:
            at, key = heapq.heappop(self._timers)
            if self._due.get(key) == at:
                del self._due[key]
                self._dirty[key] = None
        if self.quarantined:
            self._quarantine(now)
        if not self.usage.complete:
            self.usage.book(MAX_BOOKED)
            return ()
        keys = list(itertools.islice(self._dirty, MAX_KEYS))
        for key in keys:
            del self._dirty[key]
        self._nodes_changed = False
        p = Transaction(self.store, self.memory, now, self._new_id, self.most)
        p.quarantined = {key.id for key in self.quarantined if key.kind == "service"}
        try:
            self._reconcile(p, keys)
        except Exception:
            self.failed_key = self._key_at_fault(p.view.key)
            raise
        finally:
            groups = p.finish()
        self.cost = p.cost
        self._dirty.update(dict.fromkeys(p.again))
        for key in p.for_health:
            self._for_health[key.id].add(key)
        for key, at in p.wakes.items():
            if key.kind == "even":  # asked for by others than itself, too
                self._look_later(key, at)
            elif self._due.get(key) != at:
                self._due[key] = at
                heapq.heappush(self._timers, (at, key))
        return groups

    def _quarantine(self, now: int) -> None:
        """Release what was quarantined long enough; until then nothing of the others is reconciled."""
        for key in [key for key, left in self.quarantined.items() if left.until <= now]:
            del self.quarantined[key]
            service = self.store.services.get(key.id) if key.kind == "service" else None
            if service is not None:
                self._ask_all(service)
            self._dirty[key] = self._dirty[RESCHEDULE] = None
        self._dirty = {key: None for key in self._dirty if not self._is_quarantined(key)}

    def _is_quarantined(self, key: Key) -> bool:
        return key in self.quarantined or (
            key.kind in OF_A_SERVICE and Key("service", key.id) in self.quarantined
        )

    def _key_at_fault(self, group: str) -> Key | None:
        """Whose decision failed: the service of the key in hand, or that of the group that was being collected."""
        if self._at.kind in OF_A_SERVICE:
            return Key("service", self._at.id)
        service = Key("service", group)
        if self.store.services.get(group) is not None and service not in self.quarantined:
            return service
        return None if self._at == RESCHEDULE else self._at

    def _reconcile(self, p: Transaction, keys: list[Key]) -> None:
        for key in keys:
            self._at = key
            match key.kind:
                case "network":
                    p.view.group(f"network/{key.id}")
                    network = p.view.networks.get(key.id)
                    if network is not None:
                        allocate_network(p, network)
                case "node":
                    p.view.group(f"node/{key.id}")
                    node = p.view.nodes.get(key.id)
                    if node is not None:
                        allocate_node(p, node)
                        fit_in(p, node)
                        orphan(p, node)
                        note_join(p, p.view.nodes.get(key.id) or node)
                case "track":
                    p.view.group(key.id)  # with what the same pass makes of the new revision, or of neither
                    reconcile_tracking(p, key.id)
                case "contents":
                    p.view.group(f"{CONTENTS}/{key.id}")
                    reap_contents(p, key.id)
                case _:
                    pass
        for key in keys:
            if key.kind in ("service", "prepared", "slot", "drain", "rebalance", "even") and p.spent:
                p.more(key)
                continue
            self._at = key
            p.view.group(key.id)
            if key.kind == "service":
                reconcile_service(p, key.id)
                self._allocate(p, key.id)
                reap_revisions(p, key.id)
            elif key.kind == "prepared":
                ids = self._prepared.pop(key.id, None)
                left = reconcile_prepared(
                    p, key.id, self.store.tasks.ids("service", key.id) if ids is None else ids
                )
                if left:
                    self._prepared[key.id] = left
                    p.more(key)
            elif key.kind == "drain":
                drain(p, key.id)
            elif key.kind == "rebalance":
                rebalance(p, key.id)
            elif key.kind == "even":
                wish(p, key.id)
            elif key.kind == "slot":
                reconcile_slot(p, key.id, key.place)
            elif key == RESCHEDULE:
                self._waiting.update(dict.fromkeys(self.store.tasks.ids("node", "")))
        self._at = RESCHEDULE
        self._place(p)

    def _place(self, p: Transaction) -> None:
        """Tasks that were made or moved in this pass, then those that wait, as far as this pass goes."""
        ids = dict.fromkeys(p.unplaced)
        room = max(0, MAX_PLACED - len(ids))
        for id_ in list(itertools.islice(self._waiting, room)):
            del self._waiting[id_]
            ids[id_] = None
        p.charge(len(ids))
        ready: list[Task] = []
        allocated: dict[str, str] = {}
        for id_ in ids:
            task = p.view.tasks.get(id_)
            if task is None or task.node_id or not live(task) or task.status.state > TaskState.PENDING:
                continue
            if task.service_id in p.quarantined:
                continue
            if task.service_id not in allocated:
                allocated[task.service_id] = self._allocate(p, task.service_id)
            if not allocated[task.service_id]:
                ready.append(task)
            elif p.room_for(task):
                p.view.group(task.service_id)
                pend(p, task, allocated[task.service_id])
            else:
                self._waiting[id_] = None
        for task in place(p, ready):
            self._waiting[task.id] = None

    def _allocate(self, p: Transaction, service_id: str) -> str:
        service = p.view.services.get(service_id)
        if service is None:
            return "the service is gone"
        revision = p.view.revisions.get(service.revision_id)
        if revision is None:
            return f"revision {service.revision_id} is missing"
        p.view.group(service_id)
        return allocate_service(p, service, revision)


def _asks_anew(change: Change) -> bool:
    """Whether what waits in a place of the service may have to go on, or to go."""
    old, new = change.old, change.new
    if old is None or new is None:
        return new is None
    return bool(
        old.revision_id != new.revision_id
        or old.spec.labels != new.spec.labels
        or old.spec.update_config != new.spec.update_config
        or (going(old) and not going(new))  # what it would have replaced is to start after all
    )


def _raised(change: Change) -> bool:
    old, new = change.old, change.new
    return old is not None and new is not None and bool(old.feature_level != new.feature_level)


def _keeps_less(change: Change) -> bool:
    """Whether fewer ended tasks are to be kept from now on."""
    old, new = change.old, change.new
    return (
        old is not None
        and new is not None
        and defaults.history_limit(old.spec) != defaults.history_limit(new.spec)
    )


def _frees_something(change: Change) -> bool:
    """Whether a waiting task may find what it waits for: a port, an address, another revision of its service."""
    old, new = change.old, change.new
    if old is None or new is None:
        return True
    return bool(
        old.endpoint != new.endpoint
        or old.revision_id != new.revision_id
        or old.spec.labels != new.spec.labels
    )


def _same_for_tasks(old: Node, new: Node) -> bool:
    """Whether nothing a scheduler or an enforcer looks at has changed."""
    return (
        old.status.state == new.status.state
        and old.status.fenced == new.status.fenced
        and old.spec == new.spec
        and old.role == new.role
        and old.number == new.number
        and old.description == new.description
        and old.status.addr == new.status.addr
        and old.feature_level == new.feature_level
    )
