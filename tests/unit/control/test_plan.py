"""Dry runs and rebalancing: what would happen is what does happen, and nothing is changed by asking."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from swarm_agent.control.explain import standing
from swarm_agent.control.orchestrator.rebalance import movable, suggest
from swarm_agent.control.plan import PlanStep, forecast
from swarm_agent.control.revisions import revision_of
from swarm_agent.objects import features
from swarm_agent.objects.defaults import SECOND
from swarm_agent.objects.diff import service_diff
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import Service
from swarm_agent.objects.specs import (
    ContainerSpec,
    Empty,
    Mount,
    Placement,
    ReplicatedJob,
    Reservations,
    Resources,
    ServiceMode,
    ServiceSpec,
    TaskTemplate,
    UpdateConfig,
)
from tests.lib.model_cluster import GiB, ModelCluster
from tests.lib.specs import a_spec


def spec(replicas: int = 6, image: str = "web:1", *, order: str | None = None, **more: Any) -> ServiceSpec:
    return a_spec(replicas, image, update=UpdateConfig(parallelism=1, order=order), **more)


@pytest.fixture
def cluster() -> ModelCluster:
    c = ModelCluster.of("n1", "n2", "n3")
    c.settle()
    return c


def plan(c: ModelCluster, wanted: ServiceSpec, sid: str = "") -> tuple[PlanStep, ...]:
    now = c.store.services.get(sid)
    revision = revision_of(sid or "new", wanted, ())
    service = Service(id=sid or "new", spec=wanted, revision_id=revision.id)
    if now is not None:
        service = msgspec.structs.replace(now, spec=wanted, revision_id=revision.id, update_status=None)
    elif wanted.mode.replicated_job is not None:
        service = msgspec.structs.replace(service, job=None)
    before = (
        c.store.index,
        b"".join(c.store.snapshot()),
        {n: dict(a) for n, a in c.controllers.usage.addresses.items()},
    )
    steps = forecast(c.store, c.controllers.memory, c.now, c.id, service, revision)
    assert before == (
        c.store.index,
        b"".join(c.store.snapshot()),
        {n: dict(a) for n, a in c.controllers.usage.addresses.items()},
    )
    return steps


def where(steps: tuple[PlanStep, ...]) -> Counter[str]:
    return Counter(s.after for s in steps if s.after)


def test_a_new_service_goes_where_the_plan_says(cluster: ModelCluster) -> None:
    steps = plan(cluster, spec(7))
    assert [s.action for s in steps] == ["create"] * 7
    sid = cluster.create(spec(7))
    cluster.settle()
    assert Counter(t.node_id for t in cluster.running(sid)) == where(steps)


def test_an_update_names_what_is_replaced_and_what_is_kept(cluster: ModelCluster) -> None:
    sid = cluster.create(spec())
    cluster.settle()
    assert {s.action for s in plan(cluster, spec(), sid)} == {"keep"}
    assert Counter(s.action for s in plan(cluster, spec(8), sid)) == {"keep": 6, "create": 2}
    assert Counter(s.action for s in plan(cluster, spec(4), sid)) == {"keep": 4, "remove": 2}
    assert {s.action for s in plan(cluster, spec(image="web:2"), sid)} <= {"replace", "move"}


def test_what_finds_no_place_waits_with_its_reasons(cluster: ModelCluster) -> None:
    steps = plan(cluster, spec(4, resources=Resources(reservations=Reservations(memory_bytes=5 * GiB))))
    assert Counter(s.action for s in steps) == {"create": 3, "wait": 1}
    (stuck,) = [s for s in steps if s.action == "wait"]
    assert [r.code for r in stuck.reasons] == ["resources"]


def test_a_global_service_and_a_job(cluster: ModelCluster) -> None:
    wide = msgspec.structs.replace(spec(), mode=ServiceMode(global_=Empty()), update_config=None)
    assert [(s.place, s.action, s.after) for s in plan(cluster, wide)] == [
        (n, "create", n) for n in ("n1", "n2", "n3")
    ]
    job = msgspec.structs.replace(
        spec(),
        mode=ServiceMode(replicated_job=ReplicatedJob(max_concurrent=2, total_completions=5)),
        update_config=None,
    )
    assert [(s.place, s.action) for s in plan(cluster, job)] == [(0, "create"), (1, "create")]


def test_the_difference_of_two_specs_by_meaning() -> None:
    one = spec(3, placement=Placement(constraints=("node.role == worker",)))
    other = msgspec.structs.replace(
        spec(5, "web:2", labels={"tier": "front"}),
        task_template=TaskTemplate(
            container_spec=ContainerSpec(
                image="web:2", mounts=(Mount(type="volume", source="data", target="/data"),), init=False
            )
        ),
    )
    assert [(c.path, c.before, c.after) for c in service_diff(one, other)] == [
        ("Labels.tier", None, "front"),
        ("TaskTemplate.ContainerSpec.Image", "web:1", "web:2"),
        ("TaskTemplate.ContainerSpec.Mounts.[/data].Type", None, "volume"),
        ("TaskTemplate.ContainerSpec.Mounts.[/data].Source", None, "data"),
        ("TaskTemplate.ContainerSpec.Mounts.[/data].Target", None, "/data"),
        ("TaskTemplate.Placement.Constraints", ("node.role == worker",), None),
        ("Mode.Replicated.Replicas", 3, 5),
    ]  # fmt: skip
    assert service_diff(one, one) == ()


def test_what_never_had_a_node_lost_none(cluster: ModelCluster) -> None:
    """A successor that waited for a node, and was overtaken by an update, is nothing to wait for."""
    cluster.set_node("n3", availability="pause")
    sid = cluster.create(
        spec(2, labels={"swarm-agent.min-healthy": "2"}, placement=Placement(max_replicas=1))
    )
    cluster.settle()
    cluster.set_node("n2", availability="drain")
    cluster.settle()
    service = cluster.service(sid)
    cluster.update(
        sid, spec(2, image="web:2", labels=dict(service.spec.labels), placement=Placement(max_replicas=1))
    )
    cluster.settle()
    said = standing(cluster.store, cluster.controllers.usage, cluster.service(sid), cluster.now)
    told = [note for task in said.tasks for note in task.notes]
    assert [
        t for t in cluster.tasks(sid, live=False) if not t.node_id and t.desired_state == TaskState.SHUTDOWN
    ]
    assert not any("lost" in note for note in told), told


# --- rebalancing -------------------------------------------------------------------------------------------------------
def uneven(cluster: ModelCluster, labels: dict[str, str] | None = None, **more: Any) -> str:
    sid = cluster.create(spec(12, labels=labels, **more))
    cluster.settle()
    cluster.add_node("n4")
    cluster.settle()
    assert Counter(t.node_id for t in cluster.running(sid)) == {"n1": 4, "n2": 4, "n3": 4}
    return sid


def test_advice_says_how_many_and_why_and_moves_nothing(cluster: ModelCluster) -> None:
    sid = uneven(cluster)
    found = suggest(
        cluster.store, cluster.controllers.memory, cluster.now, cluster.id, [cluster.service(sid)]
    )
    assert Counter((s.before, s.after) for s in found) == {("n1", "n4"): 1, ("n2", "n4"): 1, ("n3", "n4"): 1}
    assert found[0].text == "4 tasks of the service on its node, 0 there"
    cluster.advance(600)
    assert "n4" not in {t.node_id for t in cluster.running(sid)}, "the default is to advise"


def test_a_wish_moves_within_its_budget_and_never_below_the_count(cluster: ModelCluster) -> None:
    sid = uneven(cluster)
    least: list[int] = []
    most: list[int] = []
    cluster.store.watch(lambda index, changes: least.append(len(cluster.running(sid))))
    cluster.store.watch(lambda index, changes: most.append(len(cluster.tasks(sid))))
    cluster.write(msgspec.structs.replace(cluster.service(sid), rebalancing=1))
    cluster.advance(60)
    assert Counter(t.node_id for t in cluster.running(sid)) == {"n1": 3, "n2": 3, "n3": 3, "n4": 3}
    assert (min(least), max(most)) == (12, 13)
    assert cluster.service(sid).rebalancing == 0


def test_on_join_by_itself_and_never_when_told_so(cluster: ModelCluster) -> None:
    sid = uneven(cluster, {"swarm-agent.rebalance": "on-join"})
    cluster.advance(120)
    assert Counter(t.node_id for t in cluster.running(sid)) == {"n1": 3, "n2": 3, "n3": 3, "n4": 3}
    other = ModelCluster()
    for name in ("n1", "n2", "n3"):
        other.add_node(name)
    held = uneven(other, {"swarm-agent.rebalance": "never"})
    other.write(msgspec.structs.replace(other.service(held), rebalancing=4))
    other.advance(120)
    assert Counter(t.node_id for t in other.running(held)) == {"n1": 4, "n2": 4, "n3": 4}


def test_a_new_leader_knows_of_a_node_that_joined_just_before(cluster: ModelCluster) -> None:
    sid = uneven(cluster, {"swarm-agent.rebalance": "on-join"})
    cluster.advance(10)
    cluster.new_leader()
    cluster.advance(10)
    assert "n4" not in {t.node_id for t in cluster.running(sid)}, "it may go again"
    cluster.advance(60)
    assert Counter(t.node_id for t in cluster.running(sid)) == {"n1": 3, "n2": 3, "n3": 3, "n4": 3}


def test_a_change_of_leaders_is_no_join(cluster: ModelCluster) -> None:
    """After one all nodes are unknown until they have said hello."""
    sid = uneven(cluster, {"swarm-agent.rebalance": "on-join"})
    cluster.write(msgspec.structs.replace(cluster.service(sid), evened=cluster.node("n4").active_since))
    cluster.advance(60)
    since = {n.id: n.active_since for n in cluster.store.nodes.all()}
    assert all(since.values())
    for state in (NodeState.UNKNOWN, NodeState.READY):
        for name in since:
            cluster.set_node(name, state=state)
        cluster.new_leader()
        cluster.advance(120)
    assert {n.id: n.active_since for n in cluster.store.nodes.all()} == since
    assert "n4" not in {t.node_id for t in cluster.running(sid)}


def test_a_join_is_written_down_once_the_level_allows_it() -> None:
    old = ModelCluster(level=features.ORCHESTRATION - 1)
    old.add_node("n1")
    old.settle()
    assert old.node("n1").active_since == 0
    record = old.store.cluster
    assert record is not None
    old.write(msgspec.structs.replace(record, feature_level=features.ORCHESTRATION))
    old.settle()
    assert old.node("n1").active_since == old.now
    old.set_node("n1", availability="pause")
    old.settle()
    assert old.node("n1").active_since == 0


def test_the_clock_of_the_next_leader_may_be_behind(cluster: ModelCluster) -> None:
    sid = uneven(cluster, {"swarm-agent.rebalance": "on-join"})
    cluster.advance(60)
    cluster.set_node("n4", availability="drain")
    cluster.advance(60)
    cluster.now -= 100 * SECOND
    cluster.new_leader()
    cluster.set_node("n4", availability="active")
    cluster.advance(200)
    assert Counter(t.node_id for t in cluster.running(sid)) == {"n1": 3, "n2": 3, "n3": 3, "n4": 3}


def test_continuous_goes_on_when_a_nodes_failures_are_forgotten(cluster: ModelCluster) -> None:
    """Failures speak against a node for five minutes; nothing else happens afterwards."""
    sick = {"n2"}
    cluster.outcome = lambda task: TaskState.FAILED if task.node_id in sick else TaskState.RUNNING
    sid = cluster.create(a_spec(4, labels={"swarm-agent.rebalance": "continuous"}))
    cluster.advance(120)
    sick.clear()
    cluster.advance(60)
    assert len(cluster.running(sid)) == 4
    crowd = Counter(t.node_id for t in cluster.running(sid))
    assert max(crowd.values()) - min(crowd.get(n, 0) for n in ("n1", "n2", "n3")) > 1, crowd
    cluster.advance(400)
    crowd = Counter(t.node_id for t in cluster.running(sid))
    assert max(crowd.values()) - min(crowd.get(n, 0) for n in ("n1", "n2", "n3")) <= 1, crowd


def test_continuous_rests_when_nothing_is_left_to_move(cluster: ModelCluster) -> None:
    sid = uneven(cluster, {"swarm-agent.rebalance": "continuous"})
    cluster.advance(300)
    assert Counter(t.node_id for t in cluster.running(sid)) == {"n1": 3, "n2": 3, "n3": 3, "n4": 3}
    index = cluster.store.index
    cluster.advance(600)
    assert cluster.store.index == index


def test_a_service_that_is_told_later_to_even_itself_out_does(cluster: ModelCluster) -> None:
    sid = uneven(cluster)
    cluster.advance(600)
    service = cluster.service(sid)
    labels = {"swarm-agent.rebalance": "continuous"}
    cluster.write(msgspec.structs.replace(service, spec=msgspec.structs.replace(service.spec, labels=labels)))
    cluster.advance(60)
    assert Counter(t.node_id for t in cluster.running(sid)) == {"n1": 3, "n2": 3, "n3": 3, "n4": 3}


@pytest.mark.parametrize(
    ("labels", "source", "said"),
    [
        ({}, "data-{{.Task.Slot}}", "each task has local volumes of its own, which would stay behind"),
        ({"swarm-agent.volume-affinity": "ignore"}, "data-{{.Task.Slot}}", ""),
        ({}, "data", ""),
    ],
)
def test_data_of_their_own_keeps_tasks_where_they_are(
    cluster: ModelCluster, labels: dict[str, str], source: str, said: str
) -> None:
    container = ContainerSpec(image="db:1", mounts=(Mount(type="volume", source=source, target="/data"),))
    wanted = spec(labels=labels)
    template = msgspec.structs.replace(wanted.task_template, container_spec=container)
    sid = cluster.create(msgspec.structs.replace(wanted, task_template=template))
    assert movable(cluster.service(sid)) == said


def test_a_new_leader_goes_on_rebalancing(cluster: ModelCluster) -> None:
    sid = uneven(cluster, order="stop-first")
    cluster.write(msgspec.structs.replace(cluster.service(sid), rebalancing=1))
    for _ in range(60):
        cluster.step()
        cluster.new_leader()
        cluster.now += SECOND
    cluster.advance(60)
    assert Counter(t.node_id for t in cluster.running(sid)) == {"n1": 3, "n2": 3, "n3": 3, "n4": 3}


def test_nothing_moves_to_a_node_that_does_not_fit(cluster: ModelCluster) -> None:
    sid = uneven(cluster, placement=Placement(constraints=("node.hostname != n4",)))
    assert (
        suggest(cluster.store, cluster.controllers.memory, cluster.now, cluster.id, [cluster.service(sid)])
        == ()
    )
