"""One look at all slots of a service: those with nothing to decide about are told apart from the others in one plain loop.

A large service has thousands of slots that are as they should be, and each of the questions a reconciliation asks (who must be
replaced, how many there are, how far the update is, what is to be forgotten) would otherwise go through all of them again. A
slot is *settled* when it has one live task, that runs or is on its way where it may stay, and no more history than is kept; of a
present revision (``present``) or of an older one (``older``). All others are ``open`` and looked at one by one. A prepared task that
waits to be started is settled too, and of open slots those are ``waiting`` in which one task is to take over from another: when
their time has come is decided slot by slot (``orchestrate.reconcile_slot``). A task of an
older revision that differs only in where tasks may be counts as present where it stands on a node that will do.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from swarm_agent.control.passes import Pass
from swarm_agent.control.reap import history_limit
from swarm_agent.control.revisions import same_but_placement
from swarm_agent.control.tasks import invalid_node
from swarm_agent.objects import defaults
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Service, Task

Slots = dict[int | str, list[Task]]

AGAIN = 8  # looks that one slot costs that is looked at again, about
KEPT = 200  # slots; of a smaller service all are looked at each time
_OPEN, _OLDER, _PRESENT = 0, 1, 2
_RUNNING = TaskState.RUNNING
_SHUTDOWN = TaskState.SHUTDOWN


class Survey:
    """The slots of one service in this pass."""

    __slots__ = (
        "_going", "_limit", "_now", "_places", "_service_id", "changed", "older", "open", "present", "stamp", "steps", "steps_for", "waiting",
    )  # fmt: skip

    def __init__(self, p: Pass, service: Service) -> None:
        self._now = _Now(p)
        self._service_id = service.id
        self.present: dict[int | str, Task] = {}
        self.older: dict[int | str, Task] = {}
        self.open: Slots = {}
        # open ones in which a task is to take over from another, but not yet
        self.waiting: set[int | str] = set()
        self.changed: set[int | str] = set()  # written to since they were looked at
        self.steps: dict[int | str, Any] = {}  # what an update found out about open ones
        self.steps_for: object = None  # under which rules
        self.stamp = stamp_of(p, service)
        _, self._going, self._limit = self.stamp
        self._places = _Places(self._now, service.revision_id)
        self._look(p, service)

    def renew(self, p: Pass, service: Service) -> None:
        """Look again where something was written to since the last time."""
        self._now.take(p)
        changed, self.changed = self.changed, set()
        for place in changed:
            tasks = p.at(service.id, place)
            p.looked(AGAIN)
            self._forget(place)
            if len(tasks) == 1:
                self._single(place, tasks[0])
            elif tasks:
                self._several(place, tasks)

    def outdated(self, part: int) -> bool:
        """Whether more than such a part of the slots was written to."""
        slots = len(self.present) + len(self.older) + len(self.open)
        return len(self.changed) * part > slots + KEPT

    def _look(self, p: Pass, service: Service) -> None:
        single: dict[int | str, Task] = {}
        several: Slots = {}
        rows = list(p.view.tasks.by("service", service.id))
        p.looked(len(rows))
        for task in rows:
            place = task.preset or task.slot
            first = single.setdefault(place, task)
            if first is not task:
                several.setdefault(place, [first]).append(task)
        places, present = self._places, self.present
        for slot, task in single.items():  # as _single, without the calls
            if slot in several:
                continue
            if (
                task.desired_state <= _RUNNING >= task.status.state
                and places[task.revision_id][task.node_id] == _PRESENT
            ):
                present[slot] = task
            else:
                self._single(slot, task)
        for slot, tasks in several.items():
            self._several(slot, tasks)

    def _single(self, slot: int | str, task: Task) -> None:
        standing = self._places[task.revision_id][task.node_id] if _on_its_way(task) else _OPEN
        if standing == _PRESENT:
            self.present[slot] = task
        elif standing == _OLDER:
            self.older[slot] = task
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
            self.older[slot] = live
        else:
            self.open[slot] = tasks
            if all(_on_its_way(t) and places[t.revision_id][t.node_id] for t in tasks):
                self.waiting.add(slot)

    def is_current(self, task: Task) -> bool:
        """Whether a task is as the service declares it now (``slots.is_current``)."""
        places = self._places
        return task.revision_id == places.current or places[task.revision_id].same_and_fits(task.node_id)

    def look_again(self, slots: Iterable[int | str]) -> None:
        """This pass has written to these slots: they are open now, as the view shows them."""
        for slot in slots:
            self._forget(slot)
            tasks = self._now.p.at(self._service_id, slot)
            if tasks:
                self.open[slot] = tasks
                self.changed.add(slot)  # it may be settled

    def _forget(self, slot: int | str) -> None:
        self.waiting.discard(slot)
        self.present.pop(slot, None)
        self.older.pop(slot, None)
        self.open.pop(slot, None)
        self.steps.pop(slot, None)


def survey(p: Pass, service: Service) -> Survey:
    """The slots of a service as they are in this pass. That of a large service is kept from pass to pass."""
    known = p.ledger.surveys.pop(service.id, None)
    if known is not None and known.stamp != stamp_of(p, service):
        known = None
    if known is not None and not known.outdated(4):
        known.renew(p, service)
        p.ledger.surveys[service.id] = known
        return known
    found = Survey(p, service)
    if known is not None:
        found.steps = {place: step for place, step in known.steps.items() if place not in known.changed}
        found.steps_for = known.steps_for
    if len(found.present) + len(found.older) + len(found.open) >= KEPT:
        # what this pass wrote before is in it, and is taken back at the pass's end, which the ledger tells it
        p.ledger.surveys[service.id] = found
    return found


def stamp_of(p: Pass, service: Service) -> tuple[str, bool, int]:
    """What of a service decides how its slots stand, besides nodes: when those change, all surveys are forgotten."""
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


def _on_its_way(task: Task) -> bool:
    return task.desired_state <= _RUNNING and task.status.state <= _RUNNING


class _Now:
    """The pass a survey is used in, which it does not keep: all that was written in it would stay until the next look at the
    service, or, where the parts of a survey pointed at each other, until the garbage is collected, which then takes tens of
    milliseconds."""

    __slots__ = ("_pass",)

    def __init__(self, p: Pass) -> None:
        self.take(p)

    def take(self, p: Pass) -> None:
        self._pass = weakref.ref(p)

    @property
    def p(self) -> Pass:
        found = self._pass()
        assert found is not None, "a survey is used in a pass, and renewed in the next"
        return found


class _Standing(dict[str, int]):
    """By node id, how a task of one revision stands there; found out when asked for."""

    def __init__(
        self, now: _Now, own: tuple[str, ...], current: tuple[str, ...] | None, unplaced: int
    ) -> None:
        """``own``: the constraints of the revision; ``current``: the present ones, if tasks of it are else the same."""
        self._now = now
        self._own = own
        self._current = current
        self[""] = unplaced

    def __missing__(self, node_id: str) -> int:
        node = self._now.p.view.nodes.get(node_id)
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
        node = self._now.p.view.nodes.get(node_id)
        return self._own == self._current or (node is not None and node_matches(self._current, node))


class _Places(dict[str, _Standing]):
    """The same by revision id; revisions of the same constraints share their answers."""

    def __init__(self, now: _Now, current: str) -> None:
        self._now = now
        self.current = current
        self._known: dict[tuple[tuple[str, ...], bool, int], _Standing] = {}

    def __missing__(self, revision_id: str) -> _Standing:
        revisions = self._now.p.view.revisions
        own, present = revisions.get(revision_id), revisions.get(self.current)
        same = revision_id == self.current or (
            own is not None and present is not None and same_but_placement(own, present)
        )
        mine = () if own is None else tuple(defaults.constraints(own.template))
        wanted = () if present is None else tuple(defaults.constraints(present.template))
        unplaced = _PRESENT if revision_id == self.current else _OLDER
        known = self._known.get((mine, same, unplaced))
        if known is None:
            known = _Standing(self._now, mine, wanted if same else None, unplaced)
            self._known[mine, same, unplaced] = known
        self[revision_id] = known
        return known
