"""The order of nodes for one revision of a service.

Most nodes differ for a service in nothing but their rank among the feasible ones (``feasible_nodes``): a ranking copies that order, which is cheap, and
ranks by itself only nodes that are special to it: those with tasks of the service, with failures, with volumes or neighbours it
cares for. Its heaps are repaired late, as a pool's.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from swarm_agent.control.scheduler.feasibility import Preferences, unmet, wish_refusal
from swarm_agent.control.scheduler.feasible_nodes import (
    COPIED,
    FeasibleNodes,
    Partition,
    Rank,
    changes,
    compacted,
)
from swarm_agent.control.scheduler.spread import Path, Tree

NEVER = 1 << 62
MANY = 32  # nodes; so many may always be looked at one by one after they changed
DEARER = 3  # an order costs so much more for a node that changed than for a special one where it is made anew, about


def is_simple(preferences: Preferences) -> bool:
    """Whether nodes are special to it only for tasks of the service and failures."""
    return not (
        preferences.with_hard
        or preferences.apart_hard
        or preferences.with_soft
        or preferences.apart_soft
        or preferences.held
        or preferences.preferred
        or preferences.avoid
    )


class _Leaf:
    """The nodes of one branch: those that are special to the service, and the others."""

    __slots__ = ("plain", "plain_sure", "special", "special_sure")

    def __init__(self) -> None:
        self.plain_sure = self.special_sure = False  # whether the first of the heap is known to be right
        self.plain: list[Rank] = []
        self.special: list[Rank] = []


class Ranking:
    """The order of nodes for the tasks of one revision of a service."""

    def __init__(self, preferences: Preferences, pool: FeasibleNodes, now: int) -> None:
        self.preferences = preferences
        self.pool = pool
        self.usage = pool.usage
        self.now = now
        self._plain = len(preferences.with_soft) + len(
            preferences.preferred
        )  # what a node that is not special leaves unmet
        self._restricted = bool(preferences.with_hard or preferences.held)  # then only special nodes will do
        self._simple = is_simple(preferences)
        self._part = pool.parted(preferences.spread) if preferences.spread else None
        self._fill()

    def _fill(self) -> None:
        preferences, usage = self.preferences, self.usage
        self.seen = usage.written
        self.expires = usage.forgiven_at(preferences.revision_id, self.now) if usage.failed else NEVER
        self.tree = Tree(len(preferences.spread))
        self._leaves: dict[Path, _Leaf] = {}
        self._entries: dict[str, tuple[Path, Rank]] = {}  # as a pool's
        if self._part is not None:
            self._part.refresh()
            for branch, heap in self._part.copies():
                self._leaf(branch).plain = heap
        else:
            self.pool.best()  # what is refused at its top need not be copied
            self._leaf(()).plain = [] if self._restricted else self.pool.heap.copy()
        self.pool.meter.cost += 1 + len(self.pool.heap) // COPIED
        specials = self._specials()
        self.pool.meter.cost += len(specials)
        if self._part is not None:
            self._fill_branches(self._part, specials)
            return
        ranks = self._ranks(specials)
        heapq.heapify(ranks)
        self._leaf(()).special = ranks

    def _fill_branches(self, part: Partition, specials: Iterable[str]) -> None:
        for node_id in specials:
            path = part.path(node_id) if node_id in self.usage.rows else ()
            self._count(node_id, path)
            rank = self.rank(node_id)
            if rank is not None:
                self._leaf(path).special.append(rank)
        for leaf in self._leaves.values():
            heapq.heapify(leaf.special)

    def _ranks(self, specials: Iterable[str]) -> list[Rank]:
        if self.pool.packs or not self._simple or self.usage.failed:
            return [rank for rank in map(self.rank, specials) if rank is not None]
        nodes, up, service_id = (
            self.usage.nodes,
            self.usage.up,
            self.preferences.service_id,
        )  # as rank(), without the calls
        uses = [(id_, nodes[id_]) for id_ in specials if id_ in up]
        return [(0, 0, use.by_service.get(service_id, 0), (use.active, id_)) for id_, use in uses]

    def _specials(self) -> dict[str, None]:
        preferences, usage = self.preferences, self.usage
        found = dict.fromkeys(usage.hosting.get(preferences.service_id, ()))
        found.update(usage.failed.get(preferences.revision_id, {}))
        for other in (*preferences.with_hard, *preferences.with_soft, *preferences.apart_soft):
            found.update(usage.hosting.get(other, {}))
        for volume in (*preferences.held, *preferences.preferred):
            found.update(usage.volumes.get(volume, {}))
        return found

    def _special(self, node_id: str) -> bool:
        """Whether the node's rank for this service is more than its rank in the pool."""
        preferences, hosting = self.preferences, self.usage.hosting
        if node_id in hosting.get(preferences.service_id, ()):
            return True
        if self.usage.failed and node_id in self.usage.failed.get(preferences.revision_id, ()):
            return True
        if self._simple:
            return False
        if node_id == preferences.avoid:
            return True
        for others in (
            preferences.with_hard,
            preferences.apart_hard,
            preferences.with_soft,
            preferences.apart_soft,
        ):
            if any(node_id in hosting.get(other, ()) for other in others):
                return True
        return any(
            node_id in self.usage.volumes.get(name, ())
            for names in (preferences.held, preferences.preferred)
            for name in names
        )

    def rank(self, node_id: str) -> Rank | None:
        """(recent failures, soft wishes unmet, tasks of the service, rank in the pool); ``None``: takes no tasks."""
        rank = self.pool.rank(node_id)
        if rank is None:
            return None
        usage, preferences = self.usage, self.preferences
        failed = usage.failures(node_id, preferences.revision_id, self.now) if usage.failed else 0
        mine = 0 if self.pool.packs else usage.nodes[node_id].by_service.get(preferences.service_id, 0)
        return (failed, 0 if self._simple else unmet(preferences, node_id, usage), mine, rank)

    def refusal(self, node_id: str) -> str:
        """The code of the first filter that refuses a ready node."""
        code = self.pool.verdict(node_id)
        if code or (self._simple and not self.preferences.max_replicas):
            return code
        return wish_refusal(self.preferences, node_id, self.usage.nodes[node_id], self.usage)

    def refresh(self) -> None:
        """Take in what changed since the last time."""
        self.pool.judge_again()
        changed = changes(self.usage, self.seen)
        if changed is None:
            self._fill()
            return
        if not changed:
            return
        if len(changed) > MANY and len(changed) * DEARER > len(self._specials()):
            self._fill()
            return
        self.seen = self.usage.written
        self.pool.meter.cost += len(changed)
        for leaf in self._leaves.values():
            leaf.plain_sure = leaf.special_sure = False
        failed = self.usage.failed.get(self.preferences.revision_id)
        for node_id in changed:
            if failed is not None and node_id in failed:
                self.expires = self.usage.forgiven_at(self.preferences.revision_id, self.now)
            self._enter(node_id)

    def _enter(self, node_id: str) -> None:
        """Give a node that changed a fresh entry."""
        path: Path = ()
        known = node_id in self.usage.rows
        if self._part is not None:
            path = self._part.path(node_id) if known else ()
            self._count(node_id, path)
        if not known or node_id in self.pool.refused:
            return
        special = self._special(node_id)
        rank = self.rank(node_id) if special else None if self._restricted else self.pool.rank(node_id)
        if rank is None or self._entries.get(node_id) == (path, rank):
            return
        self._entries[node_id] = (path, rank)
        leaf = self._leaf(path)
        heapq.heappush(leaf.special if special else leaf.plain, rank)
        if len(leaf.plain) + len(leaf.special) > 3 * len(self.usage.up) + 64:
            self._entries.clear()
            leaf.plain = compacted(leaf.plain, self.pool.rank)
            leaf.special = compacted(leaf.special, self.rank)

    def _count(self, node_id: str, path: Path) -> None:
        use = self.usage.nodes.get(node_id)
        mine = 0 if use is None else use.by_service.get(self.preferences.service_id, 0)
        self.tree.count(node_id, path, mine)

    def _leaf(self, path: Path) -> _Leaf:
        leaf = self._leaves.get(path)
        if leaf is None:
            leaf = self._leaves[path] = _Leaf()
        if path:
            self.tree.open(path)
        return leaf

    def best(self, now: int) -> str:
        """The id of the node the next task should go to, "" when there is none."""
        self.now = now
        if self.seen != self.usage.written:
            self.refresh()
        return self._best_of(()) if self._part is None else self.tree.best(self._best_of)

    def placed(self, node_id: str) -> None:
        """Take in that a task was just placed where :meth:`best` said: no other node has changed, unless the changelog says so."""
        usage = self.usage
        rank = self.rank(node_id)
        if usage.written != self.seen + 1 or usage.changelog[-1] != node_id or rank is None:
            return
        self.seen += 1
        self.pool.judge_again()
        path: Path = ()
        if self._part is not None:
            path = self._part.path(node_id)
            self._count(node_id, path)
        leaf = self._leaves[path]
        self._entries[node_id] = (path, rank)
        if (
            leaf.plain and leaf.plain[0][-1] == node_id
        ):  # it was the first of these, and is special from now on
            heapq.heappop(leaf.plain)
            heapq.heappush(leaf.special, rank)
            leaf.plain_sure = False
        else:
            heapq.heapreplace(leaf.special, rank)
        leaf.special_sure = False

    def _best_of(self, path: Path) -> str:
        leaf = self._leaves.get(path)
        if leaf is None:
            return ""
        if not leaf.plain_sure:
            self._tidy(leaf.plain, path, special=False)
            leaf.plain_sure = True
        # every special node has its entry: one that is better than the first of them is better than all, be that out of date
        if self._plain_is_first(leaf):
            return str(leaf.plain[0][-1])
        if not leaf.special_sure:
            self._tidy(leaf.special, path, special=True)
            leaf.special_sure = True
            if self._plain_is_first(leaf):
                return str(leaf.plain[0][-1])
        return str(leaf.special[0][-1][-1]) if leaf.special else ""

    def _plain_is_first(self, leaf: _Leaf) -> bool:
        return bool(leaf.plain) and (not leaf.special or (0, self._plain, 0, leaf.plain[0]) < leaf.special[0])

    def _tidy(self, heap: list[Rank], path: Path, *, special: bool) -> None:
        """Take away what is at the top and out of date, or refused."""
        rank_of = self.rank if special else self.pool.rank
        while heap:
            top = heap[0]
            node_id = top[-1][-1] if special else top[-1]
            if (
                top == rank_of(node_id)
                and self._special(node_id) == special
                and (self._part is None or self._part.path(node_id) == path)
                and not self.refusal(node_id)
            ):
                return
            heapq.heappop(heap)
            if self._entries.get(node_id) == (path, top):
                del self._entries[node_id]
