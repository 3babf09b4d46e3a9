"""Rows and their indexes, and the read side every decision is made on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

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

R = TypeVar("R", bound=Record)
R_co = TypeVar("R_co", bound=Record, covariant=True)
KeyOf = Callable[[Any], Hashable]

INDEXES: dict[type[Record], dict[str, KeyOf]] = {
    Cluster: {},
    Node: {"hostname": lambda n: n.description.hostname.lower(), "role": lambda n: n.role},
    Service: {"name": lambda s: (s.spec.name or "").lower()},
    Revision: {"service": lambda r: r.service_id},
    Task: {
        "service": lambda t: t.service_id,
        "node": lambda t: t.node_id,
        "slot": lambda t: (t.service_id, t.slot),
    },
    Network: {"name": lambda n: (n.spec.name or "").lower()},
    Attachment: {"node": lambda a: a.node_id, "network": lambda a: a.network_id},
    Secret: {"name": lambda s: (s.spec.name or "").lower()},
    Config: {"name": lambda c: (c.spec.name or "").lower()},
}

KINDS: dict[str, type[Record]] = {cls.__name__.lower(): cls for cls in INDEXES}


class Rows(Protocol[R_co]):
    """Read access to one kind of record."""

    def get(self, id_: str) -> R_co | None: ...
    def all(self) -> Iterator[R_co]: ...
    def by(self, index: str, key: Hashable) -> Iterator[R_co]: ...
    def __len__(self) -> int: ...


class Table(Generic[R]):
    """The stored rows of one kind, in insertion order, with their indexes."""

    __slots__ = ("_indexes", "_keys", "rows")

    def __init__(self, keys: Mapping[str, KeyOf]) -> None:
        self.rows: dict[str, R] = {}
        self._keys = keys
        self._indexes: dict[str, dict[Hashable, dict[str, None]]] = {name: {} for name in keys}

    def get(self, id_: str) -> R | None:
        return self.rows.get(id_)

    def all(self) -> Iterator[R]:
        return iter(tuple(self.rows.values()))

    def by(self, index: str, key: Hashable) -> Iterator[R]:
        rows = self.rows
        return iter([rows[i] for i in self._indexes[index].get(key, ())])

    def ids_by(self, index: str, key: Hashable) -> Mapping[str, None]:
        return self._indexes[index].get(key, {})

    def __len__(self) -> int:
        return len(self.rows)

    def put(self, row: R) -> R | None:
        """Store a row; returns the one it replaced."""
        old = self.rows.get(row.id)
        self.rows[row.id] = row
        for name, key_of in self._keys.items():
            new_key = key_of(row)
            if old is not None:
                old_key = key_of(old)
                if old_key == new_key:
                    continue
                self._unindex(name, old_key, row.id)
            self._indexes[name].setdefault(new_key, {})[row.id] = None
        return old

    def delete(self, id_: str) -> R | None:
        old = self.rows.pop(id_, None)
        if old is not None:
            for name, key_of in self._keys.items():
                self._unindex(name, key_of(old), id_)
        return old

    def _unindex(self, name: str, key: Hashable, id_: str) -> None:
        bucket = self._indexes[name][key]
        del bucket[id_]
        if not bucket:
            del self._indexes[name][key]


class View(Protocol):
    """A consistent picture of the cluster: the committed one, or one with writes laid over it."""

    @property
    def nodes(self) -> Rows[Node]: ...
    @property
    def services(self) -> Rows[Service]: ...
    @property
    def revisions(self) -> Rows[Revision]: ...
    @property
    def tasks(self) -> Rows[Task]: ...
    @property
    def networks(self) -> Rows[Network]: ...
    @property
    def attachments(self) -> Rows[Attachment]: ...
    @property
    def secrets(self) -> Rows[Secret]: ...
    @property
    def configs(self) -> Rows[Config]: ...
    @property
    def cluster(self) -> Cluster | None: ...
