"""Records: the unit in which log and snapshot files are written and checked.

    magic 2 | type 1 | length 4 | previous crc 4 | crc 4 | payload         little endian

A record is valid by itself (its crc covers everything but itself, seeded with the file's salt) and in its place (it
names the crc of the record before it). The first tells a torn tail from damage: after a torn write nothing valid
follows. The second tells a lost or repeated record. The salt, new for every file, keeps payload bytes that
look like a record from counting as one.

Sealing and opening payloads (encryption) is a ``Codec``; the crc lies outside, so that torn and tampered stay two
different findings.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

_HEAD = struct.Struct("<2sBIII")
MAGIC = b"\xa7R"
HEAD_SIZE = _HEAD.size
MAX_PAYLOAD = 256 << 20


class Codec(Protocol):
    """Turns payloads into what is stored and back. ``where`` is bound to the stored form: file and offset."""

    def seal(self, payload: bytes, where: bytes) -> bytes: ...
    def open(self, stored: bytes, where: bytes) -> bytes: ...
    def stale(self, stored: bytes) -> bool:
        """Whether a file whose first record is stored like this should take no more records."""
        ...


class PlainCodec:
    """Stores payloads as they are."""

    def seal(self, payload: bytes, where: bytes) -> bytes:  # noqa: ARG002
        return payload

    def open(self, stored: bytes, where: bytes) -> bytes:  # noqa: ARG002
        return stored

    def stale(self, stored: bytes) -> bool:  # noqa: ARG002
        return False


class LogRecord(NamedTuple):
    offset: int
    kind: int
    payload: bytes  # as stored
    crc: int
    end: int


def frame(kind: int, stored: bytes, previous: int, salt: int) -> tuple[bytes, int]:
    """The bytes of a record and its crc, which the next record names."""
    crc = _crc(kind, stored, previous, salt)
    return _HEAD.pack(MAGIC, kind, len(stored), previous, crc) + stored, crc


def _crc(kind: int, stored: bytes | memoryview, previous: int, salt: int) -> int:
    return zlib.crc32(stored, zlib.crc32(struct.pack("<BII", kind, len(stored), previous), salt))


def record_at(data: memoryview, offset: int, salt: int) -> LogRecord | None:
    """The record that begins at ``offset``, if what is there is valid by itself."""
    if len(data) - offset < HEAD_SIZE:
        return None
    magic, kind, length, previous, crc = _HEAD.unpack_from(data, offset)
    end = offset + HEAD_SIZE + length
    if magic != MAGIC or length > MAX_PAYLOAD or end > len(data):
        return None
    payload = data[offset + HEAD_SIZE : end]
    if _crc(kind, payload, previous, salt) != crc:
        return None
    return LogRecord(offset, kind, bytes(payload), crc, end)


def previous_of(data: memoryview, offset: int) -> int:
    return int(_HEAD.unpack_from(data, offset)[3])


def scan(data: bytes, offset: int, previous: int, salt: int) -> Iterator[LogRecord]:
    """Records from ``offset`` on, until the first that is not valid in its place."""
    view = memoryview(data)
    while True:
        record = record_at(view, offset, salt)
        if record is None or previous_of(view, offset) != previous:
            return
        yield record
        offset, previous = record.end, record.crc


def anything_valid_after(data: bytes, offset: int, salt: int) -> int | None:
    """Where the first valid record at or after ``offset`` begins, if there is one: then what is before it was once durable and
    is damaged, for records are synced one by one."""
    view = memoryview(data)
    while (offset := data.find(MAGIC, offset)) >= 0:
        if record_at(view, offset, salt) is not None:
            return offset
        offset += 1
    return None
