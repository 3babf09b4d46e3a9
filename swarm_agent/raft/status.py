"""What a member tells about itself, and what it needs from its owner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from swarm_agent.raft.core.conf import Member


class PeerProgress(msgspec.Struct, frozen=True):
    raft_id: int
    match: int
    flow: str  # probe, replicate or snapshot
    active: bool  # heard of within an election timeout


class RaftStatus(msgspec.Struct, frozen=True, kw_only=True):
    raft_id: int
    role: str  # follower, pre-candidate, candidate or leader; "stopped" once the member has ended
    term: int
    leader: Member | None
    commit: int
    applied: int
    last_index: int
    snapshot_index: int
    members: tuple[Member, ...]  # as of ``applied``
    peers: tuple[PeerProgress, ...]  # only the leader knows
    removed: bool  # this member was removed for good: stop, and wipe the directory before joining anew
    missed_ticks: (
        int  # ticks that came late or never since the start: above zero the loop or the host is overloaded
    )
    failure: str  # why the member ended by itself, "" if it did not


class StateMachine(Protocol):
    """What is replicated. Deterministic: no clock, no chance, no environment. An exception stops the member."""

    def apply(self, index: int, term: int, data: bytes) -> object:
        """The result goes to the proposer, if it is here."""
        ...

    def snapshot(self) -> Iterable[bytes]:
        """A view, consistent at the last applied index, that gives the state's bytes in pieces of about 1 MiB.

        Called on the loop, so quick: no copy of more than references. The pieces may be iterated more than once, and in
        another thread while ``apply`` goes on.
        """
        ...

    def restore(self, index: int, pieces: Iterable[bytes]) -> None:
        """Replace everything. ``pieces`` are the bytes of a ``snapshot``, not necessarily cut where that cut them."""
        ...
