"""The seam to the disk: one flat directory, and one worker that runs what blocks.

Owns file handles and the worker thread. Refuses formats: what the bytes mean is the business of ``raft.log``.
``tests.lib.fake_disk.FakeDisk`` is the other implementation; both pass the same contract tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")


class Disk(Protocol):
    """Everything but ``run`` blocks and is called inside ``run`` (or before the loop serves anybody).

    Nothing survives a crash for certain but what ``sync`` (bytes) and ``sync_dir`` (names) returned for. Any ``OSError``
    from a write or sync leaves the file in an unknown state: do not go on with it.
    """

    def names(self) -> list[str]:
        """The files there are, sorted."""
        ...

    def read(self, name: str) -> bytes: ...

    def append(self, name: str, data: bytes) -> None:
        """Write at the end; the file is created if need be."""
        ...

    def sync(self, name: str) -> None:
        """The file's bytes are durable once this returns."""
        ...

    def truncate(self, name: str, size: int) -> None: ...

    def rename(self, old: str, new: str) -> None:
        """Atomic; replaces ``new``."""
        ...

    def remove(self, name: str) -> None: ...

    def sync_dir(self) -> None:
        """Creations, renames and removals are durable once this returns."""
        ...

    async def run(self, fn: Callable[[], T]) -> T:
        """Run ``fn`` on the worker: one at a time, in the order of the calls."""
        ...

    def close(self) -> None: ...


class RealDisk:
    """A directory. Keeps the files it appends to open; one thread for all that blocks."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._files: dict[str, int] = {}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raft-disk")

    def names(self) -> list[str]:
        return sorted(path.name for path in self._directory.iterdir() if path.is_file())

    def read(self, name: str) -> bytes:
        return (self._directory / name).read_bytes()

    def append(self, name: str, data: bytes) -> None:
        fd = self._open(name)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def sync(self, name: str) -> None:
        os.fdatasync(self._open(name))

    def truncate(self, name: str, size: int) -> None:
        os.ftruncate(self._open(name), size)

    def rename(self, old: str, new: str) -> None:
        self._forget(new)
        (self._directory / old).replace(self._directory / new)
        if old in self._files:
            self._files[new] = self._files.pop(old)

    def remove(self, name: str) -> None:
        self._forget(name)
        (self._directory / name).unlink()

    def sync_dir(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    async def run(self, fn: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, fn)

    def close(self) -> None:
        self._worker.shutdown()
        for name in list(self._files):
            self._forget(name)

    def _open(self, name: str) -> int:
        if name not in self._files:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._files[name] = os.open(self._directory / name, flags, 0o600)
        return self._files[name]

    def _forget(self, name: str) -> None:
        fd = self._files.pop(name, None)
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)
