"""Whether, and when, a task that ended is followed by another.

Docker's policy decides whether: condition, attempts, window. When: its delay, doubled for each time in a row that the place failed soon
after its start, up to a longest one, with a jitter so that what failed together does not come back together. All that is
counted stands in the tasks themselves, so a new leader counts on.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from swarm_agent.objects import defaults
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.options import RESTART_MAX_DELAY, options
from swarm_agent.objects.records import ENFORCED, Service, Task

STABLE = 60 * defaults.SECOND  # who ran so long is in no crash loop
FIRST_DOUBLED = defaults.SECOND // 2  # a policy without delay grows from here
JITTER = 0.1


class PlannedRestart(NamedTuple):
    """A task that is to follow."""

    at: int  # nanoseconds
    attempt: int
    failures: int


def restart(service: Service, task: Task, tasks: list[Task], now: int) -> PlannedRestart | None:
    """What follows ``task``, which has ended; ``None``: nothing. ``tasks``: all of its place; ``now``: nanoseconds."""
    if not _may(service, task, tasks):
        return None
    if task.status.message == ENFORCED:
        failures = task.failures  # its node changed under it, which tells nothing of the task
    else:
        failures = 1 if ran_long(task, ended_at(task)) else task.failures + 1
    return PlannedRestart(
        min(max(ended_at(task), task.start_after), now) + delay(service, task.place, failures),
        attempt_of(service, task, 1),
        failures,
    )


def ran_long(task: Task, until: int) -> bool:
    """Whether a task ran so long that failures before it count no more; ``until``: its end, or now, nanoseconds."""
    return bool(task.status.started_at) and until - task.status.started_at >= STABLE


def delay(service: Service, place: int | str, failures: int) -> int:
    """The rest before a start, nanoseconds, after so many failures in a row. It does not grow where the policy gives up after so
    many attempts in a window, which growing rests would keep from ever being so many - but where a label asks for it."""
    policy = defaults.restart(service.spec.task_template)
    rest = policy.delay
    most = options(service.spec.labels).restart_max_delay
    if failures < 2 or (policy.max_attempts and policy.window and most is None):
        return rest
    longest = max(rest, RESTART_MAX_DELAY if most is None else most)
    grown = min(longest, max(rest, FIRST_DOUBLED) << min(failures - 1, 32))
    spread = zlib.crc32(f"{service.id}/{place}/{failures}".encode()) / 0xFFFFFFFF  # the same for every leader
    return int(grown * (1 - JITTER * spread))


def ended_at(task: Task) -> int:
    return task.status.finished_at or task.status.timestamp


def attempt_of(service: Service, task: Task, step: int) -> int:
    """Restarts counted so far; a new revision or run starts at none."""
    same = task.revision_id == service.revision_id and task.iteration == (
        service.job.iteration if service.job else 0
    )
    return task.attempt + step if same else 0


def _may(service: Service, task: Task, tasks: list[Task]) -> bool:
    policy = defaults.restart(service.spec.task_template)
    on_failure = policy.condition == "on-failure" or defaults.is_job(service.spec)
    if policy.condition == "none" or (on_failure and task.status.state == TaskState.COMPLETE):
        return False
    if not policy.max_attempts or task.revision_id != service.revision_id:
        return True
    if not policy.window:
        return task.attempt < policy.max_attempts
    ended = ended_at(task)
    recent = [
        t
        for t in tasks
        if t.revision_id == task.revision_id and t.attempt and ended - policy.window < t.created_at <= ended
    ]
    return len(recent) < policy.max_attempts
