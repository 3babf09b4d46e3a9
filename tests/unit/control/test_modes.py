"""Global services, jobs and timetables on a paper cluster (behaviour.md 9.5 to 9.8)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from swarm_agent.control.orchestrator import jobs
from swarm_agent.objects.defaults import SECOND
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import Task
from swarm_agent.objects.specs import (
    Empty,
    Placement,
    ReplicatedJob,
    Reservations,
    Resources,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    UpdateConfig,
)
from swarm_agent.store import Delete, Group
from tests.lib.model_cluster import GiB, ModelCluster
from tests.lib.optional import unwrap
from tests.lib.specs import a_spec

GLOBAL = ServiceMode(global_=Empty())
GLOBAL_JOB = ServiceMode(global_job=Empty())


def spec(mode: ServiceMode, image: str = "tool:1", **more: Any) -> ServiceSpec:
    return a_spec(image=image, name="tool", mode=mode, **more)


def job(concurrent: int, total: int) -> ServiceMode:
    return ServiceMode(replicated_job=ReplicatedJob(max_concurrent=concurrent, total_completions=total))


@pytest.fixture
def cluster() -> ModelCluster:
    c = ModelCluster.of("n1", "n2", "n3")
    c.settle()
    return c


def where(tasks: list[Task]) -> list[str]:
    return sorted(t.node_id for t in tasks)


# --- global --------------------------------------------------------------------------------------------------------
def test_one_on_every_node_and_on_those_that_come(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(GLOBAL))
    cluster.settle()
    assert where(cluster.running(sid)) == ["n1", "n2", "n3"]
    assert all(
        t.slot == 0 and t.preset == t.node_id and t.name.startswith(f"tool.{t.node_id}.")
        for t in cluster.running(sid)
    )
    cluster.add_node("n4")
    cluster.settle()
    assert where(cluster.running(sid)) == ["n1", "n2", "n3", "n4"]


def test_only_where_the_constraints_hold(cluster: ModelCluster) -> None:
    cluster.add_node("n4", labels={"disk": "ssd"})
    sid = cluster.create(spec(GLOBAL, placement=Placement(constraints=("node.labels.disk == ssd",))))
    cluster.settle()
    assert where(cluster.running(sid)) == ["n4"]
    node = cluster.node("n2")
    cluster.write(
        msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, labels={"disk": "ssd"}))
    )
    cluster.settle()
    assert where(cluster.running(sid)) == ["n2", "n4"]
    node = cluster.node("n4")
    cluster.write(msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, labels={})))
    cluster.settle()
    assert where(cluster.running(sid)) == ["n2"]


def test_drain_and_loss_end_it_there_and_nowhere_else(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(GLOBAL))
    cluster.settle()
    before = {t.id for t in cluster.running(sid)}
    cluster.set_node("n1", availability="drain")
    cluster.set_node("n2", state=NodeState.DOWN)
    cluster.settle()
    assert where(cluster.running(sid)) == ["n3"]
    assert len(cluster.tasks(sid)) == 1
    cluster.set_node("n1", availability="active")
    cluster.set_node("n2", state=NodeState.READY)
    cluster.settle()
    assert where(cluster.running(sid)) == ["n1", "n2", "n3"]
    assert len({t.id for t in cluster.running(sid)} & before) == 1


def test_a_paused_node_keeps_its_task_and_gets_no_new_one(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(GLOBAL))
    cluster.settle()
    cluster.set_node("n1", availability="pause")
    cluster.update(sid, spec(GLOBAL, "tool:2"))
    cluster.advance(60)
    images = {t.node_id: cluster.image_of(t) for t in cluster.running(sid)}
    assert images == {"n1": "tool:1", "n2": "tool:2", "n3": "tool:2"}
    cluster.set_node("n1", availability="active")
    cluster.advance(60)
    assert {t.revision_id for t in cluster.running(sid)} == {cluster.service(sid).revision_id}


def test_a_node_in_trouble_keeps_its_tasks_gets_no_new_ones_and_says_why(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(GLOBAL))
    cluster.settle()

    def trouble(text: str) -> None:
        node = cluster.node("n1")
        told = msgspec.structs.replace(node.description, trouble=text)
        cluster.write(msgspec.structs.replace(node, description=told))

    trouble("No space left on device: /state")
    cluster.settle()
    assert where(cluster.running(sid)) == ["n1", "n2", "n3"]
    (lost,) = [t for t in cluster.running(sid) if t.node_id == cluster.node("n1").id]
    cluster.fail(lost)
    cluster.advance(60)
    assert where(cluster.running(sid)) == ["n2", "n3"]
    (waiting,) = [t for t in cluster.tasks(sid) if t.status.state == TaskState.PENDING]
    assert len(cluster.tasks(sid, live=False)) == 4  # no loop of tasks that end as soon as they begin
    assert waiting.reasons[0].best == "n1 is unable to take tasks (No space left on device: /state)"
    trouble("")
    cluster.settle()
    assert where(cluster.running(sid)) == ["n1", "n2", "n3"]


def test_a_removed_nodes_tasks_are_forgotten(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(GLOBAL))
    cluster.settle()
    node = cluster.node("n1")
    assert cluster.commit((Group("n1", (Delete("node", "n1", node.version),)),)) == (True,)
    cluster.settle()
    assert where(cluster.tasks(sid, live=False)) == ["n2", "n3"]


def test_a_global_task_that_does_not_fit_says_so_for_its_node(cluster: ModelCluster) -> None:
    cluster.add_node("n4", memory=GiB)
    sid = cluster.create(spec(GLOBAL, resources=Resources(reservations=Reservations(memory_bytes=2 * GiB))))
    cluster.settle()
    assert where(cluster.running(sid)) == ["n1", "n2", "n3"]
    (waiting,) = [t for t in cluster.tasks(sid) if not t.node_id]
    assert (waiting.preset, waiting.status.state) == ("n4", TaskState.PENDING)
    assert "insufficient resources on 1 node" in waiting.status.err


def test_a_failed_one_comes_back_on_its_node(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(GLOBAL))
    cluster.settle()
    lost = next(t for t in cluster.running(sid) if t.node_id == "n2")
    cluster.fail(lost)
    cluster.advance(10)
    assert where(cluster.running(sid)) == ["n1", "n2", "n3"]


def test_updates_go_node_by_node(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(GLOBAL))
    cluster.settle()
    cluster.update(sid, spec(GLOBAL, "tool:2", update=UpdateConfig(parallelism=1, delay=10 * SECOND)))
    cluster.settle()
    new = cluster.service(sid).revision_id
    assert sum(t.revision_id == new for t in cluster.running(sid)) == 1
    cluster.advance(60)
    assert {t.revision_id for t in cluster.running(sid)} == {new}
    assert unwrap(cluster.service(sid).update_status).state == "completed"


# --- jobs ------------------------------------------------------------------------------------------------------------
def complete(cluster: ModelCluster, sid: str, count: int | None = None) -> int:
    running = cluster.running(sid)[:count]
    for task in running:
        cluster.fail(task, TaskState.COMPLETE)
    cluster.settle()
    return len(running)


def test_so_many_at_a_time_until_all_are_complete(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(job(2, 5)))
    cluster.settle()
    assert [t.slot for t in cluster.running(sid)] == [0, 1]
    assert all(t.desired_state == TaskState.COMPLETE for t in cluster.running(sid))
    assert complete(cluster, sid, 1) == 1
    assert [t.slot for t in cluster.running(sid)] == [1, 2]
    while complete(cluster, sid):
        pass
    done = cluster.tasks(sid, live=False)
    assert [(t.slot, t.status.state) for t in done] == [(n, TaskState.COMPLETE) for n in range(5)]


def test_a_failed_job_task_is_tried_again_in_its_slot(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(job(1, 2)))
    cluster.settle()
    cluster.fail(cluster.running(sid)[0])
    cluster.advance(10)
    assert [t.slot for t in cluster.running(sid)] == [0]
    assert cluster.running(sid)[0].attempt == 1


def test_a_job_whose_policy_forbids_another_try_gives_the_slot_up(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(job(1, 2), restart_policy=RestartPolicy(condition="none")))
    cluster.settle()
    cluster.fail(cluster.running(sid)[0])
    cluster.advance(60)
    assert [t.slot for t in cluster.running(sid)] == [1]
    complete(cluster, sid)
    assert not cluster.running(sid)


def test_an_update_runs_a_job_again(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(job(2, 2)))
    cluster.settle()
    complete(cluster, sid, 1)
    cluster.update(sid, spec(job(2, 2), "tool:2"))
    cluster.settle()
    running = cluster.running(sid)
    assert [(t.slot, t.iteration) for t in running] == [(0, 1), (1, 1)]
    assert not [t for t in cluster.tasks(sid, live=False) if t.iteration == 0 and not t.status.state.terminal]


def test_a_run_that_is_over_is_not_tried_again_beside_the_present_one(cluster: ModelCluster) -> None:
    """A failed task of an earlier run waits for its second attempt, in a slot the present run does not use yet."""
    cluster.prepares = lambda task: cluster.image_of(task) != "missing:1"
    sid = cluster.create(spec(job(4, 4), "missing:1", restart_policy=RestartPolicy(delay=5 * SECOND)))
    cluster.advance(6)  # the second attempts failed too, and their delays run
    cluster.update(sid, spec(job(2, 4), "tool:1"))
    for _ in range(40):
        cluster.advance(0.5)
        iteration = unwrap(cluster.service(sid).job).iteration
        at_once = [t for t in cluster.tasks(sid) if t.iteration == iteration and not t.status.state.terminal]
        assert len(at_once) <= 2, [(t.slot, t.cause, t.status.state.word) for t in at_once]
    assert {t.iteration for t in cluster.tasks(sid)} == {iteration}


def test_a_global_job_runs_once_on_every_node_and_on_those_that_come(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(GLOBAL_JOB))
    cluster.settle()
    assert where(cluster.running(sid)) == ["n1", "n2", "n3"]
    complete(cluster, sid)
    cluster.advance(60)
    assert not cluster.running(sid)
    cluster.add_node("n4")
    cluster.settle()
    assert where(cluster.running(sid)) == ["n4"]


def test_a_job_on_a_lost_node_is_done_elsewhere(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(job(1, 1)))
    cluster.settle()
    home = cluster.running(sid)[0].node_id
    cluster.set_node(home, state=NodeState.DOWN)
    cluster.settle()
    assert [t.node_id != home for t in cluster.running(sid)] == [True]


def test_complete_tasks_of_the_present_run_are_never_forgotten(cluster: ModelCluster) -> None:
    sid = cluster.create(spec(job(1, 8)))
    cluster.settle()
    for _ in range(8):
        complete(cluster, sid)
    cluster.new_leader()
    cluster.settle()
    assert not cluster.running(sid)
    assert len(cluster.tasks(sid, live=False)) == 8


def test_a_node_is_lost_in_the_second_run(cluster: ModelCluster) -> None:
    """What the first run completed in the place was taken for what stands in for the lost task."""
    sid = cluster.create(spec(job(1, 1)))
    cluster.settle()
    complete(cluster, sid)
    cluster.write(jobs.again(cluster.service(sid), cluster.now))
    cluster.settle()
    (task,) = cluster.running(sid)
    cluster.frozen.add(task.node_id)
    cluster.set_node(task.node_id, state=NodeState.DOWN)
    cluster.advance(60)
    assert [t.iteration for t in cluster.running(sid) if t.id != task.id] == [1]


def test_a_task_that_was_lost_and_has_done_its_work_needs_none_beside_it(cluster: ModelCluster) -> None:
    """Else the next place would make more run at once than may."""
    sid = cluster.create(spec(job(1, 3)))
    cluster.settle()
    (lost,) = cluster.running(sid)
    cluster.frozen.add(lost.node_id)
    cluster.set_node(lost.node_id, state=NodeState.DOWN)
    cluster.settle()
    (other,) = [t for t in cluster.running(sid) if t.id != lost.id]
    cluster.set_node(lost.node_id, state=NodeState.READY)
    cluster.settle()
    cluster.fail(lost, TaskState.COMPLETE)
    cluster.frozen.clear()
    most = 0
    for _ in range(20):
        alive = [t for t in cluster.tasks(sid) if not t.status.state.terminal]
        most = max(most, len(alive))
        if not cluster.step():
            break
    assert most == 1
    assert [t.slot for t in cluster.running(sid)] == [1]
    gone = cluster.store.tasks.get(other.id)
    assert gone is not None
    assert gone.status.state == TaskState.SHUTDOWN


# --- timetables --------------------------------------------------------------------------------------------------------
def scheduled(overlap: str = "forbid") -> ServiceSpec:
    return spec(
        job(1, 1), labels={"swarm-agent.schedule": "*/10 * * * *", "swarm-agent.schedule.overlap": overlap}
    )


def test_a_scheduled_job_waits_for_its_time_and_runs_each_time(cluster: ModelCluster) -> None:
    sid = cluster.create(scheduled())
    cluster.settle()
    assert not cluster.tasks(sid, live=False)
    for run in (1, 2, 3):
        cluster.advance(600)
        assert [t.iteration for t in cluster.running(sid)] == [run]
        complete(cluster, sid)


def test_a_run_that_is_due_while_the_last_goes_on_is_skipped(cluster: ModelCluster) -> None:
    sid = cluster.create(scheduled())
    cluster.advance(1900)
    assert [t.iteration for t in cluster.running(sid)] == [1]
    assert unwrap(cluster.service(sid).job).skipped == 2


def test_or_takes_its_place(cluster: ModelCluster) -> None:
    sid = cluster.create(scheduled("replace"))
    cluster.advance(1900)
    assert [t.iteration for t in cluster.running(sid)] == [3]


def test_a_leader_that_comes_late_makes_up_for_one_run(cluster: ModelCluster) -> None:
    sid = cluster.create(scheduled())
    cluster.settle()
    cluster.now += 3600 * SECOND
    cluster.new_leader()
    cluster.settle()
    assert [t.iteration for t in cluster.running(sid)] == [1]
    assert unwrap(cluster.service(sid).job).skipped == 0
