"""People, crashes and drains by chance on three real engines, and then exactly what was declared, on every engine.

A seed decides what is done, not when daemons and engines answer: a failure tells its deeds and does not replay exactly.
``SWARM_REAL_SEEDS`` says how many seeds are run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import IMAGE, Lab, SwarmHost, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

SEEDS = int(os.environ.get("SWARM_REAL_SEEDS", "1"))
DEEDS = 70
MOST = 8  # services
GLOBAL = -1
COMMAND = ("/task", "serve", "x", "7000")
ANYWHERE = (
    (),
    ("--update-order", "start-first"),
    ("--update-parallelism", "0"),
    ("--update-failure-action", "rollback", "--update-monitor", "1s"),
    ("--restart-delay", "500ms"),
)
REPLICATED = (
    *ANYWHERE,
    ("--label", "swarm-agent.placement.strategy=binpack"),
    ("--label", "swarm-agent.rebalance=continuous"),
    ("--placement-pref", "spread=node.labels.zone"),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder: Path = tmp_path_factory.mktemp("chance")
    with swarm_lab(folder) as found:
        found[1].swarm("swarm", "init", "--advertise-addr", found[1].address)
        token = found[1].swarm("swarm", "join-token", "-q", "manager").strip()
        for number in (2, 3):
            found[number].swarm("swarm", "join", "--token", token, "10.92.0.1:2377")
        yield found


class People:
    """Who do things to a swarm, and remember what they declared."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.seed = seed
        self.rng = random.Random(seed)
        self.wanted: dict[str, int] = {}  # service -> replicas, or GLOBAL
        self.deeds: list[str] = []
        self._made = 0

    def do_something(self) -> None:
        deeds: list[Callable[[], str]] = [
            self.create,
            self.create,
            self.scale,
            self.scale,
            self.update,
            self.update,
            self.break_,
            self.force,
            self.roll_back,
            self.remove,
            self.set_availability,
            self.set_availability,
            self.label,
            self.kill_container,
            self.kill_container,
            self.restart_agent,
        ]
        self.deeds.append(self.rng.choice(deeds)())

    def _host(self) -> SwarmHost:
        return self.rng.choice(list(self.lab.hosts.values()))

    def _ask(self, *words: str, may_fail: bool = False) -> str:
        self._host().swarm(*words, check=not may_fail)
        return " ".join(words)

    def _service(self) -> str:
        return self.rng.choice(list(self.wanted)) if self.wanted else ""

    def _update(self, *words: str) -> str:
        name = self._service()
        return self._ask("service", "update", "-d", "--no-resolve-image", *words, name) if name else "-"

    def create(self) -> str:
        if len(self.wanted) >= MOST:
            return "-"
        self._made += 1
        name = f"s{self.seed}-{self._made}"
        count = self.rng.choice((GLOBAL, 1, 2, 3, 4))
        mode = ("--mode", "global") if count == GLOBAL else ("--replicas", str(count))
        options = self.rng.choice(ANYWHERE if count == GLOBAL else REPLICATED)
        text = self._ask(
            "service", "create", "-d", "--no-resolve-image", "--name", name, *mode, *options, f"{IMAGE}:1", *COMMAND
        )  # fmt: skip
        self.wanted[name] = count
        return text

    def scale(self) -> str:
        name = self._service()
        if not name or self.wanted[name] == GLOBAL:
            return "-"
        count = self.rng.randrange(6)
        text = self._ask("service", "scale", "-d", f"{name}={count}")
        self.wanted[name] = count
        return text

    def update(self) -> str:
        return self._update("--env-add", f"X={self.rng.random()}")

    def break_(self) -> str:
        return self._update("--image", "no-such-image:1")

    def force(self) -> str:
        return self._update("--force")

    def roll_back(self) -> str:
        """There may be nothing to go back to."""
        name = self._service()
        return self._ask("service", "rollback", "-d", name, may_fail=True) if name else "-"

    def remove(self) -> str:
        if len(self.wanted) < 3:
            return "-"
        name = self._service()
        del self.wanted[name]
        return self._ask("service", "rm", name)

    def set_availability(self) -> str:
        word = self.rng.choice(("active", "active", "drain", "pause"))
        return self._ask("node", "update", "--availability", word, self._node())

    def label(self) -> str:
        return self._ask("node", "update", "--label-add", f"zone={self.rng.randrange(3)}", self._node())

    def _node(self) -> str:
        return self.lab.node_id(self.rng.choice(list(self.lab.hosts)))

    def kill_container(self) -> str:
        host = self._host()
        names = host.docker("ps", "-q").split()
        if not names:
            return "-"
        name = self.rng.choice(names)
        host.docker("kill", name, check=False)  # it may be gone by now
        return f"kill {name} on host {host.number}"

    def restart_agent(self) -> str:
        """The others go on meanwhile; whether it led is chance."""
        host = self._host()
        host.kill_agent()
        host.start_agent()
        until(lambda: host.call_api("GET", "/services")[0] == 200, "it to be a manager again", 60)
        return f"kill and start the agent of host {host.number}"

    def heal(self) -> None:
        """What can only be repaired by who broke it."""
        host = self.lab[1]
        for number in self.lab.hosts:
            host.swarm("node", "update", "--availability", "active", self.lab.node_id(number))
        for name in self.wanted:
            host.swarm("service", "update", "-d", "--no-resolve-image", "--image", f"{IMAGE}:1", name)


def unlike(lab: Lab, wanted: dict[str, int]) -> list[str]:
    """What is not as declared: counts as people see them, and containers as the engines have them."""
    out = []
    rows = {s["Spec"]["Name"]: s["ServiceStatus"] for s in lab[1].get("/services?status=true")}
    if rows.keys() != wanted.keys():
        out.append(f"services are {sorted(rows)}")
    for name, declared in wanted.items():
        count = len(lab.hosts) if declared == GLOBAL else declared
        status = rows.get(name, {})
        if (status.get("RunningTasks"), status.get("DesiredTasks")) != (count, count):
            out.append(f"{name} has {status}, declared are {count}")
    tasks: list[dict[str, Any]] = lab[1].get("/tasks")
    for number, host in lab.hosts.items():
        node = lab.node_id(number)
        here = {f"{t['ID']}" for t in tasks if t.get("NodeID") == node and t["DesiredState"] == "running"}
        containers = {name.rsplit(".", 1)[-1] for name in host.docker("ps", "--format", "{{.Names}}").split()}
        if here != containers:
            out.append(f"host {number} should run {sorted(here)} and runs {sorted(containers)}")
    return out


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_was_declared_is_what_runs_in_the_end(lab: Lab, seed: int) -> None:
    people = People(lab, seed)
    for _ in range(DEEDS):
        people.do_something()
    people.heal()
    found: list[str] = []

    def settled() -> bool:
        found[:] = unlike(lab, people.wanted)
        return not found

    try:
        until(settled, "everything to be as declared", 180)
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *found, *people.deeds])) from error
    for name in people.wanted:
        lab[2].swarm("service", "rm", name)
    for number in lab.hosts:
        lab.no_containers(number, 60)
