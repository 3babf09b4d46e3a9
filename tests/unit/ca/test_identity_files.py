"""The node's own files when the disk is nearly full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from swarm_agent.ca.identity_files import write_atomically


def test_a_write_taken_in_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    write_atomically(tmp_path / "key.pem", b"0123456789")
    assert (tmp_path / "key.pem").read_bytes() == b"0123456789"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "key.pem", b"old")
    real = os.write
    room = [2]

    def nearly_full(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] = 0
        return real(fd, bytes(data)[:2])

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "key.pem", b"new one")
    assert (tmp_path / "key.pem").read_bytes() == b"old"
