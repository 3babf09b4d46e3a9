"""One pass of decisions: an overlay to read and write, the time, fresh ids, and when to look again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import msgspec

from swarm_agent.control.memory import Memory
from swarm_agent.objects.base import Record
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Task
from swarm_agent.store import Group, PendingView, Store, slot_key


class Key(NamedTuple):
    """What a reconciliation is about: ("service", id), ("prepared", service id), ("slot", service id, place), ("node", id), ("drain", node id), ("network", id)."""

    kind: str
    id: str
    place: int | str = 0


RESCHEDULE = Key("pending", "")
MAX_WRITES = 200  # rows in one pass, about: one costs some 60 us, and so does placing it; an entry of the log is bounded too
MAX_COST = 10_000  # rows one pass may look at, about: a call may not hold up the loop for more than some milliseconds
SETTLING = 60  # what reconciling one slot costs, about
WRITING = 100  # what making and placing a task costs, about
LEAST = 50  # tasks that are made at once in any case
PLACING = 40  # what placing the tasks of one revision costs besides, about


class Health(NamedTuple):
    """Of a service: how many tasks run and are to go on, and how many places have stopped one and not started its successor yet."""

    healthy: int
    between: int


class Transaction:
    """The hands of a controller. Everything it may do is here, nothing of it is I/O."""

    def __init__(
        self, store: Store, memory: Memory, now: int, new_id: Callable[[], str], most: int = MAX_WRITES
    ) -> None:
        self.view = PendingView(store)
        self.memory = memory
        self.usage = memory.usage
        self.now = now
        self.new_id = new_id
        self.wakes: dict[Key, int] = {}
        self.again: list[Key] = []
        self.most = most
        self.most_cost = MAX_COST * max(1, most // MAX_WRITES)  # a pass without bounds has none here either
        self.cost = 0
        self.puts = 0  # how often a row was written or deleted
        self.quarantined: Collection[str] = ()  # services that are left alone (``controllers.Quarantine``)
        self.unplaced: dict[str, None] = {}  # tasks this pass wrote that wait for a node
        self._to_place: set[str] = set()  # their revisions
        self._placing = 0  # what placing them will cost besides, about
        self.health: dict[str, Health] = {}  # by service id, as far as counted in this pass
        self.unmet: dict[str, str] = {}  # by service id, what it waits for, as far as looked at in this pass
        self.last_join: int | None = None  # when the last node came to take tasks, as far as looked at
        self.for_health: list[Key] = []  # what waits for more of its service's tasks to run
        self._written: set[tuple[type[Record], str]] = set()
        self._journal: list[tuple[Record | None, Record | None]] = []
        self._discounted: dict[str, Task] = {}  # task id -> how it is booked instead

    @property
    def level(self) -> int:
        """The feature level of what may be written."""
        return self.view.base.feature_level

    def at(self, service_id: str, place: int | str) -> list[Task]:
        """The tasks of one place of a service."""
        return list(self.view.tasks.by("slot", slot_key(service_id, place)))

    def put(self, row: Record) -> None:
        """Write a row; the books see it at once."""
        self.puts += 1
        kind = type(row)
        self._written.add((kind, row.id))
        self._book(self.view.row(kind, row.id), row)
        self.view.put(row)
        if kind is Task and not row.node_id:  # type: ignore[attr-defined]
            self._is_to_be_placed(row)  # type: ignore[arg-type]

    def _is_to_be_placed(self, task: Task) -> None:
        self.unplaced[task.id] = None
        if task.revision_id not in self._to_place:
            self._to_place.add(task.revision_id)
            # where its service has tasks is ranked anew if much has changed
            self._placing += PLACING + len(self.usage.hosting.get(task.service_id, ()))

    def delete(self, row: Record) -> None:
        self.puts += 1
        self._written.add((type(row), row.id))
        self._book(self.view.row(type(row), row.id), None)
        self.view.delete(row)

    def discount(self, task: Task) -> bool:
        """For the rest of the pass ``task`` does not count where tasks are spread: its successor is placed as if it had gone.
        What it holds (reservations, ports, addresses) it holds on to. Whether it counted until now."""
        row = self.view.tasks.get(task.id)  # as it is now
        if row is not None and row.id not in self._discounted and row.desired_state < TaskState.SHUTDOWN:
            booked = msgspec.structs.replace(row, desired_state=TaskState.SHUTDOWN)
            self._book(row, booked)
            self._discounted[row.id] = booked
            return True
        return False

    def recount(self, task: Task) -> None:
        """Take a discount back: there is no successor after all."""
        row = self.view.tasks.get(task.id)
        if row is not None and row.id in self._discounted:
            self._book(row, row)

    def wake(self, key: Key, at: int) -> None:
        """Ask for another look at ``key`` at ``at`` (nanoseconds); the earliest wish counts."""
        self.wakes[key] = min(at, self.wakes.get(key, at))

    def wait_for_health(self, key: Key) -> None:
        """Look at ``key`` again when another task of its service runs."""
        self.for_health.append(key)

    def more(self, key: Key) -> None:
        """This pass did as much of ``key`` as one entry holds; go on in the next."""
        self.again.append(key)

    def room_for(self, row: Record) -> bool:
        """Whether this pass may still write ``row``; one it has written it may write again."""
        return len(self._written) < self.most or (type(row), row.id) in self._written

    def charge(self, rows: int) -> None:
        """So many rows were looked at: it counts against ``MAX_COST``."""
        self.cost += rows

    @property
    def portion(self) -> int:
        """How many tasks a look at a whole service may make now: fewer where the look itself was dear, but some always."""
        left = min(self.most - len(self._written), (self.most_cost - self._done) // WRITING)
        return min(self.most, max(LEAST, left))

    @property
    def spent(self) -> bool:
        """Whether nothing new should be begun in this pass, but what was begun be finished."""
        return self.full or self._done >= self.most_cost

    @property
    def _done(self) -> int:
        """Looks that this pass has cost and will cost with what it has begun, about."""
        return self.cost + self._placing + len(self._written) * WRITING

    @property
    def full(self) -> bool:
        """Whether the rest is to wait for the next pass."""
        return len(self._written) >= self.most

    def finish(self) -> tuple[Group, ...]:
        """Take the tentative bookings back and return what to propose."""
        for old, new in reversed(self._journal):
            self.usage.book_change(new, old)
        self._journal.clear()
        return self.view.groups()

    def _book(self, old: Record | None, new: Record | None) -> None:
        if isinstance(old, Task):
            old = self._discounted.pop(old.id, old)
        self.usage.book_change(old, new)
        self._journal.append((old, new))
