"""Raft as a pure function of messages and ticks. No sockets, no disks, no clocks, no chance of its own."""

from __future__ import annotations

from swarm_agent.raft.core.conf import ConfChange, ConfState, Member
from swarm_agent.raft.core.entries import Divergence, EntryLog
from swarm_agent.raft.core.machine import Core, IllegalMove, Role
from swarm_agent.raft.core.messages import (
    Append,
    AppendReply,
    Effects,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Knock,
    Message,
    ReadReply,
    ReadRequest,
    ReadState,
    Ready,
    RemovedNotice,
    SnapshotMeta,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from swarm_agent.raft.core.settings import CoreSettings, Rng

__all__ = [
    "Append",
    "AppendReply",
    "ConfChange",
    "ConfState",
    "Core",
    "CoreSettings",
    "Divergence",
    "Effects",
    "Entry",
    "EntryKind",
    "EntryLog",
    "HardState",
    "Heartbeat",
    "HeartbeatReply",
    "IllegalMove",
    "InstallSnapshot",
    "Knock",
    "Member",
    "Message",
    "ReadReply",
    "ReadRequest",
    "ReadState",
    "Ready",
    "RemovedNotice",
    "Rng",
    "Role",
    "SnapshotMeta",
    "TimeoutNow",
    "VoteReply",
    "VoteRequest",
]
