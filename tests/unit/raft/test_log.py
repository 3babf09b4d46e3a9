"""The log on disk: what it must give back, what it may cut, what it must refuse."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest

from swarm_agent.raft.core import ConfState, Entry, HardState, Member, SnapshotMeta
from swarm_agent.raft.errors import LogCorrupt, LogError, WrongOwner
from swarm_agent.raft.log import Log, Owner, Recovered
from tests.lib.fake_disk import DiskFaults, FakeDisk, PowerCut

OWNER = Owner("cluster", "node1", 1)
CONF = ConfState((Member(1, "node1", "a1"),))


def entries(first: int, last: int, term: int = 1, size: int = 5) -> tuple[Entry, ...]:
    return tuple(Entry(i, term, 0, (b"%d.%d" % (i, term)).ljust(size, b".")) for i in range(first, last + 1))


def platter(seed: int = 0) -> FakeDisk:
    return FakeDisk(random.Random(seed))


def reopen(disk: FakeDisk, segment_bytes: int = 16 << 20) -> tuple[Log, Recovered]:
    return Log.open(disk.open(), OWNER, segment_bytes=segment_bytes)


def finish(step: Callable[[], bool]) -> None:
    while step():
        pass


def snapshot(log: Log, index: int, keep_from: int, data: bytes = b"state", term: int = 1) -> None:
    for step in log.snapshot_steps(SnapshotMeta(index, term, CONF), (data,), keep_from=keep_from):
        finish(step)


def install(log: Log, index: int, term: int, data: bytes = b"theirs") -> None:
    for step in log.install_steps(SnapshotMeta(index, term, CONF), (data,)):
        finish(step)


def segment(disk: FakeDisk) -> str:
    return [name for name in disk.contents() if name.endswith(".wal")][-1]


def test_a_new_log_is_new_and_stays_empty_over_restarts() -> None:
    disk = platter()
    assert reopen(disk)[1].is_new
    disk.crash()
    assert reopen(disk)[1].is_new


def test_what_was_appended_comes_back() -> None:
    disk = platter()
    log, _ = reopen(disk)
    log.append(HardState(1, 1, 0), entries(1, 3))
    log.append(HardState(2, 3, 2), ())
    disk.crash(keep=0)
    _, back = reopen(disk)
    assert back == Recovered(HardState(2, 3, 2), None, (), list(entries(1, 3)))


def test_one_batch_is_one_sync() -> None:
    disk = platter()
    log, _ = reopen(disk)
    before = disk.syncs
    log.append(HardState(1, 1, 0), entries(1, 200))
    assert disk.syncs == before + 1


def test_a_later_batch_overwrites_from_its_first_entry_on() -> None:
    disk = platter()
    log, _ = reopen(disk)
    log.append(HardState(1), entries(1, 5))
    log.append(HardState(2), entries(3, 4, term=2))
    assert reopen(disk)[1].entries == [*entries(1, 2), *entries(3, 4, term=2)]


def test_segments_follow_one_another_and_a_missing_one_is_noticed() -> None:
    disk = platter()
    log, _ = reopen(disk, segment_bytes=300)
    for i in range(1, 40):
        log.append(HardState(1), entries(i, i))
    names = [name for name in disk.contents() if name.endswith(".wal")]
    assert len(names) > 3
    assert len(reopen(disk)[1].entries) == 39
    for missing in names[:-1]:
        damaged = platter()
        for name, data in disk.contents().items():
            if name != missing:
                damaged.replace(name, data)
        with pytest.raises(LogCorrupt):
            reopen(damaged)


def small_log() -> tuple[FakeDisk, str, list[int]]:
    """A log of four batches; where each record ends."""
    disk = platter()
    log, _ = reopen(disk)
    name = segment(disk)
    ends = [len(disk.contents()[name])]
    for i in range(1, 5):
        log.append(HardState(1, 0, i - 1), entries(i, i))
        ends.append(len(disk.contents()[name]))
    return disk, name, ends


def test_a_torn_tail_is_cut_at_every_byte() -> None:
    disk, name, ends = small_log()
    data = disk.contents()[name]
    for size in range(ends[0], len(data) + 1):
        torn = platter()
        torn.replace(name, data[:size])
        log, back = reopen(torn)
        whole = sum(end <= size for end in ends) - 1
        assert back.entries == list(entries(1, whole)), size
        log.append(HardState(1), entries(whole + 1, whole + 1, term=7))
        assert reopen(torn)[1].entries == [*entries(1, whole), *entries(whole + 1, whole + 1, term=7)]


def test_a_tail_of_zeros_is_cut() -> None:
    disk, name, ends = small_log()
    data = disk.contents()[name]
    for size in range(ends[-2], ends[-1]):
        torn = platter()
        torn.replace(name, data[:size] + bytes(512))
        assert reopen(torn)[1].entries == list(entries(1, 3))


def test_every_flipped_bit_is_noticed() -> None:
    """In the last record it looks torn and is cut; anywhere before, durable entries are lost and the start is refused."""
    disk, name, ends = small_log()
    data = disk.contents()[name]
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            damaged = platter()
            damaged.replace(name, bytes(flipped))
            if at < ends[-2]:
                with pytest.raises(LogError):
                    reopen(damaged)
            else:
                assert reopen(damaged)[1].entries == list(entries(1, 3))


def test_a_repeated_or_lost_record_is_noticed() -> None:
    disk, name, ends = small_log()
    data = disk.contents()[name]
    second = data[ends[1] : ends[2]]
    for wrong in (data[: ends[2]] + second + data[ends[2] :], data[: ends[1]] + data[ends[2] :]):
        damaged = platter()
        damaged.replace(name, wrong)
        with pytest.raises(LogCorrupt):
            reopen(damaged)


def test_damage_in_an_earlier_segment_is_refused_even_at_its_end() -> None:
    disk = platter()
    log, _ = reopen(disk, segment_bytes=200)
    for i in range(1, 20):
        log.append(HardState(1), entries(i, i))
    first = min(disk.contents())
    disk.replace(first, disk.contents()[first][:-1])
    with pytest.raises(LogCorrupt, match=first):
        reopen(disk)


def test_payloads_that_look_like_records_do_not_count_as_such() -> None:
    disk, name, _ = small_log()
    bait = disk.contents()[name]
    other = platter()
    log, _ = reopen(other)
    log.append(HardState(1), entries(1, 1))
    log.append(HardState(1), (Entry(2, 1, 0, bait[200:] + bait),))
    target = segment(other)
    other.replace(target, other.contents()[target][:-1])
    with pytest.raises(
        LogCorrupt
    ):  # heads carry no salt: a whole log file inside an entry is refused, not lost
        reopen(other)
    other = platter()
    log, _ = reopen(other)
    log.append(HardState(1), (Entry(1, 1, 0, bait[250:]),))
    target = segment(other)
    other.replace(target, other.contents()[target][:-1])
    assert reopen(other)[1].entries == []


@pytest.mark.parametrize(
    "owner", [Owner("other", "node1", 1), Owner("cluster", "node2", 1), Owner("cluster", "node1", 2)]
)
def test_files_of_somebody_else_are_refused(owner: Owner) -> None:
    disk, _, _ = small_log()
    with pytest.raises(WrongOwner):
        Log.open(disk.open(), owner)


def test_a_snapshot_lets_old_segments_go_and_keeps_what_was_asked() -> None:
    disk = platter()
    log, _ = reopen(disk, segment_bytes=300)
    for i in range(1, 61):
        log.append(HardState(1, 1, i - 1), entries(i, i))
    before = len(disk.contents())
    snapshot(log, 60, keep_from=51)
    assert len(disk.contents()) < before
    _, back = reopen(disk)
    assert back.snapshot == SnapshotMeta(60, 1, CONF)
    assert back.snapshot_pieces == (b"state",)
    assert back.entries[0].index <= 51
    assert back.entries[-1].index == 60
    assert back.hard_state == HardState(1, 1, 59)


def test_a_large_snapshot_is_written_in_pieces() -> None:
    disk = platter()
    log, _ = reopen(disk)
    log.append(HardState(1), entries(1, 1))
    view = [random.Random(seed).randbytes(1000) for seed in range(9)]
    runs = 0
    for step in log.snapshot_steps(SnapshotMeta(1, 1, CONF), view, keep_from=2):
        runs += 1
        while step():
            runs += 1
            log.append(HardState(1), ())  # a batch gets its turn between two pieces
    assert runs == 4 + len(view)
    assert reopen(disk)[1].snapshot_pieces == tuple(view)


def test_an_installed_snapshot_replaces_the_log() -> None:
    disk = platter()
    log, _ = reopen(disk)
    log.append(HardState(1), entries(1, 5))
    install(log, 9, 3)
    log.append(HardState(3), entries(10, 11, term=3))
    _, back = reopen(disk)
    assert back.snapshot == SnapshotMeta(9, 3, CONF)
    assert back.entries == list(entries(10, 11, term=3))


def test_damaged_snapshots_are_refused() -> None:
    disk = platter()
    log, _ = reopen(disk)
    log.append(HardState(1), entries(1, 3))
    snapshot(log, 3, keep_from=4)
    (name,) = [name for name in disk.contents() if name.endswith(".snap")]
    data = disk.contents()[name]
    for at in range(len(data)):
        damaged = platter()
        for other, content in disk.contents().items():
            damaged.replace(other, content)
        damaged.replace(name, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(LogError):
            reopen(damaged)


def test_a_log_without_its_snapshot_is_refused() -> None:
    disk = platter()
    log, _ = reopen(disk, segment_bytes=200)
    for i in range(1, 30):
        log.append(HardState(1), entries(i, i))
    snapshot(log, 29, keep_from=30)
    log.append(HardState(1), entries(30, 30))
    rest = platter()
    for name, data in disk.contents().items():
        if name.endswith(".wal"):
            rest.replace(name, data)
    with pytest.raises(LogCorrupt):
        reopen(rest)


def test_a_full_disk_and_a_failing_sync_are_errors_and_lose_nothing_acknowledged() -> None:
    for faults in (DiskFaults(capacity=400), DiskFaults(fail_sync=True)):
        disk = platter()
        log, _ = reopen(disk)
        log.append(HardState(1), entries(1, 1))
        disk.faults = faults
        with pytest.raises(OSError, match=r"no space|input/output"):
            log.append(HardState(1), entries(2, 2, size=500))
        disk.crash()
        disk.faults = DiskFaults()
        assert reopen(disk)[1].entries[0] == entries(1, 1)[0]


@pytest.mark.parametrize("faults", [DiskFaults(capacity=400), DiskFaults(fail_sync=True)])
def test_after_one_failed_write_nothing_is_written_even_if_the_disk_works_again(faults: DiskFaults) -> None:
    """A snapshot that was under way began a new segment behind the torn tail, and the log was refused for ever."""
    disk = platter()
    log, _ = reopen(disk)
    log.append(HardState(1), entries(1, 1))
    first, *rest = log.snapshot_steps(SnapshotMeta(1, 1, CONF), (b"state",), keep_from=1)
    first()
    disk.faults = faults
    with pytest.raises(OSError, match=r"no space|input/output"):
        log.append(HardState(1), entries(2, 2, size=500))
    disk.faults = DiskFaults()
    for step in rest:
        with pytest.raises(LogError, match="nothing is written any more"):
            step()
    with pytest.raises(LogError, match="nothing is written any more"):
        log.append(HardState(1), entries(2, 2))
    disk.crash(keep=1.0)
    assert reopen(disk)[1].entries[0] == entries(1, 1)[0]


def test_a_sync_that_succeeds_after_one_that_failed_saves_nothing_of_it() -> None:
    """What kernels do, and why nobody may try again: the double forgets those bytes for good."""
    disk = platter()
    process = disk.open()
    process.append("f", b"one")
    process.sync("f")
    process.sync_dir()
    process.append("f", b"two")
    disk.faults.fail_sync = True
    with pytest.raises(OSError, match="input/output"):
        process.sync("f")
    disk.faults = DiskFaults()
    process.append("f", b"three")
    process.sync("f")
    disk.crash()
    assert disk.contents()["f"] == b"one\0\0\0three"


class _Life:
    """A long life of a log, to be cut at any step; knows what was acknowledged."""

    def __init__(self, disk: FakeDisk) -> None:
        self.disk = disk
        self.state = HardState()
        self.log: dict[int, Entry] = {}
        self.covered = 0
        self.trying: tuple[HardState, dict[int, Entry]] = (self.state, {})

    def append(self, log: Log, state: HardState, batch: tuple[Entry, ...]) -> None:
        after = {i: e for i, e in self.log.items() if not batch or i < batch[0].index} | {
            e.index: e for e in batch
        }
        self.trying = (state, after)
        log.append(state, batch)
        self.state, self.log = state, after

    def run(self) -> None:
        log, _ = reopen(self.disk, segment_bytes=250)
        for i in range(1, 8):
            self.append(log, HardState(i, 1, i - 1), entries(i, i, term=i))
        snapshot(log, 5, keep_from=5, term=5)
        self.covered = 5
        self.append(log, HardState(8, 2, 6), entries(7, 9, term=8))
        log, _ = reopen(self.disk, segment_bytes=250)
        self.append(log, HardState(8, 2, 9), entries(10, 12, term=8))
        self.trying = (self.state, {})
        install(log, 20, 9)
        self.log, self.covered = {}, 20
        self.append(log, HardState(9, 2, 20), entries(21, 22, term=9))
        snapshot(log, 22, keep_from=22, term=9)
        self.covered = 22


def test_a_power_cut_at_every_step_loses_nothing_that_was_acknowledged() -> None:
    total = platter()
    _Life(total).run()
    for at in range(total.steps):
        for seed in range(6):
            disk = platter(seed)
            disk.faults.crash_at_step = at
            life = _Life(disk)
            with pytest.raises(PowerCut):
                life.run()
            disk.crash()
            _, back = reopen(disk)
            held = {e.index: e for e in back.entries}
            base = back.snapshot.index if back.snapshot else 0
            assert base >= life.covered
            acceptable = [(life.state, life.log), life.trying]
            assert any(
                back.hard_state == state and all(i <= base or held.get(i) == e for i, e in log.items())
                for state, log in acceptable
            ), (at, seed)


class _Mask:
    """Stands for encryption: what is stored is not what is meant, and is bound to its place."""

    def seal(self, payload: bytes, where: bytes) -> bytes:
        return where + bytes(b ^ 0x5A for b in payload)

    def open(self, stored: bytes, where: bytes) -> bytes:
        assert stored.startswith(where)
        return bytes(b ^ 0x5A for b in stored[len(where) :])

    def stale(self, stored: bytes) -> bool:
        return False


def test_a_codec_sees_every_payload_and_its_place() -> None:
    disk = platter()
    log, _ = Log.open(disk.open(), OWNER, codec=_Mask())
    log.append(HardState(1), entries(1, 3))
    snapshot(log, 2, keep_from=2)
    log.append(HardState(1), entries(4, 4))
    assert not any(b"cluster" in data or b"1.1" in data for data in disk.contents().values())
    _, back = Log.open(disk.open(), OWNER, codec=_Mask())
    assert back.entries[-1] == entries(4, 4)[0]
    assert back.snapshot_pieces == (b"state",)


def test_records_are_arrays_so_that_fields_can_be_added() -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(HardState(1, 2, 3))) == [1, 2, 3]
