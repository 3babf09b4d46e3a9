"""``FakeEngine`` keeps the contract a real engine keeps, and fails as it is told to."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from swarm_agent.agent.engine_client import EngineError
from swarm_agent.http.client import EngineUnreachable
from tests.lib.fake_engine import FakeEngine, Program
from tests.lib.virtual_loop import run
from tests.sim.engine_contract import CONTRACT, Bodies

BODIES = Bodies(deaf={"Image": "deaf:1"}, ends={"Image": "ends:1"})


def engine() -> FakeEngine:
    fake = FakeEngine("host", random.Random(1))
    fake.images["deaf:1"] = Program(stop_s=1000)
    fake.generic = [
        {"NamedResourceSpec": {"Kind": "gpu", "Value": "two"}},
        {"NamedResourceSpec": {"Kind": "gpu", "Value": "one"}},
        {"DiscreteResourceSpec": {"Kind": "disk", "Value": 3}},
    ]
    fake.images["ends:1"] = Program(runs_s=0.3, exit_code=3)
    return fake


@pytest.mark.parametrize("check", CONTRACT, ids=lambda c: c.__name__)
def test_contract(check: Any) -> None:
    run(check(engine().client(), BODIES))


def test_an_engine_that_is_down_cannot_be_reached() -> None:
    async def main() -> None:
        fake = engine()
        client = fake.client()
        async with client.stream("GET", "/events") as pieces:
            fake.go_down()
            with pytest.raises(EngineUnreachable):
                await anext(pieces)
        with pytest.raises(EngineUnreachable):
            await client.call("GET", "/info")
        fake.come_up()
        await client.call("GET", "/info")

    run(main())


def test_a_lost_answer_was_done() -> None:
    async def main() -> None:
        fake = engine()
        fake.faults.lost_answer = 1.0
        with pytest.raises(EngineUnreachable):
            await fake.client().call("POST", "/containers/create", query={"name": "c"}, body=BODIES.deaf)
        assert list(fake.containers) == ["c"]

    run(main())


def test_a_planted_error_did_nothing() -> None:
    async def main() -> None:
        fake = engine()
        fake.faults.error = 1.0
        with pytest.raises(EngineError) as caught:
            await fake.client().call("POST", "/containers/create", query={"name": "c"}, body=BODIES.deaf)
        assert caught.value.status == 500
        assert not fake.containers

    run(main())


def test_what_was_begun_is_finished() -> None:
    """The caller gives up; the engine does not."""

    async def main() -> None:
        fake = engine()
        client = fake.client()
        await client.call("POST", "/containers/create", query={"name": "c"}, body=BODIES.deaf)
        start = asyncio.create_task(client.call("POST", "/containers/c/start"))
        await asyncio.sleep(0.02)
        start.cancel()
        await asyncio.sleep(1.0)
        assert fake.containers["c"].running

    run(main())


def test_a_power_cut_ends_every_process() -> None:
    async def main() -> None:
        fake = engine()
        client = fake.client()
        await client.call("POST", "/containers/create", query={"name": "c"}, body=BODIES.deaf)
        await client.call("POST", "/containers/c/start")
        fake.power_cut()
        assert not fake.running()

    run(main())
