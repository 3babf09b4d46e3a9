"""Clusters of mixed releases: the feature level rises with the last manager, and never behind anybody's back.

An older release is played by this one, held at its level by ``feature_level`` in agent.toml: from there on it writes nothing newer
and refuses what is newer, which is all that tells the two apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.features import LEVEL
from swarm_agent.store import writes
from tests.lib.sim_checks import ClusterChecks, unsettled
from tests.lib.sim_cluster import SimCluster, simulation
from tests.lib.sim_host import ApiError

Story = Callable[[SimCluster], Awaitable[None]]


def play(story: Story, *, level: int | None = 1, managers: int = 3, workers: int = 1) -> None:
    """A cluster of managers held at ``level``, the story, and everything as declared at its end."""

    async def main(cluster: SimCluster) -> None:
        cluster.feature_level = level
        await cluster.start(managers, workers)
        await cluster.create("web", 4)
        await cluster.until_running("web", 4)
        await story(cluster)
        await cluster.until("everything is as declared", lambda: unsettled(cluster), 120)

    with simulation(1) as sim:
        sim.loop.after_step = ClusterChecks(sim.cluster)
        sim.run(main(sim.cluster))


async def restart(c: SimCluster, name: str, level: int | None) -> None:
    """Stop the daemon, change the release (or what holds it), start it again."""
    await c[name].stop()
    c[name].feature_level = level
    c[name].start()


async def upgrade(c: SimCluster, name: str, level: int | None = None) -> None:
    await restart(c, name, level)
    await c.until(f"{name} is back", lambda: c.nodes_trouble() if c[name].manager else "no manager", 60)


async def settle() -> None:
    """Long enough for a level to be raised if it were going to be."""
    await asyncio.sleep(15)


def level(c: SimCluster) -> int:
    return c.store.feature_level


def written(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The kinds of writes that are proposed from here on."""
    kinds: set[str] = set()
    encode = writes.encode_entry

    def noting(entry: writes.StoreEntry) -> bytes:
        kinds.update(type(w).__name__ for g in entry.groups for w in g.writes)
        return encode(entry)

    monkeypatch.setattr("swarm_agent.manager.manager.encode_entry", noting)
    return kinds


async def refused(c: SimCluster, name: str, reason: str) -> None:
    def trouble() -> str:
        error = c[name].daemon.error
        return "" if reason in error else f"{name} says {error!r}"

    await c.until(f"{name} refuses to be a manager", trouble, 60)
    assert c[name].manager is None


def test_the_level_rises_after_the_last_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = written(monkeypatch)

    async def story(c: SimCluster) -> None:
        for name in ("m1", "m2"):
            await upgrade(c, name)
            await settle()
            assert level(c) == 1, "one manager does not know more"
        await c.scale("web", 6)
        await c.until_running("web", 6)
        assert "SetStatus" not in kinds, "nobody writes above the cluster's level"
        assert all(n.feature_level == 0 for n in c.store.nodes.all())
        await upgrade(c, "m3")
        await c.until("the level rises", lambda: "" if level(c) == LEVEL else "still 1", 30)
        await c.scale("web", 8)
        await c.until_running("web", 8)
        assert "SetStatus" in kinds
        await settle()
        known = {n.description.hostname: n.feature_level for n in c.store.nodes.all()}
        assert known == {"m1": LEVEL, "m2": LEVEL, "m3": LEVEL, "w1": 1}, "a worker holds nothing back"

    play(story)


def test_a_new_cluster_is_at_the_level_of_its_founder() -> None:
    async def story(c: SimCluster) -> None:
        assert level(c) == LEVEL
        assert (await c.api("GET", "/info"))["Swarm"]["FeatureLevel"] == LEVEL

    play(story, level=None)


def test_a_manager_that_is_away_keeps_the_level_down() -> None:
    """Nobody knows what it will be when it comes back; without it the others go on once it is no manager."""

    async def story(c: SimCluster) -> None:
        await c["m3"].stop()
        await upgrade_all_but(c, "m3")
        await settle()
        assert level(c) == 1
        gone = next(n for n in c.store.nodes.all() if n.description.hostname == "m3")
        shown = await c.api("GET", f"/nodes/{gone.id}")
        demoted = {**shown["Spec"], "Role": "worker"}
        await c.api("POST", f"/nodes/{gone.id}/update", demoted, f"version={shown['Version']['Index']}")
        await c.until("the level rises", lambda: "" if level(c) == LEVEL else "still 1", 30)
        c["m3"].feature_level = None
        c["m3"].start()

    async def upgrade_all_but(c: SimCluster, away: str) -> None:
        for name in ("m1", "m2"):
            if name != away:
                await restart(c, name, None)
                await c.any_leader(60)
                await settle()

    play(story)


def test_a_downgrade_before_the_level_rose_keeps_everything() -> None:
    async def story(c: SimCluster) -> None:
        await upgrade(c, "m1")
        await upgrade(c, "m2")
        before = {t.id for t in c.running("web")}
        await upgrade(c, "m1", 1)  # back to the older release
        assert c["m1"].daemon.error == ""
        manager = c["m1"].manager
        assert manager is not None
        await c.until(
            "m1 has applied all", lambda: "" if manager.store.index == c.store.index else "behind", 30
        )
        assert {t.id for t in manager.store.tasks.all() if t.status.state == TaskState.RUNNING} >= before
        await settle()
        assert level(c) == 1
        assert {t.id for t in c.running("web")} == before, "nothing was restarted"

    play(story)


def test_a_downgrade_after_the_level_rose_is_refused_and_heals_with_the_upgrade() -> None:
    async def story(c: SimCluster) -> None:
        for name in ("m1", "m2", "m3"):
            await upgrade(c, name)
        await c.until("the level rises", lambda: "" if level(c) == LEVEL else "still 1", 30)
        before = {t.id for t in c.running("web")}
        await restart(c, "m2", 1)
        await refused(c, "m2", f"knows feature level 1, the swarm is at level {LEVEL}")
        assert "Its data is untouched" in c["m2"].daemon.error
        assert "agent.toml" in c["m2"].daemon.error, "it says what to do"
        assert (c["m2"].directory / "raft").is_dir()
        await c.scale("web", 5)
        await c.until_running("web", 5)
        await settle()
        assert c["m2"].daemon.state == "active", "its tasks go on: it is a node still"
        assert {t.id for t in c.running("web")} >= before, "and none was restarted"
        await restart(c, "m2", 1)  # a second start says the same, whatever came meanwhile
        await refused(c, "m2", f"knows feature level 1, the swarm is at level {LEVEL}")
        await upgrade(c, "m2")
        assert c["m2"].daemon.error == ""

    play(story)


def test_a_refused_manager_can_be_made_a_worker() -> None:
    async def story(c: SimCluster) -> None:
        for name in ("m1", "m2", "m3"):
            await upgrade(c, name)
        await c.until("the level rises", lambda: "" if level(c) == LEVEL else "still 1", 30)
        await restart(c, "m2", 1)
        await refused(c, "m2", "feature level 1")
        await c.set_node("m2", Role="worker")
        await c.until("m2 is a worker", lambda: c["m2"].daemon.error or c.nodes_trouble(), 60)
        assert not (c["m2"].directory / "raft").exists()

    play(story)


def test_a_manager_below_the_level_is_refused_at_the_door() -> None:
    async def story(c: SimCluster) -> None:
        nodes = len(c.store.nodes)
        c.feature_level = 1
        host = c.add_host("m4")
        with pytest.raises(
            ApiError, match=rf"cannot join as a manager.*knows feature level 1, the swarm is at level {LEVEL}"
        ):
            await c.join(host, "Manager")
        assert host.daemon.state == "inactive"
        assert len(c.store.nodes) == nodes
        await c.join(host, "Worker")
        await c.set_node("m4", Role="manager")
        await refused(c, "m4", f"knows feature level 1, the swarm is at level {LEVEL}")
        await c.set_node("m4", Role="worker")
        await c.until("m4 is a worker again", c.nodes_trouble, 60)

    play(story, level=None)


def test_what_a_later_release_wrote_stops_a_manager_once_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An entry of a kind nobody here knows, as if a later release had led."""
    unknown = msgspec.msgpack.encode({"now": 1, "groups": [{"key": "", "writes": [{"type": "transmute"}]}]})

    async def main(c: SimCluster) -> None:
        await c.start(3, 0)
        leader = c.leader().manager
        assert leader is not None
        assert leader.raft is not None
        with pytest.raises(SwarmError):
            await leader.raft.propose(unknown)
        for name in ("m1", "m2", "m3"):
            await refused(c, name, "holds what this release does not know")
        await asyncio.sleep(60)
        for name in ("m1", "m2", "m3"):
            assert "Install a release that knows it" in c[name].daemon.error
            assert c[name].daemon.state == "active"

    caplog.set_level("ERROR", "swarm_agent")
    with simulation(1) as sim:
        sim.run(main(sim.cluster))
    stops = [r for r in caplog.records if "stops" in r.message or "does not work as a manager" in r.message]
    assert len(stops) == 6, "each member ends once and each host says why once"
    assert not any(r.exc_info for r in caplog.records)


def test_what_a_node_has_to_reserve_is_written_from_level_three_on() -> None:
    async def story(c: SimCluster) -> None:
        worker = c["w1"]
        worker.engine.generic = [{"NamedResourceSpec": {"Kind": "gpu", "Value": "one"}}]
        await worker.engine.client().call("POST", "/volumes/create", body={"Name": "data"})

        def told() -> tuple[int, tuple[str, ...]]:
            node = c.store.nodes.get(worker.node_id)
            assert node is not None
            return len(node.description.generic), node.description.volumes

        await asyncio.sleep(30)
        assert told() == (0, ()), "nobody writes what is above the level"
        for name in ("m1", "m2", "m3"):
            await upgrade(c, name, 3)
        await c.until("it is written", lambda: "" if told() == (1, ("data",)) else str(told()), 10)
        await worker.engine.client().call("DELETE", "/volumes/data")
        await c.until("the volume is gone", lambda: "" if told() == (1, ()) else str(told()), 2)

    play(story, level=2)
