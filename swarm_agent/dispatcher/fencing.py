"""The leader's side of leases: which beats it confirms, and when a node that is down is fenced (``docs/design/fencing.md``).

Beats of nodes without a lease are confirmed too, about once a second for all of them: who hears nothing finds the next leader
long before that one takes it for lost.

Made with the dispatcher, for a term. Knows loop time only: time this process did not run makes it wait longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec

from swarm_agent.objects import features
from swarm_agent.objects.enums import NodeState
from swarm_agent.objects.errors import NotFound, SwarmError
from swarm_agent.objects.leases import FENCE_S
from swarm_agent.objects.records import Node
from swarm_agent.rpc.messages import Down, Heard, Leased
from swarm_agent.store import Store

log = logging.getLogger(__name__)

COALESCE_S = 0.02  # one confirmation for all that ask within this time
ANSWER_S = 0.9  # between confirmations that no lease waits for: less than the second between a node's beats
CHECK_S = 0.25

ChangeNode = Callable[[str, Callable[[Node], Node]], Awaitable[None]]
"""Read, change, write a node's row, one after the other for each node. The change is made anew when somebody was faster."""


class Holder(Protocol):
    """A session."""

    node_id: str
    closed: bool
    leaving: bool
    extra: list[Down]

    def touch(self) -> None: ...


class Fence:
    """``confirm`` returns when this manager was the leader, in the term it made this for, at some moment after the call; raises
    SwarmError when that cannot be said."""

    def __init__(
        self,
        store: Store,
        confirm: Callable[[], Awaitable[None]],
        sessions: Mapping[str, Holder],
        change_node: ChangeNode,
    ) -> None:
        self._store = store
        self._confirm = confirm
        self._sessions = sessions
        self._change_node = change_node
        # Whoever led before us may have granted leases until the moment we were elected.
        self._began = asyncio.get_running_loop().time()
        self._wishes: dict[str, tuple[Holder, int, float]] = {}  # node id -> session, number, when it came
        self._askers: dict[str, Holder] = {}  # node id -> session that wants to hear that we lead
        self._news = asyncio.Event()
        self._urgent = asyncio.Event()  # a lease waits
        self._over: dict[str, float] = {}  # node id -> loop time when the lease it was granted is over
        self._down = {n.id for n in store.nodes.all() if _unfenced(n)}
        self._fencing: set[str] = set()  # fenced, or about to be: no lease before they have said hello

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._grant())
            group.create_task(self._watch())

    def asked(self, session: Holder, number: int) -> None:
        """A beat of this number came."""
        self._wishes[session.node_id] = (session, number, asyncio.get_running_loop().time())
        self._news.set()
        self._urgent.set()

    def heard(self, session: Holder) -> None:
        """A beat came that wants no lease, but an answer."""
        self._askers[session.node_id] = session
        self._news.set()

    def registered(self, node_id: str) -> None:
        """It has said hello, and its row says so."""
        self._fencing.discard(node_id)

    def changed(self, node_id: str, node: Node | None) -> None:
        """Its row did."""
        if node is not None and _unfenced(node):
            self._down.add(node_id)
        else:
            self._down.discard(node_id)

    # --- leases ------------------------------------------------------------------------------------------------------
    async def _grant(self) -> None:
        loop = asyncio.get_running_loop()
        answered = loop.time() - ANSWER_S
        while True:
            await self._news.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(answered + ANSWER_S):
                    await self._urgent.wait()
            await asyncio.sleep(COALESCE_S)
            self._news.clear()
            self._urgent.clear()
            answered = loop.time()
            wishes, self._wishes = self._wishes, {}
            askers, self._askers = self._askers, {}
            try:
                await self._confirm()
            except SwarmError as err:
                log.info("no leases are granted: %s", err)
                continue  # the nodes ask again
            for asker in askers.values():
                if not asker.closed:
                    asker.extra.append(Heard())
                    asker.touch()
            for node_id, (session, number, heard) in wishes.items():
                if self._may_hold(session):
                    self._over[node_id] = heard + FENCE_S
                    session.extra.append(Leased(number))
                    session.touch()

    def _may_hold(self, session: Holder) -> bool:
        node = self._store.nodes.get(session.node_id)
        return (
            not session.closed
            and not session.leaving
            and self._sessions.get(session.node_id) is session
            and session.node_id not in self._fencing
            and node is not None
            and node.status.state == NodeState.READY
        )

    # --- fencing -----------------------------------------------------------------------------------------------------
    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            if self._store.feature_level < features.ORCHESTRATION:
                continue
            for node_id in sorted(self._down):
                node = self._store.nodes.get(node_id)
                if node is None or not self._is_over(node):
                    continue
                try:
                    await self._change_node(node_id, self._fenced)
                except NotFound:
                    pass  # removed meanwhile
                except SwarmError as err:
                    log.info("cannot fence a node yet: %s", err, extra={"node": node_id})

    def _is_over(self, node: Node) -> bool:
        session = self._sessions.get(node.id)
        over = max(self._began + FENCE_S, self._over.get(node.id, 0.0))
        return (
            _unfenced(node)
            and (session is None or session.closed or session.leaving)
            and asyncio.get_running_loop().time() >= over
        )

    def _fenced(self, node: Node) -> Node:
        """Looked at again before each attempt to write; from here on it gets no lease."""
        if not self._is_over(node):
            return node
        self._fencing.add(node.id)
        return msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, fenced=True))


def _unfenced(node: Node) -> bool:
    return node.status.state == NodeState.DOWN and not node.status.fenced
