"""Optional values that a test knows to be there."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def unwrap(value: T | None) -> T:
    """The value; fails where it is None."""
    assert value is not None
    return value
