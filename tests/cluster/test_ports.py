"""Published ports against the programs of real hosts, in both directions. The tests run in order."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest

from swarm_agent.network.sockets import PATIENCE_S
from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import IMAGE, SHELL, Lab, SwarmHost, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

BRIEF = ("-d", "--no-resolve-image", "--stop-grace-period=0s")
PROGRAM = """
import socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
own = socket.socket(socket.AF_INET, kind)
own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
own.bind((sys.argv[3], int(sys.argv[2])))
if sys.argv[1] == "tcp":
    own.listen()
print("up", flush=True)
while True:
    if sys.argv[1] == "udp":
        own.sendto(b"the host's own\\n", own.recvfrom(100)[1])
        continue
    peer, _ = own.accept()
    with peer:
        peer.sendall(b"the host's own\\n")
"""
ASK_UDP = """
import socket, sys
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.settimeout(2)
own.connect((sys.argv[1], int(sys.argv[2])))
own.send(b"x")
try:
    print(own.recv(100).decode().strip())
except OSError as error:
    print(type(error).__name__)
"""
TRY_BIND = """
import socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
own = socket.socket(socket.AF_INET6 if ":" in sys.argv[3] else socket.AF_INET, kind)
own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    own.bind((sys.argv[3], int(sys.argv[2])))
    print("bound")
except OSError as error:
    print(error.strerror)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder: Path = tmp_path_factory.mktemp("ports")
    with swarm_lab(folder, (1, 2)) as found:
        host = found[1]
        host.swarm("swarm", "init", "--advertise-addr", host.address)
        token = host.swarm("swarm", "join-token", "-q", "worker").strip()
        found[2].swarm("swarm", "join", "--token", token, f"{host.address}:2377")
        yield found


@contextlib.contextmanager
def program(host: SwarmHost, protocol: str, port: int, address: str = "") -> Iterator[subprocess.Popen[str]]:
    """A program of the host that answers on a port."""
    process = host.spawn(
        sys.executable, "-c", PROGRAM, protocol, str(port), address, log="program.log", stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n", (host.folder / "program.log").read_text()
        process.stdout.close()
        yield process
    finally:
        process.kill()
        process.wait()


def held(lab: Lab, number: int, port: int) -> str:
    """What the swarm's first manager knows of a port of a host: the program that holds it."""
    told = lab.nodes(1)[lab.node_id(number)]["Description"].get("HeldPorts") or ()
    return str(next((p["Holder"] for p in told if p["Port"] == port), ""))


def known(lab: Lab, number: int, port: int) -> None:
    until(lambda: held(lab, number, port), f"news of port {port} of host {number}", 15)


def create(lab: Lab, name: str, *arguments: str) -> str:
    """A service that answers with its name; what the CLI says to the person who types, warnings included."""
    words = (
        "service",
        "create",
        *BRIEF,
        "--name",
        name,
        *arguments,
        f"{IMAGE}:1",
        "/task",
        "serve",
        name,
        "7000",
    )
    done = subprocess.run(
        ["docker", "-H", f"unix://{lab[1].socket}", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def answer(lab: Lab, number: int, port: int) -> str:
    """What a client outside hears at a host's port."""
    return " ".join(lab.greeting(number, port))


def ask_udp(lab: Lab, number: int, port: int) -> str:
    return lab.client.run(sys.executable, "-c", ASK_UDP, lab[number].address, str(port)).strip()


def bind(host: SwarmHost, protocol: str, port: int, address: str) -> str:
    return host.space.run(sys.executable, "-c", TRY_BIND, protocol, str(port), address).strip()


def test_a_program_that_has_the_port_goes_on_being_reached(lab: Lab) -> None:
    with program(lab[2], "tcp", 8022):
        known(lab, 2, 8022)
        said = create(lab, "early", "--replicas=0", "--publish=8022:7000")
        name = lab.nodes(1)[lab.node_id(2)]["Description"]["Hostname"]
        assert f"port 8022/tcp is not taken on node {name}, where python" in said, said
        until(lambda: "8022" in lab[1].space.run("nft", "list", "table", "ip", "swarm"), "the rules", 15)
        assert answer(lab, 2, 8022) == "the host's own", "even while no task runs"
        lab[1].swarm("service", "scale", "-d", "early=2")
        tasks = lab.running(1, "early", 2)
        assert all("not taken on node" in t["Status"]["Err"] for t in tasks)
        until(lambda: answer(lab, 1, 8022).startswith("early "), "the service at the other host", 15)
        assert answer(lab, 2, 8022) == "the host's own"
        assert "not taken on node" in lab[1].ctl("why", "early")
        assert "not taken on node" in lab[1].swarm("service", "ps", "--no-trunc", "early")
    until(
        lambda: answer(lab, 2, 8022).startswith("early "),
        "the port is taken once it is free",
        PATIENCE_S + 15,
    )
    until(lambda: "not taken" not in lab[1].ctl("why", "early"), "nothing more to tell", 15)


def test_a_program_that_listens_for_its_host_alone_keeps_that(lab: Lab) -> None:
    def inside(number: int) -> str:
        script = "exec 3<>/dev/tcp/127.0.0.1/8025; read -t 5 line <&3; echo $line"
        return lab[number].space.run("bash", "-c", script, check=False).strip()

    with program(lab[2], "tcp", 8025, "127.0.0.1"):
        assert "not taken" not in create(lab, "mail", "--replicas=1", "--publish=8025:7000")
        lab.running(1, "mail", 1)
        until(lambda: answer(lab, 2, 8025).startswith("mail "), "the service for those outside", 15)
        assert inside(2) == "the host's own"
        assert inside(1).startswith("mail ")
    until(lambda: inside(2).startswith("mail "), "the service at the loopback address too", 15)
    lab[1].swarm("service", "rm", "mail")


def test_a_port_the_swarm_holds_is_in_use_for_everybody_else(lab: Lab) -> None:
    def held(host: SwarmHost, protocol: str, address: str) -> bool:
        return bind(host, protocol, 8031, address) == "Address already in use"

    create(lab, "mine", "--replicas=1", "--publish=8031:7000", "--publish=8031:7000/udp")
    lab.running(1, "mine", 1)
    for host in (lab[1], lab[2]):
        for protocol in ("tcp", "udp"):
            for address in ("", "127.0.0.1", "::", "::1"):
                until(
                    partial(held, host, protocol, address),
                    f"{protocol} 8031 is held at {address!r} of host {host.number}",
                )
        refused = host.docker("run", "--rm", "-p", "8031:80", SHELL, "echo", "served", check=False)
        assert "served" not in refused
        assert host.agent is not None
        host.agent.send_signal(signal.SIGSTOP)  # it would mend the rules at once
        try:
            host.space.run("nft", "delete", "table", "ip", "swarm")
            assert ask_udp(lab, host.number, 8031) == "ConnectionRefusedError", "it refuses and does not hang"
        finally:
            host.agent.send_signal(signal.SIGCONT)
        lab[host.number].kill_netd()
        lab[host.number].start_netd()
        until(partial(held, host, "tcp", ""), "held again")
    lab[1].swarm("service", "rm", "mine")
    until(lambda: bind(lab[2], "tcp", 8031, "") == "bound", "it is let go of", 15)


def test_the_swarms_own_ports_are_refused(lab: Lab) -> None:
    for port in ("2377", "2378", "7946", "9323"):
        for mode in ("ingress", "host"):
            said = create(lab, "own", f"--publish=published={port},target=80,mode={mode}")
            assert "the swarm's own on every host" in said, said
    assert "the swarm's own on every host" in create(lab, "own", "--publish=4789:80/udp")
    assert lab[1].swarm("service", "ls", "-q", "--filter", "name=own") == ""


def test_a_host_mode_task_does_not_take_over_a_plain_containers_port(lab: Lab) -> None:
    lab[2].docker(
        "run", "-d", "--name", "plain", "-p", "8041:7000", f"{IMAGE}:1", "/task", "serve", "plain", "7000"
    )
    until(lambda: answer(lab, 2, 8041).startswith("plain "), "the plain container")
    said = create(lab, "everywhere", "--mode=global", "--publish=published=8041,target=7000,mode=host")
    lab.running(1, "everywhere", 1)
    refused = until(
        lambda: next(
            (
                t["Status"]
                for t in lab[1].get("/tasks?filters=" + quote(json.dumps({"service": ["everywhere"]})))
                if t["Status"]["State"] in ("rejected", "pending") and t.get("NodeID") == lab.node_id(2)
            ),
            None,
        ),
        "the task of host 2 is refused",
        20,
    )
    assert "8041/tcp" in refused.get("Err", ""), (said, refused)
    assert answer(lab, 2, 8041).startswith("plain ")
    until(lambda: answer(lab, 1, 8041).startswith("everywhere "), "the task of host 1", 15)
    known(lab, 2, 8041)
    lab[1].swarm("service", "rm", "everywhere")
    create(lab, "elsewhere", "--replicas=1", "--publish=published=8041,target=7000,mode=host")
    (task,) = lab.running(1, "elsewhere", 1)
    assert task["NodeID"] == lab.node_id(1), "the scheduler goes round the host that has it"
    lab[1].swarm("service", "scale", "-d", "elsewhere=2")
    until(lambda: "8041/tcp is not taken on node" in lab[1].ctl("why", "elsewhere"), "the reason", 15)
    lab[2].docker("rm", "-f", "plain")
    lab.running(1, "elsewhere", 2, 30)
    lab[1].swarm("service", "rm", "elsewhere")


def test_an_automatic_port_is_nobodys(lab: Lab) -> None:
    with program(lab[2], "tcp", 30000):
        known(lab, 2, 30000)
        create(lab, "auto", "--replicas=1", "--publish=7000")
        until(lambda: lab[1].get("/services/auto")["Endpoint"].get("Ports"), "its port")
        (port,) = lab[1].get("/services/auto")["Endpoint"]["Ports"]
        assert port["PublishedPort"] != 30000
    lab[1].swarm("service", "rm", "auto")


def test_a_daemon_of_the_host_that_starts_after_the_agent_finds_its_port_free(lab: Lab) -> None:
    with program(lab[2], "udp", 8053):
        known(lab, 2, 8053)
        create(lab, "names", "--replicas=1", "--publish=8053:7000/udp")
        lab.running(1, "names", 1)
        until(lambda: "8053" in (lab[2].state / "ports.json").read_text(), "it is given up")
        assert ask_udp(lab, 2, 8053) == "the host's own"
        lab[2].kill_agent(signal.SIGKILL)
    lab[2].kill_netd()
    lab[2].start_netd()
    lab[2].start_agent()
    until(lambda: lab[2].get("/info")["Swarm"]["LocalNodeState"] == "active", "host 2 is back")
    until(lambda: lab.nodes(1)[lab.node_id(2)]["Status"]["State"] == "ready", "host 2 is ready", 30)
    with program(lab[2], "udp", 8053):
        assert ask_udp(lab, 2, 8053) == "the host's own"
    lab[1].swarm("service", "rm", "names")
