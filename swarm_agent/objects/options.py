"""What a service may ask for beyond Docker's vocabulary: labels of the service that begin with ``swarm-agent.``.

Labels, because they are the one part of a service that every Docker client keeps when it reads a service, changes it and
sends it back, and that ``docker service create --label`` and ``deploy.labels`` in a Compose file can write. Each label of this
prefix means something or is refused; :func:`options` never guesses.
"""

from __future__ import annotations

import difflib
import functools
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from swarm_agent.objects.durations import parse_duration
from swarm_agent.objects.errors import InvalidSpec

PREFIX = "swarm-agent."
SECOND = 1_000_000_000
PROGRESS_DEADLINE = 600 * SECOND
RESTART_MAX_DELAY = 300 * SECOND
PRE_START_TIMEOUT = 600 * SECOND

STRATEGIES = ("spread", "binpack")
OVERLAPS = ("forbid", "replace")
VOLUME_AFFINITIES = ("prefer", "require", "ignore")
REBALANCES = ("advise", "never", "on-join", "continuous")
CONDITIONS = ("started", "healthy", "completed")


class Schedule(NamedTuple):
    """When a job runs."""

    cron: str
    timezone: str = "UTC"
    overlap: str = "forbid"  # what becomes of a run that is due while the last goes on: it is skipped, or takes its place


class Affinity(NamedTuple):
    """A wish to run on nodes where another service runs, or where it does not."""

    service: str  # name
    together: bool
    hard: bool


class Dependency(NamedTuple):
    service: str  # name
    condition: str  # started, healthy, completed


class PreStart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A container that has to end with 0 before a task's own is started."""

    command: tuple[str, ...]
    image: str = ""  # the task's own when empty
    timeout: int = PRE_START_TIMEOUT  # nanoseconds


class MinHealthy(NamedTuple):
    """How many tasks have to stay healthy while the cluster moves some: a number, or a share of the declared ones."""

    number: int
    percent: bool

    def of(self, replicas: int) -> int:
        return min(replicas, -(-replicas * self.number // 100) if self.percent else self.number)


class Options(NamedTuple):
    schedule: Schedule | None = None
    progress_deadline: int = PROGRESS_DEADLINE  # nanoseconds; 0: none
    restart_max_delay: int | None = None  # nanoseconds; None: nothing said
    strategy: str = "spread"
    affinities: tuple[Affinity, ...] = ()
    volume_affinity: str = "prefer"
    singleton: bool = False
    rebalance: str = "advise"
    min_healthy: MinHealthy | None = None
    depends_on: tuple[Dependency, ...] = ()
    pre_start: PreStart | None = None
    secrets: str = "pin"  # for references that say nothing of their own: pin or track
    configs: str = "pin"
    versions: tuple[tuple[str, str], ...] = ()  # ("secret/NAME" or "config/NAME", "track" | "pin" | a number)

    def version_of(self, kind: str, name: str) -> str:
        """How a reference follows its secret or config (``kind``): "track", "pin", or the number of a version."""
        default = self.secrets if kind == "secret" else self.configs
        return next((v for k, v in self.versions if k == f"{kind}/{name}"), default)


def options(labels: Mapping[str, str]) -> Options:
    """The options among a service's labels.

    Raises:
        InvalidSpec: with the label's path.
    """
    own = [(k, v) for k, v in labels.items() if k.startswith(PREFIX)]
    return _parsed(tuple(sorted(own))) if own else _NONE


@functools.lru_cache(maxsize=1024)
def _parsed(labels: tuple[tuple[str, str], ...]) -> Options:
    if not labels:
        return _NONE
    given: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {"schedule": {}, "pre_start": {}}
    versions = []
    for label, value in labels:
        key = label[len(PREFIX) :]
        named = re.fullmatch(r"(secret|config)\.(.+)", key)
        try:
            if named is not None:
                versions.append((f"{named[1]}/{named[2]}", _version(value)))
                continue
            if key not in _KEYS:
                raise ValueError(_unknown(key))
            field, parse = _KEYS[key]
            part, dot, name = field.partition(".")
            if dot:
                parts[part][name] = parse(value)
            else:
                given[field] = parse(value)
        except ValueError as err:
            raise InvalidSpec(f"label {label}: {err}", f"Labels['{label}']") from err
    for part, base in (("schedule", "cron"), ("pre_start", "command")):
        if parts[part] and base not in parts[part]:
            label = f"{PREFIX}{part.replace('_', '-')}"
            raise InvalidSpec(f"label {label} is missing, its settings are there", f"Labels['{label}']")
    if parts["schedule"]:
        given["schedule"] = Schedule(**parts["schedule"])
    if parts["pre_start"]:
        given["pre_start"] = PreStart(**parts["pre_start"])
    return Options(**given, versions=tuple(versions))


_NONE = Options()


# --- values ------------------------------------------------------------------------------------------------------------
def _word(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"{value!r} is none of {', '.join(allowed)}")
        return value

    return parse


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("the value is empty")
    return value.strip()


def _version(value: str) -> str:
    if value in ("track", "pin") or (value.isdecimal() and int(value) > 0):
        return value
    raise ValueError(f"{value!r} is none of track, pin or the number of a version")


def _above_zero(value: str) -> int:
    duration = parse_duration(value)
    if not duration:
        raise ValueError("it has to be above 0")
    return duration


def _strict(value: str) -> bool:
    _word("strict")(value)
    return True


_AFFINITY = re.compile(r"service\s*(==|!=)\s*(~?)\s*([A-Za-z0-9][\w-]*)")


def _affinities(value: str) -> tuple[Affinity, ...]:
    """Docker's old words: ``service==db``, ``service!=db``; with a tilde (``service==~db``) it is a wish, not a condition."""
    out = []
    for part in _list(value):
        match = _AFFINITY.fullmatch(part)
        if match is None:
            raise ValueError(
                f"{part!r} is no affinity: write service==NAME, service!=NAME, service==~NAME or service!=~NAME"
            )
        out.append(Affinity(match[3], match[1] == "==", not match[2]))
    return tuple(out)


def _dependencies(value: str) -> tuple[Dependency, ...]:
    out = []
    for part in _list(value):
        name, _, condition = part.partition(":")
        if not name.strip():
            raise ValueError(f"{part!r} names no service")
        _word(*CONDITIONS)(condition or "started")
        out.append(Dependency(name.strip(), condition or "started"))
    return tuple(out)


def _list(value: str) -> list[str]:
    return [part.strip() for part in _text(value).split(",") if part.strip()]


def _command(value: str) -> tuple[str, ...]:
    """A JSON array of words, or one line as a shell splits it (no shell runs it)."""
    text = _text(value)
    if text.startswith("["):
        try:
            words = msgspec.json.decode(text, type=tuple[str, ...])
        except msgspec.MsgspecError as err:
            raise ValueError(f"not a JSON array of words: {err}") from err
    else:
        words = tuple(shlex.split(text))
    if not words or not words[0]:
        raise ValueError("it names no program")
    return words


def _min_healthy(value: str) -> MinHealthy:
    match = re.fullmatch(r"(\d+)(%?)", value.strip())
    if match is None or (match[2] and int(match[1]) > 100):
        raise ValueError(f"{value!r} is neither a number of tasks nor a share like 75%")
    return MinHealthy(int(match[1]), bool(match[2]))


_KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "schedule": ("schedule.cron", _text),
    "schedule.timezone": ("schedule.timezone", _text),
    "schedule.overlap": ("schedule.overlap", _word(*OVERLAPS)),
    "update.progress-deadline": ("progress_deadline", parse_duration),
    "restart.max-delay": ("restart_max_delay", parse_duration),
    "placement.strategy": ("strategy", _word(*STRATEGIES)),
    "placement.affinity": ("affinities", _affinities),
    "volume-affinity": ("volume_affinity", _word(*VOLUME_AFFINITIES)),
    "singleton": ("singleton", _strict),
    "rebalance": ("rebalance", _word(*REBALANCES)),
    "min-healthy": ("min_healthy", _min_healthy),
    "depends-on": ("depends_on", _dependencies),
    "pre-start": ("pre_start.command", _command),
    "pre-start.image": ("pre_start.image", _text),
    "pre-start.timeout": ("pre_start.timeout", _above_zero),
    "secrets": ("secrets", _word("pin", "track")),
    "configs": ("configs", _word("pin", "track")),
}


def _unknown(key: str) -> str:
    close = difflib.get_close_matches(key, _KEYS, n=1)
    hint = (
        f"did you mean {PREFIX}{close[0]}" if close else f"known are {', '.join(PREFIX + k for k in _KEYS)}"
    )
    return f"no such option; {hint}"
