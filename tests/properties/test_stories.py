"""Stories on paper: people change services and nodes while nodes come and go, leaders change and tasks fail; every entry is judged
(``tests.lib.invariants``), and once it is quiet everything is as declared. Thousands of decisions a second, where a whole cluster takes
seconds for a hundred."""

from __future__ import annotations

import random

import msgspec
import pytest

from swarm_agent.control.orchestrator import slot_index
from swarm_agent.control.orchestrator.rebalance import suggest
from swarm_agent.control.scheduler.feasibility import local_volumes
from swarm_agent.objects import defaults
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.defaults import SECOND
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.options import options
from swarm_agent.objects.records import Service, Task
from swarm_agent.objects.specs import (
    ContainerSpec,
    Empty,
    Mount,
    Placement,
    Replicated,
    ReplicatedJob,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskTemplate,
    UpdateConfig,
)
from tests.lib.invariants import Decisions
from tests.lib.model_cluster import ModelCluster
from tests.properties.test_convergence import settled

DEEDS = 60


class Story:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.c = ModelCluster(seed=seed)
        self.c.keeps_volumes = True
        self.c.outcome = lambda task: TaskState.FAILED if self._image(task) == "bad" else TaskState.RUNNING
        self.c.prepares = lambda task: self._image(task) != "missing"
        self.decisions = Decisions()
        self.decisions.watch(self.c.store)
        self.services: list[str] = []
        self.made = 0
        for n in range(self.rng.randrange(3, 6)):
            self.c.add_node(f"n{n}", labels={"zone": "ab"[n % 2]})
        mode = ServiceMode(replicated_job=ReplicatedJob(max_concurrent=1, total_completions=2))
        template = TaskTemplate(
            container_spec=ContainerSpec(image="job"), restart_policy=RestartPolicy(condition="on-failure")
        )
        self.setup = self.c.create(ServiceSpec(name="setup", task_template=template, mode=mode))

    def _image(self, task: Task) -> str:
        revision = self.c.store.revisions.get(task.revision_id)
        return "" if revision is None else defaults.container(revision.template).image or ""

    # --- deeds -----------------------------------------------------------------------------------------------------------
    def run(self) -> None:
        deeds = [
            *(self.create,) * 3,
            *(self.update,) * 4,
            *(self.scale,) * 2,
            self.roll_back,
            self.set_up_again,
            *(self.fail,) * 3,
            *(self.node_down,) * 2,
            *(self.node_up,) * 3,
            self.availability,
            self.relabel,
            self.join,
            self.freeze,
            self.thaw,
            *(self.new_leader,) * 2,
            *(self.ends,) * 3,
        ]
        for _ in range(DEEDS):
            self.rng.choice(deeds)()
            for _ in range(self.rng.randrange(5)):
                self.c.step()
            if self.rng.random() < 0.5:
                self.c.advance(self.rng.choice((0.3, 2, 8, 40)))
            assert not self.decisions.trouble

    def create(self) -> None:
        if len(self.services) < 4:
            self.made += 1
            self.services.append(self.c.create(self._spec(f"s{self.made}")))

    def _spec(self, name: str) -> ServiceSpec:
        rng, labels = self.rng, {}
        constraints: tuple[str, ...] = ()
        mounts: tuple[Mount, ...] = ()
        labels["swarm-agent.rebalance"] = rng.choice(("advise", "on-join", "on-join", "continuous"))
        match rng.choice(("volume", "zone", "depends", "", "")):
            case "volume":
                mounts = (Mount(type="volume", source=f"v-{name}", target="/data"),)
                labels["swarm-agent.volume-affinity"] = rng.choice(("require", "require", "prefer"))
            case "zone":
                constraints = ("node.labels.zone == a",)
            case "depends":
                labels["swarm-agent.depends-on"] = "setup:completed"
            case _:
                pass
        mode = ServiceMode(replicated=Replicated(replicas=rng.randrange(7)))
        if rng.random() < 0.2:
            mode = ServiceMode(global_=Empty())
            labels.pop("swarm-agent.rebalance")
        return ServiceSpec(
            name=name,
            labels=labels,
            task_template=TaskTemplate(
                container_spec=ContainerSpec(image="app:1", mounts=mounts),
                restart_policy=RestartPolicy(delay=rng.choice((0, SECOND))),
                placement=Placement(constraints=constraints),
            ),
            mode=mode,
            update_config=self._policy("rollback"),
            rollback_config=self._policy("pause"),
        )

    def _policy(self, action: str) -> UpdateConfig:
        return UpdateConfig(
            parallelism=self.rng.choice((0, 1, 1, 2)),
            order=self.rng.choice(("stop-first", "stop-first", "start-first")),
            failure_action=self.rng.choice(("continue", "pause", action)),
            monitor=self.rng.choice((SECOND, 5 * SECOND)),
        )

    def _some(self) -> Service | None:
        return self.c.service(self.rng.choice(self.services)) if self.services else None

    def _to(self, service: Service, image: str) -> None:
        ctr = msgspec.structs.replace(defaults.container(service.spec.task_template), image=image)
        template = msgspec.structs.replace(
            service.spec.task_template,
            container_spec=ctr,
            force_update=(service.spec.task_template.force_update or 0) + 1,
        )
        self.c.update(service.id, msgspec.structs.replace(service.spec, task_template=template))

    def update(self) -> None:
        service = self._some()
        if service is not None:
            self._to(service, self.rng.choice(("app:1", "app:2", "app:3", "bad", "missing")))

    def scale(self) -> None:
        service = self._some()
        if service is not None and service.spec.mode.replicated is not None:
            mode = ServiceMode(replicated=Replicated(replicas=self.rng.randrange(7)))
            self.c.update(service.id, msgspec.structs.replace(service.spec, mode=mode))

    def roll_back(self) -> None:
        service = self._some()
        if service is not None and service.previous_spec is not None:
            self.c.roll_back(service.id)

    def set_up_again(self) -> None:
        service = self.c.service(self.setup)
        self.c.update(self.setup, service.spec)

    def ends(self) -> None:
        """A job's task comes to its end."""
        for task in self.c.running(self.setup)[:1]:
            self.c.fail(task, TaskState.COMPLETE)

    def fail(self) -> None:
        tasks = [t for t in self.c.store.tasks.all() if t.status.state == TaskState.RUNNING]
        if tasks:
            self.c.fail(self.rng.choice(tasks))

    def _node(self) -> str:
        return self.rng.choice([n.id for n in self.c.store.nodes.all()])

    def node_down(self) -> None:
        if sum(n.status.state == NodeState.DOWN for n in self.c.store.nodes.all()) < 2:
            self.c.set_node(self._node(), state=NodeState.DOWN)

    def node_up(self) -> None:
        self.c.set_node(self._node(), state=NodeState.READY)

    def availability(self) -> None:
        self.c.set_node(self._node(), availability=self.rng.choice(("drain", "pause", "active", "active")))

    def relabel(self) -> None:
        node = self.c.node(self._node())
        spec = msgspec.structs.replace(node.spec, labels={"zone": self.rng.choice("aab")})
        self.c.write(msgspec.structs.replace(node, spec=spec))

    def join(self) -> None:
        if len(self.c.store.nodes) < 7:
            self.c.add_node(f"n{len(self.c.store.nodes)}", labels={"zone": self.rng.choice("ab")})

    def freeze(self) -> None:
        self.c.frozen.add(self._node())

    def thaw(self) -> None:
        self.c.frozen.clear()

    def new_leader(self) -> None:
        self.c.now += self.rng.choice((0, 1, 10)) * SECOND
        self.c.new_leader()

    # --- afterwards --------------------------------------------------------------------------------------------------------
    def peace(self) -> None:
        self.c.frozen.clear()
        for number, node in enumerate(list(self.c.store.nodes.all())):
            self.c.set_node(node.id, state=NodeState.READY, availability="active")
            spec = msgspec.structs.replace(self.c.node(node.id).spec, labels={"zone": "ab"[number % 2]})
            self.c.write(msgspec.structs.replace(self.c.node(node.id), spec=spec))
        self.c.advance(60)
        for sid in self.services:
            self._to(self.c.service(sid), "app:4")
        for _ in range(20):
            self.c.advance(30)
            for task in self.c.running(self.setup):
                self.c.fail(task, TaskState.COMPLETE)
        self.c.advance(1200)

    def judge(self) -> None:
        c = self.c
        assert not self.decisions.trouble
        joined = max(n.active_since for n in c.store.nodes.all())
        for service in list(c.store.services.all()):
            if service.job is None:
                settled(c, service)
            assert not service.rebalancing
            policy = options(service.spec.labels)
            if policy.rebalance == "on-join":
                assert max(service.evened, service.created_at) >= joined, "nobody is left behind"
            if policy.rebalance == "continuous":
                assert suggest(c.store, c.controllers.memory, c.now, c.id, [service]) == ()
            for task in c.running(service.id):
                revision, node = c.store.revisions.get(task.revision_id), c.node(task.node_id)
                assert revision is not None
                assert node_matches(defaults.constraints(revision.template), node)
                assert set(local_volumes(revision)) <= set(node.description.volumes)
        index = c.store.index
        c.advance(600)
        assert c.store.index == index, "it has come to rest"


@pytest.mark.parametrize("seed", range(60))
def test_a_story(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other one as if its services were so large that what is found out about them is kept."""
    if seed % 2:
        monkeypatch.setattr(slot_index, "KEPT", 0)
    story = Story(seed)
    story.run()
    story.peace()
    story.judge()
