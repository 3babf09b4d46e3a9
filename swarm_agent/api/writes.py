"""How an API call writes: one group, its version checked, Docker's answer when somebody else was faster."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from swarm_agent.api.backend import Backend
from swarm_agent.http.server import HttpError, Request
from swarm_agent.objects.base import Record
from swarm_agent.objects.errors import OutOfSequence
from swarm_agent.store import Delete, Group, Put

R = TypeVar("R", bound=Record)
_DIGITS = re.compile(r"[0-9]+")


async def write(backend: Backend, key: str, *writes: Put | Delete) -> None:
    """Commit the writes together.

    Raises:
        OutOfSequence: a row changed meanwhile; nothing was written.
    """
    result = await backend.propose((Group(key, writes),))
    if not result.accepted[0]:
        raise OutOfSequence


async def write_until(backend: Backend, key: str, decide: Callable[[], Sequence[Put | Delete]]) -> None:
    """Commit what ``decide`` makes of the rows as they are, again and again until no row changed in between: for changes that are meant
    whatever the cluster itself writes into a row meanwhile, removals above all. What is to be refused is raised by ``decide``."""
    while True:
        result = await backend.propose((Group(key, tuple(decide())),))
        if result.accepted[0]:
            return


async def write_spec(
    backend: Backend,
    kind: type[R],
    id_: str,
    version: int,
    key: str,
    change: Callable[[R], list[Put | Delete]],
) -> None:
    """Write what ``change`` makes of the row, if its spec is still the one the client read at ``version``.

    Progress the cluster itself writes into a row (an update's status, a node's pulse) does not count: Docker's clients
    would fail with "update out of sequence" for no fault of theirs.

    Raises:
        OutOfSequence: somebody changed the spec meanwhile; nothing was written.
    """
    while True:
        row: R | None = backend.store.tables[kind].get(id_)
        if row is None or not row.spec_version <= version <= row.version:  # type: ignore[attr-defined]
            raise OutOfSequence
        result = await backend.propose((Group(key, tuple(change(row))),))
        if result.accepted[0]:
            return


def version_of(request: Request, word: str) -> int:
    """The ``version`` query parameter of an update."""
    text = request.query.get("version", "")
    problem = "" if _DIGITS.fullmatch(text) else "invalid syntax"
    if not problem and (len(text) > 20 or int(text) >= 1 << 64):
        problem = "value out of range"
    if problem:
        text = text[:40]
        raise HttpError(
            400, f"invalid {word} version '{text}': strconv.ParseUint: parsing \"{text}\": {problem}"
        )
    return int(text)
