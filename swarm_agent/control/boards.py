"""Which node is best for a task, kept from one task to the next and from one pass to the next.

A :class:`Pool` holds the nodes that can meet a demand, the emptiest (or, to pack, the fullest) first. A :class:`Group`
holds the order of one service's revision. Most nodes differ for a service in nothing but their rank in the pool: a group
copies that order, which is cheap, and ranks by itself only nodes that are special to it: those with tasks of the service,
with failures, with volumes or neighbours it cares for.

All orders are heaps that are repaired late. The ledger's journal names the nodes that changed; each gets a fresh
entry, and an entry whose rank is no longer the node's is passed over when it comes to the top. What was
forgotten altogether gives the same answers: ``tests/properties/test_placement.py`` compares.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from swarm_agent.control.filters import (
    Demand,
    Wish,
    demand_of,
    refusal,
    static_refusal,
    unmet,
    wish_refusal,
)
from swarm_agent.control.spread import Tree, path_of
from swarm_agent.objects.enums import NodeState
from swarm_agent.objects.records import Node, Revision
from swarm_agent.store import View

if TYPE_CHECKING:
    from swarm_agent.control.ledger import Ledger

Rank = tuple[Any, ...]  # numbers, then the node's id
MAX_ENTRIES = 1_000_000  # of all remembered heaps, about
MAX_REMEMBERED = 1000  # pools, and groups
ANY = Demand()
_READY = NodeState.READY


class Boards:
    """What the scheduler remembers. Everything in it can be forgotten at any time."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.looks = 0  # nodes compared with a demand, and heaps copied, since the beginning
        self._demands: dict[str, Demand] = {}
        self._pools: OrderedDict[tuple[Demand, str], Pool] = OrderedDict()
        self._groups: OrderedDict[Wish, Group] = OrderedDict()

    def demand(self, revision: Revision, view: View) -> Demand:
        found = self._demands.get(revision.id)
        if found is None:
            found = self._demands[revision.id] = demand_of(revision, view)
        return found

    def pool(self, demand: Demand, strategy: str) -> Pool:
        """The nodes that can meet a demand, up to date."""
        key = (demand, strategy)
        pool = self._pools.get(key)
        if pool is None:
            like = None if demand == ANY else self.pool(ANY, strategy)
            pool = self._pools[key] = Pool(self, demand, strategy, like)
            self._make_room(self._pools)
        self._pools.move_to_end(key)
        pool.refresh()
        return pool

    def group(self, wish: Wish, pool: Pool, now: int) -> Group:
        """The order of nodes for one revision of a service, up to date."""
        group = self._groups.get(wish)
        if group is None or group.expires <= now or group.pool is not pool:
            group = self._groups[wish] = Group(wish, pool, now)
            self._make_room(self._groups)
        self._groups.move_to_end(wish)
        group.refresh()
        return group

    def forget(self, revision_id: str = "") -> None:
        """Forget a revision that is gone; without one, everything."""
        if revision_id:
            self._demands.pop(revision_id, None)
            return
        self._demands.clear()
        self._pools.clear()
        self._groups.clear()

    def _make_room(self, remembered: OrderedDict[Any, Any]) -> None:
        """The ones not used for longest go; a pool of everything is needed by all others and is used whenever one is made."""
        most = min(MAX_REMEMBERED, max(16, MAX_ENTRIES // (len(self.ledger.rows) + 1)))
        while len(remembered) > most:
            remembered.popitem(last=False)


class Pool:
    """The nodes that meet a demand, best first for a service that is on none of them."""

    def __init__(self, boards: Boards, demand: Demand, strategy: str, like: Pool | None) -> None:
        """``like``: the pool of all nodes with the same strategy, whose order is the same."""
        self.boards = boards
        self.ledger = boards.ledger
        self.demand = demand
        self.packs = strategy == "binpack"
        self.refused: dict[str, str] = {}  # node id -> code, for nodes that came to the top
        self.counts: Counter[str] = Counter()  # of those codes
        self._good: set[str] = set()  # nodes that came to the top and may stay there
        self._static: dict[str, tuple[Node, str]] = {}
        self._like = like
        self._fill()

    def _fill(self) -> None:
        ledger = self.ledger
        self.refused.clear()
        self.counts.clear()
        self._good.clear()
        if self._like is not None:
            self._like.refresh()
            self.heap: list[Rank] = self._like.heap.copy()
            self.boards.looks += 1 + len(self.heap) // 64
        else:
            ranks = (self.rank(id_) for id_ in ledger.rows)
            self.heap = [r for r in ranks if r is not None]
            heapq.heapify(self.heap)
            self.boards.looks += len(ledger.rows)
        self._seen = ledger.forgotten + len(ledger.journal)

    def rank(self, node_id: str) -> Rank | None:
        """Where a node stands; ``None`` when it takes no tasks."""
        node = self.ledger.rows.get(node_id)
        if node is None or node.status.state != _READY or node.spec.availability != "active":
            return None
        use = self.ledger.nodes.get(node_id)
        active = 0 if use is None else use.active
        if not self.packs:
            return (active, node_id)
        total = node.description
        share = 0
        if use is not None and total.nano_cpus:
            share += use.cpu * 1_000_000 // total.nano_cpus
        if use is not None and total.memory_bytes:
            share += use.memory * 1_000_000 // total.memory_bytes
        return (-share, -active, node_id)

    def refresh(self) -> None:
        """Take in what changed since the last time."""
        changed = changes(self.ledger, self._seen)
        if changed is None:
            self._fill()
            return
        self._seen = self.ledger.forgotten + len(self.ledger.journal)
        for node_id in changed:
            self._good.discard(node_id)
            code = self.refused.pop(node_id, None)
            if code is not None:
                self.counts[code] -= 1
            rank = self.rank(node_id)
            if rank is not None:
                heapq.heappush(self.heap, rank)
        if len(self.heap) > 2 * self.ledger.ready + 64:
            self.heap = compacted(self.heap, self.rank)

    def verdict(self, node_id: str) -> str:
        """The code of the filter that refuses a ready node, "" when it may have such a task."""
        if node_id in self._good:
            return ""
        code = self.refused.get(node_id)
        if code is not None:
            return code
        self.boards.looks += 1
        node = self.ledger.rows[node_id]
        static = self._static.get(node_id)
        if static is None or static[0] is not node:
            static = self._static[node_id] = (node, static_refusal(self.demand, node))
        given = len(self.ledger.node_addresses[node_id]) if self.demand.addressed else 0
        code = refusal(self.demand, node, self.ledger.nodes[node_id], given, static[1])
        if code:
            self.refused[node_id] = code
            self.counts[code] += 1
        else:
            self._good.add(node_id)
        return code

    def best(self) -> Rank | None:
        """The rank of the first node that will do; when there is none, ``counts`` tells what every ready node lacks."""
        heap = self.heap
        while heap:
            top = heap[0]
            if top == self.rank(top[-1]) and not self.verdict(top[-1]):
                return top
            heapq.heappop(heap)
        return None


class Group:
    """The order of nodes for the tasks of one revision of a service."""

    def __init__(self, wish: Wish, pool: Pool, now: int) -> None:
        self.wish = wish
        self.pool = pool
        self.ledger = pool.ledger
        self.now = now
        self._plain = len(wish.with_soft) + len(
            wish.preferred
        )  # what a node that is not special leaves unmet
        self._restricted = bool(wish.with_hard or wish.held)  # then only special nodes will do
        self.expires = 0
        self._fill()

    def _fill(self) -> None:
        wish, ledger = self.wish, self.ledger
        self._seen = ledger.forgotten + len(ledger.journal)
        self.expires = self.ledger.forgiven_at(self.wish.revision_id, self.now)
        self.tree = Tree(wish.spread)
        self._leaves: dict[tuple[str, ...], _Leaf] = {}
        if wish.spread:
            for node_id, node in ledger.rows.items():
                path = path_of(node, wish.spread)
                self._count(node_id, path)
                rank = self.pool.rank(node_id)
                if rank is not None:
                    self._leaf(path).plain.append(rank)
            for leaf in self._leaves.values():
                heapq.heapify(leaf.plain)
            self.pool.boards.looks += len(ledger.rows)
        else:
            self.pool.best()  # what is refused at its top need not be copied
            self._leaf(()).plain = [] if self._restricted else self.pool.heap.copy()
            self.pool.boards.looks += len(self.pool.heap) // 64
        for node_id in self._specials():
            self._enter(node_id)

    def _specials(self) -> Iterable[str]:
        wish, ledger = self.wish, self.ledger
        found = dict.fromkeys(ledger.hosting.get(wish.service_id, ()))
        found.update(ledger.failed.get(wish.revision_id, {}))
        for other in (*wish.with_hard, *wish.with_soft, *wish.apart_soft):
            found.update(ledger.hosting.get(other, {}))
        for volume in (*wish.held, *wish.preferred):
            found.update(ledger.volumes.get(volume, {}))
        return found

    def _special(self, node_id: str) -> bool:
        """Whether the node's rank for this service is more than its rank in the pool."""
        wish, hosting = self.wish, self.ledger.hosting
        if node_id == wish.avoid or node_id in hosting.get(wish.service_id, ()):
            return True
        if node_id in self.ledger.failed.get(wish.revision_id, ()):
            return True
        for others in (wish.with_hard, wish.apart_hard, wish.with_soft, wish.apart_soft):
            if any(node_id in hosting.get(other, ()) for other in others):
                return True
        return any(
            node_id in self.ledger.volumes.get(name, ())
            for names in (wish.held, wish.preferred)
            for name in names
        )

    def rank(self, node_id: str) -> Rank | None:
        """(recent failures, soft wishes unmet, tasks of the service, rank in the pool); ``None``: takes no tasks."""
        rank = self.pool.rank(node_id)
        if rank is None:
            return None
        use = self.ledger.nodes[node_id]
        failed = self.ledger.failures(node_id, self.wish.revision_id, self.now)
        mine = 0 if self.pool.packs else use.by_service.get(self.wish.service_id, 0)
        return (failed, unmet(self.wish, node_id, self.ledger), mine, rank)

    def refusal(self, node_id: str) -> str:
        """The code of the first filter that refuses a ready node."""
        code = self.pool.verdict(node_id)
        return code or wish_refusal(self.wish, node_id, self.ledger.nodes[node_id], self.ledger)

    def refresh(self) -> None:
        """Take in what changed since the last time."""
        self.pool.refresh()
        changed = changes(self.ledger, self._seen)
        if changed is None:
            self._fill()
            return
        self._seen = self.ledger.forgotten + len(self.ledger.journal)
        failed = self.ledger.failed.get(self.wish.revision_id)
        for node_id in changed:
            if failed is not None and node_id in failed:
                self.expires = self.ledger.forgiven_at(self.wish.revision_id, self.now)
            self._enter(node_id)

    def _enter(self, node_id: str) -> None:
        """Give a node that changed a fresh entry."""
        path: tuple[str, ...] = ()
        node = self.ledger.rows.get(node_id)
        if self.wish.spread:
            path = () if node is None else path_of(node, self.wish.spread)
            self._count(node_id, path)
        if node is None:
            return
        if self._special(node_id):
            rank = self.rank(node_id)
            if rank is None:
                return
            leaf = self._leaf(path)
            heapq.heappush(leaf.special, rank)
        else:
            rank = None if self._restricted else self.pool.rank(node_id)
            if rank is None:
                return
            leaf = self._leaf(path)
            heapq.heappush(leaf.plain, rank)
        if len(leaf.plain) + len(leaf.special) > 3 * self.ledger.ready + 64:
            leaf.plain = compacted(leaf.plain, self.pool.rank)
            leaf.special = compacted(leaf.special, self.rank)

    def _count(self, node_id: str, path: tuple[str, ...]) -> None:
        use = self.ledger.nodes.get(node_id)
        mine = 0 if use is None else use.by_service.get(self.wish.service_id, 0)
        self.tree.count(node_id, path, mine)

    def _leaf(self, path: tuple[str, ...]) -> _Leaf:
        leaf = self._leaves.get(path)
        if leaf is None:
            leaf = self._leaves[path] = _Leaf()
        self.tree.open(path)
        return leaf

    def best(self, now: int) -> str:
        """The id of the node the next task should go to, "" when there is none."""
        self.now = now
        self.refresh()
        return self.tree.best(self._best_of)

    def _best_of(self, path: tuple[str, ...]) -> str:
        leaf = self._leaves.get(path)
        if leaf is None:
            return ""
        plain, special = (
            self._top(leaf.plain, path, special=False),
            self._top(leaf.special, path, special=True),
        )
        if plain is None or (special is not None and special < (0, self._plain, 0, plain)):
            return "" if special is None else str(special[-1][-1])
        return str(plain[-1])

    def _top(self, heap: list[Rank], path: tuple[str, ...], *, special: bool) -> Rank | None:
        while heap:
            top = heap[0]
            node_id = top[-1][-1] if special else top[-1]
            rank = self.rank(node_id) if special else self.pool.rank(node_id)
            if (
                top == rank
                and self._special(node_id) == special
                and (not path or path_of(self.ledger.rows[node_id], self.wish.spread) == path)
                and not self.refusal(node_id)
            ):
                return top
            heapq.heappop(heap)
        return None


class _Leaf:
    """The nodes of one branch: those that are special to the service, and the others."""

    __slots__ = ("plain", "special")

    def __init__(self) -> None:
        self.plain: list[Rank] = []
        self.special: list[Rank] = []


def changes(ledger: Ledger, seen: int) -> Iterable[str] | None:
    """Ids of the nodes that changed since the journal was read to ``seen``, each once; ``None``: it does not reach back so far."""
    if seen < ledger.forgotten:
        return None
    new = ledger.journal[seen - ledger.forgotten :]
    return new if len(new) < 2 else dict.fromkeys(new)


def compacted(heap: list[Rank], rank: Any) -> list[Rank]:
    """Without the entries that would be passed over."""
    kept = [top for top in set(heap) if top == rank(_node(top))]
    heapq.heapify(kept)
    return kept


def _node(rank: Rank) -> str:
    last = rank[-1]
    return str(last[-1] if isinstance(last, tuple) else last)
