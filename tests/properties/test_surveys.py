"""What is kept of a service's slots from one look to the next is what a look at all of them finds."""

from __future__ import annotations

from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_agent.control.orchestrator import jobs
from swarm_agent.control.orchestrator import slot_index as slot_indexes
from swarm_agent.control.orchestrator.slot_index import SlotIndex, survey
from swarm_agent.control.transaction import Transaction
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.specs import (
    ContainerSpec,
    Replicated,
    ReplicatedJob,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskTemplate,
    UpdateConfig,
)
from tests.lib.model_cluster import ModelCluster

STEP = st.one_of(
    st.tuples(st.just("scale"), st.integers(0, 12)),
    st.tuples(st.just("image"), st.integers(0, 3)),
    st.tuples(st.just("fail"), st.integers(0, 50)),
    st.tuples(
        st.just("node"), st.tuples(st.integers(0, 3), st.sampled_from((NodeState.READY, NodeState.DOWN)))
    ),
    st.tuples(st.just("wait"), st.sampled_from((1, 30, 400))),
    st.tuples(st.just("freeze"), st.integers(0, 3)),
)


def spec(replicas: int, image: int, order: str) -> ServiceSpec:
    return ServiceSpec(
        name="s",
        mode=ServiceMode(replicated=Replicated(replicas=replicas)),
        task_template=TaskTemplate(container_spec=ContainerSpec(image=f"a:{image}")),
        update_config=UpdateConfig(parallelism=3, order=order),
    )


def compare(cluster: ModelCluster, service_id: str) -> None:
    service = cluster.store.services.get(service_id)
    assert service is not None
    p = Transaction(cluster.store, cluster.controllers.memory, cluster.now, lambda: "")
    kept, fresh = survey(p, service), SlotIndex(p, service)
    assert kept is not None
    assert kept.present == fresh.present
    assert kept.older == fresh.older
    assert kept.waiting == fresh.waiting
    assert {n: sorted(t.id for t in ts) for n, ts in kept.open.items()} == {n: sorted(t.id for t in ts) for n, ts in fresh.open.items()}  # fmt: skip


def do(cluster: ModelCluster, service_id: str, step: tuple[str, Any], order: str) -> None:
    what, how = step
    service = cluster.service(service_id)
    replicas = defaults.replicas(service.spec)
    container = defaults.container(service.spec.task_template)
    match what:
        case "scale":
            cluster.update(service_id, spec(how, int(str(container.image)[2:]), order))
        case "image":
            cluster.update(service_id, spec(replicas, how, order))
        case "fail":
            running = cluster.running(service_id)
            if running:
                cluster.fail(running[how % len(running)])
        case "node":
            cluster.set_node(f"n{how[0]}", state=how[1])
        case "freeze":
            cluster.frozen ^= {f"n{how}"}
        case _:
            cluster.now += how * defaults.SECOND


@settings(max_examples=40, derandomize=True, database=None, deadline=None)
@given(st.lists(STEP, min_size=3, max_size=12), st.sampled_from(("stop-first", "start-first")))
def test_surveys_that_are_kept_are_as_new_ones_and_decide_the_same(
    steps: list[tuple[str, Any]], order: str
) -> None:
    both = {0: ModelCluster(), 1 << 30: ModelCluster()}  # one keeps every survey, the other none
    with mock.patch.object(SlotIndex, "outdated", return_value=False):
        for kept, cluster in both.items():
            with mock.patch.object(slot_indexes, "KEPT", kept):
                for number in range(4):
                    cluster.add_node(f"n{number}", cpus=100)
                service_id = cluster.create(spec(6, 0, order))
        for step in steps:
            for kept, cluster in both.items():
                with mock.patch.object(slot_indexes, "KEPT", kept):
                    do(cluster, service_id, step, order)
                    compare(cluster, service_id)
                    for _ in range(3):
                        cluster.step()
                        compare(cluster, service_id)
                    if step[0] == "wait":
                        cluster.settle()
                        compare(cluster, service_id)
            one, other = both.values()
            assert one.store.services.get(service_id) == other.store.services.get(service_id)
            assert {t.id: t for t in one.store.tasks.all()} == {t.id: t for t in other.store.tasks.all()}


JOB_STEP = st.one_of(
    st.tuples(st.just("end"), st.tuples(st.integers(0, 9), st.sampled_from((TaskState.COMPLETE, TaskState.COMPLETE, TaskState.FAILED)))),
    st.tuples(st.just("again"), st.integers(0, 2)),
    st.tuples(st.just("node"), st.tuples(st.integers(0, 2), st.sampled_from((NodeState.READY, NodeState.DOWN)))),
    st.tuples(st.just("drain"), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.sampled_from((1, 30))),
)  # fmt: skip


def job(total: int, image: int, attempts: int | None) -> ServiceSpec:
    return ServiceSpec(
        name="s",
        mode=ServiceMode(replicated_job=ReplicatedJob(max_concurrent=3, total_completions=total)),
        task_template=TaskTemplate(
            container_spec=ContainerSpec(image=f"a:{image}"),
            restart_policy=RestartPolicy(condition="on-failure", max_attempts=attempts),
        ),
    )


def do_job(cluster: ModelCluster, service_id: str, step: tuple[str, Any], attempts: int | None) -> None:
    what, how = step
    match what:
        case "end":
            running = cluster.running(service_id)
            if running:
                cluster.fail(running[how[0] % len(running)], how[1])
        case "again":
            cluster.update(service_id, job(6 + how, how, attempts))
        case "node":
            cluster.set_node(f"n{how[0]}", state=how[1])
        case "drain":
            cluster.set_node(f"n{how}", availability="drain")
        case _:
            cluster.now += how * defaults.SECOND


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(st.lists(JOB_STEP, min_size=4, max_size=20), st.sampled_from((None, 1)))
def test_what_is_kept_of_a_job_is_what_a_new_look_finds(
    steps: list[tuple[str, Any]], attempts: int | None
) -> None:
    both = {0: ModelCluster(), 1 << 30: ModelCluster()}
    made: list[str] = []
    for kept, cluster in both.items():
        with mock.patch.object(jobs, "KEPT", kept):
            for number in range(3):
                cluster.add_node(f"n{number}", cpus=100)
            made.append(cluster.create(job(6, 0, attempts)))
            cluster.outcome = lambda task: TaskState.RUNNING
            cluster.settle()
    for step in steps:
        for kept, cluster in both.items():
            with mock.patch.object(jobs, "KEPT", kept):
                do_job(cluster, made[0], step, attempts)
                for _ in range(4):
                    cluster.step()
        one, other = both.values()
        assert one.store.services.get(made[0]) == other.store.services.get(made[0])
        assert {t.id: t for t in one.store.tasks.all()} == {t.id: t for t in other.store.tasks.all()}
        kept_run, service = one.controllers.memory.slots.get(made[0]), one.service(made[0])
        assert isinstance(kept_run, jobs.Run)
        assert isinstance(kept_run.stamp, tuple)
        fresh = jobs.Run(None, set())
        for task in one.store.tasks.by("service", service.id):
            here = [t for t in one.store.tasks.by("service", service.id) if t.slot == task.slot]
            mine = [t for t in here if t.iteration == (service.job.iteration if service.job else 0)]
            fresh.note(service, task.slot, [t for t in mine if t.desired_state != TaskState.REMOVE])
        settled = {t.slot for t in one.store.tasks.all()} - kept_run.changed
        if kept_run.stamp[0] == (service.job.iteration if service.job else 0):
            for name in ("complete", "busy", "lost"):
                assert getattr(kept_run, name) & settled == getattr(fresh, name) & settled, name
