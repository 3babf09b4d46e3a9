"""What the API asks of the daemon behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from swarm_agent.agent.engine_client import EngineClient
from swarm_agent.control.controllers import Controllers
from swarm_agent.objects.ports import PortKey
from swarm_agent.objects.records import Task
from swarm_agent.objects.specs import InitRequest, JoinRequest, RecoverOptions
from swarm_agent.rpc.messages import ForwardedAnswer, ForwardedCall, LogPiece
from swarm_agent.store import ApplyResult, Group, Store


class RemoteManager(NamedTuple):
    node_id: str
    addr: str  # join server, ip:port


class ManagerHealth(NamedTuple):
    """A manager as Raft sees it."""

    leader: bool
    reachable: bool


class Backend(Protocol):
    """Implemented by the daemon; by a small fake in tests."""

    engine: EngineClient

    # --- this node -------------------------------------------------------------------------------------------------
    @property
    def state(self) -> str:
        """inactive, pending, active, error or locked."""

    @property
    def error(self) -> str: ...
    @property
    def node_id(self) -> str: ...
    @property
    def node_addr(self) -> str: ...
    @property
    def role(self) -> str:
        """manager or worker, as the node's certificate says; a manager may still be unable to serve."""

    @property
    def is_manager(self) -> bool: ...
    @property
    def is_leader(self) -> bool: ...
    def remote_managers(self) -> list[RemoteManager]: ...
    def manager_health(self) -> dict[str, ManagerHealth]:
        """By node id; managers only."""

    @property
    def own_ports(self) -> Mapping[PortKey, str]:
        """What the swarm itself uses on its hosts, and what for."""

    # --- membership --------------------------------------------------------------------------------------------------
    async def init(self, request: InitRequest) -> str: ...
    async def force_new_cluster(self, request: InitRequest) -> str:
        """Go on as the only manager of the swarm this node is a manager of; the node's id."""

    async def backup(self, key: bytes) -> Iterator[bytes]:
        """The pieces of an archive of the state as it is now."""

    async def recover(self, options: RecoverOptions, data: bytes, key: bytes) -> str:
        """Begin a cluster from an archive, with this host as its only manager; its node id."""

    async def join(self, request: JoinRequest) -> None: ...
    async def leave(self, *, force: bool) -> None: ...
    async def unlock(self, unlock_key: bytes) -> None:
        """Become the manager we were; errors leave it locked. Only in state ``locked``."""

    def secret_bits(self, count: int) -> int:
        """For tokens and keys."""

    # --- the cluster's state -----------------------------------------------------------------------------------------
    @property
    def store(self) -> Store: ...
    @property
    def controllers(self) -> Controllers:
        """The leader's; NotLeading elsewhere."""

    async def propose(self, groups: tuple[Group, ...]) -> ApplyResult: ...
    async def read_barrier(self) -> None: ...
    def reserve(self, *names: str) -> AbstractContextManager[None]:
        """Hold names while a write that makes them unique is on its way; AlreadyExists when one is held."""

    def forward(self, call: ForwardedCall) -> AsyncIterator[ForwardedAnswer]:
        """Have the leader answer; the first piece is the head."""

    def logs(self, tasks: list[Task], query: dict[str, str]) -> AsyncIterator[LogPiece]: ...
    def may_lose(self, node_id: str) -> bool:
        """Whether Raft keeps its quorum without this manager."""

    def new_id(self) -> str: ...
    def now(self) -> int: ...
