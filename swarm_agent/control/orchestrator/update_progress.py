"""How far an update is: what became of the places it has handed to a worker. Decides nothing (``update``)."""

from __future__ import annotations

from swarm_agent.control.orchestrator.restart import ended_at
from swarm_agent.control.orchestrator.slot import newest
from swarm_agent.control.orchestrator.slot_index import SlotIndex
from swarm_agent.control.tasks import live
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.options import options
from swarm_agent.objects.records import ENFORCED, Service, Task

PAUSED = ("paused", "rollback_paused")


class Rules:
    """What an update goes by."""

    __slots__ = ("back", "config", "deadline", "since")

    @property
    def given(self) -> tuple[object, ...]:
        """What is found out about places by these rules is of no use under others."""
        return (self.since, self.config, self.deadline)

    def __init__(self, service: Service, now: int) -> None:
        status = service.update_status
        self.back = status is not None and status.state.startswith("rollback")
        self.config = defaults.update(
            service.spec.rollback_config if self.back else service.spec.update_config
        )
        self.deadline = options(service.spec.labels).progress_deadline
        # what the last update of this revision gave up is not begun again
        self.since = status.started_at if status is not None and status.state not in PAUSED else now


class SlotProgress:
    """How far one place is in the present update."""

    __slots__ = (
        "awaited", "dirty", "failed", "fresh", "kept", "number", "old", "reached_at", "stalled_at", "unsteady",
    )  # fmt: skip

    def __init__(self, number: int | str, tasks: list[Task], seen: SlotIndex, rules: Rules, now: int) -> None:
        self.number = number
        current = [t for t in tasks if seen.is_current(t)]
        self.fresh = [  # made by this update; what the leader stopped itself tells nothing of it
            t for t in current if _made_since(t, rules.since) and (live(t) or ended_by_itself(t))
        ]
        self.kept = [t for t in current if live(t)]  # by whichever update: it need not be made again
        self.old = [t for t in tasks if live(t) and t not in current]
        self.reached_at = min(
            (
                t.status.started_at or t.status.finished_at
                for t in self.fresh
                if t.status.state >= TaskState.RUNNING
            ),
            default=0,
        )
        self.failed = _failed(self.fresh, rules.config.monitor)
        self.stalled_at = 0  # when its patience ends, or ended
        if self.fresh and not self.reached_at and rules.deadline:
            self.stalled_at = min((t.created_at or now) for t in self.fresh) + rules.deadline
        last = newest(self.fresh) if self.fresh else None
        # the new task is between two attempts: a crash loop, whatever the time between its crashes
        self.unsteady = (
            last is not None and live(last) and last.status.state != TaskState.RUNNING and last.failures > 0
        )

        # one that is waited for although another update has made it
        self.awaited = next((t for t in self.kept if _on_its_way(t)), None) if not self.fresh else None

        # whether the place still has to be handed to a worker
        self.dirty = not (self.fresh or self.kept) and (bool(self.old) or not any(live(t) for t in tasks))

    def failure(self, now: int) -> Task | None:
        """The task that makes it count as failed: by its end, or because our patience has ended."""
        return self.failed or (self.fresh[0] if 0 < self.stalled_at <= now else None)


def _made_since(task: Task, since: int) -> bool:
    return not task.created_at or task.created_at >= since  # one of this pass has no time yet


def _on_its_way(task: Task) -> bool:
    """Whether it may come to run any moment: it has a node, and has not failed before."""
    return live(task) and bool(task.node_id) and task.status.state < TaskState.RUNNING and not task.failures


def ended_by_itself(task: Task) -> bool:
    return task.status.state in (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED)


def _failed(fresh: list[Task], monitor: int) -> Task | None:
    """The task that makes a place count as failed: it ended within ``monitor`` of its start, or not for the first time."""
    ends = sorted(
        (
            t
            for t in fresh
            if t.status.state in (TaskState.FAILED, TaskState.REJECTED)
            and t.status.message != ENFORCED  # its node changed under it
        ),
        key=lambda t: (ended_at(t), t.id),
    )
    for n, task in enumerate(ends):
        if n or not task.status.started_at or ended_at(task) - task.status.started_at < monitor:
            return task
    return None


class Settled:
    """The tasks of one update that are the only live ones of their slots (``SlotIndex.present``): how far each is, kept from look to
    look, so that one costs what was written since the last. And what an update of the same revision made that had paused, say, and
    that does not run yet (``awaited``): such a place is as busy as one of ours, as long as our patience lasts, and no failure of ours."""

    __slots__ = ("awaited", "pending", "rules", "running", "starts")

    def __init__(self, rules: object) -> None:
        self.rules = rules  # under which it was made
        self.running: dict[int | str, int] = {}  # slot -> when its task came to run, nanoseconds
        self.starts: dict[
            int | str, int
        ] = {}  # those of them that may not be old enough for the next to follow
        self.pending: dict[int | str, Task] = {}
        self.awaited: dict[int | str, Task] = {}

    def take(self, slot: int | str, task: Task | None, since: int) -> None:
        """How a slot stands now; ``None``: it is none of these."""
        if self.running.pop(slot, None) is not None:
            self.starts.pop(slot, None)
        else:
            self.pending.pop(slot, None)
            self.awaited.pop(slot, None)
        if task is None:
            return
        if not _made_since(task, since):
            if _on_its_way(task):
                self.awaited[slot] = task
            return
        at = (
            task.status.started_at or task.status.finished_at if task.status.state >= TaskState.RUNNING else 0
        )
        if at:
            self.running[slot] = self.starts[slot] = at
        else:
            self.pending[slot] = task

    def rested(self, before: int) -> None:
        """Those that came to run until ``before`` are old enough, now and from now on."""
        for slot in [slot for slot, at in self.starts.items() if at <= before]:
            del self.starts[slot]


class Touched:
    """The places this update has handed to a worker, as far as its next step depends on them."""

    __slots__ = (
        "_reached",
        "_settled",
        "count",
        "failed",
        "patience",
        "unreached",
        "unsteady",
    )

    def __init__(self, places: list[SlotProgress], settled: Settled, rules: Rules, now: int) -> None:
        failed: dict[int | str, Task] = {}
        stalls: list[int] = []
        at: list[int] = []
        self.unsteady = False
        for s in places:
            if not s.fresh:
                continue
            reached = s.reached_at
            if s.stalled_at:
                stalls.append(s.stalled_at)
                reached = s.stalled_at if s.stalled_at <= now else 0
            at.append(reached)
            task = s.failure(now) if s.failed or s.stalled_at else None
            if task is not None:
                failed[s.number] = task
            elif s.unsteady:  # a tolerated failure keeps nothing open
                self.unsteady = True
        self.failed = [task for _, task in sorted(failed.items())]
        stalled: list[Task] = []
        for task in settled.pending.values():
            if task.status.state >= TaskState.RUNNING:  # nobody told since when
                at.append(0)
                continue
            stall = (task.created_at or now) + rules.deadline if rules.deadline else 0
            if stall:
                stalls.append(stall)
            if 0 < stall <= now:
                stalled.append(task)
            at.append(stall if 0 < stall <= now else 0)
            self.unsteady = self.unsteady or task.failures > 0
        self.failed += sorted(stalled, key=lambda t: (t.created_at, t.id))
        awaited = [*settled.awaited.values(), *(s.awaited for s in places if s.awaited is not None)]
        ends = [t.created_at + rules.deadline for t in awaited] if rules.deadline else []
        stalls += ends
        at += [0] * (sum(end > now for end in ends) if rules.deadline else len(awaited))
        self.count = len(at) + len(settled.running)
        self._settled = settled
        self._reached = [r for r in at if r]  # when each of the others came to run, or lost our patience
        self.unreached = len(at) - len(self._reached)
        self.patience = min((s for s in stalls if s > now), default=0)

    def resting(self, delay: int, now: int) -> list[int]:
        """Until when those rest that came to run less than ``delay`` ago."""
        self._settled.rested(now - delay)
        return [r + delay for r in (*self._reached, *self._settled.starts.values()) if r + delay > now]

    def latest(self) -> int:
        """When the last of them came to run; 0: none did."""
        return max(max(self._reached, default=0), max(self._settled.running.values(), default=0))
