"""Replicated services on a paper cluster: count, restart, node loss, drain, update, removal."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from swarm_agent.objects.defaults import SECOND
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import Task
from swarm_agent.objects.specs import (
    Placement,
    PortConfig,
    Reservations,
    Resources,
    RestartPolicy,
    UpdateConfig,
)
from tests.lib.model_cluster import GiB, ModelCluster
from tests.lib.specs import a_spec as spec


@pytest.fixture
def cluster() -> ModelCluster:
    c = ModelCluster.of("n1", "n2", "n3")
    c.settle()
    return c


def spread(tasks: list[Task]) -> list[int]:
    return sorted(Counter(t.node_id for t in tasks).values())


def test_six_replicas_are_spread_evenly(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(6))
    cluster.settle()
    assert spread(cluster.running(sid)) == [2, 2, 2]
    assert sorted(t.slot for t in cluster.running(sid)) == [1, 2, 3, 4, 5, 6]


def test_a_new_task_enters_the_log_already_assigned(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(3))
    groups = cluster.controllers.run(cluster.now)
    (group,) = [g for g in groups if g.key == sid]
    tasks = [w.record for w in group.writes if isinstance(w.record, Task)]  # type: ignore[union-attr]
    assert len(tasks) == 3
    assert all(t.node_id and t.status.state == TaskState.ASSIGNED for t in tasks)


def test_scale_down_takes_from_the_crowded_node(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(6))
    cluster.settle()
    cluster.update(sid, spec(4))
    cluster.settle()
    assert spread(cluster.running(sid)) == [1, 1, 2]
    assert len(cluster.tasks(sid, live=False)) == 4  # removed slots leave no history


def test_a_failed_task_is_replaced_after_its_delay(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(1, restart_policy=RestartPolicy(delay=5 * SECOND)))
    cluster.settle()
    first = cluster.running(sid)[0]
    cluster.fail(first)
    cluster.settle()
    (replacement,) = cluster.tasks(sid)
    assert (replacement.slot, replacement.desired_state, replacement.status.state) == (
        1,
        TaskState.READY,
        TaskState.READY,
    )
    cluster.advance(4.9)
    assert not cluster.running(sid)
    cluster.advance(0.2)
    assert [t.id for t in cluster.running(sid)] == [replacement.id]


def test_max_attempts_leaves_the_slot_ended(cluster: ModelCluster) -> None:
    cluster.outcome = lambda task: TaskState.FAILED
    sid = cluster.create(
        spec(1, restart_policy=RestartPolicy(condition="on-failure", delay=SECOND, max_attempts=2))
    )
    cluster.advance(60)
    assert cluster.tasks(sid) == []
    history = cluster.tasks(sid, live=False)
    assert [t.attempt for t in history] == [0, 1, 2]
    assert all(t.status.state == TaskState.FAILED for t in history)


def test_condition_none_never_restarts(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(1, restart_policy=RestartPolicy(condition="none")))
    cluster.settle()
    cluster.fail(cluster.running(sid)[0], TaskState.COMPLETE)
    cluster.advance(60)
    assert cluster.tasks(sid) == []
    assert len(cluster.tasks(sid, live=False)) == 1


def test_history_is_bounded(cluster: ModelCluster) -> None:
    cluster.outcome = lambda task: TaskState.FAILED
    sid = cluster.create(spec(1, restart_policy=RestartPolicy(delay=SECOND)))
    cluster.advance(60)
    assert len(cluster.tasks(sid, live=False)) == 5


def test_a_lost_node_gives_up_its_tasks_at_once(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(6))
    cluster.settle()
    cluster.frozen.add("n2")
    cluster.set_node("n2", state=NodeState.DOWN)
    cluster.settle()
    assert spread(cluster.running(sid)) == [2, 3, 3][1:] or spread(cluster.tasks(sid)) == [3, 3]
    assert all(t.node_id != "n2" for t in cluster.tasks(sid))


def test_a_lost_nodes_tasks_are_stopped_when_it_returns(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(3))
    cluster.settle()
    cluster.set_node("n2", state=NodeState.DOWN)
    cluster.settle()
    cluster.set_node("n2", state=NodeState.READY)
    cluster.settle()
    assert len(cluster.running(sid)) == 3
    old = [t for t in cluster.tasks(sid, live=False) if t.desired_state == TaskState.SHUTDOWN]
    assert [t.status.state for t in old] == [TaskState.SHUTDOWN]


def test_drain_moves_tasks_and_active_does_not_move_them_back(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(3))
    cluster.settle()
    cluster.set_node("n1", availability="drain")
    cluster.settle()
    assert {t.node_id for t in cluster.running(sid)} == {"n2", "n3"}
    cluster.set_node("n1", availability="active")
    cluster.settle()
    assert {t.node_id for t in cluster.running(sid)} == {"n2", "n3"}


def test_pause_keeps_tasks_and_takes_no_new_ones(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(3))
    cluster.settle()
    cluster.set_node("n1", availability="pause")
    cluster.update(sid, spec(6))
    cluster.settle()
    assert sorted(Counter(t.node_id for t in cluster.running(sid)).items()) == [
        ("n1", 1),
        ("n2", 3),
        ("n3", 2),
    ] or (
        sorted(Counter(t.node_id for t in cluster.running(sid)).items()) == [("n1", 1), ("n2", 2), ("n3", 3)]
    )


def test_unplaceable_tasks_say_why(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(1, placement=Placement(constraints=("node.labels.zone == a",))))
    cluster.settle()
    (task,) = cluster.tasks(sid)
    assert task.status.state == TaskState.PENDING
    assert task.status.err == "no suitable node (scheduling constraints not satisfied on 3 nodes)"
    assert [(r.code, r.nodes) for r in task.reasons] == [("constraints", 3)]


def test_pending_tasks_are_placed_when_a_fitting_node_joins(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(1, placement=Placement(constraints=("node.labels.zone == a",))))
    cluster.settle()
    cluster.add_node("n4", labels={"zone": "A"})
    cluster.settle()
    assert [t.node_id for t in cluster.running(sid)] == ["n4"]


def test_a_label_change_moves_constrained_tasks(cluster: ModelCluster) -> None:
    cluster.add_node("n4", labels={"zone": "a"})
    cluster.add_node("n5", labels={"zone": "a"})
    sid = cluster.create(
        spec(
            1,
            placement=Placement(constraints=("node.labels.zone == a",)),
            restart_policy=RestartPolicy(delay=0),
        )
    )
    cluster.settle()
    (task,) = cluster.running(sid)
    node = cluster.node(task.node_id)
    cluster.write(msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, labels={})))
    cluster.settle()
    (moved,) = cluster.running(sid)
    assert {task.node_id, moved.node_id} == {"n4", "n5"}
    old = cluster.store.tasks.get(task.id)
    assert old is not None
    assert (old.status.state, old.status.err) == (
        TaskState.REJECTED,
        "assigned node no longer meets constraints",
    )


def test_reservations_are_never_over_committed(cluster: ModelCluster) -> None:
    big = Resources(reservations=Reservations(memory_bytes=3 * GiB))
    sid = cluster.create(spec(10, resources=big))
    cluster.settle()
    assert spread(cluster.running(sid)) == [2, 2, 2]
    pending = [t for t in cluster.tasks(sid) if not t.node_id]
    assert {t.status.err for t in pending} == {"no suitable node (insufficient resources on 3 nodes)"}


def test_host_ports_are_given_once_a_node(cluster: ModelCluster) -> None:
    sid = cluster.create(
        spec(4, ports=(PortConfig(target_port=80, published_port=8080, publish_mode="host"),))
    )
    cluster.settle()
    assert spread(cluster.running(sid)) == [1, 1, 1]
    (pending,) = [t for t in cluster.tasks(sid) if not t.node_id]
    assert pending.status.err == "no suitable node (host-mode port already in use on 3 nodes)"


def test_addresses_and_ports_are_given(cluster: ModelCluster) -> None:
    net = cluster.add_network("app")
    assert (net.subnet, net.gateway) == ("10.0.0.0/24", "10.0.0.1")
    sid = cluster.create(spec(3, ports=(PortConfig(target_port=80),)), networks=(net.id,))
    cluster.settle()
    endpoint = cluster.service(sid).endpoint
    assert endpoint is not None
    assert [v.address for v in endpoint.virtual_ips] == ["10.0.0.2/24"]
    assert [p.published_port for p in endpoint.ports] == [30000]
    tasks = cluster.running(sid)
    assert sorted(t.networks[0].address for t in tasks) == ["10.0.0.3/24", "10.0.0.4/24", "10.0.0.5/24"]
    assert len({t.node_address for t in tasks}) == 3
    assert all(t.node_address.startswith("10.240.") for t in tasks)


def test_rolling_update_stop_first(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(4))
    cluster.settle()
    cluster.update(sid, spec(4, image="web:2", update=UpdateConfig(parallelism=2, delay=10 * SECOND)))
    cluster.settle()
    images = Counter(t.revision_id for t in cluster.running(sid))
    assert sorted(images.values()) == [2, 2]
    status = cluster.service(sid).update_status
    assert status is not None
    assert (status.state, status.message) == ("updating", "update in progress")
    cluster.advance(10.1)
    assert {t.revision_id for t in cluster.running(sid)} == {cluster.service(sid).revision_id}
    cluster.advance(5)
    status = cluster.service(sid).update_status
    assert status is not None
    assert (status.state, status.message) == ("completed", "update completed")


def test_start_first_never_runs_fewer(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(3))
    cluster.settle()
    cluster.update(sid, spec(3, image="web:2", update=UpdateConfig(parallelism=1, order="start-first")))
    for _ in range(40):
        cluster.step()
        assert len(cluster.running(sid)) >= 3
    cluster.advance(10)
    assert {t.revision_id for t in cluster.running(sid)} == {cluster.service(sid).revision_id}


def test_a_failing_update_pauses(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(4))
    cluster.settle()
    good = cluster.service(sid).revision_id
    cluster.outcome = lambda t: TaskState.RUNNING if t.revision_id == good else TaskState.FAILED
    cluster.update(sid, spec(4, image="bad:1", update=UpdateConfig(parallelism=1)))
    cluster.advance(60)
    status = cluster.service(sid).update_status
    assert status is not None
    assert status.state == "paused"
    assert status.message.startswith("update paused due to failure or early termination of task ")
    assert len([t for t in cluster.running(sid) if t.revision_id == good]) == 3


def test_an_update_that_changes_nothing_restarts_nothing(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(2))
    cluster.settle()
    before = [t.id for t in cluster.running(sid)]
    cluster.update(sid, spec(2, update=UpdateConfig(parallelism=3)))
    cluster.advance(20)
    assert [t.id for t in cluster.running(sid)] == before
    assert cluster.service(sid).update_status is None


def test_removing_a_service_leaves_nothing(cluster: ModelCluster) -> None:
    net = cluster.add_network("app")
    sid = cluster.create(spec(3), networks=(net.id,))
    cluster.settle()
    cluster.remove(sid)
    cluster.settle()
    assert cluster.tasks(sid, live=False) == []
    assert list(cluster.store.revisions.all()) == []
    assert not cluster.controllers.usage.addresses[net.id]


def test_large_services_are_made_in_bounded_entries(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(2500))
    sizes = []
    while cluster.controllers.next_wake() == 0:
        groups = cluster.controllers.run(cluster.now)
        sizes.append(sum(len(g.writes) for g in groups))
        cluster.commit(groups)
    assert len(cluster.tasks(sid)) == 2500
    assert max(sizes) <= 1100
