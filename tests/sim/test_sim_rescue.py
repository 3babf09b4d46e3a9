"""Beginning again when the majority of the managers is gone: whole clusters in virtual time."""

from __future__ import annotations

import pytest

from swarm_agent.testing.sim_checks import unsettled
from swarm_agent.testing.sim_cluster import SimCluster, simulation
from swarm_agent.testing.sim_host import ApiError

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
        node_id = await c[survivor].api("POST", "/swarm/init", FORCE)
        assert c.leader().name == survivor
        assert len(c.leader().manager.status.members) == 1  # type: ignore[union-attr]
        assert node_id == c[survivor].manager.settings.node_id  # type: ignore[union-attr]
        assert [s.spec.name for s in c.store.services.all()] == ["web"]
        await c.create("after", 2)
        for name in others:
            c[name].start()
        await c.until(
            "all three are voters again",
            lambda: "" if len(c.leader().manager.status.members) == 3 else "not yet",  # type: ignore[union-attr]
            120,
        )
        await c.until("everything is as declared", lambda: unsettled(c), 120)
        assert sorted(s.spec.name or "" for s in c.store.services.all()) == ["after", "web"]

    with simulation(seed) as sim:
        sim.run(main(sim.cluster))
