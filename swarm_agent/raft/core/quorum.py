"""Majorities: what a set of voters has agreed on."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet


class Vote(enum.Enum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def size(voters: int) -> int:
    """How many of so many voters are a majority."""
    return voters // 2 + 1


def agreed_index(indexes: Iterable[int]) -> int:
    """The highest index that a majority has reached; 0 when nobody votes."""
    ordered = sorted(indexes)
    return ordered[(len(ordered) - 1) // 2] if ordered else 0


def tally(voters: AbstractSet[int], votes: Mapping[int, bool]) -> Vote:
    """Votes of strangers do not count; no voters, no majority."""
    needed = size(len(voters))
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    if voters and granted >= needed:
        return Vote.WON
    if len(voters) - refused < needed:
        return Vote.LOST
    return Vote.PENDING
