"""``/events``: the engine's stream and the cluster's, one line each."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from swarm_agent.agent.engine_client import EngineClient, EngineError, json_lines
from swarm_agent.api.filters import Filters, label_matches
from swarm_agent.http.client import EngineUnreachable
from swarm_agent.http.server import HttpError
from swarm_agent.objects import defaults
from swarm_agent.objects.records import Config, Network, Node, Secret, Service, Task
from swarm_agent.store import Change, Store

REMEMBERED = 256
_KINDS: dict[type[Any], str] = {
    Node: "node",
    Service: "service",
    Network: "network",
    Secret: "secret",
    Config: "config",
}
_encode = msgspec.json.Encoder().encode
_TIME = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?")
VOLUME_MOVED = "volume-moved"
log = logging.getLogger(__name__)


class ClusterEvents:
    """Turns commits into Docker's swarm events and remembers the last ones."""

    def __init__(self, store: Store, now: Any) -> None:
        self._now = now
        self.past: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        self._listeners: set[asyncio.Queue[dict[str, Any]]] = set()
        self._unwatch = store.watch(self._on_commit, *_KINDS, Task)

    def close(self) -> None:
        self._unwatch()

    def listen(self) -> asyncio.Queue[dict[str, Any]]:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._listeners.add(queue)
        return queue

    def forget(self, queue: asyncio.Queue[dict[str, Any]]) -> None:
        self._listeners.discard(queue)

    def _on_commit(self, index: int, changes: Sequence[Change]) -> None:  # noqa: ARG002 - the watcher's signature
        for change in changes:
            event = self._event(change)
            if event is not None:
                self.past.append(event)
                for queue in self._listeners:
                    queue.put_nowait(event)

    def _warning(self, task: Task) -> dict[str, Any]:
        """Ours: a task went where its volume is not, and begins with an empty one. About its service, as Docker has no events of tasks."""
        text = next(r.text for r in task.reasons if r.code == VOLUME_MOVED)
        attributes = {"name": task.service_name, "task": task.id, "reason": text}
        return self._made("service", VOLUME_MOVED, task.service_id, attributes)

    def _event(self, change: Change) -> dict[str, Any] | None:
        if isinstance(change.row, Task):
            return self._warning(change.row) if _goes_astray(change) else None
        kind = _KINDS.get(type(change.row))
        if kind is None:
            return None
        action = "create" if change.old is None else "remove" if change.new is None else "update"
        attributes = {"name": _name(change.row)}
        if action == "update":
            what = _differences(change.old, change.new)
            if not what and not _user_visible(change.old, change.new):
                return None
            attributes.update(what)
        return self._made(kind, action, change.row.id, attributes)

    def _made(self, kind: str, action: str, id_: str, attributes: dict[str, str]) -> dict[str, Any]:
        now = self._now()
        return {
            "Type": kind,
            "Action": action,
            "Actor": {"ID": id_, "Attributes": attributes},
            "scope": "swarm",
            "time": now // 1_000_000_000,
            "timeNano": now,
        }


def _goes_astray(change: Change) -> bool:
    old, new = change.old, change.new
    return (
        new is not None
        and bool(new.reasons)
        and (old is None or old.reasons != new.reasons)
        and any(r.code == VOLUME_MOVED for r in new.reasons)
    )


def _name(row: Any) -> str:
    return row.description.hostname if isinstance(row, Node) else row.spec.name or ""


def _user_visible(old: Any, new: Any) -> bool:
    return bool(old.spec != new.spec)


def _differences(old: Any, new: Any) -> dict[str, str]:
    pairs: dict[str, tuple[str, str]] = {}
    if isinstance(new, Service):
        pairs = {
            "image": (_image(old), _image(new)),
            "replicas": (str(defaults.replicas(old.spec)), str(defaults.replicas(new.spec))),
            "updatestate": (_update_state(old), _update_state(new)),
        }
    elif isinstance(new, Node):
        pairs = {
            "availability": (old.spec.availability, new.spec.availability),
            "role": (old.spec.role, new.spec.role),
            "state": (old.status.state.word, new.status.state.word),
        }
    out = {}
    for key, (before, after) in pairs.items():
        if before != after:
            if before:
                out[f"{key}.old"] = before
            out[f"{key}.new"] = after
    return out


def _image(service: Service) -> str:
    return defaults.container(service.spec.task_template).image or ""


def _update_state(service: Service) -> str:
    return service.update_status.state if service.update_status is not None else ""


class Window(NamedTuple):
    """Which part of time a client asked for, nanoseconds; ``None``: from now on, and for ever."""

    since: int | None
    until: int | None

    def holds(self, at: int) -> bool:
        return (self.since is None or at >= self.since) and (self.until is None or at <= self.until)


def parse_window(query: Mapping[str, str]) -> Window:
    """``since`` and ``until``: seconds since the epoch, with up to nine digits of a fraction."""
    window = Window(parse_time(query.get("since", ""), "since"), parse_time(query.get("until", ""), "until"))
    if window.since is not None and window.until is not None and window.since > window.until:
        raise HttpError(
            400,
            f"`since` time ({query['since']}) cannot be after `until` time ({query['until']})",
        )
    return window


def parse_time(text: str, word: str) -> int | None:
    """Nanoseconds; None where nothing is stated. HttpError for what is no time; ``word``: what it was given as."""
    if not text:
        return None
    match = _TIME.fullmatch(text)
    if match is None:
        raise HttpError(400, f"invalid {word}: {text!r} is not a number of seconds since 1970")
    return int(match[1]) * 1_000_000_000 + int((match[2] or "").ljust(9, "0"))


def wanted(event: dict[str, Any], filters: Filters) -> bool:
    """Whether a cluster event passes the filters of a request. A kind's own filter asks for an id or name by its start."""
    actor = event["Actor"]
    attributes = actor["Attributes"]
    exact = {"scope": "swarm", "type": event["Type"], "event": event["Action"]}
    for key, values in filters.items():
        if not values:
            continue
        if key == "label":
            passed = all(label_matches(attributes, v) for v in values)
        elif key in exact:
            passed = exact[key] in values
        elif key in _KINDS.values():
            own = event["Type"] == key
            passed = own and any(
                actor["ID"].startswith(v) or attributes.get("name", "").startswith(v) for v in values
            )
        else:
            passed = False  # about things only an engine has
        if not passed:
            return False
    return True


async def stream(
    engine: EngineClient,
    cluster: ClusterEvents | None,
    query: dict[str, str],
    filters: Filters,
    window: Window,
) -> AsyncIterator[bytes]:
    """Both streams as JSON lines, until the engine's ends: it knows ``until``."""
    queue: asyncio.Queue[Any] = cluster.listen() if cluster is not None else asyncio.Queue()
    pump = asyncio.create_task(_pump(engine, query, queue))
    try:
        if cluster is not None and window.since is not None:
            for event in list(cluster.past):
                if window.holds(event["timeNano"]) and wanted(event, filters):
                    yield _encode(event) + b"\n"
        while (event := await queue.get()) is not None:
            if event.get("scope") != "swarm" or (wanted(event, filters) and window.holds(event["timeNano"])):
                yield _encode(event) + b"\n"
    finally:
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)
        if cluster is not None:
            cluster.forget(queue)


async def _pump(engine: EngineClient, query: dict[str, str], queue: asyncio.Queue[Any]) -> None:
    try:
        async with engine.stream("GET", "/events", query=query) as pieces:
            async for event in json_lines(pieces):
                queue.put_nowait(event)
    except (EngineError, EngineUnreachable) as err:
        log.warning("the engine's event stream ended: %s", err)
    queue.put_nowait(None)
