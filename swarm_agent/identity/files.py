"""The node's own identity on disk: ``<state>/certificates``, written atomically, readable by root only."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from swarm_agent.identity.ca import Subject, subject_of


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


def save_identity(state_dir: Path, identity: NodeIdentity) -> None:
    """Key and certificate are one file, so that they can never be of different age."""
    write_atomically(state_dir / "certificates" / "swarm-root-ca.crt", identity.root, 0o644)
    write_atomically(state_dir / "certificates" / "swarm-node.pem", identity.key + identity.cert)


def load_identity(state_dir: Path) -> NodeIdentity | None:
    """What was saved, or ``None``; ValueError for files that make no sense."""
    try:
        root = (state_dir / "certificates" / "swarm-root-ca.crt").read_bytes()
        both = (state_dir / "certificates" / "swarm-node.pem").read_bytes()
    except FileNotFoundError:
        return None
    marker = b"-----BEGIN CERTIFICATE-----"
    key, found, cert = both.partition(marker)
    if not found:
        raise ValueError(f"{state_dir}/certificates/swarm-node.pem holds no certificate")
    identity = NodeIdentity(key=key, cert=found + cert, root=root)
    subject_of(identity.cert)
    return identity


def remove_identity(state_dir: Path) -> None:
    for name in ("swarm-node.pem", "swarm-root-ca.crt"):
        (state_dir / "certificates" / name).unlink(missing_ok=True)
