"""Services whose tasks stand unevenly: which would move where, and moving them within a budget.

The scheduler says where a task would go if it were placed today; it is worth a move when the node it leaves has at least two
tasks of its service more than the one it goes to - of a service with spread preferences, the branch it leaves, at the first level
at which the two nodes stand apart - and when no wish met where it stands (a neighbour, a volume) is unmet there. What moves does so
as in a drain: the successor first, never fewer healthy tasks than promised.

A service is rebalanced while ``Service.rebalancing`` says how many of its tasks may move at a time: written by somebody's wish, or
by its policy. That a node has joined is read from the rows: ``Node.active_since`` says when it came to take tasks (which a change of
leaders, after which all nodes are unknown for a moment, does not touch), ``Service.evened`` up to which of these times a service
has been dealt with. So a join is not forgotten when leaders change, and none is made up.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

import msgspec

from swarm_agent.control.memory import Memory
from swarm_agent.control.orchestrator.drain import move
from swarm_agent.control.orchestrator.update import going
from swarm_agent.control.scheduler.feasibility import preferences_of, spread_of, unmet
from swarm_agent.control.scheduler.scheduler import place
from swarm_agent.control.scheduler.spread import path_of
from swarm_agent.control.scheduler.usage import takes_tasks
from swarm_agent.control.tasks import at_work, draining, live
from swarm_agent.control.transaction import Key, Transaction
from swarm_agent.objects import defaults, features
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.options import options
from swarm_agent.objects.records import Node, Revision, Service, Task
from swarm_agent.store import Store, View

SETTLING = 30 * defaults.SECOND  # a node that has just come may go again; whoever reacts to it waits so long
EVERYTHING = 1 << 30
MAX_SUGGESTED = 1000  # moves; who follows them may ask again
TRIES = 3  # nodes of a branch whose tasks are not worth a move, until it counts as even


class Suggestion(msgspec.Struct, frozen=True):
    """One task that would better be elsewhere."""

    service_id: str
    task_id: str
    place: int | str
    before: str  # node ids
    after: str
    text: str


def movable(service: Service) -> str:
    """Why a service is not rebalanced; "" when it is."""
    if not defaults.is_replicated(service.spec):
        return f"it is a {defaults.mode(service.spec)} service"
    wanted = options(service.spec.labels)
    if wanted.rebalance == "never":
        return "its label swarm-agent.rebalance is never"
    if wanted.strategy == "binpack":
        return "it is packed, not spread"
    if wanted.volume_affinity != "ignore" and _has_own_volumes(service):
        return "each task has local volumes of its own, which would stay behind"
    return ""


def _has_own_volumes(service: Service) -> bool:
    """Whether names of local volumes differ from task to task, so that nobody can tell where a task's are."""
    return any(
        m.type == "volume"
        and "{{" in (m.source or "")
        and (
            (m.volume_options and m.volume_options.driver_config and m.volume_options.driver_config.name)
            or "local"
        )
        == "local"
        for m in defaults.container(service.spec.task_template).mounts or ()
    )


def suggest(
    store: Store, memory: Memory, now: int, new_id: Callable[[], str], services: list[Service]
) -> tuple[Suggestion, ...]:
    """All moves that would even the services out, as things are now; nothing is changed."""
    p = Transaction(store, memory, now, new_id, most=EVERYTHING)
    found: list[Suggestion] = []
    try:
        for service in services:
            if not movable(service) and len(found) < MAX_SUGGESTED:
                found += _moves(p, service, MAX_SUGGESTED - len(found), pretend=True)
    finally:
        p.finish()
    return tuple(found)


def rebalance(p: Transaction, service_id: str) -> None:
    """Move as many tasks as may move now; the wish ends when nothing is left to move."""
    service = p.view.services.get(service_id)
    if service is None or not service.rebalancing:
        return
    if movable(service):
        p.put(msgspec.structs.replace(service, rebalancing=0))
        return
    if going(service):
        return  # the update's end wakes us
    under_way = _under_way(p, service)
    room = service.rebalancing - under_way
    begun = _moves(p, service, room, pretend=False) if room > 0 else []
    if not begun and not under_way:
        p.put(msgspec.structs.replace(service, rebalancing=0))
        if options(service.spec.labels).rebalance == "continuous" and service.revision_id in p.usage.failed:
            # a node that failures spoke against is one again when they are forgotten
            p.wake(Key("even", service_id), p.usage.forgiven_at(service.revision_id, p.now))


def note_join(p: Transaction, node: Node) -> None:
    """Write down since when a node takes tasks, or that it does not."""
    if p.level < features.ORCHESTRATION:
        return
    if takes_tasks(node):
        if not node.active_since:  # never earlier than what is stored: clocks of leaders differ
            p.put(msgspec.structs.replace(node, active_since=max(p.now, p.view.base.now)))
    elif node.active_since and (node.status.state == NodeState.DOWN or node.spec.availability != "active"):
        p.put(msgspec.structs.replace(node, active_since=0))


def wish(p: Transaction, service_id: str) -> None:
    """Begin, for a service whose policy says so: on-join once the node that came last has stayed for a while."""
    service = p.view.services.get(service_id)
    if service is None or movable(service):
        return
    match options(service.spec.labels).rebalance:
        case "continuous":
            evened = service.evened
            if service.rebalancing:
                return
        case "on-join":
            evened = _last_join(p)
            if evened <= service.evened or evened < service.created_at:
                return
            # one that is further ahead was written by a clock that ran before ours: who knows how long ago
            if evened - SETTLING <= p.now < evened + SETTLING:
                p.wake(Key("even", service_id), evened + SETTLING)
                return
        case _:
            return
    p.put(msgspec.structs.replace(service, rebalancing=service.rebalancing or 1, evened=evened))
    p.more(Key("rebalance", service_id))


def _last_join(p: Transaction) -> int:
    """When the last node came to take tasks; looked at once a pass."""
    if p.last_join is None:
        nodes = list(p.view.nodes.all())
        p.charge(len(nodes))
        p.last_join = max((n.active_since for n in nodes), default=0)
    return p.last_join


def _under_way(p: Transaction, service: Service) -> int:
    rows = list(p.view.tasks.by("service", service.id))
    p.charge(len(rows))
    alive = {t.id for t in rows if live(t)}
    return sum(1 for t in rows if live(t) and t.replaces in alive and not t.status.state.terminal)


class _Crowds:
    """How many tasks of a service each branch of its spread preferences has, and below them each node."""

    def __init__(self, view: View, descriptors: tuple[str, ...]) -> None:
        self._view = view
        self._descriptors = descriptors
        self._paths: dict[str, tuple[str, ...]] = {}
        self._sums: Counter[tuple[str, ...]] = Counter()

    def add(self, node_id: str, tasks: int) -> None:
        path = self._path(node_id)
        for depth in range(1, len(path) + 1):
            self._sums[path[:depth]] += tasks

    def leaf(self, node_id: str) -> tuple[str, ...]:
        """The branch a node stands in, of all levels."""
        return self._path(node_id)[:-1]

    def of(self, node_id: str) -> tuple[int, ...]:
        """By level, the outermost first; the node itself is the last."""
        path = self._path(node_id)
        return tuple(self._sums[path[:depth]] for depth in range(1, len(path) + 1))

    def gain(self, source: str, target: str) -> str:
        """What a move would even out; "" when it would not."""
        here, there = self._path(source), self._path(target)
        depth = next((n for n, (a, b) in enumerate(zip(here, there, strict=True)) if a != b), None)
        if depth is None:
            return ""
        more, fewer = self.of(source)[depth], self.of(target)[depth]
        if more - fewer < 2:
            return ""
        if depth == len(self._descriptors):
            return f"{more} tasks of the service on its node, {fewer} there"
        label = self._descriptors[depth]
        return f"{more} tasks of the service where {label} is {here[depth] or 'not set'}, {fewer} where it is {there[depth] or 'not set'}"

    def _path(self, node_id: str) -> tuple[str, ...]:
        path = self._paths.get(node_id)
        if path is None:
            node = self._view.nodes.get(node_id)
            branches = ("",) * len(self._descriptors) if node is None else path_of(node, self._descriptors)
            path = self._paths[node_id] = (*branches, node_id)
        return path


def _moves(p: Transaction, service: Service, most: int, *, pretend: bool) -> list[Suggestion]:
    """From the most crowded node to where the scheduler would have a task, until that gains nothing. A few nodes are tried:
    what suits a task depends a little on where it stands."""
    revision = p.view.revisions.get(service.revision_id)
    if revision is None:
        return []
    p.view.group(service.id)
    rows = [t for t in p.view.tasks.by("service", service.id) if at_work(t)]
    p.charge(len(rows))
    leaving = {t.replaces for t in rows if t.replaces}
    crowds = _Crowds(p.view, spread_of(revision))
    standing: defaultdict[str, list[Task]] = defaultdict(list)
    for task in rows:
        if task.id in leaving:
            p.discount(task)
        elif task.node_id:
            crowds.add(task.node_id, 1)
        if (
            task.id not in leaving
            and not task.replaces
            and task.status.state == TaskState.RUNNING
            and task.revision_id == service.revision_id
            and not draining(p.view.nodes.get(task.node_id))
        ):
            standing[task.node_id].append(task)
    for tasks in standing.values():
        tasks.sort(key=lambda t: t.slot)
    out: list[Suggestion] = []
    failed: set[str] = set()
    tries: Counter[tuple[str, ...]] = Counter()  # by branch
    while len(out) < most and not (out and p.spent):  # one at least, be the look itself too dear for a pass
        source = max(
            (
                n
                for n, tasks in standing.items()
                if tasks and n not in failed and tries[crowds.leaf(n)] < TRIES
            ),
            key=lambda n: (crowds.of(n), n),
            default="",
        )
        p.charge(len(standing))
        if not source or crowds.of(source)[0] < 2:
            break
        task = standing[source][-1]
        target = _target(p, service, task)
        text = "" if target is None else crowds.gain(source, target.node_id)
        if target is None or not text or _is_worse(p, service, revision, source, target):
            failed.add(source)
            tries[crowds.leaf(source)] += 1
            if target is not None:
                _take_back(p, target)
            p.recount(task)
            continue
        standing[source].pop()
        out.append(Suggestion(service.id, task.id, task.place, source, target.node_id, text))
        crowds.add(source, -1)
        crowds.add(target.node_id, 1)
        if pretend:
            p.delete(task)
    return out


def _is_worse(p: Transaction, service: Service, revision: Revision, source: str, placed: Task) -> bool:
    """Whether fewer wishes would be met where the successor was placed than where the task stands, or it fails there."""
    p.discount(placed)  # neither of the two counts as the other's neighbour
    wish = preferences_of(revision, service, p.view, p.usage)
    here, there = (
        (p.usage.failures(node_id, revision.id, p.now), unmet(wish, node_id, p.usage))
        for node_id in (source, placed.node_id)
    )
    p.recount(placed)
    return there > here


def _target(p: Transaction, service: Service, task: Task) -> Task | None:
    """The successor the scheduler would make, placed; ``None`` when it finds no place."""
    known = {t.id for t in p.at(service.id, task.place)}
    if not move(p, service, task, "rebalance", Key("rebalance", service.id)):
        return None
    made = next(t for t in p.at(service.id, task.place) if t.id not in known)
    place(p, [made], in_any_case=True)
    p.unplaced.pop(made.id, None)
    placed = p.view.tasks.get(made.id)
    if placed is None or not placed.node_id:
        if placed is not None:
            _take_back(p, placed)
        return None
    return placed


def _take_back(p: Transaction, task: Task) -> None:
    p.delete(task)
    p.unplaced.pop(task.id, None)
