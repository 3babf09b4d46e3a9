"""Rows and their indexes, and the read side every decision is made on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

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

R = TypeVar("R", bound=Record)
R_co = TypeVar("R_co", bound=Record, covariant=True)
KeyOf = Callable[[Any], Hashable]

INDEXES: dict[type[Record], dict[str, KeyOf]] = {
    Cluster: {},
    Node: {"hostname": lambda n: n.description.hostname.lower(), "role": lambda n: n.role},
    Service: {"name": lambda s: (s.spec.name or "").lower()},
    Revision: {"service": lambda r: r.service_id},
    Task: {
        "service": attrgetter("service_id"),
        "node": attrgetter("node_id"),
        "slot": attrgetter("service_id", "slot", "preset"),
    },
    Network: {"name": lambda n: (n.spec.name or "").lower()},
    Attachment: {"node": lambda a: a.node_id, "network": lambda a: a.network_id},
    Secret: {"name": lambda s: (s.spec.name or "").lower()},
    Config: {"name": lambda c: (c.spec.name or "").lower()},
    Content: {"owner": attrgetter("owner")},
}

TALLIES: dict[type[Record], dict[str, KeyOf]] = {
    Node: {"state": attrgetter("status.state")},
    Task: {"state": attrgetter("status.state")},
}
"""How many rows there are of each value, without looking at them."""

KINDS: dict[str, type[Record]] = {cls.__name__.lower(): cls for cls in INDEXES}


class Rows(Protocol[R_co]):
    """Read access to one kind of record."""

    def get(self, id_: str) -> R_co | None: ...
    def all(self) -> Iterator[R_co]: ...
    def by(self, index: str, key: Hashable) -> Iterator[R_co]: ...
    def __len__(self) -> int: ...


class Table(Generic[R]):
    """The stored rows of one kind, in insertion order, with their indexes and tallies.

    A bucket of an index that holds one row is its id, one that holds more a dict of ids: nearly every slot holds one.
    """

    __slots__ = ("_index_list", "_indexes", "_tallies", "rows", "tallies")

    def __init__(self, keys: Mapping[str, KeyOf], tallies: Mapping[str, KeyOf] | None = None) -> None:
        self.rows: dict[str, R] = {}
        self._indexes: dict[str, dict[Hashable, str | dict[str, None]]] = {name: {} for name in keys}
        self._index_list = [(key_of, self._indexes[name]) for name, key_of in keys.items()]
        self.tallies: dict[str, Counter[Any]] = {name: Counter() for name in tallies or ()}
        self._tallies = [(key_of, self.tallies[name]) for name, key_of in (tallies or {}).items()]

    def get(self, id_: str) -> R | None:
        return self.rows.get(id_)

    def all(self) -> Iterator[R]:
        """All rows as they are now, whatever is written while they are iterated: a copy, so not for every commit."""
        return iter(list(self.rows.values()))

    def by(self, index: str, key: Hashable) -> Iterator[R]:
        bucket = self._indexes[index].get(key)
        rows = self.rows
        if bucket is None:
            return iter(())
        if isinstance(bucket, str):
            return iter((rows[bucket],))
        return iter([rows[i] for i in bucket])

    def ids(self, index: str, key: Hashable) -> list[str]:
        bucket = self._indexes[index].get(key, ())
        return [bucket] if isinstance(bucket, str) else list(bucket)

    def count(self, index: str, key: Hashable) -> int:
        """How many rows there are under a key, without looking at them."""
        bucket = self._indexes[index].get(key, ())
        return 1 if isinstance(bucket, str) else len(bucket)

    def has(self, index: str, key: Hashable) -> bool:
        return key in self._indexes[index]

    def keys(self, index: str) -> list[Any]:
        """Every key of an index that some row has."""
        return list(self._indexes[index])

    def __len__(self) -> int:
        return len(self.rows)

    def put(self, row: R) -> R | None:
        """Store a row; returns the one it replaced."""
        id_ = row.id
        old = self.rows.get(id_)
        self.rows[id_] = row
        if old is None:
            for key_of, index in self._index_list:
                _enter(index, key_of(row), id_)
            for key_of, tally in self._tallies:
                tally[key_of(row)] += 1
            return None
        for key_of, index in self._index_list:
            key, before = key_of(row), key_of(old)
            if key != before:
                _leave(index, before, id_)
                _enter(index, key, id_)
        self._tally(row, old)
        return old

    def swap(self, row: R, old: R) -> None:
        """Replace ``old`` by a row that has the same keys in every index."""
        self.rows[old.id] = row
        self._tally(row, old)

    def delete(self, id_: str) -> R | None:
        old = self.rows.pop(id_, None)
        if old is not None:
            for key_of, index in self._index_list:
                _leave(index, key_of(old), id_)
            for key_of, tally in self._tallies:
                _take(tally, key_of(old))
        return old

    def _tally(self, row: R, old: R) -> None:
        for key_of, tally in self._tallies:
            key, before = key_of(row), key_of(old)
            if key != before:
                tally[key] += 1
                _take(tally, before)


def _enter(index: dict[Hashable, str | dict[str, None]], key: Hashable, id_: str) -> None:
    bucket = index.get(key)
    if bucket is None:
        index[key] = id_
    elif isinstance(bucket, str):
        index[key] = {bucket: None, id_: None}
    else:
        bucket[id_] = None


def _leave(index: dict[Hashable, str | dict[str, None]], key: Hashable, id_: str) -> None:
    bucket = index[key]
    if isinstance(bucket, str):
        del index[key]
        return
    del bucket[id_]
    if len(bucket) == 1:
        index[key] = next(iter(bucket))


def _take(tally: Counter[Any], key: Any) -> None:
    tally[key] -= 1
    if not tally[key]:
        del tally[key]


def slot_key(service_id: str, place: int | str) -> tuple[str, int, str]:
    """The key of the tasks' index "slot": a place is a slot's number or, in global modes, a node's id."""
    return (service_id, 0, place) if isinstance(place, str) else (service_id, place, "")


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
    def contents(self) -> Rows[Content]: ...
    @property
    def cluster(self) -> Cluster | None: ...
