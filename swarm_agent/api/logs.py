"""``/services/{id}/logs`` and ``/tasks/{id}/logs``: every task's log, fetched from its node, in Docker's framing."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator

from swarm_agent.api.backend import Backend
from swarm_agent.api.events import parse_time
from swarm_agent.api.resolve import resolve
from swarm_agent.http.server import HttpError, Request, Streamed
from swarm_agent.objects import defaults
from swarm_agent.objects.records import Service, Task

log = logging.getLogger(__name__)

_LINES = re.compile(r"[0-9]{1,18}")
_FLAGS = ("stdout", "stderr", "follow", "timestamps")


async def service_logs(backend: Backend, request: Request, wanted: str) -> Streamed:
    service = resolve(backend.store, Service, wanted)
    return _logs(backend, request, list(backend.store.tasks.by("service", service.id)))


async def task_logs(backend: Backend, request: Request, wanted: str) -> Streamed:
    return _logs(backend, request, [resolve(backend.store, Task, wanted)])


def _logs(backend: Backend, request: Request, tasks: list[Task]) -> Streamed:
    query = {k: v for k, v in request.query.items() if k in (*_FLAGS, "since", "tail")}
    if not (_on(query, "stdout") or _on(query, "stderr")):
        raise HttpError(500, "Bad parameters: you must choose at least one stream")
    tail = query.get("tail", "all")
    if tail != "all" and not _LINES.fullmatch(tail):
        raise HttpError(400, f'invalid tail: a number of lines or "all" is wanted, not {tail[:40]!r}')
    parse_time(query.get("since", ""), "since")
    placed = [t for t in tasks if t.node_id]
    tty = {t.id: _tty(backend, t) for t in placed}
    details = _on(request.query, "details")
    pieces = _render(backend, {t.id: t for t in placed}, query, tty, details=details)
    return Streamed(pieces, headers=(("Content-Type", "application/vnd.docker.raw-stream"),))


def _on(query: dict[str, str], name: str) -> bool:
    return query.get(name, "").lower() in ("1", "true", "t")


def _tty(backend: Backend, task: Task) -> bool:
    revision = backend.store.revisions.get(task.revision_id)
    return revision is not None and bool(defaults.container(revision.template).tty)


async def _render(
    backend: Backend, tasks: dict[str, Task], query: dict[str, str], tty: dict[str, bool], *, details: bool
) -> AsyncIterator[bytes]:
    rest: dict[str, bytes] = {}
    problems = []
    async for piece in backend.logs(list(tasks.values()), query):
        task = tasks[piece.task_id]
        if piece.error:
            problems.append(piece.error)
        data = rest.pop(task.id, b"") + piece.data
        frames, rest[task.id] = ([(1, data)], b"") if tty[task.id] else _frames(data)
        for stream, line in frames:
            text = _with_details(line, task, stamped=_on(query, "timestamps")) if details else line
            yield text if tty[task.id] else _frame(stream, text)
    if problems:
        warning = (
            "warning: incomplete log stream. some logs could not be retrieved for the following reasons: "
            + ", ".join(dict.fromkeys(problems))
            + "\n"
        )
        yield _frame(2, warning.encode())


def _frames(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Split the engine's multiplexed stream: 8-byte heads (stream, three zeros, length) and their payloads."""
    out = []
    while len(data) >= 8:
        size = int.from_bytes(data[4:8], "big")
        if len(data) < 8 + size:
            break
        out.append((data[0], data[8 : 8 + size]))
        data = data[8 + size :]
    return out, data


def _frame(stream: int, payload: bytes) -> bytes:
    return bytes((stream, 0, 0, 0)) + len(payload).to_bytes(4, "big") + payload


def _with_details(line: bytes, task: Task, *, stamped: bool) -> bytes:
    about = (
        f"com.docker.swarm.node.id={task.node_id},com.docker.swarm.service.id={task.service_id},"
        f"com.docker.swarm.task.id={task.id} "
    ).encode()
    if stamped:
        stamp, _, text = line.partition(b" ")
        return stamp + b" " + about + text
    return about + line
