"""The log on disk: hard state and entries, one record and one sync per batch, in numbered segments.

Owns ``<number>-<first index>.wal`` and the order of durable steps. Refuses to decide anything about Raft: what it is
given it keeps, what it kept it gives back, and where it cannot it says so and does not start.

A segment is born complete (head written and synced as ``.tmp``, renamed, directory synced). Its head names the owner, the
hard state at that time and the crc of the segment before it. ``fresh`` in a head: a snapshot from the leader replaced
everything before this segment.

Every method blocks: call them on the disk's worker.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from swarm_agent.raft.core.messages import Entry, HardState, SnapshotMeta
from swarm_agent.raft.disk import Disk
from swarm_agent.raft.errors import LogCorrupt, LogError, WrongOwner
from swarm_agent.raft.log.records import (
    Codec,
    PlainCodec,
    anything_valid_after,
    frame,
    previous_of,
    record_at,
    scan,
)
from swarm_agent.raft.log.snapshots import Owner, load_newest, remove_older, write_steps

_HEAD, _BATCH = 1, 2
SUFFIX = ".wal"


class _SegmentHead(msgspec.Struct, frozen=True, array_like=True):
    version: int
    owner: Owner
    number: int
    first_index: int
    hard_state: HardState
    fresh: bool


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    hard_state: HardState
    entries: tuple[Entry, ...]


class _Segment(msgspec.Struct):
    name: str
    number: int
    highest: int  # the highest index it holds that counts: it may go once a snapshot covers that
    size: int = 0
    salt: int = 0


class Recovered(NamedTuple):
    """What a member remembers. ``entries`` may begin before the snapshot, and reach at least to it."""

    hard_state: HardState
    snapshot: SnapshotMeta | None
    snapshot_pieces: tuple[bytes, ...]
    entries: list[Entry]

    @property
    def is_new(self) -> bool:
        return self.snapshot is None and not self.entries and self.hard_state == HardState()


class Log:
    def __init__(self, disk: Disk, owner: Owner, codec: Codec, segment_bytes: int) -> None:
        self._disk = disk
        self._owner = owner
        self._codec = codec
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._hard_state = HardState()
        self._last_index = 0
        self._crc = 0
        self._stale = False  # the last segment found is sealed with an older key, or not at all
        self._failed: OSError | None = None

    @classmethod
    def open(
        cls, disk: Disk, owner: Owner, *, codec: Codec | None = None, segment_bytes: int = 16 << 20
    ) -> tuple[Log, Recovered]:
        """Read everything back, cut a torn tail, refuse damage. A new log gets its first segment."""
        log = cls(disk, owner, codec or PlainCodec(), segment_bytes)
        for name in disk.names():
            if name.endswith(".tmp"):
                disk.remove(name)
        snapshot = load_newest(disk, owner, log._codec)
        entries = log._replay()
        meta, pieces = snapshot or (None, ())
        if meta is not None:
            entries = log._meet(meta, entries)
        elif entries and entries[0].index != 1:
            raise LogCorrupt(
                f"the log begins at {entries[0].index} and there is no snapshot; rejoin this node"
            )
        log._last_index = entries[-1].index if entries else (meta.index if meta else 0)
        if not log._segments or log._stale:
            log._rotate(fresh=False)
        return log, Recovered(log._hard_state, meta, pieces, entries)

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(self, hard_state: HardState, entries: Sequence[Entry]) -> None:
        """Durable on return. Entries may begin anywhere up to the end: what is there from then on is overwritten."""
        with self._one_failure_is_enough():
            current = self._segments[-1]
            if current.size >= self._segment_bytes:
                self._rotate(fresh=False)
                current = self._segments[-1]
            payload = msgspec.msgpack.encode((hard_state, entries))
            self._write(current, current.name, _BATCH, payload)
            self._disk.sync(current.name)
        self._hard_state = hard_state
        if entries:
            self._holds(entries)
            self._last_index = entries[-1].index

    def begin_segment(self) -> int:
        """What follows is written to a new segment, sealed as the codec does now. Its number, for ``highest_before``."""
        with self._one_failure_is_enough():
            self._rotate(fresh=False)
        return self._segments[-1].number

    def highest_before(self, number: int) -> int | None:
        """The highest index that segments before this one hold; None when they are gone."""
        return max((s.highest for s in self._segments if s.number < number), default=None)

    def snapshot_steps(
        self, meta: SnapshotMeta, view: Iterable[bytes], *, keep_from: int, keep_old: int = 0
    ) -> Iterator[Callable[[], bool]]:
        """Save a snapshot of our own state; then entries before ``keep_from`` may go, a whole segment at a time, and older snapshots but ``keep_old``.

        Each step is run until it returns False; between two runs the worker is free for log batches.
        """

        def tidy() -> bool:
            self._rotate(fresh=False)
            self._drop(keep_from)
            remove_older(self._disk, meta.index, keep_old)
            return False

        return self._guarded(write_steps(self._disk, self._owner, self._codec, meta, view), tidy)

    def install_steps(self, meta: SnapshotMeta, pieces: Iterable[bytes]) -> Iterator[Callable[[], bool]]:
        """Save the leader's snapshot in place of everything there is. Steps as of ``snapshot_steps``."""

        def replace() -> bool:
            self._last_index = meta.index
            self._rotate(fresh=True)
            self._drop(None)
            remove_older(self._disk, meta.index)
            return False

        return self._guarded(write_steps(self._disk, self._owner, self._codec, meta, pieces), replace)

    def _guarded(
        self, steps: Iterator[Callable[[], bool]], last: Callable[[], bool]
    ) -> Iterator[Callable[[], bool]]:
        for step in itertools.chain(steps, [last]):

            def guarded(step: Callable[[], bool] = step) -> bool:
                with self._one_failure_is_enough():
                    return step()

            yield guarded

    @contextlib.contextmanager
    def _one_failure_is_enough(self) -> Iterator[None]:
        """After a failed write or sync nobody knows what is on disk, and a later sync may succeed without those bytes. A
        segment begun behind them would turn a torn tail, which is cut, into a damaged log, which is refused."""
        if self._failed is not None:
            raise LogError(f"nothing is written any more since a write failed: {self._failed}")
        try:
            yield
        except OSError as error:
            self._failed = error
            raise

    def _holds(self, entries: Sequence[Entry]) -> None:
        """The last segment holds these; what others hold from their first on is dead."""
        first = entries[0].index
        for segment in self._segments:
            segment.highest = min(segment.highest, first - 1)
        self._segments[-1].highest = entries[-1].index

    def _write(self, segment: _Segment, name: str, kind: int, payload: bytes) -> None:
        stored = self._codec.seal(payload, f"{segment.name}:{segment.size}".encode())
        blob, self._crc = frame(kind, stored, self._crc, segment.salt)
        self._disk.append(name, blob)
        segment.size += len(blob)

    def _rotate(self, *, fresh: bool) -> None:
        number = self._segments[-1].number + 1 if self._segments else 1
        first = self._last_index + 1
        segment = _Segment(f"{number:08d}-{first:016d}{SUFFIX}", number, self._last_index)
        temporary = segment.name + ".tmp"
        head = _SegmentHead(1, self._owner, number, first, self._hard_state, fresh)
        self._write(segment, temporary, _HEAD, msgspec.msgpack.encode(head))
        segment.salt = self._crc
        self._disk.sync(temporary)
        self._disk.rename(temporary, segment.name)
        self._disk.sync_dir()
        self._segments.append(segment)
        self._stale = False

    def _drop(self, keep_from: int | None) -> None:
        """Remove old segments, the oldest first and each for good before the next: no crash may leave a hole."""
        while len(self._segments) > 1 and (keep_from is None or self._segments[0].highest < keep_from):
            self._disk.remove(self._segments.pop(0).name)
            self._disk.sync_dir()

    # -- reading ------------------------------------------------------------------------------------------------------

    def _replay(self) -> list[Entry]:
        entries: list[Entry] = []
        names = [name for name in self._disk.names() if name.endswith(SUFFIX)]
        for name in names:
            self._replay_segment(name, entries, last=name == names[-1])
        return entries

    def _replay_segment(self, name: str, entries: list[Entry], *, last: bool) -> None:
        data = self._disk.read(name)
        first = record_at(memoryview(data), 0, 0)
        if first is None or first.kind != _HEAD:
            raise LogCorrupt(f"log segment {name}: its head is damaged; rejoin this node")
        head = msgspec.msgpack.decode(
            self._codec.open(first.payload, f"{name}:0".encode()), type=_SegmentHead
        )
        if head.version != 1:
            raise LogCorrupt(f"log segment {name}: version {head.version} is unknown to this release")
        if head.owner != self._owner:
            raise WrongOwner(f"log segment {name} belongs to {head.owner}, not to {self._owner}")
        if self._segments and (
            head.number != self._segments[-1].number + 1 or previous_of(memoryview(data), 0) != self._crc
        ):
            raise LogCorrupt(
                f"log segment {name} does not follow {self._segments[-1].name}; rejoin this node"
            )
        segment = _Segment(name, head.number, head.first_index - 1, first.end, first.crc)
        self._segments.append(segment)
        self._stale = self._codec.stale(first.payload)
        if head.fresh:
            entries.clear()
            for older in self._segments[:-1]:
                older.highest = 0
        self._hard_state, self._crc = head.hard_state, first.crc
        for record in scan(data, first.end, first.crc, first.crc):
            payload = self._codec.open(record.payload, f"{name}:{record.offset}".encode())
            batch = msgspec.msgpack.decode(payload, type=_Batch)
            self._hard_state, self._crc, segment.size = batch.hard_state, record.crc, record.end
            if batch.entries:
                _overwrite(entries, batch.entries, name)
                self._holds(batch.entries)
        if segment.size < len(data):
            self._cut_tail(segment, data, last=last)

    def _cut_tail(self, segment: _Segment, data: bytes, *, last: bool) -> None:
        """The record at ``segment.size`` is bad. Only the very last write can be torn by a crash."""
        after = anything_valid_after(data, segment.size, segment.salt)
        if not last or after is not None:
            raise LogCorrupt(
                f"log segment {segment.name} is damaged at byte {segment.size} and not at its end: "
                "durable entries are lost; rejoin this node"
            )
        self._disk.truncate(segment.name, segment.size)
        self._disk.sync(segment.name)

    def _meet(self, meta: SnapshotMeta, entries: list[Entry]) -> list[Entry]:
        """Log and snapshot together. A crash between the leader's snapshot and the new segment leaves a log that
        the snapshot replaces."""
        if entries and entries[0].index > meta.index + 1:
            raise LogCorrupt(
                f"entries {meta.index + 1} to {entries[0].index - 1} are missing; rejoin this node"
            )
        if entries:
            follows = entries[0].index == meta.index + 1
            meets = follows or any(e.index == meta.index and e.term == meta.term for e in entries)
        else:
            meets = bool(self._segments) and self._segments[-1].name.endswith(
                f"-{meta.index + 1:016d}{SUFFIX}"
            )
        if meets:
            return entries
        self._last_index = meta.index
        self._rotate(fresh=True)
        self._drop(None)
        return []


def _overwrite(entries: list[Entry], batch: Sequence[Entry], name: str) -> None:
    first = batch[0].index
    if entries and first > entries[-1].index + 1:
        raise LogCorrupt(f"log segment {name}: entries {entries[-1].index + 1} to {first - 1} are missing")
    if entries:
        del entries[max(0, first - entries[0].index) :]
    entries.extend(batch)
