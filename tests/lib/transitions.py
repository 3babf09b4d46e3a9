"""Which moves of tasks, slots and members the stories take, and which none ever takes: what no story does, no check has seen.

Counted over all stories of a process. A move is what follows on what in the state that is looked at after every step, so reports that are written together
count as one move.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

from swarm_agent.agent.fsm import after_error
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Task

Move = tuple[str, str]

_WAY = [s for s in TaskState if s <= TaskState.COMPLETE]
_OPEN = [s for s in _WAY if TaskState.NEW < s <= TaskState.RUNNING]
TASKS: frozenset[Move] = frozenset(
    [(a.word, b.word) for a, b in itertools.pairwise(_WAY)]
    + [(s.word, after_error(s).word) for s in _OPEN]
    + [(s.word, end.word) for s in _OPEN for end in (TaskState.SHUTDOWN, TaskState.ORPHANED)]
)
_SLOT = ("empty", "waits", "comes", "runs", "hands over")
SLOTS: frozenset[Move] = frozenset((a, b) for a in _SLOT for b in _SLOT if a != b)
_MEMBER = ("inactive", "worker", "manager", "leader", "error", "gone")
MEMBERS: frozenset[Move] = frozenset(
    (a, b)
    for a in _MEMBER
    for b in _MEMBER
    if a != b
    and (a, b) not in {("inactive", "error"), ("error", "leader"), ("worker", "leader"), ("gone", "leader")}
)
"""Leaving out what would take two steps at once."""


class Transitions:
    """``tasks``, ``slots``, ``members``: how often each move was taken."""

    def __init__(self) -> None:
        self.tasks: Counter[Move] = Counter()
        self.slots: Counter[Move] = Counter()
        self.members: Counter[Move] = Counter()

    def never(self) -> dict[str, list[str]]:
        """By kind, the moves that were never taken, for people."""
        kinds = (("task", TASKS, self.tasks), ("slot", SLOTS, self.slots), ("member", MEMBERS, self.members))
        return {
            name: sorted(f"{a} -> {b}" for a, b in possible if not taken[a, b])
            for name, possible, taken in kinds
        }

    def __str__(self) -> str:
        return "; ".join(
            f"{name}s never: {', '.join(moves) if moves else 'none left out'}"
            for name, moves in self.never().items()
        )


SEEN = Transitions()


class Watch:
    """The moves of one story, added to ``SEEN``."""

    def __init__(self) -> None:
        self._slots: dict[tuple[str, int | str], str] = {}
        self._members: dict[str, str] = {}

    def task(self, before: TaskState, now: TaskState) -> None:
        SEEN.tasks[before.word, now.word] += 1

    def tasks(self, rows: Iterable[Task]) -> None:
        """All of the store."""
        found: dict[tuple[str, int | str], list[Task]] = {}
        for task in rows:
            place = found.setdefault((task.service_id, task.place), [])
            if task.desired_state <= TaskState.COMPLETE and not task.status.state.terminal:
                place.append(task)
        for key in self._slots.keys() - found.keys():
            found[key] = []
        for key, live in found.items():
            now = _slot(live)
            before = self._slots.get(key, "empty")
            if now != before:
                SEEN.slots[before, now] += 1
            self._slots[key] = now

    def member(self, host: str, now: str) -> None:
        before = self._members.get(host)
        if before is not None and before != now:
            SEEN.members[before, now] += 1
        self._members[host] = now


def _slot(live: list[Task]) -> str:
    if not live:
        return "empty"
    if len(live) > 1:
        return "hands over"
    if not live[0].node_id:
        return "waits"
    return "runs" if live[0].status.state == TaskState.RUNNING else "comes"
