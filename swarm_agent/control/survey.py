"""One look at all slots of a service: those with nothing to decide about are told apart from the others in one plain loop.

A large service has thousands of slots that are as they should be, and each of the questions a reconciliation asks (who must be
replaced, how many there are, how far the update is, what is to be forgotten) would otherwise go through all of them again. A
slot is *settled* when it has one live task, that runs or is on its way where it may stay, and no more history than is kept; of a
present revision (``present``) or of an older one (``older``). All others are ``open`` and looked at one by one. A prepared task that
waits to be started is settled too: when its time has come is decided slot by slot (``orchestrate.reconcile_slot``).
"""

from __future__ import annotations

from collections.abc import Iterable

from swarm_agent.control.passes import Pass
from swarm_agent.control.reap import history_limit
from swarm_agent.control.tasks import invalid_node
from swarm_agent.objects import defaults
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Service, Task

Slots = dict[int, list[Task]]

_RUNNING = TaskState.RUNNING
_SHUTDOWN = TaskState.SHUTDOWN


class Survey:
    """The slots of one service in this pass."""

    __slots__ = ("_p", "_service_id", "older", "open", "present")

    def __init__(self, p: Pass, service: Service) -> None:
        self._p = p
        self._service_id = service.id
        self.present: dict[int, Task] = {}
        self.older: dict[int, Task] = {}
        self.open: Slots = {}
        self._look(service)

    def _look(self, service: Service) -> None:
        p = self._p
        single: dict[int, Task] = {}
        several: Slots = {}
        rows = list(p.view.tasks.by("service", service.id))
        p.looked(len(rows))
        for task in rows:
            first = single.setdefault(task.slot, task)
            if first is not task:
                several.setdefault(task.slot, [first]).append(task)
        places = _Places(p)
        current = service.revision_id
        present, older, open_ = self.present, self.older, self.open
        for slot, task in single.items():
            if slot in several:
                continue
            if (
                task.desired_state <= _RUNNING
                and task.status.state <= _RUNNING
                and places[task.revision_id][task.node_id]
            ):
                (present if task.revision_id == current else older)[slot] = task
            else:
                open_[slot] = [task]
        if several:
            updating = service.update_status is not None and service.update_status.state == "updating"
            limit = history_limit(p, service)
            for slot, tasks in several.items():
                live = _settled(tasks, limit, current if updating else "")
                if live is not None and places[live.revision_id][live.node_id]:
                    (present if live.revision_id == current else older)[slot] = live
                else:
                    open_[slot] = tasks

    def look_again(self, slots: Iterable[int]) -> None:
        """This pass has written to these slots: they are open now, as the view shows them."""
        for slot in slots:
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


class _MayStay(dict[str, bool]):
    """By node id, whether a task of one revision may stay there; found out when asked for."""

    def __init__(self, p: Pass, constraints: tuple[str, ...]) -> None:
        self._p = p
        self._constraints = constraints
        self[""] = True  # not placed yet

    def __missing__(self, node_id: str) -> bool:
        node = self._p.view.nodes.get(node_id)
        fits = not invalid_node(node) and not (
            self._constraints
            and node is not None
            and node.spec.availability == "active"
            and not node_matches(self._constraints, node)
        )
        self[node_id] = fits
        return fits


class _Places(dict[str, _MayStay]):
    """The same by revision id; revisions of the same constraints share their answers."""

    def __init__(self, p: Pass) -> None:
        self._p = p
        self._known: dict[tuple[str, ...], _MayStay] = {}

    def __missing__(self, revision_id: str) -> _MayStay:
        revision = self._p.view.revisions.get(revision_id)
        constraints = () if revision is None else tuple(defaults.constraints(revision.template))
        self[revision_id] = known = self._known.setdefault(constraints, _MayStay(self._p, constraints))
        return known
