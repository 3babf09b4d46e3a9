"""What the first release wrote is read: its log and its snapshots (fixtures made by the code of commit 501a209)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from swarm_agent.store import Store

FILE = Path(__file__).parent / "fixtures" / "first_release.bin"
MADE: dict[str, Any] = msgspec.msgpack.decode(FILE.read_bytes())


def plain(row: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(row))


def by_id(rows: list[Any]) -> dict[tuple[str, str], Any]:
    return {(row["kind"], row["id"]): row for row in rows}


def contents(store: Store) -> dict[tuple[str, str], Any]:
    return by_id([plain(row) for table in store.tables.values() for row in table.all()])


def applied(count: int, onto: Store | None = None) -> Store:
    store = onto or Store()
    for index in range(store.index + 1, count + 1):
        store.apply(index, 1, MADE["entries"][index - 1])
    return store


@pytest.mark.parametrize("number", range(len(MADE["snapshots"])))
def test_its_log_and_its_snapshot_give_the_rows_it_had(number: int) -> None:
    count, data = MADE["snapshots"][number]
    index, rows, now = msgspec.msgpack.decode(data)
    assert index == count
    assert len(rows) > 5
    from_log, from_snapshot = applied(count), Store()
    from_snapshot.restore(count, (data,))
    assert contents(from_log) == contents(from_snapshot) == by_id(rows)
    assert from_log.now == from_snapshot.now == now


def test_its_log_goes_on_where_its_snapshot_ends() -> None:
    count, data = MADE["snapshots"][0]
    store = Store()
    store.restore(count, (data,))
    assert contents(applied(len(MADE["entries"]), store)) == contents(applied(len(MADE["entries"])))


def test_its_cluster_is_at_the_first_level() -> None:
    cluster = applied(len(MADE["entries"])).cluster
    assert cluster is not None
    assert cluster.feature_level == 1


def test_at_the_first_level_its_very_snapshots_are_written() -> None:
    """So a manager that is downgraded before the level was raised finds what it wrote itself. Value for value: how wide the head of a
    map is may differ, and no reader minds."""
    for count, data in MADE["snapshots"]:
        written = b"".join(applied(count).snapshot())
        assert msgspec.msgpack.decode(written) == msgspec.msgpack.decode(data)
