"""What is measured, behind one set of words: our swarm, and Docker's own on the same kind of hosts."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.cluster.network.daemon_side import engine_request
from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import IMAGE, Lab, SwarmHost

COMMAND = ["/task", "serve", "bench", "7000"]


def _is_empty(host: SwarmHost) -> bool:
    return not host.docker("ps", "-aq").split()


class Subject:
    """Three hosts in one swarm: 1 and 2 and 3 managers (or 3 a worker, see ``form``)."""

    name = ""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def socket(self, number: int) -> str:
        raise NotImplementedError

    def prepare(self) -> None:
        """Make the hosts ready to form a swarm."""

    def kill_control(self, number: int) -> None:
        """kill -9 whatever makes this host a member."""
        raise NotImplementedError

    def revive_control(self, number: int) -> None:
        raise NotImplementedError

    def api(self, number: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return engine_request(self.socket(number), method, path, body)

    def ok(self, number: int, method: str, path: str, body: Any = None) -> Any:
        status, answer = self.api(number, method, path, body)
        assert status < 400, f"{self.name}: {method} {path}: {status} {answer}"
        return answer

    def form(self) -> None:
        """Hosts 1, 2 and 3 become managers."""
        first = self.lab[1].address
        self.ok(1, "POST", "/swarm/init", {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": first})
        token = self.ok(1, "GET", "/swarm")["JoinTokens"]["Manager"]
        for number in (2, 3):
            address = self.lab[number].address
            body = {
                "ListenAddr": "0.0.0.0:2377",
                "AdvertiseAddr": address,
                "RemoteAddrs": [f"{first}:2377"],
                "JoinToken": token,
            }
            self.ok(number, "POST", "/swarm/join", body)
        until(
            lambda: [n["Status"]["State"] for n in self.ok(1, "GET", "/nodes")] == ["ready"] * 3,
            "three ready nodes",
            60,
        )

    def leader(self) -> int:
        def find() -> int | None:
            for number in self.lab.hosts:
                try:
                    status, nodes = self.api(number, "GET", "/nodes")
                except OSError:
                    continue
                if status == 200:
                    for node in nodes:
                        if node.get("ManagerStatus", {}).get("Leader"):
                            return int(node["ManagerStatus"]["Addr"].split(":")[0].rsplit(".", 1)[1])
            return None

        found: int = until(find, "a leader", 60)
        return found

    def create(self, via: int, name: str, replicas: int, **more: Any) -> str:
        template = {
            "ContainerSpec": {"Image": f"{IMAGE}:1", "Command": COMMAND, "StopGracePeriod": 1_000_000_000},
            **more.pop("template", {}),
        }
        body = {
            "Name": name,
            "TaskTemplate": template,
            "Mode": {"Replicated": {"Replicas": replicas}},
            **more,
        }
        created: str = self.ok(via, "POST", "/services/create", body)["ID"]
        return created

    def running(self, via: int, service: str) -> list[dict[str, Any]]:
        filters = quote(json.dumps({"service": [service]}))
        tasks = self.ok(via, "GET", f"/tasks?filters={filters}")
        return [t for t in tasks if t["Status"]["State"] == "running" and t["DesiredState"] == "running"]

    def wait_running(self, via: int, service: str, count: int, seconds: float = 120) -> None:
        until(lambda: len(self.running(via, service)) == count, f"{count} tasks of {service}", seconds)

    def remove(self, via: int, service: str) -> None:
        self.ok(via, "DELETE", f"/services/{service}")
        for host in self.lab.hosts.values():
            until(partial(_is_empty, host), "no containers", 120)

    def pids(self, number: int) -> list[int]:
        """The processes that make this host a member, beside the engine."""
        raise NotImplementedError


class Ours(Subject):
    name = "swarm-agent"

    def socket(self, number: int) -> str:
        return self.lab[number].socket

    def kill_control(self, number: int) -> None:
        self.lab[number].kill_agent()

    def revive_control(self, number: int) -> None:
        self.lab[number].start_agent()

    def pids(self, number: int) -> list[int]:
        host: SwarmHost = self.lab[number]
        return [p.pid for p in (host.agent, host.netd) if p is not None]


class Docker(Subject):
    name = "Docker Swarm"

    def socket(self, number: int) -> str:
        return self.lab[number].engine_socket

    def prepare(self) -> None:
        os.environ["DOCKER_SERVICE_PREFER_OFFLINE_IMAGE"] = "1"
        for host in self.lab.hosts.values():
            host.kill_agent(signal.SIGTERM)
            host.kill_netd(signal.SIGTERM)
            host.stop_engine()
            host.start_engine(live_restore=False)

    def kill_control(self, number: int) -> None:
        self.lab[number].stop_engine(signal.SIGKILL)

    def revive_control(self, number: int) -> None:
        self.lab[number].start_engine(live_restore=False)

    def pids(self, number: int) -> list[int]:
        engine = self.lab[number].engine
        return [engine.pid] if engine is not None else []


def floor(lab: Lab, count: int, network_mode: str, parallel: int = 8) -> float:
    """Seconds for the same containers by plain engine calls: create and start, spread over the hosts."""

    def one(index: int) -> None:
        host = lab[index % len(lab.hosts) + 1]
        name = f"floor-{index}"
        body = {
            "Image": f"{IMAGE}:1",
            "Entrypoint": ["/task", "idle"],
            "HostConfig": {"NetworkMode": network_mode},
        }
        for method, path, sent in (
            ("POST", f"/containers/create?name={name}", body),
            ("POST", f"/containers/{name}/start", None),
        ):
            status, answer = engine_request(host.engine_socket, method, path, sent)
            assert status < 400, answer

    started = time.monotonic()
    with ThreadPoolExecutor(parallel * len(lab.hosts)) as pool:
        list(pool.map(one, range(count)))
    took = time.monotonic() - started
    for host in lab.hosts.values():
        for container in host.docker("ps", "-aq").split():
            host.docker("rm", "-f", container)
    return took


def pss_mb(pids: list[int]) -> float:
    """Proportional set size of some processes, megabytes."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def cpu_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[], Any]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started
