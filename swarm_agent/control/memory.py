"""What the controllers keep from one pass to the next: orders of nodes, and how slots stood when they were last looked at.

Everything in it can be forgotten at any time without changing a decision; it only makes the next one cheaper. Repaired from what ``usage``
tells of every task whose row changes, tentatively or for good.
"""

from __future__ import annotations

from typing import Protocol

from swarm_agent.control.scheduler.ranking_cache import RankingCache
from swarm_agent.control.scheduler.usage import ClusterUsage
from swarm_agent.objects.records import Task

MAX_NODE_FITS = 1000  # of services that are gone, most of them
MANY_CHANGED = 100  # slots; from so many on it is asked whether what is kept is of any use

NodeFitKey = tuple[tuple[str, ...], tuple[str, ...] | None, int]
"""Constraints of a revision, present constraints of its service if its tasks are else the same, how a task without a node stands."""


class KeptSlots(Protocol):
    """How the slots of one service stood (``orchestrator.slot_index.SlotIndex``, ``orchestrator.jobs.Run``)."""

    changed: set[int | str]  # slots to look at again

    def outdated(self, part: int) -> bool:
        """Whether so much has changed, one in ``part``, that looking at all of it is cheaper."""
        ...


class Memory:
    """One for the term of a leader, beside ``usage``."""

    def __init__(self, usage: ClusterUsage) -> None:
        self.usage = usage
        self.rankings = RankingCache(usage)
        self.slots: dict[str, KeptSlots] = {}  # by service id
        self.node_fits: dict[NodeFitKey, dict[str, int]] = {}  # by node id, as long as no node changes
        usage.on_task = self._task_changed

    def _task_changed(self, task: Task) -> None:
        kept = self.slots.get(task.service_id)
        if kept is None:
            return
        kept.changed.add(task.place)
        if len(kept.changed) > MANY_CHANGED and kept.outdated(2):  # it holds rows nobody else does
            del self.slots[task.service_id]

    def look_again(self, service_id: str, place: int | str) -> None:
        """What decides how a slot of a service stands has changed."""
        kept = self.slots.get(service_id)
        if kept is not None:
            kept.changed.add(place)

    def node_changed(self, node_id: str) -> None:
        """How tasks stand on it has to be found out again."""
        for fit in self.node_fits.values():
            fit.pop(node_id, None)

    def make_room(self) -> None:
        """Forget how tasks stand where that is kept of too many services. Not within a pass, which may be at it."""
        if len(self.node_fits) > MAX_NODE_FITS:
            self.node_fits.clear()
            self.slots.clear()  # they hold on to what only ``node_fits`` tells of nodes that change

    def forget_service(self, service_id: str) -> None:
        self.slots.pop(service_id, None)

    def forget_revision(self, revision_id: str) -> None:
        self.rankings.forget(revision_id)
