"""One look at all slots of a service: those with nothing to decide about are told apart from the others in one plain loop.

A large service has thousands of slots that are as they should be, and each of the questions a reconciliation asks (who must be
replaced, how many there are, how far the update is, what is to be forgotten) would otherwise go through all of them again. A
slot is *settled* when it has one live task, that runs or is on its way where it may stay, and no more history than is kept; of a
present revision (``present``) or of an older one (``older``). All others are ``open`` and looked at one by one. A prepared task that
waits to be started is settled too, and of open slots those are ``waiting`` in which one task is to take over from another: when
their time has come is decided slot by slot (``service.reconcile_slot``). A task of an
older revision that differs only in where tasks may be counts as present where it stands on a node that will do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from swarm_agent.control.memory import Memory
from swarm_agent.control.orchestrator.task_reaper import history_limit
from swarm_agent.control.revisions import same_but_placement
from swarm_agent.control.tasks import invalid_node
from swarm_agent.control.transaction import Transaction
from swarm_agent.objects import defaults
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Node, Service, Task

Slots = dict[int | str, list[Task]]

AGAIN = 8  # what looking at one slot again costs, about
KEPT = 200  # slots; of a smaller service all are looked at each time
PORTION = 1000  # rows, or slots, looked at before the pass is asked whether it may go on
_OPEN, _OLDER, _PRESENT = 0, 1, 2
_RUNNING = TaskState.RUNNING
_SHUTDOWN = TaskState.SHUTDOWN


class SlotIndex:
    """The slots of one service in this pass."""

    __slots__ = (
        "_going", "_left", "_limit", "_places", "_rows", "changed", "idle", "moved", "older", "open", "present", "settled", "stamp", "steps", "steps_for", "waiting",
    )  # fmt: skip

    def __init__(self, p: Transaction, service: Service, *, at_once: bool = True) -> None:
        """``at_once``: all slots are looked at now. Without it :meth:`go_on` looks at them; nothing may be asked before that is
        done."""
        self.present: dict[int | str, Task] = {}
        self.older: dict[int | str, Task] = {}
        self.idle: set[int | str] = set()  # those of the older ones whose task does not run
        self.open: Slots = {}
        # open ones in which a task is to take over from another, but not yet
        self.waiting: set[int | str] = set()
        self.changed: set[int | str] = set()  # written to since they were looked at
        self.steps: dict[int | str, Any] = {}  # what an update found out about open ones
        self.steps_for: object = None  # under which rules
        self.settled: Any = None  # what it found out about the others, and where they have moved since
        self.moved: set[int | str] = set()
        self.stamp = stamp_of(p, service)
        _, self._going, self._limit = self.stamp
        self._places = _Places(p.memory, service.revision_id)
        rows = list(p.view.tasks.by("service", service.id))
        p.charge(len(rows) // 4)
        self._rows = len(rows)
        self._left: Iterator[int] | None = self._look(rows)
        if at_once:
            for cost in self._left:
                p.charge(cost)
            self._left = None

    def renew(self, p: Transaction, service: Service) -> bool:
        """Look again where something was written to since the last time, as far as this pass may; whether that is all."""
        done = 0
        while self.changed and (done < PORTION or p.cost < p.most_cost):
            place = self.changed.pop()
            tasks = p.at(service.id, place)
            p.charge(AGAIN)
            done += 1
            self._forget(place)
            if len(tasks) == 1:
                self._single(place, tasks[0])
            elif tasks:
                self._several(place, tasks)
        return not self.changed

    @property
    def unfinished(self) -> bool:
        return self._left is not None

    def outdated(self, part: int) -> bool:
        """Whether more than such a part of the slots was written to."""
        slots = self._rows if self.unfinished else len(self.present) + len(self.older) + len(self.open)
        return len(self.changed) * part > slots + KEPT

    def go_on(self, p: Transaction) -> bool:
        """Look at more slots, as many as this pass may; whether all have been looked at."""
        while self._left is not None and p.cost < p.most_cost:
            cost = next(self._left, 0)
            if not cost:
                self._left = None
            p.charge(cost)
        return self._left is None

    def _look(self, rows: list[Task]) -> Iterator[int]:
        """Look at all slots, some at a time; what each time cost. What is written meanwhile is looked at again."""
        single: dict[int | str, Task] = {}
        several: Slots = {}
        for start in range(0, len(rows), PORTION):
            for task in rows[start : start + PORTION]:
                place = task.preset or task.slot
                first = single.setdefault(place, task)
                if first is not task:
                    several.setdefault(place, [first]).append(task)
            yield 1 + min(PORTION, len(rows) - start) // 2
        places, present = self._places, self.present
        alone = iter([(slot, task) for slot, task in single.items() if slot not in several])
        while some := list(itertools.islice(alone, PORTION)):
            for slot, task in some:  # as _single, without the calls
                if (
                    task.desired_state <= _RUNNING >= task.status.state
                    and places[task.revision_id][task.node_id] == _PRESENT
                ):
                    present[slot] = task
                else:
                    self._single(slot, task)
            yield 1 + len(some) // 2
        crowded = iter(several.items())
        while more := list(itertools.islice(crowded, PORTION)):
            for slot, tasks in more:
                self._several(slot, tasks)
            yield 1 + 2 * len(more)

    def _single(self, slot: int | str, task: Task) -> None:
        standing = self._places[task.revision_id][task.node_id] if _undisturbed(task) else _OPEN
        if standing == _PRESENT:
            self.present[slot] = task
        elif standing == _OLDER:
            self._is_older(slot, task)
        else:
            self.open[slot] = [task]

    def _several(self, slot: int | str, tasks: list[Task]) -> None:
        places = self._places
        live = _settled(tasks, self._limit, places.current if self._going else "")
        standing = places[live.revision_id][live.node_id] if live is not None else _OPEN
        if live is not None and standing == _PRESENT:
            self.present[slot] = live
        elif (
            live is not None
            and standing == _OLDER
            and not any(t.revision_id == places.current for t in tasks)
        ):
            self._is_older(slot, live)
        else:
            self.open[slot] = tasks
            if all(_undisturbed(t) and places[t.revision_id][t.node_id] for t in tasks):
                self.waiting.add(slot)

    def _is_older(self, slot: int | str, task: Task) -> None:
        self.older[slot] = task
        if task.status.state != _RUNNING:
            self.idle.add(slot)

    def is_current(self, task: Task) -> bool:
        """Whether a task is as the service declares it now (``slot.is_current``)."""
        places = self._places
        return task.revision_id == places.current or places[task.revision_id].same_and_fits(task.node_id)

    def look_again(self, p: Transaction, service: Service, slots: Iterable[int | str]) -> None:
        """``p`` has written to these slots: they are open now, as its view shows them."""
        for slot in slots:
            self._forget(slot)
            tasks = p.at(service.id, slot)
            if tasks:
                self.open[slot] = tasks
                self.changed.add(slot)  # it may be settled

    def add(self, slot: int | str, task: Task) -> None:
        """This pass has made the task of an empty slot."""
        self._forget(slot)
        self.present[slot] = task

    def _forget(self, slot: int | str) -> None:
        if self.settled is not None:
            self.moved.add(slot)
        self.waiting.discard(slot)
        self.idle.discard(slot)
        self.present.pop(slot, None)
        self.older.pop(slot, None)
        self.open.pop(slot, None)
        self.steps.pop(slot, None)


def survey(p: Transaction, service: Service) -> SlotIndex | None:
    """The slots of a service as they are in this pass; that of a large one is kept from pass to pass. ``None``: there are so many
    that the look goes on in the next pass."""
    kept = p.memory.slots
    known = kept.pop(service.id, None)
    if not isinstance(known, SlotIndex) or known.stamp != stamp_of(p, service):
        known = None
    if known is not None and (known.unfinished or not known.outdated(4)):
        # what is written from here on is in it, or taken back at the pass's end, which the usage tells it
        kept[service.id] = known
        if known.unfinished and (not known.go_on(p) or p.spent):
            return None
        return known if known.renew(p, service) else None
    large = p.view.tasks.base.count("service", service.id) >= KEPT
    found = SlotIndex(p, service, at_once=not large)
    if known is not None:
        found.steps = {place: step for place, step in known.steps.items() if place not in known.changed}
        found.steps_for = known.steps_for
        found.settled = known.settled
        found.moved = known.moved | known.changed
    if large:
        kept[service.id] = found
    return found if found.go_on(p) else None


def stamp_of(p: Transaction, service: Service) -> tuple[str, bool, int]:
    """What of a service decides how its slots stand, besides nodes: when those change, all that is kept of slots is forgotten."""
    status = service.update_status
    going = status is not None and status.state in ("updating", "rollback_started")
    return (service.revision_id, going, history_limit(p, service))


def _settled(tasks: list[Task], limit: int, watched: str) -> Task | None:
    """The one live task of a slot whose others are history to be kept; ``watched``: a revision whose ended tasks count."""
    if 0 <= limit < len(tasks):
        return None
    live = None
    for task in tasks:
        if task.desired_state > _RUNNING:
            if task.desired_state != _SHUTDOWN or task.revision_id == watched:
                return None
        elif live is not None or task.status.state > _RUNNING:
            return None
        else:
            live = task
    return live


def _undisturbed(task: Task) -> bool:
    return task.desired_state <= _RUNNING and task.status.state <= _RUNNING


class NodeFit(dict[str, int]):
    """By node id, how a task of one revision stands there; found out when asked for. Services share it (``Memory.node_fits``)."""

    def __init__(
        self,
        nodes: Mapping[str, Node],
        own: tuple[str, ...],
        current: tuple[str, ...] | None,
        unplaced: int,
    ) -> None:
        """``own``: the constraints of the revision; ``current``: the present ones, if tasks of it are else the same."""
        self._nodes = nodes
        self._own = own
        self._current = current
        self[""] = unplaced

    def __missing__(self, node_id: str) -> int:
        node = self._nodes.get(node_id)
        active = node is not None and node.spec.availability == "active"
        if invalid_node(node) or (
            active and self._own and node is not None and not node_matches(self._own, node)
        ):
            standing = _OPEN
        else:
            standing = _PRESENT if self.same_and_fits(node_id) else _OLDER
        self[node_id] = standing
        return standing

    def same_and_fits(self, node_id: str) -> bool:
        if self._current is None or not node_id:
            return False
        node = self._nodes.get(node_id)
        return self._own == self._current or (node is not None and node_matches(self._current, node))


class _Places(dict[str, NodeFit]):
    """The same by revision id; revisions of the same constraints share their answers."""

    def __init__(self, memory: Memory, current: str) -> None:
        self._memory = memory
        self.current = current

    def __missing__(self, revision_id: str) -> NodeFit:
        memory, usage = self._memory, self._memory.usage
        own, present = usage.known_revision(revision_id), usage.known_revision(self.current)
        same = revision_id == self.current or (
            own is not None and present is not None and same_but_placement(own, present)
        )
        mine = () if own is None else tuple(defaults.constraints(own.template))
        now = () if present is None else tuple(defaults.constraints(present.template))
        unplaced = _PRESENT if revision_id == self.current else _OLDER
        key = (mine, now if same else None, unplaced)
        known = memory.node_fits.get(key)
        if not isinstance(known, NodeFit):
            known = memory.node_fits[key] = NodeFit(usage.rows, *key)
        self[revision_id] = known
        return known
