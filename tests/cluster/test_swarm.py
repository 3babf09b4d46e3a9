"""Three real daemons with real engines, driven by the real docker CLI. The tests run in order and build on each other."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.network.lab import ROOT, run, until
from tests.cluster.swarm_lab import CLIENT, IMAGE, SHELL, Lab, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

CREATE = ("service", "create", "--no-resolve-image", "-d")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder: Path = tmp_path_factory.mktemp("swarm")
    with swarm_lab(folder) as found:
        yield found


def refused(lab: Lab, number: int, *arguments: str) -> str:
    """The error text of a CLI call that must fail."""
    done = subprocess.run(
        ["docker", "-H", f"unix://{lab[number].socket}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0, f"docker {' '.join(arguments)} should have been refused: {done.stdout}"
    return done.stderr


def nodes_of(tasks: list[dict[str, object]]) -> list[int]:
    return sorted(Counter(t["NodeID"] for t in tasks).values())


def test_before_the_swarm(lab: Lab) -> None:
    assert "This node is not a swarm manager" in refused(lab, 1, "node", "ls")
    assert lab[1].get("/info")["Swarm"]["LocalNodeState"] == "inactive"
    assert "invalid join token" in refused(lab, 1, "swarm", "join", "--token", "nonsense", "10.92.0.2:2377")


def test_init_and_join(lab: Lab) -> None:
    out = lab[1].swarm("swarm", "init", "--advertise-addr", lab[1].address)
    assert "docker swarm join --token SWMTKN-1-" in out
    manager = lab[1].swarm("swarm", "join-token", "-q", "manager").strip()
    wrong = manager[:-1] + ("a" if manager[-1] != "a" else "b")
    assert "A valid join token is necessary" in refused(
        lab, 2, "swarm", "join", "--token", wrong, "10.92.0.1:2377"
    )
    other = manager.replace("SWMTKN-1-", "SWMTKN-1-0")[: len(manager)]
    other = "-".join([*manager.split("-")[:2], other.split("-")[2][:50], manager.split("-")[3]])
    assert "remote CA does not match fingerprint" in refused(
        lab, 2, "swarm", "join", "--token", other, "10.92.0.1:2377"
    )
    assert "cannot reach a manager" in refused(lab, 2, "swarm", "join", "--token", manager, "10.92.0.3:2377")
    assert lab[2].get("/info")["Swarm"]["LocalNodeState"] == "inactive"
    for number in (2, 3):
        assert "joined a swarm as a manager" in lab[number].swarm(
            "swarm", "join", "--token", manager, "10.92.0.1:2377"
        )
    for number in (1, 2, 3):
        nodes = lab.nodes(number)
        assert [n["Status"]["State"] for n in nodes.values()] == ["ready"] * 3
        assert sorted(n["ManagerStatus"]["Reachability"] for n in nodes.values()) == ["reachable"] * 3


def test_six_replicas_answer_on_every_host_with_the_clients_address(lab: Lab) -> None:
    lab[2].swarm("network", "create", "-d", "overlay", "app")
    command = ("--name", "web", "--network", "app", "--replicas", "6", "-p", "8080:7000", f"{IMAGE}:1")
    out = lab[3].swarm("service", "create", "--no-resolve-image", *command, "/task", "serve", "web", "7000")
    assert "converged" in out
    assert nodes_of(lab.running(1, "web", 6)) == [2, 2, 2]
    for number in (1, 2, 3):
        assert lab.greeting(number, 8080)[:2] == ["web", CLIENT]


def test_names_and_virtual_addresses_across_hosts(lab: Lab) -> None:
    lab[1].swarm(
        *CREATE,
        "--name",
        "other",
        "--network",
        "app",
        "--replicas",
        "3",
        f"{IMAGE}:1",
        "/task",
        "serve",
        "o",
        "7001",
    )
    lab.running(1, "other", 3)
    vip = lab[1].get("/services/web")["Endpoint"]["VirtualIPs"][0]["Addr"].split("/")[0]
    backends = {
        a.split("/")[0] for t in lab.tasks(1, "web") for n in t["NetworksAttachments"] for a in n["Addresses"]
    }
    for number in (1, 2, 3):
        names = lab[number].docker("ps", "--format", "{{.Names}}").split()
        (name,) = [n for n in names if n.startswith("other")]
        assert lab[number].docker("exec", name, "/task", "resolve", "web").split() == [vip]
        found = set(lab[number].docker("exec", name, "/task", "resolve", "tasks.web").split())
        assert len(found) == 6
        assert found <= backends


def test_logs_of_every_task(lab: Lab) -> None:
    script = "echo said $((1 + 1)); sleep 1000"
    lab[1].swarm(
        *CREATE, "--name", "talk", "--replicas", "3", "--stop-grace-period", "0s", SHELL, "sh", "-c", script
    )
    lab.running(1, "talk", 3)
    out = lab[2].swarm("service", "logs", "--raw", "talk")
    assert out.split("\n").count("said 2") == 3


def test_everything_else_passes_through(lab: Lab) -> None:
    name = next(n for n in lab[1].docker("ps", "--format", "{{.Names}}").split() if n.startswith("talk"))
    assert lab[1].swarm("exec", name, "echo", "inside").strip() == "inside"
    assert lab[1].swarm("exec", "-i", name, "cat", input="through stdin\n") == "through stdin\n"
    assert (
        lab[3].swarm("run", "-i", "--rm", "--network", "none", SHELL, "cat", input="x" * 100_000)
        == "x" * 100_000
    )
    terminal = subprocess.run(
        [
            "script",
            "-qec",
            f"docker -H unix://{lab[1].socket} run -it --rm --network none {SHELL} sh -c 'echo tty; exit 3'",
            "/dev/null",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert terminal.returncode == 3
    assert terminal.stdout.strip().endswith("tty")
    assert "said 2" in lab[1].swarm("logs", name)


def test_scale_touches_nothing_that_runs(lab: Lab) -> None:
    before = {t["ID"] for t in lab.tasks(1, "web")}
    lab[2].swarm("service", "scale", "-d", "web=7")
    after = {t["ID"] for t in lab.running(1, "web", 7)}
    assert before < after
    assert "UpdateStatus" not in lab[1].get("/services/web")
    lab[2].swarm("service", "scale", "-d", "web=6")
    until(lambda: len(lab.tasks(1, "web")) == 6, "six tasks of web")


def test_a_rolling_update_replaces_every_task(lab: Lab) -> None:
    out = lab[1].swarm(
        "service", "update", "--no-resolve-image", "--image", f"{IMAGE}:2", "--update-parallelism", "3", "--update-monitor", "1s", "web"
    )  # fmt: skip
    assert "converged" in out
    assert {t["Spec"]["ContainerSpec"]["Image"] for t in lab.running(1, "web", 6)} == {f"{IMAGE}:2"}
    until(
        lambda: lab[1].get("/services/web")["UpdateStatus"]["State"] == "completed", "the update's completion"
    )


def test_a_health_check_gates_running(lab: Lab) -> None:
    check = ("--health-cmd", "test -e /tmp/ok", "--health-interval", "200ms", "--health-retries", "100")
    script = "sleep 1; mkdir() { :; }; touch /tmp/ok || touch /ok; sleep 1000"
    lab[1].swarm(
        *CREATE,
        "--name",
        "well",
        *check,
        "--mount",
        "type=tmpfs,target=/tmp",
        "--stop-grace-period",
        "0s",
        SHELL,
        "sh",
        "-c",
        script,
    )
    filters = json.dumps({"service": ["well"]})
    seen = set()

    def running() -> bool:
        tasks = lab[1].get(f"/tasks?filters={filters.replace(' ', '')}")  # none before the first decision
        states = [t["Status"]["State"] for t in tasks]
        seen.update(states)
        return states == ["running"]

    until(running, "the task to be healthy", 30)
    assert "starting" in seen


def test_unplaceable_tasks_say_why(lab: Lab) -> None:
    lab[1].swarm(*CREATE, "--name", "big", "--reserve-memory", "900g", SHELL, "sleep", "9")
    out = until(
        lambda: lab[1].swarm("service", "ps", "--no-trunc", "--format", "{{.Error}}", "big").strip(),
        "a reason",
    )
    assert "no suitable node (insufficient resources on 3 nodes)" in out


def test_swarmctl(lab: Lab) -> None:
    def ctl(*arguments: str) -> str:
        return run(sys.executable, "-m", "swarm_agent.cli", "--socket", lab[1].socket, *arguments, cwd=ROOT)

    assert "resources: insufficient resources on 3 nodes" in ctl("why", "big")
    assert "every task of web" in ctl("why", "web")
    assert "state     active" in ctl("status")
    ctl("log-level", "info")
    ctl("log-level", "debug")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((*CREATE, "--name", "a b", SHELL), "name must be valid as a DNS name component"),
        ((*CREATE, "--name", "web", SHELL), "service web already exists"),
        ((*CREATE, "--limit-memory", "1m", SHELL), "Must be at least 4MiB"),
        ((*CREATE, "--constraint", "foo", SHELL), "constraint expected one operator"),
        ((*CREATE, "--network", "nowhere", SHELL), "network nowhere not found"),
        ((*CREATE, "-p", "8080:1", SHELL), "port '8080' is already in use by service 'web'"),
        ((*CREATE, "--endpoint-mode", "dnsrr", SHELL), "not supported by this version of swarm-agent: endpoint mode dnsrr"),
        (("service", "rollback", "other"), "does not have a previous spec"),
        (("network", "create", "-d", "overlay", "--attachable", "x"), "attachable"),
        (("network", "create", "-d", "overlay", "--opt", "encrypted", "x"), "encryption"),
        (("network", "create", "-d", "overlay", "--subnet", "10.240.0.0/24", "x"), "overlaps"),
        (("network", "rm", "app"), "is in use by service"),
        (("swarm", "init",), "already part of a swarm"),
        (("swarm", "leave",), "--force"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(lab: Lab, arguments: tuple[str, ...], text: str) -> None:
    assert text in refused(lab, 1, *arguments)


def test_drain_moves_tasks_and_a_restarted_daemon_adopts_its_own(lab: Lab) -> None:
    lab[1].swarm("service", "rm", "big", "well", "talk", "other")
    lab[1].swarm("node", "update", "--availability", "drain", lab.node_id(3))
    until(lambda: nodes_of(lab.tasks(1, "web")) == [3, 3], "web on two nodes")
    lab[1].swarm("node", "update", "--availability", "active", lab.node_id(3))
    before = {t["ID"]: t["Status"]["ContainerStatus"]["ContainerID"] for t in lab.tasks(1, "web")}
    follower = next(n for n in (1, 2, 3) if n != lab.leader())
    lab[follower].kill_agent()
    lab[follower].start_agent()
    until(lambda: lab[follower].get("/info")["Swarm"]["LocalNodeState"] == "active", "the daemon's return")
    until(lambda: all(n["Status"]["State"] == "ready" for n in lab.nodes(1).values()), "all nodes ready")
    after = {t["ID"]: t["Status"]["ContainerStatus"]["ContainerID"] for t in lab.running(1, "web", 6)}
    assert before == after


def test_the_leaders_death_leaves_the_cluster_writable(lab: Lab) -> None:
    leader = lab.leader()
    other = next(n for n in (1, 2, 3) if n != leader)
    lab[leader].kill_agent()
    started = time.monotonic()
    lab[other].swarm("network", "create", "-d", "overlay", "after-the-leader")
    assert time.monotonic() - started < 10, "an election must not take a client's patience"
    lab[leader].start_agent()
    until(
        lambda: "after-the-leader" in lab[leader].swarm("network", "ls", check=False),
        "the old leader's catching up",
    )
    until(lambda: all(n["Status"]["State"] == "ready" for n in lab.nodes(other).values()), "all nodes ready")
    assert len(lab.tasks(other, "web")) == 6


def test_a_lost_host_gives_its_tasks_to_the_others(lab: Lab) -> None:
    lost = next(n for n in (1, 2, 3) if n != lab.leader())
    via = lab.leader()
    node_id = lab.node_id(lost)
    lab[lost].kill_agent()
    for container in lab[lost].docker("ps", "-q").split():
        lab[lost].docker("kill", container)
    until(lambda: lab.nodes(via)[node_id]["Status"]["State"] == "down", "the node to be down")
    until(
        lambda: node_id not in {t["NodeID"] for t in lab.running(via, "web", 6)},
        "the lost host's tasks to run on the others",
    )
    until(
        lambda: all(lab.greeting(via, 8080)[:2] == ["web", CLIENT] for _ in range(6)),
        "answers from the new tasks alone",
        40,
    )
    lab[lost].start_agent()
    until(lambda: lab.nodes(via)[node_id]["Status"]["State"] == "ready", "the node's return")
    assert len(lab.running(via, "web", 6)) == 6


def test_demote_promote_and_leave(lab: Lab) -> None:
    leader = lab.leader()
    other = next(n for n in (1, 2, 3) if n != leader)
    node_id = lab.node_id(leader)
    until(  # a host that has just come back counts for the majority once Raft hears it, which is after its session
        lambda: {n["ManagerStatus"]["Reachability"] for n in lab.nodes(other).values()} == {"reachable"},
        "three managers that answer",
    )
    lab[other].swarm("node", "demote", node_id)
    until(lambda: "ManagerStatus" not in lab.nodes(other)[node_id], "the leader to be a worker")
    until(
        lambda: "Worker nodes can't be used" in str(lab[leader].call_api("GET", "/nodes")[1]),
        "the worker's answer",
    )
    lab[other].swarm("node", "promote", node_id)
    until(lambda: lab[leader].call_api("GET", "/nodes")[0] == 200, "the promoted node to answer", 30)
    lab[other].swarm("node", "demote", node_id)
    until(lambda: lab[leader].call_api("GET", "/nodes")[0] == 503, "the demoted node to stop answering", 30)
    lab[leader].swarm("swarm", "leave")
    until(lambda: lab.nodes(other)[node_id]["Status"]["State"] == "down", "the node to be down")
    assert lab[leader].docker("ps", "-aq").split() == []
    lab[other].swarm("node", "rm", node_id)
    assert node_id not in lab.nodes(other)


def test_removal_leaves_nothing(lab: Lab) -> None:
    via = lab.leader()
    lab[via].swarm("service", "rm", "web")
    for host in lab.hosts.values():
        lab.no_containers(host.number)
    lab[via].swarm("network", "rm", "app", "after-the-leader")
    for host in lab.hosts.values():
        if host.get("/info")["Swarm"]["LocalNodeState"] == "active":
            host.swarm("swarm", "leave", "--force")
        assert host.netns() == []
        assert "swarm" not in host.docker("network", "ls", "--format", "{{.Driver}}")


def test_daemons_end_on_sigterm(lab: Lab) -> None:
    for host in lab.hosts.values():
        assert host.agent is not None
        host.agent.send_signal(signal.SIGTERM)
        assert host.agent.wait(timeout=20) == 0
        host.agent = None
