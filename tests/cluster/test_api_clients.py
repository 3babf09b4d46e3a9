"""One real daemon and engine, used by Docker's own clients: the CLI, flag by flag, and the Python SDK."""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import subprocess
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import docker
import pytest
from docker.types import EndpointSpec, Healthcheck, Mount, Resources, RestartPolicy, ServiceMode, UpdateConfig

from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import IMAGE, SHELL, Lab, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

CREATE = ("service", "create", "--no-resolve-image", "-d")
UPDATE = ("service", "update", "--no-resolve-image", "-d")
IDLE = (SHELL, "sleep", "1000")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with swarm_lab(tmp_path_factory.mktemp("clients"), (1,)) as found:
        yield found


@pytest.fixture(scope="module")
def cli(lab: Lab) -> Any:
    """The docker CLI; the swarm exists."""
    lab[1].swarm("swarm", "init", "--advertise-addr", lab[1].address)
    return lab[1].swarm


@pytest.fixture(scope="module")
def sdk(lab: Lab, cli: Any) -> Iterator[docker.DockerClient]:
    with contextlib.closing(docker.DockerClient(base_url=f"unix://{lab[1].socket}")) as client:
        yield client


def refused(lab: Lab, *arguments: str) -> str:
    done = subprocess.run(
        ["docker", "-H", f"unix://{lab[1].socket}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0, f"docker {' '.join(arguments)} should have been refused: {done.stdout}"
    return done.stderr


def container_of(lab: Lab, service: str) -> dict[str, Any]:
    """What the engine says of the one running container of a service."""
    (task,) = lab.running(1, service, 1)
    status, found = lab[1].api("GET", f"/containers/{task['Status']['ContainerStatus']['ContainerID']}/json")
    assert status == 200
    assert isinstance(found, dict)
    return found


def dig(value: Any, path: str) -> Any:
    """``None`` where there is no such place."""
    for part in path.split("."):
        if isinstance(value, list):
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = (value or {}).get(part)
    return value


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line a program says."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], 30)[0]:
        process.kill()
        pytest.fail(f"{process.args!r} said nothing")
    return process.stdout.readline()


class Flag(NamedTuple):
    """A flag, and what must be seen of it: in the engine's container, or in the service when ``path`` starts with "Spec"."""

    arguments: tuple[str, ...]
    path: str
    value: Any


# --- service create ----------------------------------------------------------------------------------------------------
TASK = "Spec.TaskTemplate"
CREATED = (
    Flag(("--env", "A=1"), "Config.Env.0", "A=1"),
    Flag(("--container-label", "tier=front"), "Config.Labels.tier", "front"),
    Flag(("--label", "team=blue"), "Spec.Labels", {"team": "blue"}),
    Flag(("--hostname", "box"), "Config.Hostname", "box"),
    Flag(("--user", "1000:1001"), "Config.User", "1000:1001"),
    Flag(("--workdir", "/bin"), "Config.WorkingDir", "/bin"),
    Flag(("--entrypoint", "/bin/sh"), "Config.Entrypoint", ["/bin/sh"]),
    Flag(("--stop-signal", "SIGUSR1"), "Config.StopSignal", "SIGUSR1"),
    Flag(("--stop-grace-period", "1s"), f"{TASK}.ContainerSpec.StopGracePeriod", 10**9),
    Flag(("--tty",), "Config.Tty", True),
    Flag(("--init",), "HostConfig.Init", True),
    Flag(("--read-only",), "HostConfig.ReadonlyRootfs", True),
    Flag(("--group", "27"), "HostConfig.GroupAdd", ["27"]),
    Flag(("--limit-cpu", "0.5"), "HostConfig.NanoCpus", 500_000_000),
    Flag(("--limit-memory", "64m"), "HostConfig.Memory", 64 << 20),
    Flag(("--limit-pids", "100"), "HostConfig.PidsLimit", 100),
    Flag(("--reserve-memory", "8m"), "HostConfig.MemoryReservation", 8 << 20),
    Flag(("--reserve-cpu", "0.1"), f"{TASK}.Resources.Reservations.NanoCPUs", 100_000_000),
    Flag(("--dns", "192.0.2.53"), "HostConfig.Dns", ["192.0.2.53"]),
    Flag(("--dns-search", "example.org"), "HostConfig.DnsSearch", ["example.org"]),
    Flag(("--dns-option", "timeout:3"), "HostConfig.DnsOptions", ["timeout:3"]),
    Flag(("--host", "db:192.0.2.7"), "HostConfig.ExtraHosts", ["db:192.0.2.7"]),
    Flag(("--cap-add", "NET_ADMIN"), "HostConfig.CapAdd", ["CAP_NET_ADMIN"]),
    Flag(("--cap-drop", "MKNOD"), "HostConfig.CapDrop", ["CAP_MKNOD"]),
    Flag(("--sysctl", "net.ipv4.ip_unprivileged_port_start=80"), "HostConfig.Sysctls", {"net.ipv4.ip_unprivileged_port_start": "80"}),
    Flag(("--ulimit", "nofile=100:200"), "HostConfig.Ulimits", [{"Name": "nofile", "Soft": 100, "Hard": 200}]),
    Flag(("--log-driver", "json-file", "--log-opt", "max-size=1m"), "HostConfig.LogConfig", {"Type": "json-file", "Config": {"max-size": "1m"}}),
    Flag(("--mount", "type=bind,source=/etc,target=/host-etc,readonly"), "bind", {"Source": "/etc", "RW": False, "Type": "bind"}),
    Flag(("--mount", "type=volume,source=data,target=/data"), "volume", {"Name": "data", "RW": True, "Type": "volume"}),
    Flag(("--mount", "type=tmpfs,target=/scratch,tmpfs-size=1048576,tmpfs-mode=700"), "tmpfs", {"SizeBytes": 1048576, "Mode": 0o700}),
    Flag(("--health-cmd", "test -d /bin"), "Config.Healthcheck.Test", ["CMD-SHELL", "test -d /bin"]),
    Flag(("--health-interval", "200ms"), "Config.Healthcheck.Interval", 200_000_000),
    Flag(("--health-timeout", "9s"), "Config.Healthcheck.Timeout", 9 * 10**9),
    Flag(("--health-retries", "4"), "Config.Healthcheck.Retries", 4),
    Flag(("--health-start-period", "2s"), "Config.Healthcheck.StartPeriod", 2 * 10**9),
    Flag(("--restart-condition", "on-failure"), f"{TASK}.RestartPolicy.Condition", "on-failure"),
    Flag(("--restart-delay", "3s"), f"{TASK}.RestartPolicy.Delay", 3 * 10**9),
    Flag(("--restart-max-attempts", "4"), f"{TASK}.RestartPolicy.MaxAttempts", 4),
    Flag(("--restart-window", "50s"), f"{TASK}.RestartPolicy.Window", 50 * 10**9),
    Flag(("--constraint", "node.role==manager"), f"{TASK}.Placement.Constraints", ["node.role==manager"]),
    Flag(("--replicas-max-per-node", "2"), f"{TASK}.Placement.MaxReplicas", 2),
    Flag(("--update-parallelism", "2"), "Spec.UpdateConfig.Parallelism", 2),
    Flag(("--update-delay", "1s"), "Spec.UpdateConfig.Delay", 10**9),
    Flag(("--update-monitor", "2s"), "Spec.UpdateConfig.Monitor", 2 * 10**9),
    Flag(("--update-order", "start-first"), "Spec.UpdateConfig.Order", "start-first"),
    Flag(("--update-failure-action", "continue"), "Spec.UpdateConfig.FailureAction", "continue"),
    Flag(("--update-max-failure-ratio", "0.25"), "Spec.UpdateConfig.MaxFailureRatio", 0.25),
    Flag(("--rollback-parallelism", "3"), "Spec.RollbackConfig.Parallelism", 3),
    Flag(("--with-registry-auth",), "Spec.Name", "everything"),
)  # fmt: skip


@pytest.fixture(scope="module")
def everything(lab: Lab, cli: Any) -> dict[str, Any]:
    """A service made with every flag at once: its container's state with the service's own."""
    flags = [argument for flag in CREATED for argument in flag.arguments]
    cli(*CREATE, "--name", "everything", *flags, SHELL, "-c", "trap 'exit 0' USR1; while :; do sleep 1; done")
    container = container_of(lab, "everything")
    mounts = {m["Type"]: m for m in container["Mounts"]}
    tmpfs = next(m for m in container["HostConfig"]["Mounts"] if m["Type"] == "tmpfs")
    return {
        **container,
        **lab[1].get("/services/everything"),
        **{kind: mounts[kind] for kind in ("bind", "volume")},
        "tmpfs": tmpfs["TmpfsOptions"],
    }


@pytest.mark.parametrize("flag", CREATED, ids=lambda flag: flag.arguments[0] + flag.path)
def test_a_create_flag_has_its_effect(everything: dict[str, Any], flag: Flag) -> None:
    seen = dig(everything, flag.path)
    if isinstance(flag.value, dict):
        seen = {key: seen.get(key) for key in flag.value}
    assert seen == flag.value


def test_the_command_is_what_was_given(everything: dict[str, Any]) -> None:
    assert everything["Args"][:1] == ["-c"]
    assert everything["HostConfig"]["RestartPolicy"]["Name"] == "no"


def test_progress_without_a_number_of_replicas(cli: Any) -> None:
    out = cli("service", "create", "--no-resolve-image", "--name", "plain", "--update-monitor", "1s", *IDLE)
    assert "converged" in out
    assert "Replicas:\t1" in cli("service", "inspect", "--pretty", "plain")


# --- service update ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def changing(cli: Any) -> None:
    fast = ("--stop-grace-period", "0s", "--update-monitor", "1ms", "--restart-delay", "0s")
    cli(*CREATE, "--name", "changing", *fast, *IDLE)


@pytest.mark.parametrize(
    "flag",
    [
        Flag(("--env-add", "B=2"), "Config.Env.0", "B=2"),
        Flag(("--env-rm", "B", "--env-add", "C=3"), "Config.Env.0", "C=3"),
        Flag(("--container-label-add", "x=y"), "Config.Labels.x", "y"),
        Flag(("--label-add", "k=v"), "Spec.Labels", {"k": "v"}),
        Flag(("--label-rm", "k"), "Spec.Labels", {}),
        Flag(("--hostname", "other"), "Config.Hostname", "other"),
        Flag(("--user", "7"), "Config.User", "7"),
        Flag(("--user", ""), "Config.User", ""),
        Flag(("--workdir", "/bin"), "Config.WorkingDir", "/bin"),
        Flag(("--args", "sleep 2000"), "Config.Cmd", ["sleep", "2000"]),
        Flag(("--limit-memory", "32m"), "HostConfig.Memory", 32 << 20),
        Flag(("--mount-add", "type=tmpfs,target=/t"), "HostConfig.Mounts.0.Target", "/t"),
        Flag(("--mount-rm", "/t"), "HostConfig.Mounts", None),
        Flag(("--cap-add", "SYS_TIME"), "HostConfig.CapAdd", ["CAP_SYS_TIME"]),
        Flag(("--ulimit-add", "nofile=1000"), "HostConfig.Ulimits", [{"Name": "nofile", "Soft": 1000, "Hard": 1000}]),
        Flag(("--ulimit-rm", "nofile"), "HostConfig.Ulimits", None),
        Flag(("--host-add", "a:192.0.2.1"), "HostConfig.ExtraHosts", ["a:192.0.2.1"]),
        Flag(("--dns-add", "192.0.2.53"), "HostConfig.Dns", ["192.0.2.53"]),
        Flag(("--dns-rm", "192.0.2.53"), "HostConfig.Dns", None),
        Flag(("--sysctl-add", "net.core.somaxconn=100"), "HostConfig.Sysctls", {"net.core.somaxconn": "100"}),
        Flag(("--group-add", "5"), "HostConfig.GroupAdd", ["5"]),
        Flag(("--constraint-add", "node.role==manager"), f"{TASK}.Placement.Constraints", ["node.role==manager"]),
        Flag(("--constraint-rm", "node.role==manager"), f"{TASK}.Placement.Constraints", None),
        Flag(("--image", f"{IMAGE}:1", "--args", "/task serve a 7000"), "Config.Image", f"{IMAGE}:1"),
        Flag(("--no-healthcheck",), "Config.Healthcheck.Test", ["NONE"]),
        Flag(("--read-only",), "HostConfig.ReadonlyRootfs", True),
        Flag(("--force",), f"{TASK}.ForceUpdate", 1),
        Flag(("--replicas-max-per-node", "3"), f"{TASK}.Placement.MaxReplicas", 3),
        Flag(("--stop-grace-period", "2s"), f"{TASK}.ContainerSpec.StopGracePeriod", 2 * 10**9),
    ],
    ids=lambda flag: " ".join(flag.arguments),
)  # fmt: skip
def test_an_update_flag_has_its_effect(lab: Lab, cli: Any, changing: None, flag: Flag) -> None:
    """One after the other on the same service."""
    cli(*UPDATE, *flag.arguments, "changing")

    def seen() -> bool:
        service = lab[1].get("/services/changing")
        found = dig({**container_of(lab, "changing"), **service}, flag.path)
        return bool((found or None) == (flag.value or None))

    until(seen, f"the effect of {flag.arguments}: {flag.path} = {flag.value}", 30)


def test_force_replaces_the_task_and_nothing_else_does(lab: Lab, cli: Any) -> None:
    cli(*CREATE, "--name", "forced", "--stop-grace-period", "0s", "--update-monitor", "1ms", *IDLE)
    (before,) = lab.running(1, "forced", 1)
    cli(*UPDATE, "forced")
    cli(*UPDATE, "--update-delay", "1s", "--label-add", "a=b", "forced")
    assert [t["ID"] for t in lab.running(1, "forced", 1)] == [before["ID"]]
    cli(*UPDATE, "--force", "forced")
    until(lambda: [t["ID"] for t in lab.running(1, "forced", 1)] != [before["ID"]], "another task")


# --- networks and ports ------------------------------------------------------------------------------------------------
def test_networks_aliases_and_adding_one_later(lab: Lab, cli: Any) -> None:
    cli("network", "create", "-d", "overlay", "first")
    cli("network", "create", "-d", "overlay", "second")
    run = ("--stop-grace-period", "0s", f"{IMAGE}:1", "/task", "serve", "x", "7000")
    cli(*CREATE, "--name", "named", "--network", "name=first,alias=db", *run)
    cli(*CREATE, "--name", "asks", "--network", "first", *run)
    container = container_of(lab, "asks")["Id"]
    vip = lab[1].get("/services/named")["Endpoint"]["VirtualIPs"][0]["Addr"].split("/")[0]
    for name in ("db", "named"):
        assert lab[1].docker("exec", container, "/task", "resolve", name).split() == [vip]
    cli(*UPDATE, "--network-add", "second", "asks")
    ids = sorted(lab[1].get(f"/networks/{n}")["Id"] for n in ("first", "second"))  # as the CLI sends them

    def attached() -> bool:
        (task,) = lab.running(1, "asks", 1)
        return [a["Network"]["ID"] for a in task["NetworksAttachments"]] == ids

    until(attached, "both networks")
    service = lab[1].get("/services/asks")
    assert [n["Target"] for n in service["Spec"]["TaskTemplate"]["Networks"]] == ids
    assert [v["NetworkID"] for v in service["Endpoint"]["VirtualIPs"]] == ids
    shown = cli("service", "inspect", "--pretty", "asks")
    assert "Networks: first second" in shown or "Networks: second first" in shown
    assert "in use by service" in refused(lab, "network", "rm", "second")


def test_the_hosts_network(lab: Lab, cli: Any) -> None:
    cli(*CREATE, "--name", "onhost", "--network", "host", *IDLE)
    assert container_of(lab, "onhost")["HostConfig"]["NetworkMode"] == "host"
    assert "Networks: host" in cli("service", "inspect", "--pretty", "onhost")


def test_published_ports_of_both_modes(lab: Lab, cli: Any) -> None:
    run = (f"{IMAGE}:1", "/task", "serve", "ports", "7000")
    cli(*CREATE, "--name", "ports", "-p", "8001:7000", "-p", "mode=host,published=8002,target=7000", *run)
    lab.running(1, "ports", 1)
    for port in (8001, 8002):
        until(lambda: lab.greeting(1, port)[:1] == ["ports"], f"an answer on port {port}")  # noqa: B023
    assert "*:8002->7000/tcp" in cli("service", "ps", "--format", "{{.Ports}}", "ports")
    assert "*:8001->7000/tcp" in cli("service", "ls", "--filter", "name=ports", "--format", "{{.Ports}}")
    cli(*UPDATE, "--publish-add", "8003:7000", "--publish-rm", "8001:7000", "ports")
    until(lambda: lab.greeting(1, 8003)[:1] == ["ports"], "an answer on the added port", 30)
    cli(*CREATE, "--name", "dynamic", "-p", "7000", *run)
    until(lambda: lab[1].get("/services/dynamic")["Endpoint"].get("Ports"), "a port of the swarm's choice")
    (port,) = lab[1].get("/services/dynamic")["Endpoint"]["Ports"]
    assert 30000 <= port["PublishedPort"] <= 32767


# --- what tasks do -------------------------------------------------------------------------------------------------------
def test_restart_conditions(lab: Lab, cli: Any) -> None:
    cli(*CREATE, "--name", "once", "--restart-condition", "none", SHELL, "sh", "-c", "exit 3")
    cli(
        *CREATE,
        "--name",
        "twice",
        "--restart-max-attempts",
        "1",
        "--restart-delay",
        "0s",
        SHELL,
        "sh",
        "-c",
        "exit 4",
    )
    for name, count, code in (("once", 1, 3), ("twice", 2, 4)):
        filters = quote(json.dumps({"service": [name]}))

        def failed(filters: str = filters, count: int = count) -> list[dict[str, Any]] | None:
            tasks = lab[1].get(f"/tasks?filters={filters}")
            ended = [t for t in tasks if t["Status"]["State"] == "failed"]
            return ended if len(ended) == count == len(tasks) else None

        for task in until(failed, f"{count} failed tasks of {name}"):
            assert task["Status"]["Err"] == f"task: non-zero exit ({code})"
            assert task["Status"]["ContainerStatus"]["ExitCode"] == code


def test_logs(lab: Lab, cli: Any) -> None:
    script = "echo one; echo two >&2; echo three; exit 0"
    cli(*CREATE, "--name", "said", "--restart-condition", "none", SHELL, "sh", "-c", script)
    filters = quote(json.dumps({"service": ["said"]}))

    def ended() -> bool:
        return [t["Status"]["State"] for t in lab[1].get(f"/tasks?filters={filters}")] == ["complete"]

    until(ended, "its end")
    assert sorted(cli("service", "logs", "--raw", "said").split()) == [
        "one",
        "three",
    ]  # stderr goes to stderr
    (task,) = lab[1].get(f"/tasks?filters={filters}")
    assert len((cli("service", "logs", "--raw", "--tail", "2", "said")).split()) < 3
    line = cli("service", "logs", "--timestamps", task["ID"]).splitlines()[0]
    assert line.startswith("20")
    assert f"said.1.{task['ID'][:12]}@" in line
    later = str(int(time.time()) + 3600)
    assert cli("service", "logs", "--raw", "--since", later, "said") == ""
    status, answer = lab[1].call_api("GET", "/services/said/logs")
    assert (status, answer["message"]) == (500, "Bad parameters: you must choose at least one stream")


def test_logs_are_followed(lab: Lab, cli: Any) -> None:
    script = "echo first; while ! test -e /tmp/go; do sleep 1; done; echo second; sleep 1000"
    cli(*CREATE, "--name", "goes", "--mount", "type=tmpfs,target=/tmp", SHELL, "sh", "-c", script)
    container = container_of(lab, "goes")["Id"]
    command = ["docker", "-H", f"unix://{lab[1].socket}", "service", "logs", "--raw", "-f", "goes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert line_of(follower) == "first\n"
        lab[1].docker("exec", container, "touch", "/tmp/go")
        assert line_of(follower) == "second\n"
        follower.kill()


def test_a_terminals_logs(lab: Lab, cli: Any) -> None:
    cli(*CREATE, "--name", "screen", "-t", SHELL, "sh", "-c", "echo shown; sleep 1000")
    lab.running(1, "screen", 1)
    until(lambda: cli("service", "logs", "--raw", "screen") == "shown\n", "the line of the terminal")
    assert "tty service logs only supported with --raw" in refused(lab, "service", "logs", "screen")


# --- lists, events, nodes, the swarm -----------------------------------------------------------------------------------
def test_lists_and_their_filters(lab: Lab, cli: Any) -> None:
    cli(*CREATE, "--name", "li", "--label", "set=1", *IDLE)
    cli(*CREATE, "--name", "list", "--label", "set=2", *IDLE)
    lab.running(1, "list", 1)
    lab.running(1, "li", 1)

    def names(*filters: str) -> set[str]:
        return set(cli("service", "ls", *filters, "--format", "{{.Name}}").split())

    assert names("-f", "name=li") == {"li", "list"}
    assert names("-f", "label=set") == {"li", "list"}
    assert names("-f", "label=set=2") == {"list"}
    assert names("-f", "label=set", "-f", "mode=global") == set()
    assert {"li", "list"} <= names("-f", "mode=replicated")
    assert "no such service: lis" in refused(lab, "service", "ps", "lis")
    row = cli(
        "service",
        "ps",
        "li",
        "-f",
        "name=li.1",
        "-f",
        "desired-state=running",
        "--format",
        "{{.Name}} {{.CurrentState}}",
    )
    assert row.startswith("li.1 Running")
    assert cli("service", "ps", "li", "-f", "desired-state=shutdown", "-q") == ""
    assert "Invalid filter 'bogus'" in refused(lab, "service", "ls", "-f", "bogus=1")
    assert "li.1" in cli("node", "ps", "self", "--format", "{{.Name}}")


def test_past_and_present_events(lab: Lab, cli: Any) -> None:
    begun = str(int(time.time()) - 1)
    cli(*CREATE, "--name", "evented", "--label", "a=b", *IDLE)
    cli(*UPDATE, "--replicas", "2", "evented")
    lab.running(1, "evented", 2)
    soon = str(int(time.time()) + 2)  # the stream ends then, by itself
    past = ("events", "--since", begun, "--until", soon, "--format", "{{.Type}} {{.Action}}")
    seen = cli(*past, "--filter", "service=evented").splitlines()
    assert seen[:2] == ["service create", "service update"]
    assert set(cli(*past, "--filter", "type=container", "--filter", "event=start").splitlines()) == {
        "container start"
    }
    assert "service create" not in cli(*past, "--filter", "scope=local")
    assert set(cli(*past, "--filter", "scope=swarm", "--filter", "type=node").splitlines()) == set()
    command = [
        "docker",
        "-H",
        f"unix://{lab[1].socket}",
        "events",
        "--filter",
        "type=service",
        "--format",
        "{{.Action}}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        labels = itertools.count()

        def heard() -> bool:  # the watcher begins when it does
            cli(*UPDATE, "--label-add", f"n={next(labels)}", "evented")
            return bool(select.select([watcher.stdout or 0], [], [], 0.1)[0])

        until(heard, "an event")
        assert line_of(watcher) == "update\n"
        watcher.kill()


def test_the_node(lab: Lab, cli: Any) -> None:
    node_id = lab.node_id(1)
    cli("node", "update", "--label-add", "rack=7", "--availability", "pause", node_id)
    pretty = cli("node", "inspect", "--pretty", "self")
    for text in ("rack=7", "Availability:         \tPause", "Raft Status:\t\tReachable", "Leader:\t\tYes"):
        assert text in pretty
    cli("node", "update", "--label-rm", "rack", "--availability", "active", node_id)
    assert lab[1].get(f"/nodes/{node_id}")["Spec"] == {
        "Labels": {},
        "Role": "manager",
        "Availability": "active",
    }
    assert "attempting to demote the last manager" in refused(lab, "node", "demote", node_id)
    assert "node self not found" in refused(lab, "node", "update", "--availability", "active", "self")


def test_networks_go_right_after_they_came_and_unused_ones_are_pruned(lab: Lab, cli: Any) -> None:
    for number in range(40):
        cli("network", "create", "-d", "overlay", f"brief{number}")
        cli("network", "rm", f"brief{number}")
    for name in ("spare", "busy"):
        cli("network", "create", "-d", "overlay", name)
    cli(
        "service",
        "create",
        "-d",
        "--no-resolve-image",
        "--name",
        "user",
        "--network",
        "busy",
        SHELL,
        "sleep",
        "1000",
    )
    lab.running(1, "user", 1)
    local = lab[1].docker("network", "ls", "--filter", "driver=swarm", "-q").split()
    said = cli("network", "prune", "-f")
    assert "spare" in said
    names = cli("network", "ls", "--format", "{{.Name}}").split()
    assert "busy" in names
    assert "spare" not in names
    assert lab[1].docker("network", "ls", "--filter", "driver=swarm", "-q").split() == local
    cli("service", "rm", "user")
    until(lambda: "busy" in cli("system", "prune", "-f"), "the network nobody uses any more is pruned", 30)


def test_the_swarms_settings_and_tokens(lab: Lab, cli: Any) -> None:
    before = lab[1].get("/swarm")
    cli("swarm", "join-token", "--rotate", "worker")
    after = lab[1].get("/swarm")
    assert after["JoinTokens"]["Manager"] == before["JoinTokens"]["Manager"]
    assert after["JoinTokens"]["Worker"].split("-")[:3] == before["JoinTokens"]["Worker"].split("-")[:3]
    assert after["JoinTokens"]["Worker"] != before["JoinTokens"]["Worker"]
    cli(
        "swarm", "update", "--task-history-limit", "3", "--cert-expiry", "48h", "--dispatcher-heartbeat", "7s"
    )
    cli("swarm", "update", "--snapshot-interval", "3000", "--max-snapshots", "2")
    spec = lab[1].get("/swarm")["Spec"]
    assert spec["Orchestration"] == {"TaskHistoryRetentionLimit": 3}
    assert spec["CAConfig"] == {"NodeCertExpiry": 48 * 3600 * 10**9}
    assert spec["Dispatcher"] == {"HeartbeatPeriod": 7 * 10**9}
    assert (spec["Raft"]["SnapshotInterval"], spec["Raft"]["KeepOldSnapshots"]) == (3000, 2)
    out = cli("info")
    for text in (
        "Swarm: active",
        "Is Manager: true",
        "Managers: 1",
        "Heartbeat Period: 7 seconds",
        "Autolock Managers: false",
    ):
        assert text in out
    cli("swarm", "update", "--task-history-limit", "5", "--dispatcher-heartbeat", "5s")
    assert "no unlock key is set" in refused(lab, "swarm", "unlock-key")
    assert "swarm is not locked" in refused(lab, "swarm", "unlock")


# --- refused by name -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((*CREATE, "--endpoint-mode", "dnsrr", SHELL), "endpoint mode dnsrr"),
        ((*CREATE, "--credential-spec", "file://x.json", SHELL), "credential specs"),
        ((*CREATE, "--isolation", "hyperv", SHELL), "isolation"),
        ((*CREATE, "--mount", "type=npipe,source=//./pipe/a,target=//./pipe/b", SHELL), "named pipe"),
        ((*CREATE, "-p", "80:80/sctp", SHELL), "SCTP"),
        (("swarm", "ca", "--rotate"), "root CA rotation"),
        (("network", "create", "-d", "overlay", "--attachable", "x"), "attachable"),
        (("network", "create", "-d", "overlay", "--ipv6", "x"), "IPv6"),
        (("network", "create", "-d", "overlay", "--ingress", "x"), "ingress"),
    ],
    ids=lambda value: " ".join(value[-3:-1]) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(
    lab: Lab, cli: Any, arguments: tuple[str, ...], text: str
) -> None:
    error = refused(lab, *arguments)
    assert text in error
    assert "not supported" in error


# --- the SDK ---------------------------------------------------------------------------------------------------------------
def test_sdk_services(lab: Lab, sdk: docker.DockerClient) -> None:
    network = sdk.networks.create("sdk-net", driver="overlay", labels={"made": "by-sdk"})
    assert [n.id for n in sdk.networks.list(filters={"label": "made=by-sdk"})] == [network.id]
    services: Any = sdk.services  # its stubs leave most of these methods untyped
    ports: Any = {8010: 80}  # numbers, as the SDK documents them; its stubs want text
    service = services.create(
        SHELL,
        ["sh", "-c", "echo from the sdk; sleep 1000"],
        name="sdk",
        env=["A=1"],
        labels={"l": "1"},
        container_labels={"c": "1"},
        networks=["sdk-net"],
        mounts=[Mount("/v", "sdk-volume", type="volume"), Mount("/t", None, type="tmpfs")],
        resources=Resources(cpu_limit=10**8, mem_limit=16 << 20),
        restart_policy=RestartPolicy(condition="on-failure", delay=10**9, max_attempts=2),
        update_config=UpdateConfig(parallelism=1, delay=0, failure_action="pause", monitor=10**6),
        endpoint_spec=EndpointSpec(ports=ports),
        healthcheck=Healthcheck(test=["CMD", "test", "-d", "/bin"], interval=200_000_000),
        mode=ServiceMode("replicated", replicas=2),
        stop_grace_period=10**9,
    )
    lab.running(1, "sdk", 2)
    service.reload()
    assert service.name == "sdk"
    assert service.attrs["Spec"]["TaskTemplate"]["Networks"] == [{"Target": network.id}]
    assert [s.id for s in sdk.services.list(filters={"name": "sdk"})] == [service.id]
    tasks = service.tasks(filters={"desired-state": "running"})
    assert [t["Status"]["State"] for t in tasks] == ["running", "running"]
    logs = b"".join(service.logs(stdout=True))
    assert logs.count(b"from the sdk\n") == 2
    assert service.scale(1)
    until(lambda: len(service.tasks(filters={"desired-state": "running"})) == 1, "one task")
    service.reload()
    assert service.update(labels={"l": "2"}, env=["A=2"]) == {"Warnings": None}
    service.reload()
    assert service.attrs["Spec"]["Labels"] == {"l": "2"}
    assert service.attrs["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=2"]
    assert service.force_update()
    stale = services.get(service.id)
    service.reload()
    assert service.update(labels={"l": "3"})
    with pytest.raises(docker.errors.APIError, match="update out of sequence"):
        stale.update(labels={"l": "4"})
    with pytest.raises(docker.errors.NotFound):
        services.get("nowhere")
    service.remove()
    until(lambda: not sdk.containers.list(all=True, filters={"label": "c=1"}), "no containers")
    network.remove()
    with pytest.raises(docker.errors.NotFound):
        sdk.networks.get("sdk-net", scope="swarm")


def test_sdk_nodes_and_swarm(lab: Lab, sdk: docker.DockerClient) -> None:
    (node,) = sdk.nodes.list(filters={"role": "manager"})
    assert node.update({**node.attrs["Spec"], "Labels": {"zone": "a"}})
    assert sdk.nodes.get(node.id).attrs["Spec"]["Labels"] == {"zone": "a"}
    assert [n.id for n in sdk.nodes.list(filters={"node.label": "zone=a"})] == [node.id]
    sdk.swarm.reload()
    attrs = sdk.swarm.attrs
    assert sdk.swarm.version == attrs["Version"]["Index"]
    assert sdk.swarm.update(task_history_retention_limit=7, rotate_manager_token=True)
    sdk.swarm.reload()
    assert sdk.swarm.attrs["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"] == 7
    assert sdk.swarm.attrs["JoinTokens"]["Manager"] != attrs["JoinTokens"]["Manager"]
    with pytest.raises(docker.errors.APIError, match="already part of a swarm") as already:
        sdk.swarm.init()
    assert already.value.status_code == 503
    with pytest.raises(docker.errors.APIError, match="--force"):
        sdk.swarm.leave()


def test_sdk_leaves_and_begins_anew(lab: Lab, sdk: docker.DockerClient) -> None:
    """Last: the swarm of the other tests ends."""
    assert sdk.swarm.leave(force=True)
    assert sdk.info()["Swarm"]["LocalNodeState"] == "inactive"
    assert sdk.containers.list(all=True) == []
    with pytest.raises(docker.errors.APIError) as gone:
        sdk.nodes.list()
    assert gone.value.status_code == 503
    with pytest.raises(docker.errors.APIError, match="invalid join token") as wrong:
        sdk.swarm.join(["10.92.0.9:2377"], "nonsense")
    assert wrong.value.status_code == 500
    assert wrong.value.explanation == "invalid join token"
    node_id = sdk.swarm.init(advertise_addr=lab[1].address, task_history_retention_limit=2, name="default")
    assert sdk.nodes.get(node_id).attrs["ManagerStatus"]["Leader"] is True
    sdk.swarm.reload()
    assert sdk.swarm.attrs["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"] == 2
    assert sdk.swarm.attrs["DefaultAddrPool"] == ["10.0.0.0/8"]
    assert sdk.swarm.leave(force=True)
