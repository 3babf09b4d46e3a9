"""What can be set about a member, and why it is what it is."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.raft.core.settings import CoreSettings


class Retention(NamedTuple):
    """What may be changed while a member runs."""

    snapshot_interval: int
    """Entries between snapshots."""

    keep_entries: int
    """Entries kept behind a snapshot."""

    old_snapshots: int
    """Snapshot files kept beside the newest, for people; the next rotation of the data key takes them away."""


class RaftConfig(msgspec.Struct, frozen=True, kw_only=True):
    cluster_id: str
    """Written into every file and frame; frames and files of another cluster are refused."""

    raft_id: int
    """Positive, never used twice in the life of a cluster, not even by the same host."""

    node_id: str
    addr: str
    """Where peers reach this member; what it is, the transport knows."""

    tick_s: float = 0.05
    """Seconds, 0.001 to 10. The unit of all the times below. 50 ms is far above the scheduling noise of a loaded host."""

    heartbeat_ticks: int = 4
    """Ticks between heartbeats, 1 to ``election_ticks`` - 1. Two in a row may be lost before anybody asks
    for votes. More often costs CPU all day: an idle leader of three takes 1.9 % of a core at 2 ticks, 1.4 % at 4."""

    election_ticks: int = 12
    """Least ticks of silence before a follower asks for votes, and the leader's lease: 0.6 s. Lower: a stalled disk or a
    long garbage collection unseats leaders. Higher: longer without a leader after a crash."""

    election_ticks_max: int = 20
    """Most ticks of silence; the spread to ``election_ticks`` keeps candidates apart. At least 1 above it."""

    lost_leader_ticks: int = 3
    """Most ticks to wait after the leader's connection was reset, 0 up: a reset means a dead process far more
    often than not, and asking first (pre-vote) makes a wrong guess harmless."""

    max_entry_bytes: int = 1536 << 10
    """Bytes of one proposal. An append with one entry must stay below the transport's frame limit (4 MiB)."""

    max_append_bytes: int = 1 << 20
    """Bytes of entries in one append (one entry always fits). Larger ones hold up heartbeats behind them."""

    max_in_flight: int = 128
    """Appends on the way to one peer before it must answer. With 1 MiB each, bounds the memory a slow peer costs."""

    max_uncommitted_bytes: int = 64 << 20
    """Bytes proposed and not committed; more are refused with ``Overloaded``. Bounds memory when followers are gone."""

    snapshot_interval: int = 10_000
    """Entries between snapshots (Docker's default). Lower: more serialising. Higher: more log to replay at start."""

    snapshot_bytes: int = 64 << 20
    """Bytes of entries that bring a snapshot forward, so that large entries do not pile up in memory."""

    keep_entries: int = 500
    """Entries kept behind a snapshot (Docker's default), for followers that lag a little."""

    keep_bytes: int = 16 << 20
    """Most bytes kept behind a snapshot, whatever ``keep_entries`` says."""

    chunk_bytes: int = 1 << 20
    """Bytes of a snapshot in one frame."""

    chunk_timeout_s: float = 1.0
    """Seconds to wait for a chunk's receipt before sending it again."""

    chunk_attempts: int = 5
    """Times a chunk is sent before the transfer counts as failed."""

    segment_bytes: int = 16 << 20
    """Bytes after which a log segment is closed. Old entries go a whole segment at a time."""

    drain_s: float = 1.0
    """Seconds that ``stop`` waits for accepted proposals."""

    def __post_init__(self) -> None:
        if not self.cluster_id or not self.node_id:
            raise InvalidSpec("cluster_id and node_id must not be empty", "cluster_id")
        if self.raft_id <= 0:
            raise InvalidSpec("raft_id must be positive", "raft_id")
        if not 0.001 <= self.tick_s <= 10:
            raise InvalidSpec("tick_s must lie between 0.001 and 10", "tick_s")
        if not 1 <= self.heartbeat_ticks < self.election_ticks:
            raise InvalidSpec(
                "heartbeat_ticks must be at least 1 and below election_ticks", "heartbeat_ticks"
            )
        if self.election_ticks_max <= self.election_ticks:
            raise InvalidSpec("election_ticks_max must be above election_ticks", "election_ticks_max")
        for name in (
            "max_entry_bytes",
            "max_append_bytes",
            "max_in_flight",
            "max_uncommitted_bytes",
            "snapshot_interval",
            "snapshot_bytes",
            "chunk_bytes",
            "chunk_attempts",
            "segment_bytes",
        ):
            if getattr(self, name) <= 0:
                raise InvalidSpec(f"{name} must be positive", name)

    @property
    def retention(self) -> Retention:
        return Retention(self.snapshot_interval, self.keep_entries, 0)

    def timed(self, preset: str) -> RaftConfig:
        """With the times of a preset: ``lan`` or ``wan``."""
        times: Any = _TIMINGS[preset]
        return msgspec.structs.replace(self, **times)

    def core(self) -> CoreSettings:
        return CoreSettings(
            raft_id=self.raft_id,
            election_ticks=self.election_ticks,
            election_ticks_max=self.election_ticks_max,
            heartbeat_ticks=self.heartbeat_ticks,
            lost_leader_ticks=self.lost_leader_ticks,
            max_append_bytes=self.max_append_bytes,
            max_in_flight=self.max_in_flight,
            max_uncommitted_bytes=self.max_uncommitted_bytes,
        )


_TIMINGS: dict[str, dict[str, int | float]] = {
    "lan": {},
    "wan": {
        "tick_s": 0.1,
        "heartbeat_ticks": 5,
        "election_ticks": 25,
        "election_ticks_max": 45,
        "chunk_timeout_s": 5.0,
    },
}
"""Presets. ``lan`` is what the fields say by themselves. ``wan`` waits 2.5 to 4.5 s for a leader: ten round trips of 250 ms."""
