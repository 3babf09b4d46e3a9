"""How every struct of the vocabulary is declared.

A field that Docker leaves out while it is empty defaults to ``None``; a field Docker always shows is declared with
:func:`always`, whose value msgspec encodes even when it is the default.

None of them is tracked by the garbage collector (``gc=False``): frozen values made from bytes form no cycles, and a hundred thousand
tasks need not be walked over and over.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="pascal", gc=False):
    """Part of Docker's API: JSON keys are the Pascal-case field names unless a field says otherwise."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", gc=False):
    """A row of the replicated store. ``version`` is the Raft index of its last write, 0 before it is stored."""

    id: str
    version: int = 0
    created_at: int = 0
    updated_at: int = 0


def always(value: Any, name: str | None = None) -> Any:
    """A field with a default that is encoded all the same."""
    return msgspec.field(default_factory=lambda: value, name=name)


def always_map() -> Any:
    """An always-encoded map, a fresh one each time."""
    return msgspec.field(default_factory=lambda: {})  # noqa: PIE807 - `dict` itself would be left out when empty
