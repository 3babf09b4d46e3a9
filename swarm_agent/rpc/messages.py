"""Every message that crosses between daemons. msgpack of tagged structs; unknown fields are ignored, so both ends may age."""

from __future__ import annotations

from typing import Any

import msgspec

from swarm_agent.ca.join_server import Issued, IssueRequest, ManagerAddress
from swarm_agent.network.model import NetworkView
from swarm_agent.objects import features
from swarm_agent.objects.records import Node, NodeDescription, Revision, Task, TaskStatus

BEATS_A_PERIOD = 5  # of a node, in each heartbeat period


# --- what a node is given ------------------------------------------------------------------------------------------------
class Assignment(msgspec.Struct, frozen=True):
    """A task this node is to run, with what it needs for it."""

    task: Task
    revision: Revision
    registry_auth: str = ""


class Piece(msgspec.Struct, frozen=True):
    """One version of a secret or config on its way to a node."""

    id: str  # "<owner>.<number>"
    data: bytes
    templated: bool = False

    def __repr__(self) -> str:
        return f"Piece(id={self.id})"


# --- a node's session: one stream, both ways ---------------------------------------------------------------------------
class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First message of a node."""

    description: NodeDescription
    data_addr: str
    manager_addr: str = ""  # managers only: join server
    rpc_addr: str = ""
    feature_level: int = features.FIRST  # the first release does not say


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """Still here; sent five times per heartbeat period, and every second while a lease is wanted."""

    lease: int = 0  # a number to be confirmed with ``Leased``; 0: none is wanted
    answer: bool = False  # ``Heard`` is wanted; only of managers whose ``Welcome`` offers it


class Statuses(msgspec.Struct, frozen=True, tag="statuses"):
    items: tuple[tuple[str, TaskStatus], ...]


class Described(msgspec.Struct, frozen=True, tag="described"):
    """The node's description changed."""

    description: NodeDescription


class Leaving(msgspec.Struct, frozen=True, tag="leaving"):
    """The node goes on purpose: no need to wait for silence."""


class Pausing(msgspec.Struct, frozen=True, tag="pausing"):
    """The node's agent stops to start again: its silence for so long means nothing. Only to managers whose ``Welcome`` offers it."""

    seconds: float


Up = Hello | Beat | Statuses | Described | Leaving | Pausing


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """First message of the manager."""

    session_id: str
    heartbeat_period: int  # nanoseconds
    root: bytes
    answers: bool = False  # it answers beats that ask for it
    pauses: bool = False  # it knows ``Pausing``


class Assignments(msgspec.Struct, frozen=True, tag="assignments"):
    """What the node is to run. ``full``: everything else it has is to go. ``sequence`` counts up by one."""

    sequence: int
    full: bool
    assignments: tuple[Assignment, ...]
    removed: tuple[str, ...] = ()


class Contents(msgspec.Struct, frozen=True, tag="contents"):
    """Secrets and configs the next assignments need, each once while any task of the node needs it. Nodes of level 3 and above."""

    pieces: tuple[Piece, ...]


class Networks(msgspec.Struct, frozen=True, tag="networks"):
    view: NetworkView


class NodeChanged(msgspec.Struct, frozen=True, tag="node"):
    """The node's own record, its desired role among it."""

    node: Node


class Managers(msgspec.Struct, frozen=True, tag="managers"):
    managers: tuple[ManagerAddress, ...]


class LogsWanted(msgspec.Struct, frozen=True, tag="logs"):
    """Open a ``Logs`` stream with this id and send the logs of these tasks' containers."""

    request_id: str
    task_ids: tuple[str, ...]
    query: dict[str, str]


class Leased(msgspec.Struct, frozen=True, tag="leased"):
    """The manager led after it had got the beat of this number. Sent only to whoever asks."""

    number: int


class Heard(msgspec.Struct, frozen=True, tag="heard"):
    """The manager led after it had got a beat. Sent only to whoever asks, and once for all beats of about a second."""


class Silent(msgspec.Struct, frozen=True, tag="silent"):
    """Nodes the manager does not hear now. Nodes of level 4 and above."""

    nodes: tuple[str, ...]


Down = (
    Welcome
    | Assignments
    | Contents
    | Networks
    | NodeChanged
    | Managers
    | LogsWanted
    | Leased
    | Heard
    | Silent
)


# --- logs --------------------------------------------------------------------------------------------------------------
class LogPiece(msgspec.Struct, frozen=True):
    """Bytes of one task's log as its engine streams them; ``done`` closes the task's part."""

    request_id: str
    task_id: str
    data: bytes = b""
    done: bool = False
    error: str = ""


# --- manager to manager ------------------------------------------------------------------------------------------------
class ForwardedCall(msgspec.Struct, frozen=True):
    """An API request a follower received."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class ForwardedAnswer(msgspec.Struct, frozen=True):
    """The head (``status`` set) and pieces of an answer."""

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class JoinRaft(msgspec.Struct, frozen=True):
    """A new manager asks to become a member."""

    raft_id: int
    rpc_addr: str
    manager_addr: str
    feature_level: int = features.FIRST


class Members(msgspec.Struct, frozen=True):
    members: tuple[tuple[int, str, str], ...]  # raft id, node id, rpc address
    cluster_id: str


class Nothing(msgspec.Struct, frozen=True):
    pass


class Renew(msgspec.Struct, frozen=True):
    csr: bytes


class IssueFor(msgspec.Struct, frozen=True):
    """A join request that came in at a follower's join server."""

    request: IssueRequest


class Leave(msgspec.Struct, frozen=True):
    """A node that leaves on purpose; managers are taken out of Raft first."""


TYPES: dict[str, tuple[Any, Any]] = {
    "Session": (Up, Down),
    "Logs": (LogPiece, Nothing),
    "Forward": (ForwardedCall, ForwardedAnswer),
    "JoinRaft": (JoinRaft, Members),
    "Renew": (Renew, Issued),
    "Issue": (IssueFor, Issued),
    "Leave": (Leave, Nothing),
}
