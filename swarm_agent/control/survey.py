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

from collections.abc import Iterable

from swarm_agent.control.passes import Pass
from swarm_agent.control.reap import history_limit
from swarm_agent.control.revisions import same_but_placement
from swarm_agent.control.tasks import invalid_node
from swarm_agent.objects import defaults
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Service, Task

Slots = dict[int | str, list[Task]]

_OPEN, _OLDER, _PRESENT = 0, 1, 2
_RUNNING = TaskState.RUNNING
_SHUTDOWN = TaskState.SHUTDOWN


class Survey:
    """The slots of one service in this pass."""

    __slots__ = ("_p", "_places", "_service_id", "older", "open", "present", "waiting")

    def __init__(self, p: Pass, service: Service) -> None:
        self._p = p
        self._service_id = service.id
        self.present: dict[int | str, Task] = {}
        self.older: dict[int | str, Task] = {}
        self.open: Slots = {}
        self.waiting: set[int | str] = (
            set()
        )  # open ones in which a task is to take over from another, but not yet
        self._places = _Places(p, service.revision_id)
        self._look(service)

    def _look(self, service: Service) -> None:
        p = self._p
        single: dict[int | str, Task] = {}
        several: Slots = {}
        rows = list(p.view.tasks.by("service", service.id))
        p.looked(len(rows))
        for task in rows:
            place = task.preset or task.slot
            first = single.setdefault(place, task)
            if first is not task:
                several.setdefault(place, [first]).append(task)
        places = self._places
        present, older, open_ = self.present, self.older, self.open
        for slot, task in single.items():
            if slot in several:
                continue
            standing = places[task.revision_id][task.node_id] if _on_its_way(task) else _OPEN
            if standing == _PRESENT:
                present[slot] = task
            elif standing == _OLDER:
                older[slot] = task
            else:
                open_[slot] = [task]
        if several:
            status = service.update_status
            going = status is not None and status.state in ("updating", "rollback_started")
            limit = history_limit(p, service)
            for slot, tasks in several.items():
                live = _settled(tasks, limit, service.revision_id if going else "")
                standing = places[live.revision_id][live.node_id] if live is not None else _OPEN
                if live is not None and standing == _PRESENT:
                    present[slot] = live
                elif (
                    live is not None
                    and standing == _OLDER
                    and not any(t.revision_id == places.current for t in tasks)
                ):
                    older[slot] = live
                else:
                    open_[slot] = tasks
                    if all(_on_its_way(t) and places[t.revision_id][t.node_id] for t in tasks):
                        self.waiting.add(slot)

    def is_current(self, task: Task) -> bool:
        """Whether a task is as the service declares it now (``slots.is_current``)."""
        places = self._places
        return task.revision_id == places.current or places[task.revision_id].same_and_fits(task.node_id)

    def look_again(self, slots: Iterable[int | str]) -> None:
        """This pass has written to these slots: they are open now, as the view shows them."""
        for slot in slots:
            self.waiting.discard(slot)
            self.present.pop(slot, None)
            self.older.pop(slot, None)
            tasks = self._p.at(self._service_id, slot)
            if tasks:
                self.open[slot] = tasks
            else:
                self.open.pop(slot, None)


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


class _Standing(dict[str, int]):
    """By node id, how a task of one revision stands there; found out when asked for."""

    def __init__(self, p: Pass, own: tuple[str, ...], current: tuple[str, ...] | None, unplaced: int) -> None:
        """``own``: the constraints of the revision; ``current``: the present ones, if tasks of it are else the same."""
        self._p = p
        self._own = own
        self._current = current
        self[""] = unplaced

    def __missing__(self, node_id: str) -> int:
        node = self._p.view.nodes.get(node_id)
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
        node = self._p.view.nodes.get(node_id)
        return self._own == self._current or (node is not None and node_matches(self._current, node))


class _Places(dict[str, _Standing]):
    """The same by revision id; revisions of the same constraints share their answers."""

    def __init__(self, p: Pass, current: str) -> None:
        self._p = p
        self.current = current
        self._known: dict[tuple[tuple[str, ...], bool, int], _Standing] = {}

    def __missing__(self, revision_id: str) -> _Standing:
        revisions = self._p.view.revisions
        own, present = revisions.get(revision_id), revisions.get(self.current)
        same = revision_id == self.current or (
            own is not None and present is not None and same_but_placement(own, present)
        )
        mine = () if own is None else tuple(defaults.constraints(own.template))
        now = () if present is None else tuple(defaults.constraints(present.template))
        unplaced = _PRESENT if revision_id == self.current else _OLDER
        known = self._known.get((mine, same, unplaced))
        if known is None:
            known = _Standing(self._p, mine, now if same else None, unplaced)
            self._known[mine, same, unplaced] = known
        self[revision_id] = known
        return known
