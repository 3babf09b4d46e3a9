"""Rolling updates and rollbacks: places of an older revision get the present one, so many at a time, watched for a while.

The whole state of an update is in the store: which places still have an old task, when each new task was made and first
ran, how it ended, and the service's ``update_status``. So a new leader goes on where the old one stopped. When the old task of a
place goes is decided there (``slot``).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Mapping

import msgspec

from swarm_agent.control.admission import must_be_free
from swarm_agent.control.orchestrator import global_
from swarm_agent.control.orchestrator.slot import decisive, given_up, keeps_apart_from_itself
from swarm_agent.control.orchestrator.slot_index import SlotIndex
from swarm_agent.control.orchestrator.update_progress import (
    PAUSED,
    Rules,
    Settled,
    SlotProgress,
    Touched,
    ended_by_itself,
)
from swarm_agent.control.references import dealt_with, must_be_kept
from swarm_agent.control.revisions import previous_of
from swarm_agent.control.tasks import live, make
from swarm_agent.control.transaction import Key, Transaction
from swarm_agent.objects import defaults
from swarm_agent.objects.durations import duration_text
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.objects.options import options
from swarm_agent.objects.records import Revision, Service, Task, UpdateStatus

GOING = ("updating", "rollback_started")


def going(service: Service) -> bool:
    """Whether an update or a rollback is on its way."""
    return service.update_status is not None and service.update_status.state in GOING


def advance(p: Transaction, service: Service, seen: SlotIndex) -> list[int | str]:
    """Move the update on by as many places as its policy lets go now; those that were written."""
    status = service.update_status
    if status is not None and status.state in PAUSED:
        return []
    rules = Rules(service, p.now)
    open_ = _open_places(p, service, seen, rules)
    older: Mapping[int | str, Task] = seen.older
    if defaults.is_global(service.spec):
        older = {n: t for n, t in older.items() if _open_to_it(p, service, n)}
    dirty = {s.number: s.old for s in open_ if s.dirty}
    if not going(service):
        if not dirty and not older:
            return []
        status = UpdateStatus(state="updating", message="update in progress", started_at=p.now)
        service = _say(p, service, status)
        rules.since = p.now
        open_ = _open_places(p, service, seen, rules)
    touched = Touched(open_, _settled(p, seen, rules), rules, p.now)
    p.charge(len(open_) // 2 + len(older) // 64)
    if touched.patience:
        p.wake(Key("service", service.id), touched.patience)
    if _stopped(p, service, status, rules, touched, touched.count + len(dirty) + len(older)):
        return []
    if dirty or older:
        return _hand_out(p, service, rules, touched, dirty, older, seen.idle)
    if not any(s.old and s.kept and s.failure(p.now) is None for s in open_):
        _complete(p, service, status, rules, touched)
    return []


def _open_places(p: Transaction, service: Service, seen: SlotIndex, rules: Rules) -> list[SlotProgress]:
    """The open places that take part; what is found out about one is kept until something is written there."""
    steps = seen.steps
    if seen.steps_for != rules.given:
        seen.steps_for = rules.given
        steps.clear()
    if len(steps) < len(seen.open):
        for n, tasks in seen.open.items():
            if n not in steps:
                takes_part = _counts(service, tasks, seen, rules.since) and _open_to_it(p, service, n)
                steps[n] = SlotProgress(n, tasks, seen, rules, p.now) if takes_part else None
    return [step for step in steps.values() if step is not None]


def _settled(p: Transaction, seen: SlotIndex, rules: Rules) -> Settled:
    """The settled places that this update made, as they stand now."""
    known: Settled | None = seen.settled
    moved: Collection[int | str] = seen.moved
    if known is None or known.rules != rules.given:
        known = seen.settled = Settled(rules.given)
        moved = seen.present
    for slot in moved:
        known.take(slot, seen.present.get(slot), rules.since)
    p.charge(len(moved) // 2)
    seen.moved.clear()
    return known


def _counts(service: Service, tasks: list[Task], seen: SlotIndex, since: int) -> bool:
    """Places that take part: live ones, those this update has had, and those whose ended task of an old revision must still
    be replaced."""
    if any(live(t) for t in tasks):
        return True
    last = decisive(service, tasks)
    if seen.is_current(last):
        return last.created_at >= since and ended_by_itself(last)
    return given_up(service, tasks)


def _open_to_it(p: Transaction, service: Service, place: int | str) -> bool:
    """Whether a new task may be put there: in global modes only on a node that is to have one, and takes any now."""
    return not isinstance(place, str) or global_.gets(service, p.view.nodes.get(place))


def _stopped(
    p: Transaction, service: Service, status: UpdateStatus | None, rules: Rules, touched: Touched, total: int
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
                # it may have given up a port meanwhile
                must_be_free(p.view, service.previous_spec, service.id)
            except InvalidSpec as err:
                cause = f"{cause}, and cannot be rolled back: {err}"
            else:
                _roll_back(p, service, before, cause)
                return True
    word = "rollback" if rules.back else "update"
    state = "rollback_paused" if rules.back else "paused"
    _say(p, service, msgspec.structs.replace(status, state=state, message=f"{word} paused {cause}"))
    return True


def _roll_back(p: Transaction, service: Service, before: Revision, cause: str) -> None:
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
    p: Transaction,
    service: Service,
    rules: Rules,
    touched: Touched,
    dirty: Mapping[int | str, list[Task]],
    older: Mapping[int | str, Task],
    idle: Collection[int | str],
) -> list[int | str]:
    """``dirty`` and ``older``: the old tasks, or the old task, of each place that still has to be handed to a worker. Stop-first
    begins with preparing the new task: the old one is stopped when the new one is ready to take its place. Places where nothing runs come
    first: an update or rollback that follows another in its midst would otherwise stop healthy tasks beside those the other one has
    stopped. ``idle``: those of ``older``."""
    config = rules.config
    key = Key("service", service.id)
    resting = touched.resting(config.delay, p.now)
    if resting:
        p.wake(key, min(resting))
    busy = touched.unreached + len(resting)
    left = len(dirty) + len(older)
    room = left if not config.parallelism else min(left, max(0, config.parallelism - busy))
    most = p.portion
    if room > most:
        p.more(key)
    count = min(room, most)
    down = {n for n, old in dirty.items() if not any(t.status.state == TaskState.RUNNING for t in old)}
    down.update(n for n in idle if n in older)
    numbers = sorted(down)[:count]
    if len(numbers) < count:
        others = (n for n in itertools.chain(dirty, older) if n not in down)
        numbers += heapq.nsmallest(count - len(numbers), others)
    first = config.order == "start-first" and not options(service.spec.labels).singleton
    # started first, the new one would stand beside the old one where only so many may be on a node
    placement = service.spec.task_template.placement
    strict = first and (bool(placement and placement.max_replicas) or keeps_apart_from_itself(service))
    for number in numbers:
        leaving = dirty[number] if number in dirty else [older[number]]
        for old in leaving if not strict else ():
            if old.node_id:
                p.discount(old)
        make(p, service, number, ready=not first or not leaving, cause="update")
    return numbers


def _complete(
    p: Transaction, service: Service, status: UpdateStatus | None, rules: Rules, touched: Touched
) -> None:
    if status is None or touched.unreached:
        return
    if touched.unsteady:
        return  # it goes on when the loop ends, or runs into the limit of attempts
    monitor = rules.config.monitor
    watched_until = (touched.latest() or p.now - monitor) + monitor
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


def _say(p: Transaction, service: Service, status: UpdateStatus) -> Service:
    changed = msgspec.structs.replace(service, update_status=status)
    p.put(changed)
    return changed
