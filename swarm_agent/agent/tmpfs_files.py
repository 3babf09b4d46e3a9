"""Where the contents of secrets and configs lie on a host: in memory, a directory for each task, readable for root alone.

``TmpfsFiles`` is the real place, ``tests.lib.fake_files.FakeFiles`` its double. The engine opens the paths in its own mount namespace: the folder is one that
is in memory already (``/run`` is, everywhere systemd is), and only where it is not, a tmpfs is mounted there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple, Protocol

from swarm_agent.objects.errors import Unavailable

FOLDER = Path("/run/swarm-agent/contents")
_SAFE = re.compile(r"[A-Za-z0-9_-]{1,128}")
_IN_MEMORY = ("tmpfs", "ramfs")
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8  # of mount(2)


class File(NamedTuple):
    name: str  # letters, digits, - and _
    data: bytes
    uid: int
    gid: int
    mode: int

    def __repr__(self) -> str:
        return f"File(name={self.name})"


class FilesError(Unavailable):
    """The place for contents cannot be used now."""


class Files(Protocol):
    """Errors: FilesError. Every call may be repeated."""

    async def write(self, task_id: str, files: tuple[File, ...]) -> tuple[str, ...]:
        """Make the task's files these, and no others; their paths. What is right already is not touched."""
        ...

    async def wipe(self, task_id: str) -> None:
        """Nothing of the task is left."""

    async def tasks(self) -> list[str]:
        """Ids of the tasks that have a directory."""
        ...


class TmpfsFiles:
    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder

    async def write(self, task_id: str, files: tuple[File, ...]) -> tuple[str, ...]:
        return await asyncio.to_thread(self._write, task_id, files)

    async def wipe(self, task_id: str) -> None:
        await asyncio.to_thread(self._wipe, task_id)

    async def tasks(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(entry.name for entry in self._folder.iterdir())
        return []

    # --- in a thread -----------------------------------------------------------------------------------------------
    def _write(self, task_id: str, files: tuple[File, ...]) -> tuple[str, ...]:
        try:
            self._prepare()
            folder = self._of(task_id)
            folder.mkdir(mode=0o700, exist_ok=True)
            wanted = {file.name for file in files}
            for entry in folder.iterdir():
                if entry.name not in wanted:
                    entry.unlink()
            return tuple(self._one(folder, file) for file in files)
        except OSError as err:
            raise FilesError(
                f"cannot write secrets and configs below {self._folder}: {err.strerror or err}. They are kept in memory: is it full?"
            ) from err

    def _one(self, folder: Path, file: File) -> str:
        path = folder / _safe(file.name)
        if not _holds(path, file):
            partial = folder / f".{file.name}"
            partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "wb") as out:
                out.write(file.data)
                os.fchown(descriptor, file.uid, file.gid)
                os.fchmod(descriptor, file.mode)
            partial.rename(path)
        return str(path)

    def _wipe(self, task_id: str) -> None:
        try:
            shutil.rmtree(self._of(task_id))
        except FileNotFoundError:
            pass
        except OSError as err:
            raise FilesError(
                f"cannot remove secrets and configs below {self._folder}: {err.strerror or err}"
            ) from err

    def _of(self, task_id: str) -> Path:
        return self._folder / _safe(task_id)

    def _prepare(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        if _file_system(self._folder) not in _IN_MEMORY:
            _mount(self._folder)


def _safe(name: str) -> str:
    if not _SAFE.fullmatch(name):
        raise ValueError(f"{name!r} cannot be the name of a file")
    return name


def _holds(path: Path, file: File) -> bool:
    try:
        found = path.lstat()
        same = (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (file.uid, file.gid, file.mode)
        return same and path.read_bytes() == file.data
    except OSError:
        return False


def _file_system(folder: Path) -> str:
    """The type of what is mounted there."""
    kind, longest = "", -1
    place = os.path.realpath(folder)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].replace("\\040", " ")
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:  # of two at one place the later hides the earlier
            kind, longest = after.split()[0], len(point)
    return kind


def _mount(folder: Path) -> None:
    """A tmpfs that is not swapped out, where the kernel knows how (6.4)."""
    libc = ctypes.CDLL(None, use_errno=True)
    for options in (b"mode=0700,noswap", b"mode=0700"):
        flags = _NOSUID | _NODEV | _NOEXEC
        if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options) == 0:
            return
    number = ctypes.get_errno()
    raise OSError(number, f"cannot mount a tmpfs: {os.strerror(number)}")
