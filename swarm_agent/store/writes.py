"""What one entry of the log says: groups of checked writes, each group all or nothing."""

from __future__ import annotations

import msgspec

from swarm_agent.objects.records import AnyRecord, TaskStatus


class UnknownEntry(ValueError):
    """The log holds a kind of write or of record that came with a later release."""


class Put(msgspec.Struct, frozen=True, tag="put", gc=False):
    """Store ``record`` if the stored one has version ``expect`` (0: there must be none)."""

    record: AnyRecord
    expect: int


class Delete(msgspec.Struct, frozen=True, tag="delete", gc=False):
    """Remove a record if its version is ``expect``."""

    kind: str
    id: str
    expect: int


class SetStatus(msgspec.Struct, frozen=True, tag="status", gc=False):
    """Give the task its status if its version is ``expect``: what a ``Put`` of the same task with that status does.

    From feature level 2 on (``objects/features.py``).
    """

    task_id: str
    status: TaskStatus
    expect: int


Write = Put | Delete | SetStatus


class Group(msgspec.Struct, frozen=True, gc=False):
    """Writes that are done together or not at all. ``key`` names whom to wake when it is rejected."""

    key: str
    writes: tuple[Write, ...]


class StoreEntry(msgspec.Struct, frozen=True, gc=False):
    """One log entry. ``now``: the proposer's clock, nanoseconds, stamped on what it writes."""

    now: int
    groups: tuple[Group, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StoreEntry)


def encode_entry(entry: StoreEntry) -> bytes:
    return _encoder.encode(entry)


def decode_entry(data: bytes) -> StoreEntry:
    """UnknownEntry when the bytes are an entry, but not one this release can do."""
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as err:
        raise UnknownEntry(str(err)) from err
