"""Bugs planted in the code of a cluster: stories and checks that do not find them prove nothing about the code without them.

Each bug is a patch. The story made for its kind passes without the patch and fails with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from swarm_agent.api import services
from swarm_agent.control import allocate, filters, jobs, moves, slots
from swarm_agent.control.ledger import Ledger
from swarm_agent.manager.manager import Manager, _Duties
from swarm_agent.member import Member
from swarm_agent.node.executor import Executor
from swarm_agent.node.runner import Runner
from swarm_agent.node.worker import Worker
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.records import Service, Task
from swarm_agent.session.dispatcher import Dispatcher
from swarm_agent.store import ApplyResult, Group, Put
from swarm_agent.testing.sim_chaos import chaos
from swarm_agent.testing.sim_checks import ClusterChecks, unsettled
from swarm_agent.testing.sim_cluster import SimCluster, simulation

Story = Callable[[SimCluster], Awaitable[None]]
Patch = Callable[[pytest.MonkeyPatch], None]


def play(story: Story) -> None:
    async def main(cluster: SimCluster) -> None:
        await cluster.start(3, 2)
        await story(cluster)
        await cluster.until("everything is as declared", lambda: unsettled(cluster), 60)

    with simulation(3) as sim:
        sim.loop.after_step = ClusterChecks(sim.cluster)
        sim.run(main(sim.cluster))


# -- stories ----------------------------------------------------------------------------------------------------------------


async def a_node_stops_fitting(c: SimCluster) -> None:
    """The leader ends the tasks with its own verdict; what the node says later is less."""
    await c.set_node("w1", Labels={"disk": "fast"})
    await c.create("web", 2, TaskTemplate={"Placement": {"Constraints": ["node.labels.disk == fast"]}})
    await c.until_running("web", 2)
    await c.set_node("w1", Labels={})
    await c.until("they are gone", lambda: "running" if c["w1"].engine.running() else "")
    await asyncio.sleep(2)
    await c.remove("web")


async def slow_ones_are_replaced(c: SimCluster) -> None:
    await c.create("slow", 3, "slow:1", UpdateConfig={"Parallelism": 0})
    await c.until_running("slow", 3)
    await c.set_image("slow", "web:1")


async def a_port_changes_hands(c: SimCluster) -> None:
    """One task a node; five nodes."""
    port = {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}
    await c.create("web", 5, EndpointSpec={"Ports": [port]})
    await c.until_running("web", 5)
    await c.set_image("web", "web:2")
    await c.until("all are new", lambda: unsettled(c), 60)


async def more_tasks_than_ports(c: SimCluster) -> None:
    port = {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}
    await c.create("web", 7, EndpointSpec={"Ports": [port]})
    await c.until_running("web", 5)
    await asyncio.sleep(2)
    await c.scale("web", 5)


async def two_services_on_one_network(c: SimCluster) -> None:
    network = (await c.api("POST", "/networks/create", {"Name": "net", "Driver": "overlay"}))["Id"]
    for name in ("a", "b"):
        await c.create(name, 3, TaskTemplate={"Networks": [{"Target": network}]})
        await c.until_running(name, 3)


async def a_task_fails_while_nobody_leads(c: SimCluster) -> None:
    await c.create("web", 5)
    await c.until_running("web", 5)
    old = c.leader()
    await old.kill()
    engine = c["w1"].engine
    for container in engine.running():
        engine.fail(container)
    await asyncio.sleep(0.02)  # the node has seen it and told a leader that is gone
    await c.any_leader()
    old.start()


async def a_daemon_is_killed_while_it_cleans_up(c: SimCluster) -> None:
    await c.create("web", 5)
    await c.until_running("web", 5)
    faults = c["w1"].engine.faults
    faults.latency_min = faults.latency_max = 0.5
    await c.remove("web")
    await c.until("no task is left", lambda: "some" if c.tasks("web") else "")
    assert c["w1"].engine.containers
    await c["w1"].kill()
    c["w1"].start()


async def leader_and_worker_are_lost_together(c: SimCluster) -> None:
    await c.create("web", 5)
    await c.until_running("web", 5)
    leader = c.leader()
    await leader.power_cut()
    await c["w1"].power_cut()
    await c.any_leader()

    def elsewhere() -> str:
        up = {h.node_id for h in c.hosts.values() if h.process is not None}
        lost = [t for t in c.running("web") if t.node_id not in up]
        return "still on lost hosts" if lost else c.replicas_trouble("web", 5)

    await c.until("all run on hosts that are up", elsewhere)
    leader.start()
    c["w1"].start()


async def an_engine_errs(c: SimCluster) -> None:
    await c.create("web", 15, UpdateConfig={"Parallelism": 0, "FailureAction": "continue"})
    await c.until_running("web", 15)
    await c.set_image("web", "web:2")

    def prepared() -> str:
        here = c.store.tasks.by("node", c["w1"].node_id)
        return "" if any(t.status.state == TaskState.READY for t in here) else "none is prepared"

    await c.until("w1 has tasks to start", prepared)
    c["w1"].engine.faults.error = 0.9
    await asyncio.sleep(8)
    c["w1"].engine.faults.error = 0.0


async def a_lonely_leader_is_asked(c: SimCluster) -> None:
    """It cannot promise anything."""
    old = c.leader()
    c.isolate(old.name)
    spec = {
        "Name": "web",
        "TaskTemplate": {"ContainerSpec": {"Image": "web:1"}},
        "Mode": {"Replicated": {"Replicas": 1}},
    }
    promised = False
    try:
        async with asyncio.timeout(5):
            await old.api("POST", "/services/create", spec)
            promised = True
    except (SwarmError, TimeoutError):
        pass
    c.heal()
    await c.any_leader()
    await c.until("m1 to w2 are there", c.nodes_trouble)
    assert not promised or any(s.spec.name == "web" for s in c.store.services.all())


async def a_node_is_drained(c: SimCluster) -> None:
    await c.create("slow", 4, "slow:1", UpdateConfig={"Order": "stop-first"})
    await c.until_running("slow", 4)
    await c.set_node("w1", Availability="drain")
    await c.until("w1 is empty", lambda: "some" if c["w1"].engine.running() else "", 60)
    await c.set_node("w1", Availability="active")


async def attempts_are_counted_over_a_change_of_leaders(c: SimCluster) -> None:
    template = {
        "Placement": {"Constraints": ["node.role == worker"]},
        "RestartPolicy": {"MaxAttempts": 2, "Delay": 4_000_000_000},
    }
    await c.create("web", 1, "crash:1", TaskTemplate=template)
    failed = TaskState.FAILED
    await c.until(
        "the second has failed",
        lambda: "" if sum(t.status.state == failed for t in c.tasks("web")) == 2 else "not yet",
    )
    old = c.leader()
    await old.kill()
    await c.any_leader(besides=old.name)
    await asyncio.sleep(40)
    old.start()
    await c.any_leader()
    assert sum(h.engine.starts for h in c.hosts.values()) == 3
    await c.remove("web")


async def an_update_is_taken_back(c: SimCluster) -> None:
    await c.create("web", 3)
    await c.until_running("web", 3)
    await c.set_image("web", "web:2")
    await c.until("all are new", lambda: unsettled(c), 60)
    shown = await c.api("GET", "/services/web")
    query = f"version={shown['Version']['Index']}&rollback=previous"
    await c.api("POST", "/services/web/update", shown["Spec"], query)


async def a_job_runs_twice(c: SimCluster) -> None:
    shown = await c.api("GET", "/swarm")
    spec = {**shown["Spec"], "Orchestration": {"TaskHistoryRetentionLimit": 0}}
    await c.api("POST", "/swarm/update", spec, f"version={shown['Version']['Index']}")
    job = {"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 3}}
    await c.create("job", 0, "batch:1", Mode=job)
    busy = [h for h in c.hosts.values() if h.engine.running()]
    while len(busy) < 2:
        await asyncio.sleep(0.02)
        busy = [h for h in c.hosts.values() if h.engine.running()]
    busy[0].engine.fail(busy[0].engine.running()[0], 0)  # one is done while the other runs on
    await asyncio.sleep(15)
    await c.api("POST", "/swarm-agent/services/job/run")
    await asyncio.sleep(30)
    assert sum(h.engine.starts for h in c.hosts.values()) == 6


# -- bugs ------------------------------------------------------------------------------------------------------------------------


def lower_states_count(m: pytest.MonkeyPatch) -> None:
    def group(self: Dispatcher, task_id: str, node_id: str, status: Any) -> Group | None:
        task = self._store.tasks.get(task_id)
        if task is None or task.node_id != node_id or status == task.status:
            return None
        return Group(task_id, (Put(msgspec.structs.replace(task, status=status), task.version),))

    m.setattr(Dispatcher, "_status_group", group)


def nobody_waits_for_the_old_task(m: pytest.MonkeyPatch) -> None:
    m.setattr(slots, "stopped", lambda view, task: True)


def ports_are_never_given_back(m: pytest.MonkeyPatch) -> None:
    real = Ledger._task

    def book(self: Ledger, task: Task | None, sign: int) -> None:
        if task is None or not (sign < 0 and task.status.state == TaskState.RUNNING):
            real(self, task, sign)

    m.setattr(Ledger, "_task", book)


def ports_are_not_looked_at(m: pytest.MonkeyPatch) -> None:
    m.setattr(filters, "host_ports", lambda revision: [])


def taken_addresses_are_given(m: pytest.MonkeyPatch) -> None:
    real = allocate._free

    def free(ledger: Ledger, pool: str, subnet: Any, used: Any, gateway: str, given: Any) -> str:
        ledger.cursors.pop(pool, None)
        return real(ledger, pool, subnet, (), gateway, given)

    m.setattr(allocate, "_free", free)


def a_new_leader_is_told_nothing(m: pytest.MonkeyPatch) -> None:
    m.setattr(Member, "statuses", lambda self: [])


def strays_stay(m: pytest.MonkeyPatch) -> None:
    m.setattr(Worker, "_start_sweep", lambda self: None)


def a_new_leader_waits_for_nobody(m: pytest.MonkeyPatch) -> None:
    async def nothing(self: Dispatcher) -> None:
        pass

    m.setattr(Dispatcher, "_everybody_unknown", nothing)


def failures_are_reported_at_once(m: pytest.MonkeyPatch) -> None:
    async def give_up(self: Runner, do: Any, err: str) -> None:
        self._fail(err)

    m.setattr(Runner, "_give_up", give_up)


def writes_are_answered_before_they_are_agreed_on(m: pytest.MonkeyPatch) -> None:
    real = Manager.propose

    async def propose(self: Manager, groups: tuple[Group, ...]) -> ApplyResult:
        if self.duties is None or groups[0].key == "founding":
            return await real(self, groups)
        asyncio.ensure_future(real(self, groups)).add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )
        return ApplyResult(self.store.index + 1, (True,) * len(groups))

    async def barrier(self: Manager) -> None:
        pass

    m.setattr(Manager, "propose", propose)
    m.setattr(Manager, "read_barrier", barrier)


def movers_do_not_wait(m: pytest.MonkeyPatch) -> None:
    m.setattr(slots, "moves_start_first", lambda service: True)
    m.setattr(moves, "moves_start_first", lambda service: True)


def new_leaders_count_attempts_from_nothing(m: pytest.MonkeyPatch) -> None:
    began = [0]
    real_init, real_restart = _Duties.__init__, slots.restart

    def init(self: _Duties, manager: Manager, raft: Any) -> None:
        began[0] = manager.now()
        real_init(self, manager, raft)

    def restart(service: Service, task: Task, tasks: list[Task], now: int) -> Any:
        if task.created_at < began[0]:
            task = msgspec.structs.replace(task, attempt=0, failures=0)
        return real_restart(service, task, tasks, now)

    m.setattr(_Duties, "__init__", init)
    m.setattr(slots, "restart", restart)


def rollback_forgets_the_old_revision(m: pytest.MonkeyPatch) -> None:
    m.setattr(services, "previous_of", lambda view, service: view.revisions.get(service.revision_id))


def one_task_of_a_job_is_not_counted(m: pytest.MonkeyPatch) -> None:
    real = jobs._fill

    def fill(p: Any, service: Service, places: Any) -> None:
        wanted = service.spec.mode.replicated_job
        assert wanted is not None
        more = msgspec.structs.replace(wanted, max_concurrent=(wanted.max_concurrent or 1) + 1)
        mode = msgspec.structs.replace(service.spec.mode, replicated_job=more)
        spec = msgspec.structs.replace(service.spec, mode=mode)
        real(p, msgspec.structs.replace(service, spec=spec), places)

    m.setattr(jobs, "_fill", fill)


def what_a_job_has_done_is_forgotten(m: pytest.MonkeyPatch) -> None:
    def reap_place(p: Any, service: Service, tasks: list[Task]) -> None:
        for task in tasks:
            if task.status.state.terminal:
                p.delete(task)

    m.setattr(jobs, "reap_place", reap_place)


def secrets_are_left_on_the_node(m: pytest.MonkeyPatch) -> None:
    async def nothing(self: Executor) -> None:
        pass

    m.setattr(Executor, "wipe", nothing)


CASES: tuple[tuple[Patch, Story], ...] = (
    (lower_states_count, a_node_stops_fitting),
    (nobody_waits_for_the_old_task, slow_ones_are_replaced),
    (ports_are_never_given_back, a_port_changes_hands),
    (ports_are_not_looked_at, more_tasks_than_ports),
    (taken_addresses_are_given, two_services_on_one_network),
    (a_new_leader_is_told_nothing, a_task_fails_while_nobody_leads),
    (strays_stay, a_daemon_is_killed_while_it_cleans_up),
    (a_new_leader_waits_for_nobody, leader_and_worker_are_lost_together),
    (failures_are_reported_at_once, an_engine_errs),
    (writes_are_answered_before_they_are_agreed_on, a_lonely_leader_is_asked),
    (movers_do_not_wait, a_node_is_drained),
    (new_leaders_count_attempts_from_nothing, attempts_are_counted_over_a_change_of_leaders),
    (rollback_forgets_the_old_revision, an_update_is_taken_back),
    (one_task_of_a_job_is_not_counted, a_job_runs_twice),
    (what_a_job_has_done_is_forgotten, a_job_runs_twice),
)


@pytest.mark.parametrize("story", dict.fromkeys(story for _, story in CASES), ids=lambda s: s.__name__)
def test_the_story_without_its_bug(story: Story) -> None:
    play(story)


@pytest.mark.parametrize(("patch", "story"), CASES, ids=[patch.__name__ for patch, _ in CASES])
def test_the_bug_is_caught(patch: Patch, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    patch(monkeypatch)
    with pytest.raises(AssertionError):
        play(story)


@pytest.mark.parametrize("patch", [secrets_are_left_on_the_node])
def test_stories_of_chance_catch_it(patch: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each seed of these passes without the bug (``test_sim_cluster.py``); one of them is enough."""
    patch(monkeypatch)
    assert any(_fails(seed) for seed in range(100, 112))


def _fails(seed: int) -> bool:
    try:
        chaos(seed)
    except AssertionError:
        return True
    return False
