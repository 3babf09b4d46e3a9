"""Agreement: a pure Raft core, a log on disk, and the driver that joins them.

``RaftNode`` is the door; ``docs/design/raft.md`` tells what is kept and how it was shown.
"""

from __future__ import annotations

from swarm_agent.raft.config import RaftConfig, Retention
from swarm_agent.raft.core.conf import Member
from swarm_agent.raft.disk import Disk, RealDisk
from swarm_agent.raft.errors import (
    EntryTooLarge,
    LogCorrupt,
    LogError,
    MembershipRefused,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    Stopped,
    TransferFailed,
    WrongOwner,
)
from swarm_agent.raft.loops import LoopHost, OwnThread, SameLoop, run_on
from swarm_agent.raft.node import RaftNode
from swarm_agent.raft.status import PeerProgress, RaftStatus, StateMachine
from swarm_agent.raft.wire import Transport

__all__ = [
    "Disk",
    "EntryTooLarge",
    "LogCorrupt",
    "LogError",
    "LoopHost",
    "Member",
    "MembershipRefused",
    "NotLeader",
    "OutcomeUnknown",
    "Overloaded",
    "OwnThread",
    "PeerProgress",
    "RaftConfig",
    "RaftNode",
    "RaftStatus",
    "RealDisk",
    "Retention",
    "SameLoop",
    "StateMachine",
    "Stopped",
    "TransferFailed",
    "Transport",
    "WrongOwner",
    "run_on",
]
