"""The numbers of the core. Times are ticks; what a tick is, the driver decides."""

from __future__ import annotations

from typing import Protocol

import msgspec


class Rng(Protocol):
    """The one thing the core needs from ``random.Random``."""

    def randrange(self, start: int, stop: int, /) -> int: ...


class CoreSettings(msgspec.Struct, frozen=True):
    """See ``RaftConfig`` for units, reasons and ranges: it is what people set, this is derived from it."""

    raft_id: int
    election_ticks: int = 12
    election_ticks_max: int = 20
    heartbeat_ticks: int = 2
    lost_leader_ticks: int = 3
    max_append_bytes: int = 1 << 20
    max_in_flight: int = 128
    max_uncommitted_bytes: int = 64 << 20
    max_handed: int = 512
