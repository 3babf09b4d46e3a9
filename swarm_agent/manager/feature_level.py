"""The keeper of the cluster's feature level: raises it once every manager knows more. Leader only.

A manager's level is what it said in the session that is open now. One that is away may be coming back as an older release, so
nothing is raised while a manager is missing; whoever wants to go on without it demotes or removes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from swarm_agent.objects import features
from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.records import Cluster, Node
from swarm_agent.raft import RaftNode
from swarm_agent.store import ApplyResult, Change, Group, Put, Store

log = logging.getLogger(__name__)

Propose = Callable[[tuple[Group, ...]], Awaitable[ApplyResult]]
RETRY_S = 1.0
MAX_NODES = 200  # written in one entry


class Outlook(NamedTuple):
    """The level all managers know, and who keeps it from being higher."""

    level: int
    held_by: tuple[str, ...]  # node ids, those that are away first


def outlook(levels: Mapping[str, int | None]) -> Outlook:
    """From each manager's level; ``None`` for one that is away."""
    away = tuple(sorted(i for i, level in levels.items() if level is None))
    if away or not levels:
        return Outlook(0, away)
    lowest = min(level for level in levels.values() if level is not None)
    return Outlook(lowest, tuple(sorted(i for i, level in levels.items() if level == lowest)))


class FeatureLevelManager:
    """``levels``: what the nodes with an open session said, by node id."""

    def __init__(
        self, store: Store, raft: RaftNode, propose: Propose, levels: Callable[[], Mapping[str, int]]
    ) -> None:
        self._store = store
        self._raft = raft
        self._propose = propose
        self._levels = levels
        self._wake = asyncio.Event()
        self._unwatch = store.watch(self._on_commit, Node, Cluster)

    def wake(self) -> None:
        """A node has said its level."""
        self._wake.set()

    def _on_commit(self, index: int, changes: Sequence[Change]) -> None:  # noqa: ARG002 - the watcher's signature
        self._wake.set()

    def close(self) -> None:
        """Hear of no more commits."""
        self._unwatch()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._wake.clear()
                again = False
                try:
                    again = not await self._raise()
                except SwarmError as err:
                    log.info("cannot raise the feature level yet: %s", err)
                    again = True
                try:
                    async with asyncio.timeout(RETRY_S if again else None):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            self.close()

    def outlook(self) -> Outlook:
        """Over the managers there are and those that are about to be."""
        told = self._levels()
        managers = {n.id for n in self._store.nodes.all() if "manager" in (n.role, n.spec.role)}
        managers |= {m.node_id for m in self._raft.status().members}
        return outlook({i: told.get(i) for i in managers})

    async def _raise(self) -> bool:
        """Whether nothing is left to do."""
        cluster = self._store.cluster
        if cluster is None:
            return True
        level = self.outlook().level
        if level <= cluster.feature_level:
            return await self._note_levels()
        raised = msgspec.structs.replace(cluster, feature_level=level)
        result = await self._propose((Group("feature level", (Put(raised, cluster.version),)),))
        if result.accepted[0]:
            log.info(
                "every manager knows feature level %d: the swarm is raised to it from %d",
                level,
                cluster.feature_level,
            )
        return False  # the nodes' levels are still to be noted, or it is to be tried again

    async def _note_levels(self) -> bool:
        """Nodes said hello before their records could hold a level. Whether there was nothing to write, or it was written."""
        if self._store.feature_level < features.NODE_LEVELS:
            return True
        levels = self._levels()
        known = [(node, levels.get(node.id, node.feature_level)) for node in self._store.nodes.all()]
        groups = tuple(
            Group(f"node/{node.id}", (Put(msgspec.structs.replace(node, feature_level=level), node.version),))
            for node, level in known
            if level != node.feature_level
        )
        for start in range(0, len(groups), MAX_NODES):
            result = await self._propose(groups[start : start + MAX_NODES])
            if not all(result.accepted):
                return False
        return True
