"""Spread preferences: a tree of nodes, a level for each preference, filled so that branches stay even (behaviour.md 15.6, 15.7).

Of the branches at a vertex that can take another task, the one with the fewest tasks of the service gets it; so does the branch
below. That is how Swarm's distribution of a whole group comes out too. A node that lacks the label stands in the branch "".
A vertex counts the service's tasks on all its nodes, also on those that take no more.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from swarm_agent.objects.records import Node

Path = tuple[str, ...]


def path_of(node: Node, descriptors: tuple[str, ...]) -> Path:
    """The branches a node stands in."""
    return tuple(branch_of(node, d) for d in descriptors)


def branch_of(node: Node, descriptor: str) -> str:
    """The value a node has for ``node.labels.KEY``, ``engine.labels.KEY``, ``node.id``, ``node.hostname``, ``node.platform.os`` or
    ``node.platform.arch``; "" for one it has not, and for every other descriptor."""
    about = node.description
    lower = descriptor.lower()
    if lower.startswith("node.labels."):
        return node.spec.labels.get(descriptor[len("node.labels.") :], "")
    if lower.startswith("engine.labels."):
        return about.engine_labels.get(descriptor[len("engine.labels.") :], "")
    if lower == "node.id":
        return node.id
    if lower == "node.hostname":
        return about.hostname
    if lower == "node.platform.os":
        return about.os
    return about.architecture if lower == "node.platform.arch" else ""


class Tree:
    """How many tasks of a service each branch has, and which branches may take more. Without preferences it is one leaf."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._sums: dict[Path, int] = {}
        self._counted: dict[str, tuple[Path, int]] = {}  # node id -> what of it is in the sums
        self._open: dict[
            Path, list[tuple[int, Path]]
        ] = {}  # vertex -> branches, fewest tasks first; repaired late
        self._offered: set[tuple[int, Path]] = set()  # what stands in those heaps

    def count(self, node_id: str, path: Path, tasks: int) -> None:
        """Say where a node stands now and how many tasks of the service it has."""
        before = self._counted.get(node_id)
        if before == (path, tasks) or (before is None and not tasks):
            return
        if before is not None:
            self._add(before[0], -before[1])
        if tasks:
            self._counted[node_id] = (path, tasks)
            self._add(path, tasks)
        else:
            del self._counted[node_id]

    def _add(self, path: Path, tasks: int) -> None:
        for depth in range(1, self._depth + 1):
            part = path[:depth]
            self._sums[part] = self._sums.get(part, 0) + tasks
            self._offer(part)

    def open(self, path: Path) -> None:
        """Say that a leaf may have a node to offer."""
        for depth in range(1, self._depth + 1):
            self._offer(path[:depth])

    def _offer(self, part: Path) -> None:
        entry = (self._sums.get(part, 0), part)
        if entry not in self._offered:
            self._offered.add(entry)
            heapq.heappush(self._open.setdefault(part[:-1], []), entry)

    def best(self, best_of: Callable[[Path], str]) -> str:
        """The node of the leaf that should get the next task; ``best_of`` gives a leaf's best, "" when it has none."""
        return self._below((), best_of)

    def _below(self, vertex: Path, best_of: Callable[[Path], str]) -> str:
        if len(vertex) == self._depth:
            return best_of(vertex)
        branches = self._open.get(vertex, [])
        while branches:
            tasks, child = branches[0]
            if tasks == self._sums.get(child, 0):
                found = self._below(child, best_of)
                if found:
                    return found
            self._offered.discard(heapq.heappop(branches))
        return ""
