"""Beginning again when the majority of the managers is gone: whole clusters in virtual time."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from swarm_agent.manager.backup import ArchiveUnreadable
from swarm_agent.objects.specs import RecoverOptions
from tests.lib.optional import unwrap
from tests.lib.sim_checks import unsettled
from tests.lib.sim_cluster import SimCluster, simulation
from tests.lib.sim_host import ApiError

FORCE = {"ListenAddr": "0.0.0.0:2377", "ForceNewCluster": True, "Spec": {}}


@pytest.mark.parametrize("seed", range(1, 6))
def test_one_of_three_goes_on_alone_and_the_others_come_back_as_managers(seed: int) -> None:
    async def main(c: SimCluster) -> None:
        await c.start(3, 2)
        await c.create("web", 4)
        await c.until("web runs", lambda: unsettled(c))
        names = ["m1", "m2", "m3"]
        survivor = names[seed % 3]
        others = [n for n in names if n != survivor]
        with pytest.raises(ApiError, match="has a majority"):
            await c[survivor].api("POST", "/swarm/init", FORCE)
        for name in others:
            await c[name].kill()
        await asyncio.sleep(8)
        said = c[survivor].daemon.error
        assert "2 of 3 managers" in said
        assert "--force-new-cluster" in said
        assert all(name in said for name in others)
        node_id = await c[survivor].api("POST", "/swarm/init", FORCE)
        assert c.leader().name == survivor
        assert len(unwrap(c.leader().manager).status.members) == 1
        assert node_id == unwrap(c[survivor].manager).settings.node_id
        assert c[survivor].daemon.error == ""
        assert [s.spec.name for s in c.store.services.all()] == ["web"]
        await c.create("after", 2)
        for name in others:
            c[name].start()
        await c.until(
            "all three are voters again",
            lambda: "" if len(unwrap(c.leader().manager).status.members) == 3 else "not yet",
            120,
        )
        await c.until("everything is as declared", lambda: unsettled(c), 120)
        assert sorted(s.spec.name or "" for s in c.store.services.all()) == ["after", "web"]

    with simulation(seed) as sim:
        sim.run(main(sim.cluster))


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_backup_from_any_manager_begins_the_swarm_anew_elsewhere(seed: int) -> None:
    key = b"k" * 32

    async def main(c: SimCluster) -> None:
        await c.start(3, 1)
        await c.create("web", 3)
        await c.until_running("web", 3)
        writing = asyncio.ensure_future(_keep_writing(c))
        await asyncio.sleep(0.3)
        source = c[["m1", "m2", "m3"][seed % 3]]
        written = counter_of(c)
        archive = b"".join(await unwrap(source.process).run(source.daemon.backup(key)))
        writing.cancel()
        await asyncio.wait([writing])
        tokens = unwrap(c.store.cluster).join_tokens
        index = c.store.index
        for name in ("m1", "m2", "m3", "w1"):
            await c[name].kill()

        fresh = c.add_host("fresh")
        recover = fresh.daemon.recover
        with pytest.raises(ArchiveUnreadable):
            await unwrap(fresh.process).run(
                recover(RecoverOptions(advertise_addr=fresh.addr), archive, b"x" * 32)
            )
        assert fresh.daemon.state == "inactive"
        node_id = await unwrap(fresh.process).run(
            recover(RecoverOptions(advertise_addr=fresh.addr), archive, key)
        )
        assert c.leader().name == "fresh"
        assert unwrap(c.store.cluster).join_tokens == tokens
        assert c.store.index > index - 100
        assert counter_of(c) >= written, "what was acknowledged before the call is in the backup"
        managers = [n.id for n in c.store.nodes.all() if n.role == "manager"]
        assert managers == [node_id]
        await c.until_running("web", 3, 120)  # the lost nodes' tasks run here
        await c.join(c.add_host("second"), "Manager")
        assert len(unwrap(c.leader().manager).status.members) == 2
        await fresh.power_cut()
        fresh.start()
        await c.any_leader()
        assert c.service("web").spec.name == "web"

    with simulation(seed) as sim:
        sim.run(main(sim.cluster))


def counter_of(c: SimCluster) -> int:
    return int((c.service("counter").spec.labels or {})["n"])


async def _keep_writing(c: SimCluster) -> None:
    await c.create("counter", 0, Labels={"n": "0"})
    for n in range(1, 10_000):
        await c.update("counter", partial(dict.update, Labels={"n": str(n)}))
