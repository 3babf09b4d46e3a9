"""The pre-start step of a task, on an engine in memory: what the runner reports, what runs and how often."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from swarm_agent.agent.content_store import ContentStore
from swarm_agent.agent.engine_client import Engine
from swarm_agent.agent.executor import Executor, Shared, container_events
from swarm_agent.agent.host_ports import HostPorts
from swarm_agent.agent.images import Images
from swarm_agent.agent.lease import Lease
from swarm_agent.agent.pre_start import text
from swarm_agent.agent.runner import Runner
from swarm_agent.objects.enums import TaskState as S
from swarm_agent.objects.options import PreStart
from swarm_agent.objects.records import Generic, Revision, Task, TaskStatus
from swarm_agent.objects.specs import ContainerSpec, Healthcheck, Mount, TaskTemplate
from tests.lib.fake_engine import FakeEngine, Program
from tests.lib.fake_files import FakeFiles
from tests.lib.fake_guard import FakeGuard
from tests.lib.fake_network import FakeNodeNetwork
from tests.lib.virtual_loop import run

SECOND = 1_000_000_000
MAIN, STEP = "web.1.t", "web.1.t.pre-start"


def no_lease(engine: Engine) -> Lease:
    """For tasks that need none."""
    return Lease(engine, FakeGuard(FakeEngine("other", random.Random(1)), lambda: 0.0), lambda: 0.0)


class World:
    """An engine that outlives the daemons, and how often each container was started."""

    def __init__(self, program: Program, *, image: str = "step:1", timeout: int = 60 * SECOND) -> None:
        self.engine = FakeEngine("host", random.Random(1))
        self.engine.registry |= {"web:1": Program(healthy_after_s=0.1), "step:1": program}
        self.seen: list[tuple[str, str]] = []
        self.calls: list[str] = []
        self.engine.on_call = self._called
        self.ran: list[str] = []
        tell = self.engine._tell

        def heard(kind: str, action: str, id_: str, attributes: dict[str, str]) -> None:
            tell(kind, action, id_, attributes)
            if action == "start":
                self.ran.append(next(c.name for c in self.engine.containers.values() if c.id == id_))

        self.engine._tell = heard  # type: ignore[method-assign]  # hears all that it tells
        self.revision = Revision(
            id="r",
            service_id="s",
            template=TaskTemplate(
                container_spec=ContainerSpec(
                    image="web:1",
                    command=("serve",),
                    args=("now",),
                    env=("A=1",),
                    user="7",
                    mounts=(Mount(type="volume", source="data", target="/data"),),
                    healthcheck=Healthcheck(test=("CMD", "x")),
                )
            ),
            pre_start=PreStart(command=("migrate", "--all"), image=image, timeout=timeout),
        )
        self.task = Task(
            id="t",
            service_id="s",
            service_name="web",
            revision_id="r",
            slot=1,
            node_id="n",
            status=TaskStatus(state=S.ASSIGNED),
            generic=(Generic(kind="gpu", name="/dev/null"),),
        )

    def _called(self, method: str, path: str) -> None:
        if path.endswith("/start"):
            self.calls.append(path.split("/")[2])

    def daemon(self) -> tuple[Runner, asyncio.Task[None]]:
        """A runner as a daemon has it; it begins where the task stood."""
        engine = self.engine.client()
        shared = Shared(
            engine,
            FakeNodeNetwork(),
            Images(engine),
            asyncio.Semaphore(2),
            ContentStore("n", FakeFiles()),
            no_lease(engine),
            HostPorts(lambda protocol, port: True),
        )

        def report(_: str, status: TaskStatus) -> None:
            self.seen.append((status.state.word, status.err))
            self.task = Task(
                **{f: getattr(self.task, f) for f in self.task.__struct_fields__} | {"status": status}
            )

        runner = Runner(Executor(shared, self.task, self.revision, ""), report, lambda: 7)

        async def listen() -> None:
            async for _ in container_events(engine):
                runner.poke()

        return runner, asyncio.create_task(listen())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(100):
            while not condition():
                await asyncio.sleep(0.01)


def play(world: World, story: Callable[[World, Runner], Awaitable[None]]) -> None:
    async def main() -> None:
        runner, listening = world.daemon()
        try:
            await story(world, runner)
        finally:
            await runner.detach()
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    run(main())


def test_the_step_ends_before_the_task_starts() -> None:
    async def story(w: World, runner: Runner) -> None:
        await w.until(lambda: STEP in w.engine.containers)
        step = w.engine.containers[STEP].body
        await w.until(lambda: runner.status.state == S.RUNNING)
        main = w.engine.containers[MAIN].body
        assert w.calls == [STEP, MAIN]
        assert list(w.engine.containers) == [MAIN], "the step's container is gone"
        assert (step["Image"], step["Entrypoint"], "Cmd" in step) == ("step:1", ["migrate", "--all"], False)
        assert step["Healthcheck"] == {"Test": ["NONE"]}
        for same in ("Env", "User", "HostConfig"):
            assert step[same] == main[same]
        assert step["Labels"] == {**main["Labels"], "swarm-agent.pre-start": ""}
        assert [state for state, _ in w.seen][-2:] == ["starting", "running"]

    play(World(Program(runs_s=2)), story)


def test_without_an_image_of_its_own_it_runs_the_tasks() -> None:
    async def story(w: World, runner: Runner) -> None:
        await w.until(lambda: STEP in w.engine.containers)
        assert w.engine.containers[STEP].body["Image"] == "web:1"
        assert "step:1" not in w.engine.images, "nothing is pulled for nothing"

    play(World(Program(), image=""), story)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (Program(runs_s=1, exit_code=3), f"task: pre-start step: non-zero exit (3): log of {STEP}"),
        (Program(start_error="exec: no such file"), "task: pre-start step: exec: no such file"),
        (Program(), f"task: pre-start step: not done within 60 s: log of {STEP}"),
    ],
)
def test_a_step_that_fails_fails_the_task(program: Program, said: str) -> None:
    async def story(w: World, runner: Runner) -> None:
        await w.until(lambda: runner.status.state.terminal)
        assert w.seen[-1] == ("failed", said)
        assert w.calls == [STEP], "once, and the task itself never"
        assert not w.engine.running()
        if program.exit_code:
            assert runner.status.container is not None
            assert runner.status.container.exit_code == 3
        await runner.close()
        assert not w.engine.containers

    play(World(program), story)


@pytest.mark.parametrize("moment", ["created", "running", "exited", "main"])
def test_a_daemon_that_ends_meanwhile_lets_it_run_once(moment: str) -> None:
    """The next one goes on where it is."""

    async def story(w: World, runner: Runner) -> None:
        def there() -> bool:
            if moment == "main":
                return MAIN in w.engine.containers and w.engine.containers[MAIN].running
            return STEP in w.engine.containers and w.engine.containers[STEP].status == moment

        await w.until(there)
        await runner.detach()
        again, listening = w.daemon()
        await w.until(lambda: again.status.state == S.RUNNING)
        w.engine.fail(w.engine.containers[MAIN], 0)
        await w.until(lambda: again.status.state == S.COMPLETE)
        assert w.ran == [STEP, MAIN]
        assert list(w.engine.containers) == [MAIN]
        await again.detach()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    play(World(Program(runs_s=2)), story)


def test_stopping_the_task_stops_the_step() -> None:
    async def story(w: World, runner: Runner) -> None:
        await w.until(lambda: STEP in w.engine.containers and w.engine.containers[STEP].running)
        runner.aim(S.SHUTDOWN)
        await w.until(lambda: runner.status.state == S.SHUTDOWN)
        assert not w.engine.running()
        assert w.calls == [STEP]

    play(World(Program()), story)


def test_an_engine_that_loses_answers_makes_no_second_one() -> None:
    async def story(w: World, runner: Runner) -> None:
        w.engine.faults.lost_answer = 0.3
        await w.until(lambda: runner.status.state == S.RUNNING)
        assert not [c for c in w.engine.containers.values() if c.name == STEP and c.running]

    play(World(Program(runs_s=1)), story)


def framed(stream: int, line: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(line).to_bytes(4, "big") + line


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (framed(1, b"one\n") + framed(2, b"two\n"), "one\ntwo\n"),
        (b"as a terminal has it\r\n", "as a terminal has it\r\n"),
        (b"", ""),
        (b"\1\0\0", "\1\0\0"),
    ],
)
def test_the_words_of_a_log(raw: bytes, said: str) -> None:
    assert text(raw) == said
