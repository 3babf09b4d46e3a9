"""A task's pre-start step: a container that has to end with 0 before the task's own is started.

Owns its container, ``<task name>.pre-start``, from creation to removal. It runs at most once for a task, whatever becomes of the
daemon meanwhile: the container stays until the task's own was started, and one that is found is what an earlier attempt made. One
that failed stays with its log as long as the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from swarm_agent.agent.container import container_name
from swarm_agent.agent.engine_client import Engine, EngineError
from swarm_agent.http.client import EngineUnreachable
from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.options import PreStart
from swarm_agent.objects.records import Task

SUFFIX = ".pre-start"
LABEL = "swarm-agent.pre-start"
LOG_LINES = 3
LOG_CHARACTERS = 300

Body = dict[str, Any]
Make = Callable[[str, Callable[[Body], Body]], Awaitable[None]]
"""Create a container of this name, connected as the task's own, from the task's create call as the function changes it."""

Start = Callable[[str, str], Awaitable[None]]
"""Start a container: its name and its id."""


class StepFailed(SwarmError):
    """The step did not end with 0. ``exit_code`` when its container has one."""

    def __init__(self, message: str, exit_code: int = 0) -> None:
        super().__init__(f"task: pre-start step: {message}")
        self.exit_code = exit_code


class PreStartStep:
    """Every operation may be repeated and cancelled. ``news`` is set when the engine has news of the task."""

    def __init__(self, engine: Engine, task: Task, step: PreStart, news: asyncio.Event) -> None:
        self._engine = engine
        self._step = step
        self._news = news
        self.name = container_name(task) + SUFFIX
        self.container_id = ""  # of the container seen last

    @property
    def _path(self) -> str:
        return f"/containers/{self.name}"

    async def run(self, make: Make, start: Start) -> None:
        """Return when it has ended with 0.

        Raises:
            StepFailed: it ended otherwise, could not be started, or took too long. The time counts anew after a restart of the daemon.
        """
        try:
            await self._begin(make, start)
        except EngineError as err:  # the engine refuses to create or to start it
            raise StepFailed(str(err)) from err
        seconds = self._step.timeout / 1e9
        try:
            async with asyncio.timeout(seconds):
                state = await self._its_end()
        except TimeoutError as err:
            await self.stop(0)
            raise StepFailed(f"not done within {seconds:g} s{await self._last_words()}") from err
        code, trouble = state.get("ExitCode", 0), state.get("Error") or ""
        if code or trouble:
            text = f"non-zero exit ({code})" + (f": {trouble}" if trouble else await self._last_words())
            raise StepFailed(text, code)

    async def _begin(self, make: Make, start: Start) -> None:
        found = await self._inspect()
        if found is not None and _never_ran(found["State"]):
            found = await self._discard()  # nobody knows whether it was connected yet
        if found is None:
            await make(self.name, self._shape)
            found = await self._inspect()
        if found is not None and _never_ran(found["State"]):
            await start(self.name, found["Id"])

    async def _its_end(self) -> Body:
        while True:
            self._news.clear()
            found = await self._inspect()
            if found is None:
                raise StepFailed(f"container {self.name} is gone: it was removed from the engine")
            if not found["State"].get("Running"):
                state: Body = found["State"]
                return state
            await self._news.wait()

    def _shape(self, body: Body) -> Body:
        """The task's own create call, with another program in it and without what is for a server."""
        shaped = {
            key: value for key, value in body.items() if key not in ("Cmd", "OpenStdin", "ExposedPorts")
        }
        shaped["HostConfig"] = {k: v for k, v in body["HostConfig"].items() if k != "PortBindings"}
        shaped["Labels"] = {**body["Labels"], LABEL: ""}
        shaped["Entrypoint"] = list(self._step.command)
        shaped["Healthcheck"] = {"Test": ["NONE"]}
        if self._step.image:
            shaped["Image"] = self._step.image
        return shaped

    async def stop(self, grace_s: int) -> None:
        """Stop it within so many seconds; fine when there is none."""
        await _none_is_fine(
            self._engine.call("POST", f"{self._path}/stop", query={"t": str(grace_s)}, timeout_s=grace_s + 60)
        )

    async def remove(self) -> None:
        """It is gone when this returns."""
        await _none_is_fine(
            self._engine.call("DELETE", self._path, query={"v": "1", "force": "1"}, timeout_s=120)
        )

    async def _discard(self) -> Body | None:
        """Remove one that never ran. By now it may: whoever made it may have begun to start it."""
        try:
            await _none_is_fine(self._engine.call("DELETE", self._path, query={"v": "1"}, timeout_s=120))
        except EngineError as err:
            if err.status != 409:
                raise
        return await self._inspect()

    async def _inspect(self) -> Body | None:
        try:
            found: Body = await self._engine.call("GET", f"{self._path}/json")
        except EngineError as err:
            if err.status == 404:
                return None
            raise EngineUnreachable(f"the engine cannot say how the pre-start step is: {err}") from err
        self.container_id = found["Id"]
        return found

    async def _last_words(self) -> str:
        """The end of its log, for people; a log that cannot be read is no reason to fail in another way."""
        query = {"stdout": "1", "stderr": "1", "tail": str(LOG_LINES)}
        try:
            async with self._engine.stream("GET", f"{self._path}/logs", query=query) as pieces:
                raw = b"".join([piece async for piece in pieces])
        except (EngineError, EngineUnreachable):
            return ""
        lines = " | ".join(text(raw).split("\n")).strip(" |")
        return f": {lines[-LOG_CHARACTERS:]}" if lines else ""


def text(raw: bytes) -> str:
    """The words of an engine's log, which comes in frames unless the container has a terminal."""
    out, at = b"", 0
    while at < len(raw):
        head = raw[at : at + 8]
        if len(head) < 8 or head[0] > 2 or head[1:4] != b"\0\0\0":
            return (out + raw[at:]).decode(errors="replace")
        end = at + 8 + int.from_bytes(head[4:], "big")
        out += raw[at + 8 : end]
        at = end
    return out.decode(errors="replace")


def _never_ran(state: Body) -> bool:
    """One that could not be started is "created" as well, with an exit code and the reason."""
    return state.get("Status") == "created" and not state.get("ExitCode") and not state.get("Error")


async def _none_is_fine(call: Awaitable[Any]) -> None:
    try:
        await call
    except EngineError as err:
        if err.status not in (404, 304):
            raise
