"""What the leader takes from nodes, without any network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Node, NodeDescription, Task, TaskStatus
from swarm_agent.objects.specs import NodeSpec
from swarm_agent.raft import EntryTooLarge
from swarm_agent.session.dispatcher import Dispatcher
from swarm_agent.session.wire import Hello, Statuses, Up
from swarm_agent.store import ApplyResult, Entry, Group, Put, Store, encode_entry


class Log:
    """Commits at once; ``most`` bounds the bytes of an entry."""

    def __init__(self, most: int = 1 << 20) -> None:
        self.store = Store()
        self.most = most

    async def propose(self, groups: tuple[Group, ...]) -> ApplyResult:
        data = encode_entry(Entry(1, groups))
        if len(data) > self.most:
            raise EntryTooLarge(len(data), self.most)
        return self.store.apply(self.store.index + 1, 1, data)

    async def confirm(self) -> None:
        """It always leads."""


def ids() -> str:
    return "session"


RUNNING = TaskStatus(state=TaskState.RUNNING)


async def reported(log: Log, node_id: str, *reports: Up) -> None:
    """One node says hello and its reports, then everything that can be written is."""
    dispatcher = Dispatcher(log.store, log.propose, ids, log.confirm)

    async def up() -> AsyncIterator[Up]:
        yield Hello(NodeDescription(), "10.0.0.9")
        for report in reports:
            yield report
        await asyncio.sleep(0.5)

    running = asyncio.create_task(dispatcher.run())
    async for _ in dispatcher.session(node_id, up(), ""):
        pass
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def cluster(log: Log, tasks: int, name: str = "web") -> None:
    nodes = [Node(id=i, spec=NodeSpec(role="worker")) for i in ("n1", "n2")]
    assigned = TaskStatus(state=TaskState.ASSIGNED)
    rows = [
        Task(id=f"t{i}", service_id="s", service_name=name, revision_id="s.1", node_id="n1", status=assigned)
        for i in range(tasks)
    ]
    for row in (*nodes, *rows):
        await log.propose((Group("x", (Put(row, 0),)),))


def test_no_report_displaces_that_of_the_node_that_has_the_task() -> None:
    async def main() -> None:
        log = Log()
        await cluster(log, 1)
        dispatcher = Dispatcher(log.store, log.propose, ids, log.confirm)

        async def up() -> AsyncIterator[Up]:
            yield Hello(NodeDescription(), "10.0.0.9")
            yield Statuses((("t0", RUNNING), ("nobody", RUNNING)))
            await asyncio.sleep(0.1)

        dispatcher._statuses["t0"] = ("n1", RUNNING)
        async for _ in dispatcher.session("n2", up(), ""):
            pass
        assert dispatcher._statuses == {"t0": ("n1", RUNNING)}

    asyncio.run(main())


def test_what_a_node_says_of_its_own_tasks_is_written() -> None:
    async def main() -> None:
        log = Log()
        await cluster(log, 1)
        await reported(log, "n1", Statuses((("t0", RUNNING),)))
        assert log.store.tasks.get("t0").status.state == TaskState.RUNNING  # type: ignore[union-attr]

    asyncio.run(main())


def test_reports_too_large_for_one_entry_are_written_in_several() -> None:
    async def main() -> None:
        log = Log()
        await cluster(log, 40)
        log.most = 3000
        await reported(log, "n1", Statuses(tuple((f"t{i}", RUNNING) for i in range(40))))
        assert all(t.status.state == TaskState.RUNNING for t in log.store.tasks.all())

    asyncio.run(main())


def test_a_report_that_fits_no_entry_holds_up_no_other() -> None:
    async def main() -> None:
        log = Log()
        await cluster(log, 3)
        log.most = 3000
        huge = TaskStatus(state=TaskState.FAILED, err="x" * 5000)
        await reported(log, "n1", Statuses((("t0", huge), ("t1", RUNNING), ("t2", RUNNING))))
        assert [log.store.tasks.get(f"t{i}").status.state for i in (1, 2)] == [TaskState.RUNNING] * 2  # type: ignore[union-attr]

    asyncio.run(main())
