"""The agent's socket takes the engine's place on a host, and gives it back."""

from __future__ import annotations

from pathlib import Path

from tests.hosts.swarm import Swarm, play

HOST = 5


def _containers(swarm: Swarm, socket: str) -> set[str]:
    return set(swarm.hosts.ssh(HOST, f"docker --host unix://{socket} ps --quiet").split())


def _state(swarm: Swarm, socket: str) -> str:
    words = "info --format '{{.Swarm.LocalNodeState}}'"
    return swarm.hosts.ssh(HOST, f"docker --host unix://{socket} {words}").strip()


def test_there_and_back(swarm: Swarm, inventory: Path) -> None:
    limited = ("--limit", swarm.hosts.name(HOST))
    replace = (*limited, "--extra-vars", "swarm_agent_socket=replace")
    before = _containers(swarm, "/var/run/docker.sock")
    assert before

    foretold = play(inventory, *replace, "--check")
    there = play(inventory, *replace)
    assert (foretold.code, there.code) == (0, 0), foretold.said + there.said
    assert foretold.changed == there.changed
    assert _state(swarm, "/var/run/docker.sock") == "active"
    assert _state(swarm, "/run/docker-engine.sock") == "inactive"
    assert "DOCKER_HOST" not in swarm.hosts.ssh(HOST, "cat /etc/environment")
    assert _containers(swarm, "/run/docker-engine.sock") == before, "containers did not outlive the move"
    again = play(inventory, *replace)
    assert (again.code, again.changed) == (0, set()), again.said

    # After a reboot, too.
    swarm.hosts.kill(HOST)
    swarm.hosts.start(HOST)
    rebooted = play(inventory, *replace)
    assert (rebooted.code, rebooted.changed) == (0, set()), rebooted.said
    assert _state(swarm, "/var/run/docker.sock") == "active"
    before = _containers(swarm, "/run/docker-engine.sock")

    back = play(inventory, *limited)
    assert back.code == 0, back.said
    assert _state(swarm, "/var/run/docker.sock") == "inactive"
    assert _containers(swarm, "/var/run/docker.sock") == before, "containers did not outlive the move"
    assert swarm.hosts.ssh(HOST, "ls -1 /run/docker*.sock") == "/run/docker.sock\n"
    again = play(inventory, *limited)
    assert (again.code, again.changed) == (0, set()), again.said
