"""What site.yml brought, reset.yml takes away: each host is as it was before."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from tests.hosts.hosts import REGISTRY_NAME
from tests.hosts.registry import OPEN_PORT
from tests.hosts.shell import wait_for
from tests.hosts.swarm import Swarm, play

MANAGER, WORKER = 1, 2
# Images and volumes stay by intention.
_FILES = r"""
find /etc /opt /usr /root /run /srv /var/lib /var/cache /var/spool -xdev \
    \( -path /run/systemd -o -path /run/user -o -path /run/log -o -path /var/lib/docker \
       -o -path /var/lib/containerd -o -path /run/containerd -o -path /run/docker/runtime-runc -o -path /run/docker/netns -o -path /run/netns \
       -o -path /run/docker/containerd -o -path /run/docker/libnetwork -o -name __pycache__ \) -prune -o -print
"""
_NETWORK = """
ip -brief link show | awk '{print $1}' | sed 's/@.*//'; ip netns list; ip rule; ip -4 route | grep -v ' docker0 '
nft list tables 2>/dev/null; iptables-save | grep -v '^[#:]'
"""
_ENGINE = """
docker --context default network ls --format '{{.Name}} {{.Driver}}'; docker --context default ps --all --quiet
docker --context default plugin ls --quiet; docker context ls --format '{{.Name}}'
"""
_SYSTEM = "cat /etc/environment /etc/docker/daemon.json; systemctl list-unit-files --no-legend | awk '{print $1, $2}'; ls -l /etc/environment | cut -c1-10"


def traces(swarm: Swarm, number: int) -> dict[str, set[str]]:
    return {
        name: set(swarm.hosts.ssh(number, script).splitlines())
        for name, script in (
            ("files", _FILES), ("network", _NETWORK), ("engine", _ENGINE), ("system", _SYSTEM),
        )
    }  # fmt: skip


def left(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, tuple[list[str], list[str]]]:
    """What came and what went, by kind."""
    return {
        kind: (sorted(after[kind] - before[kind]), sorted(before[kind] - after[kind]))
        for kind in before
        if after[kind] != before[kind]
    }


def test_reset_leaves_nothing(swarm: Swarm, inventory: Path) -> None:
    hosts = {number: swarm.hosts.name(number) for number in (MANAGER, WORKER)}
    before = {number: traces(swarm, number) for number in hosts}

    # One setting that the engine takes up at a reload, one that needs a restart.
    settings = {"swarm_engine_settings": {"log-driver": "local", "max-concurrent-downloads": 5}}
    made = play(inventory, "--extra-vars", json.dumps(settings))
    assert made.code == 0, made.said
    swarm.docker(MANAGER, "network", "create", "--driver", "overlay", "back")
    swarm.docker(
        MANAGER, "service", "create", "--detach", "--name", "echo", "--replicas", "4", "--network", "back",
        "--publish", "8080:8080", f"{REGISTRY_NAME}:{OPEN_PORT}/echo:latest",
    )  # fmt: skip
    wait_for("two tasks a host", lambda: _spread(swarm) == dict.fromkeys(hosts.values(), 2), timeout=60)
    for number in hosts:
        wait_for("an answer", partial(swarm.answer, number, 8080), timeout=30)
        found = left(before[number], traces(swarm, number))
        assert set(found) == {"files", "network", "engine", "system"}, "the search finds nothing"

    alone = play(inventory, "--limit", hosts[WORKER], playbook="playbooks/reset.yml")
    assert alone.code == 0, alone.said
    assert left(before[WORKER], traces(swarm, WORKER)) == {}
    assert set(swarm.nodes(MANAGER)) == {hosts[MANAGER]}
    wait_for("all tasks on the manager", lambda: _spread(swarm) == {hosts[MANAGER]: 4}, timeout=60)

    whole = play(inventory, playbook="playbooks/reset.yml")
    assert whole.code == 0, whole.said
    for number in hosts:
        assert left(before[number], traces(swarm, number)) == {}

    again = play(inventory, playbook="playbooks/reset.yml")
    assert (again.code, again.changed) == (0, set()), again.said


def _spread(swarm: Swarm) -> dict[str, int]:
    return {name: len(tasks) for name, tasks in swarm.running(MANAGER, "echo").items()}
