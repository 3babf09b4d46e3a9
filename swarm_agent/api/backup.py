"""``/swarm-agent/backup`` and ``/swarm-agent/recover``: a swarm's state out of it, and a swarm out of its state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from swarm_agent.api.backend import Backend
from swarm_agent.http.server import HttpError, Request, Response, Streamed, json_response
from swarm_agent.manager.backup import parse_backup_key
from swarm_agent.objects.base import Spec
from swarm_agent.objects.normalise import normalise, parse_json
from swarm_agent.objects.specs import RecoverOptions

MAX_ARCHIVE = 1 << 30
KEY_HEADER = "x-backup-key"


class BackupRequest(Spec, frozen=True, kw_only=True):
    key: str | None = None


async def backup(backend: Backend, request: Request) -> Streamed:
    """``{"Key": "SWMBAK-1-..."}``: the archive, sealed with that key. Any manager answers for itself."""
    key = parse_backup_key(normalise(parse_json(await request.body()), BackupRequest).key or "")
    if not backend.is_manager:
        raise HttpError(503, "This node is not a swarm manager. Ask one for the backup.")
    pieces = await backend.backup(key)
    return Streamed(_stream(pieces), headers=(("Content-Type", "application/octet-stream"),))


async def _stream(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)  # each takes a few milliseconds; the state may have thousands


async def recover(backend: Backend, request: Request) -> Response:
    """The body is the archive, the header its key, the query where this host stands: the new node's id."""
    if backend.state != "inactive":
        raise HttpError(
            503,
            "This node is part of a swarm. Recover a backup on a host outside of any, or leave this swarm first.",
        )
    key = parse_backup_key(request.header(KEY_HEADER))
    options = normalise(
        {k: v for k, v in request.query.items() if v},
        RecoverOptions,
    )
    return json_response(await backend.recover(options, await request.body(MAX_ARCHIVE), key))
