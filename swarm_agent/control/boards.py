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
from collections.abc import Collection, Iterable
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
from swarm_agent.control.spread import Path, Tree, path_of
from swarm_agent.objects.records import Node, Revision, Task
from swarm_agent.store import View

if TYPE_CHECKING:
    from swarm_agent.control.ledger import Ledger

Rank = tuple[Any, ...]  # numbers, then the node's id
MAX_ENTRIES = 1_000_000  # of all remembered heaps, about
MAX_REMEMBERED = 1000  # pools, and groups
COPIED = 256  # entries copied are as dear as one look, about
FEW = 8  # special nodes that may always be looked at one by one rather than kept in order
AGAIN = 4  # single tasks of a service after which its order is kept
NEVER = 1 << 62
ANY = Demand()
_NO: dict[str, None] = {}


class Boards:
    """What the scheduler remembers. Everything in it can be forgotten at any time."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.looks = 0  # nodes compared with a demand, and heaps copied, since the beginning
        self.awaited: set[str] = set()  # ids of services beside which tasks would go that wait
        self._asked: dict[str, int] = {}  # how often for single tasks, by service
        self._demands: dict[str, Demand] = {}
        self._pools: OrderedDict[tuple[Demand, str], Pool] = OrderedDict()
        self._groups: OrderedDict[Wish, Group] = OrderedDict()

    def demand(self, revision: Revision, view: View) -> Demand:
        found = self._demands.get(revision.id)
        if found is None:
            found = self._demands[revision.id] = demand_of(revision, view)
        return found

    def pool(self, demand: Demand, strategy: str) -> Pool:
        """The nodes that can meet a demand."""
        key = (demand, strategy)
        pool = self._pools.get(key)
        if pool is None:
            like = None if demand == ANY else self.pool(ANY, strategy)
            pool = self._pools[key] = Pool(self, demand, strategy, like)
            self._make_room(self._pools)
        self._pools.move_to_end(key)
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

    def single(self, wish: Wish, pool: Pool, now: int) -> str | None:
        """The best node for one task of a service that is special to few, "" when there is none; ``None``: ask a group."""
        ledger = self.ledger
        if not is_simple(wish) or wish.spread or self._is_kept(wish):
            return None
        special = {**ledger.hosting.get(wish.service_id, _NO), **ledger.failed.get(wish.revision_id, _NO)}
        self.looks += 2 * len(special)
        plain = pool.best_but(special)
        best: Rank | None = None if plain is None else (0, 0, plain)
        failed = wish.revision_id in ledger.failed
        for node_id in special:
            rank_there = pool.rank(node_id)
            if rank_there is None:
                continue
            use = ledger.nodes[node_id]
            rank = (
                ledger.failures(node_id, wish.revision_id, now) if failed else 0,
                0 if pool.packs else use.by_service.get(wish.service_id, 0),
                rank_there,
            )
            if best is not None and rank > best:
                continue
            if not pool.verdict(node_id) and not wish_refusal(wish, node_id, use, ledger):
                best = rank
        return "" if best is None else str(best[-1][-1])

    def _is_kept(self, wish: Wish) -> bool:
        """Whether a service's order is kept, or is to be: it asks for single tasks often, and is on many nodes."""
        group = self._groups.get(wish)
        if group is not None and self.ledger.written - group.seen < 4 * len(self.ledger.rows) + 64:
            return True
        if len(self.ledger.hosting.get(wish.service_id, _NO)) <= FEW:
            return False
        asked = self._asked[wish.service_id] = self._asked.get(wish.service_id, 0) + 1
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
        self._undemanding = demand == ANY
        self._lasting = not (
            demand.cpu or demand.memory or demand.generic
        )  # nothing is asked before the node's row
        self.refused: dict[str, str] = {}  # node id -> code, for nodes that came to the top
        self.counts: Counter[str] = Counter()  # of those codes
        self._good: set[str] = set()  # nodes that came to the top and may stay there
        self._static: dict[str, tuple[Node, str]] = {}
        self._entries: dict[str, Rank] = {}  # nodes that changed -> an entry that stands in the heap for sure
        self._like = like
        self._parts: dict[tuple[str, ...], Partition] = {}
        self._fill()

    def _fill(self) -> None:
        ledger = self.ledger
        self.refused.clear()
        self.counts.clear()
        self._good.clear()
        self._entries.clear()
        if self._like is not None:
            self._like.best()  # passes over what is out of date at its top
            self.heap: list[Rank] = self._like.heap.copy()
            self.boards.looks += 1 + len(self.heap) // COPIED
        else:
            ranks = (self.rank(id_) for id_ in ledger.rows)
            self.heap = [r for r in ranks if r is not None]
            heapq.heapify(self.heap)
            self.boards.looks += len(ledger.rows)
        self.seen = self._judged = ledger.written

    def rank(self, node_id: str) -> Rank | None:
        """Where a node stands; ``None`` when it takes no tasks."""
        ledger = self.ledger
        if node_id not in ledger.up:
            return None
        use = ledger.nodes.get(node_id)
        if not self.packs:
            return (0 if use is None else use.active, node_id)
        if use is None:
            return (0, 0, node_id)
        total = ledger.rows[node_id].description
        share = 0
        if total.nano_cpus:
            share += use.cpu * 1_000_000 // total.nano_cpus
        if total.memory_bytes:
            share += use.memory * 1_000_000 // total.memory_bytes
        return (-share, -use.active, node_id)

    def refresh(self) -> None:
        """Take in what changed since the last time."""
        changed = changes(self.ledger, self.seen)
        if not changed:
            if changed is None:
                self._fill()
            return
        self.judge_again()
        self.seen = self._judged
        for node_id in changed:
            rank = self.rank(node_id)
            if rank is not None and node_id not in self.refused and self._entries.get(node_id) != rank:
                self._entries[node_id] = rank
                heapq.heappush(self.heap, rank)
        if len(self.heap) > 2 * len(self.ledger.up) + 64:
            self._entries.clear()
            self.heap = compacted(self.heap, self.rank)

    def judge_again(self) -> None:
        """Forget the verdicts on nodes that changed since the last time; they are given anew when someone asks."""
        changed = changes(self.ledger, self._judged)
        if changed is None:
            self._fill()
            return
        self._judged = self.ledger.written
        if self._undemanding:
            return
        for node_id in changed:
            if self._lasting and self._is_refused_for_good(node_id):
                continue
            self._good.discard(node_id)
            code = self.refused.pop(node_id, None)
            if code is not None:
                self.counts[code] -= 1

    def _is_refused_for_good(self, node_id: str) -> bool:
        """Whether what refuses a node is in its row, which is as it was."""
        static = self._static.get(node_id)
        return static is not None and static[1] != "" and static[0] is self.ledger.rows.get(node_id)

    def verdict(self, node_id: str) -> str:
        """The code of the filter that refuses a ready node, "" when it may have such a task."""
        if self._undemanding or node_id in self._good:
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
        if self.ledger.up.issubset(special):
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

    def __init__(self, pool: Pool, descriptors: tuple[str, ...]) -> None:
        self._pool = pool
        self._descriptors = descriptors
        self._paths: dict[str, tuple[Node, Path]] = {}
        self._heaps: dict[Path, list[Rank]] = {}
        self._members: Counter[Path] = Counter()  # how many entries were left when a heap was last compacted
        self.seen = -1

    def path(self, node_id: str) -> Path:
        node = self._pool.ledger.rows[node_id]
        known = self._paths.get(node_id)
        if known is None or known[0] is not node:
            known = self._paths[node_id] = (node, path_of(node, self._descriptors))
        return known[1]

    def refresh(self) -> None:
        ledger = self._pool.ledger
        changed = changes(ledger, self.seen)
        self.seen = ledger.written
        if changed is None:
            self._heaps.clear()
            changed = ledger.rows
            self._pool.boards.looks += len(ledger.rows)
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
        self._simple = is_simple(wish)
        self._part = pool.parted(wish.spread) if wish.spread else None
        self._fill()

    def _fill(self) -> None:
        wish, ledger = self.wish, self.ledger
        self.seen = ledger.written
        self.expires = ledger.forgiven_at(wish.revision_id, self.now) if ledger.failed else NEVER
        self.tree = Tree(len(wish.spread))
        self._leaves: dict[Path, _Leaf] = {}
        self._entries: dict[str, tuple[Path, Rank]] = {}  # as a pool's
        if self._part is not None:
            self._part.refresh()
            for branch, heap in self._part.copies():
                self._leaf(branch).plain = heap
        else:
            self.pool.best()  # what is refused at its top need not be copied
            self._leaf(()).plain = [] if self._restricted else self.pool.heap.copy()
        self.pool.boards.looks += 1 + len(self.pool.heap) // COPIED
        path: Path = ()
        specials = self._specials()
        self.pool.boards.looks += 2 * len(specials)
        for node_id in specials:
            path = ()
            if self._part is not None:
                path = self._part.path(node_id) if node_id in ledger.rows else ()
                self._count(node_id, path)
            rank = self.rank(node_id)
            if rank is not None:
                self._leaf(path).special.append(rank)
        for leaf in self._leaves.values():
            heapq.heapify(leaf.special)

    def _specials(self) -> dict[str, None]:
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
        if node_id in hosting.get(wish.service_id, ()):
            return True
        if self.ledger.failed and node_id in self.ledger.failed.get(wish.revision_id, ()):
            return True
        if self._simple:
            return False
        if node_id == wish.avoid:
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
        ledger, wish = self.ledger, self.wish
        failed = ledger.failures(node_id, wish.revision_id, self.now) if ledger.failed else 0
        mine = 0 if self.pool.packs else ledger.nodes[node_id].by_service.get(wish.service_id, 0)
        return (failed, 0 if self._simple else unmet(wish, node_id, ledger), mine, rank)

    def refusal(self, node_id: str) -> str:
        """The code of the first filter that refuses a ready node."""
        code = self.pool.verdict(node_id)
        if code or (self._simple and not self.wish.max_replicas):
            return code
        return wish_refusal(self.wish, node_id, self.ledger.nodes[node_id], self.ledger)

    def refresh(self) -> None:
        """Take in what changed since the last time."""
        self.pool.judge_again()
        changed = changes(self.ledger, self.seen)
        if changed is None:
            self._fill()
            return
        if not changed:
            return
        self.seen = self.ledger.written
        self.pool.boards.looks += len(changed)
        for leaf in self._leaves.values():
            leaf.plain_sure = leaf.special_sure = False
        failed = self.ledger.failed.get(self.wish.revision_id)
        for node_id in changed:
            if failed is not None and node_id in failed:
                self.expires = self.ledger.forgiven_at(self.wish.revision_id, self.now)
            self._enter(node_id)

    def _enter(self, node_id: str) -> None:
        """Give a node that changed a fresh entry."""
        path: Path = ()
        known = node_id in self.ledger.rows
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
        if len(leaf.plain) + len(leaf.special) > 3 * len(self.ledger.up) + 64:
            self._entries.clear()
            leaf.plain = compacted(leaf.plain, self.pool.rank)
            leaf.special = compacted(leaf.special, self.rank)

    def _count(self, node_id: str, path: Path) -> None:
        use = self.ledger.nodes.get(node_id)
        mine = 0 if use is None else use.by_service.get(self.wish.service_id, 0)
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
        if self.seen != self.ledger.written:
            self.refresh()
        return self.tree.best(self._best_of)

    def placed(self, node_id: str) -> None:
        """Take in that a task was just placed where :meth:`best` said: no other node has changed, unless the journal says so."""
        ledger = self.ledger
        rank = self.rank(node_id)
        if ledger.written != self.seen + 1 or ledger.journal[-1] != node_id or rank is None:
            return
        self.seen += 1
        self.pool.judge_again()
        path: Path = ()
        if self._part is not None:
            path = self._part.path(node_id)
            self._count(node_id, path)
        leaf = self._leaves[path]
        self._entries[node_id] = (path, rank)
        if leaf.special and leaf.special[0][-1][-1] == node_id:
            heapq.heapreplace(leaf.special, rank)
        else:
            heapq.heappush(leaf.special, rank)
            leaf.plain_sure = False
        leaf.special_sure = False

    def _best_of(self, path: Path) -> str:
        leaf = self._leaves.get(path)
        if leaf is None:
            return ""
        if not leaf.plain_sure:
            self._tidy(leaf.plain, path, special=False)
            leaf.plain_sure = True
        if not leaf.special_sure:
            self._tidy(leaf.special, path, special=True)
            leaf.special_sure = True
        if leaf.plain and (not leaf.special or (0, self._plain, 0, leaf.plain[0]) < leaf.special[0]):
            return str(leaf.plain[0][-1])
        return str(leaf.special[0][-1][-1]) if leaf.special else ""

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


def is_simple(wish: Wish) -> bool:
    """Whether nodes are special to it only for tasks of the service and failures."""
    return not (
        wish.with_hard
        or wish.apart_hard
        or wish.with_soft
        or wish.apart_soft
        or wish.held
        or wish.preferred
        or wish.avoid
    )


class _Leaf:
    """The nodes of one branch: those that are special to the service, and the others."""

    __slots__ = ("plain", "plain_sure", "special", "special_sure")

    def __init__(self) -> None:
        self.plain_sure = self.special_sure = False  # whether the first of the heap is known to be right
        self.plain: list[Rank] = []
        self.special: list[Rank] = []


def changes(ledger: Ledger, seen: int) -> Collection[str] | None:
    """Ids of the nodes that changed since the journal was read to ``seen``, each once; ``None``: it does not reach back so far."""
    new = ledger.written - seen
    if not new:
        return ()
    if seen < 0 or new > len(ledger.journal):
        return None
    return ledger.journal[-1:] if new == 1 else dict.fromkeys(ledger.journal[-new:])


def compacted(heap: list[Rank], rank: Any) -> list[Rank]:
    """Without the entries that would be passed over."""
    kept = [top for top in set(heap) if top == rank(_node(top))]
    heapq.heapify(kept)
    return kept


def _node(rank: Rank) -> str:
    last = rank[-1]
    return str(last[-1] if isinstance(last, tuple) else last)
