"""From whatever state the store is in, the cluster comes to what was declared: counts, places, revisions, nothing left behind."""

from __future__ import annotations

import random

import pytest

from swarm_agent.control.orchestrator import global_, slot_index
from swarm_agent.control.orchestrator.slot import is_current
from swarm_agent.control.revisions import revision_of
from swarm_agent.control.tasks import live
from swarm_agent.control.transaction import Transaction
from swarm_agent.objects import defaults
from swarm_agent.objects.defaults import SECOND
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import JobStatus, Service, Task, TaskStatus, UpdateStatus
from swarm_agent.objects.specs import (
    ContainerSpec,
    Empty,
    Placement,
    Replicated,
    ReplicatedJob,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskTemplate,
    UpdateConfig,
)
from tests.lib.model_cluster import ModelCluster

STATES = [s for s in TaskState if s != TaskState.REMOVE]
DESIRED = (TaskState.READY, TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE)


def a_spec(rng: random.Random, name: str, image: str, mode: ServiceMode) -> ServiceSpec:
    job = mode.replicated_job is not None or mode.global_job is not None
    return ServiceSpec(
        name=name,
        task_template=TaskTemplate(
            container_spec=ContainerSpec(image=image),
            restart_policy=RestartPolicy(delay=rng.choice((0, SECOND, 5 * SECOND))),
            placement=Placement(constraints=("node.labels.zone != b",)) if rng.random() < 0.3 else None,
        ),
        mode=mode,
        update_config=None
        if job
        else UpdateConfig(
            parallelism=rng.choice((0, 1, 3)),
            order=rng.choice(("stop-first", "start-first")),
            failure_action="continue",  # the mess is full of failures, which others would take seriously
        ),
    )


def a_mode(rng: random.Random) -> ServiceMode:
    return rng.choice(
        (
            ServiceMode(replicated=Replicated(replicas=rng.randrange(6))),
            ServiceMode(replicated=Replicated(replicas=rng.randrange(1, 8))),
            ServiceMode(global_=Empty()),
            ServiceMode(
                replicated_job=ReplicatedJob(
                    max_concurrent=rng.randrange(1, 4), total_completions=rng.randrange(1, 6)
                )
            ),
            ServiceMode(global_job=Empty()),
        )
    )


def a_mess(rng: random.Random, c: ModelCluster, sid: str, revisions: list[str], mode: ServiceMode) -> None:
    """Tasks as no sane history would leave them."""
    service = c.service(sid)
    nodes = [n.id for n in c.store.nodes.all()]
    job = service.job is not None
    for _ in range(rng.randrange(14)):
        node = rng.choice([*nodes, "", "gone"])
        state = rng.choice(STATES) if node else rng.choice((TaskState.NEW, TaskState.PENDING))
        desired = rng.choice(DESIRED)
        if job and desired == TaskState.RUNNING:
            desired = TaskState.COMPLETE
        wide = mode.global_ is not None or mode.global_job is not None
        ran = c.now - rng.randrange(200) * SECOND
        task = Task(
            id=c.id(),
            service_id=sid,
            service_name=service.spec.name or "",
            revision_id=revisions[-1] if job else rng.choice(revisions),  # an update is another run of a job
            slot=0 if wide else rng.randrange(0 if job else 1, 7),
            preset=(node or rng.choice(nodes)) if wide else "",
            node_id=node,
            desired_state=desired,
            iteration=rng.randrange(2) if job else 0,
            status=TaskStatus(
                state=state,
                timestamp=ran,
                started_at=ran if state >= TaskState.RUNNING else 0,
                finished_at=ran if state.terminal else 0,
            ),
            attempt=rng.randrange(3),
            failures=rng.randrange(4),
            start_after=rng.choice((0, 0, ran + 5 * SECOND)),
            replaces=rng.choice(["", "", "", *(t.id for t in c.tasks(sid, live=False))]),
            cause=rng.choice(("create", "update", "restart", "drain", "rebalance")),
        )
        c.write(task)


@pytest.mark.parametrize("kept", [True, False], ids=["looks are kept", "fresh looks"])
@pytest.mark.parametrize("seed", range(150))
def test_from_any_state_to_the_declared_one(seed: int, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """``kept``: as if these few slots were thousands, of which a leader does not look at all each time."""
    if kept:
        monkeypatch.setattr(slot_index, "KEPT", 0)
    rng = random.Random(seed)
    c = ModelCluster(seed=seed)
    for n in range(rng.randrange(2, 6)):
        c.add_node(f"n{n}", labels={"zone": rng.choice("ab")})
        if rng.random() < 0.3:
            c.set_node(f"n{n}", state=rng.choice((NodeState.DOWN, NodeState.UNKNOWN)))
        if rng.random() < 0.3:
            c.set_node(f"n{n}", availability=rng.choice(("pause", "drain")))
    for name in ("one", "two"):
        mode = a_mode(rng)
        specs = [a_spec(rng, name, f"app:{v}", mode) for v in range(3)]
        sid = c.id()
        made = [revision_of(sid, s, ()) for s in specs]
        rows = {r.id: r for r in made}
        job = JobStatus(iteration=1) if defaults.is_job(specs[0]) else None
        status = rng.choice(
            (
                None,
                None,
                UpdateStatus(
                    state=rng.choice(("updating", "completed", "rollback_started")),
                    message="",
                    started_at=c.now + SECOND,
                ),
            )
        )
        c.write(
            *rows.values(),
            Service(
                id=sid,
                spec=specs[2],
                previous_spec=specs[1],
                revision_id=made[2].id,
                previous_revision_id=made[1].id,
                job=job,
                update_status=None if job else status,
                rebalancing=rng.randrange(2),
            ),
        )
        a_mess(rng, c, sid, list(rows), mode)
    c.now += SECOND
    c.new_leader()
    c.advance(30)
    for node in list(c.store.nodes.all()):
        c.set_node(node.id, state=NodeState.READY)
        if node.spec.availability == "pause":
            c.set_node(node.id, availability="active")
    for _ in range(40):  # job tasks end when they have run for a while
        c.advance(30)
        for service in list(c.store.services.all()):
            if service.job is not None:
                for task in c.running(service.id):
                    c.fail(task, TaskState.COMPLETE)
    c.advance(1200)
    for service in list(c.store.services.all()):
        settled(c, service)


def settled(c: ModelCluster, service: Service) -> None:
    tasks = list(c.store.tasks.by("service", service.id))
    alive = [t for t in tasks if live(t) and not t.status.state.terminal]
    usable = [n for n in c.store.nodes.all() if global_.gets(service, n)]
    if service.job is None:
        everywhere_ = defaults.is_global(service.spec)
        wanted = len(usable) if everywhere_ else defaults.replicas(service.spec)
        assert len({t.place for t in alive}) == wanted
        if usable:
            assert len(alive) == wanted, "one task a place"
            assert all(t.status.state == TaskState.RUNNING for t in alive)
            p = Transaction(c.store, c.controllers.memory, c.now, c.id)
            assert all(is_current(p, service, t) for t in alive)
            if service.update_status is not None:
                assert service.update_status.state in ("completed", "rollback_completed")
    elif usable:
        assert not alive
        done = {t.place for t in tasks if t.status.state == TaskState.COMPLETE and t.iteration == 1}
        places = (
            {n.id for n in usable}
            if defaults.is_global(service.spec)
            else set(range(defaults.job(service.spec).total))
        )
        assert places <= done
    for task in tasks:
        node = c.store.nodes.get(task.node_id)
        assert live(task) or task.status.state.terminal or node is None, f"{task.name} is left running"
        assert task.desired_state != TaskState.REMOVE
    for place in {t.place for t in tasks}:
        kept = [
            t
            for t in tasks
            if t.place == place and t.iteration == (service.job.iteration if service.job else 0)
        ]
        assert len(kept) <= 5 + 1, f"{len(kept)} tasks of {place} are kept"
