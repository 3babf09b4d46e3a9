"""What runs of this swarm in the engine and is assigned to nobody: it ends.

Every container of ours carries a label with the cluster's id. What carries it and belongs to no task of this node goes, whatever put it there: a task
removed while we were away, a node this host was before it lost its state, a person. A container without it is none of ours, also one
that bears Docker's own swarm labels.

Owns: which those are, and their removal. Refuses: tasks that are assigned (``runner`` sees to their containers).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, NamedTuple

from swarm_agent.agent.container import LABEL_CLUSTER, LABEL_TASK
from swarm_agent.agent.engine_client import Engine, EngineError
from swarm_agent.objects.errors import SwarmError

log = logging.getLogger(__name__)


class LabelledContainer(NamedTuple):
    """A container with the cluster's label."""

    id: str
    names: tuple[str, ...]  # more than one where others link to it
    task_id: str


def strays(
    found: Collection[LabelledContainer], names: Mapping[str, Collection[str]], leaving: Collection[str]
) -> list[LabelledContainer]:
    """Those that nobody assigned. ``names``: by task, how its containers are called; ``leaving``: tasks whose containers are being removed.

    A task's container under another name is a stray too: the task has lost it, and gets another one.
    """
    return [
        c for c in found if set(c.names).isdisjoint(names.get(c.task_id, ())) and c.task_id not in leaving
    ]


class Strays:
    """``gone``: told of each container that was removed, with its task."""

    def __init__(self, engine: Engine, cluster_id: str, gone: Callable[[str, str], Awaitable[None]]) -> None:
        self._engine = engine
        self._filters = json.dumps({"label": [f"{LABEL_CLUSTER}={cluster_id}"]})
        self._gone = gone

    async def look(self) -> list[LabelledContainer]:
        """Raises what the engine raises."""
        listed: list[dict[str, Any]] | None = await self._engine.call(
            "GET", "/containers/json", query={"all": "1", "filters": self._filters}
        )
        return [
            LabelledContainer(
                c["Id"], tuple(n.lstrip("/") for n in c.get("Names") or ()), c["Labels"].get(LABEL_TASK, "")
            )
            for c in listed or ()
        ]

    async def remove(self, container: LabelledContainer) -> bool:
        """At once, with its anonymous volumes; False when the engine would not."""
        log.info(
            "removing container %s (%s): its task is none of this node's",
            container.id[:12],
            ", ".join(container.names),
            extra={"task": container.task_id},
        )
        try:
            await self._engine.call("DELETE", f"/containers/{container.id}", query={"force": "1", "v": "1"})
        except EngineError as err:
            if err.status not in (404, 304):
                log.warning("cannot remove container %s: %s", container.id[:12], err)
                return False
        except (SwarmError, OSError) as err:
            log.warning("cannot remove container %s: %s", container.id[:12], err)
            return False
        try:
            await self._gone(container.id, container.task_id)
        except (SwarmError, OSError) as err:
            log.warning("cannot forget container %s yet: %s", container.id[:12], err)
            return False
        return True
