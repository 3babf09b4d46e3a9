"""Snapshot files: ``<index>-<term>.snap``, complete or not there.

Written as ``.tmp`` in pieces (so that log batches get their turn on the worker between them), synced, renamed, directory synced.
Records: head (owner, meta), data ..., end (number of bytes). A snapshot with anything wrong is corruption: it was
durable before the log it stands for was dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from swarm_agent.raft.core.messages import SnapshotMeta
from swarm_agent.raft.disk import Disk
from swarm_agent.raft.errors import LogCorrupt, WrongOwner
from swarm_agent.raft.log.records import Codec, frame, scan

_HEAD, _DATA, _END = 16, 17, 18
SUFFIX = ".snap"


class Owner(msgspec.Struct, frozen=True, array_like=True):
    """Whose files these are. Another cluster's or node's log must never be taken for ours."""

    cluster_id: str
    node_id: str
    raft_id: int


class _Head(msgspec.Struct, frozen=True, array_like=True):
    version: int
    owner: Owner
    meta: SnapshotMeta


def write_steps(
    disk: Disk, owner: Owner, codec: Codec, meta: SnapshotMeta, view: Iterable[bytes]
) -> Iterator[Callable[[], bool]]:
    """Steps to run on the worker, each again until it returns False; the snapshot exists once the last has."""
    name = f"{meta.index:016d}-{meta.term:016d}{SUFFIX}"
    temporary = name + ".tmp"
    crc = salt = offset = size = 0
    pieces = iter(view)

    def put(kind: int, payload: bytes) -> None:
        nonlocal crc, offset
        stored = codec.seal(payload, f"{name}:{offset}".encode())
        blob, crc = frame(kind, stored, crc, salt)
        disk.append(temporary, blob)
        offset += len(blob)

    def head() -> bool:
        nonlocal salt
        if temporary in disk.names():
            disk.remove(temporary)
        put(_HEAD, msgspec.msgpack.encode(_Head(1, owner, meta)))
        salt = crc
        return False

    def piece() -> bool:
        """Made here, on the worker: the state is large, and its owner has other things to do."""
        nonlocal size
        data = next(pieces, None)
        if data is None:
            return False
        size += len(data)
        put(_DATA, data)
        disk.sync(temporary)
        return True

    def end() -> bool:
        put(_END, msgspec.msgpack.encode(size))
        disk.sync(temporary)
        disk.rename(temporary, name)
        disk.sync_dir()
        return False

    yield head
    yield piece
    yield end


def load_newest(disk: Disk, owner: Owner, codec: Codec) -> tuple[SnapshotMeta, tuple[bytes, ...]] | None:
    names = [name for name in disk.names() if name.endswith(SUFFIX)]
    return _load(disk, names[-1], owner, codec) if names else None


def remove_older(disk: Disk, index: int, keep: int = 0) -> None:
    """All but the newest ``keep`` of them. For good: what an old data key opens, or is not encrypted, must not come back after a crash."""
    old = [n for n in disk.names() if n.endswith(SUFFIX) and int(n.split("-")[0]) < index]
    old = sorted(old)[: max(0, len(old) - keep)]
    for name in old:
        disk.remove(name)
    if old:
        disk.sync_dir()


def _load(disk: Disk, name: str, owner: Owner, codec: Codec) -> tuple[SnapshotMeta, tuple[bytes, ...]]:
    raw = disk.read(name)
    first = next(scan(raw, 0, 0, 0), None)
    if first is None or first.kind != _HEAD:
        raise LogCorrupt(
            f"snapshot {name}: its head is damaged; restore it from a backup or rejoin this node"
        )
    head = msgspec.msgpack.decode(codec.open(first.payload, f"{name}:0".encode()), type=_Head)
    if head.version != 1:
        raise LogCorrupt(f"snapshot {name}: version {head.version} is unknown to this release")
    if head.owner != owner:
        raise WrongOwner(f"snapshot {name} belongs to {head.owner}, not to {owner}")
    parts: list[bytes] = []
    for record in scan(raw, first.end, first.crc, first.crc):
        payload = codec.open(record.payload, f"{name}:{record.offset}".encode())
        if record.kind == _DATA:
            parts.append(payload)
        elif record.kind == _END and record.end == len(raw) and sum(map(len, parts)) == _size(payload):
            return head.meta, tuple(parts)
    raise LogCorrupt(f"snapshot {name}: its data is damaged; restore it from a backup or rejoin this node")


def _size(payload: bytes) -> int:
    return msgspec.msgpack.decode(payload, type=int)
