"""A service is declared by a playbook, runs on every host and answers at every host."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from tests.hosts.hosts import HostSet
from tests.hosts.shell import run, wait_for
from tests.hosts.swarm import Swarm, play

NUMBERS = (1, 2, 3, 4)
PORT = 8080


def test_the_playbook_declares_it_and_declaring_it_again_changes_nothing(
    swarm: Swarm, inventory: Path
) -> None:
    playbook = str(Path(__file__).with_name("service.yml"))
    foretold = play(inventory, "--check", playbook=playbook)
    first = play(inventory, playbook=playbook)
    second = play(inventory, playbook=playbook)
    assert (foretold.code, first.code, second.code) == (0, 0, 0), foretold.said + first.said + second.said
    assert foretold.changed == first.changed == {("Have the service", swarm.hosts.name(1))}
    assert second.changed == set()


def test_two_tasks_run_on_each_host(swarm: Swarm) -> None:
    spread = {name: len(tasks) for name, tasks in swarm.running(1, "echo").items()}
    assert spread == {swarm.hosts.name(number): 2 for number in NUMBERS}


def test_every_host_answers_and_shows_the_client_its_own_address(swarm: Swarm) -> None:
    own = swarm.own_address()
    for number in NUMBERS:
        wait_for(f"an answer of host {number}", partial(swarm.answer, number, PORT), timeout=30)
        for _ in range(4):
            said = swarm.answer(number, PORT)
            assert said is not None
            assert f"client={own}" in said.split(), said


def test_docker_on_a_host_reaches_the_swarm(swarm: Swarm) -> None:
    listed = swarm.docker(2, "node", "ls", "--format", "{{.Hostname}} {{.Status}}").splitlines()
    assert sorted(listed) == [f"{swarm.hosts.name(number)} Ready" for number in NUMBERS]
    assert "is not a swarm manager" in _stderr(swarm, 4, "docker node ls")
    assert "echo" not in swarm.docker(
        1, "--context", "engine", "info", "--format", "{{.Swarm.LocalNodeState}}"
    )


def test_docker_over_ssh_reaches_the_swarm(hosts: HostSet) -> None:
    environment = {
        **{key: value for key, value in os.environ.items() if key != "DOCKER_CONTEXT"},
        "DOCKER_HOST": f"ssh://root@{hosts.name(3)}",
        "PATH": f"{hosts.directory / 'bin'}:{os.environ['PATH']}",
    }
    said = run(["docker", "service", "ls", "--format", "{{.Name}} {{.Replicas}}"], env=environment).stdout
    assert said.split("\n")[0] == "echo 8/8"


def _stderr(swarm: Swarm, number: int, line: str) -> str:
    return swarm.hosts.ssh(number, f"{line} 2>&1", check=False)
