"""What one entry of the log says: groups of checked writes, each group all or nothing."""

from __future__ import annotations

import msgspec

from swarm_agent.objects.records import AnyRecord


class Put(msgspec.Struct, frozen=True, tag="put"):
    """Store ``record`` if the stored one has version ``expect`` (0: there must be none)."""

    record: AnyRecord
    expect: int


class Delete(msgspec.Struct, frozen=True, tag="delete"):
    """Remove a record if its version is ``expect``."""

    kind: str
    id: str
    expect: int


class Group(msgspec.Struct, frozen=True):
    """Writes that are done together or not at all. ``key`` names whom to wake when it is rejected."""

    key: str
    writes: tuple[Put | Delete, ...]


class Entry(msgspec.Struct, frozen=True):
    """One log entry. ``now``: the proposer's clock, nanoseconds, stamped on what it writes."""

    now: int
    groups: tuple[Group, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def encode_entry(entry: Entry) -> bytes:
    return _encoder.encode(entry)


def decode_entry(data: bytes) -> Entry:
    return _decoder.decode(data)
