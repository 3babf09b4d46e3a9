"""Decisions larger than an entry of the log may be."""

from __future__ import annotations

import asyncio
import itertools

from swarm_agent.control.loop import ControlLoop
from swarm_agent.control.revisions import revision_of
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import AnyRecord, Node, NodeStatus, Revision, Service, Task, TaskStatus
from swarm_agent.objects.specs import (
    ContainerSpec,
    NodeSpec,
    Replicated,
    ServiceMode,
    ServiceSpec,
    TaskTemplate,
)
from swarm_agent.raft import EntryTooLarge
from swarm_agent.store import ApplyResult, Group, Put, Store, StoreEntry, encode_entry

MOST = 20_000  # bytes of an entry: some forty tasks


class Log:
    def __init__(self) -> None:
        self.store = Store()
        self.most = 1 << 30

    async def propose(self, groups: tuple[Group, ...]) -> ApplyResult:
        data = encode_entry(StoreEntry(1, groups))
        if len(data) > self.most:
            raise EntryTooLarge(len(data), self.most)
        return self.store.apply(self.store.index + 1, 1, data)

    async def put(self, *rows: AnyRecord) -> None:
        await self.propose(tuple(Group("x", (Put(r, 0),)) for r in rows))


def rows_of(id_: str, replicas: int) -> tuple[Service, Revision]:
    spec = ServiceSpec(
        name=id_,
        task_template=TaskTemplate(container_spec=ContainerSpec(image="web:1")),
        mode=ServiceMode(replicated=Replicated(replicas=replicas)),
    )
    revision = revision_of(id_, spec, ())
    return Service(id=id_, spec=spec, revision_id=revision.id), revision


def placed(log: Log) -> int:
    return sum(1 for t in log.store.tasks.all() if t.node_id)


async def run_until_placed(log: Log, wanted: int) -> None:
    log.most = MOST
    numbers = itertools.count()
    loop = ControlLoop(log.store, log.propose, lambda: f"{next(numbers):025}", lambda: 1)
    running = asyncio.create_task(loop.run())
    async with asyncio.timeout(20):
        while placed(log) < wanted and not running.done():
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def a_node(log: Log) -> None:
    status = NodeStatus(state=NodeState.READY)
    await log.put(Node(id="n1", spec=NodeSpec(role="worker", availability="active"), number=1, status=status))


def test_one_service_too_large_for_an_entry_comes_up_in_steps() -> None:
    async def main() -> None:
        log = Log()
        await a_node(log)
        await log.put(*rows_of("s1", 300))
        await run_until_placed(log, 300)
        assert placed(log) == len(log.store.tasks) == 300

    asyncio.run(main())


def test_many_services_at_once_become_several_entries() -> None:
    async def main() -> None:
        log = Log()
        await a_node(log)
        for i in range(60):
            await log.put(*rows_of(f"s{i}", 3))
        await run_until_placed(log, 180)
        assert placed(log) == len(log.store.tasks) == 180

    asyncio.run(main())


def test_tasks_that_waited_for_a_node_are_placed_in_steps() -> None:
    async def main() -> None:
        log = Log()
        service, revision = rows_of("s1", 300)
        await log.put(service, revision)
        waiting = TaskStatus(state=TaskState.PENDING, err="no suitable node")
        for slot in range(1, 301):
            await log.put(
                Task(
                    id=f"w{slot:024}",
                    service_id="s1",
                    service_name="s1",
                    revision_id=service.revision_id,
                    slot=slot,
                    status=waiting,
                )
            )
        await a_node(log)
        await run_until_placed(log, 300)
        assert placed(log) == len(log.store.tasks) == 300

    asyncio.run(main())
