"""The node's own identity on disk: ``<state>/certificates``, written atomically, readable by root only.

On a manager of a cluster with autolock the private key is sealed (AES-256-GCM, bound to its certificate) with a key of its own from
the key file, a new one for every new private key: whoever had an older key file and its unlock key cannot open it.
Certificates stay readable.
"""

from __future__ import annotations

import base64
import os
import struct
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from swarm_agent.ca.ca import Subject, subject_of

if TYPE_CHECKING:
    from swarm_agent.ca.key_file import KeyFile, StoredKey

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_SEALED_BEGIN = b"-----BEGIN SEALED PRIVATE KEY-----\n"
_SEALED_END = b"-----END SEALED PRIVATE KEY-----\n"
_HEAD = struct.Struct("<I12s")


class NodeIdentity(msgspec.Struct, frozen=True):
    """Key, certificate and the root they are checked against; PEM."""

    key: bytes
    cert: bytes
    root: bytes

    @property
    def subject(self) -> Subject:
        return subject_of(self.cert)


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file so that a crash leaves the old or the new one, on disk."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        rest = memoryview(data)
        while rest:  # a disk that is nearly full takes a part without an error
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def save_identity(state_dir: Path, identity: NodeIdentity, keys: KeyFile | None = None) -> None:
    """Key and certificate are one file, so that they can never be of different age.

    ``keys``: the manager's. A crash between the steps leaves one identity key too many, never one too few.
    """
    write_atomically(state_dir / "certificates" / "swarm-root-ca.crt", identity.root, 0o644)
    path = state_dir / "certificates" / "swarm-node.pem"
    if keys is None:
        write_atomically(path, identity.key + identity.cert)
        return
    lock_version = keys.lock_version
    used = keys.identity_key() if identity.subject.role == "manager" else None
    key = identity.key if used is None else _seal(identity, used, keys.nonce())
    write_atomically(path, key + identity.cert)
    keys.identity_saved(used, lock_version)


def load_identity(state_dir: Path, keys: KeyFile | None = None) -> NodeIdentity | None:
    """What was saved, or ``None``; ValueError for files that make no sense or need keys that are not there."""
    try:
        root = (state_dir / "certificates" / "swarm-root-ca.crt").read_bytes()
        both = (state_dir / "certificates" / "swarm-node.pem").read_bytes()
    except FileNotFoundError:
        return None
    key, found, cert = both.partition(_CERTIFICATE)
    if not found:
        raise ValueError(f"{state_dir}/certificates/swarm-node.pem holds no certificate")
    cert = found + cert
    if key.startswith(_SEALED_BEGIN):
        key = _open(state_dir, key, cert, keys.keys.identity if keys is not None else ())
    identity = NodeIdentity(key=key, cert=cert, root=root)
    subject_of(identity.cert)
    return identity


def load_certificate(state_dir: Path) -> NodeIdentity | None:
    """Who we are, whether or not the private key can be opened: without it."""
    try:
        root = (state_dir / "certificates" / "swarm-root-ca.crt").read_bytes()
        both = (state_dir / "certificates" / "swarm-node.pem").read_bytes()
    except FileNotFoundError:
        return None
    _, found, cert = both.partition(_CERTIFICATE)
    return NodeIdentity(key=b"", cert=found + cert, root=root) if found else None


def _seal(identity: NodeIdentity, used: StoredKey, nonce: bytes) -> bytes:
    head = _HEAD.pack(used.id, nonce)
    sealed = head + AESGCM(used.secret).encrypt(nonce, identity.key, identity.cert)
    text = "\n".join(textwrap.wrap(base64.b64encode(sealed).decode(), 64))
    return _SEALED_BEGIN + text.encode() + b"\n" + _SEALED_END


def _open(state_dir: Path, block: bytes, cert: bytes, keys: tuple[StoredKey, ...]) -> bytes:
    wrong = ValueError(
        f"{state_dir}/certificates/swarm-node.pem: the private key is sealed with a key that {state_dir}/keys.json does not hold: "
        f"restore the state directory as a whole from a backup, or remove {state_dir} to leave the swarm"
    )
    try:
        sealed = base64.b64decode(block.removeprefix(_SEALED_BEGIN).partition(_SEALED_END)[0])
        key_id, nonce = _HEAD.unpack_from(sealed)
        used = next(k for k in keys if k.id == key_id)
        return AESGCM(used.secret).decrypt(nonce, sealed[_HEAD.size :], cert)
    except (ValueError, struct.error, StopIteration, InvalidTag) as err:
        raise wrong from err


def remove_identity(state_dir: Path) -> None:
    for name in ("swarm-node.pem", "swarm-root-ca.crt"):
        (state_dir / "certificates" / name).unlink(missing_ok=True)
