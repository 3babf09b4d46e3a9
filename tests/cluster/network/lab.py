"""Hosts for the network's tests: each a pair of own namespaces (network, mounts) with its own engine, netd and daemon.

    client 10.93.0.100 -- router -- lan 10.92.0.0/24 -- host 1 (10.92.0.1), host 2, host 3

A host's ``/run`` is its own, so namespaces, plugin sockets and engines do not meet. Everything ends with the
processes started here, and only those are ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from swarm_agent.network import resolvconf
from swarm_agent.network.model import (
    Endpoint,
    NetworkView,
    Overlay,
    Peer,
    PublishedPort,
    TaskAddress,
    VirtualIP,
    node_subnet,
)
from tests.cluster.network.daemon_side import engine_request

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CLIENT = "10.93.0.100"
RESOLV_CONFS = {
    "ndots:0": f"nameserver {CLIENT}\noptions ndots:0\n",
    "ndots:5": f"search corp.example\nnameserver {CLIENT}\noptions ndots:5 timeout:2\n",
    "edns0": f"nameserver {CLIENT}\noptions edns0 trust-ad\nsearch .\n",
    "stub": "nameserver 127.0.0.53\noptions edns0 trust-ad\n",
    "three": f"nameserver 10.92.0.254\nnameserver {CLIENT}\nnameserver 192.0.2.53\n",
    "empty": "",
    "plain": f"nameserver {CLIENT}\n",
}
"""What hosts have in ``/etc/resolv.conf``; those of the lab differ, as the hosts of a cluster may."""
_USUAL = ("plain", "ndots:0", "ndots:5", "edns0")
IMAGE = "swnet-task"
ENGINE_ROOT = os.environ.get("SWNET_ENGINE_ROOT", "")


def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """The condition's first true value; fails saying what was awaited."""
    deadline = time.monotonic() + seconds
    last: Any = None
    while time.monotonic() < deadline:
        try:
            last = condition()
        except (OSError, subprocess.CalledProcessError, KeyError) as error:
            last = error
        else:
            if last:
                return last
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}; last seen: {last!r}")


def run(*command: str, check: bool = True, **more: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **more)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")
    said: str = done.stdout
    return said


class Space:
    """A process that holds namespaces open."""

    def __init__(self, name: str, *, mounts: bool = False) -> None:
        self.name = name
        prepare = ""
        if mounts:  # a /run and a resolv.conf of its own
            prepare = (
                "conf=$(readlink -f /etc/resolv.conf) && mount -t tmpfs tmpfs /run && "
                'mkdir -p "$(dirname "$conf")" && touch /run/swnet-resolv.conf "$conf" && '
                'mount --bind /run/swnet-resolv.conf "$conf" && '
            )
        flags = ["-n", "-m", "--propagation", "private"] if mounts else ["-n"]
        self._flags = ["-n", "-m"] if mounts else ["-n"]
        script = f"{prepare}ip link set lo up && echo up && exec sleep infinity"
        self.holder = subprocess.Popen(
            ["unshare", *flags, "sh", "-c", script], stdout=subprocess.PIPE, text=True
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == "up\n"
        self.holder.stdout.close()

    @property
    def enter(self) -> list[str]:
        return ["nsenter", "-t", str(self.holder.pid), *self._flags]

    def run(self, *command: str, check: bool = True, **more: Any) -> str:
        return run(*self.enter, *command, check=check, **more)

    def close(self) -> None:
        self.holder.kill()
        self.holder.wait()


def probe_command(*arguments: object) -> list[str]:
    return [sys.executable, str(HERE / "probe.py"), *map(str, arguments)]


def probe(enter: list[str], *arguments: object) -> list[dict[str, Any]]:
    out = run(*enter, *probe_command(*arguments))
    return [json.loads(line) for line in out.splitlines()]


class Held:
    """Connections kept open by a client in some namespace."""

    def __init__(self, enter: list[str], host: str, port: int, count: int) -> None:
        command = [*enter, sys.executable, str(HERE / "probe.py"), "hold", host, str(port), str(count)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.first = self._read()

    def _read(self) -> list[dict[str, Any]]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the client that held connections ended"
        result: list[dict[str, Any]] = json.loads(line)
        return result

    def again(self) -> list[dict[str, Any]]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)
        self._process.stdout.close()


class Listener:
    """A probe that listens in some namespace and says what comes, line by line."""

    def __init__(self, enter: list[str], what: str, address: str, port: int = 0) -> None:
        command = [*enter, *probe_command(what, address, port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._came = b""
        assert self.next() == "listening"

    def next(self) -> str:
        assert self._process.stdout is not None
        while b"\n" not in self._came:
            readable, _, _ = select.select([self._process.stdout], [], [], 20)
            assert readable, "nothing came within 20 s"
            more = os.read(self._process.stdout.fileno(), 4096)
            assert more, "the listener ended"
            self._came += more
        line, self._came = self._came.split(b"\n", 1)
        return str(json.loads(line))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Refused(Exception):
    """The daemon's side answered with an error."""


class Host:
    """Life: ``start_engine``, ``start_netd``, ``start_daemon`` in any order that a real host may see; ``close``."""

    def __init__(self, number: int, folder: Path, *, library: bool = True) -> None:
        self.number = number
        self.node_id = f"node{number}"
        self.address = f"10.92.0.{number}"
        self.folder = folder
        self.folder.mkdir(parents=True)
        self.space = Space(f"host{number}", mounts=True)
        self.set_resolv_conf(_USUAL[number % len(_USUAL)])
        self.engine_socket = str(folder / "docker.sock")
        self.state = folder / "net"
        self.library = library
        self._logs: list[Any] = []
        self._rooted = False
        self.engine: subprocess.Popen[str] | None = None
        self.netd: subprocess.Popen[str] | None = None
        self.daemon: subprocess.Popen[str] | None = None
        self.seconds = 0.0  # what the daemon's last call took

    def spawn(self, *command: str, log: str, **more: Any) -> subprocess.Popen[str]:
        out = (self.folder / log).open("a")
        self._logs.append(out)
        return subprocess.Popen(
            [*self.space.enter, *command], stderr=out, text=True, **({"stdout": out} | more)
        )

    def set_resolv_conf(self, form: str) -> None:
        """The host's ``/etc/resolv.conf`` from now on; a key of ``RESOLV_CONFS``."""
        self.space.run("sh", "-c", "cat >/run/swnet-resolv.conf", input=RESOLV_CONFS[form])

    # --- the engine

    def start_engine(self, *, live_restore: bool = True) -> None:
        config = self.folder / "daemon.json"
        config.write_text(json.dumps({"node-generic-resources": ["gpu=one", "gpu=two", "disk=3"]}))
        if (
            ENGINE_ROOT and not self._rooted
        ):  # an engine of another release, from a root file system of its own
            self._rooted = True
            self.space.run("mount", "--bind", ENGINE_ROOT, ENGINE_ROOT)
            for name in ("proc", "sys", "dev", "run", "tmp"):
                self.space.run("mount", "--rbind", f"/{name}", f"{ENGINE_ROOT}/{name}")
            self.space.run("mount", "--bind", "/run/swnet-resolv.conf", f"{ENGINE_ROOT}/etc/resolv.conf")
        self.engine = self.spawn(
            *(["chroot", ENGINE_ROOT] if ENGINE_ROOT else []),
            "dockerd", "--config-file", str(config), "--data-root", str(self.folder / "docker"),
            "--exec-root", "/run/docker", "--pidfile", "/run/docker.pid", "-H", f"unix://{self.engine_socket}",
            *(["--live-restore"] if live_restore else []), "--bip", "172.30.0.1/24", "--storage-driver", "overlay2",
            log="dockerd.log",
        )  # fmt: skip
        until(lambda: self.api("GET", "/version")[0] == 200, f"engine of host {self.number}", 60)

    def stop_engine(self, number: int = signal.SIGTERM) -> None:
        if self.engine is not None:
            self.engine.send_signal(number)
            self.engine.wait(timeout=60)
            self.engine = None

    def api(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return engine_request(self.engine_socket, method, path, body)

    def docker(self, *arguments: str, check: bool = True) -> str:
        return run("docker", "-H", f"unix://{self.engine_socket}", *arguments, check=check)

    # --- netd

    def start_netd(self) -> None:
        ready = self.folder / "notify.sock"
        ready.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(ready))
            notify.settimeout(20)
            self.netd = self.spawn(
                sys.executable, "-m", "swarm_agent.network.netd", "--state-dir", str(self.state), "--log-level", "debug",
                log="netd.log", env={**os.environ, "NOTIFY_SOCKET": str(ready), "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            assert notify.recv(100) == b"READY=1"

    def kill_netd(self, number: int = signal.SIGKILL) -> None:
        if self.netd is not None:
            self.netd.send_signal(number)
            self.netd.wait(timeout=20)
            self.netd = None

    # --- the daemon

    def start_daemon(self, cut: int = 0) -> None:
        """``cut``: the daemon dies before its so-manieth act upon the kernel after start."""
        self.daemon = self.spawn(
            sys.executable, "-m", "tests.cluster.network.daemon_side", self.engine_socket, str(self.state),
            "library" if self.library else "program", str(cut), log="daemon.log", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.call("start")

    def kill_daemon(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()
            for pipe in (self.daemon.stdin, self.daemon.stdout):
                assert pipe is not None
                pipe.close()
            self.daemon = None

    def call(self, name: str, argument: Any = None) -> Any:
        assert self.daemon is not None
        assert self.daemon.stdin is not None
        assert self.daemon.stdout is not None
        self.daemon.stdin.write(json.dumps([name, msgspec.to_builtins(argument)]) + "\n")
        self.daemon.stdin.flush()
        line = self.daemon.stdout.readline()
        assert line, f"the daemon of host {self.number} ended: see {self.folder}/daemon.log"
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        self.seconds = answer["seconds"]
        return answer["result"]

    # --- looking

    def in_netns(self, netns: str) -> list[str]:
        return [*self.space.enter, "ip", "netns", "exec", netns]

    def in_container(self, container: str) -> list[str]:
        pid = self.docker("inspect", "-f", "{{.State.Pid}}", container).strip()
        return ["nsenter", "-t", pid, "-n"]

    def resolve(self, container: str, name: str) -> list[str]:
        """Addresses as a program in the container finds them: the C library, its resolv.conf, the engine's resolver."""
        pid = self.docker("inspect", "-f", "{{.State.Pid}}", container).strip()
        return run("nsenter", "-t", pid, "-n", "-m", "-r", "/task", "resolve", name, check=False).split()

    def resolv_conf(self, container: str) -> str:
        """What a program in the container reads in ``/etc/resolv.conf``."""
        pid = self.docker("inspect", "-f", "{{.State.Pid}}", container).strip()
        return self.space.run("cat", f"/proc/{pid}/root/etc/resolv.conf")

    def netns(self) -> list[str]:
        return sorted(line.split()[0] for line in self.space.run("ip", "netns").splitlines())

    def close(self) -> None:
        self.kill_daemon()
        with contextlib.suppress(Exception):
            for container in self.docker("ps", "-aq").split():
                self.docker("rm", "-f", container, check=False)
        self.kill_netd()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop_engine()
        self.space.close()
        for log in self._logs:
            log.close()


@dataclass
class Task:
    """A task of the tests' cluster: where it runs and what addresses the manager gave it."""

    id: str
    host: int
    service: str
    node_address: str
    addresses: dict[str, str]  # network id -> address
    ready: bool = True

    @property
    def name(self) -> str:
        return f"{self.service}.{self.id}"


@dataclass
class Cluster:
    """The manager's part, by hand: holds the truth, makes each host's view, starts and stops task containers."""

    hosts: dict[int, Host]
    client: Space
    router: Space
    overlays: dict[str, Overlay] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    vips: list[VirtualIP] = field(default_factory=list)
    ports: list[tuple[str, str, int, int, str]] = field(
        default_factory=list
    )  # service, protocol, published, target, mode

    def view(self, number: int) -> NetworkView:
        host = self.hosts[number]
        aliases = {(vip.network_id, vip.service_id): vip.aliases for vip in self.vips}
        ports = []
        for service, protocol, published, target, mode in self.ports:
            ready = [t.node_address for t in self.tasks.values() if t.service == service and t.ready]
            ports.append(PublishedPort(service, protocol, published, target, mode, tuple(ready)))
        return NetworkView(
            node_id=host.node_id,
            number=number,
            data_addr=host.address,
            peers=tuple(Peer(h.node_id, h.number, h.address) for h in self.hosts.values()),
            overlays=tuple(self.overlays.values()),
            endpoints=tuple(
                Endpoint(
                    network,
                    t.id,
                    t.name,
                    t.service,
                    t.service,
                    f"node{t.host}",
                    address,
                    aliases.get((network, t.service), ()),
                    t.ready,
                )
                for t in self.tasks.values()
                for network, address in t.addresses.items()
            ),
            vips=tuple(self.vips),
            ports=tuple(ports),
            local=tuple(
                TaskAddress(t.id, t.node_address, tuple(t.addresses))
                for t in self.tasks.values()
                if t.host == number
            ),
        )

    def apply(self, *numbers: int) -> None:
        for number in numbers or self.hosts:
            self.hosts[number].call("apply", self.view(number))

    def overlay(self, network_id: str, vni: int, subnet: str) -> None:
        base = subnet.rsplit(".", 1)[0]
        self.overlays[network_id] = Overlay(network_id, network_id, vni, subnet, f"{base}.1")

    def task(self, task_id: str, host: int, service: str, number: int, **addresses: str) -> Task:
        task = Task(task_id, host, service, str(node_subnet(host)[number]), addresses)
        self.tasks[task_id] = task
        return task

    def start(
        self, task: Task, port: int = 7000, *, search: tuple[str, ...] = (), options: tuple[str, ...] = ()
    ) -> None:
        """As the node does: attach, create with one network, connect the others, start."""
        host = self.hosts[task.host]
        overlays: list[tuple[str, str, list[str]]] = [
            (network, address, []) for network, address in task.addresses.items()
        ]
        request = {
            "task_id": task.id,
            "node_address": task.node_address,
            "overlays": overlays,
            "search": search,
            "dns_options": options,
        }
        net = host.call("attach", request)
        binds = [f"{net['resolv_conf']}:{resolvconf.TARGET}"] if net["resolv_conf"] else []
        body = {
            "Image": IMAGE,
            "Cmd": ["/task", "serve", task.name, str(port)],
            "HostConfig": {
                "NetworkMode": net["network_mode"],
                "Dns": net["dns"],
                "DnsSearch": search,
                "DnsOptions": net["dns_options"],
                "Binds": binds,
            },
            "NetworkingConfig": {"EndpointsConfig": net["first"]},
        }
        self._ok(host, "POST", f"/containers/create?name={task.name}", body)
        for network, endpoint in net["connect"]:
            self._ok(
                host,
                "POST",
                f"/networks/{network}/connect",
                {"Container": task.name, "EndpointConfig": endpoint},
            )
        self._ok(host, "POST", f"/containers/{task.name}/start")

    def remove(self, task: Task) -> None:
        host = self.hosts[task.host]
        self._ok(host, "DELETE", f"/containers/{task.name}?force=1")
        host.call("detach", task.id)
        self.tasks.pop(task.id, None)

    @staticmethod
    def _ok(host: Host, method: str, path: str, body: Any = None) -> Any:
        status, answer = host.api(method, path, body)
        assert status < 400, f"{method} {path} on host {host.number}: {status} {answer}"
        return answer

    def inside(self, task_id: str) -> list[str]:
        task = self.tasks[task_id]
        return self.hosts[task.host].in_container(task.name)


def build_image(folder: Path) -> Path:
    """A file system with one program and the C library it needs; no image registry is asked."""
    root = folder / "image"
    for name in ("etc", "lib64", "tmp", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    run("gcc", "-O1", "-Wall", "-Werror", "-o", str(root / "task"), str(HERE / "task.c"))
    for word in run("ldd", str(root / "task")).split():
        if word.startswith("/"):
            target = root / word.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, target)
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")
    archive = folder / "image.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(root, arcname="")
    return archive


@contextlib.contextmanager
def lab(folder: Path, numbers: tuple[int, ...] = (1, 2, 3), *, engines: bool = True) -> Iterator[Cluster]:
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
        hosts = {}
        for number in numbers:
            host = Host(number, folder / f"host{number}")
            stack.callback(host.close)
            _wire(router, f"h{number}", host.space, "eth0", f"{host.address}/24", "10.92.0.254")
            router.run("ip", "link", "set", f"h{number}", "master", "lan")
            hosts[number] = host
        if engines:
            image = build_image(folder)
            for host in hosts.values():
                host.start_netd()  # before the engine, as its unit says
                host.start_engine()
                host.space.run(
                    "iptables", "-P", "FORWARD", "DROP"
                )  # as Docker leaves a host that did not forward before
                host.docker("import", str(image), IMAGE)
                host.start_daemon()
        yield Cluster(hosts, client, router)


def _wire(router: Space, port: str, space: Space, name: str, address: str, gateway: str) -> None:
    router.run(
        "ip", "link", "add", port, "type", "veth", "peer", "name", name, "netns", str(space.holder.pid)
    )
    router.run("ip", "link", "set", port, "up")
    space.run("ip", "addr", "add", address, "dev", name)
    space.run("ip", "link", "set", name, "up")
    space.run("ip", "route", "add", "default", "via", gateway)
