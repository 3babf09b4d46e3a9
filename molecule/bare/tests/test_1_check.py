"""``--check`` ends well in every state that a host can be in, and foretells what the run then does, task by task and host by host."""

from __future__ import annotations

import time
from pathlib import Path

from tests.hosts.shell import wait_for
from tests.hosts.swarm import Swarm, play

MANAGER, WORKER = 1, 2


def foretold_and_done(inventory: Path, *words: str, playbook: str = "site.yml") -> set[tuple[str, str]]:
    """What the run changed, having seen that --check foretold just that and that a second run changes nothing."""
    foretold = play(inventory, *words, "--check", "--diff", playbook=playbook)
    assert foretold.code == 0, foretold.said
    done = play(inventory, *words, playbook=playbook)
    assert done.code == 0, done.said
    assert foretold.changed == done.changed, foretold.said + done.said
    again = play(inventory, *words, playbook=playbook)
    assert (again.code, again.changed) == (0, set()), again.said
    return set(done.changed)


def test_a_mirror_that_does_not_answer(swarm: Swarm, inventory: Path) -> None:
    """The run ends within two minutes and says what it waited for; it hung for ten minutes without a word."""
    dead = "table inet dead"
    swarm.hosts.ssh(
        WORKER,
        f"nft 'add {dead}; add chain inet dead out {{ type filter hook output priority 0; }};"
        " add rule inet dead out tcp dport { 80, 443, 3128 } drop'",
    )
    started = time.monotonic()
    refused = play(inventory, "--limit", swarm.hosts.name(WORKER))
    took = time.monotonic() - started
    swarm.hosts.ssh(WORKER, f"nft delete {dead}")
    words = " ".join(refused.said.split())
    assert refused.code == 2, refused.said
    assert "packages could not be fetched from this host''s mirror (http" in words, refused.said
    assert "swarm_engine_packages_dir" in words
    assert took < 120, refused.said
    print(f"ended after {took:.0f} s")


def test_bare_hosts(swarm: Swarm, inventory: Path) -> None:
    for number in (MANAGER, WORKER):
        assert swarm.hosts.ssh(number, "command -v docker dockerd nft conntrack || true").split() in (
            [],
            ["/usr/sbin/nft"],
        )
    changed = foretold_and_done(inventory)
    assert {("Install what is missing", swarm.hosts.name(number)) for number in (MANAGER, WORKER)} < changed
    assert {host for task, host in changed if task in ("Begin a swarm", "Join")} == {
        swarm.hosts.name(MANAGER),
        swarm.hosts.name(WORKER),
    }
    assert {node["Status"]["State"] for node in swarm.nodes(MANAGER).values()} == {"ready"}


def test_a_second_run_reads_no_package_lists(swarm: Swarm, inventory: Path) -> None:
    """Debian 13 has the docker command in a package of its own; it was missed, and apt asked, in each run."""
    read = "stat --format %y /var/lib/apt/lists /var/cache/apt/pkgcache.bin /var/log/dpkg.log"
    before = [swarm.hosts.ssh(number, read) for number in (MANAGER, WORKER)]
    assert swarm.docker(WORKER, "info", "--format", "{{.Swarm.LocalNodeState}}") == "active"
    again = play(inventory)
    assert (again.code, again.changed) == (0, set()), again.said
    assert [swarm.hosts.ssh(number, read) for number in (MANAGER, WORKER)] == before


def test_a_host_without_the_docker_command_is_taken_out_and_put_in_again(
    swarm: Swarm, inventory: Path
) -> None:
    """Afterwards it has an engine and nothing of ours: a state of its own."""
    swarm.hosts.ssh(WORKER, "dpkg --purge --force-depends docker-cli 2>&1")
    name = swarm.hosts.name(WORKER)
    foretold_and_done(inventory, "--limit", name, playbook="playbooks/reset.yml")
    assert set(swarm.nodes(MANAGER)) == {swarm.hosts.name(MANAGER)}
    # Nothing that we set is in the way of the engine's own swarm mode.
    init = "curl --silent --fail-with-body --unix-socket /run/docker.sock -H 'Content-Type: application/json'"
    swarm.hosts.ssh(WORKER, f"""{init} -d '{{"ListenAddr": "127.0.0.1"}}' http://engine/swarm/init""")
    swarm.hosts.ssh(WORKER, f"{init} -X POST 'http://engine/swarm/leave?force=1'")
    changed = foretold_and_done(inventory, "--limit", name)
    assert ("Install what is missing", name) in changed
    assert ("Install the program", name) in changed
    assert swarm.docker(WORKER, "info", "--format", "{{.Swarm.LocalNodeState}}") == "active"


def test_an_agent_that_is_in_no_swarm(swarm: Swarm, inventory: Path) -> None:
    name = swarm.hosts.name(WORKER)
    swarm.docker(WORKER, "swarm", "leave")
    swarm.docker(MANAGER, "node", "rm", "--force", name)
    node = "Have the node's role, availability and labels"
    assert foretold_and_done(inventory) == {("Join", name), (node, name)}


def test_a_member_whose_agent_is_stopped(swarm: Swarm, inventory: Path) -> None:
    start = "Have the network plugin and the agent run"
    for number in (MANAGER, WORKER):
        swarm.hosts.ssh(number, "systemctl stop swarm-agent")
        assert foretold_and_done(inventory) == {(start, swarm.hosts.name(number))}


def test_an_engine_that_is_stopped(swarm: Swarm, inventory: Path) -> None:
    swarm.hosts.ssh(WORKER, "systemctl stop docker.socket docker.service")
    name = swarm.hosts.name(WORKER)
    changed = foretold_and_done(inventory)
    assert changed == {("Have the engine run", name)}
    wait_for("the worker", lambda: swarm.nodes(MANAGER)[name]["Status"]["State"] == "ready", timeout=60)
