"""Snapshots: all rows at one moment as a stream of bytes, and back.

Up to feature level 1 a snapshot is what the first release wrote, one msgpack array, so that it can be given back to that release
or sent to a manager that still runs it. From level 2 on it is a head and frames: ``0xC1`` (no msgpack document begins so), the
number of the format, then frames of a four-byte length and that much msgpack. The first frame is a :class:`SnapshotHeader`, each
following one a list of rows; the head says how many rows there are, so that one that was cut off is told from a
whole one. Where the stream is cut into pieces means nothing: whoever carries it may cut it anew.

Refuses to know how snapshots are stored or sent (``raft``) and what a row means (``Store``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from swarm_agent.objects import features
from swarm_agent.objects.base import Record
from swarm_agent.objects.records import AnyRecord, Cluster, Config, Content, Node, Secret, Task

MARK = b"\xc1"
FORMAT = 2  # the first release wrote no mark and no number
PIECE_BYTES = 1 << 20  # a piece ends with the frame that brings it here

_LENGTH = 4
_PER_FRAME: dict[type[Record], int] = {Task: 256, Node: 128, Config: 1, Content: 1, Secret: 1, Cluster: 1}
_PER_FRAME_OTHERS = 32  # rows an encoder is given at once: it holds the interpreter's lock for as long


class DamagedSnapshot(ValueError):
    """These bytes are no snapshot this release can read. Nothing was changed by reading them."""


class NewerFormat(DamagedSnapshot):
    """A later release wrote it."""


class SnapshotHeader(msgspec.Struct, frozen=True):
    """What a snapshot says of itself before its rows; later fields have defaults, so that older snapshots read."""

    index: int
    now: int
    rows: int
    level: int = features.FIRST  # the cluster's: who knows less need not try to read on


class FirstFormat(msgspec.Struct, array_like=True):
    """The first release's snapshot: one msgpack array."""

    index: int
    rows: list[AnyRecord]
    now: int = 0


class SnapshotView:
    """Rows as they were when it was made. Iterate it as often as needed, in any thread: rows never change."""

    def __init__(self, index: int, now: int, level: int, tables: Iterable[Sequence[AnyRecord]]) -> None:
        self._tables = tuple(tables)
        self._head = SnapshotHeader(index, now, sum(map(len, self._tables)), level)

    def __iter__(self) -> Iterator[bytes]:
        parts = self._frames() if self._head.level >= features.SNAPSHOT_FRAMES else self._one_array()
        piece = bytearray()
        for part in parts:
            piece += part
            if len(piece) >= PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
        if piece:
            yield bytes(piece)

    def _rows(self) -> Iterator[Sequence[AnyRecord]]:
        """Some rows at a time."""
        for rows in self._tables:
            step = _PER_FRAME.get(type(rows[0]), _PER_FRAME_OTHERS) if rows else 1
            for start in range(0, len(rows), step):
                yield rows[start : start + step]

    def _frames(self) -> Iterator[bytes]:
        encode = msgspec.msgpack.Encoder().encode
        yield MARK + bytes([FORMAT]) + _frame(encode(self._head))
        for rows in self._rows():
            yield _frame(encode(rows))

    def _one_array(self) -> Iterator[bytes]:
        """:class:`FirstFormat`, written some rows at a time."""
        encode = msgspec.msgpack.Encoder().encode
        yield b"\x93" + encode(self._head.index) + _array_head(self._head.rows)
        for rows in self._rows():
            yield encode(rows)[len(_array_head(len(rows))) :]
        yield encode(self._head.now)


def _frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(_LENGTH, "big") + payload


def _array_head(length: int) -> bytes:
    """How msgpack begins an array of so many elements."""
    if length < 16:
        return bytes([0x90 | length])
    if length < 1 << 16:
        return b"\xdc" + length.to_bytes(2, "big")
    return b"\xdd" + length.to_bytes(4, "big")


def read_snapshot(pieces: Iterable[bytes]) -> tuple[SnapshotHeader, Iterator[list[AnyRecord]]]:
    """The head, and the rows in lists, decoded as they are asked for.

    Raises:
        DamagedSnapshot: also while the rows are iterated; so use none of them before all were had.
    """
    stream = _Stream(pieces)
    try:
        if stream.peek() != MARK:
            found = msgspec.msgpack.decode(stream.rest(), type=FirstFormat)
            return SnapshotHeader(found.index, found.now, len(found.rows)), iter([found.rows])
        number = stream.take(2)[1]
        if number != FORMAT:
            raise NewerFormat(f"the snapshot has format {number}, this release reads 1 and {FORMAT}")
        head = msgspec.msgpack.decode(stream.frame(), type=SnapshotHeader)
    except msgspec.DecodeError as err:
        raise DamagedSnapshot(f"the snapshot cannot be read: {err}") from err
    return head, _rows(stream, head.rows)


def _rows(stream: _Stream, left: int) -> Iterator[list[AnyRecord]]:
    decoder = msgspec.msgpack.Decoder(list[AnyRecord])
    while left > 0:
        try:
            rows = decoder.decode(stream.frame())
        except msgspec.DecodeError as err:
            raise DamagedSnapshot(f"a row of the snapshot cannot be read: {err}") from err
        left -= len(rows)
        yield rows
    if left or stream.peek():
        raise DamagedSnapshot("the snapshot holds more than its head says")


class _Stream:
    """Bytes in the amounts that are asked for, whatever the pieces they come in."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._piece = b""
        self._at = 0

    def peek(self) -> bytes:
        """The next byte; empty at the end."""
        while self._at == len(self._piece):
            following = next(self._pieces, None)
            if following is None:
                return b""
            self._piece, self._at = following, 0
        return self._piece[self._at : self._at + 1]

    def take(self, count: int) -> bytes:
        parts = []
        while count:
            if not self.peek():
                raise DamagedSnapshot("the snapshot ends too early")
            part = self._piece[self._at : self._at + count]
            parts.append(part)
            self._at += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def frame(self) -> bytes:
        return self.take(int.from_bytes(self.take(_LENGTH), "big"))

    def rest(self) -> bytes:
        return b"".join((self._piece[self._at :], *self._pieces))
