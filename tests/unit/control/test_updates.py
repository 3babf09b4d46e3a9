"""Updates and rollbacks on a paper cluster: what fails, what is kept running meanwhile, and that a new leader goes on (behaviour.md 10, 11)."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import msgspec
import pytest

from swarm_agent.objects.defaults import SECOND
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.specs import (
    ContainerSpec,
    Mount,
    Placement,
    PortConfig,
    Replicated,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskTemplate,
    UpdateConfig,
)
from tests.lib.model_cluster import ModelCluster
from tests.lib.optional import unwrap
from tests.lib.specs import a_spec


def spec(image: str, replicas: int = 10, **more: Any) -> ServiceSpec:
    more.setdefault("update", UpdateConfig(parallelism=2, monitor=5 * SECOND))
    more.setdefault("rollback", UpdateConfig(parallelism=0))
    return a_spec(replicas, image, **more)


@pytest.fixture
def cluster() -> ModelCluster:
    c = ModelCluster.of("n1", "n2", "n3")
    c.prepares = lambda task: c.image_of(task) != "missing"
    c.outcome = lambda task: TaskState.FAILED if c.image_of(task) == "bad" else TaskState.RUNNING
    c.settle()
    return c


def images(c: ModelCluster, sid: str) -> dict[str, int]:
    out: dict[str, int] = {}
    for task in c.running(sid):
        out[c.image_of(task)] = out.get(c.image_of(task), 0) + 1
    return out


def status(c: ModelCluster, sid: str) -> str:
    found = c.service(sid).update_status
    return "" if found is None else found.state


def running(c: ModelCluster, sid: str, n: int = 10, name: str = "web:1") -> str:
    sid = c.create(spec(name, n))
    c.advance(10)
    assert images(c, sid) == {name: n}
    return sid


def test_an_image_that_cannot_be_had_costs_no_running_task(cluster: ModelCluster) -> None:
    sid = running(cluster, "")
    cluster.update(sid, spec("missing"))
    cluster.advance(120)
    assert images(cluster, sid) == {"web:1": 10}
    assert status(cluster, sid) == "paused"


def test_a_failing_update_rolls_back_by_itself(cluster: ModelCluster) -> None:
    sid = running(cluster, "")
    cluster.update(sid, spec("bad", update=UpdateConfig(parallelism=2, failure_action="rollback")))
    cluster.advance(120)
    assert images(cluster, sid) == {"web:1": 10}
    service = cluster.service(sid)
    assert status(cluster, sid) == "rollback_completed"
    container = unwrap(service.spec.task_template.container_spec)
    assert (container.image, service.previous_spec) == ("web:1", None)


def test_a_rollback_that_fails_pauses(cluster: ModelCluster) -> None:
    sid = running(cluster, "")
    cluster.outcome = lambda task: TaskState.FAILED if task.created_at >= began else TaskState.RUNNING
    began = cluster.now
    cluster.update(sid, spec("web:2", update=UpdateConfig(parallelism=2, failure_action="rollback")))
    cluster.advance(120)
    assert status(cluster, sid) == "rollback_paused"
    assert unwrap(cluster.service(sid).update_status).message.startswith(
        "rollback paused due to failure or early termination of task "
    )
    assert images(cluster, sid) == {"web:1": 8}, "only the two that were updated are gone"


def test_a_person_rolls_back_and_forth(cluster: ModelCluster) -> None:
    sid = running(cluster, "")
    cluster.update(sid, spec("web:2"))
    cluster.advance(120)
    assert (images(cluster, sid), status(cluster, sid)) == ({"web:2": 10}, "completed")
    for expected in ("web:1", "web:2"):
        cluster.roll_back(sid)
        cluster.advance(120)
        assert (images(cluster, sid), status(cluster, sid)) == ({expected: 10}, "rollback_completed")


def test_a_rollback_keeps_what_was_not_updated_yet(cluster: ModelCluster) -> None:
    sid = running(cluster, "")
    before = {t.id for t in cluster.running(sid)}
    cluster.update(sid, spec("web:2", update=UpdateConfig(parallelism=2, delay=60 * SECOND)))
    cluster.advance(1)
    assert images(cluster, sid) == {"web:1": 8, "web:2": 2}
    cluster.roll_back(sid)
    cluster.advance(120)
    assert len({t.id for t in cluster.running(sid)} & before) == 8


def test_the_failure_ratio_is_strict(cluster: ModelCluster) -> None:
    sid = running(cluster, "")
    broken: set[int] = {1, 2}
    cluster.outcome = lambda task: (
        TaskState.FAILED if task.slot in broken and cluster.image_of(task) == "web:2" else TaskState.RUNNING
    )
    cluster.update(
        sid,
        spec(
            "web:2",
            update=UpdateConfig(parallelism=1, max_failure_ratio=0.2),
            restart_policy=RestartPolicy(condition="none"),
        ),
    )
    cluster.advance(200)
    assert (images(cluster, sid), status(cluster, sid)) == ({"web:2": 8}, "completed")
    broken.add(3)
    cluster.update(
        sid,
        spec(
            "web:3",
            update=UpdateConfig(parallelism=1, max_failure_ratio=0.2),
            restart_policy=RestartPolicy(condition="none"),
        ),
    )
    cluster.outcome = lambda task: (
        TaskState.FAILED if task.slot in broken and cluster.image_of(task) == "web:3" else TaskState.RUNNING
    )
    cluster.advance(200)
    assert status(cluster, sid) == "paused"


def test_continue_goes_on_and_ends(cluster: ModelCluster) -> None:
    """Also start-first with a policy of no restarts: a new task that is given up does not hold the update open for ever."""
    sid = running(cluster, "", 3)
    cluster.update(
        sid,
        spec("bad", 3, update=UpdateConfig(parallelism=1, failure_action="continue", order="start-first"),
             restart_policy=RestartPolicy(condition="none")),
    )  # fmt: skip
    cluster.advance(300)
    assert images(cluster, sid) == {"web:1": 3}, "start-first: the old ones stay"
    assert status(cluster, sid) == "completed"


def test_a_task_without_progress_counts_as_failed(cluster: ModelCluster) -> None:
    sid = running(cluster, "", 3)
    cluster.update(
        sid,
        spec("web:2", 3, labels={"swarm-agent.update.progress-deadline": "2m"},
             placement=Placement(constraints=("node.labels.disk == ssd",))),
    )  # fmt: skip
    cluster.advance(119)
    assert status(cluster, sid) == "updating"
    cluster.advance(2)
    assert status(cluster, sid) == "paused"
    assert "made no progress within 2m" in unwrap(cluster.service(sid).update_status).message
    assert images(cluster, sid) == {"web:1": 3}


def test_crashes_that_come_later_than_the_monitor_count_when_they_repeat(cluster: ModelCluster) -> None:
    sid = running(cluster, "", 3)
    cluster.update(
        sid,
        spec(
            "web:2",
            3,
            update=UpdateConfig(parallelism=1, delay=100 * SECOND, monitor=2 * SECOND),
            restart_policy=RestartPolicy(delay=SECOND),
        ),
    )
    cluster.advance(5)
    for expected in ("updating", "paused"):
        (first,) = [t for t in cluster.running(sid) if cluster.image_of(t) == "web:2"]
        cluster.fail(first)
        cluster.advance(8)
        assert status(cluster, sid) == expected


def test_host_ports_make_room_for_the_new_task(cluster: ModelCluster) -> None:
    """Where the new task finds no place because of the old one, stop-first stops the old one first."""
    port = PortConfig(target_port=80, published_port=8080, publish_mode="host")
    sid = cluster.create(spec("web:1", 3, ports=(port,)))
    cluster.advance(10)
    cluster.update(sid, spec("web:2", 3, ports=(port,)))
    cluster.advance(60)
    assert (images(cluster, sid), status(cluster, sid)) == ({"web:2": 3}, "completed")


def test_a_service_that_keeps_apart_from_itself_can_be_updated_where_it_fills_the_nodes(
    cluster: ModelCluster,
) -> None:
    """Also when the new task waited first for another reason."""
    apart = {"swarm-agent.placement.affinity": "service!=web"}
    sid = cluster.create(spec("web:1", 3, labels=apart))
    cluster.advance(10)
    for name in ("n1", "n2", "n3"):
        cluster.set_node(name, availability="pause")
    cluster.update(sid, spec("web:2", 3, labels=apart))
    cluster.advance(5)
    assert images(cluster, sid) == {"web:1": 3}
    for name in ("n1", "n2", "n3"):
        cluster.set_node(name, availability="active")
    cluster.advance(60)
    assert (images(cluster, sid), status(cluster, sid)) == ({"web:2": 3}, "completed")
    assert len({t.node_id for t in cluster.running(sid)}) == 3


def test_start_first_never_has_more_on_a_node_than_allowed(cluster: ModelCluster) -> None:
    """Where the nodes are full it waits, and counts as without progress in the end."""
    one = Placement(max_replicas=1)
    order = UpdateConfig(parallelism=1, order="start-first")
    sid = cluster.create(spec("web:1", 2, placement=one))
    cluster.advance(10)
    most: list[int] = []
    cluster.store.watch(
        lambda index, changes: most.append(max(Counter(t.node_id for t in cluster.running(sid)).values()))
    )
    cluster.update(sid, spec("web:2", 2, update=order, placement=one))
    cluster.advance(60)
    assert (images(cluster, sid), max(most)) == ({"web:2": 2}, 1)
    cluster.set_node("n3", availability="pause")
    cluster.advance(5)
    cluster.update(sid, spec("web:3", 2, update=order, placement=one))
    cluster.advance(700)
    assert max(most) == 1


def test_a_task_whose_volume_is_on_a_paused_node_is_not_stopped_for_a_new_one(cluster: ModelCluster) -> None:
    """The new one finds no place, and would find none if the old one had gone."""
    node = cluster.node("n1")
    about = msgspec.structs.replace(node.description, volumes=("data",))
    cluster.write(msgspec.structs.replace(node, description=about))
    mounts = (Mount(type="volume", source="data", target="/data"),)

    def db(image_: str) -> ServiceSpec:
        made = spec(image_, 1, labels={"swarm-agent.volume-affinity": "require"})
        container = ContainerSpec(image=image_, mounts=mounts)
        return msgspec.structs.replace(made, task_template=TaskTemplate(container_spec=container))

    sid = cluster.create(db("db:1"))
    cluster.advance(10)
    cluster.set_node("n1", availability="pause")
    cluster.update(sid, db("db:2"))
    cluster.advance(60)
    assert images(cluster, sid) == {"db:1": 1}
    cluster.set_node("n1", availability="active")
    cluster.advance(60)
    assert images(cluster, sid) == {"db:2": 1}


def test_a_change_of_placement_alone_restarts_only_who_must_move(cluster: ModelCluster) -> None:
    cluster.add_node("n4", labels={"disk": "ssd"})
    sid = running(cluster, "", 8)
    before = {t.id: t.node_id for t in cluster.running(sid)}
    cluster.update(sid, spec("web:1", 8, placement=Placement(constraints=("node.hostname != n1",))))
    cluster.advance(120)
    after = {t.id: t.node_id for t in cluster.running(sid)}
    assert "n1" not in after.values()
    assert {i for i, n in before.items() if n != "n1"} <= set(after)
    assert status(cluster, sid) == "completed"


def test_a_fixed_constraint_frees_tasks_that_wait(cluster: ModelCluster) -> None:
    sid = cluster.create(spec("web:1", 2, placement=Placement(constraints=("node.hostname == nowhere",))))
    cluster.advance(10)
    cluster.update(sid, spec("web:1", 2, placement=Placement(constraints=("node.hostname == n1",))))
    cluster.advance(60)
    assert [t.node_id for t in cluster.running(sid)] == ["n1", "n1"]


def test_never_fewer_than_the_policy_promises(cluster: ModelCluster) -> None:
    sid = running(cluster, "")
    least = []
    cluster.store.watch(lambda index, changes: least.append(len(cluster.running(sid))))
    cluster.update(sid, spec("web:2", update=UpdateConfig(parallelism=3)))
    cluster.advance(120)
    assert min(least) >= 7
    least.clear()
    cluster.update(sid, spec("web:3", update=UpdateConfig(parallelism=3, order="start-first")))
    cluster.advance(120)
    assert min(least) >= 10


@pytest.mark.parametrize("bad", [False, True])
def test_a_new_leader_at_any_step_changes_nothing(bad: bool) -> None:
    """At each entry of the log in turn another leader goes on; tasks, status and the number of starts end the same."""

    def story(change_at: int) -> tuple[object, int]:
        c = ModelCluster(seed=7)
        for name in ("n1", "n2", "n3"):
            c.add_node(name)
        c.outcome = lambda task: TaskState.FAILED if c.image_of(task) == "bad" else TaskState.RUNNING
        c.settle()
        sid = running(c, "", 6)
        starts: set[str] = set()
        entries = 0

        def seen(index: int, changes: object) -> None:
            nonlocal entries
            entries += 1
            starts.update(
                t.id for t in c.store.tasks.by("service", sid) if t.status.started_at or t.status.finished_at
            )
            if entries == change_at:
                c.new_leader()

        c.store.watch(seen)
        c.update(
            sid,
            spec(
                "bad" if bad else "web:2",
                6,
                update=UpdateConfig(parallelism=2, failure_action="rollback", delay=SECOND),
            ),
        )
        c.advance(200)
        service = c.service(sid)
        outcome = (
            images(c, sid),
            service.update_status.state if service.update_status else "",
            sorted(
                (t.slot, t.attempt, t.failures, c.image_of(t), t.status.state)
                for t in c.tasks(sid, live=False)
            ),
            len(starts),
        )
        return outcome, entries

    undisturbed, entries = story(0)
    assert entries > 12
    for at in range(1, entries + 1):
        assert story(at)[0] == undisturbed, f"another leader at entry {at}"


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
@pytest.mark.parametrize("parallelism", [0, 1, 2])
def test_an_update_leaves_tasks_as_even_as_they_were(
    cluster: ModelCluster, order: str, parallelism: int
) -> None:
    """A new task is placed as if the one it takes over from had gone."""
    for replicas in (3, 7):
        sid = cluster.create(msgspec.structs.replace(spec("web:1", replicas), name=f"web{replicas}"))
        cluster.advance(10)
        policy = UpdateConfig(parallelism=parallelism, order=order, monitor=SECOND)
        cluster.update(
            sid, msgspec.structs.replace(spec("web:2", replicas, update=policy), name=f"web{replicas}")
        )
        cluster.advance(60)
        assert images(cluster, sid) == {"web:2": replicas}
        counts = Counter(t.node_id for t in cluster.running(sid))
        assert max(counts.values()) - min(counts[n] for n in ("n1", "n2", "n3")) <= 1, counts


# --- restarts --------------------------------------------------------------------------------------------------------
def test_a_crash_loop_is_slowed_down_more_and_more(cluster: ModelCluster) -> None:
    sid = cluster.create(spec("bad", 1, restart_policy=RestartPolicy(delay=5 * SECOND)))
    began: dict[str, int] = {}
    cluster.store.watch(
        lambda index, changes: began.update(
            {
                t.id: t.status.timestamp
                for t in cluster.tasks(sid, live=False)
                if t.status.state == TaskState.FAILED
            }
        )
    )
    for _ in range(20):
        cluster.advance(100)
        cluster.new_leader()
    times = sorted(began.values())
    rests = [(b - a) / SECOND for a, b in itertools.pairwise(times)]
    expected = [5, 10, 20, 40, 80, 160, 300, 300]
    for rest, full in zip(rests, expected, strict=False):
        assert full * 0.9 <= rest <= full, rests
    assert len(rests) >= 8


def test_who_ran_long_enough_starts_counting_anew(cluster: ModelCluster) -> None:
    sid = running(cluster, "", 1)
    for _ in range(4):
        cluster.advance(100)
        cluster.fail(cluster.running(sid)[0])
        cluster.advance(5.1)
        assert len(cluster.running(sid)) == 1


# --- drain -----------------------------------------------------------------------------------------------------------
def test_drain_keeps_the_promised_count_running(cluster: ModelCluster) -> None:
    sid = running(cluster, "", 9)
    least = []
    cluster.store.watch(lambda index, changes: least.append(len(cluster.running(sid))))
    cluster.set_node("n1", availability="drain")
    cluster.advance(60)
    assert {t.node_id for t in cluster.running(sid)} == {"n2", "n3"}
    assert len(cluster.running(sid)) == 9
    assert min(least) >= 9, "several replicas without volumes: started before the old ones stop"


def test_drain_of_a_stop_first_service_goes_one_by_one(cluster: ModelCluster) -> None:
    sid = cluster.create(spec("web:1", 9, update=UpdateConfig(parallelism=1, order="stop-first")))
    cluster.advance(10)
    least = []
    cluster.store.watch(lambda index, changes: least.append(len(cluster.running(sid))))
    cluster.set_node("n1", availability="drain")
    cluster.advance(60)
    assert {t.node_id for t in cluster.running(sid)} == {"n2", "n3"}
    assert min(least) >= 8


def test_a_floor_is_kept_even_when_there_is_no_other_place(cluster: ModelCluster) -> None:
    where = Placement(constraints=("node.hostname == n1",))
    free = cluster.create(spec("web:1", 4, placement=where))
    cluster.advance(10)
    held = cluster.create(
        ServiceSpec(
            name="held",
            labels={"swarm-agent.min-healthy": "3"},
            task_template=TaskTemplate(container_spec=ContainerSpec(image="db:1"), placement=where),
            mode=ServiceMode(replicated=Replicated(replicas=4)),
        )
    )
    cluster.advance(10)
    cluster.set_node("n1", availability="drain")
    cluster.advance(60)
    assert (len(cluster.running(free)), len(cluster.running(held))) == (0, 3)


def test_a_drain_that_is_called_off_moves_no_more(cluster: ModelCluster) -> None:
    sid = running(cluster, "", 3)
    before = {t.id for t in cluster.running(sid)}
    cluster.frozen |= {"n2", "n3"}
    cluster.set_node("n1", availability="drain")
    cluster.settle()
    cluster.set_node("n1", availability="active")
    cluster.frozen.clear()
    cluster.advance(60)
    assert {t.id for t in cluster.running(sid)} == before


# --- what waits for others -----------------------------------------------------------------------------------------------
def test_a_service_waits_for_what_it_depends_on(cluster: ModelCluster) -> None:
    db = cluster.create(
        ServiceSpec(
            name="db",
            task_template=TaskTemplate(container_spec=ContainerSpec(image="db:1")),
            mode=ServiceMode(replicated=Replicated(replicas=0)),
        )
    )
    sid = cluster.create(spec("web:1", 2, labels={"swarm-agent.depends-on": "db:healthy"}))
    cluster.advance(30)
    waiting = cluster.tasks(sid)
    assert [(t.status.state, t.desired_state) for t in waiting] == [(TaskState.READY, TaskState.READY)] * 2
    assert [r.text for r in waiting[0].reasons] == ["waits for service db to be healthy"]
    cluster.update(
        db,
        ServiceSpec(
            name="db",
            task_template=TaskTemplate(container_spec=ContainerSpec(image="db:1")),
            mode=ServiceMode(replicated=Replicated(replicas=1)),
        ),
    )
    cluster.advance(5)
    assert images(cluster, sid) == {"web:1": 2}
    assert not cluster.running(sid)[0].reasons


def test_below_the_level_nothing_is_written_that_older_managers_do_not_know() -> None:
    """Updates, drains, crashes and losses in a cluster that still has managers of the release before."""
    c = ModelCluster(level=2)
    for name in ("n1", "n2", "n3"):
        c.add_node(name)
    known = {
        "id",
        "service_id",
        "service_name",
        "revision_id",
        "slot",
        "desired_state",
        "status",
        "cause",
        "version",
        "kind",
    }
    known |= {
        "created_at",
        "updated_at",
        "node_id",
        "networks",
        "node_address",
        "start_after",
        "attempt",
        "reasons",
        "service_labels",
    }

    def look(index: int, changes: object) -> None:
        for task in c.store.tasks.all():
            assert set(msgspec.to_builtins(task)) <= known
            assert all(set(msgspec.to_builtins(r)) <= {"code", "nodes", "text"} for r in task.reasons)
        for revision in c.store.revisions.all():
            assert not revision.number

    c.store.watch(look)
    sid = c.create(spec("web:1", 6))
    c.advance(10)
    c.update(sid, spec("web:2", 6))
    c.advance(30)
    assert len(c.running(sid)) == 6
    c.set_node("n1", availability="drain")
    c.advance(30)
    assert {t.node_id for t in c.running(sid)} == {"n2", "n3"}
    for _ in range(3):
        c.fail(c.running(sid)[0])
        c.advance(6)
    c.set_node("n2", state=NodeState.DOWN)
    c.advance(30)
    assert {t.node_id for t in c.running(sid)} == {"n3"}
    assert len(c.running(sid)) == 6


def test_a_task_that_never_found_a_place_ends_when_an_update_replaces_it(cluster: ModelCluster) -> None:
    nowhere = Placement(constraints=("node.labels.disk == none",))
    sid = cluster.create(spec("web:1", 2, placement=nowhere))
    cluster.advance(2)
    waiting = [t.id for t in cluster.tasks(sid) if t.status.state == TaskState.PENDING]
    assert len(waiting) == 2
    cluster.update(sid, spec("web:1", 2))
    cluster.advance(30)
    assert images(cluster, sid) == {"web:1": 2}
    kept = [t for t in map(cluster.store.tasks.get, waiting) if t is not None]
    assert kept, "they are history"
    assert {t.status.state for t in kept} == {TaskState.SHUTDOWN}
    assert not cluster.store.tasks.tallies["state"].get(TaskState.PENDING)
