"""Rolling updates and rollbacks: places of an older revision get the present one, so many at a time, watched for a while.

The whole state of an update is in the store: which places still have an old task, when each new task was made and first
ran, how it ended, and the service's ``update_status``. So a new leader goes on where the old one stopped. When the old task of a
place goes is decided there (``slots``).
"""

from __future__ import annotations

import msgspec

from swarm_agent.control.contents import dealt_with, must_be_kept
from swarm_agent.control.passes import Key, Pass
from swarm_agent.control.ports import must_be_free
from swarm_agent.control.restarts import ended_at
from swarm_agent.control.revisions import previous_of
from swarm_agent.control.slots import given_up, keeps_apart_from_itself, newest
from swarm_agent.control.survey import Survey
from swarm_agent.control.tasks import live, make
from swarm_agent.objects import defaults
from swarm_agent.objects.durations import duration_text
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.objects.options import options
from swarm_agent.objects.records import ENFORCED, Revision, Service, Task, UpdateStatus

GOING = ("updating", "rollback_started")
PAUSED = ("paused", "rollback_paused")


def going(service: Service) -> bool:
    """Whether an update or a rollback is on its way."""
    return service.update_status is not None and service.update_status.state in GOING


class _Rules:
    """What an update goes by."""

    __slots__ = ("back", "config", "deadline", "since")

    def __init__(self, service: Service, now: int) -> None:
        status = service.update_status
        self.back = status is not None and status.state.startswith("rollback")
        self.config = defaults.update(
            service.spec.rollback_config if self.back else service.spec.update_config
        )
        self.deadline = options(service.spec.labels).progress_deadline
        # what the last update of this revision gave up is not begun again
        self.since = status.started_at if status is not None and status.state not in PAUSED else now


class _Place:
    """How far one place is in the present update."""

    __slots__ = (
        "awaited", "dirty", "failed", "fresh", "kept", "number", "old", "reached_at", "stalled_at", "unsteady",
    )  # fmt: skip

    def __init__(self, number: int | str, tasks: list[Task], seen: Survey, rules: _Rules, now: int) -> None:
        self.number = number
        current = [t for t in tasks if seen.is_current(t)]
        self.fresh = [  # made by this update; what the leader stopped itself tells nothing of it
            t for t in current if _made_since(t, rules.since) and (live(t) or _ended_by_itself(t))
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


def _ended_by_itself(task: Task) -> bool:
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


class _Touched:
    """The places this update has handed to a worker, as far as its next step depends on them."""

    __slots__ = ("count", "failed", "patience", "reached", "unreached", "unsteady")

    def __init__(
        self, places: list[_Place], settled: list[Task], awaited: list[Task], rules: _Rules, now: int
    ) -> None:
        """``settled``: what this update made in other places; ``awaited``: what one of the same revision made that had paused, say, and
        that does not run yet. Such a place is as busy as one of ours, as long as our patience lasts, and no failure of ours."""
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
        for task in settled:
            if task.status.state >= TaskState.RUNNING:
                at.append(task.status.started_at or task.status.finished_at)
                continue
            stall = (task.created_at or now) + rules.deadline if rules.deadline else 0
            if stall:
                stalls.append(stall)
            if 0 < stall <= now:
                stalled.append(task)
            at.append(stall if 0 < stall <= now else 0)
            self.unsteady = self.unsteady or task.failures > 0
        self.failed += sorted(stalled, key=lambda t: (t.created_at, t.id))
        awaited = [*awaited, *(s.awaited for s in places if s.awaited is not None)]
        ends = [t.created_at + rules.deadline for t in awaited] if rules.deadline else []
        stalls += ends
        at += [0] * (sum(end > now for end in ends) if rules.deadline else len(awaited))
        self.count = len(at)
        self.reached = [r for r in at if r]  # when each came to run, nanoseconds, or lost our patience
        self.unreached = self.count - len(self.reached)
        self.patience = min((s for s in stalls if s > now), default=0)


def advance(p: Pass, service: Service, seen: Survey) -> list[int | str]:
    """Move the update on by as many places as its policy lets go now; those that were written."""
    status = service.update_status
    if status is not None and status.state in PAUSED:
        return []
    rules = _Rules(service, p.now)
    open_ = _open_places(p, service, seen, rules)
    older = seen.older
    if defaults.is_global(service.spec):
        older = {n: t for n, t in older.items() if _open_to_it(p, n)}
    dirty = {s.number: s.old for s in open_ if s.dirty}
    if not going(service):
        if not dirty and not older:
            return []
        status = UpdateStatus(state="updating", message="update in progress", started_at=p.now)
        service = _say(p, service, status)
        rules.since = p.now
        open_ = _open_places(p, service, seen, rules)
    p.looked(len(open_) // 2 + len(seen.present) // 4)
    settled = [t for t in seen.present.values() if _made_since(t, rules.since)]
    awaited = [t for t in seen.present.values() if _on_its_way(t) and not _made_since(t, rules.since)]
    touched = _Touched(open_, settled, awaited, rules, p.now)
    if touched.patience:
        p.wake(Key("service", service.id), touched.patience)
    if _stopped(p, service, status, rules, touched, touched.count + len(dirty) + len(older)):
        return []
    if dirty or older:
        dirty.update((n, [t]) for n, t in older.items())
        return _hand_out(p, service, rules, touched, dirty)
    if not any(s.old and s.kept and s.failure(p.now) is None for s in open_):
        _complete(p, service, status, rules, touched)
    return []


def _open_places(p: Pass, service: Service, seen: Survey, rules: _Rules) -> list[_Place]:
    """The open places that take part; what is found out about one is kept until something is written there."""
    steps = seen.steps
    wanted = (rules.since, rules.config, rules.deadline)
    if seen.steps_for != wanted:
        seen.steps_for = wanted
        steps.clear()
    if len(steps) < len(seen.open):
        for n, tasks in seen.open.items():
            if n not in steps:
                takes_part = _counts(service, tasks, seen, rules.since) and _open_to_it(p, n)
                steps[n] = _Place(n, tasks, seen, rules, p.now) if takes_part else None
    return [step for step in steps.values() if step is not None]


def _counts(service: Service, tasks: list[Task], seen: Survey, since: int) -> bool:
    """Places that take part: live ones, those this update has had, and those whose ended task of an old revision must still
    be replaced."""
    if any(live(t) for t in tasks):
        return True
    last = newest(tasks)
    if seen.is_current(last):
        return last.created_at >= since and _ended_by_itself(last)
    return given_up(service, tasks)


def _open_to_it(p: Pass, place: int | str) -> bool:
    """Whether a new task may be put there: in global modes not on a node that takes none now."""
    if not isinstance(place, str):
        return True
    node = p.view.nodes.get(place)
    return node is not None and node.spec.availability == "active"


def _stopped(
    p: Pass, service: Service, status: UpdateStatus | None, rules: _Rules, touched: _Touched, total: int
) -> bool:
    """Whether too many have failed; then the update pauses, or is taken back."""
    config = rules.config
    if config.failure_action == "continue" or status is None or not touched.failed:
        return False
    if len(touched.failed) / max(1, total) <= config.max_failure_ratio:
        return False
    task = touched.failed[-1]
    cause = f"due to failure or early termination of task {task.id}"
    if not task.status.state.terminal:
        cause = f"because task {task.id} made no progress within {duration_text(rules.deadline)}"
    if config.failure_action == "rollback" and not rules.back:
        before = previous_of(p.view, service)
        if before is not None and service.previous_spec is not None:
            try:
                must_be_kept(p.view, before)
                must_be_free(
                    p.view, service.previous_spec, service.id
                )  # it may have given up a port meanwhile
            except InvalidSpec as err:
                cause = f"{cause}, and cannot be rolled back: {err}"
            else:
                _roll_back(p, service, before, cause)
                return True
    word = "rollback" if rules.back else "update"
    state = "rollback_paused" if rules.back else "paused"
    _say(p, service, msgspec.structs.replace(status, state=state, message=f"{word} paused {cause}"))
    return True


def _roll_back(p: Pass, service: Service, before: Revision, cause: str) -> None:
    """Take the update back to the revision before. There is no way back from here."""
    assert service.previous_spec is not None
    if p.view.revisions.get(before.id) is None:
        p.put(before)
    p.put(
        msgspec.structs.replace(
            service,
            spec=service.previous_spec,
            revision_id=before.id,
            previous_spec=None,
            previous_revision_id="",
            tracked=dealt_with(p.view, service.previous_spec),
            update_status=UpdateStatus(
                state="rollback_started", message=f"update rolled back {cause}", started_at=p.now
            ),
        )
    )
    p.more(Key("service", service.id))


def _hand_out(
    p: Pass, service: Service, rules: _Rules, touched: _Touched, dirty: dict[int | str, list[Task]]
) -> list[int | str]:
    """``dirty``: the old tasks of each place that still has to be handed to a worker. Stop-first begins with preparing the
    new task: the old one is stopped when the new one is ready to take its place. Places where nothing runs come first: an update or
    rollback that follows another in its midst would otherwise stop healthy tasks beside those the other one has stopped."""
    config = rules.config
    key = Key("service", service.id)
    resting = [r + config.delay for r in touched.reached if r + config.delay > p.now]
    if resting:
        p.wake(key, min(resting))
    busy = touched.unreached + len(resting)
    room = len(dirty) if not config.parallelism else max(0, config.parallelism - busy)
    most = p.portion
    if min(room, len(dirty)) > most:
        p.more(key)
    down = {n for n, old in dirty.items() if not any(t.status.state == TaskState.RUNNING for t in old)}
    numbers = [*sorted(down), *sorted(dirty.keys() - down)][: min(room, most)]
    first = config.order == "start-first" and not options(service.spec.labels).singleton
    # started first, the new one would stand beside the old one where only so many may be on a node
    placement = service.spec.task_template.placement
    strict = first and (bool(placement and placement.max_replicas) or keeps_apart_from_itself(service))
    for number in numbers:
        for old in dirty[number] if not strict else ():
            if old.node_id:
                p.discount(old)
        make(p, service, number, ready=not first or not dirty[number], cause="update")
    return numbers


def _complete(
    p: Pass, service: Service, status: UpdateStatus | None, rules: _Rules, touched: _Touched
) -> None:
    if status is None or touched.unreached:
        return
    if touched.unsteady:
        return  # it goes on when the loop ends, or runs into the limit of attempts
    monitor = rules.config.monitor
    watched_until = max(touched.reached, default=p.now - monitor) + monitor
    if p.now < watched_until:
        p.wake(Key("service", service.id), watched_until)
        return
    word = "rollback" if rules.back else "update"
    state = "rollback_completed" if rules.back else "completed"
    _say(
        p,
        service,
        msgspec.structs.replace(status, state=state, message=f"{word} completed", completed_at=p.now),
    )


def _say(p: Pass, service: Service, status: UpdateStatus) -> Service:
    changed = msgspec.structs.replace(service, update_status=status)
    p.put(changed)
    return changed
