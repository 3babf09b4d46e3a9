"""The daemon for tests of the API: one manager, a store written at once, and what a test wants of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import msgspec

from swarm_agent.agent.engine_client import Answer, EngineClient
from swarm_agent.api.backend import ManagerHealth, RemoteManager
from swarm_agent.api.events import ClusterEvents
from swarm_agent.api.router import Api
from swarm_agent.ca import ca
from swarm_agent.ca.tokens import new_tokens
from swarm_agent.ca.unlock import InvalidUnlockKey
from swarm_agent.control.controllers import Controllers
from swarm_agent.http.server import HttpServer
from swarm_agent.objects import defaults, features
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import Cluster, Node, NodeDescription, NodeStatus, Task, TaskStatus
from swarm_agent.objects.specs import ClusterSpec, InitRequest, JoinRequest, NodeSpec, RecoverOptions
from swarm_agent.rpc.messages import ForwardedAnswer, ForwardedCall, LogPiece
from swarm_agent.store import ApplyResult, Group, Put, Store, StoreEntry, encode_entry
from tests.unit.api.engine_double import EngineDouble, engine_double

ROOT = ca.make_root()
NODE_ID = "a" * 25


def replace(row: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(row, **changes)


class BackendDouble:
    """``before_write`` runs once before the next write, as somebody faster would."""

    def __init__(self, engine: EngineClient) -> None:
        self.engine = engine
        self.state, self.error, self.role = "active", "", "manager"
        self.node_id, self.node_addr = NODE_ID, "10.0.0.1"
        self.is_manager = self.is_leader = True
        self.store = Store()
        self.events = ClusterEvents(self.store, self.now)
        self.before_write: Callable[[], None] | None = None
        self.quorum = True
        self.own_ports: dict[tuple[str, int], str] = {("tcp", 7946): "Raft between managers"}
        self.pieces: list[LogPiece] = []
        self.asked_logs: dict[str, str] = {}
        self.called: list[Any] = []
        self.unlock_key = b"k" * 32
        self.leader: Callable[[ForwardedCall], AsyncIterator[ForwardedAnswer]] | None = None
        self._controllers: Controllers | None = None
        self._ids = itertools.count(1)
        self._reserved: set[str] = set()
        cluster = Cluster(
            feature_level=features.LEVEL,
            id="c" * 25,
            spec=defaults.cluster_defaults(ClusterSpec()),
            root_ca=ROOT,
            join_tokens=new_tokens(ROOT.digest),
        )
        self.put(cluster)
        self.put(a_node(NODE_ID, "host1", role="manager", manager_addr="10.0.0.1:2377"))

    def put(self, *rows: Any) -> None:
        groups = tuple(
            Group("", (Put(row, getattr(self.store.tables[type(row)].get(row.id), "version", 0)),))
            for row in rows
        )
        assert all(
            self.store.apply(self.store.index + 1, 1, encode_entry(StoreEntry(self.now(), groups))).accepted
        )

    @property
    def controllers(self) -> Controllers:
        """As the leader's would be: its books complete. :meth:`settle` lets them decide."""
        if self._controllers is None:
            self._controllers = Controllers(self.store, self.new_id)
            self._controllers.usage.book(1 << 30)
            self.store.watch(lambda index, changes: self.controllers.changed(changes))
        return self._controllers

    def settle(self) -> None:
        """Have the controllers decide until they are done; nodes do what they are told."""
        while True:
            while groups := self.controllers.run(self.now()):
                self.store.apply(self.store.index + 1, 1, encode_entry(StoreEntry(self.now(), groups)))
            told = [t for t in self.store.tasks.all() if t.node_id and t.status.state < t.desired_state]
            if not told:
                return
            for task in told:
                state = min(task.desired_state, TaskState.SHUTDOWN)
                status = TaskStatus(state=state, timestamp=self.now(), started_at=self.now())
                self.put(msgspec.structs.replace(task, status=status))

    # --- Backend -------------------------------------------------------------------------------------------------
    def remote_managers(self) -> list[RemoteManager]:
        return [RemoteManager(NODE_ID, "10.0.0.1:2377")] if self.state == "active" else []

    def manager_health(self) -> dict[str, ManagerHealth]:
        return {NODE_ID: ManagerHealth(leader=True, reachable=True)}

    async def init(self, request: InitRequest) -> str:
        self.called.append(request)
        return NODE_ID

    async def backup(self, key: bytes) -> Iterator[bytes]:
        self.called.append(("backup", key))
        return iter((b"SWARM", b"BAK"))

    async def recover(self, options: RecoverOptions, data: bytes, key: bytes) -> str:
        self.called.append((options, data, key))
        return NODE_ID

    async def force_new_cluster(self, request: InitRequest) -> str:
        self.called.append(request)
        return NODE_ID

    async def join(self, request: JoinRequest) -> None:
        self.called.append(request)

    async def leave(self, *, force: bool) -> None:
        self.called.append(("leave", force))

    async def unlock(self, unlock_key: bytes) -> None:
        self.called.append(("unlock", unlock_key))
        if unlock_key != self.unlock_key:
            raise InvalidUnlockKey

    def secret_bits(self, count: int) -> int:
        return secrets.randbits(count)

    async def propose(self, groups: tuple[Group, ...]) -> ApplyResult:
        if self.before_write is not None:
            rival, self.before_write = self.before_write, None
            rival()
        return self.store.apply(self.store.index + 1, 1, encode_entry(StoreEntry(self.now(), groups)))

    async def read_barrier(self) -> None:
        self.called.append("barrier")

    @contextlib.contextmanager
    def reserve(self, *names: str) -> Iterator[None]:
        assert not self._reserved & set(names)
        self._reserved.update(names)
        try:
            yield
        finally:
            self._reserved.difference_update(names)

    def forward(self, call: ForwardedCall) -> AsyncIterator[ForwardedAnswer]:
        assert self.leader is not None
        return self.leader(call)

    async def logs(self, tasks: list[Task], query: dict[str, str]) -> AsyncIterator[LogPiece]:
        self.asked_logs = query
        ids = {t.id for t in tasks}
        for piece in self.pieces:
            if piece.task_id in ids:
                yield piece

    def may_lose(self, node_id: str) -> bool:
        return self.quorum

    def new_id(self) -> str:
        return f"{next(self._ids):025d}"

    def now(self) -> int:
        return 1_700_000_000_000_000_000 + self.store.index


def a_node(id_: str, hostname: str, **more: Any) -> Node:
    fields: dict[str, Any] = {
        "spec": NodeSpec(role=more.get("role", "worker")),
        "description": NodeDescription(
            hostname=hostname, architecture="x86_64", os="linux", nano_cpus=2 * 10**9, memory_bytes=1 << 30, engine_version="20.10.24"
        ),
        "status": NodeStatus(state=NodeState.READY, addr="10.0.0.1"),
        **more,
    }  # fmt: skip
    return Node(id=id_, **fields)


class House:
    """The API on its socket, the engine behind it, and a client."""

    def __init__(self, backend: BackendDouble, engine: EngineDouble, client: EngineClient, path: str) -> None:
        self.backend = backend
        self.engine = engine
        self.client = client
        self.path = path

    async def ask(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        """Status and decoded answer."""
        answer: Answer = await self.client._exchange(method, path, body, more.get("headers", {}))
        headers = {k.lower(): v for k, v in answer.headers}
        if headers.get(b"content-type") == b"application/json" and answer.body:
            return answer.status, answer.json()
        return answer.status, answer.body

    async def get(self, path: str) -> Any:
        status, answer = await self.ask("GET", path)
        assert status == 200, answer
        return answer

    async def refusal(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        status, answer = await self.ask(method, path, body)
        assert status >= 400, answer
        return status, answer["message"]


async def _run(folder: Any, story: Callable[[House], Awaitable[None]]) -> None:
    async with engine_double(str(folder / "engine.sock")) as engine:
        backend = BackendDouble(EngineClient(str(folder / "engine.sock")))
        server = HttpServer(Api(backend, lambda: backend.events).handle)
        path = str(folder / "agent.sock")
        await server.start_unix(path)
        client = EngineClient(path)
        try:
            await story(House(backend, engine, client, path))
        finally:
            await client.close()
            await backend.engine.close()
            await server.stop()


def play(folder: Any, story: Callable[[House], Awaitable[None]]) -> None:
    asyncio.run(_run(folder, story))
