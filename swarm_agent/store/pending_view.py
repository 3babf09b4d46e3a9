"""Writes that are not committed yet, laid over a view: what a pass of decisions reads and fills."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from operator import attrgetter
from typing import Any, Generic, TypeVar

from swarm_agent.objects import features
from swarm_agent.objects.base import Record
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
from swarm_agent.store.store import Store
from swarm_agent.store.tables import INDEXES, Table
from swarm_agent.store.writes import Delete, Group, Put, SetStatus, Write

R = TypeVar("R", bound=Record)

_STAMPED = ("version", "created_at", "updated_at")
_BUT_STATUS = attrgetter(*(f for f in Task.__struct_fields__ if f != "status" and f not in _STAMPED))


def _only_status(now: Task, stored: Task) -> bool:
    """Whether two rows of a task differ in nothing but its status."""
    if now.node_id != stored.node_id or now.desired_state != stored.desired_state:  # what is changed most
        return False
    return bool(_BUT_STATUS(now) == _BUT_STATUS(stored))


class _Rows(Generic[R]):
    """One kind of record: the local rows hide the base ones; ``gone`` hides without replacing.

    Local rows are entered into their indexes when somebody asks one: most of a pass are written last and looked up never.
    """

    __slots__ = ("_cls", "_indexed", "_late", "base", "gone", "local")

    def __init__(self, cls: type[R], base: Table[R]) -> None:
        self.base = base
        self.local: dict[str, R] = {}
        self.gone: set[str] = set()
        self._cls = cls
        self._indexed: Table[R] | None = None
        self._late: dict[str, None] = {}  # local rows that are not in the indexes as they are now

    def put(self, row: R) -> None:
        self.gone.discard(row.id)
        self.local[row.id] = row
        self._late[row.id] = None

    def drop(self, id_: str) -> None:
        """Forget a local row."""
        if self.local.pop(id_, None) is not None:
            self._late.pop(id_, None)
            if self._indexed is not None:
                self._indexed.delete(id_)

    def get(self, id_: str) -> R | None:
        if id_ in self.gone:
            return None
        return self.local.get(id_) or self.base.rows.get(id_)

    def all(self) -> Iterator[R]:
        hidden = self.local
        yield from (r for r in self.base.all() if r.id not in hidden and r.id not in self.gone)
        yield from list(hidden.values())

    def by(self, index: str, key: Hashable) -> Iterator[R]:
        hidden, gone = self.local, self.gone
        if not hidden and not gone:
            return self.base.by(index, key)
        found = [r for r in self.base.by(index, key) if r.id not in hidden and r.id not in gone]
        if hidden:
            found.extend(self._index().by(index, key))
        return iter(found)

    def _index(self) -> Table[R]:
        """The local rows with their indexes."""
        if self._indexed is None:
            self._indexed = Table(INDEXES[self._cls])
        for id_ in self._late:
            self._indexed.put(self.local[id_])
        self._late.clear()
        return self._indexed

    def __len__(self) -> int:
        new = sum(1 for i in self.local if i not in self.base.rows)
        return len(self.base) + new - sum(1 for i in self.gone if i in self.base.rows)


class PendingView:
    """A view with writes on top. Writes are collected under the group key set by :meth:`group`.

    A row written twice under different keys stays in the first group: the two decisions stand or fall together.
    """

    def __init__(self, base: Store) -> None:
        self.base = base
        self._rows: dict[type[Record], _Rows[Any]] = {cls: _Rows(cls, base.tables[cls]) for cls in INDEXES}
        self._key = ""
        self._owner: dict[tuple[type[Record], str], str] = {}

    def group(self, key: str) -> None:
        """Writes from here on belong to ``key``."""
        self._key = key

    @property
    def key(self) -> str:
        """Of the group that is being collected."""
        return self._key

    def put(self, row: Record) -> None:
        self._rows[type(row)].put(row)
        self._owner.setdefault((type(row), row.id), self._key)

    def delete(self, row: Record) -> None:
        rows = self._rows[type(row)]
        rows.drop(row.id)
        rows.gone.add(row.id)
        self._owner.setdefault((type(row), row.id), self._key)

    def row(self, cls: type[R], id_: str) -> R | None:
        """One row of a kind that is known only at run time."""
        found: R | None = self._rows[cls].get(id_)
        return found

    def groups(self) -> tuple[Group, ...]:
        """The collected writes, each carrying the version it was based on; rows that ended as they began are left out."""
        out: dict[str, list[Write]] = {}
        compact = self.base.feature_level >= features.COMPACT_STATUS
        for (cls, id_), key in self._owner.items():
            rows = self._rows[cls]
            stored = rows.base.get(id_)
            now = rows.get(id_)
            if now is stored or now == stored:
                continue
            expect = 0 if stored is None else stored.version
            write: Write
            if now is None:
                write = Delete(cls.__name__.lower(), id_, expect)
            elif compact and cls is Task and stored is not None and _only_status(now, stored):
                write = SetStatus(id_, now.status, expect)
            else:
                write = Put(now, expect)
            out.setdefault(key, []).append(write)
        return tuple(Group(key, tuple(writes)) for key, writes in out.items())

    # --- View ------------------------------------------------------------------------------------------------
    @property
    def nodes(self) -> _Rows[Node]:
        return self._rows[Node]

    @property
    def services(self) -> _Rows[Service]:
        return self._rows[Service]

    @property
    def revisions(self) -> _Rows[Revision]:
        return self._rows[Revision]

    @property
    def tasks(self) -> _Rows[Task]:
        return self._rows[Task]

    @property
    def networks(self) -> _Rows[Network]:
        return self._rows[Network]

    @property
    def attachments(self) -> _Rows[Attachment]:
        return self._rows[Attachment]

    @property
    def secrets(self) -> _Rows[Secret]:
        return self._rows[Secret]

    @property
    def configs(self) -> _Rows[Config]:
        return self._rows[Config]

    @property
    def contents(self) -> _Rows[Content]:
        return self._rows[Content]

    @property
    def cluster(self) -> Cluster | None:
        rows = self._rows[Cluster]
        return next(rows.all(), None) if rows.local or rows.gone else self.base.cluster
