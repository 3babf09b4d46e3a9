"""The manager's keys on disk: ``<state>/keys.json``.

Holds the data keys of the Raft log and the keys the node's private key is sealed with. Without autolock they stand there as they
are, for root only; with autolock the whole of it is sealed (AES-256-GCM) under the cluster's unlock key, so that neither can
be read nor changed without it. One file, replaced atomically: whatever key opens it opens everything.

Owns the file and every change of it (``change`` and ``relock``, which may be called from any thread). Refuses to know when keys
change: ``raft.rotation`` and ``manager.key_manager`` do.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from swarm_agent.ca.identity_files import write_atomically
from swarm_agent.ca.unlock import InvalidUnlockKey
from swarm_agent.objects.errors import SwarmError

NAME = "keys.json"
SECRET_BYTES = 32
NONCE_BYTES = 12
_VERSION = 1

Entropy = Callable[[int], bytes]


class KeyFileDamaged(SwarmError):
    """The file makes no sense. Without it nothing this manager wrote can be read."""


class StoredKey(msgspec.Struct, frozen=True):
    id: int
    secret: bytes
    lock: int
    """The version of the lock it was made under: made before, it may have been on disk under an older one."""

    def __repr__(self) -> str:
        return f"StoredKey(id={self.id}, lock={self.lock})"


class KeySet(msgspec.Struct, frozen=True):
    """What the file holds."""

    data: tuple[StoredKey, ...] = ()
    """Of the Raft log; the last one is written with."""

    identity: tuple[StoredKey, ...] = ()
    """The node's private key is sealed with one of these, if it is sealed."""

    identity_lock: int = 0
    """The version of the lock the node's present private key was made under."""

    plain_log: bool = False
    """The log may have files from before encryption."""


class _File(msgspec.Struct, frozen=True, omit_defaults=True):
    version: int
    lock_version: int
    keys: KeySet | None = None
    sealed: bytes | None = None


class KeyFile:
    """An open key file. ``keys`` is what is on disk."""

    def __init__(
        self, state_dir: Path, keys: KeySet, unlock_key: bytes, lock_version: int, entropy: Entropy
    ) -> None:
        self._path = state_dir / NAME
        self._unlock_key = unlock_key
        self._entropy = entropy
        self._changing = threading.Lock()
        self.lock_version = lock_version
        self.keys = keys

    @classmethod
    def create(
        cls,
        state_dir: Path,
        entropy: Entropy = os.urandom,
        *,
        unlock_key: bytes = b"",
        lock_version: int = 0,
        plain_log: bool = False,
    ) -> KeyFile:
        """A new file with a first data key."""
        first = StoredKey(1, entropy(SECRET_BYTES), lock_version)
        keys = KeySet(data=(first,), identity_lock=lock_version, plain_log=plain_log)
        made = cls(state_dir, keys, unlock_key, lock_version, entropy)
        made.change(lambda now: now)
        return made

    @property
    def locked(self) -> bool:
        """Whether an unlock key is needed to read the file."""
        return bool(self._unlock_key)

    def change(self, change: Callable[[KeySet], KeySet]) -> KeySet:
        """Make it what ``change`` makes of it; durable on return. Blocks."""
        with self._changing:
            return self._write(change(self.keys), self._unlock_key, self.lock_version)

    def relock(self, unlock_key: bytes, lock_version: int) -> None:
        """The same keys under another unlock key, or none (b""). Blocks."""
        with self._changing:
            self._write(self.keys, unlock_key, lock_version)

    def identity_key(self) -> StoredKey | None:
        """A new key to seal the node's private key with, on disk beside the former ones; None while there is no lock."""
        with self._changing:
            if not self._unlock_key:
                return None
            held = self.keys.identity
            fresh = StoredKey(
                max((k.id for k in held), default=0) + 1, self._entropy(SECRET_BYTES), self.lock_version
            )
            keys = msgspec.structs.replace(self.keys, identity=(*held, fresh))
            self._write(keys, self._unlock_key, self.lock_version)
            return fresh

    def identity_saved(self, used: StoredKey | None, lock_version: int) -> None:
        """The node's private key is on disk, sealed with this one: the others are not needed any more."""
        kept = () if used is None else (used,)
        self.change(lambda now: msgspec.structs.replace(now, identity=kept, identity_lock=lock_version))

    def nonce(self) -> bytes:
        return self._entropy(NONCE_BYTES)

    def _write(self, keys: KeySet, unlock_key: bytes, lock_version: int) -> KeySet:
        file = _File(_VERSION, lock_version, keys=keys)
        if unlock_key:
            nonce = self._entropy(NONCE_BYTES)
            body = AESGCM(unlock_key).encrypt(nonce, msgspec.msgpack.encode(keys), _bound(lock_version))
            file = _File(_VERSION, lock_version, sealed=nonce + body)
        write_atomically(self._path, msgspec.json.encode(file))
        self.keys, self._unlock_key, self.lock_version = keys, unlock_key, lock_version
        return keys


class LockedKeys:
    """A key file that waits for the unlock key."""

    def __init__(self, state_dir: Path, sealed: bytes, lock_version: int, entropy: Entropy) -> None:
        self._state_dir = state_dir
        self._sealed = sealed
        self._lock_version = lock_version
        self._entropy = entropy

    def unlock(self, unlock_key: bytes) -> KeyFile:
        """
        Raises:
            InvalidUnlockKey: it is locked with another; nothing was changed.
        """
        nonce, body = self._sealed[:NONCE_BYTES], self._sealed[NONCE_BYTES:]
        try:
            raw = AESGCM(unlock_key).decrypt(nonce, body, _bound(self._lock_version))
        except InvalidTag:
            raise InvalidUnlockKey from None
        keys = msgspec.msgpack.decode(raw, type=KeySet)
        return KeyFile(self._state_dir, keys, unlock_key, self._lock_version, self._entropy)


def load_keys(state_dir: Path, entropy: Entropy = os.urandom) -> KeyFile | LockedKeys | None:
    """What is there; KeyFileDamaged when it makes no sense."""
    path = state_dir / NAME
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as err:
        raise _damaged(path, str(err)) from err
    if file.version != _VERSION:
        raise _damaged(path, f"version {file.version} is unknown to this release")
    if file.sealed is not None and len(file.sealed) > NONCE_BYTES:
        return LockedKeys(state_dir, file.sealed, file.lock_version, entropy)
    if file.keys is None or not file.keys.data:
        raise _damaged(path, "it holds no keys")
    return KeyFile(state_dir, file.keys, b"", file.lock_version, entropy)


def remove_keys(state_dir: Path) -> None:
    """Whatever was sealed with them is gone with them."""
    (state_dir / NAME).unlink(missing_ok=True)


def _bound(lock_version: int) -> bytes:
    return b"swarm-agent keys %d %d" % (_VERSION, lock_version)


def _damaged(path: Path, why: str) -> KeyFileDamaged:
    return KeyFileDamaged(
        f"{path}: {why}: restore the state directory as a whole from a backup, or remove {path.parent} to leave the swarm"
    )
