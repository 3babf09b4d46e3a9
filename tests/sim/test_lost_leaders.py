"""A leader whose host is cut off: no connection ends, and yet every node finds the next leader before that one takes it for lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from swarm_agent.agent import session
from swarm_agent.agent.session import SessionAgent
from swarm_agent.dispatcher import assignments, dispatcher
from swarm_agent.dispatcher.fencing import Fence
from swarm_agent.dispatcher.liveness import Liveness
from swarm_agent.manager.leadership import Leadership
from swarm_agent.objects.enums import NodeState
from swarm_agent.rpc.messages import Beat, Welcome
from tests.lib.fake_engine import Program
from tests.lib.optional import unwrap
from tests.lib.sim_checks import ClusterChecks, unsettled
from tests.lib.sim_cluster import SimCluster, simulation

Story = Callable[[SimCluster], Awaitable[None]]


def play(story: Story, seed: int) -> None:
    async def main(cluster: SimCluster) -> None:
        await cluster.start(3, 3)
        await story(cluster)
        await cluster.until("everything is as declared", lambda: unsettled(cluster), 120)

    with simulation(seed) as sim:
        sim.loop.after_step = ClusterChecks(sim.cluster)
        sim.run(main(sim.cluster))


async def the_leaders_host_is_cut_off(c: SimCluster) -> None:
    await c.create("web", 6, TaskTemplate={"Placement": {"Constraints": ["node.role == worker"]}})
    await c.until_running("web", 6)
    await asyncio.sleep(c.rng.uniform(0, 2))
    before = [t.id for t in c.tasks("web")]
    c.isolate(c.leader().name)
    await asyncio.sleep(30)
    assert [t.id for t in c.tasks("web")] == before
    assert sum(c[name].engine.starts for name in ("w1", "w2", "w3")) == 6
    c.heal()


@pytest.mark.parametrize("seed", range(12))
def test_tasks_of_workers_are_not_replaced(seed: int) -> None:
    play(the_leaders_host_is_cut_off, seed)


def test_without_answers_they_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fence, "heard", lambda self, session: None)
    monkeypatch.setattr(SessionAgent, "_asked", lambda self, now, leasing: None)
    monkeypatch.setattr(
        Liveness, "in_doubt", lambda self, lost, now, period: False
    )  # which would save them too
    with pytest.raises(AssertionError):
        play(the_leaders_host_is_cut_off, 0)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a leader asked its peers whether it leads."""
    count = [0]
    real = Leadership._confirm

    async def confirm(self: Leadership) -> None:
        count[0] += 1
        await real(self)

    monkeypatch.setattr(Leadership, "_confirm", confirm)
    return count


@pytest.mark.parametrize("workers", [0, 3, 12])
def test_one_confirmation_a_second_serves_all_nodes(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count = counted(monkeypatch)

    async def story(c: SimCluster) -> None:
        await c.start(3, workers)
        count[0] = 0
        await asyncio.sleep(60)
        assert 50 <= count[0] <= 70

    with simulation(1) as sim:
        sim.run(story(sim.cluster))


def test_sessions_of_an_idle_cluster_last(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[float] = []
    real = SessionAgent._session

    async def session(self: SessionAgent, addr: str) -> None:
        try:
            await real(self, addr)
        finally:
            ended.append(asyncio.get_running_loop().time())

    monkeypatch.setattr(SessionAgent, "_session", session)

    async def story(c: SimCluster) -> None:
        await c.start(3, 3)
        ended.clear()
        await asyncio.sleep(300)
        assert not ended

    with simulation(2) as sim:
        sim.run(story(sim.cluster))


def test_a_leader_that_knows_no_answers_keeps_its_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    def welcome(
        session_id: str, heartbeat_period: int, root: bytes, *, answers: bool, pauses: bool
    ) -> Welcome:
        return Welcome(session_id, heartbeat_period, root)

    monkeypatch.setattr(dispatcher, "Welcome", welcome)
    count = counted(monkeypatch)
    test_sessions_of_an_idle_cluster_last(monkeypatch)
    assert count[0] == 0


def test_an_agent_that_asks_for_no_answers_keeps_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "Beat", lambda lease=0, answer=False: Beat(lease))
    monkeypatch.setattr(SessionAgent, "_asked", lambda self, now, leasing: None)
    count = counted(monkeypatch)
    test_sessions_of_an_idle_cluster_last(monkeypatch)
    assert count[0] == 0


# --- leaders that are there, and deaf ------------------------------------------------------------------------------------------
async def the_leader_is_deaf(c: SimCluster) -> None:
    """Overloaded: it answers in the end, but beats are not read in time, its own node's among them."""
    await c.create("web", 12)
    await c.until_running("web", 12)
    before = sorted(t.id for t in c.tasks("web"))
    manager = c.leader().manager
    assert manager is not None
    assert manager.leadership is not None
    leader: Any = manager.leadership.dispatcher
    heard, leader._beat = leader._beat, lambda node_id, period_s: None
    await asyncio.sleep(c.rng.uniform(5.5, 7.0))
    leader._beat = heard
    await asyncio.sleep(20)
    # in which it would have replaced whom it had taken for lost
    assert c.leader().manager is manager
    assert sorted(t.id for t in c.tasks("web")) == before
    assert sum(host.engine.starts for host in c.hosts.values()) == 12


@pytest.mark.parametrize("seed", range(4))
def test_a_deaf_leader_takes_nobody_for_lost(seed: int) -> None:
    play(the_leader_is_deaf, seed)


def test_a_deaf_leader_that_does_not_ask_replaces_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Liveness, "in_doubt", lambda self, lost, now, period: False)
    with pytest.raises(AssertionError):
        play(the_leader_is_deaf, 0)


def test_when_most_nodes_are_gone_indeed_their_tasks_run_elsewhere() -> None:
    async def story(c: SimCluster) -> None:
        await c.create("web", 6)
        await c.until_running("web", 6)
        leader = c.leader()
        follower = next(h for h, _ in c.managers() if h is not leader)
        gone = ["w1", "w2", "w3", follower.name]
        left = {h.node_id for h in c.hosts.values() if h.name not in gone}
        for name in gone:
            await c[name].kill()
        await c.until(
            "all run on the two that are left",
            lambda: "" if len([t for t in c.running("web") if t.node_id in left]) == 6 else "not yet",
            30,
        )
        for name in gone:
            c[name].start()

    play(story, 3)


# --- agents that are restarted --------------------------------------------------------------------------------------------------
async def agents_are_restarted(c: SimCluster) -> None:
    """One after the other, slowly as on a busy host; the leader too, whose successor has to know."""
    await c.create("web", 12)
    await c.until_running("web", 12)
    before = sorted(t.id for t in c.tasks("web"))
    for name in sorted(c.hosts):
        await c[name].stop()
        await asyncio.sleep(c.rng.uniform(6.0, 8.5))
        c[name].start()
        await c.until(f"{name} is back", c.nodes_trouble, 30)
    assert sorted(t.id for t in c.tasks("web")) == before
    assert sum(host.engine.starts for host in c.hosts.values()) == 12


@pytest.mark.parametrize("seed", range(3))
def test_a_restart_of_an_agent_replaces_no_task(seed: int) -> None:
    play(agents_are_restarted, seed)


def test_one_that_says_nothing_of_it_loses_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(self: SessionAgent) -> None: ...

    monkeypatch.setattr(SessionAgent, "pause", silent)
    with pytest.raises(AssertionError):
        play(agents_are_restarted, 0)


# --- nodes that are back before others run in their place -----------------------------------------------------------------------
async def a_node_comes_back_while_its_tasks_are_begun_elsewhere(c: SimCluster) -> None:
    for host in c.hosts.values():  # as where an image has to be fetched
        host.engine.registry["slow:1"] = Program(create_s=8.0)
    workers = {"Placement": {"Constraints": ["node.role == worker"]}}
    await c.create("web", 6, "slow:1", TaskTemplate=workers)
    await c.until_running("web", 6, 120)
    away = c["w1"].node_id
    c.isolate("w1")
    await c.until(
        "w1 is down",
        lambda: "" if unwrap(c.store.nodes.get(away)).status.state == NodeState.DOWN else "not yet",
        20,
    )
    await asyncio.sleep(1)
    c.heal()
    fewest, over = 6, asyncio.get_running_loop().time() + 30
    while asyncio.get_running_loop().time() < over:
        await asyncio.sleep(0.05)
        fewest = min(fewest, sum(len(c[name].engine.running()) for name in ("w1", "w2", "w3")))
    assert fewest == 6
    assert len(c.running("web")) == 6


@pytest.mark.parametrize("seed", range(3))
def test_what_runs_is_stopped_when_its_replacement_runs(seed: int) -> None:
    play(a_node_comes_back_while_its_tasks_are_begun_elsewhere, seed)


def test_or_there_would_be_fewer_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignments, "held", lambda store, task: False)
    with pytest.raises(AssertionError):
        play(a_node_comes_back_while_its_tasks_are_begun_elsewhere, 0)
