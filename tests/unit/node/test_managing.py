"""The manager side of a host whose manager is a stand-in: what happens when two things happen to it at once."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swarm_agent.node import manager_role
from swarm_agent.node.manager_role import ManagerRole
from swarm_agent.objects.records import Node
from swarm_agent.objects.specs import NodeSpec
from swarm_agent.raft.errors import LogCorrupt


class Manager:
    """One that works until it is told that it does not."""

    broken = ""  # why none can be started
    started = 0

    def __init__(self, settings: Any, *rest: object) -> None:
        self.settings = settings
        self.status = SimpleNamespace(removed=False, failure="")
        self.store = SimpleNamespace(refused="")
        self.failed = asyncio.Event()
        self.is_leader = True
        self.works = True
        self.stopped = False

    async def start(self, *args: object, **kw: object) -> None:
        Manager.started += 1
        if self.broken:
            raise OSError(self.broken)

    async def stop(self) -> None:
        self.stopped = True

    async def wait_failed(self) -> None:
        await self.failed.wait()

    async def tell_addresses(self) -> None: ...


class Disk:
    """What there is of room."""

    trouble = ""

    def look(self) -> str:
        return self.trouble


class Papers:
    """On no disk."""

    def __init__(self) -> None:
        self.raft_dir = Path("raft")
        self.identity = SimpleNamespace(subject=SimpleNamespace(role="manager"))
        self.membership = SimpleNamespace(
            role="manager",
            raft_id=1,
            node_id="n1",
            cluster_id="c",
            listen_host="",
            join_port=0,
            advertise_host="",
            data_addr="",
        )
        self.logs_dropped = 0

    def remember(self, **changes: object) -> None:
        vars(self.membership).update(changes)

    def have_keys(self, entropy: object) -> None: ...

    def drop_keys(self) -> None: ...

    def drop_log(self) -> None:
        self.logs_dropped += 1


class Host:
    """A manager side, and what is around it."""

    def __init__(self) -> None:
        self.papers: Any = Papers()
        self.tasks: set[asyncio.Task[None]] = set()
        self.room: Any = Disk()
        anything: Any = SimpleNamespace(
            rpc_port=0, raft_port=0, timing=None, certificates=SimpleNamespace(entropy=None)
        )
        self.side = ManagerRole(
            self.papers,
            anything,
            anything,
            str,
            random.Random(1),
            anything,
            3,
            anything,
            self.spawn,
            self.room,
        )
        self.node = Node(id="n1", role="manager", spec=NodeSpec(role="manager"))
        certificate: Any = SimpleNamespace(renew=self.renew)
        self.side.certificate = certificate

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def renew(self) -> None:
        self.papers.identity.subject.role = self.node.role

    def told(self, role: str) -> None:
        self.node = Node(id="n1", role=role, spec=NodeSpec(role=role))
        self.side.follow(self.node)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not holds():
                await asyncio.sleep(0.001)

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_role, "Manager", Manager)
    monkeypatch.setattr(Manager, "broken", "")
    monkeypatch.setattr(manager_role, "RETRY_S", 0.001)
    monkeypatch.setattr(manager_role, "ROOM_S", 0.001)
    monkeypatch.setattr(manager_role, "FAILED_RETRY_S", 0.001)
    monkeypatch.setattr(manager_role, "LONGEST_RETRY_S", 0.01)
    monkeypatch.setattr(manager_role, "STEADY_S", 0.001)


def story(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test in a loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


async def started() -> tuple[Host, Any]:
    host = Host()
    await host.side.start(None, None)
    assert host.side.manager is not None
    return host, host.side.manager


@story
async def test_a_manager_whose_disk_fails_comes_back_once_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    host, manager = await started()
    monkeypatch.setattr(Manager, "broken", "no space left on device")
    manager.failed.set()
    await host.until(lambda: "cannot start: no space left" in host.side.trouble)
    assert manager.stopped
    monkeypatch.setattr(Manager, "broken", "")
    await host.until(lambda: host.side.manager is not None and not host.side.trouble)
    await host.end()


@story
async def test_a_manager_whose_disk_has_failed_can_be_made_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    host, manager = await started()
    monkeypatch.setattr(Manager, "broken", "no space left on device")
    manager.failed.set()
    await host.until(lambda: "cannot start" in host.side.trouble)
    host.told("worker")
    await host.until(lambda: host.papers.identity.subject.role == "worker")
    await host.until(lambda: not host.tasks)
    assert (host.papers.membership.role, host.papers.logs_dropped, host.side.trouble) == ("worker", 1, "")


@story
async def test_the_log_of_a_manager_is_kept_when_the_one_that_was_removed_has_made_room_for_it() -> None:
    host, removed = await started()
    async with host.side._changing:
        removed.status.removed = True
        await host.until(lambda: bool(host.side._changing._waiters))
        following: Any = Manager(removed.settings)
        host.side.manager = following  # as stand_alone leaves it
    await asyncio.sleep(0)
    await host.until(lambda: not host.side._changing.locked())
    assert (host.side.manager, following.stopped, host.papers.logs_dropped) == (following, False, 0)
    await host.end()


@story
async def test_one_that_raft_has_let_go_first_remembers_that_it_is_a_worker() -> None:
    host, manager = await started()
    host.side.follow(Node(id="n1", role="manager", spec=NodeSpec(role="worker")))
    manager.status.removed = True
    await host.until(lambda: host.papers.logs_dropped == 1)
    host.told("worker")
    await host.until(
        lambda: host.papers.identity.subject.role == "worker" and not host.side._changing.locked()
    )
    assert host.papers.membership.role == "worker"
    await host.end()


@story
async def test_one_that_cannot_start_again_leaves_the_rest_of_the_host_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Manager, "broken", "the port is taken")
    host = Host()
    with pytest.raises(OSError, match="taken"):
        await host.side.start(None, None)  # one that joins must be told
    await host.side.start(None, None, again=True)
    assert host.side.manager is None
    assert "the port is taken" in host.side.trouble
    monkeypatch.setattr(Manager, "broken", "")
    await host.until(lambda: host.side.manager is not None and not host.side.trouble)
    await host.end()


@story
async def test_a_damaged_log_is_named_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(self: Manager, *args: object, **kw: object) -> None:
        raise LogCorrupt("log segment 1 is damaged at byte 7")

    monkeypatch.setattr(Manager, "start", start)
    host = Host()
    await host.side.start(None, None, again=True)
    assert host.side.trouble.startswith("damaged log: log segment 1 is damaged at byte 7")
    assert "promote" in host.side.trouble
    host.told("worker")  # what the way out begins with
    await host.until(lambda: host.papers.identity.subject.role == "worker")
    assert (host.papers.logs_dropped, host.side.trouble) == (1, "")
    await host.end()


@story
async def test_one_without_room_hands_over_and_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    host, manager = await started()
    host.room.trouble = "No space left on device: /state"
    await host.until(lambda: host.side.manager is None)
    assert manager.stopped
    assert host.side.trouble == "cannot write: No space left on device: /state"
    before = Manager.started
    await asyncio.sleep(0.05)
    assert Manager.started == before  # it does not even stand for election
    host.room.trouble = ""
    await host.until(lambda: host.side.manager is not None and not host.side.trouble)
    await host.end()


@story
async def test_one_that_starts_again_without_room_waits_for_it() -> None:
    host = Host()
    host.room.trouble = "No space left on device: /state"
    before = Manager.started
    await host.side.start(None, None, again=True)
    assert (host.side.manager, Manager.started) == (None, before)
    assert "No space left" in host.side.trouble
    host.room.trouble = ""
    await host.until(lambda: host.side.manager is not None)
    await host.end()
