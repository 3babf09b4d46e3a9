"""Strict singletons on a paper cluster: what the leader waits for (docs/design/fencing.md)."""

from __future__ import annotations

import msgspec

from swarm_agent.objects import features
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.specs import ContainerSpec, ServiceSpec, TaskTemplate, UpdateConfig
from tests.lib.model_cluster import ModelCluster


def spec(*, singleton: bool = True) -> ServiceSpec:
    return ServiceSpec(
        name="db",
        labels={"swarm-agent.singleton": "strict"} if singleton else {},
        task_template=TaskTemplate(container_spec=ContainerSpec(image="db:1")),
    )


def lost(*, singleton: bool) -> tuple[ModelCluster, str, str]:
    """The node of its task went down ten minutes ago."""
    c = ModelCluster()
    for name in ("n1", "n2"):
        c.add_node(name)
    sid = c.create(spec(singleton=singleton))
    c.settle()
    (task,) = c.running(sid)
    c.frozen.add(task.node_id)
    c.set_node(task.node_id, state=NodeState.DOWN)
    c.settle()
    c.advance(600)
    return c, sid, task.node_id


def elsewhere(c: ModelCluster, sid: str, node: str) -> bool:
    """Whether a task on another node runs, or is to."""
    others = [t for t in c.tasks(sid) if t.node_id != node]
    return any(t.desired_state == TaskState.RUNNING or t.status.state >= TaskState.STARTING for t in others)


def test_other_tasks_of_a_lost_node_are_replaced() -> None:
    c, sid, node = lost(singleton=False)
    assert elsewhere(c, sid, node)


def test_nothing_is_started_before_the_node_is_fenced() -> None:
    c, sid, node = lost(singleton=True)
    assert not elsewhere(c, sid, node), "not even after ten minutes"
    row = c.node(node)
    c.write(msgspec.structs.replace(row, status=msgspec.structs.replace(row.status, fenced=True)))
    c.settle()
    assert elsewhere(c, sid, node)


def test_an_agent_that_knows_no_leases_gets_none() -> None:
    c = ModelCluster()
    c.write(msgspec.structs.replace(c.add_node("old"), feature_level=features.ORCHESTRATION - 1, version=0))
    sid = c.create(spec())
    c.settle()
    (task,) = c.tasks(sid)
    assert (task.node_id, task.status.err) == (
        "",
        "no suitable node (the agent is too old for a strict singleton on 1 node)",
    )
    c.write(msgspec.structs.replace(c.node("old"), feature_level=features.LEVEL))
    c.settle()
    assert [t.node_id for t in c.running(sid)] == ["old"]


def test_it_is_not_rolled_back_start_first_either() -> None:
    """The API refuses the order now; a service may have it from before."""
    c = ModelCluster()
    for name in ("n1", "n2"):
        c.add_node(name)
    order = UpdateConfig(order="start-first")
    sid = c.create(msgspec.structs.replace(spec(), rollback_config=order))
    c.settle()
    again = TaskTemplate(container_spec=ContainerSpec(image="db:2"))
    c.update(sid, msgspec.structs.replace(spec(), rollback_config=order, task_template=again))
    c.advance(60)
    (old,) = c.running(sid)
    c.frozen.add(old.node_id)  # it is told to stop, and does not say that it has
    c.roll_back(sid)
    c.advance(300)
    assert [t.id for t in c.tasks(sid, live=False) if t.status.state == TaskState.RUNNING] == [old.id]
