"""Who is a member, and how one change makes the next membership.

Pure values. One change at a time: every two neighbouring memberships share a member in any two of their majorities,
which is what makes joint consensus unnecessary. Raft ids are never used twice.
"""

from __future__ import annotations

import msgspec


class Member(msgspec.Struct, frozen=True):
    raft_id: int
    node_id: str
    addr: str
    learner: bool = False


class ConfChange(msgspec.Struct, frozen=True, array_like=True):
    """Set ``member`` as it stands here (add, promote, demote, new address), or remove it."""

    member: Member
    remove: bool = False


class ConfState(msgspec.Struct, frozen=True):
    """The membership after some prefix of the log. ``removed`` is kept so that former members can be told."""

    members: tuple[Member, ...] = ()
    removed: tuple[Member, ...] = ()

    def get(self, raft_id: int) -> Member | None:
        for member in self.members:
            if member.raft_id == raft_id:
                return member
        return None

    def voters(self) -> frozenset[int]:
        return frozenset(m.raft_id for m in self.members if not m.learner)

    def removed_ids(self) -> frozenset[int]:
        return frozenset(m.raft_id for m in self.removed)

    def apply(self, change: ConfChange) -> ConfState:
        """The next membership. A change that cannot be (back from removed, last voter out) leaves it as it is, on every
        member alike, so that a log can never hold an entry that stops the cluster."""
        raft_id = change.member.raft_id
        others = tuple(m for m in self.members if m.raft_id != raft_id)
        if change.remove:
            if len(others) == len(self.members):
                return self
            gone = self.get(raft_id) or change.member
            after = ConfState(others, (*self.removed, gone))
        elif raft_id in self.removed_ids():
            return self
        else:
            members = sorted((*others, change.member), key=lambda m: m.raft_id)
            after = ConfState(tuple(members), self.removed)
        return after if after.voters() else self


def encode_change(change: ConfChange) -> bytes:
    return msgspec.msgpack.encode(change)


def decode_change(data: bytes) -> ConfChange:
    return msgspec.msgpack.decode(data, type=ConfChange)
