"""What the leader takes from nodes, without any network."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from swarm_agent.dispatcher import assignments, network_view
from swarm_agent.dispatcher.dispatcher import FIRST_HELLO_S, Dispatcher
from swarm_agent.network.model import NetworkView
from swarm_agent.objects import defaults, features
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.errors import Unavailable
from swarm_agent.objects.records import (
    AnyRecord,
    Cluster,
    Content,
    ContentRef,
    JoinTokens,
    NetworkAddress,
    Node,
    NodeDescription,
    NodeStatus,
    Revision,
    RootCA,
    Secret,
    Task,
    TaskStatus,
)
from swarm_agent.objects.specs import (
    ClusterSpec,
    ContainerSpec,
    DispatcherConfig,
    DNSConfig,
    DriverSpec,
    FileTarget,
    NodeSpec,
    PortConfig,
    SecretReference,
    SecretSpec,
    TaskDefaults,
    TaskTemplate,
)
from swarm_agent.raft import EntryTooLarge
from swarm_agent.rpc.messages import (
    BEATS_A_PERIOD,
    Assignments,
    Beat,
    Contents,
    Down,
    Hello,
    Leaving,
    Networks,
    Piece,
    Silent,
    Statuses,
    Up,
    Welcome,
)
from swarm_agent.store import ApplyResult, Delete, Group, Put, Store, StoreEntry, encode_entry
from tests.lib.optional import unwrap
from tests.lib.virtual_loop import run


class Log:
    """Commits at once; ``most`` bounds the bytes of an entry."""

    def __init__(self, most: int = 1 << 20) -> None:
        self.store = Store()
        self.most = most

    async def propose(self, groups: tuple[Group, ...]) -> ApplyResult:
        data = encode_entry(StoreEntry(1, groups))
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
    tasks_ = [
        Task(id=f"t{i}", service_id="s", service_name=name, revision_id="s.1", node_id="n1", status=assigned)
        for i in range(tasks)
    ]
    rows: list[AnyRecord] = [*nodes, *tasks_]
    for row in rows:
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

        dispatcher._reports.report("t0", "n1", RUNNING)
        async for _ in dispatcher.session("n2", up(), ""):
            pass
        assert dispatcher._reports._statuses == {"t0": ("n1", RUNNING)}

    asyncio.run(main())


def test_what_a_node_says_of_its_own_tasks_is_written() -> None:
    async def main() -> None:
        log = Log()
        await cluster(log, 1)
        await reported(log, "n1", Statuses((("t0", RUNNING),)))
        assert unwrap(log.store.tasks.get("t0")).status.state == TaskState.RUNNING

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
        states = [unwrap(log.store.tasks.get(f"t{i}")).status.state for i in (1, 2)]
        assert states == [TaskState.RUNNING] * 2

    asyncio.run(main())


# --- secrets and configs -----------------------------------------------------------------------------------------------
KEY_USER = TaskTemplate(
    container_spec=ContainerSpec(
        image="a", secrets=(SecretReference(secret_id="k", secret_name="k", file=FileTarget(name="k")),)
    )
)


async def with_contents(log: Log, *sizes: int) -> None:
    """Two tasks on n1 that share all of them, one on n2 that needs none."""
    await cluster(log, 2)
    refs = tuple(ContentRef(owner=f"k{i}", number=1) for i in range(len(sizes)))
    revisions = (
        Revision(id="s.1", service_id="s", template=KEY_USER, contents=refs),
        Revision(id="s.2", service_id="s", template=TaskTemplate()),
    )
    secrets = [Secret(id=r.owner, spec=SecretSpec(name=r.owner)) for r in refs]
    contents = [
        Content(id=f"{r.owner}.1", owner=r.owner, number=1, data=b"x" * n)
        for r, n in zip(refs, sizes, strict=True)
    ]
    other = Task(id="u", service_id="s", service_name="web", revision_id="s.2", node_id="n2")
    rows: list[AnyRecord] = [*revisions, *secrets, *contents, other]
    for row in rows:
        await log.propose((Group("x", (Put(row, 0),)),))


async def told(
    log: Log, node_id: str, level: int, *between: Callable[[], Awaitable[object]]
) -> tuple[list[Down], Dispatcher]:
    """What a node is told from its hello on, with what happens after each assignment."""
    dispatcher = Dispatcher(log.store, log.propose, ids, log.confirm)
    over = asyncio.Event()

    async def up() -> AsyncIterator[Up]:
        yield Hello(NodeDescription(), "10.0.0.9", feature_level=level)
        await over.wait()

    out: list[Down] = []
    left = list(between)
    async for message in dispatcher.session(node_id, up(), ""):
        if isinstance(message, Assignments | Contents):
            out.append(message)
        if isinstance(message, Assignments):
            if not left:
                over.set()
                break
            await left.pop(0)()
    return out, dispatcher


def test_a_node_is_told_each_content_once_and_only_what_its_tasks_need() -> None:
    async def main() -> None:
        log = Log(1 << 24)
        await with_contents(log, 10)
        extra = Task(id="t9", service_id="s", service_name="web", revision_id="s.1", node_id="n1")
        messages, _ = await told(log, "n1", 3, lambda: log.propose((Group("x", (Put(extra, 0),)),)))
        assert [type(m) for m in messages] == [Contents, Assignments, Assignments]
        assert messages[0] == Contents((Piece("k0.1", b"x" * 10),))
        others, _ = await told(log, "n2", 3)
        assert [type(m) for m in others] == [Assignments]

    asyncio.run(main())


def test_tasks_that_are_to_end_get_theirs_too() -> None:
    async def main() -> None:
        log = Log(1 << 24)
        await with_contents(log, 10)
        for task in list(log.store.tasks.by("node", "n1")):
            ends = msgspec.structs.replace(task, desired_state=TaskState.COMPLETE)
            await log.propose((Group("x", (Put(ends, task.version),)),))
        messages, _ = await told(log, "n1", 3)
        assert messages[0] == Contents((Piece("k0.1", b"x" * 10),))

    asyncio.run(main())


def test_what_was_forgotten_is_told_again() -> None:
    async def main() -> None:
        log = Log(1 << 24)
        await with_contents(log, 10)

        def gone() -> Awaitable[object]:
            rows = [log.store.tasks.get(f"t{i}") for i in range(2)]
            return log.propose(
                tuple(Group("x", (Delete("task", r.id, r.version),)) for r in rows if r is not None)
            )

        back = Task(id="t9", service_id="s", service_name="web", revision_id="s.1", node_id="n1")
        messages, _ = await told(log, "n1", 3, gone, lambda: log.propose((Group("x", (Put(back, 0),)),)))
        assert [type(m) for m in messages] == [Contents, Assignments, Assignments, Contents, Assignments]

    asyncio.run(main())


def test_large_contents_come_in_several_messages() -> None:
    async def main() -> None:
        log = Log(1 << 24)
        await with_contents(log, 1_000_000, 1_000_000, 1_000_000, 1_000_000, 1_000_000)
        messages, _ = await told(log, "n1", 3)
        sizes = [[len(p.data) for p in m.pieces] for m in messages if isinstance(m, Contents)]
        assert sizes == [[1_000_000] * 4, [1_000_000]]

    asyncio.run(main())


def test_a_node_of_an_older_release_is_not_given_what_it_would_leave_out() -> None:
    async def main() -> None:
        log = Log(1 << 24)
        await with_contents(log, 10)
        (assignments,), dispatcher = await told(log, "n1", 2)
        assert isinstance(assignments, Assignments)
        assert assignments.assignments == ()
        statuses = dispatcher._reports._statuses
        assert {s.state for _, s in statuses.values()} == {TaskState.REJECTED}
        assert "knows feature level 2" in statuses["t0"][1].err

    asyncio.run(main())


def test_the_clusters_log_driver_is_for_tasks_without_one() -> None:
    own = DriverSpec(name="syslog")
    store = Store()
    cluster_ = Cluster(
        id="c",
        spec=ClusterSpec(task_defaults=TaskDefaults(log_driver=DriverSpec(name="none"))),
        root_ca=RootCA(cert=b"", key=b"", digest=""),
        join_tokens=JoinTokens(worker="", manager=""),
    )
    rows = (
        cluster_,
        Revision(id="plain", service_id="s", template=TaskTemplate()),
        Revision(id="own", service_id="s", template=TaskTemplate(log_driver=own)),
    )
    store.apply(1, 1, encode_entry(StoreEntry(1, tuple(Group("x", (Put(r, 0),)) for r in rows))))
    seen = {}
    for id_ in ("plain", "own"):
        found = assignments.assignment(store, Task(id="t", service_id="s", service_name="w", revision_id=id_))
        assert found is not None
        seen[id_] = found.revision.template.log_driver
    assert seen == {"plain": DriverSpec(name="none"), "own": own}


# --- host-mode ports a node picked ------------------------------------------------------------------------------------
def test_a_port_a_node_picked_comes_back_in_its_view() -> None:
    picked = PortConfig(protocol="udp", target_port=53, published_port=50_000, publish_mode="host")
    status = TaskStatus(state=TaskState.RUNNING, ports=(picked,))
    task = Task(
        id="t", service_id="s", service_name="w", revision_id="r", node_id="n1", node_address="10.240.4.9", status=status
    )  # fmt: skip
    store = Store()
    node = Node(id="n1", spec=NodeSpec(), number=1, data_addr="10.0.0.1")
    rows = (node, task, Revision(id="r", service_id="s", template=TaskTemplate()))
    store.apply(1, 1, encode_entry(StoreEntry(1, tuple(Group("x", (Put(r, 0),)) for r in rows))))
    (port,) = network_view.ClusterNetworkState(store).view(node).ports
    assert (port.protocol, port.published, port.target, port.mode, port.backends) == (
        "udp", 50_000, 53, "host", ("10.240.4.9",),
    )  # fmt: skip


def test_own_name_servers_of_a_task_on_an_overlay_reach_its_node() -> None:
    template = TaskTemplate(
        container_spec=ContainerSpec(image="a", dns_config=DNSConfig(nameservers=("192.0.2.1",)))
    )
    task = Task(
        id="t", service_id="s", service_name="w", revision_id="r", node_id="n1", node_address="10.240.4.9",
        networks=(NetworkAddress(network_id="net", address="10.0.1.2/24"),),
    )  # fmt: skip
    store = Store()
    node = Node(id="n1", spec=NodeSpec(), number=1, data_addr="10.0.0.1")
    rows = (node, task, Revision(id="r", service_id="s", template=template))
    store.apply(1, 1, encode_entry(StoreEntry(1, tuple(Group("x", (Put(r, 0),)) for r in rows))))
    (local,) = network_view.ClusterNetworkState(store).view(node).local
    assert local.servers == ("192.0.2.1",)


def test_a_node_is_told_what_members_are_reached_by() -> None:
    store = Store()
    manager = Node(
        id="n1", spec=NodeSpec(), number=1, data_addr="10.0.0.1",
        manager_addr="192.0.2.1:2390", rpc_addr="192.0.2.1:2378", status=NodeStatus(addr="198.51.100.1"),
    )  # fmt: skip
    worker = Node(id="n2", spec=NodeSpec(), number=2, data_addr="10.0.0.2")
    store.apply(1, 1, encode_entry(StoreEntry(1, tuple(Group("x", (Put(r, 0),)) for r in (manager, worker)))))
    view = network_view.ClusterNetworkState(store).view(worker)
    assert view.members == ("10.0.0.1", "10.0.0.2", "192.0.2.1", "198.51.100.1")
    assert view.control_ports == (2378, 2390)


def test_nodes_are_told_when_a_member_comes_to_be_reached_by_something_else() -> None:
    """The guards of every host let members in and shut others out."""
    before = Node(id="n1", spec=NodeSpec(), number=1, data_addr="10.0.0.1", rpc_addr="10.0.0.1:2378")
    moved: dict[str, tuple[dict[str, object], str | int]] = {
        "status": ({"status": NodeStatus(addr="198.51.100.1")}, "198.51.100.1"),
        "description": ({"description": NodeDescription(addresses=("192.0.2.9",))}, "192.0.2.9"),
        "join server": ({"manager_addr": "192.0.2.1:2390"}, "192.0.2.1"),
        "join server's port": ({"manager_addr": "10.0.0.1:2390"}, 2390),
        "RPC": ({"rpc_addr": "192.0.2.2:2378"}, "192.0.2.2"),
    }

    async def main(changes: dict[str, object]) -> list[NetworkView]:
        log = Log()
        worker = Node(id="n2", spec=NodeSpec(), number=2, data_addr="10.0.0.2")
        for node in (before, worker):
            await log.propose((Group("n", (Put(node, 0),)),))
        dispatcher = Dispatcher(log.store, log.propose, ids, log.confirm)
        views: list[NetworkView] = []

        async def up() -> AsyncIterator[Up]:
            yield Hello(NodeDescription(), "10.0.0.2")
            await asyncio.sleep(1)
            found = log.store.nodes.get("n1")
            assert found is not None
            assert len(views) == 1
            await log.propose((Group("n", (Put(msgspec.structs.replace(found, **changes), found.version),)),))
            await asyncio.sleep(1)

        async for message in dispatcher.session("n2", up(), ""):
            match message:
                case Networks(view):
                    views.append(view)
        return views

    for what, (changes, known) in moved.items():
        views = run(main(changes))
        assert len(views) == 2, what
        assert known in (*views[1].members, *views[1].control_ports), what


def test_a_node_whose_certificate_never_reached_it_is_down_after_a_while() -> None:
    """Its answer was lost, and its host has joined as another node: global services wait for nobody."""

    async def main() -> None:
        log = Log()
        dispatcher = Dispatcher(log.store, log.propose, lambda: "s", log.confirm)
        running = asyncio.create_task(dispatcher.run())
        await asyncio.sleep(5)
        await log.propose((Group("n", (Put(Node(id="late", spec=NodeSpec()), 0),)),))
        await asyncio.sleep(FIRST_HELLO_S - 1)
        found = log.store.nodes.get("late")
        assert found is not None
        assert found.status.state == NodeState.UNKNOWN
        await asyncio.sleep(3)
        found = log.store.nodes.get("late")
        assert found is not None
        assert found.status.state == NodeState.DOWN
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(main())


def test_a_node_that_said_goodbye_is_never_said_to_be_silent() -> None:
    async def main() -> None:
        log = Log()
        await log.propose((Group("n", (Put(Node(id="n1", spec=NodeSpec()), 0),)),))

        async def up() -> AsyncIterator[Up]:
            yield Hello(NodeDescription(), "10.0.0.9")
            yield Leaving()
            for _ in range(3):  # while its tasks are stopped
                await asyncio.sleep(0.5)
                yield Beat()

        async def session() -> None:
            async for _ in dispatcher.session("n1", up(), ""):
                pass

        dispatcher = Dispatcher(log.store, log.propose, ids, log.confirm)
        running = [asyncio.create_task(dispatcher.run()), asyncio.create_task(session())]
        await asyncio.sleep(20)
        found = log.store.nodes.get("n1")
        assert found is not None
        assert (found.status.state, found.status.message) == (NodeState.DOWN, "the node left the swarm")
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    run(main())


@pytest.mark.parametrize("ends", ["refused", "cut off"])
def test_a_goodbye_that_is_not_written_down_ends_as_silence(ends: str) -> None:
    async def main() -> None:
        log = Log()
        await log.propose((Group("n", (Put(Node(id="n1", spec=NodeSpec()), 0),)),))
        fails = False

        async def propose(groups: tuple[Group, ...]) -> ApplyResult:
            if not fails:
                return await log.propose(groups)
            if ends == "refused":
                raise Unavailable("no leader")
            await asyncio.Event().wait()
            raise AssertionError("nobody sets it")

        async def up() -> AsyncIterator[Up]:
            nonlocal fails
            yield Hello(NodeDescription(), "10.0.0.9")
            await asyncio.sleep(2)
            fails = True
            yield Leaving()
            await asyncio.Event().wait()

        async def session() -> None:
            async for _ in dispatcher.session("n1", up(), ""):
                pass

        dispatcher = Dispatcher(log.store, propose, ids, log.confirm)
        running = [asyncio.create_task(dispatcher.run()), asyncio.create_task(session())]
        await asyncio.sleep(2.5)
        running[1].cancel()  # it is gone, whatever became of its goodbye
        fails = False
        await asyncio.sleep(10)
        found = log.store.nodes.get("n1")
        assert found is not None
        assert found.status.state == NodeState.DOWN
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    run(main())


# --- silence ----------------------------------------------------------------------------------------------------------
async def beating(node_id: str, every_s: float, after_s: float = 0.0, beats: int = 1000) -> AsyncIterator[Up]:
    yield Hello(NodeDescription(), f"10.0.0.{node_id[1:]}", feature_level=features.HOST_FACTS)
    await asyncio.sleep(after_s)
    for _ in range(beats):
        yield Beat()
        await asyncio.sleep(every_s)
    await asyncio.Event().wait()


async def silences(log: Log, seconds: float, ups: dict[str, AsyncIterator[Up]]) -> list[tuple[float, Silent]]:
    """What the last of these nodes is told of silent ones in so much time, and when."""
    loop = asyncio.get_running_loop()
    for node_id in ups:
        await log.propose((Group("n", (Put(Node(id=node_id, spec=NodeSpec()), 0),)),))
    dispatcher = Dispatcher(log.store, log.propose, ids, log.confirm)
    heard: dict[str, list[tuple[float, Silent]]] = {}

    async def listen(node_id: str, up: AsyncIterator[Up]) -> None:
        mine = heard.setdefault(node_id, [])
        async for message in dispatcher.session(node_id, up, ""):
            if isinstance(message, Silent):
                mine.append((loop.time(), message))

    tasks = [asyncio.create_task(dispatcher.run())]
    tasks += [asyncio.create_task(listen(*item)) for item in ups.items()]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return heard[[*ups][-1]]


def test_nodes_that_beat_seldom_as_they_were_told_to_are_not_silent() -> None:
    async def main() -> None:
        log = Log()
        slow = Cluster(
            id="c",
            spec=ClusterSpec(dispatcher=DispatcherConfig(heartbeat_period=30 * defaults.SECOND)),
            root_ca=RootCA(cert=b"", key=b"", digest=""),
            join_tokens=JoinTokens(worker="", manager=""),
        )
        await log.propose((Group("c", (Put(slow, 0),)),))
        ups = {f"n{n}": beating(f"n{n}", 6.0, n * 0.7) for n in range(1, 5)}
        told = await silences(log, 120, ups)
        assert [silent.nodes for _, silent in told] == [()]

    run(main())


@pytest.mark.parametrize(("before", "after"), [(30, 5), (5, 30)])
def test_a_node_beats_as_a_new_heartbeat_period_says_and_is_never_taken_for_lost(
    before: int, after: int
) -> None:
    def periods(seconds: int) -> Cluster:
        return Cluster(
            id="c",
            spec=ClusterSpec(dispatcher=DispatcherConfig(heartbeat_period=seconds * defaults.SECOND)),
            root_ca=RootCA(cert=b"", key=b"", digest=""),
            join_tokens=JoinTokens(worker="", manager=""),
        )

    async def main() -> None:
        log = Log()
        await log.propose((Group("c", (Put(periods(before), 0),)),))
        names = [f"n{n}" for n in range(1, 5)]
        for node_id in names:
            await log.propose((Group("n", (Put(Node(id=node_id, spec=NodeSpec()), 0),)),))
        dispatcher = Dispatcher(log.store, log.propose, ids, log.confirm)
        told: list[int] = []

        async def live(node_id: str) -> None:
            while True:
                welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()

                async def up(welcome: asyncio.Future[Welcome] = welcome) -> AsyncIterator[Up]:
                    yield Hello(NodeDescription(), f"10.0.0.{node_id[1:]}", feature_level=features.HOST_FACTS)
                    period = (await welcome).heartbeat_period / defaults.SECOND
                    while True:
                        yield Beat()
                        await asyncio.sleep(period / BEATS_A_PERIOD)

                async for message in dispatcher.session(node_id, up(), ""):
                    if isinstance(message, Welcome):
                        told.append(message.heartbeat_period // defaults.SECOND)
                        welcome.set_result(message)
                await asyncio.sleep(0.3)

        running = [asyncio.create_task(dispatcher.run()), *(asyncio.create_task(live(n)) for n in names)]
        await asyncio.sleep(40)
        cluster = log.store.cluster
        assert cluster is not None
        changed = msgspec.structs.replace(cluster, spec=periods(after).spec)
        await log.propose((Group("c", (Put(changed, cluster.version),)),))
        for _ in range(600):
            await asyncio.sleep(0.1)
            assert {n.status.state for n in log.store.nodes.all()} == {NodeState.READY}
        assert told == [before] * 4 + [after] * 4
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    run(main())


def test_who_is_silent_is_told_once_a_second_at_most() -> None:
    async def main() -> None:
        log = Log()
        ups = {f"n{n}": beating(f"n{n}", 3.2, n * 0.3) for n in range(1, 10)}  # each is silent for a while
        ups["n10"] = beating("n10", 1.0)
        told = await silences(log, 60, ups)
        times = [at for at, _ in told]
        assert len(times) > 10
        assert all(later - at > 0.95 for at, later in itertools.pairwise(times[1:]))
        assert {name for _, silent in told for name in silent.nodes} == {f"n{n}" for n in range(1, 10)}

    run(main())


def test_a_node_that_falls_silent_is_told_of_soon() -> None:
    async def main() -> None:
        log = Log()
        ups = {f"n{n}": beating(f"n{n}", 1.0, n * 0.3) for n in (1, 2, 4)}
        ups = {"n3": beating("n3", 1.0, beats=11), **ups}  # its last beat is at ten seconds
        told = await silences(log, 20, ups)
        (first, *_) = (at for at, silent in told if silent.nodes == ("n3",))
        assert 12 < first < 13.1

    run(main())
