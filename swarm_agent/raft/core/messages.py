"""What members say to each other, and what they remember.

Owns the shapes only: entries, hard state, snapshot description and every message, as frozen structs that msgpack
encodes as arrays. Refuses behaviour: who sends what and when is in ``machine`` and ``leading``.

Every message carries ``frm``, ``to`` and ``term``, in this order. A message may be lost, repeated, late or overtaken;
the receiver must survive all four.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from swarm_agent.raft.core.conf import ConfState


class EntryKind(enum.IntEnum):
    DATA = 0  # for the state machine
    NOOP = 1  # a new leader's first entry: committing it commits everything before it
    CONF = 2  # a change of membership


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    index: int
    term: int
    kind: int
    data: bytes


class HardState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What must be on disk before anybody may hear of it. ``commit`` is a hint: it may be stale, never too high."""

    term: int = 0
    vote: int = 0
    commit: int = 0


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot stands for every entry up to and including ``index``; ``conf`` is the membership at that point."""

    index: int
    term: int
    conf: ConfState


class VoteRequest(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """``pre`` asks "would you?" for ``term`` and binds nobody. ``transfer``: the leader itself asked us to run."""

    frm: int
    to: int
    term: int
    last_index: int
    last_term: int
    pre: bool = False
    transfer: bool = False


class VoteReply(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A granted reply carries the term asked for, a refusal the voter's own."""

    frm: int
    to: int
    term: int
    granted: bool
    pre: bool = False


class Append(msgspec.Struct, frozen=True, array_like=True, tag=3):
    frm: int
    to: int
    term: int
    prev_index: int
    prev_term: int
    commit: int
    entries: Sequence[Entry] = ()


class AppendReply(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """``index``: the last entry known equal; when ``rejected``, the ``prev_index`` that did not fit, and the hint says
    where the logs may still agree: the sender's last entry whose term is at most the one asked for."""

    frm: int
    to: int
    term: int
    index: int
    rejected: bool = False
    hint_index: int = 0
    hint_term: int = 0


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """``round`` numbers the leader's read confirmations; the reply returns it."""

    frm: int
    to: int
    term: int
    commit: int
    round: int = 0


class HeartbeatReply(msgspec.Struct, frozen=True, array_like=True, tag=6):
    frm: int
    to: int
    term: int
    round: int = 0


class InstallSnapshot(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Stepped into the receiver's core by its driver once every byte of the snapshot has arrived."""

    frm: int
    to: int
    term: int
    meta: SnapshotMeta


class TimeoutNow(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """The leader hands over: run for election at once, without asking "would you?" first."""

    frm: int
    to: int
    term: int


class ReadRequest(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """A follower asks its leader for an index that is safe to read at."""

    frm: int
    to: int
    term: int
    context: int


class ReadReply(msgspec.Struct, frozen=True, array_like=True, tag=10):
    frm: int
    to: int
    term: int
    context: int
    index: int


class RemovedNotice(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """To a former member: its removal is committed. Ids are never used twice, so this holds for ever."""

    frm: int
    to: int
    term: int


class Knock(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """From a learner that hears no leader: am I still a member? Voters learn the same by asking for votes."""

    frm: int
    to: int
    term: int


Message = (
    VoteRequest
    | VoteReply
    | Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | InstallSnapshot
    | TimeoutNow
    | ReadRequest
    | ReadReply
    | RemovedNotice
    | Knock
)


class ReadState(msgspec.Struct, frozen=True):
    """The read named ``context`` may be answered from any state that has applied ``index``."""

    context: int
    index: int


class Effects(msgspec.Struct, frozen=True):
    """What may be done at once: nothing in here waits for a disk."""

    messages: tuple[Message, ...] = ()
    committed: tuple[Entry, ...] = ()  # durable here, in order, each exactly once
    reads: tuple[ReadState, ...] = ()
    snapshots: tuple[int, ...] = ()  # peers that need a snapshot; the outcome must be reported


class Ready(msgspec.Struct, frozen=True):
    """What must be durable, in this order: snapshot, then hard state and entries; then ``messages`` may leave."""

    hard_state: HardState
    entries: tuple[Entry, ...] = ()
    snapshot: SnapshotMeta | None = None
    messages: tuple[Message, ...] = ()
    must_sync: bool = False
