"""The nodes that can meet the same requirements, best first: an order that services of the same requirements share.

All orders are heaps that are repaired late. The usage's changelog names the nodes that changed; each gets a fresh
entry, and an entry whose rank is no longer the node's is passed over when it comes to the top.

Refuses to know services: what one of them asks for besides is a group's (``ranking``).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any, Protocol

from swarm_agent.control.scheduler.feasibility import Requirements, refusal, static_refusal
from swarm_agent.control.scheduler.spread import Path, path_of
from swarm_agent.control.scheduler.usage import ClusterUsage
from swarm_agent.objects.records import Node

Rank = tuple[Any, ...]  # numbers, then the node's id
COPIED = 256  # entries copied are as dear as one look, about
MANY = 16  # entries copied are as dear as repairing the order for one node that changed, about
ANY = Requirements()


class Meter(Protocol):
    """Whose budget an order is kept on (``RankingCache``)."""

    usage: ClusterUsage
    cost: int  # nodes compared with requirements, and heaps copied, since the beginning


class FeasibleNodes:
    """The nodes that meet the same requirements, best first for a service that is on none of them."""

    def __init__(
        self, meter: Meter, requirements: Requirements, strategy: str, like: FeasibleNodes | None
    ) -> None:
        """``like``: the pool of all nodes with the same strategy, whose order is the same."""
        self.meter = meter
        self.usage = meter.usage
        self.requirements = requirements
        self.packs = strategy == "binpack"
        self._undemanding = requirements == ANY
        # nothing is asked before the node's row, or nothing else
        self._lasting = not (requirements.cpu or requirements.memory or requirements.generic)
        self._unchanging = self._lasting and not (requirements.ports or requirements.addressed)
        self.refused: dict[str, str] = {}  # node id -> code, for nodes that came to the top
        self.counts: Counter[str] = Counter()  # of those codes
        self._good: set[str] = set()  # nodes that came to the top and may stay there
        self._static: dict[str, tuple[Node, str]] = {}
        self._entries: dict[str, Rank] = {}  # nodes that changed -> an entry that stands in the heap for sure
        self._like = like
        self._parts: dict[tuple[str, ...], Partition] = {}
        self._fill()

    def _fill(self) -> None:
        usage = self.usage
        self.refused.clear()
        self.counts.clear()
        self._good.clear()
        if self._like is not None:
            self._copy(self._like)
        else:
            self._rank_all()
            self.meter.cost += len(usage.rows)
        self.seen = self._judged = usage.written

    def _rank_all(self) -> None:
        usage, refused = self.usage, self.refused
        self._entries.clear()
        if self.packs:
            ranks = (self.rank(id_) for id_ in usage.rows if id_ not in refused)
            self.heap: list[Rank] = [r for r in ranks if r is not None]
        else:  # as rank(), without the calls
            nodes = usage.nodes
            self.heap = [
                (nodes[id_].active if id_ in nodes else 0, id_)
                for id_ in usage.rows
                if id_ in usage.up and id_ not in refused
            ]
        heapq.heapify(self.heap)

    def _copy(self, like: FeasibleNodes) -> None:
        """Take over the order of all nodes, without those that are refused here."""
        like.best()  # passes over what is out of date at its top
        refused = self.refused
        self._entries.clear()
        if refused:
            self.heap = [rank for rank in like.heap if rank[-1] not in refused]
            heapq.heapify(self.heap)
        else:
            self.heap = like.heap.copy()
        self.meter.cost += 1 + len(like.heap) // COPIED

    def rank(self, node_id: str) -> Rank | None:
        """Where a node stands; ``None`` when it takes no tasks."""
        usage = self.usage
        if node_id not in usage.up:
            return None
        use = usage.nodes.get(node_id)
        if not self.packs:
            return (0 if use is None else use.active, node_id)
        if use is None:
            return (0, 0, node_id)
        total = usage.rows[node_id].description
        share = 0
        if total.nano_cpus:
            share += use.cpu * 1_000_000 // total.nano_cpus
        if total.memory_bytes:
            share += use.memory * 1_000_000 // total.memory_bytes
        return (-share, -use.active, node_id)

    def refresh(self) -> None:
        """Take in what changed since the last time."""
        changed = changes(self.usage, self.seen)
        if not changed:
            if changed is None:
                self._fill()
            return
        self.judge_again()
        self.seen = self._judged
        if self._like is not None and len(changed) * MANY > len(self.usage.up):
            self._copy(self._like)
            return
        for node_id in changed:
            rank = self.rank(node_id)
            if rank is not None and node_id not in self.refused and self._entries.get(node_id) != rank:
                self._entries[node_id] = rank
                heapq.heappush(self.heap, rank)
        if len(self.heap) > 2 * len(self.usage.up) + 64:
            self._rank_all()

    def judge_again(self) -> None:
        """Forget the verdicts on nodes that changed since the last time; they are given anew when someone asks."""
        if self._undemanding:
            self._judged = self.usage.written
            return
        changed = changes(self.usage, self._judged)
        if changed is None:
            self._fill()
            return
        self._judged = self.usage.written
        for node_id in changed:
            if self._lasting and self._is_judged_for_good(node_id):
                continue
            self._good.discard(node_id)
            code = self.refused.pop(node_id, None)
            if code is not None:
                self.counts[code] -= 1

    def _is_judged_for_good(self, node_id: str) -> bool:
        """Whether the verdict on a node comes from its row alone, which is as it was."""
        static = self._static.get(node_id)
        if static is None or static[0] is not self.usage.rows.get(node_id):
            return False
        return self._unchanging or static[1] != ""

    def verdict(self, node_id: str) -> str:
        """The code of the filter that refuses a ready node, "" when it may have such a task."""
        if self._undemanding or node_id in self._good:
            return ""
        code = self.refused.get(node_id)
        if code is not None:
            return code
        self.meter.cost += 1
        usage, requirements = self.usage, self.requirements
        node = usage.rows[node_id]
        static = self._static.get(node_id)
        if static is None or static[0] is not node:
            static = self._static[node_id] = (node, static_refusal(requirements, node))
        given = len(usage.node_addresses[node_id]) if requirements.addressed else 0
        code = refusal(requirements, node, usage.nodes[node_id], given, static[1])
        if code:
            self.refused[node_id] = code
            self.counts[code] += 1
        else:
            self._good.add(node_id)
        return code

    def best(self) -> Rank | None:
        """The rank of the first node that will do; when there is none, ``counts`` tells what every ready node lacks."""
        self.refresh()
        heap = self.heap
        while heap:
            top = heap[0]
            if top == self.rank(top[-1]) and not self.verdict(top[-1]):
                return top
            self.pop()
        return None

    def best_but(self, special: Collection[str]) -> Rank | None:
        """As :meth:`best`, among the nodes that are not special."""
        top = self.best()
        if top is None or top[-1] not in special:
            return top
        if self.usage.up.issubset(special):
            return None
        others = [rank for rank in self.heap if rank[-1] not in special]
        heapq.heapify(others)
        while others:
            top = heapq.heappop(others)
            if top == self.rank(top[-1]) and not self.verdict(top[-1]):
                return top
        return None

    def pop(self) -> Rank:
        top = heapq.heappop(self.heap)
        if self._entries.get(top[-1]) == top:
            del self._entries[top[-1]]
        return top

    def parted(self, descriptors: tuple[str, ...]) -> Partition:
        """The pool by branches of spread preferences, up to date."""
        part = self._parts.get(descriptors)
        if part is None:
            part = self._parts[descriptors] = Partition(self, descriptors)
        part.refresh()
        return part


class Partition:
    """A pool's nodes by the branch they stand in, best first in each."""

    def __init__(self, pool: FeasibleNodes, descriptors: tuple[str, ...]) -> None:
        self._pool = pool
        self._descriptors = descriptors
        self._paths: dict[str, tuple[Node, Path]] = {}
        self._heaps: dict[Path, list[Rank]] = {}
        self._members: Counter[Path] = Counter()  # how many entries were left when a heap was last compacted
        self.seen = -1

    def path(self, node_id: str) -> Path:
        node = self._pool.usage.rows[node_id]
        known = self._paths.get(node_id)
        if known is None or known[0] is not node:
            known = self._paths[node_id] = (node, path_of(node, self._descriptors))
        return known[1]

    def refresh(self) -> None:
        usage = self._pool.usage
        changed = changes(usage, self.seen)
        self.seen = usage.written
        if changed is None:
            self._heaps.clear()
            changed = usage.rows
            self._pool.meter.cost += len(usage.rows)
        for node_id in changed:
            rank = self._pool.rank(node_id)
            if rank is not None:
                path = self.path(node_id)
                heap = self._heaps.setdefault(path, [])
                heapq.heappush(heap, rank)
                if len(heap) > 64 and len(heap) > 2 * self._members[path]:
                    heap[:] = compacted(heap, self._pool.rank)
                    self._members[path] = len(heap)

    def copies(self) -> Iterable[tuple[Path, list[Rank]]]:
        """The order in each branch."""
        pool = self._pool
        for path, heap in self._heaps.items():
            while heap and (heap[0] != pool.rank(heap[0][-1]) or pool.verdict(heap[0][-1])):
                heapq.heappop(heap)
            yield path, heap.copy()


def changes(usage: ClusterUsage, seen: int) -> Collection[str] | None:
    """Ids of the nodes that changed since the changelog was read to ``seen``, each once; ``None``: it does not reach back so far."""
    new = usage.written - seen
    if not new:
        return ()
    if seen < 0 or new > len(usage.changelog):
        return None
    return usage.changelog[-1:] if new == 1 else dict.fromkeys(usage.changelog[-new:])


def compacted(heap: list[Rank], rank: Any) -> list[Rank]:
    """Without the entries that would be passed over."""
    kept = [top for top in set(heap) if top == rank(_node(top))]
    heapq.heapify(kept)
    return kept


def _node(rank: Rank) -> str:
    last = rank[-1]
    return str(last[-1] if isinstance(last, tuple) else last)
