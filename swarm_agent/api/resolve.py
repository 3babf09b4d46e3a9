"""From what a client wrote in a path to the one object meant: exact id, exact name, unique id prefix."""

from __future__ import annotations

from typing import Any, TypeVar

from swarm_agent.http.server import HttpError
from swarm_agent.objects.base import Record
from swarm_agent.objects.records import Config, Network, Node, Secret, Service, Task
from swarm_agent.store import Store

R = TypeVar("R", bound=Record)
_NAME_INDEX = {Node: "hostname", Service: "name", Network: "name", Secret: "name", Config: "name"}


def resolve(store: Store, kind: type[R], wanted: str) -> R:
    """The object, or 404/400 with Docker's words."""
    table = store.tables[kind]
    word = kind.__name__.lower()
    exact: R | None = table.get(wanted)
    if exact is not None:
        return exact
    found: list[Any] = []
    index = _NAME_INDEX.get(kind)
    if index is not None:
        found = [row for row in table.by(index, wanted.lower()) if _name(row) == wanted]
    elif kind is Task:
        found = [t for t in store.tasks.all() if t.name == wanted]
    if not found and wanted:
        found = [row for row in table.all() if row.id.startswith(wanted)]
    if not found:
        raise HttpError(404, f"{word} {wanted} not found")
    if len(found) > 1:
        raise HttpError(400, f"{word} {wanted} is ambiguous ({len(found)} matches found)")
    only: R = found[0]
    return only


def _name(row: Any) -> str:
    if isinstance(row, Node):
        return row.description.hostname
    return row.spec.name or ""
