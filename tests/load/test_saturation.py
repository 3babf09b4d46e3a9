"""A host with no CPU to spare, for SWARM_SATURATED_MINUTES (default 2): both cores are busy with other work while services come and go.

Nothing fails here, so every election, and every node that is taken for lost, is a false alarm. ``./run test-all`` runs it for 30 minutes.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import pytest

from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import IMAGE, Lab, SwarmHost, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

MINUTES = float(os.environ.get("SWARM_SATURATED_MINUTES", "2"))
BUSY = 2 * (os.cpu_count() or 2)  # processes that only burn
PORT = 8090
STEADY = 6
CHURNED = 5


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with swarm_lab(tmp_path_factory.mktemp("load"), (1, 2, 3, 4), checked=False) as found:
        found[1].swarm("swarm", "init", "--advertise-addr", found[1].address)
        for role, numbers in (("manager", (2, 3)), ("worker", (4,))):
            token = found[1].swarm("swarm", "join-token", "-q", role).strip()
            for number in numbers:
                found[number].swarm("swarm", "join", "--token", token, f"{found[1].address}:2377")
        yield found


@contextlib.contextmanager
def no_cpu_to_spare() -> Iterator[None]:
    """Nice by ten, which is what the agent's CPUWeight is to a container's; these hosts have no systemd to set it."""
    burning = [
        subprocess.Popen(["nice", "-n", "10", sys.executable, "-c", "while True: pass"]) for _ in range(BUSY)
    ]
    try:
        yield
    finally:
        for one in burning:
            one.kill()
            one.wait()


class Watch:
    """What happened meanwhile, seen from outside."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.terms: set[int] = set()
        self.away: collections.Counter[str] = (
            collections.Counter()
        )  # times a node was seen in another state than ready
        self.steady: set[str] = set()  # ids of tasks the steady service had
        self.answers: collections.Counter[bool] = collections.Counter()
        self.silent_s = 0.0  # longest time without an answer on the port
        self.mute_s = 0.0  # longest time without an answer of the API
        self.churned = 0
        self.refused: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._look, self._ask, self._churn)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        answered = time.monotonic()
        while not self._over.wait(1.0):
            for number in (1, 2, 3):
                text = self._lab[number].space.run("curl", "-s", "http://127.0.0.1:9323/metrics", check=False)
                self.terms |= {int(t) for t in re.findall(r"^swarm_raft_term (\d+)", text, re.MULTILINE)}
            status, nodes = self._lab[2].call_api("GET", "/nodes")
            if status == 200:
                self.mute_s = max(self.mute_s, time.monotonic() - answered)
                answered = time.monotonic()
                for node in nodes:
                    if node["Status"]["State"] != "ready":
                        self.away[f"{node['ID'][:6]} {node['Status']['State']}"] += 1
                self.steady |= {t["ID"] for t in self._tasks("steady")}

    def _tasks(self, service: str) -> list[dict[str, Any]]:
        status, found = self._lab[1].call_api("GET", "/tasks")
        ids = {s["ID"] for s in self._lab[1].get("/services") if s["Spec"]["Name"] == service}
        return [t for t in found if t["ServiceID"] in ids] if status == 200 else []

    def _ask(self) -> None:
        answered = time.monotonic()
        while not self._over.wait(0.1):
            good = bool(self._lab.greeting(1, PORT))
            self.answers[good] += 1
            if good:
                self.silent_s = max(self.silent_s, time.monotonic() - answered)
                answered = time.monotonic()

    def _churn(self) -> None:
        """Services that are made, scaled and removed again, by way of every manager."""
        number = 0
        while not self._over.is_set():
            number += 1
            host = self._lab[number % 3 + 1]
            name = f"churn-{number}"
            status, answer = host.call_api("POST", "/services/create", spec(name, 2))
            if status != 201:
                self.refused.append(f"{name}: {status} {answer}")
                continue
            self.churned += 1
            if number > CHURNED:
                status, answer = host.call_api("DELETE", f"/services/churn-{number - CHURNED}")
                if status != 200:
                    self.refused.append(f"{name}: {status} {answer}")
            self._over.wait(1.0)


def spec(name: str, replicas: int, published: int = 0) -> dict[str, Any]:
    out: dict[str, Any] = {
        "Name": name,
        "TaskTemplate": {
            "ContainerSpec": {"Image": f"{IMAGE}:1", "Command": ["/task", "serve", name, "7000"]}
        },
        "Mode": {"Replicated": {"Replicas": replicas}},
    }
    if published:
        out["EndpointSpec"] = {"Ports": [{"Protocol": "tcp", "TargetPort": 7000, "PublishedPort": published}]}
    return out


def test_no_false_alarm(lab: Lab) -> None:
    status, answer = lab[1].call_api("POST", "/services/create", spec("steady", STEADY, PORT))
    assert status == 201, answer
    lab.running(1, "steady", STEADY)
    until(lambda: lab.greeting(1, PORT), "the port")
    with no_cpu_to_spare(), Watch(lab) as seen:
        time.sleep(MINUTES * 60)
    print(
        f"{MINUTES:g} minutes with {BUSY} busy processes on {os.cpu_count()} cores: {len(seen.terms) - 1} elections, "
        f"{sum(seen.away.values())} times a node was not ready {dict(seen.away)}, {len(seen.steady) - STEADY} steady tasks replaced, "
        f"{seen.churned} services made, {len(seen.refused)} writes refused, {seen.answers[True]} requests answered, "
        f"{seen.answers[False]} not, longest silence of the port {seen.silent_s:.1f} s, of the API {seen.mute_s:.1f} s"
    )
    assert len(seen.terms) == 1
    assert not seen.away
    assert len(seen.steady) == STEADY
    assert not seen.refused
    assert not seen.answers[False]
    assert seen.churned > MINUTES * 10


def restart(host: SwarmHost) -> float:
    """Stop the agent as systemd would and start it again; seconds until its API answers."""
    began = time.monotonic()
    host.kill_agent(signal.SIGTERM)
    host.start_agent()
    return time.monotonic() - began


def test_upheavals_without_cpu_to_spare(lab: Lab) -> None:
    """What was once seen under load: no leader for long after a follower was wiped and another joined, a pinned task replaced by a mere
    restart of its agent, a port silent after agent and netd were restarted."""
    worker = lab[4]
    lab[1].swarm("node", "update", "--label-add", "here=yes", lab.node_id(4))
    pinned = spec("pinned", 1)
    pinned["TaskTemplate"]["Placement"] = {"Constraints": ["node.labels.here==yes"]}
    for document in (spec("steady", STEADY, PORT), pinned):
        status, answer = lab[1].call_api("POST", "/services/create", document)
        assert status == 201, answer
    lab.running(1, "steady", STEADY)
    lab.running(1, "pinned", 1)
    until(lambda: lab.greeting(1, PORT), "the port")
    containers = worker.docker("ps", "-q", "--no-trunc").split()
    with no_cpu_to_spare(), Watch(lab) as seen:
        took = restart(worker)
        until(lambda: lab.nodes(1)[lab.node_id(4)]["Status"]["State"] == "ready", "the worker is back", 30)
        lab.running(1, "pinned", 1)
        time.sleep(3)  # in which what was replaced would be stopped
        kept = set(worker.docker("ps", "-q", "--no-trunc").split()) >= set(containers)
        # A follower is wiped, and joins again as another node.
        gone = lab.node_id(3)
        lab[3].swarm("swarm", "leave", "--force")
        lab[1].swarm("node", "demote", gone, check=False)
        until(lambda: lab[1].call_api("DELETE", f"/nodes/{gone}?force=1")[0] in (200, 404), "it is forgotten")
        token = lab[1].swarm("swarm", "join-token", "-q", "manager").strip()
        lab[3].swarm("swarm", "join", "--token", token, f"{lab[1].address}:2377")
        until(
            lambda: len([n for n in lab.nodes(1).values() if n["Status"]["State"] == "ready"]) == 4,
            "four nodes",
            40,
        )
        time.sleep(10)
    print(
        f"the agent's restart took {took:.1f} s, its containers {'stayed' if kept else 'were replaced'}; "
        f"{len(seen.terms - {0}) - 1} elections, {dict(seen.away)}, {len(seen.steady) - STEADY} steady tasks more, "
        f"{seen.answers[False]} of {seen.answers.total()} requests unanswered, longest silence of the port {seen.silent_s:.1f} s, "
        f"of the API {seen.mute_s:.1f} s, refused: {seen.refused[:3]}"
    )
    assert kept
    assert seen.silent_s < 5
    assert seen.mute_s < 8
