"""A node that looks for its leader: soon when there is one, and less and less often, with few words, while there is none."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest

from swarm_agent.agent.session import SessionAgent
from swarm_agent.ca.join_server import ManagerAddress
from swarm_agent.objects.errors import Unavailable
from swarm_agent.objects.records import NodeDescription
from swarm_agent.rpc.grpc import Redirect
from swarm_agent.rpc.messages import Described, Hello, Welcome
from tests.lib.virtual_loop import VirtualLoop

MANAGERS = ("m1:1", "m2:1", "m3:1")


class Call:
    def __init__(self, addr: str, net: Net) -> None:
        self._addr, self._net = addr, net

    async def write(self, message: object) -> None:
        self._net.tries.append((asyncio.get_running_loop().time(), self._addr))
        self._net.said.append(message)
        answer = self._net.answers(self._addr)
        if answer is not None:
            raise answer

    async def read(self) -> object:
        if self._net.welcomed < 0:
            self._net.welcomed = asyncio.get_running_loop().time()
            return Welcome("s", 5 * 10**9, b"")
        await asyncio.Event().wait()
        return None


class Net:
    """``answers``: what a manager raises, None when it serves."""

    def __init__(self, answers: Callable[[str], Exception | None]) -> None:
        self.answers = answers
        self.tries: list[tuple[float, str]] = []
        self.said: list[object] = []
        self.welcomed = -1.0

    def client(self, addr: str, identity: object) -> Any:
        net = self

        class Client:
            def bidirectional(self, name: str) -> Call:
                return Call(addr, net)

            async def close(self) -> None: ...

        return Client()


class Orders:
    async def root_changed(self, root: bytes) -> None: ...
    def statuses(self) -> list[Any]:
        return []

    def lease_wanted(self) -> bool:
        return False


def look(net: Net, seconds: float, change: Callable[[], None] | None = None, after: float = 0.0) -> None:
    """Let a node look for its leader for so long, in virtual time."""

    async def main() -> None:
        anything: Any = net
        orders: Any = Orders()
        hello: Any = lambda: None  # noqa: E731
        known = tuple(ManagerAddress(a, "", a) for a in MANAGERS)
        agent = SessionAgent(orders, lambda: anything, lambda: known, hello, random.Random(7), anything)
        task = asyncio.create_task(agent.run())
        if change is not None:
            await asyncio.sleep(after)
            change()
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_managers_that_name_a_dead_leader(caplog: pytest.LogCaptureFixture) -> None:
    """It was asked, and told of, ten times a second: every answer that named it counted as progress."""
    caplog.set_level(logging.INFO)

    def answers(addr: str) -> Exception:
        return Unavailable("connection refused") if addr == "m1:1" else Redirect("m1:1")

    net = Net(answers)
    look(net, 60)
    late = [t for t, _ in net.tries if t > net.tries[0][0] + 10]
    assert len(late) < 3 * 50  # twice a second on average, the longest pause is one
    assert len(caplog.records) <= 3


def test_the_next_leader_is_found_within_a_second_or_so() -> None:
    leader = [""]

    def answers(addr: str) -> Exception | None:
        if addr == leader[0]:
            return None
        return Redirect(leader[0]) if leader[0] else Unavailable("this manager knows no leader now")

    changed = [0.0]

    def elect() -> None:
        changed[0] = asyncio.get_running_loop().time()
        leader[0] = "m3:1"

    net = Net(answers)
    look(net, 5, elect, 30)
    assert 0 < net.welcomed - changed[0] < 1.2


def test_who_is_sent_on_goes_at_once() -> None:
    net = Net(lambda addr: None if addr == "m2:1" else Redirect("m2:1"))
    look(net, 5)
    assert net.welcomed - net.tries[0][0] < 0.1


def test_a_description_that_waited_for_a_session_is_not_said_after_a_newer_hello() -> None:
    """A full disk that has room again before anybody could be told of it."""
    net = Net(lambda addr: Unavailable("not yet") if len(net.tries) < 5 else None)
    troubles = ["full", ""]

    async def main() -> None:
        anything: Any = net
        orders: Any = Orders()
        hello = lambda: Hello(NodeDescription(trouble=troubles[0]), "")  # noqa: E731
        known = tuple(ManagerAddress(a, "", a) for a in MANAGERS)
        agent = SessionAgent(orders, lambda: anything, lambda: known, hello, random.Random(7), anything)
        agent.described(NodeDescription(trouble="full"))
        task = asyncio.create_task(agent.run())
        await asyncio.sleep(0.01)
        agent.described(NodeDescription(trouble="full"))
        troubles.pop(0)
        await asyncio.sleep(20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    served = net.said[4:]
    assert isinstance(served[0], Hello)
    assert served[0].description.trouble == ""
    assert not any(isinstance(message, Described) for message in served)
