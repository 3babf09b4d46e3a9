"""What was changed by hand is foretold exactly by --check, repaired by the next run and left alone by the one after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hosts.shell import wait_for
from tests.hosts.swarm import Swarm, play, play_with

NODE = "Have the node's role, availability and labels"
# The worker's drain and the label are of the swarm, the rest of single hosts.
EXPECTED = {
    (NODE, 1),
    ("Have the network plugin and the agent run", 2),
    ("Have the engine's settings and the registries' certificates", 3),
    ("Reload the engine", 3),
    (NODE, 4),
}


def _settings(swarm: Swarm, number: int) -> dict[str, object]:
    found: dict[str, object] = json.loads(swarm.hosts.ssh(number, "cat /etc/docker/daemon.json"))
    return found


def test_drift_by_hand(swarm: Swarm, inventory: Path) -> None:
    expected = {(task, swarm.hosts.name(number)) for task, number in EXPECTED}
    undisturbed = play(inventory)
    assert (undisturbed.code, undisturbed.changed) == (0, set()), undisturbed.said

    swarm.docker(3, "node", "update", "--label-add", "zone=elsewhere", swarm.hosts.name(1))
    swarm.docker(3, "node", "update", "--availability", "drain", swarm.hosts.name(4))
    settings = {**_settings(swarm, 3), "live-restore": False}
    swarm.hosts.ssh(3, f"echo '{json.dumps(settings)}' >/etc/docker/daemon.json && systemctl reload docker")
    swarm.hosts.ssh(2, "systemctl stop swarm-agent")

    foretold = play(inventory, "--check")
    assert (foretold.code, foretold.changed) == (0, expected), foretold.said
    assert _settings(swarm, 3)["live-restore"] is False  # a check touches nothing
    assert swarm.hosts.ssh(2, "systemctl is-active swarm-agent", check=False).strip() == "inactive"

    repaired = play(inventory)
    assert (repaired.code, repaired.changed) == (0, expected), repaired.said
    nodes = swarm.nodes(2)
    assert nodes[swarm.hosts.name(1)]["Spec"]["Labels"] == {"zone": "zone-1"}
    assert nodes[swarm.hosts.name(4)]["Spec"]["Availability"] == "active"
    assert _settings(swarm, 3)["live-restore"] is True

    again = play(inventory)
    assert (again.code, again.changed) == (0, set()), again.said
    wait_for("all tasks", lambda: sum(map(len, swarm.running(1, "echo").values())) == 8, timeout=60)


@pytest.mark.parametrize("stopped", [(1,), (1, 2, 3)])
def test_managers_that_stop_between_two_tasks(
    swarm: Swarm, inventory: Path, stopped: tuple[int, ...]
) -> None:
    """Another one is asked; without any that is said. A healthy member is never told to leave."""
    worker = swarm.hosts.name(4)

    def stop() -> None:
        for number in stopped:
            swarm.hosts.ssh(number, "systemctl stop swarm-agent")

    asking = "Ask for nodes and join tokens, one manager after the other until one answers"
    ended = play_with(inventory, "--limit", worker, at=asking, meanwhile=stop)
    for number in stopped:
        swarm.hosts.ssh(number, "systemctl start swarm-agent")
    words = " ".join(ended.said.split())
    assert "reset.yml" not in words
    if len(stopped) == 1:
        assert (ended.code, ended.changed) == (0, set()), ended.said
    else:
        assert ended.code == 2, ended.said
        assert f"no manager answers any more, so {worker} is left as it is" in words
        for number in stopped:
            assert f"{swarm.hosts.name(number)}: " in words
    wait_for("a leader", lambda: "Leader" in swarm.docker(1, "node", "ls", check=False), timeout=60)
