"""A host is put into the inventory and joins, in a run for it alone."""

from __future__ import annotations

from pathlib import Path

from tests.hosts.shell import wait_for
from tests.hosts.swarm import Swarm, play

NEW = 5


def test_a_new_host_joins_in_a_run_for_it_alone_and_gets_tasks(swarm: Swarm, inventory: Path) -> None:
    swarm.hosts.up([NEW])
    swarm.hosts.write_inventory([1, 2, 3], [4, NEW])
    name = swarm.hosts.name(NEW)
    joined = play(inventory, "--limit", name)
    assert joined.code == 0, joined.said
    assert {host for _task, host in joined.changed} == {name}
    swarm.docker(1, "service", "scale", "--detach", "echo=15")
    wait_for(f"tasks on {name}", lambda: swarm.running(1, "echo").get(name), timeout=60)
    wait_for(f"an answer of {name}", lambda: swarm.answer(NEW, 8080), timeout=30)
    again = play(inventory)
    assert (again.code, again.changed) == (0, set()), again.said
