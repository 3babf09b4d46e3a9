"""Where a task goes and why it does not, rule by rule."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from swarm_agent.control.explain import TaskReport, standing
from swarm_agent.control.scheduler.rejections import explain
from swarm_agent.objects.defaults import SECOND
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import Generic, Network, Reason, Task
from swarm_agent.objects.specs import (
    ContainerSpec,
    DriverSpec,
    GenericDiscrete,
    GenericResource,
    Mount,
    NetworkCreate,
    Placement,
    Platform,
    PortConfig,
    Preference,
    Replicated,
    Reservations,
    Resources,
    ServiceMode,
    ServiceSpec,
    SpreadOver,
    TaskTemplate,
    VolumeOptions,
)
from tests.lib.model_cluster import ModelCluster
from tests.lib.scheduler_fixture import GiB, SchedulerFixture

replace = msgspec.structs.replace
MiB = 1 << 20
HTTP = PortConfig(target_port=80, published_port=8080, publish_mode="host")
DATA = ContainerSpec(image="db:1", mounts=(Mount(type="volume", source="data", target="/data"),))


@pytest.fixture
def desk() -> SchedulerFixture:
    desk = SchedulerFixture()
    for name in ("n1", "n2", "n3"):
        desk.node(name)
    return desk


def reserving(**what: Any) -> Resources:
    return Resources(reservations=Reservations(**what))


def generic(kind: str, count: int) -> Resources:
    wanted = GenericResource(discrete_resource_spec=GenericDiscrete(kind=kind, value=count))
    return reserving(generic_resources=(wanted,))


def over(*descriptors: str, **more: Any) -> Placement:
    wanted = tuple(Preference(spread=SpreadOver(spread_descriptor=d)) for d in descriptors)
    return Placement(preferences=wanted, **more)


def nodes(tasks: list[Task]) -> list[str]:
    return sorted(t.node_id for t in tasks)


def why(task: Task | TaskReport) -> list[tuple[str, int, str]]:
    return [(r.code, r.nodes, r.best) for r in task.reasons]


# --- filters, in Docker's words ---------------------------------------------------------------------------------------------
def test_nodes_that_are_away_are_counted(desk: SchedulerFixture) -> None:
    desk.node("n1", state=NodeState.DOWN)
    desk.node("n2", availability="drain")
    desk.node("n3", availability="pause")
    desk.service("web")
    (task,) = desk.place("web")
    assert task.status.err == "no suitable node (3 nodes not available for new tasks)"
    assert task.status.message == "pending task scheduling"
    assert why(task) == [("ready", 3, "n3 is paused")]


def test_without_nodes_there_is_nothing_to_explain() -> None:
    desk = SchedulerFixture()
    desk.service("web")
    (task,) = desk.place("web")
    assert (task.status.err, task.reasons) == ("no suitable node", ())


def test_missing_memory_is_named(desk: SchedulerFixture) -> None:
    desk.service("big", resources=reserving(memory_bytes=7 * GiB + 700 * MiB))
    desk.service("huge", resources=reserving(memory_bytes=512 * MiB))
    assert nodes(desk.place("big", 3)) == ["n1", "n2", "n3"]
    (task,) = desk.place("huge")
    assert task.status.err == "no suitable node (insufficient resources on 3 nodes)"
    assert why(task) == [("resources", 3, "needs 512 MiB of memory, most free is 324 MiB on n1")]


def test_cpus_are_named_by_the_node_that_misses_least(desk: SchedulerFixture) -> None:
    desk.node("n2", cpus=6)
    desk.service("web", resources=reserving(nano_cpus=8 * SECOND))
    (task,) = desk.place("web")
    assert why(task) == [("resources", 3, "needs 8 CPUs, most free is 6 on n2")]


def test_a_constraint_that_is_missed_is_named(desk: SchedulerFixture) -> None:
    desk.node("n2", labels={"disk": "hdd", "zone": "a"})
    desk.service("web", placement=Placement(constraints=("node.labels.disk==ssd", "node.labels.zone==a")))
    (task,) = desk.place("web")
    assert task.status.err == "no suitable node (scheduling constraints not satisfied on 3 nodes)"
    assert why(task) == [("constraints", 3, "node.labels.disk is hdd on n2, wanted ssd")]


def test_plugins(desk: SchedulerFixture) -> None:
    desk.node("n2", plugins=(("Volume", "local"), ("Volume", "rexray:latest"), ("Log", "json-file")))
    options = VolumeOptions(driver_config=DriverSpec(name="rexray"))
    mounts = (Mount(type="volume", source="v", target="/v", volume_options=options),)
    desk.service("web", container_spec=ContainerSpec(image="a", mounts=mounts))
    assert nodes(desk.place("web", 2)) == ["n2", "n2"]
    desk.service("logs", log_driver=DriverSpec(name="gelf"))
    assert nodes(desk.place("logs", 2)) == ["n1", "n3"], "an engine that tells of no log drivers is not asked"
    desk.service("none", log_driver=DriverSpec(name="none"))
    assert nodes(desk.place("none", 3)) == ["n1", "n2", "n3"]


def test_network_plugins(desk: SchedulerFixture) -> None:
    desk.write(
        Network(
            id="net",
            spec=NetworkCreate(name="net", driver="weave"),
            subnet="10.9.0.0/24",
            gateway="10.9.0.1",
            vni=5000,
        )
    )
    service = desk.service("web")
    revision = desk.store.revisions.get(service.revision_id)
    assert revision is not None
    found = explain(desk.store, desk.usage, replace(revision, id="x", networks=("net",)), service)
    assert found.reasons == (
        Reason(
            code="plugins", nodes=3, text="missing plugin on 3 nodes", best="n1 has no network plugin weave"
        ),
    )


def test_platforms_are_compared_by_their_usual_names(desk: SchedulerFixture) -> None:
    desk.node("n2", platform=("linux", "aarch64"))
    desk.service("arm", placement=Placement(platforms=(Platform(os="linux", architecture="arm64"),)))
    assert nodes(desk.place("arm", 2)) == ["n2", "n2"]
    desk.service("any", placement=Placement(platforms=(Platform(),)))
    assert nodes(desk.place("any", 3)) == ["n1", "n2", "n3"]
    desk.service("z", placement=Placement(platforms=(Platform(os="linux", architecture="s390x"),)))
    (task,) = desk.place("z")
    assert task.status.err == "no suitable node (unsupported platform on 3 nodes)"
    assert why(task) == [("platform", 3, "n1 is linux/amd64, wanted linux/s390x")]


def test_a_host_port_is_given_once_a_node_and_one_without_a_number_takes_none(desk: SchedulerFixture) -> None:
    desk.service("web", ports=(HTTP,))
    desk.service(
        "other",
        ports=(HTTP, PortConfig(target_port=1, published_port=8080, protocol="udp", publish_mode="host")),
    )
    desk.service("free", ports=(PortConfig(target_port=80, publish_mode="host"),))
    assert nodes(desk.place("web", 3)) == ["n1", "n2", "n3"]
    (task,) = desk.place("other")
    assert task.status.err == "no suitable node (host-mode port already in use on 3 nodes)"
    assert why(task) == [("ports", 3, "8080/tcp is taken on n1")]
    assert "" not in nodes(desk.place("free", 4))


def test_max_replicas_per_node(desk: SchedulerFixture) -> None:
    desk.service("web", placement=Placement(max_replicas=2))
    placed = desk.place("web", 7)
    assert nodes(placed) == ["", "n1", "n1", "n2", "n2", "n3", "n3"]
    (task,) = [t for t in placed if not t.node_id]
    assert task.status.err == "no suitable node (max replicas per node limit exceed)"
    assert why(task) == [("max-replicas", 3, "n1 has 2 of at most 2")]


def test_each_node_is_counted_by_its_first_filter_and_the_largest_count_comes_first(
    desk: SchedulerFixture,
) -> None:
    desk.node("n1", state=NodeState.DOWN)
    desk.node("n2", labels={"a": "b"}, cpus=1)
    desk.node("n4", labels={"a": "b"}, cpus=1)
    desk.service(
        "web",
        placement=Placement(constraints=("node.labels.a==b",)),
        resources=reserving(nano_cpus=2 * SECOND),
    )
    (task,) = desk.place("web")
    assert task.status.err == (
        "no suitable node (insufficient resources on 2 nodes; 1 node not available for new tasks; "
        "scheduling constraints not satisfied on 1 node)"
    )


def test_a_node_without_an_address_left_is_passed_over(desk: SchedulerFixture) -> None:
    node = desk.store.nodes.get("n1")
    assert node is not None
    desk.write(replace(node, number=0))
    desk.service("web", ports=(PortConfig(target_port=80),))
    assert nodes(desk.place("web", 4)) == ["n2", "n2", "n3", "n3"]


# --- generic resources ----------------------------------------------------------------------------------------------------------
def test_names_are_picked_from_what_is_free_and_given_back(desk: SchedulerFixture) -> None:
    desk.node("n1", generic=tuple(Generic(kind="gpu", name=f"/dev/gpu{i}") for i in range(3)))
    desk.service("one", resources=generic("gpu", 1))
    desk.service("two", resources=generic("gpu", 2))
    (first,) = desk.place("one")
    assert first.generic == (Generic(kind="gpu", name="/dev/gpu0"),)
    (second,) = desk.place("two")
    assert second.generic == (Generic(kind="gpu", name="/dev/gpu1"), Generic(kind="gpu", name="/dev/gpu2"))
    (third,) = desk.place("one")
    assert third.status.err == "no suitable node (insufficient resources on 3 nodes)"
    assert third.reasons[0].best == "needs 1 gpu, most free is 0 on n1"
    desk.end(first)
    desk.run()
    assert desk.task(third).generic == first.generic


def test_counts_are_counted(desk: SchedulerFixture) -> None:
    desk.node("n2", generic=(Generic(kind="seat", count=3),))
    desk.service("web", resources=generic("seat", 2))
    placed = desk.place("web", 2)
    assert nodes(placed) == ["", "n2"]
    assert [t.generic for t in placed if t.node_id] == [(Generic(kind="seat", count=2),)]


# --- ranking ------------------------------------------------------------------------------------------------------------------------
def test_the_service_is_spread_first_then_all_tasks(desk: SchedulerFixture) -> None:
    desk.service("web")
    desk.service("api")
    desk.place("web", 4)
    assert nodes(desk.place("api", 2)) == ["n2", "n3"], "n1 has two tasks"
    assert Counter(nodes(desk.place("api", 1))) == Counter(["n1"]), "but none of this service"


def test_single_tasks_go_where_groups_of_them_would(desk: SchedulerFixture) -> None:
    """Also with more nodes than are looked at one by one, and some that are away."""
    for number in range(20):
        desk.node(f"m{number:02}")
    together = SchedulerFixture()
    for node in desk.store.nodes.all():
        together.node(node.id)
    for each in (desk, together):
        each.service("web", placement=Placement(max_replicas=3))
        each.place("web", 22)
        each.node("m03", state=NodeState.DOWN)
    alone = [task.node_id for _ in range(9) for task in desk.place("web")]
    assert alone == [t.node_id for t in together.place("web", 9)]
    assert alone[0] == "n3", "the one node without"


def test_a_node_where_it_keeps_failing_comes_last_for_five_minutes(desk: SchedulerFixture) -> None:
    desk.service("web")
    for _ in range(5):
        (task,) = desk.tasks("web")
        desk.write(replace(task, node_id="n1", status=replace(task.status, state=TaskState.RUNNING)))
        desk.end(task)
    assert nodes(desk.place("web", 4)) == ["n2", "n2", "n3", "n3"]
    desk.now += 301 * SECOND
    assert nodes(desk.place("web", 2)) == ["n1", "n1"], (
        "it is forgiven, although nothing about the node changed"
    )


def test_packing_fills_the_fullest_node_that_fits(desk: SchedulerFixture) -> None:
    desk.service("web", labels={"placement.strategy": "binpack"}, resources=reserving(memory_bytes=3 * GiB))
    assert Counter(nodes(desk.place("web", 5))) == {"n1": 2, "n2": 2, "n3": 1}
    desk.service("small", labels={"placement.strategy": "binpack"}, resources=reserving(memory_bytes=GiB))
    assert nodes(desk.place("small", 2)) == ["n1", "n1"]


# --- spread preferences -------------------------------------------------------------------------------------------------------------
def test_zones_are_even_although_one_has_more_nodes(desk: SchedulerFixture) -> None:
    desk.node("n1", labels={"zone": "a"})
    for name in ("n2", "n3", "n4"):
        desk.node(name, labels={"zone": "b"})
    desk.service("web", placement=over("node.labels.zone"))
    assert Counter(nodes(desk.place("web", 6))) == {"n1": 3, "n2": 1, "n3": 1, "n4": 1}


def test_a_missing_label_is_a_branch_of_its_own(desk: SchedulerFixture) -> None:
    desk.node("n1", labels={"zone": "a"})
    desk.service("web", placement=over("node.labels.zone"))
    assert Counter(nodes(desk.place("web", 4))) == {"n1": 2, "n2": 1, "n3": 1}


def test_a_tree_is_even_at_every_level() -> None:
    desk = SchedulerFixture()
    for zone, rack, name in (("a", "1", "n1"), ("a", "2", "n2"), ("a", "2", "n3"), ("b", "1", "n4")):
        desk.node(name, labels={"zone": zone}, engine_labels={"rack": rack})
    desk.service("web", placement=over("node.labels.zone", "engine.labels.rack"))
    assert Counter(nodes(desk.place("web", 8))) == {"n1": 2, "n2": 1, "n3": 1, "n4": 4}


def test_a_full_branch_gives_its_share_to_the_others(desk: SchedulerFixture) -> None:
    desk.node("n1", labels={"zone": "a"}, memory=GiB)
    desk.service("web", placement=over("node.labels.zone"), resources=reserving(memory_bytes=GiB))
    assert Counter(nodes(desk.place("web", 5))) == {"n1": 1, "n2": 2, "n3": 2}


def test_a_branch_counts_tasks_on_nodes_that_take_no_more(desk: SchedulerFixture) -> None:
    desk.node("n1", labels={"zone": "a"})
    desk.node("n2", labels={"zone": "a"})
    desk.service("web", placement=over("node.labels.zone"))
    desk.place("web", 4)
    desk.node("n1", labels={"zone": "a"}, availability="pause")
    assert nodes(desk.place("web", 2)) == ["n2", "n3"]


# --- affinity -----------------------------------------------------------------------------------------------------------------------
def test_beside_and_apart(desk: SchedulerFixture) -> None:
    desk.service("db", placement=Placement(constraints=("node.id==n2",)))
    desk.service("web", labels={"placement.affinity": "service==db"})
    desk.service("backup", labels={"placement.affinity": "service!=db"})
    desk.service("loner", labels={"placement.affinity": "service!=loner"})
    desk.place("db")
    assert nodes(desk.place("web", 3)) == ["n2"] * 3
    assert nodes(desk.place("backup", 2)) == ["n1", "n3"]
    placed = desk.place("loner", 4)
    assert nodes(placed) == ["", "n1", "n2", "n3"]
    (task,) = [t for t in placed if not t.node_id]
    assert task.status.err == "no suitable node (affinity not satisfied on 3 nodes)"
    assert why(task) == [("affinity", 3, "a task of service loner is on n1")]


def test_a_service_that_keeps_together_may_begin_anywhere(desk: SchedulerFixture) -> None:
    desk.service("web", labels={"placement.affinity": "service==web"})
    assert len(set(nodes(desk.place("web", 4)))) == 1


def test_wishes_yield(desk: SchedulerFixture) -> None:
    desk.service("db", placement=Placement(constraints=("node.id==n2",)))
    desk.place("db")
    desk.service("near", labels={"placement.affinity": "service==~db"}, placement=Placement(max_replicas=2))
    assert Counter(nodes(desk.place("near", 4))) == {"n2": 2, "n1": 1, "n3": 1}
    desk.service("far", labels={"placement.affinity": "service!=~db"}, placement=Placement(max_replicas=1))
    assert nodes(desk.place("far", 3)) == ["n1", "n2", "n3"]


def a_paper_service(name: str, labels: dict[str, str], **template: Any) -> ServiceSpec:
    return ServiceSpec(
        name=name,
        labels=labels,
        task_template=TaskTemplate(
            container_spec=template.pop("container_spec", ContainerSpec(image="a:1")), **template
        ),
        mode=ServiceMode(replicated=Replicated(replicas=1)),
    )


def test_who_waits_for_company_is_placed_when_it_comes() -> None:
    cluster = ModelCluster()
    cluster.add_node("n1")
    cluster.add_node("n2")
    web = cluster.create(a_paper_service("web", {"swarm-agent.placement.affinity": "service==db"}))
    cluster.settle()
    (task,) = cluster.tasks(web)
    assert [r.best for r in task.reasons] == ["no task of service that does not exist on n1"]
    db = cluster.create(a_paper_service("db", {}, placement=Placement(constraints=("node.id==n2",))))
    cluster.settle()
    assert [t.node_id for t in cluster.running(db)] == [t.node_id for t in cluster.running(web)] == ["n2"]


# --- volumes ------------------------------------------------------------------------------------------------------------------------
def test_the_node_with_the_volume_is_preferred_and_another_is_warned_of(desk: SchedulerFixture) -> None:
    desk.node("n3", volumes=("data",))
    desk.service("db", container_spec=DATA)
    assert nodes(desk.place("db", 2)) == ["n3", "n3"]
    desk.node("n3", volumes=("data",), availability="pause")
    (task,) = desk.place("db")
    assert task.node_id == "n1"
    assert task.reasons == (
        Reason(
            code="volume-moved",
            nodes=0,
            text='volume "data" is on node n3, which is paused, the task starts without it on n1',
        ),
    )


def test_a_volume_nobody_holds_binds_nobody(desk: SchedulerFixture) -> None:
    desk.service("db", container_spec=DATA, labels={"volume-affinity": "require"})
    assert nodes(desk.place("db", 3)) == ["n1", "n2", "n3"]


def test_a_required_volume_is_waited_for() -> None:
    cluster = ModelCluster()
    for name in ("n1", "n2"):
        cluster.add_node(name)
    node = cluster.node("n2")
    cluster.write(replace(node, description=replace(node.description, volumes=("data",))))
    db = cluster.create(
        a_paper_service("db", {"swarm-agent.volume-affinity": "require"}, container_spec=DATA)
    )
    cluster.settle()
    assert [t.node_id for t in cluster.running(db)] == ["n2"]
    cluster.frozen.add("n2")
    cluster.set_node("n2", state=NodeState.DOWN)
    cluster.advance(60)
    (waiting,) = [t for t in cluster.tasks(db) if not t.node_id]
    assert ("volume", 1, 'volume "data" is on node n2, which is down') in [
        (r.code, r.nodes, r.text) for r in waiting.reasons
    ]
    assert 'volume "data" is on node n2, which is down' in waiting.status.err
    cluster.frozen.clear()
    cluster.set_node("n2", state=NodeState.READY)
    cluster.advance(60)
    assert [t.node_id for t in cluster.running(db)] == ["n2"]


def test_ignored_volumes_and_templates_and_drivers_bind_nobody(desk: SchedulerFixture) -> None:
    desk.node("n3", volumes=("data", "{{.Task.Slot}}"))
    desk.service("a", container_spec=DATA, labels={"volume-affinity": "ignore"})
    mount = Mount(type="volume", source="{{.Task.Slot}}", target="/d")
    desk.service("b", container_spec=ContainerSpec(image="a", mounts=(mount,)))
    assert nodes(desk.place("a", 1)) == ["n1"]
    assert nodes(desk.place("b", 1)) == ["n2"]


# --- tasks with a node of their own, tasks that move -----------------------------------------------------------------------------------
def test_a_preset_task_is_confirmed_or_told_why_not(desk: SchedulerFixture) -> None:
    desk.service("agent", resources=reserving(memory_bytes=5 * GiB))
    (first,) = desk.place("agent", preset="n2")
    assert (first.node_id, first.status.message) == (
        "n2",
        "scheduler confirmed task can run on preassigned node",
    )
    (second,) = desk.place("agent", preset="n2")
    assert (second.node_id, second.status.state) == ("", TaskState.PENDING)
    assert second.status.err == "insufficient resources on 1 node", "without a prefix"
    assert why(second) == [("resources", 1, "needs 5 GiB of memory, most free is 3 GiB on n2")]
    (third,) = desk.place("agent", preset="gone")
    assert third.status.err == "1 node not available for new tasks"


def test_a_preset_task_costs_the_same_on_many_nodes(desk: SchedulerFixture) -> None:
    for number in range(300):
        desk.node(f"m{number}")
    desk.service("agent", placement=Placement(constraints=("node.labels.x==y",)))
    before = desk.memory.rankings.cost
    desk.place("agent", preset="n2")
    assert desk.memory.rankings.cost == before


def test_a_task_that_moves_does_not_stay(desk: SchedulerFixture) -> None:
    desk.node("n2", availability="drain")
    desk.node("n3", availability="drain")
    desk.service("web")
    (old,) = desk.place("web")
    assert old.node_id == "n1"
    (new,) = desk.place("web", replaces=old.id)
    assert new.status.err == (
        "no suitable node (2 nodes not available for new tasks; the task is to move away on 1 node)"
    )
    desk.node("n2")
    desk.run()
    assert desk.task(new).node_id == "n2"


# --- reasons ------------------------------------------------------------------------------------------------------------------------
def test_a_waiting_task_is_written_again_only_when_a_reason_changes(desk: SchedulerFixture) -> None:
    desk.service("web", resources=reserving(memory_bytes=9 * GiB))
    desk.service("small", resources=reserving(memory_bytes=GiB))
    (task,) = desk.place("web")
    desk.place("small")
    assert desk.task(task) == task, "less is free, but the counts are the same"
    desk.node("n4")
    desk.run()
    assert desk.task(task).reasons[0].nodes == 4


def test_why_shows_the_nearest_miss_of_now(desk: SchedulerFixture) -> None:
    service = desk.service("web", resources=reserving(memory_bytes=9 * GiB))
    desk.service("small", resources=reserving(memory_bytes=GiB))
    (task,) = desk.place("web")
    assert why(task)[0][2].endswith("most free is 8 GiB on n1")
    taken = {task.node_id for task in desk.place("small", 3)}
    assert taken == {"n1", "n2", "n3"}
    (told,) = standing(desk.store, desk.usage, service, 0).tasks
    assert told.task == desk.task(task)
    assert why(told)[0][2].endswith("most free is 7 GiB on n1")
    desk.node("n4", memory=16 * GiB)
    (told,) = standing(desk.store, desk.usage, service, 0).tasks
    assert told.notes == ("1 node would take it by now",)


def test_explaining_a_placement_that_is_not_asked_for_changes_nothing(desk: SchedulerFixture) -> None:
    desk.node("n1", labels={"disk": "ssd"})
    service = desk.service("web", placement=Placement(constraints=("node.labels.disk==ssd",)))
    revision = desk.store.revisions.get(service.revision_id)
    assert revision is not None
    found = explain(desk.store, desk.usage, revision, service)
    assert found.fits == 1
    assert [(r.code, r.nodes, r.best) for r in found.reasons] == [
        ("constraints", 2, "node.labels.disk is not set on n2, wanted ssd")
    ]
    assert explain(desk.store, desk.usage, revision, service, avoid="n1").fits == 0
    assert not list(desk.store.tasks.all())


def test_what_is_known_about_other_nodes_is_not_found_out_again(desk: SchedulerFixture) -> None:
    """A thousand nodes of which ten fit: the first ten tasks look for them, those that follow at what changed."""
    for number in range(1000):
        desk.node(f"m{number:04}", labels={"zone": str(number % 100)})
    looks = []
    for name in ("a", "b", "c", "d"):
        desk.service(name, placement=Placement(constraints=("node.labels.zone==99",)))
        before = desk.memory.rankings.cost
        assert "" not in nodes(desk.place(name, 5))
        looks.append(desk.memory.rankings.cost - before)
    assert sum(looks[:2]) > 1000
    assert max(looks[2:]) < 30, looks
