"""What an engine does, whether it is a real one or ``FakeEngine``: each check takes a client and what to run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from swarm_agent.agent.describe import check_engine
from swarm_agent.agent.engine_client import EngineClient, EngineError, json_lines
from swarm_agent.agent.resources import reported
from swarm_agent.objects.records import Generic

LABEL = "com.docker.swarm.task.id"


class Bodies(NamedTuple):
    """Create calls: one that runs until it is killed and does not hear SIGTERM, one that soon ends with 3."""

    deaf: dict[str, Any]
    ends: dict[str, Any]


async def _create(engine: EngineClient, name: str, body: dict[str, Any]) -> None:
    labelled = {**body, "Labels": {LABEL: name}}
    await engine.call("POST", "/containers/create", query={"name": name}, body=labelled)


async def _state(engine: EngineClient, name: str) -> dict[str, Any]:
    state: dict[str, Any] = (await engine.call("GET", f"/containers/{name}/json"))["State"]
    return state


async def _refused(work: Awaitable[Any]) -> int:
    with pytest.raises(EngineError) as caught:
        await work
    return caught.value.status


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def _removed(engine: EngineClient, *names: str) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for name in names:
            with contextlib.suppress(EngineError):
                await engine.call("DELETE", f"/containers/{name}", query={"force": "1"})


async def says_who_it_is(engine: EngineClient, bodies: Bodies) -> None:
    info = await engine.call("GET", "/info")
    check_engine(info)
    assert info["Name"]
    assert info["NCPU"] > 0
    assert info["MemTotal"] > 0


async def what_is_not_there_is_404(engine: EngineClient, bodies: Bodies) -> None:
    assert await _refused(engine.call("GET", "/containers/c-none/json")) == 404
    assert await _refused(engine.call("POST", "/containers/c-none/start")) == 404
    assert await _refused(engine.call("POST", "/containers/c-none/stop")) == 404
    assert await _refused(engine.call("DELETE", "/containers/c-none")) == 404
    assert await _refused(engine.call("GET", "/images/nobody-has-this:1/json")) == 404
    assert await _refused(_create(engine, "c-none", {"Image": "nobody-has-this:1"})) == 404


async def a_container_is_created_once(engine: EngineClient, bodies: Bodies) -> None:
    async with _removed(engine, "c-once"):
        await _create(engine, "c-once", bodies.deaf)
        state = await _state(engine, "c-once")
        assert (state["Status"], state["Running"]) == ("created", False)
        assert await _refused(_create(engine, "c-once", bodies.deaf)) == 409
        await engine.call("POST", "/containers/c-once/stop", query={"t": "0"})  # not running: fine


async def start_and_stop_may_be_repeated(engine: EngineClient, bodies: Bodies) -> None:
    async with _removed(engine, "c-run"):
        await _create(engine, "c-run", bodies.deaf)
        for _ in range(2):
            await engine.call("POST", "/containers/c-run/start")
            state = await _state(engine, "c-run")
            assert (state["Status"], state["Running"]) == ("running", True)
            assert state["Pid"] > 0
        for _ in range(2):
            await engine.call("POST", "/containers/c-run/stop", query={"t": "1"})
            state = await _state(engine, "c-run")
            assert (state["Status"], state["Running"], state["ExitCode"]) == ("exited", False, 137)


async def the_exit_code_is_kept(engine: EngineClient, bodies: Bodies) -> None:
    async with _removed(engine, "c-ends"):
        await _create(engine, "c-ends", bodies.ends)
        await engine.call("POST", "/containers/c-ends/start")

        async def ended() -> bool:
            return not (await _state(engine, "c-ends"))["Running"]

        await _until(ended)
        state = await _state(engine, "c-ends")
        assert (state["Status"], state["ExitCode"]) == ("exited", 3)


async def a_running_one_goes_by_force_only(engine: EngineClient, bodies: Bodies) -> None:
    async with _removed(engine, "c-force"):
        await _create(engine, "c-force", bodies.deaf)
        await engine.call("POST", "/containers/c-force/start")
        assert await _refused(engine.call("DELETE", "/containers/c-force")) == 409
        await engine.call("DELETE", "/containers/c-force", query={"force": "1", "v": "1"})
        assert await _refused(engine.call("GET", "/containers/c-force/json")) == 404


async def containers_are_found_by_label(engine: EngineClient, bodies: Bodies) -> None:
    async with _removed(engine, "c-here"):
        await _create(engine, "c-here", bodies.deaf)

        async def found(label: str, every: str) -> list[str]:
            query = {"all": every, "filters": f'{{"label":["{label}"]}}'}
            return [c["Labels"][LABEL] for c in await engine.call("GET", "/containers/json", query=query)]

        assert await found(f"{LABEL}=c-here", "1") == ["c-here"]
        assert await found(f"{LABEL}=c-other", "1") == []
        assert await found(f"{LABEL}=c-here", "0") == [], "it does not run"
        await engine.call("POST", "/containers/c-here/start")
        assert await found(LABEL, "0") == ["c-here"]


async def events_tell_what_happened_in_order(engine: EngineClient, bodies: Bodies) -> None:
    seen: list[tuple[str, str]] = []
    filters = f'{{"type":["container"],"label":["{LABEL}"]}}'
    async with (
        _removed(engine, "c-events"),
        engine.stream("GET", "/events", query={"filters": filters}) as pieces,
    ):
        await _create(engine, "c-events", bodies.ends)
        await engine.call("POST", "/containers/c-events/start")
        async with asyncio.timeout(20):
            async for event in json_lines(pieces):
                seen.append((event["Action"], event["Actor"]["Attributes"][LABEL]))
                if event["Action"] == "die":
                    break
    assert seen == [(word, "c-events") for word in ("create", "start", "die")]


async def killing_ends_it_at_once(engine: EngineClient, bodies: Bodies) -> None:
    async with _removed(engine, "c-kill"):
        await _create(engine, "c-kill", bodies.deaf)
        assert await _refused(engine.call("POST", "/containers/c-kill/kill")) == 409, "it does not run yet"
        await engine.call("POST", "/containers/c-kill/start")
        await engine.call("POST", "/containers/c-kill/kill")

        async def ended() -> bool:
            return not (await _state(engine, "c-kill"))["Running"]

        await _until(ended)
        assert (await _state(engine, "c-kill"))["ExitCode"] == 137
        assert await _refused(engine.call("POST", "/containers/c-kill/kill")) == 409


async def volumes_are_made_and_listed(engine: EngineClient, bodies: Bodies) -> None:
    """With a container that mounts them too; those without a name go with it."""

    async def names() -> set[str]:
        found = await engine.call("GET", "/volumes", query={"filters": '{"driver":["local"]}'})
        return {v["Name"] for v in found["Volumes"] or () if v["Driver"] == "local"}

    before = await names()
    mounts = [
        {"Type": "volume", "Source": "c-data", "Target": "/data"},
        {"Type": "volume", "Source": "", "Target": "/cache"},
    ]
    host = {**bodies.deaf.get("HostConfig", {}), "Mounts": mounts}
    async with _removed(engine, "c-volumes"):
        await _create(engine, "c-volumes", {**bodies.deaf, "HostConfig": host})
        made = await names() - before
        assert "c-data" in made
        (anonymous,) = made - {"c-data"}
        assert len(anonymous) == 64
        assert await _refused(engine.call("DELETE", "/volumes/c-data")) == 409, "it is in use"
        await engine.call("DELETE", "/containers/c-volumes", query={"force": "1", "v": "1"})
        assert await names() - before == {"c-data"}
        await engine.call("DELETE", "/volumes/c-data")
        assert await names() == before
        assert await _refused(engine.call("DELETE", "/volumes/c-data")) == 404


async def events_tell_of_volumes(engine: EngineClient, bodies: Bodies) -> None:
    seen: list[tuple[str, str]] = []
    filters = '{"type":["volume"],"event":["create","destroy"]}'
    async with engine.stream("GET", "/events", query={"filters": filters}) as pieces:
        await engine.call("POST", "/volumes/create", body={"Name": "c-news"})
        await engine.call("DELETE", "/volumes/c-news")
        async with asyncio.timeout(20):
            async for event in json_lines(pieces):
                seen.append((event["Action"], event["Actor"]["ID"]))
                if event["Action"] == "destroy":
                    break
    assert seen == [("create", "c-news"), ("destroy", "c-news")]


async def generic_resources_are_told(engine: EngineClient, bodies: Bodies) -> None:
    """As daemon.json has them: ``node-generic-resources``."""
    info = await engine.call("GET", "/info")
    assert reported(info, ()) == (
        Generic(kind="disk", count=3),
        Generic(kind="gpu", name="one"),
        Generic(kind="gpu", name="two"),
    )


CONTRACT = (
    says_who_it_is,
    what_is_not_there_is_404,
    a_container_is_created_once,
    start_and_stop_may_be_repeated,
    the_exit_code_is_kept,
    a_running_one_goes_by_force_only,
    containers_are_found_by_label,
    events_tell_what_happened_in_order,
    killing_ends_it_at_once,
    volumes_are_made_and_listed,
    events_tell_of_volumes,
    generic_resources_are_told,
)
