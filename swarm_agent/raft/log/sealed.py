"""Encryption at rest: records of the log and of snapshots, sealed with data keys.

    0xc1 | key id 4 | nonce 12 | ciphertext and tag          little endian

AES-256-GCM with a random nonce, under a key of its own for every file (HKDF-SHA256 of the data key, the file's name as
info), bound to the place the log names (file and offset) and to its own head. No msgpack value begins with 0xc1, so that the
first record of a file tells whether the file is sealed or from before encryption; records behind a plain first one are
plain, for the pieces of a snapshot may begin with any byte.

Owns the stored form and which keys it takes. Refuses to keep keys (whoever calls ``use`` has made them durable first) and to
decide when they change (``raft.rotation``). Plain files are read only while ``DataKeys.plain`` says that there may be some.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from swarm_agent.raft.errors import LogCorrupt

SEALED = 0xC1
KEY_BYTES = 32
NONCE_BYTES = 12
_HEAD = struct.Struct("<BI12s")
_TAG_BYTES = 16
_MOST_CIPHERS = 64  # files in use at a time are a handful; a long life must not collect them all


class DataKey(msgspec.Struct, frozen=True):
    id: int
    secret: bytes

    def __repr__(self) -> str:
        return f"DataKey(id={self.id})"


class DataKeys(msgspec.Struct, frozen=True):
    """The keys files may be sealed with; the last one seals what is written now."""

    keys: tuple[DataKey, ...]
    plain: bool = False
    """Files from before encryption may be there."""

    @property
    def current(self) -> DataKey:
        return self.keys[-1]

    @property
    def settled(self) -> bool:
        """Every file is sealed with the current key."""
        return len(self.keys) == 1 and not self.plain

    def and_then(self, key: DataKey) -> DataKeys:
        """Write with ``key`` from now on, read the others too."""
        return DataKeys((*self.keys, key), self.plain)

    def only_current(self) -> DataKeys:
        return DataKeys(self.keys[-1:])


def new_data_key(after: DataKeys | None, entropy: Callable[[int], bytes]) -> DataKey:
    """Ids only grow while keys are in use together: a file names its key for good."""
    return DataKey(after.current.id + 1 if after is not None else 1, entropy(KEY_BYTES))


class SealedCodec:
    """Implements ``Codec``. ``use`` may be called at any time, from any thread."""

    def __init__(self, keys: DataKeys, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._entropy = entropy
        self._keys = keys
        self._ciphers: dict[tuple[DataKey, str], AESGCM] = {}
        self._plain: set[str] = set()  # files whose first record is plain

    @property
    def keys(self) -> DataKeys:
        return self._keys

    def use(self, keys: DataKeys) -> None:
        """From now on these. They must be durable already: what is sealed with a lost key is lost."""
        self._keys = keys
        self._ciphers = {}

    def seal(self, payload: bytes, where: bytes) -> bytes:
        key = self._keys.current
        head = _HEAD.pack(SEALED, key.id, nonce := self._entropy(NONCE_BYTES))
        return head + self._cipher(key, where).encrypt(nonce, payload, head[:-NONCE_BYTES] + where)

    def open(self, stored: bytes, where: bytes) -> bytes:
        name, _, offset = where.decode().rpartition(":")
        if offset == "0":
            self._plain.discard(name)
            if not _looks_sealed(stored):
                self._accept_plain(name)
        if name in self._plain:
            return stored
        if not _looks_sealed(stored):
            raise LogCorrupt(f"{name}: the record at byte {offset} is not encrypted; {_CHANGED}")
        _, key_id, nonce = _HEAD.unpack_from(stored)
        key = next((k for k in self._keys.keys if k.id == key_id), None)
        if key is None:
            raise LogCorrupt(
                f"{name}: the record at byte {offset} is encrypted with data key {key_id}, which the key file does not hold; "
                "restore the key file that belongs to this log, or rejoin this node"
            )
        try:
            return self._cipher(key, where).decrypt(
                nonce, stored[_HEAD.size :], stored[: _HEAD.size - NONCE_BYTES] + where
            )
        except InvalidTag:
            raise LogCorrupt(
                f"{name}: the record at byte {offset} does not open with data key {key_id}; {_CHANGED}"
            ) from None

    def stale(self, stored: bytes) -> bool:
        return not _looks_sealed(stored) or _HEAD.unpack_from(stored)[1] != self._keys.current.id

    def _accept_plain(self, name: str) -> None:
        if not self._keys.plain:
            raise LogCorrupt(f"{name} is not encrypted, and by the key file all files are; {_CHANGED}")
        self._plain.add(name)

    def _cipher(self, key: DataKey, where: bytes) -> AESGCM:
        name = where.decode().rpartition(":")[0]
        ciphers = self._ciphers
        cipher = ciphers.get((key, name))
        if cipher is None:
            if len(ciphers) >= _MOST_CIPHERS:
                ciphers.clear()
            subkey = HKDF(SHA256(), KEY_BYTES, salt=None, info=name.encode()).derive(key.secret)
            cipher = ciphers[(key, name)] = AESGCM(subkey)
        return cipher


_CHANGED = "it was changed by somebody, or belongs to another key: restore the state directory as a whole from a backup, or rejoin this node"


def _looks_sealed(stored: bytes) -> bool:
    return len(stored) >= _HEAD.size + _TAG_BYTES and stored[0] == SEALED
