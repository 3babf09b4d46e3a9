"""Whole swarms for tests: the network lab's hosts, each with a real ``swarm-agent`` and the real ``docker`` CLI."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.cluster.network.daemon_side import engine_request
from tests.cluster.network.lab import ROOT, Host, Space, _wire, build_image, run, until

IMAGE = "swarm-test-task"
SHELL = "swarm-test-shell:1"
CLIENT = "10.93.0.100"


class SwarmHost(Host):
    """A host whose daemon is the product."""

    agent: subprocess.Popen[str] | None = None
    checked = True  # with Python's own checks on, which cost time; off when time is what is measured

    @property
    def socket(self) -> str:
        return str(self.folder / "agent.sock")

    def start_agent(self, small_state: str = "", more: str = "") -> None:
        """``small_state``: put the state on a file system of this size first. ``more``: lines of the configuration."""
        if small_state:
            folder = str(self.folder / "state")
            self.space.run("mount", "-t", "tmpfs", "-o", f"size={small_state}", "tmpfs", folder)
        config = self.folder / "agent.toml"
        config.write_text(
            f'state_dir = "{self.folder}/state"\nsocket = "{self.socket}"\nengine_socket = "{self.engine_socket}"\n'
            f'metrics_addr = "127.0.0.1:9323"\nlog_level = "{"debug" if self.checked else "info"}"\n' + more
        )
        self.state.parent.mkdir(exist_ok=True)
        self.agent = self.spawn(
            sys.executable, *(["-X", "dev"] if self.checked else []), "-m", "swarm_agent.daemon", "--config", str(config),
            log="agent.log", env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        until(lambda: self.call_api("GET", "/_ping")[0] == 200, f"agent of host {self.number}", 30)

    def kill_agent(self, number: int = signal.SIGKILL) -> None:
        if self.agent is not None:
            # the process we hold is nsenter, which becomes the agent by exec
            self.agent.send_signal(number)
            self.agent.wait(timeout=30)
            self.agent = None

    def call_api(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        try:
            return engine_request(self.socket, method, path, body)
        except json.JSONDecodeError:
            return 200, None

    def get(self, path: str) -> Any:
        status, answer = self.call_api("GET", path)
        assert status == 200, f"GET {path} on host {self.number}: {status} {answer}"
        return answer

    def swarm(self, *arguments: str, check: bool = True, **more: Any) -> str:
        """The docker CLI against our socket."""
        return run("docker", "-H", f"unix://{self.socket}", *arguments, check=check, **more)

    def ctl(self, *words: str, check: bool = True) -> str:
        """What ``swarmctl`` says."""
        command = (sys.executable, "-m", "swarm_agent.cli", "--socket", self.socket, *words)
        return run(*command, check=check, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def close(self) -> None:
        self.kill_agent(signal.SIGTERM)
        super().close()


class Event(NamedTuple):
    """What an engine tells of a container."""

    at: float  # seconds; one clock, as all hosts are on one machine
    host: int
    action: str  # create, start, die, ..
    service: str
    slot: str
    container: str


def build_shell(folder: Path) -> Path:
    """A file system with a shell and a few words, from Debian's static busybox."""
    archive = folder / "shell.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(shutil.which("busybox") or "/bin/busybox", "bin/busybox")
        for name in ("sh", "echo", "sleep", "cat", "test", "touch", "rm"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return archive


class Lab:
    """Hosts, a client outside, and words for what tests await."""

    def __init__(self, hosts: dict[int, SwarmHost], client: Space, router: Space, folder: Path) -> None:
        self.hosts = hosts
        self.client = client
        self._router = router
        self._folder = folder
        self._marks = 0

    def __getitem__(self, number: int) -> SwarmHost:
        return self.hosts[number]

    def tasks(self, via: int, service: str, state: str = "running") -> list[dict[str, Any]]:
        filters = json.dumps({"service": [service]})
        found = self.hosts[via].get(f"/tasks?filters={quote(filters)}")
        return [
            t for t in found if t["Status"]["State"] == state and t["DesiredState"] in ("running", "ready")
        ]

    def node_id(self, number: int) -> str:
        found: str = self.hosts[number].get("/info")["Swarm"]["NodeID"]
        return found

    def leader(self) -> int:
        """The host whose manager leads now."""

        def find() -> int | None:
            for number, host in self.hosts.items():
                if host.agent is not None:
                    metrics = host.space.run("curl", "-s", "http://127.0.0.1:9323/metrics", check=False)
                    if "swarm_manager_leader 1" in metrics:
                        return number
            return None

        found: int = until(find, "a leader")
        return found

    def greeting(self, number: int, port: int) -> list[str]:
        """What the task program says to the client outside: its name, the address it sees, the port."""
        script = f"exec 3<>/dev/tcp/{self.hosts[number].address}/{port}; read -t 5 line <&3; echo $line"
        return self.client.run("timeout", "6", "bash", "-c", script, check=False).split()

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Have every engine tell what it does, for :meth:`events`."""
        told = ("events", "--filter", "type=container", "--format", "{{json .}}")
        processes = [
            host.spawn("docker", "-H", f"unix://{host.engine_socket}", *told, log="events.log")
            for host in self.hosts.values()
        ]

        def heard(host: SwarmHost) -> bool:
            host.docker("rm", host.docker("create", SHELL, "true").strip())
            return (host.folder / "events.log").stat().st_size > 0

        try:
            for host in self.hosts.values():
                until(partial(heard, host), f"events of engine {host.number}")
            yield
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def history(self, service: str, *actions: str) -> list[Event]:
        """As :meth:`events`, with all that happened until now: what the engines tell comes in order, but a little late."""
        self._marks += 1
        mark = f"mark-{self._marks}"

        def marked(log: Path) -> bool:
            return f'"{mark}"' in log.read_text()

        for host in self.hosts.values():
            host.docker("rm", host.docker("create", "--name", mark, SHELL, "true").strip())
        for host in self.hosts.values():
            until(partial(marked, host.folder / "events.log"), f"the mark of engine {host.number}")
        return self.events(service, *actions)

    def events(self, service: str, *actions: str) -> list[Event]:
        """What happened to a service's containers since they are recorded, oldest first."""
        found = []
        for number, host in self.hosts.items():
            for line in (host.folder / "events.log").read_text().splitlines(keepends=True):
                if not line.endswith("\n"):
                    break  # it is just being written
                told = json.loads(line)
                about = told["Actor"]["Attributes"]
                name = about.get("com.docker.swarm.service.name", "")
                if name == service and told["Action"] in actions:
                    slot = about["name"].split(".")[1]
                    found.append(
                        Event(told["timeNano"] / 1e9, number, told["Action"], name, slot, told["Actor"]["ID"])
                    )
        return sorted(found)

    def containers(self, service: str) -> dict[int, list[str]]:
        """By host, the ids of the service's containers that its engine runs; hosts without any are left out."""
        label = f"label=com.docker.swarm.service.name={service}"
        found = {
            n: host.docker("ps", "-q", "--no-trunc", "--filter", label).split()
            for n, host in self.hosts.items()
        }
        return {n: sorted(ids) for n, ids in found.items() if ids}

    def spread(self, service: str) -> dict[int, int]:
        """By host, how many containers of the service its engine runs."""
        return {n: len(ids) for n, ids in self.containers(service).items()}

    def inspected(self, service: str) -> list[tuple[str, dict[str, Any]]]:
        """Each container that runs: its slot, and what its engine shows of it. One that goes meanwhile is left out."""
        found: list[dict[str, Any]] = []
        for number, ids in self.containers(service).items():
            found += json.loads(self.hosts[number].docker("inspect", *ids, check=False) or "[]")
        return sorted(((c["Name"].split(".")[1], c) for c in found), key=lambda pair: pair[0])

    def no_containers(self, number: int, seconds: float = 30) -> None:
        """Wait until the host's engine has none left; else tell what is left and what its manager thinks of it."""
        host = self.hosts[number]
        try:
            until(lambda: host.docker("ps", "-aq").split() == [], f"no containers on host {number}", seconds)
        except AssertionError as error:
            left = host.docker("ps", "-a", "--format", "{{.Names}} {{.Status}}")
            known = [
                (t["ID"], t["DesiredState"], t["Status"])
                for t in self.hosts[self.leader()].get("/tasks")
                if t.get("NodeID")
            ]
            raise AssertionError(f"{error}\nleft: {left}\ntasks: {known}") from error

    def cut(self, number: int) -> None:
        """Pull the host's cable."""
        self._router.run("ip", "link", "set", f"h{number}", "down")

    def mend(self, number: int) -> None:
        self._router.run("ip", "link", "set", f"h{number}", "up")

    def nodes(self, via: int) -> dict[str, dict[str, Any]]:
        return {n["ID"]: n for n in self.hosts[via].get("/nodes")}

    def running(self, via: int, service: str, count: int, seconds: float = 60) -> list[dict[str, Any]]:
        def enough() -> list[dict[str, Any]] | None:
            tasks = self.tasks(via, service)
            return tasks if len(tasks) == count else None

        found: list[dict[str, Any]] = until(enough, f"{count} running tasks of {service}", seconds)
        return found


@contextlib.contextmanager
def swarm_lab(folder: Path, numbers: tuple[int, ...] = (1, 2, 3), *, checked: bool = True) -> Iterator[Lab]:
    """Hosts with engine, netd and agent running, in no swarm yet."""
    with contextlib.ExitStack() as stack:
        router, client = Space("router"), Space("client")
        stack.callback(router.close)
        stack.callback(client.close)
        router.run("ip", "link", "add", "lan", "type", "bridge")
        router.run("ip", "addr", "add", "10.92.0.254/24", "dev", "lan")
        router.run("ip", "link", "set", "lan", "up")
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=0")
        _wire(router, "toclient", client, "eth0", f"{CLIENT}/24", "10.93.0.1")
        router.run("ip", "addr", "add", "10.93.0.1/24", "dev", "toclient")
        image, shell = build_image(folder), build_shell(folder)
        lab = Lab({}, client, router, folder)
        for number in numbers:
            host = SwarmHost(number, folder / f"host{number}")
            host.checked = checked
            stack.callback(host.close)
            # no resolver: looking a registry up must fail at once, not after a time-out
            options = (
                "options ndots:0\n",
                "options edns0 trust-ad\n",
                "search corp.example\noptions ndots:5\n",
            )
            (host.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n" + options[number % 3])
            host.space.run("mount", "--bind", str(host.folder / "resolv.conf"), "/etc/resolv.conf")
            host.state = host.folder / "state" / "net"
            host.state.mkdir(parents=True)
            _wire(router, f"h{number}", host.space, "eth0", f"{host.address}/24", "10.92.0.254")
            router.run("ip", "link", "set", f"h{number}", "master", "lan")
            lab.hosts[number] = host
        for host in lab.hosts.values():
            host.start_netd()
        for host in lab.hosts.values():
            host.start_engine()
            host.docker("import", str(image), f"{IMAGE}:1")
            host.docker("tag", f"{IMAGE}:1", f"{IMAGE}:2")
            host.docker("import", str(shell), SHELL)
            host.start_agent()
        yield lab
