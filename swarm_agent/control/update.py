"""Rolling updates: old-revision slots become new ones, so many at a time, watched for a while.

The whole state of an update is in the store: which slots still have an old task, when each new task was made and first
ran, and the service's ``update_status``. So a new leader goes on where the old one stopped.
"""

from __future__ import annotations

import msgspec

from swarm_agent.control.passes import Key, Pass
from swarm_agent.control.survey import Survey
from swarm_agent.control.tasks import aim, live, make
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Service, Task, UpdateStatus


class _Slot:
    """How far one slot is in the present update."""

    __slots__ = ("failed", "fresh", "kept", "number", "old", "reached_at", "tasks")

    def __init__(self, number: int, tasks: list[Task], service: Service, since: int, monitor: int) -> None:
        self.number = number
        self.tasks = tasks
        current = [t for t in tasks if t.revision_id == service.revision_id]
        self.fresh = [t for t in current if not t.created_at or t.created_at >= since]  # made by this update
        self.kept = [t for t in current if live(t)]  # by whichever update: it need not be made again
        self.old = [t for t in tasks if live(t) and t.revision_id != service.revision_id]
        self.reached_at = min(
            (
                t.status.started_at or t.status.finished_at
                for t in self.fresh
                if t.status.state >= TaskState.RUNNING
            ),
            default=0,
        )
        self.failed = next((t for t in self.fresh if _failed_early(t, monitor)), None)

    @property
    def dirty(self) -> bool:
        """Whether the slot still has to be handed to a worker."""
        if self.fresh or self.kept:
            return False
        newest_done = not any(live(t) for t in self.tasks)
        return bool(self.old) or newest_done


def _failed_early(task: Task, monitor: int) -> bool:
    if task.status.state not in (TaskState.FAILED, TaskState.REJECTED):
        return False
    started, finished = task.status.started_at, task.status.finished_at or task.status.timestamp
    return not started or finished - started < monitor


class _Touched:
    """The slots this update has handed to a worker, as far as its next step depends on them."""

    __slots__ = ("count", "failed", "reached", "unreached")

    def __init__(self, open_: list[_Slot], settled: list[Task]) -> None:
        touched = [s for s in open_ if s.fresh]
        at = [s.reached_at for s in touched]
        at += [
            t.status.started_at or t.status.finished_at if t.status.state >= TaskState.RUNNING else 0
            for t in settled
        ]
        self.count = len(at)
        self.reached = [r for r in at if r]  # when each came to run, nanoseconds
        self.unreached = self.count - len(self.reached)
        self.failed = [s.failed for s in touched if s.failed is not None]


def advance(p: Pass, service: Service, seen: Survey) -> list[int]:
    """Move the update on by as many slots as its policy lets go now; those that were written."""
    status = service.update_status
    if status is not None and status.state == "paused":
        return []
    config = defaults.update(service.spec.update_config)
    updating = status is not None and status.state == "updating"
    since = status.started_at if status is not None and updating else p.now
    open_ = [
        _Slot(n, tasks, service, since, config.monitor)
        for n, tasks in sorted(seen.open.items())
        if _counts(tasks, service)
    ]
    waiting = [s for s in open_ if not _retire_old(p, s, config.order)]
    dirty = {s.number: s.old for s in open_ if s.dirty}
    if not updating:
        if not dirty and not seen.older and not waiting:
            return []
        status = UpdateStatus(state="updating", message="update in progress", started_at=p.now)
        service = _say(p, service, status)
    settled = [t for t in seen.present.values() if t.created_at >= since or not t.created_at]
    touched = _Touched(open_, settled)
    total = touched.count + len(dirty) + len(seen.older)
    if _paused(p, service, status, config, touched, total):
        return []
    if dirty or seen.older:
        dirty.update((n, [t]) for n, t in seen.older.items())
        return _hand_out(p, service, config, touched, dirty)
    if not any(s.old for s in open_):
        _complete(p, service, status, config, touched)
    return []


def _counts(tasks: list[Task], service: Service) -> bool:
    """Slots that take part: live ones, and those whose ended task of an old revision must still be replaced."""
    if any(live(t) for t in tasks):
        return True
    last = max(tasks, key=lambda t: t.created_at)
    return last.desired_state == TaskState.SHUTDOWN and last.revision_id != service.revision_id


def _retire_old(p: Pass, slot: _Slot, order: str) -> bool:
    """Start-first: the old task goes once the new one runs; False while it still waits for that. Stop-first has sent it
    away already, unless a present one was left by an update that was taken back: then only one of each is to stay, and
    the old one goes."""
    best = max(
        slot.kept, key=lambda t: (t.status.state == TaskState.RUNNING, t.created_at, t.id), default=None
    )
    for task in slot.kept:
        if task is not best:
            aim(p, task, TaskState.SHUTDOWN)
    if best is None:
        return True
    if order != "stop-first" and best.status.state != TaskState.RUNNING:
        return not slot.old
    for task in slot.old:
        aim(p, task, TaskState.SHUTDOWN)
    return True


def _paused(
    p: Pass,
    service: Service,
    status: UpdateStatus | None,
    config: defaults.Update,
    touched: _Touched,
    total: int,
) -> bool:
    if config.failure_action == "continue" or status is None:
        return False
    failed = touched.failed
    if not failed or len(failed) / max(1, total) <= config.max_failure_ratio:
        return False
    message = f"update paused due to failure or early termination of task {failed[-1].id}"
    _say(p, service, msgspec.structs.replace(status, state="paused", message=message))
    return True


def _hand_out(
    p: Pass, service: Service, config: defaults.Update, touched: _Touched, dirty: dict[int, list[Task]]
) -> list[int]:
    """``dirty``: the old tasks of each slot that still has to be handed to a worker."""
    key = Key("service", service.id)
    resting = [r + config.delay for r in touched.reached if r + config.delay > p.now]
    if resting:
        p.wake(key, min(resting))
    busy = touched.unreached + len(resting)
    room = len(dirty) if not config.parallelism else max(0, config.parallelism - busy)
    most = max(1, p.most // 2)  # an old task and a new one each
    if min(room, len(dirty)) > most:
        p.more(key)
    numbers = sorted(dirty)[: min(room, most)]
    for number in numbers:
        if config.order == "start-first" and dirty[number]:
            make(p, service, number, desired=TaskState.RUNNING, cause="update")
            continue
        for task in dirty[number]:
            aim(p, task, TaskState.SHUTDOWN)
        make(p, service, number, desired=TaskState.READY, cause="update")
    return numbers


def _complete(
    p: Pass, service: Service, status: UpdateStatus | None, config: defaults.Update, touched: _Touched
) -> None:
    if status is None or touched.unreached:
        return
    watched_until = max(touched.reached, default=p.now - config.monitor) + config.monitor
    if p.now < watched_until:
        p.wake(Key("service", service.id), watched_until)
        return
    _say(
        p,
        service,
        msgspec.structs.replace(status, state="completed", message="update completed", completed_at=p.now),
    )


def _say(p: Pass, service: Service, status: UpdateStatus) -> Service:
    changed = msgspec.structs.replace(service, update_status=status)
    p.put(changed)
    return changed
