"""The leader's side of every node's session: who is alive, what they are told, what they report.

Made anew for each term of leadership. Heartbeats live in memory; what follows from them (a node is ready, down, unknown)
is written through the store.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec

from swarm_agent.dispatcher import assignments, network_view
from swarm_agent.dispatcher.fencing import Fence
from swarm_agent.dispatcher.liveness import Liveness
from swarm_agent.dispatcher.node_session import NodeSession
from swarm_agent.dispatcher.status_writer import StatusWriter
from swarm_agent.objects import defaults, features
from swarm_agent.objects.contents import content_ids
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.errors import NotFound, SwarmError
from swarm_agent.objects.records import (
    Cluster,
    Network,
    Node,
    NodeDescription,
    NodeStatus,
    Service,
    Task,
)
from swarm_agent.rpc.messages import (
    BEATS_A_PERIOD,
    Assignment,
    Assignments,
    Beat,
    Contents,
    Described,
    Down,
    Hello,
    Leaving,
    LogsWanted,
    Managers,
    Networks,
    NodeChanged,
    Pausing,
    Piece,
    Silent,
    Statuses,
    Up,
    Welcome,
)
from swarm_agent.store import ApplyResult, Change, Group, Put, Store, slot_key

log = logging.getLogger(__name__)

Propose = Callable[[tuple[Group, ...]], Awaitable[ApplyResult]]

NEW_LEADER_GRACE = 0.8  # periods a node has to find a new leader before its silence counts; most need a tenth
FIRST_HELLO_S = 30.0  # a node that has its certificate is given this long to start a session
COALESCE_S = 0.02  # changes within this time go out as one message
MAX_CONTENTS = 4 << 20  # bytes of secrets and configs in one message, or one of them alone
CHECK_S = 0.25
LONGEST_PAUSE_S = 10.0  # less than a lease lasts, so that a pause makes no strict singleton wait
SILENT_S = 2.0  # without a beat, and without as many as come in that time: others are told
SILENT_BEATS = 2.5  # so that one beat may be late or lost
TELL_SILENT_S = 1.0  # between two lists of silent nodes: each goes to every session
LATE_S = 0.02  # more than a loop is late that has time to listen
RETRY_S = 0.05


class Dispatcher:
    """See the module. ``run`` until leadership ends; ``session`` serves one node."""

    def __init__(
        self,
        store: Store,
        propose: Propose,
        new_id: Callable[[], str],
        confirm: Callable[[], Awaitable[None]],
        own: str = "",
    ) -> None:
        """``confirm``: see ``Fence``. ``own``: the node this manager runs on."""
        self._confirm = confirm
        self._liveness = Liveness(own)
        self._began = asyncio.get_running_loop().time()
        self._silent_nodes: tuple[str, ...] = ()
        self._silent_at = self._began - TELL_SILENT_S  # when that last changed
        self._store = store
        self._propose = propose
        self._new_id = new_id
        self.sessions: dict[str, NodeSession] = {}
        self._heard: set[str] = set()  # nodes that said hello to this leader
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(
            asyncio.Lock
        )  # node id -> whose turn to write
        self._reports = StatusWriter(store, propose)
        self._level_news = asyncio.Event()
        self._picture: network_view.ClusterNetworkState | None = None
        self._fence = Fence(store, confirm, self.sessions, self._change_node)
        self.on_level: Callable[[], None] = lambda: None  # a node has said its feature level
        self._unwatch = store.watch(self._on_commit)

    # --- life ----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Until cancelled: watch for silence, write reports."""
        await self._everybody_unknown()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch_silence())
                group.create_task(self._reports.run())
                group.create_task(self._write_descriptions())
                group.create_task(self._fence.run())
        finally:
            self.close()

    def close(self) -> None:
        """End every session; nodes look for the new leader."""
        self._unwatch()
        for session in list(self.sessions.values()):
            session.closed = True
            session.touch()

    def _period_s(self) -> float:
        cluster = self._store.cluster
        period = defaults.heartbeat_period(cluster.spec) if cluster is not None else defaults.HEARTBEAT_PERIOD
        return period / 1e9

    async def _everybody_unknown(self) -> None:
        """A new leader knows nobody's pulse: nodes have a while to report, their tasks run on."""
        loop = asyncio.get_running_loop()
        grace = self._period_s() * NEW_LEADER_GRACE
        for node in self._store.nodes.all():
            if node.status.state != NodeState.DOWN:
                self._liveness.wait_for(node.id, loop.time() + grace)
                try:
                    await self._change_node(node.id, self._unknown)
                except SwarmError as err:
                    log.info("cannot mark a node unknown: %s", err, extra={"node": node.id})

    def _unknown(self, node: Node) -> Node:
        """Whoever has said hello meanwhile is known; looked at again before each attempt to write."""
        if node.id in self._heard:
            return node
        message = 'Node moved to "unknown" state due to leadership change in cluster'
        return self._with_state(node, NodeState.UNKNOWN, message)

    # --- sessions --------------------------------------------------------------------------------------------------
    async def session(self, node_id: str, requests: AsyncIterator[Up], peer: str) -> AsyncIterator[Down]:
        """Serve one node until either side ends. ``peer``: the address it calls from."""
        hello = await anext(requests, None)
        if not isinstance(hello, Hello):
            raise SwarmError("a session starts with Hello")
        session = NodeSession(node_id, self._new_id(), hello)
        self._heard.add(node_id)
        self._beat(node_id, self._period_s())
        await self._register(node_id, hello, peer)
        previous = self.sessions.get(node_id)
        if previous is not None:
            previous.closed = True
            previous.touch()
        session.period_s = self._period_s()
        self.sessions[node_id] = session
        self.on_level()
        self._beat(node_id, session.period_s)
        reader = asyncio.create_task(self._read(session, requests), name=f"session {node_id}")
        try:
            cluster = self._store.cluster
            root = cluster.root_ca.cert if cluster is not None else b""
            yield Welcome(session.id, int(session.period_s * 1e9), root, answers=True, pauses=True)
            async for message in self._messages(session):
                yield message
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            if self.sessions.get(node_id) is session:
                del self.sessions[node_id]

    async def _read(self, session: NodeSession, requests: AsyncIterator[Up]) -> None:
        """A reader that ends, for whatever reason, ends the session: the node must notice and come again."""
        try:
            await self._read_all(session, requests)
        except SwarmError as err:
            log.info("session ended: %s", err, extra={"node": session.node_id})
        finally:
            session.closed = True
            session.touch()

    async def _read_all(self, session: NodeSession, requests: AsyncIterator[Up]) -> None:
        node_id = session.node_id
        async for message in requests:
            if session.closed:
                return  # taken for lost, or replaced by a newer one: its word is stale
            if not session.leaving:
                self._beat(node_id, session.period_s)
            match message:
                case Beat(number, answer):
                    if number:
                        self._fence.asked(session, number)
                    elif answer:
                        self._fence.heard(session)
                case Statuses(items):
                    for task_id, status in items:
                        task = self._store.tasks.get(task_id)
                        if task is not None and task.node_id == node_id:  # no node speaks for another's tasks
                            self._reports.report(task_id, node_id, status)
                case Described(description):
                    session.description = description
                    await self._change_node(node_id, functools.partial(self._described, description))
                case Pausing(seconds):
                    until = asyncio.get_running_loop().time() + min(seconds, LONGEST_PAUSE_S)
                    self._liveness.excuse(node_id, until)
                    return  # which ends the session: so the node knows that we know
                case Leaving():
                    session.leaving = True
                    await self._set_state(node_id, NodeState.DOWN, "the node left the swarm")
                    self._liveness.forget(
                        node_id
                    )  # not before: a goodbye that is not written down ends as silence
                case _:
                    raise SwarmError(f"unexpected message {type(message).__name__}")

    async def _messages(self, session: NodeSession) -> AsyncIterator[Down]:
        while not session.closed:
            session.wake.clear()  # first: what changes while a message is on its way is seen in the next round
            for message in self._due(session):
                yield message
            await session.wake.wait()
            await asyncio.sleep(COALESCE_S)

    def _due(self, session: NodeSession) -> list[Down]:
        """What has changed for this node since the last look."""
        out: list[Down] = list(session.extra)
        session.extra.clear()
        node = self._store.nodes.get(session.node_id)
        if node is None:
            session.closed = True
            return out
        if session.managers_dirty:
            session.managers_dirty = False
            known = assignments.managers(self._store)
            if known != session.last_managers:
                session.last_managers = known
                out.append(Managers(known))
        if session.level >= features.HOST_FACTS and session.last_silent != self._silent_nodes:
            session.last_silent = self._silent_nodes
            out.append(Silent(self._silent_nodes))
        if session.node_dirty:
            session.node_dirty = False
            if (
                session.last_node is None
                or node.spec != session.last_node.spec
                or node.role != session.last_node.role
            ):
                session.last_node = node
                out.append(NodeChanged(node))
        if session.network_dirty and node.number and node.data_addr:
            session.network_dirty = False
            if self._picture is None:
                self._picture = network_view.ClusterNetworkState(self._store)
            view = self._picture.view(node)
            encoded = msgspec.msgpack.encode(view)
            if encoded != session.last_view:
                session.last_view = encoded
                out.append(Networks(view))
        changed = self._assignments(session)
        if changed is not None:
            out += self._contents(session)
            out.append(changed)
        return out

    def _contents(self, session: NodeSession) -> list[Down]:
        """What the assignments on their way need and the node has not. It forgets by itself what no task needs any more."""
        wanted = dict.fromkeys(id_ for ids in session.needs.values() for id_ in ids)
        fresh = [id_ for id_ in wanted if id_ not in session.contents]
        session.contents = set(wanted)
        out: list[Down] = []
        batch: list[Piece] = []
        for piece in assignments.pieces(self._store, fresh):
            if batch and sum(len(p.data) for p in batch) + len(piece.data) > MAX_CONTENTS:
                out.append(Contents(tuple(batch)))
                batch = []
            batch.append(piece)
        if batch:
            out.append(Contents(tuple(batch)))
        return out

    def _too_old(self, session: NodeSession, found: Assignment) -> bool:
        """Whether the node's release does not know what the task needs; the task is then over."""
        needed = assignments.needs_level(found.revision)
        if session.level >= needed:
            return False
        self._reports.report(
            found.task.id,
            session.node_id,
            msgspec.structs.replace(
                found.task.status,
                state=TaskState.REJECTED,
                message="rejected",
                err=f"this node's swarm-agent knows feature level {session.level}, secrets, configs and templates came with "
                f"{needed}: upgrade it",
                timestamp=self._store.now,
                finished_at=self._store.now,
            ),
        )
        return True

    def _assignments(self, session: NodeSession) -> Assignments | None:
        full = session.tasks is None
        wanted = (
            dict.fromkeys(t.id for t in self._store.tasks.by("node", session.node_id))
            if session.tasks is None
            else session.tasks
        )
        session.tasks = {}
        given, removed = [], []
        for task_id in wanted:
            task = self._store.tasks.get(task_id)
            if task is None or task.node_id != session.node_id:
                session.needs.pop(task_id, None)
                if session.sent.pop(task_id, None) is not None:
                    removed.append(task_id)
                continue
            task = assignments.told(self._store, task)
            if session.sent.get(task_id) == task.desired_state:
                continue
            found = assignments.assignment(self._store, task)
            if found is None or self._too_old(session, found):
                continue
            session.sent[task_id] = task.desired_state
            given.append(found)
            if found.revision.contents and task.desired_state <= TaskState.COMPLETE:
                session.needs[task_id] = content_ids(found.revision)
            else:
                session.needs.pop(task_id, None)
        if not (full or given or removed):
            return None
        session.sequence += 1
        return Assignments(session.sequence, full, tuple(given), tuple(removed))

    def levels(self) -> dict[str, int]:
        """The feature levels of the nodes that have a session, by node id."""
        return {s.node_id: s.level for s in self.sessions.values() if not s.closed}

    def ask_logs(self, node_id: str, wanted: LogsWanted) -> bool:
        """Tell a node to send logs; False when it has no session."""
        session = self.sessions.get(node_id)
        if session is None:
            return False
        session.extra.append(wanted)
        session.touch()
        return True

    # --- what changed ----------------------------------------------------------------------------------------------
    def _on_commit(self, index: int, changes: Sequence[Change]) -> None:  # noqa: ARG002 - the watcher's signature
        network = managers = False
        for change in changes:
            match change.row:
                case Task():
                    self._task_changed(change)
                    network = network or _network_sees_task(change)
                case Service():
                    network = network or _network_sees_service(change)
                case Network():
                    network = True
                case Node() as node:
                    self._fence.changed(node.id, change.new)
                    if change.old is None:  # it got a certificate, whose answer may never have reached it
                        first = asyncio.get_running_loop().time() + FIRST_HELLO_S
                        self._liveness.wait_for(node.id, first)
                    network = network or _network_sees_node(change)
                    managers = True
                    session = self.sessions.get(node.id)
                    if session is not None:
                        session.node_dirty = True
                        session.touch()
                case Cluster():
                    if change.old is None or change.old.feature_level != change.row.feature_level:
                        self._level_news.set()
                    self._period_changed()
                case _:
                    pass
        if network:
            self._picture = None
        if network or managers:
            for session in self.sessions.values():
                session.network_dirty = session.network_dirty or network
                session.managers_dirty = session.managers_dirty or managers
                session.touch()

    def _task_changed(self, change: Change) -> None:
        for task in (change.old, change.new):
            session = self.sessions.get(task.node_id) if task is not None else None
            if session is not None:
                if session.tasks is not None:
                    session.tasks[task.id] = None
                session.touch()
        row: Task = change.row
        if row.cause == assignments.NODE_DOWN:  # the one before it may run on until this one does
            for other in self._store.tasks.by("slot", slot_key(row.service_id, row.place)):
                session = self.sessions.get(other.node_id)
                if session is not None and session.tasks is not None:
                    session.tasks[other.id] = None
                    session.touch()

    # --- liveness --------------------------------------------------------------------------------------------------
    def _beat(self, node_id: str, period_s: float) -> None:
        self._liveness.heard(node_id, asyncio.get_running_loop().time(), period_s)

    def _period_changed(self) -> None:
        """A node beats as often as it was told when its session began: those that were told another period say hello again. They have as
        long for it as nodes have to find a new leader."""
        now, period = asyncio.get_running_loop().time(), self._period_s()
        for session in self.sessions.values():
            if session.period_s != period:
                self._liveness.extend(session.node_id, now + NEW_LEADER_GRACE * max(session.period_s, period))
                session.closed = True
                session.touch()

    async def _watch_silence(self) -> None:
        """Look for silent nodes. Time we did not run ourselves is not held against them, nor is what may be our own deafness."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(CHECK_S)
            now = loop.time()
            late = now - last - CHECK_S
            last = now
            if late > LATE_S:
                self._liveness.paused(late)
            lost = self._liveness.lost(now)
            if self._liveness.in_doubt(lost, now, self._period_s()):
                if lost:
                    await self._ask(lost)
                    last = loop.time()
            else:
                for node_id in lost:
                    await self._silent(node_id)
            self._tell_silent(now)

    def _tell_silent(self, now: float) -> None:
        """Nodes hear whom we do not hear, sooner than anybody is taken for lost: they look for themselves (``network.probe``)."""
        if now - self._silent_at < TELL_SILENT_S:
            return
        after = max(SILENT_S, SILENT_BEATS * self._period_s() / BEATS_A_PERIOD)
        unheard = self._liveness.silent(now, after) if now - self._began > after else frozenset()
        away = (n.id for n in self._store.nodes.all() if n.status.state == NodeState.DOWN)
        silent = tuple(sorted({*unheard, *away}))
        if silent != self._silent_nodes:
            self._silent_nodes, self._silent_at = silent, now
            for session in self.sessions.values():
                session.touch()

    async def _ask(self, lost: list[str]) -> None:
        """Most nodes are silent, or our own: whether we still lead is asked first, then the nodes have time to be heard."""
        log.warning("%d nodes are silent at once: asking before any of them is taken for lost", len(lost))
        try:
            await self._confirm()
        except SwarmError as err:
            log.warning("whether this manager leads cannot be said, so no node is taken for lost: %s", err)
        self._liveness.ask(asyncio.get_running_loop().time(), self._period_s())

    async def _silent(self, node_id: str) -> None:
        """A node is down. Its session, if one is open, ends: what comes back says hello, or it would stay down for ever."""
        self._liveness.forget(node_id)
        log.warning("node is silent", extra={"node": node_id})
        session = self.sessions.get(node_id)
        if session is not None:
            session.closed = True
            session.touch()
        try:
            await self._change_node(
                node_id,
                lambda n: (
                    n
                    if n.id in self._liveness or n.status.state == NodeState.DOWN  # it may have said goodbye
                    else self._with_state(n, NodeState.DOWN, assignments.SILENT)
                ),
            )
        except NotFound:
            pass  # removed meanwhile
        except SwarmError as err:
            log.warning("cannot mark a silent node down yet: %s", err, extra={"node": node_id})
            self._liveness.wait_for(node_id, asyncio.get_running_loop().time())

    async def _register(self, node_id: str, hello: Hello, peer: str) -> None:
        addr = hello.data_addr or peer

        def change(node: Node) -> Node:
            known = self._store.feature_level >= features.NODE_LEVELS
            return msgspec.structs.replace(
                node,
                description=self._writable(hello.description),
                data_addr=addr,
                manager_addr=hello.manager_addr or node.manager_addr,
                rpc_addr=hello.rpc_addr or node.rpc_addr,
                feature_level=hello.feature_level if known else 0,
                status=NodeStatus(state=NodeState.READY, addr=addr),
            )

        await self._change_node(node_id, change)
        self._fence.registered(node_id)

    def _writable(self, description: NodeDescription) -> NodeDescription:
        """As much of it as the cluster's level lets us write."""
        level = self._store.feature_level
        if level < features.HOST_FACTS:
            description = msgspec.structs.replace(
                description, held_ports=(), trouble="", manager_trouble="", subnets=(), addresses=()
            )
        if level < features.ORCHESTRATION:
            description = msgspec.structs.replace(description, generic=(), volumes=())
        return description

    def _described(self, description: NodeDescription, node: Node) -> Node:
        return msgspec.structs.replace(node, description=self._writable(description))

    async def _write_descriptions(self) -> None:
        """Nodes described themselves before their records could hold all of it."""
        while True:
            await self._level_news.wait()
            self._level_news.clear()
            for session in list(self.sessions.values()):
                try:
                    await self._change_node(
                        session.node_id, functools.partial(self._described, session.description)
                    )
                except NotFound:
                    continue  # removed meanwhile
                except SwarmError as err:
                    log.info("descriptions are not written yet: %s", err)
                    await asyncio.sleep(RETRY_S)
                    self._level_news.set()
                    break

    def _with_state(self, node: Node, state: NodeState, message: str) -> Node:
        since = 0
        if state == NodeState.DOWN and self._store.feature_level >= features.ORCHESTRATION:
            since = node.status.since or self._store.now
        status = msgspec.structs.replace(node.status, state=state, message=message, since=since)
        return msgspec.structs.replace(node, status=status)

    async def _set_state(self, node_id: str, state: NodeState, message: str) -> None:
        await self._change_node(node_id, lambda n: self._with_state(n, state, message))

    async def _change_node(self, node_id: str, change: Callable[[Node], Node]) -> None:
        """Read, change, write, until the version fits. NotFound when the node was removed.

        One after the other for each node: who finds nothing to change must not have looked past a write on its way.
        """
        async with self._turns[node_id]:
            while True:
                node = self._store.nodes.get(node_id)
                if node is None:
                    raise NotFound(f"node {node_id} not found")
                changed = change(node)
                if changed == node:
                    return
                result = await self._propose((Group(f"node/{node_id}", (Put(changed, node.version),)),))
                if result.accepted[0]:
                    return


def _network_sees_task(change: Change) -> bool:
    """Whether addresses or readiness changed, of a task that has any."""
    old, new = change.old, change.new
    if old is not None and new is not None:
        return bool(new.node_address or new.networks) and (
            assignments.ready(old) != assignments.ready(new)
            or old.status.state.terminal != new.status.state.terminal
            or old.node_id != new.node_id
        )
    row: Task = change.row
    return bool(row.node_address or row.networks)


def _network_sees_service(change: Change) -> bool:
    old, new = change.old, change.new
    if old is None or new is None:
        return bool(change.row.endpoint)
    return bool(old.endpoint != new.endpoint or old.revision_id != new.revision_id)


def _network_sees_node(change: Change) -> bool:
    old, new = change.old, change.new
    return old is None or new is None or _shown(old) != _shown(new)


def _shown(node: Node) -> tuple[object, ...]:
    """What of a node the network shows: where it is, what it is reached by, and whether its tasks are kept although others are to replace
    them."""
    away = node.status.state == NodeState.DOWN
    kept = (away, away and node.status.fenced, away and node.status.message)
    return (node.number, node.data_addr, network_view.addresses((node,)), kept)
