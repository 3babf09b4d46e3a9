"""Snapshots: consistent at the call, readable however they are cut, refused whole when anything is wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_agent.objects.errors import ReleaseTooOld
from swarm_agent.objects.records import Cluster, Config, JoinTokens, RootCA, Service, Task
from swarm_agent.objects.specs import ClusterSpec, ConfigSpec, ServiceSpec
from swarm_agent.store import DamagedSnapshot, Delete, Group, Put, Store, StoreEntry, encode_entry
from swarm_agent.store.snapshots import FirstFormat


def do(store: Store, *writes: Put | Delete) -> None:
    entry = StoreEntry(store.index + 1, (Group("k", writes),))
    assert store.apply(store.index + 1, 1, encode_entry(entry)).accepted == (True,)


def task(number: int) -> Task:
    return Task(id=f"t{number}", service_id="s", service_name="s", revision_id="r", slot=number)


def rows(store: Store) -> dict[str, Any]:
    return {row.id: row for table in store.tables.values() for row in table.all()}


def restored(pieces: Iterable[bytes]) -> Store:
    store = Store()
    store.restore(1, pieces)
    return store


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def a_cluster(level: int) -> Cluster:
    return Cluster(
        id="c",
        spec=ClusterSpec(),
        root_ca=RootCA(cert=b"", key=b"", digest=""),
        join_tokens=JoinTokens(worker="", manager=""),
        feature_level=level,
    )


def a_store(tasks: int = 600, level: int = 2) -> Store:
    store = Store()
    do(store, Put(a_cluster(level), 0))
    do(store, Put(Service(id="s", spec=ServiceSpec(name="s")), 0))
    do(store, *(Put(task(n), 0) for n in range(tasks)))
    return store


STEPS = st.lists(
    st.tuples(st.sampled_from(("put", "put", "delete")), st.integers(0, 9), st.integers(0, 3)), max_size=25
)


def step(store: Store, what: str, number: int, slot: int) -> None:
    stored = store.tasks.get(f"t{number}")
    expect = stored.version if stored is not None else 0
    if what == "put":
        do(store, Put(msgspec.structs.replace(task(number), slot=slot), expect))
    elif expect:
        do(store, Delete("task", f"t{number}", expect))


@settings(max_examples=100, deadline=None)
@given(STEPS, STEPS, st.integers(1, 200), st.integers(1, 2))
def test_a_snapshot_stays_what_the_store_was_at_the_call(
    before: Any, after: Any, size: int, level: int
) -> None:
    store = Store()
    do(store, Put(a_cluster(level), 0))
    for each in before:
        step(store, *each)
    then, now = rows(store), store.now
    view = store.snapshot()
    early = b"".join(view)
    for each in after:
        step(store, *each)
    assert b"".join(view) == early, "the same bytes whenever it is iterated"
    copy = restored(cut(early, size))
    assert rows(copy) == then
    assert copy.now == now


def test_pieces_come_from_another_thread_while_the_store_goes_on() -> None:
    store = a_store()
    view, then = store.snapshot(), rows(store)
    pieces: list[bytes] = []
    reader = threading.Thread(target=lambda: pieces.extend(view))
    reader.start()
    for number in range(600):
        do(store, Delete("task", f"t{number}", 3))
    reader.join()
    assert rows(restored(pieces)) == then
    assert len(store.tasks) == 0


@pytest.mark.parametrize("level", [1, 2])
def test_a_large_state_comes_in_pieces_of_a_bounded_size(level: int) -> None:
    store = Store()
    do(store, Put(a_cluster(level), 0))
    for number in range(12):
        spec = ConfigSpec(name=f"c{number}", data="A" * 300_000)
        do(store, Put(Config(id=f"c{number}", spec=spec), 0))
    sizes = [len(piece) for piece in store.snapshot()]
    assert len(sizes) > 2
    assert all(size < 3 << 20 for size in sizes)
    assert rows(restored(store.snapshot())) == rows(store)


@pytest.mark.parametrize("end", [0, 1, 2, 5, 40, -1])
def test_what_is_cut_off_changes_nothing(end: int) -> None:
    data = b"".join(a_store(3).snapshot())
    store = a_store(1)
    before = rows(store)
    with pytest.raises(DamagedSnapshot):
        store.restore(9, (data[:end],))
    assert rows(store) == before
    assert store.index == 3


def test_what_comes_after_the_end_or_in_an_unknown_format_is_refused() -> None:
    data = b"".join(a_store(3).snapshot())
    with pytest.raises(DamagedSnapshot, match="more than its head says"):
        restored((data, b"x"))
    with pytest.raises(ReleaseTooOld, match="format 77"):
        restored((data[:1], bytes([77]), data[2:]))


@pytest.mark.parametrize("tasks", [0, 5, 20, 70_000])
def test_up_to_the_first_level_a_snapshot_is_the_first_releases(tasks: int) -> None:
    store = a_store(tasks, level=1)
    everything = [row for table in store.tables.values() for row in table.all()]
    old = msgspec.msgpack.encode(FirstFormat(store.index, everything, store.now))
    assert b"".join(store.snapshot()) == old
    other = a_store(tasks, level=2)
    assert b"".join(other.snapshot())[:1] != old[:1]


def test_the_first_formats_snapshots_read() -> None:
    store = a_store(5)
    everything = list(rows(store).values())
    old = msgspec.msgpack.encode(FirstFormat(store.index, everything, store.now))
    for size in (1, 7, len(old)):
        copy = restored(cut(old, size))
        assert rows(copy) == rows(store)
        assert copy.now == store.now
    no_time = msgspec.msgpack.encode([store.index, everything])
    assert restored((no_time,)).now == 0


def test_an_empty_store_has_a_snapshot_too() -> None:
    assert rows(restored(Store().snapshot())) == {}


# --- levels ----------------------------------------------------------------------------------------------------------
def test_a_snapshot_above_our_level_is_refused_and_changes_nothing() -> None:
    pieces = list(a_store(3).snapshot())
    store = Store(level=1)
    do(store, Put(task(1), 0))
    before = rows(store)
    with pytest.raises(ReleaseTooOld, match=r"level 1, the swarm is at level 2.*agent\.toml"):
        store.restore(9, pieces)
    assert "level 2" in store.refused
    assert rows(store) == before
    assert store.index == 1


def test_a_later_releases_snapshot_is_refused_before_its_rows_are_read() -> None:
    data = b"".join(a_store(3).snapshot())
    head = msgspec.msgpack.encode({"index": 3, "now": 3, "rows": 1, "level": 9, "more": True})
    later = data[:2] + len(head).to_bytes(4, "big") + head + b"what only it can read"
    with pytest.raises(ReleaseTooOld, match="install a release that knows level 9"):
        restored((later,))


def test_an_entry_that_goes_above_our_level_is_refused_before_anything_is_done() -> None:
    store = Store(level=1)
    do(store, Put(a_cluster(1), 0))
    raised = msgspec.structs.replace(a_cluster(2))
    entry = StoreEntry(9, (Group("x", (Put(task(1), 0),)), Group("feature level", (Put(raised, 1),))))
    with pytest.raises(ReleaseTooOld):
        store.apply(2, 1, encode_entry(entry))
    assert len(store.tasks) == 0
    assert store.index == 1
    assert store.feature_level == 1
