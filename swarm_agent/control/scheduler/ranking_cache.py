"""What is known about which node is best, kept from one task to the next and from one pass to the next.

A :class:`~swarm_agent.control.scheduler.feasible_nodes.FeasibleNodes` holds the nodes that can meet the same requirements, the emptiest (or, to pack, the fullest) first; a
:class:`~swarm_agent.control.scheduler.ranking.Ranking` the order of one service's revision. Here it is decided which of them are kept, and when a single task does
without. What was forgotten altogether gives the same answers: ``tests/properties/test_placement.py`` compares.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from swarm_agent.control.scheduler.feasibility import Preferences, Requirements, demand_of, wish_refusal
from swarm_agent.control.scheduler.feasible_nodes import ANY, FeasibleNodes, Rank
from swarm_agent.control.scheduler.ranking import Ranking, is_simple
from swarm_agent.control.scheduler.usage import ClusterUsage
from swarm_agent.objects.records import Revision, Task
from swarm_agent.store import View

MAX_ENTRIES = 1_000_000  # of all remembered heaps, about
MAX_REMEMBERED = 1000  # pools, and groups
FEW = 8  # special nodes that may always be looked at one by one rather than kept in order
AGAIN = 4  # single tasks of a service after which its order is kept
_NO: dict[str, None] = {}


class RankingCache:
    """What the scheduler remembers. Everything in it can be forgotten at any time."""

    def __init__(self, usage: ClusterUsage) -> None:
        self.usage = usage
        self.cost = 0  # nodes compared with requirements, and heaps copied, since the beginning
        self.awaited: set[str] = set()  # ids of services beside which tasks would go that wait
        self._asked: dict[str, int] = {}  # how often for single tasks, by service
        self._demands: dict[str, Requirements] = {}
        self._pools: OrderedDict[tuple[Requirements, str], FeasibleNodes] = OrderedDict()
        self._groups: OrderedDict[Preferences, Ranking] = OrderedDict()

    def requirements(self, revision: Revision, view: View) -> Requirements:
        found = self._demands.get(revision.id)
        if found is None:
            found = self._demands[revision.id] = demand_of(revision, view)
        return found

    def pool(self, requirements: Requirements, strategy: str) -> FeasibleNodes:
        """The nodes that can meet the same requirements."""
        key = (requirements, strategy)
        pool = self._pools.get(key)
        if pool is None:
            like = None if requirements == ANY else self.pool(ANY, strategy)
            pool = self._pools[key] = FeasibleNodes(self, requirements, strategy, like)
            self._make_room(self._pools)
        self._pools.move_to_end(key)
        return pool

    def group(self, preferences: Preferences, pool: FeasibleNodes, now: int) -> Ranking:
        """The order of nodes for one revision of a service, up to date."""
        group = self._groups.get(preferences)
        if group is None or group.expires <= now or group.pool is not pool:
            self._forget_outdated()
            group = self._groups[preferences] = Ranking(preferences, pool, now)
            self._make_room(self._groups)
        self._groups.move_to_end(preferences)
        group.now = now
        group.refresh()
        return group

    def single(self, preferences: Preferences, pool: FeasibleNodes, now: int) -> str | None:
        """The best node for one task of a service that is special to few, "" when there is none; ``None``: ask a group."""
        usage = self.usage
        if not is_simple(preferences) or preferences.spread or self._is_kept(preferences):
            return None
        special = {
            **usage.hosting.get(preferences.service_id, _NO),
            **usage.failed.get(preferences.revision_id, _NO),
        }
        self.cost += 2 * len(special)
        plain = pool.best_but(special)
        best: Rank | None = None if plain is None else (0, 0, plain)
        failed = preferences.revision_id in usage.failed
        for node_id in special:
            rank_there = pool.rank(node_id)
            if rank_there is None:
                continue
            use = usage.nodes[node_id]
            rank = (
                usage.failures(node_id, preferences.revision_id, now) if failed else 0,
                0 if pool.packs else use.by_service.get(preferences.service_id, 0),
                rank_there,
            )
            if best is not None and rank > best:
                continue
            if not pool.verdict(node_id) and not wish_refusal(preferences, node_id, use, usage):
                best = rank
        return "" if best is None else str(best[-1][-1])

    def _is_kept(self, preferences: Preferences) -> bool:
        """Whether a service's order is kept, or is to be: it asks for single tasks often, and is on many nodes."""
        group = self._groups.get(preferences)
        if group is not None and not self._is_outdated(group):
            return True
        if len(self.usage.hosting.get(preferences.service_id, _NO)) <= FEW:
            return False
        asked = self._asked[preferences.service_id] = self._asked.get(preferences.service_id, 0) + 1
        if asked < AGAIN:
            return False
        if len(self._asked) > MAX_REMEMBERED:
            self._asked.clear()
        return True

    def is_awaited(self, task: Task) -> bool:
        """Whether a task on a node may be what others waited for that go beside its service."""
        if task.node_id and task.service_id in self.awaited:
            self.awaited.discard(task.service_id)
            return True
        return False

    def forget(self, revision_id: str = "") -> None:
        """Forget a revision that is gone; without one, everything."""
        if revision_id:
            self._demands.pop(revision_id, None)
            return
        self._demands.clear()
        self._pools.clear()
        self._groups.clear()

    def _is_outdated(self, group: Ranking) -> bool:
        """Whether so much has changed since a group was last asked that it is as good as made anew."""
        return self.usage.written - group.seen >= len(self.usage.rows) + 64

    def _forget_outdated(self) -> None:
        """Their entries would be in the way whenever the interpreter looks for garbage: tens of milliseconds for a hundred groups."""
        while self._groups:
            preferences, group = next(iter(self._groups.items()))
            if not self._is_outdated(group):
                return
            del self._groups[preferences]

    def _make_room(self, remembered: OrderedDict[Any, Any]) -> None:
        """The ones not used for longest go; a pool of everything is needed by all others and is used whenever one is made."""
        most = min(MAX_REMEMBERED, max(16, MAX_ENTRIES // (len(self.usage.rows) + 1)))
        while len(remembered) > most:
            remembered.popitem(last=False)
