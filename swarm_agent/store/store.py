"""The store: applies entries in log order, identically on every manager."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import force_setattr

from swarm_agent.objects import features
from swarm_agent.objects.base import Record
from swarm_agent.objects.errors import ReleaseTooOld
from swarm_agent.objects.records import (
    Attachment,
    Cluster,
    Config,
    Content,
    Network,
    Node,
    Revision,
    Secret,
    Service,
    Task,
)
from swarm_agent.store.sharing import Sharing
from swarm_agent.store.snapshots import NewerFormat, SnapshotView, read_snapshot
from swarm_agent.store.tables import INDEXES, KINDS, TALLIES, Table
from swarm_agent.store.writes import Group, Put, SetStatus, UnknownEntry, Write, decode_entry


class Change(msgspec.Struct, frozen=True, gc=False):
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


_WITH_SPEC_VERSION = frozenset((Node, Service, Cluster))
_SPEC_VERSION_LATER = frozenset((Secret, Config))  # from features.SPEC_VERSIONS on

Watcher = Callable[[int, Sequence[Change]], None]


class Store:
    """Committed state. The only writer is :meth:`apply`; a :class:`View` for whoever reads.

    What was written above its ``level``, or by a release that knows more, is refused with ReleaseTooOld before anything of it is
    done: the member ends there, and goes on from there once it is upgraded.

    Watchers are called after each entry, in order, with every change of it; they must not raise and must not write.
    """

    def __init__(self, level: int = features.LEVEL) -> None:
        self.level = level  # the highest feature level this manager goes along with
        self.refused = ""  # why the log or a snapshot cannot be followed, as it was raised
        self.index = 0  # Raft index of the last applied entry
        self.now = 0  # the time of that entry; clocks of leaders differ, this one never goes back
        self.tables: dict[type[Record], Table[Any]] = {
            cls: Table(keys, TALLIES.get(cls)) for cls, keys in INDEXES.items()
        }
        self._sharing = Sharing(self.tables)
        self._watchers: tuple[tuple[Watcher, frozenset[type[Record]]], ...] = ()

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
    def contents(self) -> Table[Content]:
        return self.tables[Content]

    @property
    def cluster(self) -> Cluster | None:
        return next(iter(self.tables[Cluster].rows.values()), None)

    @property
    def feature_level(self) -> int:
        """What may be written to this cluster."""
        cluster = self.cluster
        return features.FIRST if cluster is None else cluster.feature_level

    # --- state machine -----------------------------------------------------------------------------------------
    def apply(self, index: int, term: int, data: bytes) -> ApplyResult:  # noqa: ARG002 - the log's signature
        """Apply one committed entry; groups whose checks fail leave no trace."""
        try:
            entry = decode_entry(data)
        except UnknownEntry as err:
            raise self._refusal(
                f"entry {index} of the log holds what this release does not know ({err})"
            ) from err
        for group in entry.groups:
            for write in group.writes:
                if isinstance(write, Put) and isinstance(write.record, Cluster):
                    self._check_level(write.record.feature_level)
        changes: list[Change] = []
        self.now = now = max(self.now, entry.now)
        accepted = tuple([self._group(group, index, now, changes) for group in entry.groups])
        self.index = index
        self._publish(index, changes)
        return ApplyResult(index, accepted)

    def snapshot(self) -> SnapshotView:
        """All rows as of the last applied entry; what is applied later does not change it."""
        rows = (tuple(t.rows.values()) for t in self.tables.values())
        return SnapshotView(self.index, self.now, self.feature_level, rows)

    def restore(self, index: int, pieces: Iterable[bytes]) -> None:
        """Replace everything; watchers see the difference. What cannot be read changes nothing."""
        try:
            head, found = read_snapshot(pieces)
        except NewerFormat as err:
            raise self._refusal(str(err)) from err
        self._check_level(head.level)
        rows = [row for some in found for row in some]
        rows.sort(key=lambda row: isinstance(row, Task))  # tasks last: they share what the others hold
        self.now = head.now
        changes: list[Change] = []
        kept: dict[type[Record], set[str]] = {cls: set() for cls in self.tables}
        for row in rows:
            kept[type(row)].add(row.id)
            table = self.tables[type(row)]
            if type(row) is Task:
                self._sharing.task(row, table.rows.get(row.id))
            old = table.put(row)
            if old != row:
                changes.append(Change(old, row))
        for cls, table in self.tables.items():
            vanished = [i for i in table.rows if i not in kept[cls]]
            changes.extend(Change(table.delete(i), None) for i in vanished)
        self.index = index
        self._publish(index, changes)

    def _check_level(self, level: int) -> None:
        why = features.too_low(self.level, level)
        if why:
            self.refused = why
            raise ReleaseTooOld(why)

    def _refusal(self, what: str) -> ReleaseTooOld:
        self.refused = (
            f"{what}: it knows feature level {features.LEVEL}, a later one was written. Install a release that knows it "
            "(the other managers run one) and restart"
        )
        return ReleaseTooOld(self.refused)

    # --- watching ----------------------------------------------------------------------------------------------
    def watch(self, watcher: Watcher, *kinds: type[Record]) -> Callable[[], None]:
        """Call ``watcher`` after every later entry; returns what ends it. No entry is missed in between.

        With ``kinds`` only after entries that changed a row of one of them; such an entry is shown whole all the same.
        """
        registered = (watcher, frozenset(kinds))
        self._watchers = (*self._watchers, registered)

        def stop() -> None:
            self._watchers = tuple(w for w in self._watchers if w is not registered)

        return stop

    def _publish(self, index: int, changes: Sequence[Change]) -> None:
        changed: set[type[Record]] | None = None
        for watcher, kinds in self._watchers:
            if kinds:
                if changed is None:
                    changed = {type(change.row) for change in changes}
                if kinds.isdisjoint(changed):
                    continue
            watcher(index, changes)

    # --- one group ---------------------------------------------------------------------------------------------
    def _group(self, group: Group, index: int, now: int, changes: list[Change]) -> bool:
        for write in group.writes:
            if not self._holds(write):
                return False
        for write in group.writes:
            if isinstance(write, Put):
                changes.append(self._put(write.record, index, now))
            elif isinstance(write, SetStatus):
                change = self._set_status(write, index, now)
                if change is not None:
                    changes.append(change)
            else:
                gone = self.tables[KINDS[write.kind]].delete(write.id)
                if gone is not None:
                    changes.append(Change(gone, None))
        return True

    def _holds(self, write: Write) -> bool:
        if isinstance(write, Put):
            current = self.tables[type(write.record)].rows.get(write.record.id)
        elif isinstance(write, SetStatus):
            task = self.tasks.rows.get(write.task_id)
            return task is not None and task.version == write.expect
        else:
            current = self.tables[KINDS[write.kind]].rows.get(write.id)
        return (0 if current is None else current.version) == write.expect

    def _put(self, record: Any, index: int, now: int) -> Change:
        """``record`` came out of the entry: nobody else holds it, so it is stamped in place."""
        kind = type(record)
        table = self.tables[kind]
        old = table.rows.get(record.id)
        if kind is Task:
            self._sharing.task(record, old)
        elif kind in _WITH_SPEC_VERSION or (
            kind in _SPEC_VERSION_LATER and self.feature_level >= features.SPEC_VERSIONS
        ):
            if old is not None and old.spec == record.spec:
                force_setattr(record, "spec", old.spec)
                force_setattr(record, "spec_version", old.spec_version)
            else:
                force_setattr(record, "spec_version", index)
        force_setattr(record, "version", index)
        force_setattr(record, "created_at", now if old is None else old.created_at)
        force_setattr(record, "updated_at", now)
        table.put(record)
        return Change(old, record)

    def _set_status(self, write: SetStatus, index: int, now: int) -> Change | None:
        tasks = self.tasks
        old = tasks.rows.get(write.task_id)
        if old is None:
            return None  # deleted by an earlier write of its group
        self._sharing.status(write.status)
        row = msgspec.structs.replace(old, status=write.status, version=index, updated_at=now)
        tasks.swap(row, old)
        return Change(old, row)
