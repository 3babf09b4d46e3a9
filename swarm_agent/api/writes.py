"""How an API call writes: one group, its version checked, Docker's answer when somebody else was faster."""

from __future__ import annotations

from swarm_agent.api.backend import Backend
from swarm_agent.api.http import HttpError, Request
from swarm_agent.objects.errors import OutOfSequence
from swarm_agent.store import Delete, Group, Put


async def write(backend: Backend, key: str, *writes: Put | Delete) -> None:
    """Commit the writes together.

    Raises:
        OutOfSequence: a row changed meanwhile; nothing was written.
    """
    result = await backend.propose((Group(key, writes),))
    if not result.accepted[0]:
        raise OutOfSequence


def version_of(request: Request, word: str) -> int:
    """The ``version`` query parameter of an update."""
    text = request.query.get("version", "")
    if not text.isdigit():
        raise HttpError(
            400, f"invalid {word} version '{text}': strconv.ParseUint: parsing \"{text}\": invalid syntax"
        )
    return int(text)
