"""``/events``: the engine's stream and the cluster's, one line each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from swarm_agent.api.filters import Filters
from swarm_agent.node.engine import EngineClient, EngineError, EngineUnreachable, json_lines
from swarm_agent.objects import defaults
from swarm_agent.objects.records import Config, Network, Node, Secret, Service
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


class ClusterEvents:
    """Turns commits into Docker's swarm events and remembers the last ones."""

    def __init__(self, store: Store, now: Any) -> None:
        self._now = now
        self.past: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        self._listeners: set[asyncio.Queue[dict[str, Any]]] = set()
        self._unwatch = store.watch(self._on_commit)

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

    def _event(self, change: Change) -> dict[str, Any] | None:
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
        now = self._now()
        return {
            "Type": kind,
            "Action": action,
            "Actor": {"ID": change.row.id, "Attributes": attributes},
            "scope": "swarm",
            "time": now // 1_000_000_000,
            "timeNano": now,
        }


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


def wanted(event: dict[str, Any], filters: Filters) -> bool:
    """Whether a cluster event passes the filters of a request."""
    actor = event["Actor"]
    tests = {
        "scope": lambda v: v == "swarm",
        "type": lambda v: v == event["Type"],
        "event": lambda v: v == event["Action"],
    }
    for key, values in filters.items():
        test = tests.get(key)
        if test is None:
            if key in _KINDS.values():

                def test(v: str, key: str = key) -> bool:
                    return event["Type"] == key and v in (actor["ID"], actor["Attributes"].get("name"))
            else:
                return False
        if values and not any(test(v) for v in values):
            return False
    return True


async def stream(
    engine: EngineClient,
    cluster: ClusterEvents | None,
    query: dict[str, str],
    filters: Filters,
    until_s: float | None,
) -> AsyncIterator[bytes]:
    """Both streams as JSON lines, until the engine's ends (it knows ``until``)."""
    queue: asyncio.Queue[Any] = cluster.listen() if cluster is not None else asyncio.Queue()
    pump = asyncio.create_task(_pump(engine, query, queue))
    try:
        if cluster is not None and query.get("since"):
            since = float(query["since"])
            for event in list(cluster.past):
                if event["timeNano"] / 1e9 >= since and wanted(event, filters):
                    yield _encode(event) + b"\n"
        async with asyncio.timeout(until_s):
            while (event := await queue.get()) is not None:
                if event.get("scope") != "swarm" or wanted(event, filters):
                    yield _encode(event) + b"\n"
    except TimeoutError:
        return
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
    except (EngineError, EngineUnreachable):
        pass
    queue.put_nowait(None)
