"""Backups: the whole state of a swarm in one sealed file, from any manager while writes go on.

    "SWARMBAK" | length 4 | head, msgpack, readable | pieces: length 4 | kind 1 | ciphertext         big endian

AES-256-GCM under a key of its own for every archive (HKDF-SHA256 of the backup key, the head's salt), pieces numbered by their nonce,
each bound to the head and its kind; the last has a kind of its own, so that nothing can be cut off, left out or moved. Inside: where
in the log the state stands, then the snapshot of the store, root key and tokens included: the backup key is as secret as they are.

Owns the format. Refuses to know where files lie and who may ask.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from swarm_agent.objects.errors import UserError
from swarm_agent.objects.records import Node
from swarm_agent.raft.core import SnapshotMeta

MAGIC = b"SWARMBAK"
VERSION = 1
KEY_BYTES = 32
_LENGTH = struct.Struct(">I")
_PIECE = struct.Struct(">IB")
_META, _STATE, _LAST = 1, 2, 3
_PREFIX = "SWMBAK-1-"
_TEXT = re.compile(r"SWMBAK-1-([A-Za-z0-9+/]{43})")


class ArchiveUnreadable(UserError):
    """Not a backup, not a whole one, or not of this key."""

    code = ""


class BackupHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What anybody may read."""

    version: int
    cluster_id: str
    created: int  # nanoseconds since the epoch
    index: int
    feature_level: int
    release: str
    salt: bytes


class Recovery(NamedTuple):
    """A state to begin a cluster from, and the node that begins it."""

    meta: SnapshotMeta
    pieces: tuple[bytes, ...]
    node: Node


def shown(key: bytes) -> str:
    return _PREFIX + base64.b64encode(key).decode().rstrip("=")


def parse_backup_key(text: str) -> bytes:
    """Raises ArchiveUnreadable; what was typed is not repeated."""
    match = _TEXT.fullmatch(text.strip())
    try:
        if match is not None:
            return base64.b64decode(match[1] + "=", validate=True)
    except binascii.Error:
        pass
    raise ArchiveUnreadable(f"not a backup key: it begins with {_PREFIX} and has 43 characters after that")


def seal(head: BackupHeader, key: bytes, meta: SnapshotMeta, view: Iterable[bytes]) -> Iterator[bytes]:
    """The archive, piece by piece."""
    told = msgspec.msgpack.encode(head)
    cipher = _cipher(key, head)
    yield MAGIC + _LENGTH.pack(len(told)) + told
    number = 0

    def piece(kind: int, data: bytes) -> bytes:
        nonlocal number
        sealed = cipher.encrypt(_nonce(number), data, told + bytes([kind]))
        number += 1
        return _PIECE.pack(len(sealed), kind) + sealed

    yield piece(_META, msgspec.msgpack.encode(meta))
    for data in view:
        yield piece(_STATE, data)
    yield piece(_LAST, b"")


def read_head(data: bytes) -> BackupHeader:
    """Raises ArchiveUnreadable."""
    return _head(data)[0]


def unseal(data: bytes, key: bytes) -> tuple[BackupHeader, SnapshotMeta, tuple[bytes, ...]]:
    """All of it or nothing. Raises ArchiveUnreadable."""
    head, told, at = _head(data)
    cipher = _cipher(key, head)
    pieces: list[tuple[int, bytes]] = []
    while not pieces or pieces[-1][0] != _LAST:
        if len(data) - at < _PIECE.size:
            raise ArchiveUnreadable(f"the backup ends at byte {len(data)}, before its end: take it anew")
        length, kind = _PIECE.unpack_from(data, at)
        sealed = data[at + _PIECE.size : at + _PIECE.size + length]
        if len(sealed) < length:
            raise ArchiveUnreadable(f"the backup ends at byte {len(data)}, before its end: take it anew")
        try:
            opened = cipher.decrypt(_nonce(len(pieces)), sealed, told + bytes([kind]))
        except InvalidTag:
            raise ArchiveUnreadable(
                f"the backup does not open at byte {at}: it was made with another key, or was changed"
            ) from None
        pieces.append((kind, opened))
        at += _PIECE.size + length
    if at != len(data):
        raise ArchiveUnreadable(f"{len(data) - at} bytes follow the end of the backup: it was changed")
    if pieces[0][0] != _META or any(kind != _STATE for kind, _ in pieces[1:-1]):
        raise ArchiveUnreadable("the pieces of the backup are of a kind this release does not know")
    meta = msgspec.msgpack.decode(pieces[0][1], type=SnapshotMeta)
    return head, meta, tuple(opened for _, opened in pieces[1:-1])


def _head(data: bytes) -> tuple[BackupHeader, bytes, int]:
    start = len(MAGIC) + _LENGTH.size
    if not data.startswith(MAGIC) or len(data) < start:
        raise ArchiveUnreadable("this is no backup of a swarm")
    (length,) = _LENGTH.unpack_from(data, len(MAGIC))
    told = data[start : start + length]
    try:
        head = msgspec.msgpack.decode(told, type=BackupHeader)
    except msgspec.MsgspecError as err:
        raise ArchiveUnreadable(f"the head of the backup makes no sense: {err}") from err
    if head.version != VERSION:
        raise ArchiveUnreadable(
            f"the backup is of version {head.version}, this release knows {VERSION}: recover it with release {head.release}"
        )
    return head, told, start + length


def _cipher(key: bytes, head: BackupHeader) -> AESGCM:
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt=head.salt, info=b"swarm backup").derive(key))


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def new_backup_key(entropy: Callable[[int], bytes]) -> bytes:
    return entropy(KEY_BYTES)
