"""What a call into the controllers costs, counted in lines of ours it runs, as the cluster grows ten times. No clock.

A call may cost what the change it answers costs, up to the bound of a pass; not what the cluster has besides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import msgspec
import pytest

from swarm_agent.control.controllers import Controllers
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.specs import Replicated, ReplicatedJob, ServiceMode, ServiceSpec, UpdateConfig
from tests.lib.model_cluster import ModelCluster

replace = msgspec.structs.replace
SMALL, LARGE = 40, 400


def lines(work: Callable[[], Any]) -> int:
    """Lines run in our packages, each turn of a loop and of a comprehension among them."""
    count = 0

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return local if "swarm_agent" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def spec(name: str, replicas: int, **more: Any) -> ServiceSpec:
    return ServiceSpec(name=name, mode=ServiceMode(replicated=Replicated(replicas=replicas)), **more)


def a_cluster(services: int, replicas: int, nodes: int = 10) -> tuple[ModelCluster, list[str]]:
    cluster = ModelCluster()
    for number in range(nodes):
        cluster.add_node(f"n{number}", cpus=1000)
    cluster.settle()
    made = [cluster.create(spec(f"s{number}", replicas)) for number in range(services)]
    cluster.settle()
    assert len(cluster.store.tasks) == services * replicas
    return cluster, made


def passes_of(cluster: ModelCluster) -> list[int]:
    """Run passes until nothing is dirty, committing each; the lines of each call."""
    costs = []
    out: list[Any] = []
    while cluster.controllers.next_wake() == 0:
        costs.append(lines(lambda: out.append(cluster.controllers.run(cluster.now))))
        if written := out.pop():
            cluster.commit(written)
    return costs


def one_status(cluster: ModelCluster) -> int:
    """A task of one service fails: what the book-keeping and all passes that follow cost."""
    task = next(cluster.store.tasks.all())
    failed = replace(task, status=replace(task.status, state=TaskState.FAILED, finished_at=cluster.now))
    booked = lines(lambda: cluster.write(failed))
    return booked + sum(passes_of(cluster))


def one_node(cluster: ModelCluster) -> int:
    """A node with nothing on it comes: every other node's tasks are none of its business."""
    cluster.add_node("late")
    return sum(passes_of(cluster))


@pytest.mark.parametrize("event", [one_status, one_node])
@pytest.mark.parametrize(("services", "replicas"), [(10, 1), (1, 10)])
def test_a_small_change_costs_what_it_costs_in_a_small_cluster(
    event: Callable[[ModelCluster], int], services: int, replicas: int
) -> None:
    small, _ = a_cluster(services * SMALL // 10, replicas * 4)
    large, _ = (
        a_cluster(services * SMALL // 10, replicas * 40)
        if services == 1
        else a_cluster(services * LARGE // 10, replicas * 4)
    )
    assert len(large.store.tasks) == 10 * len(small.store.tasks)
    few, many = event(small), event(large)
    assert many < few * 1.5 + 200, (few, many)


def test_no_pass_of_a_large_bring_up_costs_more_than_a_pass_of_a_small_one() -> None:
    worst = []
    for services in (15, 60):
        cluster = ModelCluster()
        cluster.controllers.most = 100
        for number in range(10):
            cluster.add_node(f"n{number}", cpus=1000)
        passes_of(cluster)
        for number in range(services):
            cluster.create(spec(f"s{number}", 50))
        worst.append(max(passes_of(cluster)))
        assert len(cluster.store.tasks) == services * 50
    assert worst[1] < worst[0] * 1.3, worst


def test_tasks_that_cannot_be_placed_are_not_looked_at_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_agent.control.controllers.MAX_PLACED", 50)
    costs = []
    for waiting in (60, 600):
        cluster = ModelCluster()
        cluster.create(spec("s", waiting))
        cluster.settle()
        assert {t.status.state for t in cluster.store.tasks.all()} == {TaskState.PENDING}
        cluster.controllers.retry(["s"])
        costs.append(max(passes_of(cluster)))
        cluster.add_node("n1", cpus=1000)
        cluster.settle()
        assert {t.status.state for t in cluster.store.tasks.all()} == {TaskState.RUNNING}, (
            "nobody was forgotten"
        )
    assert costs[1] < costs[0] + 10 * 600, costs


def test_a_new_leader_books_so_many_tasks_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_agent.control.controllers.MAX_BOOKED", 50)
    made, booked = [], []

    def begin(cluster: ModelCluster, fresh: list[Controllers]) -> None:
        fresh.append(Controllers(cluster.store, cluster.id))

    for replicas in (40, 400):
        cluster, _ = a_cluster(1, replicas)
        fresh: list[Controllers] = []
        made.append(lines(partial(begin, cluster, fresh)))
        costs = []
        while not fresh[0].usage.complete:
            costs.append(lines(partial(fresh[0].run, cluster.now)))
        booked.append(max(costs))
    assert made[1] < made[0] + 20, made
    assert booked[1] < booked[0] * 1.5, booked


def test_a_settled_slot_costs_a_look_at_its_service_a_few_lines() -> None:
    """A service that is scaled by one: slots that are as they should be are passed by in one plain loop."""
    costs = []
    for replicas in (40, 400):
        cluster, (service_id,) = a_cluster(1, replicas)
        service = cluster.store.services.get(service_id)
        assert service is not None
        cluster.write(replace(service, spec=spec("s0", replicas + 1)))
        costs.append(max(passes_of(cluster)))
    per_slot = (costs[1] - costs[0]) / 360
    assert per_slot < 20, per_slot


def test_a_service_that_goes_does_not_keep_passes_busy_while_its_tasks_end() -> None:
    """More of them than a pass writes: what is sent away already counts no more."""
    cluster, (service_id,) = a_cluster(1, 40)
    for number in range(10):
        cluster.frozen.add(f"n{number}")
    cluster.controllers.most = 10
    cluster.remove(service_id)
    costs = passes_of(cluster)
    assert len(costs) < 30, "then they wait for the nodes"
    assert {t.desired_state for t in cluster.store.tasks.all()} == {TaskState.REMOVE}
    cluster.frozen.clear()
    cluster.settle()
    assert len(cluster.store.tasks) == 0


def test_an_update_of_many_slots_that_wait_is_no_dearer_for_the_waiting_ones() -> None:
    """Prepared tasks whose predecessors are still stopping are looked at when something about them changes."""
    costs = []
    for replicas in (40, 400):
        cluster, (service_id,) = a_cluster(1, replicas)
        for number in range(10):
            cluster.frozen.add(f"n{number}")
        service = cluster.store.services.get(service_id)
        assert service is not None
        update = UpdateConfig(parallelism=0, order="stop-first")
        cluster.update(
            service_id,
            spec(
                "s0",
                replicas,
                update_config=update,
                task_template=replace(service.spec.task_template, force_update=1),
            ),
        )
        passes_of(cluster)
        new = [t for t in cluster.store.tasks.all() if t.desired_state == TaskState.READY]
        assert len(new) == replicas
        for some in (new[:200], new[200:]):
            cluster.write(*(replace(t, status=replace(t.status, state=TaskState.READY)) for t in some))
            passes_of(cluster)
        cluster.set_node("n0", state=NodeState.READY)
        task = next(t for t in cluster.store.tasks.all() if t.desired_state == TaskState.SHUTDOWN)
        cluster.write(replace(task, status=replace(task.status, state=TaskState.SHUTDOWN)))
        costs.append(sum(passes_of(cluster)))
    assert (costs[1] - costs[0]) / 360 < 90, costs


def test_a_completion_of_a_large_job_costs_what_it_costs_in_a_small_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swarm_agent.control.orchestrator.jobs.KEPT", 10)
    costs = []
    for total in (40, 400):
        cluster, _ = a_cluster(0, 0)
        cluster.outcome = lambda task: TaskState.RUNNING
        mode = ServiceMode(replicated_job=ReplicatedJob(max_concurrent=3, total_completions=total))
        service_id = cluster.create(ServiceSpec(name="job", mode=mode))
        cluster.settle()
        each = []
        for _ in range(total - 10):
            cluster.fail(cluster.running(service_id)[0], TaskState.COMPLETE)
            each.append(sum(passes_of(cluster)))
            cluster.settle()
        costs.append(each[-1])
    assert costs[1] < costs[0] * 1.3, costs


def test_an_update_few_at_a_time_costs_what_the_few_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_agent.control.orchestrator.slot_index.KEPT", 10)
    costs = []
    for replicas in (40, 400):
        cluster, (service_id,) = a_cluster(1, replicas)
        service = cluster.store.services.get(service_id)
        assert service is not None
        template = replace(service.spec.task_template, force_update=1)
        update = UpdateConfig(parallelism=2, order="stop-first")
        cluster.update(service_id, spec("s0", replicas, update_config=update, task_template=template))
        each: list[int] = []
        while len(each) < replicas // 2:
            each.append(sum(passes_of(cluster)))
            cluster._report()
        costs.append(each[-1] + each[-2] + each[-3] + each[-4])
    assert costs[1] < costs[0] * 1.5, costs


def test_a_node_that_changes_is_no_reason_to_look_at_a_service_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for the slots of the tasks it has."""
    monkeypatch.setattr("swarm_agent.control.orchestrator.slot_index.KEPT", 10)
    costs = []
    for replicas in (40, 400):
        cluster, (service_id,) = a_cluster(1, replicas)
        cluster.add_node("late")
        cluster.settle()
        cluster.controllers.retry([f"service/{service_id}"])
        passes_of(cluster)
        cluster.set_node("late", state=NodeState.DOWN)
        cluster.controllers.retry([f"service/{service_id}"])
        looks = []
        while cluster.controllers.next_wake() == 0:
            groups = cluster.controllers.run(cluster.now)
            looks.append(cluster.controllers.cost)
            if groups:
                cluster.commit(groups)
        costs.append(min(looks))
    assert costs[1] < costs[0] + 40, costs
