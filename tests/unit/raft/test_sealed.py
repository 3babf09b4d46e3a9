"""The encrypted log: what opens it, what is refused, and how keys change under power cuts."""

from __future__ import annotations

import random

import msgspec
import pytest

from swarm_agent.raft.core import ConfState, Entry, HardState, Member, SnapshotMeta
from swarm_agent.raft.errors import LogCorrupt
from swarm_agent.raft.log import (
    DataKey,
    DataKeys,
    Log,
    Owner,
    Recovered,
    SealedCodec,
    new_data_key,
)
from swarm_agent.raft.log.records import MAGIC, frame, record_at, scan
from swarm_agent.raft.log.sealed import SEALED
from tests.lib.fake_disk import FakeDisk, PowerCut
from tests.lib.raft_keys import load_keys, save_keys

OWNER = Owner("cluster", "node1", 1)
CONF = ConfState((Member(1, "node1", "a1"),))
SECRET = b"the secret of a service"
ONE = DataKeys((DataKey(1, b"1" * 32),))
TWO = DataKeys((DataKey(2, b"2" * 32),))


def codec(keys: DataKeys = ONE, seed: int = 1) -> SealedCodec:
    return SealedCodec(keys, random.Random(seed).randbytes)


def platter(seed: int = 0) -> FakeDisk:
    return FakeDisk(random.Random(seed))


def entries(first: int, last: int, term: int = 1) -> tuple[Entry, ...]:
    return tuple(Entry(i, term, 0, b"%d.%d %s" % (i, term, SECRET)) for i in range(first, last + 1))


def reopen(
    disk: FakeDisk, keys: DataKeys = ONE, *, segment_bytes: int = 16 << 20
) -> tuple[Log, Recovered, SealedCodec]:
    opened = codec(keys)
    return *Log.open(disk.open(), OWNER, codec=opened, segment_bytes=segment_bytes), opened


def snapshot(log: Log, index: int, keep_from: int, data: bytes = SECRET, term: int = 1) -> None:
    for step in log.snapshot_steps(SnapshotMeta(index, term, CONF), (data,), keep_from=keep_from):
        while step():
            pass


def small_log(keys: DataKeys = ONE) -> tuple[FakeDisk, str, list[int]]:
    """A log of three batches; its file and where each record ends."""
    disk = platter()
    log, _, _ = reopen(disk, keys)
    (name,) = disk.contents()
    ends = [len(disk.contents()[name])]
    for i in range(1, 4):
        log.append(HardState(1, 0, i - 1), entries(i, i))
        ends.append(len(disk.contents()[name]))
    return disk, name, ends


def resealed(data: bytes, changed: dict[int, bytes]) -> bytes:
    """The file as somebody writes it who knows the format and no key: records replaced, every crc and link right."""
    out, crc, salt = b"", 0, 0
    first = record_at(memoryview(data), 0, 0)
    assert first is not None
    for number, record in enumerate([first, *scan(data, first.end, first.crc, first.crc)]):
        blob, crc = frame(record.kind, changed.get(number, record.payload), crc, salt)
        salt = salt or crc
        out += blob
    return out


# --- the stored form ---------------------------------------------------------------------------------------------------
def test_what_is_sealed_opens_at_its_place_and_nowhere_else() -> None:
    one = codec()
    stored = one.seal(b"payload", b"a.wal:17")
    assert stored[0] == SEALED
    assert b"payload" not in stored
    assert codec().open(stored, b"a.wal:17") == b"payload"
    for elsewhere in (b"a.wal:18", b"b.wal:17"):
        with pytest.raises(LogCorrupt, match="changed by somebody, or belongs to another key"):
            one.open(stored, elsewhere)


def test_every_flipped_bit_of_a_sealed_record_is_noticed() -> None:
    one = codec()
    stored = one.seal(b"payload", b"a.wal:17")
    for at in range(len(stored)):
        for bit in range(8):
            flipped = bytearray(stored)
            flipped[at] ^= 1 << bit
            with pytest.raises(LogCorrupt):
                one.open(bytes(flipped), b"a.wal:17")
    for size in range(len(stored)):
        with pytest.raises(LogCorrupt):
            one.open(stored[:size], b"a.wal:17")


def test_equal_payloads_are_stored_differently_each_time() -> None:
    one = codec()
    assert len({one.seal(b"same", b"a.wal:17") for _ in range(100)}) == 100


def test_an_unknown_key_is_named_and_a_wrong_one_refused() -> None:
    stored = codec(TWO).seal(b"x", b"a.wal:5")
    with pytest.raises(LogCorrupt, match="data key 2, which the key file does not hold"):
        codec(ONE).open(stored, b"a.wal:5")
    impostor = DataKeys((DataKey(2, b"9" * 32),))
    with pytest.raises(LogCorrupt, match="does not open with data key 2"):
        codec(impostor).open(stored, b"a.wal:5")


def test_keys_do_not_show_in_what_is_printed_of_them() -> None:
    assert "111" not in repr(ONE)
    assert "111" not in repr(codec(ONE).keys.current)


def test_no_msgpack_value_begins_with_the_magic_byte() -> None:
    values = [None, True, 1, -1, 1 << 40, 1.5, "s", b"b", [1], list(range(70_000)), {"a": 1}, "s" * 300]
    assert all(msgspec.msgpack.encode(v)[0] != SEALED for v in values)


# --- the log under it ----------------------------------------------------------------------------------------------------
def test_nothing_of_the_log_is_readable_on_disk() -> None:
    disk, _, _ = small_log()
    log, _, _ = reopen(disk)
    snapshot(log, 3, keep_from=2)
    raw = b"".join(disk.contents().values())
    assert SECRET not in raw
    assert b"cluster" not in raw
    assert reopen(disk)[1].snapshot_pieces == (SECRET,)


def test_every_flipped_bit_on_disk_is_noticed_or_looks_like_a_torn_end() -> None:
    disk, name, ends = small_log()
    data = disk.contents()[name]
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            damaged = platter()
            damaged.replace(name, bytes(flipped))
            if at < ends[-2]:
                with pytest.raises(LogCorrupt):
                    reopen(damaged)
            else:
                assert reopen(damaged)[1].entries == list(entries(1, 2))


def test_a_change_by_somebody_who_repairs_every_crc_is_refused() -> None:
    disk, name, _ = small_log()
    data = disk.contents()[name]
    assert resealed(data, {}) == data
    first = record_at(memoryview(data), 0, 0)
    assert first is not None
    stored = [first.payload, *(r.payload for r in scan(data, first.end, first.crc, first.crc))]
    forged = 0
    for number, payload in enumerate(stored):
        for at in range(len(payload)):
            damaged = platter()
            wrong = payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]
            damaged.replace(name, resealed(data, {number: wrong}))
            with pytest.raises(LogCorrupt):
                reopen(damaged)
            forged += 1
    for number in (2, 3):  # another record of the same file; a plain one
        for other in (stored[1], msgspec.msgpack.encode((HardState(9, 9, 9), entries(2, 2)))):
            damaged = platter()
            damaged.replace(name, resealed(data, {number: other}))
            with pytest.raises(LogCorrupt):
                reopen(damaged)
    assert forged == sum(map(len, stored)) > 250


def test_a_file_under_another_name_is_refused() -> None:
    disk, name, _ = small_log()
    renamed = platter()
    renamed.replace(name.replace("00000001-", "00000002-"), disk.contents()[name])
    with pytest.raises(LogCorrupt):
        reopen(renamed)


def test_a_wrong_key_opens_nothing_and_changes_nothing() -> None:
    disk, _, _ = small_log()
    before = disk.contents()
    for wrong in (TWO, DataKeys((DataKey(1, b"x" * 32),))):
        with pytest.raises(LogCorrupt, match="key"):
            reopen(disk, wrong)
    assert disk.contents() == before
    assert reopen(disk)[1].entries == list(entries(1, 3))


def test_a_torn_tail_is_still_cut_at_every_byte() -> None:
    disk, name, ends = small_log()
    data = disk.contents()[name]
    for size in range(ends[0], len(data) + 1):
        torn = platter()
        torn.replace(name, data[:size])
        log, back, _ = reopen(torn)
        whole = sum(end <= size for end in ends) - 1
        assert back.entries == list(entries(1, whole)), size
        log.append(HardState(1), entries(whole + 1, whole + 1, term=7))
        assert reopen(torn)[1].entries == [*entries(1, whole), *entries(whole + 1, whole + 1, term=7)]


# --- from plain to encrypted ---------------------------------------------------------------------------------------------
def plain_log(pieces: bytes = b"state") -> FakeDisk:
    disk = platter()
    log, _ = Log.open(disk.open(), OWNER, segment_bytes=200)
    for i in range(1, 6):
        log.append(HardState(1), entries(i, i))
    snapshot(log, 3, keep_from=3, data=pieces)
    log.append(HardState(1), entries(6, 6))
    return disk


def test_plain_files_are_read_while_they_may_be_there_and_written_to_no_more() -> None:
    disk = plain_log()
    before = disk.contents()
    allowed = DataKeys(ONE.keys, plain=True)
    log, back, _ = reopen(disk, allowed)
    assert back.entries[-1] == entries(6, 6)[0]
    assert back.snapshot_pieces == (b"state",)
    log.append(HardState(2), entries(7, 7))
    after = disk.contents()
    assert {n: d for n, d in after.items() if n in before} == before
    (new,) = set(after) - set(before)
    assert SECRET not in after[new]
    assert reopen(disk, allowed)[1].entries[-1] == entries(7, 7)[0]


def test_plain_files_are_refused_once_all_must_be_encrypted() -> None:
    with pytest.raises(LogCorrupt, match="is not encrypted, and by the key file all files are"):
        reopen(plain_log(), ONE)


def test_a_plain_snapshot_is_read_whatever_its_pieces_begin_with() -> None:
    pieces = bytes([SEALED]) * (1 << 20)
    assert reopen(plain_log(pieces), DataKeys(ONE.keys, plain=True))[1].snapshot_pieces == (pieces,)


def test_a_plain_record_in_an_encrypted_file_is_refused_even_while_plain_files_may_be_there() -> None:
    disk, name, _ = small_log()
    forged = msgspec.msgpack.encode((HardState(9, 9, 9), entries(2, 2)))
    disk.replace(name, resealed(disk.contents()[name], {2: forged}))
    with pytest.raises(LogCorrupt, match="not encrypted"):
        reopen(disk, DataKeys(ONE.keys, plain=True))


# --- changing the key ------------------------------------------------------------------------------------------------------
class _Life:
    """A log whose keys change twice, to be cut at any step; knows what was acknowledged."""

    def __init__(self, disk: FakeDisk, *, plain: bool = False) -> None:
        self.disk = disk
        self.rng = random.Random(7)
        self.acknowledged = 0
        self.keys = 0
        if plain:
            log, _ = Log.open(disk.open(), OWNER, segment_bytes=250)
            log.append(HardState(1), entries(1, 3))
            snapshot(log, 2, keep_from=2)
            log.append(HardState(1), entries(4, 5))
            self.acknowledged = 5
            disk.steps = 0

    def open(self) -> tuple[Log, Recovered, SealedCodec]:
        process = self.disk.open()
        opened = SealedCodec(load_keys(process, self.rng), self.rng.randbytes)
        log, back = Log.open(process, OWNER, codec=opened, segment_bytes=250)
        self.process = process
        return log, back, opened

    def append(self, log: Log, count: int) -> None:
        for _ in range(count):
            log.append(HardState(1), entries(self.acknowledged + 1, self.acknowledged + 1))
            self.acknowledged += 1

    def rotate(self, log: Log, opened: SealedCodec) -> None:
        """What ``raft.rotation`` and ``RaftNode.rotate_log`` do, on a log that is applied to its end."""
        keys = opened.keys.and_then(new_data_key(opened.keys, self.rng.randbytes))
        save_keys(self.process, keys)
        opened.use(keys)
        self.append(log, 1)
        self.finish(log, opened)

    def finish(self, log: Log, opened: SealedCodec) -> None:
        number = log.begin_segment()
        snapshot(log, self.acknowledged, keep_from=self.acknowledged + 1)
        assert log.highest_before(number) is None
        keys = opened.keys.only_current()
        save_keys(self.process, keys)
        opened.use(keys)

    def run(self) -> None:
        log, _, opened = self.open()
        self.append(log, 3)
        self.rotate(log, opened)
        self.append(log, 2)
        self.rotate(log, opened)
        self.append(log, 1)

    def check(self, *, at: object) -> None:
        """What was acknowledged is there; what was cut short can be finished; then no older key is left or needed."""
        log, back, opened = self.open()
        last = back.entries[-1].index if back.entries else back.snapshot.index if back.snapshot else 0
        assert last in {self.acknowledged, self.acknowledged + 1}, at
        self.acknowledged = last
        self.append(log, 1)
        if not opened.keys.settled:
            self.finish(log, opened)
        assert len(opened.keys.keys) == 1, at
        self.append(log, 1)
        for name, data in self.disk.contents().items():
            assert SECRET not in data, (at, name)
        _, back, opened = self.open()
        assert opened.keys.settled, at
        assert back.entries[-1] == entries(self.acknowledged, self.acknowledged)[0], at


@pytest.mark.parametrize("plain", [False, True])
def test_a_power_cut_at_every_step_of_changing_keys_leaves_everything_readable(plain: bool) -> None:
    total = _Life(platter(), plain=plain)
    total.run()
    assert total.disk.steps > 60
    for at in range(total.disk.steps):
        for seed in range(4):
            life = _Life(disk := platter(seed), plain=plain)
            disk.faults.crash_at_step = at
            with pytest.raises(PowerCut):
                life.run()
            disk.crash()
            life.check(at=(at, seed))


def test_an_old_key_opens_nothing_after_the_change() -> None:
    life = _Life(platter())
    log, _, opened = life.open()
    life.append(log, 3)
    old = opened.keys
    life.rotate(log, opened)
    with pytest.raises(LogCorrupt, match="data key 2"):
        Log.open(life.disk.open(), OWNER, codec=SealedCodec(old))
    assert MAGIC in b"".join(life.disk.contents().values())


def test_entries_that_were_overwritten_do_not_keep_an_old_segment() -> None:
    disk = platter()
    log, _, _ = reopen(disk)
    log.append(HardState(1), entries(1, 9))
    number = log.begin_segment()
    assert log.highest_before(number) == 9
    log.append(HardState(2), entries(4, 5, term=2))
    assert log.highest_before(number) == 3
    log, _, _ = reopen(disk)
    assert log.highest_before(number) == 3
    snapshot(log, 5, keep_from=6, term=2)
    assert log.highest_before(number) is None
    assert reopen(disk)[1].snapshot == SnapshotMeta(5, 2, CONF)
