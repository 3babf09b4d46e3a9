"""One contract, two disks. What only the fake can do (forget, tear, fail) is tested at the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from swarm_agent.raft.core import ConfState, Entry, HardState, Member, SnapshotMeta
from swarm_agent.raft.disk import Disk, RealDisk
from swarm_agent.raft.log import Log, Owner
from tests.lib.fake_disk import DiskFaults, FakeDisk, PowerCut
from tests.lib.virtual_loop import run

OWNER = Owner("c", "n", 1)


@pytest.fixture(params=["real", "fake"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Disk]]:
    """Each call is a new process on the same disk."""
    opened: list[Disk] = []
    platter = FakeDisk(random.Random(1))

    def open_disk() -> Disk:
        for disk in opened:
            disk.close()
        opened.append(RealDisk(tmp_path / "raft") if request.param == "real" else platter.open())
        return opened[-1]

    yield open_disk
    for disk in opened:
        disk.close()


def test_bytes_are_appended_and_come_back(reopen: Callable[[], Disk]) -> None:
    disk = reopen()
    assert disk.names() == []
    disk.append("b", b"one")
    disk.append("a", b"")
    disk.append("b", b"two")
    disk.sync("b")
    disk.sync_dir()
    assert disk.names() == ["a", "b"]
    assert disk.read("b") == b"onetwo"
    disk = reopen()
    disk.append("b", b"three")
    assert disk.read("b") == b"onetwothree"


def test_truncated_files_go_on_at_their_new_end(reopen: Callable[[], Disk]) -> None:
    disk = reopen()
    disk.append("f", b"0123456789")
    disk.truncate("f", 4)
    disk.append("f", b"x")
    assert disk.read("f") == b"0123x"


def test_a_rename_replaces_and_the_file_goes_on_under_its_name(reopen: Callable[[], Disk]) -> None:
    disk = reopen()
    disk.append("new.tmp", b"new")
    disk.append("old", b"old")
    disk.rename("new.tmp", "old")
    disk.append("old", b"er")
    assert (disk.names(), disk.read("old")) == (["old"], b"newer")


def test_removed_is_gone(reopen: Callable[[], Disk]) -> None:
    disk = reopen()
    disk.append("f", b"x")
    disk.remove("f")
    assert disk.names() == []
    disk.append("f", b"y")
    assert disk.read("f") == b"y"


def test_what_is_not_there_is_an_error(reopen: Callable[[], Disk]) -> None:
    disk = reopen()
    for attempt in (disk.read, disk.remove, lambda name: disk.rename(name, "x")):
        with pytest.raises(FileNotFoundError):
            attempt("nothing")


def test_work_runs_in_order_and_errors_come_back(reopen: Callable[[], Disk]) -> None:
    disk = reopen()
    done: list[int] = []

    def fail() -> None:
        raise OSError("planted")

    async def main() -> None:
        await asyncio.gather(*(disk.run(partial(done.append, i)) for i in range(20)))
        with pytest.raises(OSError, match="planted"):
            await disk.run(fail)
        assert await disk.run(lambda: 7) == 7

    if isinstance(disk, RealDisk):
        asyncio.run(main())
    else:
        run(main())
    assert done == list(range(20))


def test_a_log_lives_on_either(reopen: Callable[[], Disk]) -> None:
    conf = ConfState((Member(1, "n", "a"),))
    log, recovered = Log.open(reopen(), OWNER, segment_bytes=500)
    assert recovered.is_new
    for i in range(1, 41):
        log.append(HardState(1, 1, i - 1), [Entry(i, 1, 0, b"x" * 50)])
    for step in log.snapshot_steps(SnapshotMeta(40, 1, conf), (b"state",), keep_from=31):
        while step():
            pass
    log.append(HardState(2, 1, 40), [Entry(41, 2, 0, b"y")])
    log, recovered = Log.open(reopen(), OWNER)
    assert recovered.snapshot == SnapshotMeta(40, 1, conf)
    assert recovered.hard_state == HardState(2, 1, 40)
    assert recovered.entries[0].index <= 31
    assert recovered.entries[-1] == Entry(41, 2, 0, b"y")
    for step in log.install_steps(SnapshotMeta(50, 3, conf), (b"theirs",)):
        while step():
            pass
    _, recovered = Log.open(reopen(), OWNER)
    assert (recovered.snapshot_pieces, recovered.entries) == ((b"theirs",), [])


# -- the fake's own powers ----------------------------------------------------------------------------------------------


def test_a_crash_keeps_what_was_synced_and_no_more_than_was_written() -> None:
    lengths = set()
    for seed in range(40):
        platter = FakeDisk(random.Random(seed))
        disk = platter.open()
        disk.append("f", b"synced")
        disk.sync("f")
        disk.sync_dir()
        disk.append("f", b"unsynced")
        platter.crash()
        data = platter.open().read("f")
        assert data.startswith(b"synced")
        lengths.add(len(data))
    assert min(lengths) == 6
    assert max(lengths) == 14
    assert len(lengths) > 3


def test_names_are_lost_without_a_directory_sync() -> None:
    seen = set()
    for seed in range(20):
        platter = FakeDisk(random.Random(seed))
        disk = platter.open()
        disk.append("f.tmp", b"x")
        disk.sync("f.tmp")
        disk.rename("f.tmp", "f")
        platter.crash()
        seen.add(tuple(platter.contents()))
    assert seen == {(), ("f.tmp",), ("f",)}


def test_a_power_cut_ends_the_process_for_good() -> None:
    platter = FakeDisk(random.Random(1), DiskFaults(crash_at_step=1))
    disk = platter.open()
    disk.append("f", b"x")
    with pytest.raises(PowerCut):
        disk.sync("f")
    with pytest.raises(PowerCut):
        disk.names()
    platter.crash(keep=1)
    assert platter.open().read("f") == b"x" if platter.contents() else True
