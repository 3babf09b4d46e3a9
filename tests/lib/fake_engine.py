"""A Docker Engine in memory: containers, images, events, exit codes, health, and everything that goes wrong with them.

``FakeEngine`` is the engine of a host and outlives daemons; ``client`` gives a daemon its way to it, with the real client's handling of
errors. What was begun is finished by the engine, whether or not the caller still waits. Passes the same contract tests as a real engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from swarm_agent.agent.engine_client import Answer, EngineClient, EngineError
from swarm_agent.http.client import EngineUnreachable

GiB = 1 << 30
T = TypeVar("T")


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """What a container of an image does. Times in seconds."""

    create_s: float = 0.02
    start_s: float = 0.05
    start_error: str = ""
    runs_s: float | None = None
    """Ends by itself after so long."""
    exit_code: int = 0
    stop_s: float = 0.1
    """From SIGTERM to its end; longer than the grace period means killed, 137."""
    healthy_after_s: float | None = 0.5
    """With a health check: when it first passes; None for never, it is then unhealthy."""
    pull_s: float = 0.2


class EngineFaults(msgspec.Struct, kw_only=True):
    """Switches; change them at any time. Probabilities are per call."""

    latency_min: float = 0.001
    latency_max: float = 0.005
    error: float = 0.0
    """Answers 500 and does nothing."""
    lost_answer: float = 0.0
    """Does it, and the connection breaks before the answer."""
    down: bool = False
    """Nobody listens on the socket; containers run on (live restore)."""


class Container:
    def __init__(self, id_: str, name: str, body: dict[str, Any]) -> None:
        self.id = id_
        self.name = name
        self.body = body
        self.status = "created"
        self.exit_code = 0
        self.error = ""
        self.health = ""
        self.volumes: dict[str, bool] = {}  # name -> whether nobody gave it one
        self.run = 0  # counts starts, so that a late timer knows it is late
        self.lock = asyncio.Lock()

    @property
    def running(self) -> bool:
        return self.status == "running"

    @property
    def pid(self) -> int:
        """Of its program, another one after each start; 0 while it does not run."""
        return self.run * 1000 + 1 if self.running else 0

    @property
    def labels(self) -> dict[str, str]:
        found: dict[str, str] = self.body.get("Labels") or {}
        return found

    @property
    def task_id(self) -> str:
        return self.labels.get("com.docker.swarm.task.id", "")


class FakeEngine:
    """One host's engine. ``registry`` is what can be pulled."""

    def __init__(self, name: str, rng: random.Random, *, cpus: int = 4, memory: int = 8 * GiB) -> None:
        self.name = name
        self.cpus = cpus
        self.memory = memory
        self._rng = rng
        self.faults = EngineFaults()
        self.registry: dict[str, Program] = {}
        self.images: dict[str, Program] = {}
        self.containers: dict[str, Container] = {}  # by name
        self.volumes: dict[str, dict[str, Any]] = {}  # by name, as the engine lists them
        self.starts = 0  # of all containers together
        self.generic: list[dict[str, Any]] = []  # GenericResources of /info
        self.on_call: Callable[[str, str], None] = lambda method, path: None
        self._serial = 0
        self._listeners: dict[int, tuple[dict[str, list[str]], asyncio.Queue[bytes | None]]] = {}
        self._context = contextvars.Context()  # its tasks are no daemon's
        self._work: dict[asyncio.Task[Any], None] = {}

    def client(self) -> FakeEngineClient:
        return FakeEngineClient(self)

    # --- what happens to it -----------------------------------------------------------------------------------------
    def go_down(self) -> None:
        """The daemon of the engine ends; streams break, containers run on."""
        self.faults.down = True
        for _, queue in self._listeners.values():
            queue.put_nowait(None)

    def come_up(self) -> None:
        self.faults.down = False

    def power_cut(self) -> None:
        """The machine reboots: every process is gone."""
        for container in self.containers.values():
            if container.running:
                self._end(container, 255)

    def fail(self, container: Container, exit_code: int = 1) -> None:
        """Its process ends by itself."""
        if container.running:
            self._end(container, exit_code)

    def running(self) -> list[Container]:
        return [c for c in self.containers.values() if c.running]

    async def meddle(self, container: Container) -> None:
        """Somebody at the host starts it, or starts it again, as ``docker start`` and ``docker restart`` do."""
        if container.running:
            self._end(container, 137)
        if self.containers.get(container.name) is container:
            await self._start(container)

    # --- serving ------------------------------------------------------------------------------------------------------
    async def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Answer:
        self.must_be_up()
        self.on_call(method, path)
        await asyncio.sleep(self._rng.uniform(self.faults.latency_min, self.faults.latency_max))
        self.must_be_up()
        if self._happens(self.faults.error):
            return _message(500, "planted error of the engine")
        lost = self._happens(self.faults.lost_answer)
        work = self._own(self._serve(method, path, query, body))
        found: Answer = await asyncio.shield(work)
        self.must_be_up()
        if lost:
            raise EngineUnreachable("lost the Docker Engine: planted")
        return found

    def must_be_up(self) -> None:
        if self.faults.down:
            raise EngineUnreachable(f"cannot reach the Docker Engine of {self.name}: planted outage")

    def _happens(self, probability: float) -> bool:
        return bool(probability) and self._rng.random() < probability

    def _own(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work, context=self._context.copy())
        self._work[task] = None
        task.add_done_callback(lambda done: self._work.pop(done, None))
        return task

    async def _serve(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Answer:
        if method == "GET" and path == "/info":
            return _json(200, self._info())
        if method == "GET" and path == "/version":
            return _json(200, {"Version": "28.0.0", "ApiVersion": "1.48", "MinAPIVersion": "1.24"})
        if method == "GET" and path == "/containers/json":
            return self._list(query)
        if method == "POST" and path == "/containers/create":
            return await self._create(query.get("name", ""), body)
        if match := re.fullmatch(r"/images/(.+)/json", path):
            found = _tagged(match[1]) in self.images
            return _json(200, {"Id": match[1]}) if found else _message(404, f"No such image: {match[1]}")
        if path == "/volumes" or path.startswith("/volumes/"):
            return self._volume(method, path.removeprefix("/volumes").strip("/"), query, body)
        if re.fullmatch(r"/networks/[^/]+/connect", path):
            return Answer(200, (), b"")
        match = re.fullmatch(r"/containers/([^/]+)(/json|/start|/stop|/kill)?", path)
        if match is None:
            return _message(404, "page not found")
        return await self._container(method, match[1], match[2] or "", query)

    async def _container(self, method: str, wanted: str, verb: str, query: Mapping[str, str]) -> Answer:
        container = self.containers.get(wanted) or next(
            (c for c in self.containers.values() if c.id == wanted), None
        )
        if container is None:
            return _message(404, f"No such container: {wanted}")
        if verb == "/json":
            return _json(200, _inspect(container))
        async with container.lock:
            if self.containers.get(container.name) is not container:
                return _message(404, f"No such container: {wanted}")
            if verb == "/start":
                return await self._start(container)
            if verb == "/kill":
                return self._kill(container)
            if verb == "/stop":
                return await self._stop(container, float(query.get("t", "10")))
            if method == "DELETE":
                yes = ("1", "true")
                return self._delete(container, force=query.get("force") in yes, too=query.get("v") in yes)
        return _message(404, "page not found")

    def _info(self) -> dict[str, Any]:
        return {
            "Name": self.name,
            "Architecture": "x86_64",
            "OSType": "linux",
            "NCPU": self.cpus,
            "MemTotal": self.memory,
            "ServerVersion": "28.0.0",
            "Swarm": {"LocalNodeState": "inactive"},
            "Plugins": {"Volume": ["local"], "Network": ["bridge", "host"], "Log": ["json-file"]},
            "Labels": [],
            "GenericResources": self.generic or None,
        }

    def _volume(self, method: str, name: str, query: Mapping[str, str], body: Any) -> Answer:
        if method == "GET" and not name:
            drivers = msgspec.json.decode(query.get("filters", "{}")).get("driver", [])
            found = [v for v in self.volumes.values() if not drivers or v["Driver"] in drivers]
            return _json(200, {"Volumes": found, "Warnings": None})
        if method == "POST" and name == "create":
            made = self._make_volume(body.get("Name") or f"{self._rng.getrandbits(256):064x}")
            return _json(201, made)
        if name not in self.volumes:
            return _message(404, f"get {name}: no such volume")
        if method == "GET":
            return _json(200, self.volumes[name])
        if any(name in c.volumes for c in self.containers.values()):
            return _message(409, f"remove {name}: volume is in use")
        self._drop_volume(name)
        return Answer(204, (), b"")

    def _make_volume(self, name: str) -> dict[str, Any]:
        if name not in self.volumes:
            self.volumes[name] = {"Name": name, "Driver": "local", "Scope": "local"}
            self._tell("volume", "create", name, {"driver": "local"})
        return self.volumes[name]

    def _drop_volume(self, name: str) -> None:
        del self.volumes[name]
        self._tell("volume", "destroy", name, {"driver": "local"})

    def _list(self, query: Mapping[str, str]) -> Answer:
        wanted = msgspec.json.decode(query.get("filters", "{}")).get("label", [])
        found = [
            {"Id": c.id, "Names": [f"/{c.name}"], "Labels": c.labels, "State": c.status}
            for c in self.containers.values()
            if (c.running or query.get("all") in ("1", "true")) and all(_has(c.labels, w) for w in wanted)
        ]
        return _json(200, found)

    async def _create(self, name: str, body: Any) -> Answer:
        if name in self.containers:
            taken = self.containers[name]
            return _message(
                409, f'Conflict. The container name "/{name}" is already in use by container {taken.id}.'
            )
        if _tagged(body["Image"]) not in self.images:
            return _message(404, f"No such image: {body['Image']}")
        await asyncio.sleep(self.images[_tagged(body["Image"])].create_s)
        self._serial += 1
        if name in self.containers:
            return _message(409, f'Conflict. The container name "/{name}" is already in use.')
        container = Container(f"{self._serial:08x}{self._rng.getrandbits(224):056x}", name, body)
        for mount in (body.get("HostConfig") or {}).get("Mounts") or ():
            if mount["Type"] == "volume":
                source = mount.get("Source") or f"{self._rng.getrandbits(256):064x}"
                container.volumes[source] = not mount.get("Source")
                self._make_volume(source)
        self.containers[name] = container
        self._emit(container, "create")
        return _json(201, {"Id": container.id, "Warnings": []})

    async def _start(self, container: Container) -> Answer:
        if container.running:
            return Answer(304, (), b"")
        program = self.images[_tagged(container.body["Image"])]
        await asyncio.sleep(program.start_s)
        if program.start_error:
            container.exit_code, container.error = 127, program.start_error
            return _message(400, program.start_error)
        container.status, container.exit_code, container.error = "running", 0, ""
        container.run += 1
        self.starts += 1
        self._emit(container, "start")
        if program.runs_s is not None:
            self._later(program.runs_s, container, lambda: self._end(container, program.exit_code))
        if container.body.get("Healthcheck"):
            container.health = "starting"
            after = program.healthy_after_s
            word = "unhealthy" if after is None else "healthy"
            self._later(2.0 if after is None else after, container, lambda: self._judge(container, word))
        return Answer(204, (), b"")

    async def _stop(self, container: Container, grace_s: float) -> Answer:
        if not container.running:
            return Answer(304, (), b"")
        run = container.run
        stop_s = self.images[_tagged(container.body["Image"])].stop_s
        await asyncio.sleep(min(stop_s, grace_s))
        if container.running and container.run == run:
            self._end(container, 0 if stop_s <= grace_s else 137)
        return Answer(204, (), b"")

    def _kill(self, container: Container) -> Answer:
        if not container.running:
            return _message(409, f"cannot kill container: {container.id}: container is not running")
        self._end(container, 137)
        return Answer(204, (), b"")

    def _delete(self, container: Container, *, force: bool, too: bool) -> Answer:
        if container.running and not force:
            return _message(409, f"You cannot remove a running container {container.id}.")
        if container.running:
            self._end(container, 137)
        del self.containers[container.name]
        self._emit(container, "destroy")
        for name, anonymous in container.volumes.items():
            if too and anonymous and not any(name in c.volumes for c in self.containers.values()):
                self._drop_volume(name)
        return Answer(204, (), b"")

    # --- processes ----------------------------------------------------------------------------------------------------
    def _later(self, seconds: float, container: Container, what: Callable[[], None]) -> None:
        run = container.run

        def then() -> None:
            if container.running and container.run == run:
                what()

        asyncio.get_running_loop().call_later(seconds, then, context=self._context.copy())

    def _end(self, container: Container, exit_code: int) -> None:
        container.status, container.exit_code = "exited", exit_code
        container.health = ""
        self._emit(container, "die")

    def _judge(self, container: Container, word: str) -> None:
        container.health = word
        self._emit(container, f"health_status: {word}")

    # --- streams --------------------------------------------------------------------------------------------------------
    def _emit(self, container: Container, action: str) -> None:
        self._tell("container", action, container.id, container.labels)

    def _tell(self, kind: str, action: str, id_: str, attributes: dict[str, str]) -> None:
        event = {"Type": kind, "Action": action, "Actor": {"ID": id_, "Attributes": attributes}}
        line = msgspec.json.encode(event) + b"\n"
        for filters, queue in self._listeners.values():
            kinds, actions, labels = (filters.get(key, []) for key in ("type", "event", "label"))
            if (
                (not kinds or kind in kinds)
                and (not actions or action.partition(":")[0] in actions)
                and all(_has(attributes, label) for label in labels)
            ):
                queue.put_nowait(line)

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, path: str, query: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.must_be_up()
        await asyncio.sleep(self._rng.uniform(self.faults.latency_min, self.faults.latency_max))
        self.must_be_up()
        if path == "/events":
            self._serial += 1
            number, queue = self._serial, asyncio.Queue[bytes | None]()
            self._listeners[number] = (msgspec.json.decode(query.get("filters", "{}")), queue)
            try:
                yield _drain(queue)
            finally:
                del self._listeners[number]
        elif method == "POST" and path == "/images/create":
            yield self._pull(query["fromImage"])
        elif match := re.fullmatch(r"/containers/([^/]+)/logs", path):
            if match[1] not in self.containers:
                raise EngineError(404, f"No such container: {match[1]}")
            yield _pieces(_frame(f"log of {match[1]}\n".encode()))
        else:
            raise EngineError(404, "page not found")

    async def _pull(self, image: str) -> AsyncIterator[bytes]:
        program = self.registry.get(_tagged(image))
        if program is None:
            raise EngineError(404, f"pull access denied for {image}")
        if self._happens(self.faults.error):
            yield msgspec.json.encode({"error": "planted error of the registry"}) + b"\n"
            return
        await asyncio.sleep(program.pull_s)
        self.must_be_up()
        self.images[_tagged(image)] = program
        yield msgspec.json.encode({"status": "Pull complete"}) + b"\n"


class FakeEngineClient(EngineClient):
    """One daemon's way to its engine. ``gone``: the daemon was killed, its calls never return. ``moves``: cleared, the daemon is
    stopped in its tracks, and its calls go out once it is set again."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(f"fake://{engine.name}")
        self._fake = engine
        self.gone = False
        self.moves = asyncio.Event()
        self.moves.set()

    async def answer(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = 60.0,
        api: tuple[int, int] = (0, 0),
    ) -> Answer:
        await self.moves.wait()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._alive(self._fake.answer(method, path, query or {}, body))
        except TimeoutError as err:
            raise EngineUnreachable(
                f"the Docker Engine did not answer {method} {path} within {timeout_s:g} s"
            ) from err

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        async with self._fake.stream(method, path, query or {}) as pieces:
            yield pieces

    async def _alive(self, work: Awaitable[T]) -> T:
        if self.gone:
            if asyncio.iscoroutine(work):
                work.close()
            await asyncio.get_running_loop().create_future()
        return await work


def _inspect(container: Container) -> dict[str, Any]:
    state: dict[str, Any] = {
        "Status": container.status,
        "Running": container.running,
        "Pid": container.pid,
        "ExitCode": container.exit_code,
        "Error": container.error,
    }
    if container.health:
        state["Health"] = {"Status": container.health}
    config = {"Image": container.body["Image"], "Labels": container.labels}
    return {"Id": container.id, "Name": f"/{container.name}", "State": state, "Config": config}


def _has(labels: Mapping[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def _tagged(image: str) -> str:
    return image if ":" in image.rpartition("/")[2] else f"{image}:latest"


def _json(status: int, value: Any) -> Answer:
    return Answer(status, (), msgspec.json.encode(value))


def _message(status: int, text: str) -> Answer:
    return _json(status, {"message": text})


async def _drain(queue: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    while True:
        piece = await queue.get()
        if piece is None:
            raise EngineUnreachable("the Docker Engine ended an answer early")
        yield piece


def _frame(line: bytes) -> bytes:
    return b"\1\0\0\0" + len(line).to_bytes(4, "big") + line


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
