"""Bad input and unfit hosts: each is refused with what to do, and nothing is left half made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.hosts.shell import wait_for
from tests.hosts.swarm import Play, Swarm, play

STRANGER = 6

_OLD_ENGINE = """
import json, http.server, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"Version": "19.03.15", "Swarm": {"LocalNodeState": "inactive"}}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def address_string(self): return "unix"
socketserver.UnixStreamServer("/run/docker.sock", Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def stranger(swarm: Swarm) -> str:
    """A host that the inventory names and that is in no swarm yet."""
    swarm.hosts.up([STRANGER])
    swarm.hosts.write_inventory([1, 2, 3], [4, 5, STRANGER])
    return swarm.hosts.name(STRANGER)


def _ssh(swarm: Swarm, line: str) -> str:
    return swarm.hosts.ssh(STRANGER, line)


@contextmanager
def _engine_in_swarm_mode(swarm: Swarm) -> Iterator[None]:
    _ssh(swarm, "docker swarm init")
    yield
    _ssh(swarm, "docker swarm leave --force")


@contextmanager
def _old_engine(swarm: Swarm) -> Iterator[None]:
    _ssh(swarm, "systemctl stop docker.service docker.socket; rm -f /run/docker.sock")
    _ssh(swarm, f"systemd-run --quiet --unit old-engine python3 -c '{_OLD_ENGINE}'")
    wait_for("the old engine", lambda: _ssh(swarm, "ls /run").count("docker.sock"), timeout=10)
    yield
    _ssh(
        swarm,
        "systemctl stop old-engine; rm -f /run/docker.sock; systemctl start docker.socket docker.service",
    )


@contextmanager
def _other_clock(swarm: Swarm) -> Iterator[None]:
    """Hosts on one machine share its clock; this one's Python reads another."""
    path = "/usr/lib/python3/dist-packages/usercustomize.py"
    _ssh(swarm, f"echo 'import time; now = time.time; time.time = lambda: now() + 7200' >{path}")
    yield
    _ssh(swarm, f"rm {path}")


@contextmanager
def _small_disk_and_taken_port(swarm: Swarm) -> Iterator[None]:
    _ssh(swarm, "mkdir -p /opt/swarm-agent && mount -t tmpfs -o size=9m tmpfs /opt/swarm-agent")
    _ssh(swarm, "systemd-run --quiet --unit taken python3 -m http.server 2377")
    wait_for("the port", lambda: _ssh(swarm, "ss -Hltn sport = 2377"), timeout=10)
    yield
    _ssh(swarm, "systemctl stop taken; umount /opt/swarm-agent; rmdir /opt/swarm-agent")


@contextmanager
def _broken_settings(swarm: Swarm) -> Iterator[None]:
    _ssh(swarm, "cp /etc/docker/daemon.json /tmp/kept; echo '{' >/etc/docker/daemon.json")
    yield
    _ssh(swarm, "cp /tmp/kept /etc/docker/daemon.json")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            _engine_in_swarm_mode,
            ["the Docker Engine's own swarm mode is active", "docker --host unix:///var/run/docker.sock swarm leave --force"],
        ),
        (_old_engine, ["Docker Engine 19.03.15 is too old: 20.10 or newer is needed"]),
        (_other_clock, ["the clock is 2.0 hours ahead of the controller's: set it (timedatectl set-ntp true)"]),
        (
            _small_disk_and_taken_port,
            ["only 9 MB are free for /opt/swarm-agent, 500 are needed: make room", "port 2377/tcp is used by process"],
        ),
        (_broken_settings, ["/etc/docker/daemon.json is not JSON", "repair or remove it"]),
    ],
)  # fmt: skip
def test_an_unfit_host(
    swarm: Swarm,
    inventory: Path,
    stranger: str,
    spoil: Callable[[Swarm], AbstractContextManager[None]],
    said: list[str],
) -> None:
    with spoil(swarm):
        refused = play(inventory, "--limit", stranger)
    assert refused.code == 2, refused.said
    for sentence in said:
        assert sentence in refused.said.replace("\n", " "), refused.said
    # Nothing of the agent is there; the engine's role, which comes first, notes what it has set.
    there = "find /opt/swarm-agent /etc/swarm-agent /var/lib/swarm-agent -type f 2>/dev/null || true"
    assert set(_ssh(swarm, there).split()) <= {"/etc/swarm-agent/engine-before.json"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--extra-vars", "swarm_agent_log_levle=debug"], "unknown variable swarm_agent_log_levle"),
        (["--extra-vars", "swarm_agent_log_level=loud"], "must be one of: debug, info, warning, error, got: loud"),
        (["--extra-vars", "swarm_agent_rpc_port=many"], "swarm_agent_rpc_port"),
        (["--extra-vars", "swarm_agent_source=/nowhere"], "set swarm_agent_source"),
    ],
)  # fmt: skip
def test_a_wrong_option(inventory: Path, stranger: str, words: list[str], said: str) -> None:
    refused = play(inventory, "--limit", stranger, *words)
    assert refused.code == 2
    assert said in refused.said, refused.said
    # The engine's settings were touched by the tests before this one.
    assert {task for task, _host in refused.changed} <= {"Reload the engine"}


SERVICE = {"name": "bad", "image": "registry.swarm-demo:5000/echo:latest"}


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        ("swarm_service", {**SERVICE, "replicsa": 2}, "Unsupported parameters"),
        ("swarm_service", {**SERVICE, "name": "no spaces please"}, "name"),
        ("swarm_service", {**SERVICE, "replicas": -1}, "replicas"),
        ("swarm_service", {**SERVICE, "image": ""}, "image"),
        ("swarm_service", {**SERVICE, "publish": [{"published": 99999, "target": 80}]}, "99999"),
        ("swarm_service", {**SERVICE, "networks": [{"name": "nowhere"}]}, "nowhere"),
        ("swarm_node", {"node": "nobody", "availability": "drain"}, "the swarm has no node nobody"),
        ("swarm_node", {"labels": {"zone": "x"}, "availability": "away"}, "value of availability must be one of"),
    ],
)  # fmt: skip
def test_a_module_s_wrong_option(
    swarm: Swarm, inventory: Path, tmp_path: Path, module: str, options: dict[str, object], said: str
) -> None:
    refused = _try(inventory, tmp_path, "managers[0]", module, options)
    assert refused.code == 2, refused.said
    assert said in refused.said, refused.said
    assert "bad" not in swarm.docker(1, "service", "ls", "--format", "{{.Name}}").split()


def _try(inventory: Path, tmp_path: Path, hosts: str, module: str, options: dict[str, object]) -> Play:
    book = tmp_path / "book.yml"
    task = {"name": "Try", f"swarm.cluster.{module}": options}
    book.write_text(json.dumps([{"hosts": hosts, "gather_facts": False, "tasks": [task]}]))
    return play(inventory, playbook=str(book))


def test_a_service_that_fits_nowhere(swarm: Swarm, inventory: Path, tmp_path: Path) -> None:
    """As with Docker it is declared and waits for a node that is large enough; the task says so."""
    options = {**SERVICE, "reservations": {"memory": "900 GB"}, "wait_timeout": 5}
    refused = _try(inventory, tmp_path, "managers[0]", "swarm_service", options)
    assert refused.code == 2, refused.said
    assert "insufficient" in refused.said, refused.said
    swarm.docker(1, "service", "rm", "bad")


@pytest.fixture(scope="module")
def outsider(swarm: Swarm, inventory: Path, stranger: str) -> str:
    """A host with an agent that is in no swarm any more."""
    joined = play(inventory, "--limit", stranger)
    assert joined.code == 0, joined.said
    node = swarm.nodes(1)[stranger]["ID"]
    swarm.docker(STRANGER, "swarm", "leave")
    swarm.docker(1, "node", "rm", "--force", node)
    return stranger


@pytest.mark.parametrize(
    ("host", "token"),
    [(1, "SWMTKN-1-" + "0" * 50 + "-" + "0" * 25), (1, "not a token"), (99, "SWMTKN-1-" + "0" * 50 + "-" + "0" * 25)],
    ids=["wrong token", "no token", "no manager"],
)  # fmt: skip
def test_a_join_that_cannot_be(
    swarm: Swarm, inventory: Path, tmp_path: Path, outsider: str, host: int, token: str
) -> None:
    options = {"remote_addrs": [f"{swarm.hosts.address(host)}:2377"], "join_token": token}
    refused = _try(inventory, tmp_path, outsider, "swarm_member", dict(options))
    print(refused.said)
    assert refused.code == 2, refused.said
    assert f"could not join through {swarm.hosts.address(host)}:2377: " in refused.said, refused.said
    assert swarm.docker(STRANGER, "info", "--format", "{{.Swarm.LocalNodeState}}") == "inactive"
    assert outsider not in swarm.nodes(1)


def test_after_all_that_it_joins_and_leaves(swarm: Swarm, inventory: Path, outsider: str) -> None:
    joined = play(inventory, "--limit", outsider)
    assert joined.code == 0, joined.said
    left = play(inventory, "--limit", outsider, playbook="playbooks/reset.yml")
    assert left.code == 0, left.said
    assert outsider not in swarm.nodes(1)


def test_a_node_that_the_inventory_does_not_name_is_reported_and_stays(swarm: Swarm, inventory: Path) -> None:
    swarm.hosts.write_inventory([1, 2, 3], [4])
    told = play(inventory)
    assert (told.code, told.changed) == (0, set()), told.said
    name, address = swarm.hosts.name(5), swarm.hosts.address(5)
    words = " ".join(told.said.split())
    assert f"the swarm has nodes that the inventory does not name: {name} ({address}, ready)" in words
    assert name in swarm.nodes(1)
