"""One task's walk: a scripted executor under the runner, a scripted engine under the executor."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
import pytest

from swarm_agent.agent.content_store import ContentStore
from swarm_agent.agent.engine_client import EngineError
from swarm_agent.agent.executor import Executor, Shared, TaskFailed
from swarm_agent.agent.host_ports import HostPorts
from swarm_agent.agent.images import Images
from swarm_agent.agent.lease import Lease
from swarm_agent.agent.runner import Runner
from swarm_agent.http.client import EngineUnreachable
from swarm_agent.objects.enums import TaskState as S
from swarm_agent.objects.records import ContainerStatus, NetworkAddress, Revision, Task, TaskStatus
from swarm_agent.objects.specs import ContainerSpec, TaskTemplate
from tests.lib.fake_engine import FakeEngine
from tests.lib.fake_files import FakeFiles
from tests.lib.fake_guard import FakeGuard
from tests.lib.fake_network import FakeNodeNetwork
from tests.lib.virtual_loop import run

TASK = Task(
    id="t",
    service_id="s",
    service_name="web",
    revision_id="r",
    slot=1,
    node_id="n",
    status=TaskStatus(state=S.ASSIGNED),
)


class Script:
    """Each operation waits for its cue: ``ok``, or an exception to raise. Without a cue it goes on for ever."""

    def __init__(self, **cues: list[Any]) -> None:
        self.task = TASK
        self.container = ContainerStatus(container_id="c")
        self.ports = ()
        self.cues = cues
        self.done: list[str] = []
        self.running = False  # though nobody asked for it
        self.deaf = 0  # so many looks at the engine fail
        self._news = asyncio.Event()

    async def _play(self, name: str) -> None:
        self.done.append(name)
        cues = self.cues.get(name, [])
        if not cues:
            await asyncio.Event().wait()
        cue = cues.pop(0)
        if isinstance(cue, Exception):
            raise cue

    async def prepare(self) -> None:
        await self._play("prepare")

    async def start(self) -> None:
        await self._play("start")

    async def wait(self, runs: Callable[[str], None]) -> None:
        if not self.cues.get("wait"):
            runs("")
        await self._play("wait")

    async def shutdown(self) -> None:
        await self._play("shutdown")
        self.running = False

    async def remove(self) -> None:
        await self._play("remove")

    async def wipe(self) -> None:
        self.done.append("wipe")

    def poke(self) -> None:
        self.done.append("poke")
        self._news.set()

    async def news(self) -> None:
        self._news.clear()
        await self._news.wait()

    async def runs(self) -> bool:
        if self.deaf:
            self.deaf -= 1
            raise EngineUnreachable("the engine is away")
        return self.running

    def let_go(self) -> None:
        self.done.append("let go")


async def walk(script: Script, *aims: S, desired: S = S.RUNNING) -> tuple[Runner, list[tuple[str, str, str]]]:
    """Let the runner go as far as it can, then give it each new aim."""
    seen: list[tuple[str, str, str]] = []
    executor: Any = script
    runner = Runner(
        executor,
        lambda _, status: seen.append((status.state.word, status.message, status.err)),
        lambda: 7,
    )
    runner.desired = desired
    for aim in (None, *aims):
        if aim is not None:
            runner.aim(aim)
        await asyncio.sleep(60)  # virtual
    return runner, seen


OK = "ok"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OSError(28, "No space left on device"),
            "this node cannot write what the task needs: No space left on device",
        ),
        (OSError(5, "odd"), "this node's system refused what the task needs, see its log: [Errno 5] odd"),
    ],
)
def test_a_write_that_fails(error: OSError, says: str) -> None:
    script = Script(prepare=[error])
    told: list[OSError] = []
    seen: list[tuple[str, str]] = []

    def cannot_write(err: OSError) -> bool:
        assert not [
            state for state, _ in seen if state == "rejected"
        ]  # managers hear of the node's trouble first
        told.append(err)
        return err.errno == 28

    async def story() -> None:
        executor: Any = script
        Runner(
            executor,
            lambda _, status: seen.append((status.state.word, status.err)),
            lambda: 7,
            cannot_write,
        )
        await asyncio.sleep(60)
        assert told == [error]
        assert seen[-1] == ("rejected", says)

    run(story())


def test_a_task_that_runs_and_is_stopped() -> None:
    script = Script(prepare=[OK], start=[OK], shutdown=[OK], remove=[OK])

    async def story() -> None:
        runner, seen = await walk(script, S.SHUTDOWN)
        assert seen == [
            ("accepted", "accepted", ""),
            ("preparing", "preparing", ""),
            ("ready", "prepared", ""),
            ("starting", "starting", ""),
            ("running", "started", ""),
            ("shutdown", "shutdown", ""),
        ]
        assert runner.status.container == ContainerStatus(container_id="c")
        assert (runner.status.started_at, runner.status.finished_at) == (7, 7)
        await runner.close()
        assert script.done == ["prepare", "start", "wait", "shutdown", "remove"]

    run(story())


@pytest.mark.parametrize("state", [S.REJECTED, S.ORPHANED])
def test_what_a_leader_judged_while_the_daemon_was_away_is_stopped(state: S) -> None:
    """It had ended as far as anybody knew, and its container ran on for as long as the task was remembered."""
    script = Script(shutdown=[EngineUnreachable("away"), OK])
    script.task = msgspec.structs.replace(TASK, status=TaskStatus(state=state))

    async def story() -> None:
        runner, seen = await walk(script, desired=S.SHUTDOWN)
        assert script.done[:2] == ["shutdown", "shutdown"]
        assert seen == []
        assert runner.status.state == state
        await runner.detach()

    run(story())


def test_what_was_wrong_while_the_engine_was_away_is_forgotten_when_it_is_back() -> None:
    script = Script(prepare=[OK], start=[OK], wait=[EngineUnreachable("the engine is away")])

    async def story() -> None:
        _, seen = await walk(script)
        assert [state for state, _, _ in seen[-3:]] == ["running"] * 3
        assert [err for _, _, err in seen[-3:]] == ["", "the engine is away", ""]

    run(story())


@pytest.mark.parametrize("poked", [True, False], ids=["told", "found at a start"])
def test_what_runs_after_its_task_ended_is_stopped(*, poked: bool) -> None:
    """``docker restart``: the task has failed and has a successor."""

    async def story() -> None:
        script = Script(prepare=[OK], start=[OK], wait=[TaskFailed("ended", 1)], shutdown=[OK, OK])
        script.deaf = 3
        if not poked:
            script.running = True
        runner, seen = await walk(script)
        assert seen[-1][0] == "failed"
        told = len(seen)
        if poked:
            assert "shutdown" not in script.done
            script.running, script.deaf = True, 3
            runner.poke()
            await asyncio.sleep(5)
        assert "shutdown" in script.done
        assert len(seen) == told, "the task was over before"
        await runner.detach()

    run(story())


def test_a_prepared_task_that_somebody_else_starts_is_stopped_and_replaced() -> None:
    async def story() -> None:
        script = Script(prepare=[OK], shutdown=[OK])
        runner, seen = await walk(script, desired=S.READY)
        assert seen[-1][0] == "ready"
        script.running = True
        runner.poke()
        await asyncio.sleep(1)
        assert script.done[-2:] == ["shutdown", "wipe"]
        assert (seen[-1][0], "started outside the swarm" in seen[-1][2]) == ("rejected", True)
        await runner.detach()

    run(story())


def test_a_task_waits_where_it_is_wanted() -> None:
    script = Script(prepare=[OK], start=[OK])

    async def story() -> None:
        runner, seen = await walk(script, desired=S.READY)
        assert seen[-1][0] == "ready"
        runner.aim(S.RUNNING)
        runner.aim(S.READY)  # an old message
        await asyncio.sleep(60)
        assert seen[-1][0] == "running"
        await runner.detach()
        assert script.done == ["prepare", "start", "wait", "let go"], "the container goes on"

    run(story())


@pytest.mark.parametrize(
    ("cues", "end"),
    [
        ({"prepare": [EngineError(404, "No such image: x:1")]}, ("rejected", "preparing", "No such image: x:1")),
        ({"prepare": [OK], "start": [EngineError(400, "bad command")], "shutdown": [EngineUnreachable("away"), OK]}, ("failed", "starting", "bad command")),
        ({"prepare": [OK], "start": [OK], "wait": [TaskFailed("task: non-zero exit (3)", 3)]}, ("failed", "started", "task: non-zero exit (3)")),
        ({"prepare": [OK], "start": [OK], "wait": [OK]}, ("complete", "finished", "")),
        ({"prepare": [ValueError("a bug")]}, ("rejected", "preparing", "internal error on this node, see its log: ValueError('a bug')")),
    ],
)  # fmt: skip
def test_how_a_task_ends(cues: dict[str, list[Any]], end: tuple[str, str, str]) -> None:
    async def story() -> None:
        script = Script(**cues)
        runner, seen = await walk(script)
        assert seen[-1] == end
        assert runner.status.state.terminal
        wiped = script.done[-1] == "wipe"
        assert wiped or end[0] == "complete", "wherever it failed, its secrets go"
        await runner.detach()

    run(story())


def test_an_engine_that_is_away_is_waited_for() -> None:
    async def story() -> None:
        trouble = EngineUnreachable("cannot reach the Docker Engine")
        runner, seen = await walk(
            Script(prepare=[trouble, trouble, OK], start=[OK], remove=[trouble, OK], shutdown=[trouble, OK])
        )
        assert seen[2:4] == [
            ("preparing", "preparing", "cannot reach the Docker Engine"),
            ("ready", "prepared", ""),
        ]
        runner.aim(S.SHUTDOWN)
        await asyncio.sleep(60)
        assert [s[0] for s in seen[-2:]] == ["running", "shutdown"]
        await runner.close()

    run(story())


def test_a_stop_ends_what_is_under_way() -> None:
    """A pull that hangs must not keep a task alive that nobody wants."""

    async def story() -> None:
        script = Script(shutdown=[OK])
        runner, seen = await walk(script, S.SHUTDOWN)
        assert script.done == ["prepare", "shutdown"], "in this order"
        assert seen[-1][0] == "shutdown"
        await runner.detach()

    run(story())


# --- the executor ---------------------------------------------------------------------------------------------------------
async def _none() -> AsyncIterator[bytes]:
    yield b""


class ScriptedEngine:
    """Container states in order; the last one stays."""

    def __init__(self, *states: dict[str, Any]) -> None:
        self.states = [*states]
        self.calls: list[str] = []

    async def call(self, method: str, path: str, **more: Any) -> Any:
        self.calls.append(f"{method} {path.rsplit('/', 1)[-1]}")
        if path.endswith("/json"):
            state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            return {"Id": "c", "State": state, "NetworkSettings": {"Networks": state.get("Networks")}}
        return None

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:  # fmt: skip
        assert not path, "the executor streams nothing"
        yield _none()


def executor(
    *states: dict[str, Any], task: Task = TASK, network: FakeNodeNetwork | None = None
) -> tuple[Executor, ScriptedEngine]:
    engine = ScriptedEngine(*states)
    guard = FakeGuard(FakeEngine("other", random.Random(1)), lambda: 0.0)
    lease = Lease(engine, guard, lambda: 0.0)  # for tasks that need none
    contents = ContentStore("n", FakeFiles())
    ports = HostPorts(lambda protocol, port: True)
    net = network or FakeNodeNetwork()
    shared = Shared(engine, net, Images(engine), asyncio.Semaphore(1), contents, lease, ports)
    template = TaskTemplate(container_spec=ContainerSpec(image="a"))
    return Executor(shared, task, Revision(id="r", service_id="s", template=template), ""), engine


CREATED = {"Status": "created", "Running": False}
EXITED = {"Status": "exited", "Running": False}
RUNNING = {"Status": "running", "Running": True}


def healthy(word: str, base: dict[str, Any] = RUNNING) -> dict[str, Any]:
    return {**base, "Health": {"Status": word}}


@pytest.mark.parametrize("end", [{**EXITED, "ExitCode": 0}, {**EXITED, "ExitCode": 3}])
def test_a_container_that_ends_at_once_was_started(end: dict[str, Any]) -> None:
    async def story() -> None:
        ours, engine = executor(CREATED, end)
        await ours.start()
        assert engine.calls == ["GET json", "POST start", "GET json"]
        if end["ExitCode"]:
            with pytest.raises(TaskFailed, match=r"task: non-zero exit \(3\)"):
                await ours.wait()
        else:
            await ours.wait()

    run(story())


def on(*networks: str) -> dict[str, Any]:
    """Running, with ends on these of the engine's networks."""
    return {**RUNNING, "Networks": {name: {"EndpointID": f"end-of-{name}"} for name in networks}}


CONNECTED = msgspec.structs.replace(
    TASK,
    node_address="10.240.4.9",
    networks=(NetworkAddress(network_id="app", address="10.0.1.2/24"),),
)


@pytest.mark.parametrize("lost", ["app", "swarm-app", ""])
def test_a_task_that_lost_a_network_for_good_ends(lost: str) -> None:
    """Its link, or the engine's own word for it; one that loses nothing goes on."""

    async def story() -> None:
        network = FakeNodeNetwork()
        now = on("swarm_node") if lost == "swarm-app" else on("swarm_node", "swarm-app")
        ours, engine = executor(on("swarm_node", "swarm-app"), now, task=CONNECTED, network=network)
        waiting = asyncio.create_task(ours.wait())
        await asyncio.sleep(60)
        assert not waiting.done()
        if lost == "app":
            network.lost = {"app"}
        ours.poke()
        await asyncio.sleep(0.9)
        assert not waiting.done(), "it may just be ending"
        await asyncio.sleep(1)
        assert ("POST stop" in engine.calls) == waiting.done() == bool(lost)
        if lost:
            with pytest.raises(TaskFailed, match="swarm-app"):
                await waiting
        waiting.cancel()

    run(story())


def test_a_container_that_loses_its_networks_by_ending_has_ended() -> None:
    async def story() -> None:
        ours, engine = executor(on(), {**EXITED, "ExitCode": 3}, task=CONNECTED)
        with pytest.raises(TaskFailed, match=r"task: non-zero exit \(3\)"):
            await ours.wait()
        assert "POST stop" not in engine.calls

    run(story())


def test_what_is_wrong_with_its_networks_is_said_while_it_lasts() -> None:
    async def story() -> None:
        network = FakeNodeNetwork()
        network.troubles = {"app": "app is broken", "other": "other is broken"}
        ours, _ = executor(on("swarm_node", "swarm-app"), task=CONNECTED, network=network)
        said: list[str] = []
        waiting = asyncio.create_task(ours.wait(said.append))
        await asyncio.sleep(1)
        network.troubles = {}
        ours.poke()
        await asyncio.sleep(1)
        assert said == ["app is broken", ""]
        waiting.cancel()

    run(story())


def test_an_exit_with_an_error_of_the_engine() -> None:
    async def story() -> None:
        ours, _ = executor({**EXITED, "ExitCode": 0, "Error": "OCI runtime"})
        with pytest.raises(TaskFailed, match=r"task: non-zero exit \(0\): OCI runtime"):
            await ours.wait()

    run(story())


def test_a_health_check_gates_the_start() -> None:
    async def story() -> None:
        ours, _ = executor(healthy("starting"), healthy("starting"), healthy("healthy"))
        started = asyncio.create_task(ours.start())
        await asyncio.sleep(60)
        assert not started.done()
        ours.poke()
        await started

    run(story())


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (healthy("unhealthy"), "dockerexec: unhealthy container"),
        (healthy("starting", {**EXITED, "ExitCode": 2}), r"task: non-zero exit \(2\)"),
    ],
)
def test_a_start_that_never_becomes_healthy(state: dict[str, Any], text: str) -> None:
    async def story() -> None:
        ours, _ = executor(state)
        with pytest.raises(TaskFailed, match=text):
            await ours.start()

    run(story())


def test_a_container_somebody_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        ours, engine = executor(RUNNING)

        async def gone(method: str, path: str, **more: Any) -> Any:
            raise EngineError(404, "No such container")

        monkeypatch.setattr(engine, "call", gone)
        with pytest.raises(TaskFailed, match=r"container web\.1\.t is gone"):
            await ours.wait()
        await ours.shutdown()
        await ours.remove()

    run(story())
