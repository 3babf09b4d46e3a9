"""Limits of this machine that many hosts can use up, and that show in a host as something else altogether."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")


class Limit(NamedTuple):
    """How much of something there is, and how much is in use."""

    name: str
    used: int
    most: int
    way_out: str

    @property
    def spent(self) -> bool:
        return self.used >= self.most * 0.98


def used_up(limits: Sequence[Limit]) -> str:
    """A sentence for each that is used up; "" if none is."""
    return " ".join(
        f"This machine's limit {limit.name} is used up: {limit.used} of {limit.most} ({limit.way_out})."
        for limit in limits
        if limit.spent
    )


def measure(data_root: Path = Path("/var/lib")) -> list[Limit]:
    """Of the user who runs this, who runs the hosts, too."""
    instances, watches = _inotify(os.geteuid())
    files = [int(word) for word in _read("sys/fs/file-nr").split()]
    memory = {line.split(":")[0]: int(line.split()[1]) for line in _read("meminfo").splitlines()}
    disk = shutil.disk_usage(_nearest(data_root))
    return [
        _sysctl("fs.inotify.max_user_instances", instances),
        _sysctl("fs.inotify.max_user_watches", watches),
        _sysctl("kernel.pid_max", int(_read("loadavg").split()[3].partition("/")[2])),
        _sysctl("fs.file-max", files[0]),
        Limit(
            "of memory, in MiB,",
            (memory["MemTotal"] - memory["MemAvailable"]) >> 10,
            memory["MemTotal"] >> 10,
            "take hosts away",
        ),
        Limit(
            f"of disk, in MiB, at {data_root}", disk.used >> 20, (disk.used + disk.free) >> 20, "make room"
        ),
    ]


def _sysctl(name: str, used: int) -> Limit:
    most = int(_read("sys/" + name.replace(".", "/")))
    return Limit(name, used, most, f"raise it with sysctl -w {name}=NUMBER, or take hosts away")


def _inotify(user: int) -> tuple[int, int]:
    """How many instances and watches this user has: both limits count by user, in all containers together."""
    instances = watches = 0
    for process in PROC.glob("[0-9]*"):
        try:
            if process.stat().st_uid != user:
                continue
            for link in (process / "fd").iterdir():
                if link.readlink().name == "anon_inode:inotify":
                    instances += 1
                    watches += (process / "fdinfo" / link.name).read_text().count("inotify wd:")
        except OSError:  # it has ended
            continue
    return instances, watches


def _nearest(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _read(name: str) -> str:
    return (PROC / name).read_text()
