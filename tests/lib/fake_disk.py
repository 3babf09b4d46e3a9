"""A disk in memory that forgets what was not synced, tears writes and fails on demand.

``FakeDisk`` is the platter: it outlives processes. ``open`` gives a process its ``Disk``; ``crash`` takes the process away and leaves
what a power cut could leave: synced bytes for certain, a random prefix of the others, renames and removals of
unsynced directories in any prefix. Passes the same contract tests as ``RealDisk``.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable
from typing import TypeVar

import msgspec

T = TypeVar("T")


class DiskFaults(msgspec.Struct, kw_only=True):
    """Switches; change them at any time."""

    latency_min: float = 0.0002
    latency_max: float = 0.001
    capacity: int | None = None
    """Bytes after which writes fail with ENOSPC, having written what fitted."""
    fail_sync: bool = False
    """Syncs fail with EIO; the bytes are lost at the next crash, even if a later sync succeeds: kernels drop them."""
    crash_at_step: int | None = None
    """The power cut comes in the middle of the n-th blocking call from now, 0 for the next."""
    crash_in: str = ""
    """The power cut comes in the middle of the next call of this name: append, sync, rename, ..."""

    @property
    def cut_is_coming(self) -> bool:
        return self.crash_at_step is not None or bool(self.crash_in)


class PowerCut(BaseException):
    """Ends the process inside a disk call. Not an ``Exception``: nobody may catch it and go on."""


class _File:
    __slots__ = ("data", "lost", "synced")

    def __init__(self, data: bytes = b"", synced: int = 0) -> None:
        self.data = bytearray(data)
        self.synced = synced  # so many bytes survive a crash for certain
        self.lost: list[
            tuple[int, int]
        ] = []  # but for these: their sync failed, and no later one writes them


class FakeDisk:
    def __init__(self, rng: random.Random, faults: DiskFaults | None = None) -> None:
        self._rng = rng
        self.faults = faults or DiskFaults()
        self._files: dict[str, _File] = {}
        self._durable: dict[str, _File] = {}  # the directory as of the last sync_dir
        self._renames: list[dict[str, _File]] = []  # the directory after each change since
        self.syncs = 0
        self.steps = 0
        self.torn_tails = 0  # cut off by whoever opened the log
        self.cuts: dict[str, int] = {}  # power cuts by the call they came in
        self._process: FakeProcessDisk | None = None

    def open(self) -> FakeProcessDisk:
        """The disk for a new process; the process before it can no longer touch anything."""
        if self._process is not None:
            self._process.gone = True
        self._process = FakeProcessDisk(self)
        return self._process

    def crash(self, *, keep: float | None = None) -> None:
        """Cut the power. ``keep``: which part of unsynced bytes survives (None: random for every file)."""
        if self._process is not None:
            self._process.gone = True
        states = [self._durable, *self._renames]
        survived = dict(states[self._rng.randrange(len(states))])
        for file in {id(f): f for f in survived.values()}.values():
            unsynced = len(file.data) - file.synced
            part = self._rng.random() if keep is None else keep
            if keep is None and self._rng.random() < 0.5:
                part = round(part)  # all or nothing, half of the time
            del file.data[file.synced + int(unsynced * part) :]
            if keep is None and len(file.data) > file.synced and self._rng.random() < 0.3:
                torn = self._rng.randrange(file.synced, len(file.data))
                file.data[torn:] = bytes(len(file.data) - torn)  # the length grew, the sectors never came
            file.synced = len(file.data)
            for start, end in file.lost:
                kept = min(end, len(file.data))
                file.data[start:kept] = bytes(max(0, kept - start))
            file.lost.clear()
        self._files = survived
        self._durable = dict(survived)
        self._renames = []

    def contents(self) -> dict[str, bytes]:
        """For tests that look at or damage files."""
        return {name: bytes(file.data) for name, file in sorted(self._files.items())}

    def copy(self) -> FakeDisk:
        """Another disk with the same files, all durable; for tests that look into them."""
        other = FakeDisk(random.Random(0))
        for name, data in self.contents().items():
            other.replace(name, data)
        return other

    def replace(self, name: str, data: bytes) -> None:
        """Damage: durable from now on."""
        self._files[name] = self._durable[name] = _File(data, len(data))

    # -- what a process does, through ``FakeProcessDisk`` ---------------------------------------------------------------

    def step(self, call: str) -> bool:
        """Count a blocking call; True if the power fails during it."""
        self.steps += 1
        faults, now = self.faults, self.faults.crash_in == call
        if now:
            faults.crash_in = ""
        if faults.crash_at_step is not None:
            now = now or faults.crash_at_step == 0
            faults.crash_at_step = faults.crash_at_step - 1 if faults.crash_at_step else None
        if now:
            self.cuts[call] = self.cuts.get(call, 0) + 1
        return now

    def file(self, name: str) -> _File:
        try:
            return self._files[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such file", name) from None

    def file_names(self) -> list[str]:
        return sorted(self._files)

    def write(self, name: str, data: bytes) -> None:
        if name not in self._files:
            self._files[name] = _File()
            self._renames.append(dict(self._files))
        limit = self.faults.capacity
        room = None if limit is None else max(0, limit - self.used)
        self._files[name].data += data[:room]
        if room is not None and room < len(data):
            self.failed()
            raise OSError(errno.ENOSPC, "no space left on device", name)

    def sync(self, name: str) -> None:
        file = self.file(name)
        if self.faults.fail_sync:
            self.failed()
            file.lost.append((file.synced, len(file.data)))
            raise OSError(errno.EIO, "input/output error", name)
        self.syncs += 1
        file.synced = len(file.data)

    def truncate(self, name: str, size: int) -> None:
        file = self.file(name)
        self.torn_tails += len(file.data) > size
        del file.data[size:]
        file.synced = min(file.synced, size)

    def change_directory(self, change: Callable[[dict[str, _File]], None]) -> None:
        change(self._files)
        self._renames.append(dict(self._files))

    def sync_dir(self) -> None:
        if self.faults.fail_sync:
            self.failed()
            raise OSError(errno.EIO, "input/output error", ".")
        self._durable = dict(self._files)
        self._renames = []

    def failed(self) -> None:
        """A call is about to fail: from now on the process may promise nothing."""
        if self._process is not None:
            self._process.failed = True

    @property
    def used(self) -> int:
        return sum(len(file.data) for file in self._files.values())

    def latency(self) -> float:
        return self._rng.uniform(self.faults.latency_min, self.faults.latency_max)

    def part(self, size: int) -> int:
        return self._rng.randrange(size + 1)


class FakeProcessDisk:
    """One process's view of a ``FakeDisk``."""

    def __init__(self, platter: FakeDisk) -> None:
        self._platter = platter
        self._turn: asyncio.Future[None] | None = None
        self.gone = False
        self.failed = False
        self.on_power_cut: Callable[[], None] | None = None

    def names(self) -> list[str]:
        self._alive()
        return self._platter.file_names()

    def read(self, name: str) -> bytes:
        self._alive()
        return bytes(self._platter.file(name).data)

    def append(self, name: str, data: bytes) -> None:
        cut = self._step("append")
        if cut:
            self._platter.write(name, data[: self._platter.part(len(data))])
            self._die()
        self._platter.write(name, data)

    def sync(self, name: str) -> None:
        self._step_or_die("sync")
        self._platter.sync(name)

    def truncate(self, name: str, size: int) -> None:
        self._step_or_die("truncate")
        self._platter.truncate(name, size)

    def rename(self, old: str, new: str) -> None:
        self._step_or_die("rename")
        self._platter.file(old)

        def change(files: dict[str, _File]) -> None:
            files[new] = files.pop(old)

        self._platter.change_directory(change)

    def remove(self, name: str) -> None:
        self._step_or_die("remove")
        self._platter.file(name)

        def change(files: dict[str, _File]) -> None:
            del files[name]

        self._platter.change_directory(change)

    def sync_dir(self) -> None:
        self._step_or_die("sync_dir")
        self._platter.sync_dir()

    async def run(self, fn: Callable[[], T]) -> T:
        """In order, one at a time, each after some latency; a dead process's calls never return."""
        loop = asyncio.get_running_loop()
        before, mine = self._turn, loop.create_future()
        self._turn = mine
        try:
            if before is not None:
                await asyncio.wait([before])
            await asyncio.sleep(self._platter.latency())
            if self.gone:
                await loop.create_future()
            try:
                return fn()
            except PowerCut:
                await loop.create_future()
                raise
        finally:
            if not mine.done():
                mine.set_result(None)

    def close(self) -> None:
        self.gone = True

    def _alive(self) -> None:
        if self.gone:
            raise PowerCut

    def _step(self, call: str) -> bool:
        self._alive()
        return self._platter.step(call)

    def _step_or_die(self, call: str) -> None:
        if self._step(call):
            self._die()

    def _die(self) -> None:
        self.gone = True
        if self.on_power_cut is not None:
            self.on_power_cut()
        raise PowerCut
