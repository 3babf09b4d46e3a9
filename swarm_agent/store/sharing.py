"""One object for one value: what was decoded gets the parts the store has already.

A decoded row owns a copy of everything it names: the ids of its service, revision and node, its service's name and labels.
Pointed at the objects of those rows instead, a task takes half the memory, and a comparison of two ids is one of two
pointers. Values do not change, so nobody can tell, but for what ``sys.getsizeof`` would say.

Refuses rows that anybody else may hold: they are changed in place, though only from a value to its equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from msgspec.structs import force_setattr

from swarm_agent.objects.base import Record
from swarm_agent.objects.records import Network, Node, Revision, Service, Task, TaskStatus

MAX_TEXTS = 1024  # words of statuses; there are some dozens, but an engine's errors are as many as it likes
MAX_TEXT = 64

_KEPT = (
    "id",
    "service_id",
    "service_name",
    "service_labels",
    "revision_id",
    "networks",
    "node_address",
    "cause",
)
_VALUES = attrgetter(*_KEPT)


class Sharing:
    """Over the tables of one store."""

    def __init__(self, tables: Mapping[type[Record], Any]) -> None:
        self._services: dict[str, Service] = tables[Service].rows
        self._revisions: dict[str, Revision] = tables[Revision].rows
        self._nodes: dict[str, Node] = tables[Node].rows
        self._networks: dict[str, Network] = tables[Network].rows
        self._texts: dict[str, str] = {}

    def task(self, task: Task, old: Task | None) -> None:
        """``task`` was decoded just now; ``old`` is the row it replaces."""
        self.status(task.status)
        if old is not None:
            for name, value, before in zip(_KEPT, _VALUES(task), _VALUES(old), strict=True):
                if value == before:
                    force_setattr(task, name, before)
            if task.networks is not old.networks or task.node_id is not old.node_id:
                self._place(task)
            return
        self._place(task)
        service = self._services.get(task.service_id)
        if service is not None:
            force_setattr(task, "service_id", service.id)
            if service.spec.name == task.service_name:
                force_setattr(task, "service_name", service.spec.name)
            if service.spec.labels == task.service_labels:
                force_setattr(task, "service_labels", service.spec.labels)
        revision = self._revisions.get(task.revision_id)
        if revision is not None:
            force_setattr(task, "revision_id", revision.id)
        if task.cause:
            force_setattr(task, "cause", self._text(task.cause))

    def _place(self, task: Task) -> None:
        node = self._nodes.get(task.node_id)
        if node is not None:
            force_setattr(task, "node_id", node.id)
        for part in task.networks:
            network = self._networks.get(part.network_id)
            if network is not None:
                force_setattr(part, "network_id", network.id)

    def status(self, status: TaskStatus) -> None:
        """``status`` was decoded just now."""
        if status.message:
            force_setattr(status, "message", self._text(status.message))

    def _text(self, text: str) -> str:
        texts = self._texts
        found = texts.get(text)
        if found is not None:
            return found
        if len(text) <= MAX_TEXT and len(texts) < MAX_TEXTS:
            texts[text] = text
        return text
