"""Strict singletons: at no moment two of their containers run, whatever is cut, killed, stopped or slow.

``ClusterChecks`` looks at the engines themselves after every step. First single stories; then seeded ones; then bugs planted in the
parts the argument of ``docs/design/fencing.md`` rests on, each of which a story has to find.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from swarm_agent.agent.lease import Lease
from swarm_agent.agent.session import SessionAgent
from swarm_agent.dispatcher.fencing import Fence
from swarm_agent.manager.leadership import Leadership
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.leases import FENCE_S, LEASE_S
from swarm_agent.raft.core.leading import LeaderState
from tests.lib.fake_engine import Program
from tests.lib.fake_guard import FakeGuard
from tests.lib.optional import unwrap
from tests.lib.sim_checks import ClusterChecks, Violation, unsettled
from tests.lib.sim_cluster import SimCluster, simulation
from tests.lib.sim_host import ApiError, SimHost

SEEDS = int(os.environ.get("SWARM_SIM_SEEDS", "12"))
Story = Callable[[SimCluster], Awaitable[None]]
Patch = Callable[[pytest.MonkeyPatch], None]
LABELS = {"swarm-agent.singleton": "strict"}


def play(story: Story, *, seed: int = 1, managers: int = 3, workers: int = 2) -> None:
    async def main(cluster: SimCluster) -> None:
        await cluster.start(managers, workers)
        await story(cluster)
        await cluster.until("everything is as declared", lambda: unsettled(cluster), 120)

    with simulation(seed) as sim:
        sim.loop.after_step = ClusterChecks(sim.cluster)
        sim.run(main(sim.cluster))


async def single(c: SimCluster, role: str = "worker", image: str = "web:1", **more: Any) -> None:
    placement = {"Placement": {"Constraints": [f"node.role == {role}"]}} if role else {}
    await c.create("db", 1, image, Labels=LABELS, TaskTemplate=placement, **more)


async def running(c: SimCluster, role: str = "worker", image: str = "web:1") -> SimHost:
    """Create it; the host it runs on."""
    await single(c, role, image)
    await c.until_running("db", 1)
    return here(c)


def here(c: SimCluster) -> SimHost:
    (host,) = holders(c)
    return host


def holders(c: SimCluster) -> list[SimHost]:
    return [h for h in c.hosts.values() if any(x.name.startswith("db.") for x in h.engine.running())]


def moved(c: SimCluster, old: SimHost) -> str:
    return "" if [h for h in holders(c) if h is not old] else "it runs nowhere else yet"


def preparing(c: SimCluster) -> str:
    tasks = c.tasks("db")
    return "" if tasks and tasks[0].status.state == TaskState.PREPARING else "not yet"


def now() -> float:
    return asyncio.get_running_loop().time()


def fates(c: SimCluster) -> list[str]:
    return [t.status.err for t in c.tasks("db") if t.status.state == TaskState.FAILED]


# -- stories ----------------------------------------------------------------------------------------------------------------


async def a_worker_is_cut_off(c: SimCluster) -> None:
    old = await running(c)
    began = now()
    c.isolate(old.name)
    await c.until("it moved", lambda: moved(c, old), FENCE_S + 5)
    assert now() - began > LEASE_S - 2, "the lease had to end first"
    assert old.guard.kills == 0, "the agent itself saw to it"
    c.heal()
    await c.until("the reason is told", lambda: "" if any("lease" in e for e in fates(c)) else str(fates(c)))


async def a_daemon_dies(c: SimCluster) -> None:
    """Its container would run on: the guard ends it."""
    old = await running(c)
    await old.kill()
    await c.until("it moved", lambda: moved(c, old), FENCE_S + 8)
    assert old.guard.kills == 1
    old.start()


async def a_daemon_is_stopped_in_its_tracks(c: SimCluster) -> None:
    old = await running(c)
    c.freeze(old.name)
    await c.until("it moved", lambda: moved(c, old), FENCE_S + 5)
    assert old.guard.kills == 1
    await asyncio.sleep(20)
    c.thaw(old.name)


async def a_daemon_is_started_again_soon(c: SimCluster) -> None:
    """The lease its predecessor had goes on, and so does the container."""
    old = await running(c)
    (container,) = old.engine.running()
    await old.kill()
    await asyncio.sleep(3)
    old.start()
    await asyncio.sleep(40)
    assert old.engine.running() == [container]
    assert container.run == 1


async def the_leader_dies(c: SimCluster) -> None:
    """Nodes find the next one long before their lease ends: nothing is killed."""
    old = await running(c)
    (container,) = old.engine.running()
    leader = c.leader()
    await leader.kill()
    await c.any_leader()
    await asyncio.sleep(40)
    assert old.engine.running() == [container]
    assert container.run == 1
    leader.start()


async def leader_and_worker_are_lost_together(c: SimCluster) -> None:
    """The new leader knows nothing of leases: it waits in full."""
    old = await running(c)
    leader = c.leader()
    names = [old.name, leader.name]
    addresses = [c[n].addr for n in names]
    c.net.partition(addresses, [a for a in c.addresses if a not in addresses])
    await c.until("it moved", lambda: moved(c, old), FENCE_S + 12)
    c.heal()


async def the_leader_dies_and_the_worker_is_cut_off(c: SimCluster) -> None:
    """The other worker is there at once for whoever does not wait."""
    old = await running(c)
    leader = c.leader()
    await leader.kill()
    c.isolate(old.name)
    await c.until("it moved", lambda: moved(c, old), FENCE_S + 12)
    c.heal()
    leader.start()


async def the_leader_is_cut_off(c: SimCluster) -> None:
    """No connection ends: the node notices by itself, and in time."""
    old = await running(c)
    (container,) = old.engine.running()
    c.isolate(c.leader().name)
    await asyncio.sleep(FENCE_S * 2)
    assert old.engine.running() == [container]
    assert container.run == 1
    c.heal()


async def the_leader_that_runs_it_is_cut_off(c: SimCluster) -> None:
    old = await running(c, "manager")
    for _ in range(8):
        if c.leader() is old:
            break
        other = c.leader()
        await other.kill()
        await c.any_leader()
        other.start()
        await c.until("all nodes are ready", c.nodes_trouble, 60)
    c.isolate(old.name)
    await c.until("it moved", lambda: moved(c, old), FENCE_S + 12)
    c.heal()


async def a_leader_that_does_not_notice(c: SimCluster) -> None:
    """Deposed, together with the worker in a minority, and with Raft's own check that would have it step down switched off."""
    old = await running(c)
    leader = c.leader()
    addresses = [old.addr, leader.addr]
    c.net.partition(addresses, [a for a in c.addresses if a not in addresses])
    await asyncio.sleep(FENCE_S * 2)
    assert moved(c, old) == ""
    c.heal()


async def it_was_not_started_yet(c: SimCluster) -> None:
    """The node comes back with a task in preparation that has been given to another one."""
    for host in c.hosts.values():
        host.engine.registry["large:1"] = Program(pull_s=1.0)
    for name in ("w1", "w2"):
        c[name].engine.registry["large:1"] = Program(pull_s=60.0)
    await single(c, "worker", "large:1")
    await c.until(
        "it is being pulled",
        lambda: "" if c.tasks("db") and c.tasks("db")[0].status.state == TaskState.PREPARING else "not yet",
    )
    old = c.host_of(c.tasks("db")[0].node_id)
    other = c["w2"] if old is c["w1"] else c["w1"]
    other.engine.registry["large:1"] = Program(pull_s=0.1)
    began = now()
    c.isolate(old.name)
    await c.until("it runs elsewhere", lambda: moved(c, old), FENCE_S + 5)
    await asyncio.sleep(max(0.0, began + 59.5 - now()))
    c.heal()
    await asyncio.sleep(5)


async def it_waits_for_a_lease(c: SimCluster) -> None:
    """A prepared task whose node lost its lease before it was started; the node comes back, and is slow to hear what became of it."""
    for name in ("w1", "w2"):
        c[name].engine.registry["large:1"] = Program(pull_s=9.0)
    await single(c, "worker", "large:1")
    await c.until("it is being pulled", lambda: preparing(c))
    old = c.host_of(c.tasks("db")[0].node_id)
    c.isolate(old.name)
    await c.until("it runs elsewhere", lambda: moved(c, old), FENCE_S + 20)
    apply = old.network.apply

    async def slow(view: Any) -> None:
        await asyncio.sleep(5)
        await apply(view)

    old.network.apply = slow  # type: ignore[method-assign]  # of this host alone
    c.heal()
    await asyncio.sleep(10)


async def clocks_of_different_pace(c: SimCluster) -> None:
    for host, pace in zip(c.hosts.values(), (1.0, 1.03, 0.97, 0.97, 0.97), strict=True):
        host.pace = pace
        host.skew_ns = int((pace - 1) * 1e11)
    old = await running(c)
    c.isolate(old.name)
    await c.until("it moved", lambda: moved(c, old), FENCE_S + 5)
    c.heal()


async def its_engine_does_not_answer(c: SimCluster) -> None:
    """As during a restart of the engine, with containers that go on."""
    old = await running(c)
    old.engine.go_down()
    c.isolate(old.name)
    await c.until("it moved", lambda: moved(c, old), FENCE_S + 5)
    assert old.guard.kills == 1
    old.engine.come_up()
    c.heal()


async def it_is_updated_and_stopped(c: SimCluster) -> None:
    await running(c)
    await c.set_image("db", "web:2")
    await c.until("the new one runs", lambda: unsettled(c), 60)
    await c.set_image("db", "deaf:1")
    await c.until("the new one runs", lambda: unsettled(c), 60)
    await c.set_image("db", "web:1")
    await asyncio.sleep(4)
    assert holders(c), "a stop within its grace period is no reason to lose the lease"
    await c.scale("db", 0)
    await c.until("none is left", lambda: "one" if holders(c) else "", 60)
    await c.scale("db", 1)


async def it_is_cut_off_while_it_stops(c: SimCluster) -> None:
    """Its grace period is longer than the lease."""
    old = await running(c, "worker", "deaf:1")

    def change(spec: dict[str, Any]) -> None:
        spec["TaskTemplate"]["ContainerSpec"].update(Image="web:1", StopGracePeriod=600 * 10**9)

    await c.update("db", change)
    await c.update("db", lambda spec: spec["TaskTemplate"]["ContainerSpec"].update(Image="web:2"))
    await asyncio.sleep(1)
    c.isolate(old.name)
    await c.until("it moved", lambda: moved(c, old), FENCE_S + 25)
    c.heal()


STORIES: tuple[Story, ...] = (
    a_worker_is_cut_off,
    a_daemon_dies,
    a_daemon_is_stopped_in_its_tracks,
    a_daemon_is_started_again_soon,
    the_leader_dies,
    leader_and_worker_are_lost_together,
    the_leader_dies_and_the_worker_is_cut_off,
    the_leader_is_cut_off,
    the_leader_that_runs_it_is_cut_off,
    it_was_not_started_yet,
    it_waits_for_a_lease,
    clocks_of_different_pace,
    its_engine_does_not_answer,
    it_is_updated_and_stopped,
    it_is_cut_off_while_it_stops,
)


@pytest.mark.parametrize("story", STORIES, ids=lambda s: s.__name__)
def test_it_never_runs_twice(story: Story) -> None:
    play(story)


def test_a_deposed_leader_grants_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    never_steps_down(monkeypatch)
    play(a_leader_that_does_not_notice)


def test_without_a_guard_nothing_is_started() -> None:
    async def story(c: SimCluster) -> None:
        for host in c.hosts.values():
            host.guard.up = False
        await single(c)
        await asyncio.sleep(20)
        assert not holders(c)
        assert "swarm-agent-net" in c.tasks("db")[0].status.err
        for host in c.hosts.values():
            host.guard.up = True
        await c.until_running("db", 1)

    play(story)


def test_a_node_that_may_run_one_is_not_removed() -> None:
    async def story(c: SimCluster) -> None:
        old = await running(c)
        node_id = old.node_id
        for state in ("ready", "down"):
            with pytest.raises(ApiError, match=r"may still run the strict singleton db: .* 16 s") as caught:
                await c.api("DELETE", f"/nodes/{node_id}", query="force=1")
            assert caught.value.status == 400
            if state == "ready":
                await old.power_cut()
                await c.until(
                    "it is down",
                    lambda: "" if unwrap(c.store.nodes.get(node_id)).status.state == NodeState.DOWN else "no",
                )
        await c.until(
            "it is fenced",
            lambda: "" if unwrap(c.store.nodes.get(node_id)).status.fenced else "no",
            FENCE_S + 2,
        )
        await c.until("it moved", lambda: moved(c, old), 10)
        await c.api("DELETE", f"/nodes/{node_id}", query="force=1")
        old.start()
        await c.until("it knows", lambda: "" if old.daemon.state == "inactive" else old.daemon.state, 60)
        await c.join(old, "Worker")

    play(story)


def test_a_node_that_is_back_is_fenced_no_more() -> None:
    async def story(c: SimCluster) -> None:
        node_id = c["w1"].node_id
        c.isolate("w1")
        await asyncio.sleep(FENCE_S + 6)
        node = c.store.nodes.get(node_id)
        assert node is not None
        assert (node.status.state, node.status.fenced) == (NodeState.DOWN, True)
        c.heal()
        await c.until("all nodes are ready", c.nodes_trouble)
        node = c.store.nodes.get(node_id)
        assert node is not None
        assert not node.status.fenced

    play(story)


# -- seeded -----------------------------------------------------------------------------------------------------------------


async def a_storm(c: SimCluster) -> None:
    rng = random.Random(c.rng.getrandbits(64))
    for host in c.hosts.values():
        host.pace = rng.uniform(0.97, 1.03)
    await single(c, "", rng.choice(["web:1", "slow:1"]))
    end = now() + 120
    while now() < end:
        host = rng.choice([*c.hosts.values(), *holders(c), *filter(None, [c.leading()])])
        deed = rng.choice(["cut", "cut", "kill", "freeze", "power", "engine", "update", "pair"])
        if deed == "cut":
            c.isolate(host.name)
        elif deed == "pair" and c.leading() is not None:
            pair = [host.addr, c.leader().addr]
            c.net.partition(pair, [a for a in c.addresses if a not in pair])
        elif deed == "kill":
            await host.kill()
        elif deed == "freeze" and host.process is not None:
            c.freeze(host.name)
        elif deed == "power":
            await host.power_cut()
        elif deed == "engine":
            host.engine.go_down()
        elif deed == "update":
            try:
                async with asyncio.timeout(5):
                    await c.set_image("db", rng.choice(["web:1", "web:2", "slow:1"]))
            except (SwarmError, TimeoutError, AssertionError):
                pass
        await asyncio.sleep(rng.choice([0.5, 3, 8, 14, 20]))
        c.heal()
        for host in c.hosts.values():
            host.engine.come_up()
            if host.process is None:
                host.start()
            else:
                host.process.engine.moves.set()
        await asyncio.sleep(rng.choice([0.1, 1, 5]))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_storms(seed: int) -> None:
    play(a_storm, seed=seed)


# -- planted bugs -----------------------------------------------------------------------------------------------------------


def never_steps_down(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaderState, "has_quorum", lambda self, voters: True)


def the_node_ignores_its_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "left", lambda self: 100.0)
    patch.setattr(FakeGuard, "_look", lambda self: None)


def nobody_guards(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FakeGuard, "_look", lambda self: None)


def the_leader_does_not_wait(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("swarm_agent.dispatcher.fencing.FENCE_S", 0.0)


def a_new_leader_does_not_wait(patch: pytest.MonkeyPatch) -> None:
    over = Fence._is_over

    def at_once(self: Fence, node: Any) -> bool:
        self._began = -1000.0
        return over(self, node)

    patch.setattr(Fence, "_is_over", at_once)


def beats_are_confirmed_without_a_barrier(patch: pytest.MonkeyPatch) -> None:
    never_steps_down(patch)

    async def confirm(self: Leadership) -> None:
        pass

    patch.setattr(Leadership, "_confirm", confirm)


def a_lease_is_asked_for_before_the_tasks_are_known(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        SessionAgent, "_assigned", property(lambda self: True, lambda self, value: None), raising=False
    )


PLANTED: tuple[tuple[Patch, Story], ...] = (
    (the_node_ignores_its_lease, a_worker_is_cut_off),
    (nobody_guards, a_daemon_dies),
    (nobody_guards, a_daemon_is_stopped_in_its_tracks),
    (the_leader_does_not_wait, a_worker_is_cut_off),
    (a_new_leader_does_not_wait, the_leader_dies_and_the_worker_is_cut_off),
    (beats_are_confirmed_without_a_barrier, a_leader_that_does_not_notice),
    (a_lease_is_asked_for_before_the_tasks_are_known, it_waits_for_a_lease),
)


@pytest.mark.parametrize(("plant", "story"), PLANTED, ids=lambda x: x.__name__)
def test_a_planted_bug_is_found(plant: Patch, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(Violation, match="runs twice"):
        play(story)
