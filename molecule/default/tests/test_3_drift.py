"""What was changed by hand is foretold exactly by --check, repaired by the next run and left alone by the one after."""

from __future__ import annotations

import json
from pathlib import Path

from tests.hosts.shell import wait_for
from tests.hosts.swarm import Swarm, play

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
