"""One task's container: prepare, start, wait, shut down, remove. Every operation may be repeated and cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NamedTuple

import msgspec

from swarm_agent.agent.container import container_name, create_body, needed_api
from swarm_agent.agent.content_store import ContentStore
from swarm_agent.agent.engine_client import Engine, EngineError, json_lines
from swarm_agent.agent.host_ports import HostPorts
from swarm_agent.agent.images import Images
from swarm_agent.agent.lease import ENDED, Lease
from swarm_agent.agent.pre_start import PreStartStep, StepFailed
from swarm_agent.http.client import EngineUnreachable
from swarm_agent.network.engine_networks import name_of
from swarm_agent.network.model import NODE_NETWORK_ID, AttachRequest, ContainerNetwork, NodeNetwork
from swarm_agent.objects import defaults, ports
from swarm_agent.objects.errors import FailedPrecondition, SwarmError, Unavailable
from swarm_agent.objects.records import ContainerStatus, Revision, Task

log = logging.getLogger(__name__)

RESTARTED = "the container was restarted outside the swarm: the task is replaced"
CUT_OFF_S = 1.0  # seconds to tell a container that was cut off from one that is ending
MAX_PARALLEL = 8  # engine operations of one kind at once; more only makes each slower


class TaskFailed(SwarmError):
    """The task is over. ``exit_code`` when its container has one; ``clean``: it ended by itself, with 0."""

    def __init__(self, message: str, exit_code: int = 0, *, clean: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.clean = clean


class EngineTooOld(SwarmError):
    """This node's engine would leave out a part of what is asked for."""


class Shared(NamedTuple):
    """What the executors of a node have in common."""

    engine: Engine
    network: NodeNetwork
    images: Images
    slots: asyncio.Semaphore
    contents: ContentStore
    lease: Lease
    ports: HostPorts
    cluster_id: str = ""


class Executor:
    """Drives one container. ``poke`` tells it that the engine has news."""

    def __init__(self, shared: Shared, task: Task, revision: Revision, registry_auth: str) -> None:
        self._engine = shared.engine
        self._network = shared.network
        self._images = shared.images
        self._slots = shared.slots
        self._contents = shared.contents
        self._ports = shared.ports
        self._cluster_id = shared.cluster_id
        self._ports.remember(task.id, task.status.ports)
        self.ports = task.status.ports  # host-mode ports that were picked here
        self.task = task
        self.revision = revision
        self.registry_auth = registry_auth
        self._news = asyncio.Event()
        self.container = task.status.container or ContainerStatus()
        self.endpoints: frozenset[str] = frozenset()  # the engine's ids of its ends of networks, as last seen
        self._begun: asyncio.Task[None] | None = None
        self._lease = shared.lease if revision.singleton else None
        self._lease_lost = False
        self._step = (
            PreStartStep(self._engine, task, revision.pre_start, self._news) if revision.pre_start else None
        )

    @property
    def _path(self) -> str:
        return f"/containers/{container_name(self.task)}"

    @property
    def names(self) -> tuple[str, ...]:
        """How the task's containers are called."""
        own = container_name(self.task)
        return (own,) if self._step is None else (own, self._step.name)

    @property
    def grace_s(self) -> float:
        """What its program is given to end, seconds."""
        return defaults.stop_grace(defaults.container(self.revision.template)) / defaults.SECOND

    def poke(self) -> None:
        self._news.set()

    async def news(self) -> None:
        """Until the engine has some of the task, from now on."""
        self._news.clear()
        await self._news.wait()

    async def runs(self) -> bool:
        """Whether a container of the task runs now."""
        found = await self._inspect()
        return found is not None and bool(found["State"].get("Running"))

    # --- operations ----------------------------------------------------------------------------------------------
    async def prepare(self) -> None:
        """Image, network, container. A container of our name is what an earlier attempt made."""
        self.ports = self._ports.pick(self.task.id, self.revision, self.ports)
        if await self._inspect() is not None:
            return
        await self._must_have_its_ports()
        spec = defaults.container(self.revision.template)
        await self._images.ensure(spec.image or "", self.registry_auth)
        if self.revision.pre_start is not None and self.revision.pre_start.image:
            await self._images.ensure(self.revision.pre_start.image, self.registry_auth)
        await self._make(container_name(self.task), lambda body: body)
        await self._inspect()

    async def _must_have_its_ports(self) -> None:
        """A host-mode port that a program of this host holds would lead to that program."""
        wanted = [
            (defaults.protocol(p), p.published_port)
            for p in self.revision.endpoint.ports or ()
            if defaults.publish_mode(p) == "host" and p.published_port
        ]
        if not wanted:
            return
        holders = await self._network.port_holders()
        held = [
            ports.not_taken(key, [(self._contents.node_name, holders[key])])
            for key in wanted
            if key in holders
        ]
        if held:
            raise TaskFailed("; ".join(held))

    async def _make(self, name: str, shape: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Create a container, connected as the task is. ``shape`` has the last word on the create call."""
        async with self._slots:
            wiring = await self._wiring()
            revision = self._contents.expanded(self.task, self.revision)
            files = await self._contents.provide(self.task, revision)
            await self._create(name, shape(create_body(self.task, revision, wiring, files, self._cluster_id)))
            for network, endpoint in wiring.connect:
                await self._engine.call(
                    "POST",
                    f"/networks/{network}/connect",
                    body={"Container": name, "EndpointConfig": endpoint},
                )

    async def _create(self, name: str, body: dict[str, Any]) -> None:
        """The engine finishes what it began, whether or not we still want it: so we see it to its end."""
        await self._begin(self._call_create(name, body))

    async def _begin(self, call: Coroutine[Any, Any, None]) -> None:
        self._begun = asyncio.create_task(call, name=f"create or start {self.task.id}")
        self._begun.add_done_callback(_seen)
        await asyncio.shield(self._begun)

    async def _call_create(self, name: str, body: dict[str, Any]) -> None:
        api, what = needed_api(self.revision)
        more: dict[str, Any] = {"api": api} if what else {}
        try:
            await self._engine.call("POST", "/containers/create", query={"name": name}, body=body, **more)
        except EngineError as err:
            if what and "is too new" in str(err):
                version = ".".join(map(str, api))
                raise EngineTooOld(
                    f"{what} needs an engine of API {version} or newer on this node: {err}"
                ) from err
            if err.status != 409:  # a conflict: made by an attempt whose answer was lost
                raise

    def let_go(self) -> None:
        """The daemon stops: nothing of ours goes on."""
        if self._begun is not None:
            self._begun.cancel()

    async def start(self) -> None:
        """Start it; with a health check, return once it is healthy. What a started one ended with is for :meth:`wait`."""
        state = await self._state()
        if state.get("Status") == "created":
            if self._lease is not None:
                await self._lease.ready()
            if self._step is not None:
                await self._run_step(self._step)
            async with self._slots:
                await self._start(container_name(self.task), self.container.container_id)
        if self._step is not None:
            await self._step.remove()  # only now: until here it says that it was done
        while True:
            self._news.clear()
            state = (await self._same_run())["State"]
            health = (state.get("Health") or {}).get("Status", "none")
            if health in ("none", "healthy"):
                return
            if not state.get("Running"):
                failure = self._end_of(state)
                if failure.clean:
                    return
                raise failure
            if health == "unhealthy":
                raise await self._kill_unhealthy()
            await self._news.wait()

    async def _run_step(self, step: PreStartStep) -> None:
        try:
            await step.run(self._make, self._start)
        except StepFailed as err:
            self.container = msgspec.structs.replace(self.container, exit_code=err.exit_code)
            lost = self._lease is not None and self._lease.ended(step.container_id)
            raise TaskFailed(ENDED if lost else str(err), err.exit_code) from err
        if self._lease is not None:
            self._lease.ended(step.container_id)

    async def _start(self, name: str, container_id: str) -> None:
        """Have the engine start a container of the task; under the lease if it needs one. A start that was begun is seen to its end."""
        # a reboot since it was made has emptied the memory they lie in
        await self._contents.provide(self.task, self._contents.expanded(self.task, self.revision))
        if self._lease is not None:
            self._lease.cover(container_id)
        await self._begin(self._call_start(name, container_id))

    async def _call_start(self, name: str, container_id: str) -> None:
        try:
            await self._engine.call("POST", f"/containers/{name}/start", timeout_s=120)
        except EngineError:
            if self._lease is not None:
                self._lease.ended(container_id)  # the engine refuses, so nothing runs
            raise

    async def wait(self, runs: Callable[[str], None] = lambda _trouble: None) -> None:
        """Return when the container ended by itself with 0; raise TaskFailed otherwise. ``runs``: called whenever the engine
        says that it runs, with what is wrong around it, "" when all is well."""
        while True:
            self._news.clear()
            found = await self._same_run()
            state = found["State"]
            if not state.get("Running"):
                await self.wipe()
                failure = self._end_of(state)
                if failure.clean:
                    return
                raise failure
            if (state.get("Health") or {}).get("Status") == "unhealthy":
                raise await self._kill_unhealthy()
            lost = await self._lost(found)
            if lost:
                if await self._stays_cut_off():
                    raise await self._kill_cut_off(lost)
                continue
            runs(self._network.trouble(self.networks()))
            await self._news.wait()

    async def shutdown(self) -> None:
        """Stop it within its grace period; fine when there is none."""
        if self._begun is not None:
            await asyncio.wait([self._begun])  # what is still being made or started cannot be stopped
        grace = defaults.stop_grace(defaults.container(self.revision.template)) // defaults.SECOND
        if self._step is not None:
            await self._step.stop(grace)
            if self._lease is not None:
                self._lease.ended(self._step.container_id)
        with missing_is_fine():
            await self._engine.call(
                "POST", f"{self._path}/stop", query={"t": str(grace)}, timeout_s=grace + 60
            )
        await self.wipe()
        await self._inspect()

    async def remove(self) -> None:
        """Stop and delete the container with its anonymous volumes, and give its addresses back."""
        await self.shutdown()
        if self._step is not None:
            await self._step.remove()
        with missing_is_fine():
            await self._engine.call("DELETE", self._path, query={"v": "1", "force": "1"}, timeout_s=120)
        if self._lease is not None:
            self._lease.ended(self.container.container_id)
        if self.task.node_address or self.task.networks:
            await self._network.detach(self.task.id)
        self._ports.release(self.task.id)

    async def wipe(self) -> None:
        """A container that has ended, or is not made after all, needs its secrets no more; it is never started again."""
        if self.revision.contents:
            await self._contents.wipe(self.task.id)

    # --- looking -------------------------------------------------------------------------------------------------
    async def _inspect(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await self._engine.call("GET", f"{self._path}/json")
        except EngineError as err:
            if err.status == 404:
                return None
            raise EngineUnreachable(f"the engine cannot say how the container is: {err}") from err
        state = found["State"]
        self.container = ContainerStatus(
            container_id=found["Id"], pid=state.get("Pid", 0), exit_code=state.get("ExitCode", 0)
        )
        if self._lease is not None:
            if state.get("Running"):
                self._lease.runs(found["Id"])
            elif state.get("Status") != "created":
                self._lease_lost = self._lease.ended(found["Id"]) or self._lease_lost
        return found

    async def _there(self) -> dict[str, Any]:
        found = await self._inspect()
        if found is None:
            raise TaskFailed(f"container {container_name(self.task)} is gone: it was removed from the engine")
        return found

    async def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = (await self._there())["State"]
        return state

    async def _same_run(self) -> dict[str, Any]:
        """As :meth:`_there`. A program that was started again outside the swarm is stopped, and the task has failed."""
        before = self.container
        found = await self._there()
        if found["State"].get("Running") and _is_another_run(before, self.container):
            await self.shutdown()
            raise TaskFailed(RESTARTED)
        return found

    def networks(self) -> list[str]:
        """Ids of the networks it is to be on, the node network among them."""
        node = [NODE_NETWORK_ID] if self.task.node_address else []
        return node + [part.network_id for part in self.task.networks]

    async def _lost(self, found: dict[str, Any]) -> str:
        """What its container has lost of its networks for good, for people; "" when nothing."""
        has = (found.get("NetworkSettings") or {}).get("Networks")
        if has is None or not self.networks():
            return ""
        endpoints = {id_: (has.get(name_of(id_)) or {}).get("EndpointID", "") for id_ in self.networks()}
        self.endpoints = frozenset(endpoints.values())
        if taken := [name_of(id_) for id_, endpoint in endpoints.items() if not endpoint]:
            return f"the container was disconnected from {', '.join(taken)}"
        if gone := await self._network.missing(endpoints):
            return f"the container's link to {', '.join(map(name_of, gone))} is gone"
        return ""

    async def _stays_cut_off(self) -> bool:
        """A container that is just ending loses its networks, too, a moment before the engine says that it has ended."""
        await asyncio.sleep(CUT_OFF_S)
        found = await self._inspect()
        return found is not None and bool(found["State"].get("Running")) and bool(await self._lost(found))

    def _end_of(self, state: dict[str, Any]) -> TaskFailed:
        failure = _ended(state)
        return TaskFailed(ENDED, failure.exit_code) if self._lease_lost and failure.exit_code else failure

    async def _kill_unhealthy(self) -> TaskFailed:
        await self.shutdown()
        return TaskFailed(
            f"task: non-zero exit ({self.container.exit_code}): dockerexec: unhealthy container",
            self.container.exit_code,
        )

    async def _kill_cut_off(self, lost: str) -> TaskFailed:
        """Nothing can give a running container its network back: another one takes its place."""
        await self.shutdown()
        return TaskFailed(f"{lost}: it was stopped, to be replaced", self.container.exit_code)

    async def _wiring(self) -> ContainerNetwork:
        """How the container is connected. A predefined local network of the engine needs nothing of ours."""
        if not (self.task.node_address or self.task.networks):
            local = [t.target for t in self.revision.template.networks or () if t.target]
            return ContainerNetwork(network_mode=local[0] if local else "default", first=None)
        try:
            return await self._network.attach(self._attach_request())
        except FailedPrecondition as err:
            raise Unavailable(str(err)) from err  # the view that has it is on its way

    def _attach_request(self) -> AttachRequest:
        aliases = {t.target: t.aliases or () for t in self.revision.template.networks or ()}
        dns = defaults.container(self.revision.template).dns_config
        return AttachRequest(
            task_id=self.task.id,
            node_address=self.task.node_address or None,
            overlays=tuple(
                (n.network_id, n.address.partition("/")[0], aliases.get(n.network_id, ()))
                for n in self.task.networks
            ),
            servers=defaults.name_servers(self.revision.template) if self.task.networks else (),
            search=(dns and dns.search) or (),
            dns_options=(dns and dns.options) or (),
        )


def _seen(task: asyncio.Task[None]) -> None:
    """Whoever waited has the error; nobody may be left to wait."""
    if not task.cancelled():
        task.exception()


def _is_another_run(before: ContainerStatus, now: ContainerStatus) -> bool:
    """A task's program is started once. What was started again outside the swarm lacks its secrets, and the order of its updates."""
    return before.container_id == now.container_id and bool(before.pid and now.pid) and before.pid != now.pid


def _ended(state: dict[str, Any]) -> TaskFailed:
    code = state.get("ExitCode", 0)
    text = f"task: non-zero exit ({code})"
    if state.get("Error"):
        text += f": {state['Error']}"
    return TaskFailed(text, code, clean=code == 0 and not state.get("Error"))


@contextlib.contextmanager
def missing_is_fine() -> Any:
    try:
        yield
    except EngineError as err:
        if err.status not in (404, 304):
            raise


async def network_events(engine: Engine) -> AsyncIterator[str | None]:
    """Ids of containers that were disconnected from a network; ``None``: the engine's own networks may be others now. For ever."""
    filters = '{"type":["network"],"event":["create","destroy","disconnect"]}'
    while True:
        try:
            async with engine.stream("GET", "/events", query={"filters": filters}) as pieces:
                yield None
                async for event in json_lines(pieces):
                    if event["Action"] == "disconnect":
                        yield event["Actor"]["Attributes"].get("container", "")
                    elif event["Actor"]["Attributes"].get("type") == "bridge":
                        yield None
        except (EngineError, EngineUnreachable) as err:
            log.info("the engine's news of networks are lost, trying again: %s", err)
        except Exception:  # without it nobody would hear of a container that is cut off
            log.exception("the engine's news of networks make no sense, trying again")
        await asyncio.sleep(1.0)


async def container_events(engine: Engine) -> AsyncIterator[str | None]:
    """Task ids with news, for ever; ``None`` means everything must be looked at (the stream was lost and is back)."""
    filters = '{"type":["container"],"label":["com.docker.swarm.task.id"]}'
    while True:
        try:
            async with engine.stream("GET", "/events", query={"filters": filters}) as pieces:
                yield None
                async for event in json_lines(pieces):
                    yield event["Actor"]["Attributes"].get("com.docker.swarm.task.id", "")
        except (EngineError, EngineUnreachable) as err:
            log.warning("the engine's event stream is lost, trying again: %s", err)
        except Exception:  # without it no end of a container would be noticed any more
            log.exception("the engine's event stream makes no sense, trying again")
        await asyncio.sleep(1.0)
