"""Whether a host can write: what its file system says, and what a write that failed says."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swarm_agent.agent.disk_room import ENOUGH, LOW, Room


class Disk:
    """What ``statvfs`` says."""

    def __init__(self) -> None:
        self.said: dict[str, int] = {
            "f_flag": 0, "f_blocks": 1000, "f_frsize": 1, "f_bavail": ENOUGH, "f_files": 1000, "f_favail": 900,
        }  # fmt: skip

    def __call__(self, path: Path) -> Any:
        return SimpleNamespace(**self.said)


@pytest.fixture
def disk() -> Disk:
    return Disk()


def test_there_is_room(tmp_path: Path, disk: Disk) -> None:
    assert Room(tmp_path).look() == ""
    assert Room(tmp_path, disk).look() == ""
    assert Room(tmp_path / "not there").look() == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"f_bavail": LOW - 1}, "No space left on device"),
        ({"f_favail": 3}, "no more inodes"),
        ({"f_flag": os.ST_RDONLY}, "Read-only file system"),
    ],
)
def test_there_is_none(tmp_path: Path, disk: Disk, change: dict[str, int], says: str) -> None:
    room = Room(tmp_path, disk)
    disk.said |= change
    assert says in room.look()
    assert str(tmp_path) in room.trouble


@pytest.mark.parametrize("change", [{"f_bavail": 0, "f_blocks": 0}, {"f_favail": 0, "f_files": 0}])
def test_file_systems_that_do_not_count(tmp_path: Path, disk: Disk, change: dict[str, int]) -> None:
    disk.said |= change
    assert Room(tmp_path, disk).look() == ""


def test_a_little_is_not_enough_to_begin_again(tmp_path: Path, disk: Disk) -> None:
    room = Room(tmp_path, disk)
    disk.said["f_bavail"] = LOW
    assert not room.look()
    disk.said["f_bavail"] = LOW - 1
    assert room.look()
    disk.said["f_bavail"] = LOW
    assert room.look()
    disk.said["f_bavail"] = ENOUGH
    assert not room.look()


def test_after_a_failed_write_a_write_has_to_succeed(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(tmp_path, disk)
    assert not room.failed(OSError(errno.ENOENT, "no such file"))
    assert not room.trouble
    working = [False]

    def write(descriptor: int, data: Any) -> int:
        if not working[0]:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return len(data)

    monkeypatch.setattr("swarm_agent.agent.disk_room.os.write", write)
    assert room.failed(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert "quota" in room.trouble
    assert room.look()
    working[0] = True
    assert not room.look()
    assert not list(tmp_path.iterdir())
