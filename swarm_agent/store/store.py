"""The store: applies entries in log order, identically on every manager."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from swarm_agent.objects.base import Record
from swarm_agent.objects.records import (
    Attachment,
    Cluster,
    Config,
    Network,
    Node,
    Revision,
    Secret,
    Service,
    Task,
)
from swarm_agent.store.snapshots import SnapshotView, read_snapshot
from swarm_agent.store.tables import INDEXES, KINDS, Table
from swarm_agent.store.writes import Delete, Group, Put, decode_entry


class Change(NamedTuple):
    """One row before and after; exactly one of the two may be ``None``."""

    old: Any
    new: Any

    @property
    def row(self) -> Any:
        return self.old if self.new is None else self.new


class ApplyResult(msgspec.Struct, frozen=True):
    """What became of an entry: its index, and per group whether it was done."""

    index: int
    accepted: tuple[bool, ...]


Watcher = Callable[[int, Sequence[Change]], None]


class Store:
    """Committed state. The only writer is :meth:`apply`; a :class:`View` for whoever reads.

    Watchers are called after each entry, in order, with every change of it; they must not raise and must not write.
    """

    def __init__(self) -> None:
        self.index = 0  # Raft index of the last applied entry
        self.now = 0  # the time of that entry; clocks of leaders differ, this one never goes back
        self.tables: dict[type[Record], Table[Any]] = {cls: Table(keys) for cls, keys in INDEXES.items()}
        self._watchers: list[Watcher] = []

    # --- View ------------------------------------------------------------------------------------------------
    @property
    def nodes(self) -> Table[Node]:
        return self.tables[Node]

    @property
    def services(self) -> Table[Service]:
        return self.tables[Service]

    @property
    def revisions(self) -> Table[Revision]:
        return self.tables[Revision]

    @property
    def tasks(self) -> Table[Task]:
        return self.tables[Task]

    @property
    def networks(self) -> Table[Network]:
        return self.tables[Network]

    @property
    def attachments(self) -> Table[Attachment]:
        return self.tables[Attachment]

    @property
    def secrets(self) -> Table[Secret]:
        return self.tables[Secret]

    @property
    def configs(self) -> Table[Config]:
        return self.tables[Config]

    @property
    def cluster(self) -> Cluster | None:
        return next(self.tables[Cluster].all(), None)

    # --- state machine -----------------------------------------------------------------------------------------
    def apply(self, index: int, term: int, data: bytes) -> ApplyResult:  # noqa: ARG002 - the log's signature
        """Apply one committed entry; groups whose checks fail leave no trace."""
        entry = decode_entry(data)
        changes: list[Change] = []
        self.now = max(self.now, entry.now)
        accepted = tuple(self._group(group, index, self.now, changes) for group in entry.groups)
        self.index = index
        self._publish(index, changes)
        return ApplyResult(index, accepted)

    def snapshot(self) -> SnapshotView:
        """All rows as of the last applied entry; what is applied later does not change it."""
        return SnapshotView(self.index, self.now, (tuple(t.rows.values()) for t in self.tables.values()))

    def restore(self, index: int, pieces: Iterable[bytes]) -> None:
        """Replace everything; watchers see the difference. What cannot be read changes nothing."""
        head, found = read_snapshot(pieces)
        rows = [row for some in found for row in some]
        self.now = head.now
        changes: list[Change] = []
        kept: dict[type[Record], set[str]] = {cls: set() for cls in self.tables}
        for row in rows:
            kept[type(row)].add(row.id)
            old = self.tables[type(row)].put(row)
            if old != row:
                changes.append(Change(old, row))
        for cls, table in self.tables.items():
            vanished = [i for i in table.rows if i not in kept[cls]]
            changes.extend(Change(table.delete(i), None) for i in vanished)
        self.index = index
        self._publish(index, changes)

    # --- watching ----------------------------------------------------------------------------------------------
    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call ``watcher`` after every later entry; returns what ends it. No entry is missed in between."""
        self._watchers.append(watcher)

        def stop() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return stop

    def _publish(self, index: int, changes: Sequence[Change]) -> None:
        for watcher in tuple(self._watchers):
            watcher(index, changes)

    # --- one group ---------------------------------------------------------------------------------------------
    def _group(self, group: Group, index: int, now: int, changes: list[Change]) -> bool:
        if not all(self._holds(write) for write in group.writes):
            return False
        changes.extend(self._do(group.writes, index, now))
        return True

    def _holds(self, write: Put | Delete) -> bool:
        if isinstance(write, Put):
            current = self.tables[type(write.record)].get(write.record.id)
        else:
            current = self.tables[KINDS[write.kind]].get(write.id)
        return (0 if current is None else current.version) == write.expect

    def _do(self, writes: Iterable[Put | Delete], index: int, now: int) -> Iterable[Change]:
        for write in writes:
            if isinstance(write, Delete):
                gone = self.tables[KINDS[write.kind]].delete(write.id)
                if gone is not None:
                    yield Change(gone, None)
                continue
            table = self.tables[type(write.record)]
            old = table.get(write.record.id)
            stamps: dict[str, int] = {
                "version": index,
                "created_at": old.created_at if old is not None else now,
                "updated_at": now,
            }
            if isinstance(write.record, Node | Service | Cluster):
                unchanged = old is not None and old.spec == write.record.spec
                stamps["spec_version"] = old.spec_version if old is not None and unchanged else index
            row = msgspec.structs.replace(write.record, **stamps)
            table.put(row)
            yield Change(old, row)
