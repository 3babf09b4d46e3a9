"""What a review found wrong once, on a paper cluster."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from swarm_agent.control.transaction import Key
from swarm_agent.objects.defaults import SECOND
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import Task
from swarm_agent.objects.specs import (
    ContainerSpec,
    Empty,
    OrchestrationConfig,
    Placement,
    ReplicatedJob,
    Reservations,
    Resources,
    RestartPolicy,
    ServiceMode,
    UpdateConfig,
)
from swarm_agent.objects.timetable import Timetable
from tests.lib.model_cluster import GiB, ModelCluster
from tests.lib.specs import a_spec as spec

AT_ONCE = UpdateConfig(parallelism=0, monitor=1)
STRICT = {"swarm-agent.singleton": "strict"}


@pytest.fixture
def cluster() -> ModelCluster:
    c = ModelCluster.of("n1", "n2", "n3")
    c.outcome = lambda task: TaskState.FAILED if "bad" in c.image_of(task) else TaskState.RUNNING
    c.settle()
    return c


def test_a_singleton_that_is_scaled_away_and_back_waits_for_its_end(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(labels=STRICT))
    cluster.settle()
    (old,) = cluster.running(sid)
    cluster.frozen.add(old.node_id)
    cluster.update(sid, spec(0, labels=STRICT))
    cluster.settle()
    cluster.update(sid, spec(1, labels=STRICT))
    cluster.advance(600)
    assert {t.desired_state for t in cluster.tasks(sid)} == {TaskState.READY}
    cluster.frozen.clear()
    cluster.advance(5)
    assert len(cluster.running(sid)) == 1


def test_a_singleton_whose_node_no_longer_suits_is_not_said_to_have_ended(cluster: ModelCluster) -> None:
    where = Placement(constraints=("node.labels.off != yes",))
    sid = cluster.create(spec(labels=STRICT, placement=where))
    cluster.settle()
    (old,) = cluster.running(sid)
    cluster.frozen.add(old.node_id)
    node = cluster.node(old.node_id)
    cluster.write(
        msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, labels={"off": "yes"}))
    )
    cluster.advance(600)
    (successor,) = cluster.tasks(sid)
    assert (successor.desired_state, successor.node_id != old.node_id) == (TaskState.READY, True)
    found = cluster.store.tasks.get(old.id)
    assert found is not None
    assert not found.status.state.terminal
    cluster.frozen.clear()
    cluster.advance(5)
    assert [t.id for t in cluster.running(sid)] == [successor.id]


def test_a_drain_survives_a_rejected_group(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(6))
    cluster.settle()
    cluster.set_node("n1", availability="drain")
    groups = cluster.controllers.run(cluster.now)  # decided, and lost
    assert any(g.key == sid for g in groups)
    cluster.controllers.retry(g.key for g in groups)
    cluster.advance(30)
    assert {t.node_id for t in cluster.running(sid)} == {"n2", "n3"}


def test_a_drain_does_not_wait_for_a_replica_that_is_sick_anyway(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(3, update=UpdateConfig(parallelism=1, order="stop-first")))
    cluster.settle()
    sick = next(t for t in cluster.running(sid) if t.node_id == "n2")
    outcome = cluster.outcome
    cluster.outcome = lambda task: TaskState.FAILED if task.slot == sick.slot else outcome(task)
    cluster.fail(sick)
    cluster.advance(5)
    cluster.set_node("n1", availability="drain")
    cluster.advance(60)
    assert "n1" not in {t.node_id for t in cluster.running(sid)}


def test_an_update_that_tolerates_its_failures_ends(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(3))
    cluster.settle()
    cluster.update(
        sid,
        spec(
            3,
            "bad:1",
            update=UpdateConfig(parallelism=1, failure_action="continue"),
            restart_policy=RestartPolicy(delay=SECOND),
        ),
    )
    cluster.advance(120)
    status = cluster.service(sid).update_status
    assert status is not None
    assert status.state == "completed"


def test_a_node_that_loses_a_processor_keeps_what_only_needs_memory(cluster: ModelCluster) -> None:
    here = Placement(constraints=("node.hostname == n1",))
    cpu = cluster.create(
        spec(1, resources=Resources(reservations=Reservations(nano_cpus=4 * SECOND)), placement=here)
    )
    cluster.settle()
    cluster.now += SECOND
    memory = Resources(reservations=Reservations(memory_bytes=GiB))
    sid = cluster.create(msgspec.structs.replace(spec(5, resources=memory, placement=here), name="mem"))
    cluster.settle()
    before = {t.id for t in cluster.running(sid)}
    node = cluster.node("n1")
    cluster.write(
        msgspec.structs.replace(
            node, description=msgspec.structs.replace(node.description, nano_cpus=3 * SECOND)
        )
    )
    cluster.advance(10)
    assert {t.id for t in cluster.running(sid)} == before
    assert not cluster.running(cpu)


def test_the_last_time_that_was_due_is_found_as_quickly_for_a_year_as_for_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = Timetable.parse("* * * * *", "Europe/Berlin")
    now = 1_800_000_030 * SECOND
    looks: Counter[str] = Counter()
    real = Timetable.after

    def after(self: Timetable, at: int) -> int:
        looks["after"] += 1
        return real(self, at)

    monkeypatch.setattr(Timetable, "after", after)
    assert every.latest(now - 365 * 86400 * SECOND, now) == 1_800_000_000 * SECOND
    assert looks["after"] < 40
    assert Timetable.parse("0 3 * * *", "UTC").latest(now - 3600 * SECOND, now) == 0
    daily = Timetable.parse("0 3 * * *", "UTC").latest(now - 30 * 86400 * SECOND, now)
    assert 0 < now - daily <= 86400 * SECOND


def test_rejected_groups_wake_what_may_have_been_in_them(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(1))
    cluster.settle()
    cluster.controllers.retry([sid])
    assert {Key("service", sid), Key("prepared", sid), Key("rebalance", sid)} <= set(
        cluster.controllers._dirty
    )


@pytest.mark.parametrize("job", [False, True])
def test_a_place_that_was_given_up_stays_so_when_no_history_is_kept(cluster: ModelCluster, job: bool) -> None:
    """Its last task was forgotten, and with it that it was given up: another was made at once, thirty a second."""
    record = cluster.store.cluster
    assert record is not None
    kept = msgspec.structs.replace(record.spec.orchestration, task_history_retention_limit=0)
    cluster.write(
        msgspec.structs.replace(record, spec=msgspec.structs.replace(record.spec, orchestration=kept))
    )
    wanted = spec(1, "bad", restart_policy=RestartPolicy(condition="none"))
    if job:
        mode = ServiceMode(replicated_job=ReplicatedJob(max_concurrent=1, total_completions=1))
        wanted = msgspec.structs.replace(wanted, mode=mode)
    made: set[str] = set()
    cluster.store.watch(
        lambda index, changes: made.update(c.row.id for c in changes if isinstance(c.row, Task))
    )
    sid = cluster.create(wanted)
    cluster.advance(60)
    assert len(made) == 1
    assert [t.status.state for t in cluster.tasks(sid, live=False)] == [TaskState.FAILED]


@pytest.mark.parametrize("moved", ["update", "rebalance"])
def test_what_was_to_take_over_on_a_node_that_is_drained_meanwhile_leaves_it(moved: str) -> None:
    cluster = ModelCluster.of("n1")
    sid = cluster.create(spec(2))
    cluster.settle()
    cluster.add_node("n2")
    cluster.add_node("n3")
    cluster.settle()
    cluster.frozen = {"n1", "n2", "n3"}
    if moved == "update":
        cluster.update(sid, spec(2, "web:2", update=UpdateConfig(parallelism=2)))
    else:
        cluster.write(msgspec.structs.replace(cluster.service(sid), rebalancing=1))
    cluster.settle()
    drained = next(t.node_id for t in cluster.tasks(sid) if t.cause == moved and t.node_id != "n1")
    cluster.set_node(drained, availability="drain")
    cluster.settle()
    cluster.frozen.clear()
    cluster.advance(600)
    assert len(cluster.running(sid)) == 2
    assert drained not in {t.node_id for t in cluster.tasks(sid)}


def test_a_prepared_task_that_waited_for_an_update_is_started_when_that_pauses(cluster: ModelCluster) -> None:
    rest = RestartPolicy(condition="any", delay=5 * SECOND)
    sid = cluster.create(spec(3, restart_policy=rest))
    cluster.settle()
    for task in cluster.running(sid)[1:]:
        cluster.fail(task)
    cluster.settle()
    cluster.prepares = lambda task: cluster.image_of(task) != "web:2"
    cluster.frozen = {"n1", "n2", "n3"}
    cluster.update(sid, spec(3, "web:2", update=UpdateConfig(parallelism=1), restart_policy=rest))
    cluster.advance(10)  # the delay of the old tasks is over in the midst of the update
    cluster.frozen.clear()
    cluster.advance(5)
    status = cluster.service(sid).update_status
    assert status is not None
    assert status.state == "paused"
    assert [(t.slot, cluster.image_of(t)) for t in cluster.running(sid)] == [(1, "web:1"), (3, "web:1")]


def test_a_service_that_is_dearer_than_a_pass_to_look_at_is_rebalanced(
    cluster: ModelCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("n2", "n3"):
        cluster.set_node(name, availability="drain")
    sid = cluster.create(spec(20))
    cluster.settle()
    cluster.set_node("n2", availability="active")
    cluster.settle()
    monkeypatch.setattr("swarm_agent.control.transaction.MAX_COST", 20)
    cluster.write(msgspec.structs.replace(cluster.service(sid), rebalancing=1))
    cluster.settle()
    assert Counter(t.node_id for t in cluster.tasks(sid)) == {"n1": 10, "n2": 10}
    assert cluster.service(sid).rebalancing == 0


def test_a_global_update_makes_nothing_for_nodes_that_are_to_have_nothing(cluster: ModelCluster) -> None:
    every = ServiceMode(global_=Empty())
    once = RestartPolicy(condition="none")
    sid = cluster.create(spec(mode=every, restart_policy=once))
    cluster.settle()
    nowhere = Placement(constraints=("node.labels.zone == there",))
    cluster.update(sid, spec(mode=every, restart_policy=once, placement=nowhere))
    cluster.settle()
    cluster.new_leader()
    cluster.settle()
    assert {t.cause for t in cluster.tasks(sid, live=False)} == {"create"}
    assert cluster.service(sid).update_status is None


def test_stopping_what_does_not_run_leaves_as_many_healthy() -> None:
    cluster = ModelCluster.of("n1")
    labels = {"swarm-agent.min-healthy": "1"}
    sid = cluster.create(spec(3, labels=labels, update=UpdateConfig(order="stop-first")))
    cluster.settle()
    cluster.frozen = {"n1"}
    cluster.fail(cluster.tasks(sid)[0])
    cluster.advance(30)
    assert [t.status.state for t in cluster.tasks(sid)] == [TaskState.ASSIGNED, TaskState.RUNNING, TaskState.RUNNING]  # fmt: skip
    cluster.add_node("n2")
    cluster.set_node("n1", availability="drain")
    cluster.settle()
    told = {t.slot for t in cluster.tasks(sid, live=False) if t.desired_state == TaskState.SHUTDOWN and not t.status.state.terminal}  # fmt: skip
    assert told == {1, 2}  # and the third when another runs


def test_what_outlived_an_update_and_has_ended_is_not_made_again(cluster: ModelCluster) -> None:
    once = RestartPolicy(condition="none")
    policy = UpdateConfig(parallelism=0, order="start-first", failure_action="rollback")
    sid = cluster.create(spec(2, update=policy, restart_policy=once))
    cluster.settle()
    cluster.prepares = lambda task: cluster.image_of(task) != "web:2"
    cluster.now += SECOND
    cluster.update(sid, spec(2, "web:2", update=policy, restart_policy=once))
    cluster.advance(60)
    first, second = cluster.running(sid)  # as they were before; the newest of their places has failed
    assert {cluster.image_of(first), cluster.image_of(second)} == {"web:1"}
    cluster.now += SECOND
    cluster.fail(first, TaskState.COMPLETE)
    cluster.settle()
    cluster.new_leader()
    cluster.advance(60)
    status = cluster.service(sid).update_status
    assert status is not None
    assert status.state == "rollback_completed"
    assert [t.id for t in cluster.running(sid)] == [second.id]


def test_what_a_drain_prepares_after_a_change_of_placement_stays_though_there_is_no_node_for_it() -> None:
    cluster = ModelCluster.of("n1")
    sid = cluster.create(spec(2))
    cluster.settle()
    cluster.now += SECOND
    cluster.update(sid, spec(2, placement=Placement(max_replicas=2)))
    cluster.settle()
    cluster.set_node("n1", availability="drain")
    passes = 0
    while cluster.controllers.next_wake() == 0:
        cluster.commit(cluster.controllers.run(cluster.now))
        passes += 1
        assert passes < 20
    present = cluster.service(sid).revision_id
    assert [t.revision_id for t in cluster.tasks(sid) if t.cause == "drain"] == [present, present]


def test_a_join_that_a_faster_clock_wrote_down_is_not_waited_for(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(8, labels={"swarm-agent.rebalance": "on-join"}))
    cluster.advance(100)
    cluster.add_node("n4")
    cluster.settle()
    cluster.now -= 3600 * SECOND
    cluster.new_leader()
    cluster.advance(100)
    assert Counter(t.node_id for t in cluster.running(sid)) == {"n1": 2, "n2": 2, "n3": 2, "n4": 2}


def test_what_is_remembered_of_constraints_does_not_grow_for_ever(
    cluster: ModelCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm_agent.control.memory.MAX_NODE_FITS", 10)
    for number in range(30):
        where = Placement(constraints=(f"node.labels.rack != {number}",))
        sid = cluster.create(spec(placement=where))
        cluster.settle()
        cluster.remove(sid)
        cluster.settle()
    assert len(cluster.controllers.memory.node_fits) <= 11


@pytest.mark.parametrize("replicas", [1, 300])
def test_a_lower_limit_of_history_holds_for_what_is_kept_already(
    cluster: ModelCluster, replicas: int
) -> None:
    sid = cluster.create(spec(replicas))
    cluster.settle()
    for env in "abc":
        cluster.update(
            sid, spec(replicas, container_spec=ContainerSpec(image="web:1", env=(env,)), update=AT_ONCE)
        )
        cluster.advance(10)
    assert len(cluster.tasks(sid, live=False)) == 4 * replicas
    record = cluster.store.cluster
    assert record is not None
    limit = OrchestrationConfig(task_history_retention_limit=1)
    changed = msgspec.structs.replace(record.spec, orchestration=limit)
    cluster.write(msgspec.structs.replace(record, spec=changed))
    cluster.settle()
    assert len(cluster.tasks(sid, live=False)) == replicas
