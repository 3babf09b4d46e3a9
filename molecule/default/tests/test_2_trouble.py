"""Hosts lose their power, one after the other, and come back."""

from __future__ import annotations

import contextlib

from tests.hosts.shell import Failure
from tests.hosts.swarm import Swarm, seconds_until

REPLICAS = 8
WORKER = 4


def _all_run_elsewhere(swarm: Swarm, via: int, lost: int) -> bool:
    spread = swarm.running(via, "echo")
    return swarm.hosts.name(lost) not in spread and sum(map(len, spread.values())) == REPLICAS


def _ready(swarm: Swarm, via: int, number: int) -> bool:
    node = swarm.nodes(via)[swarm.hosts.name(number)]
    manager = node.get("ManagerStatus", {"Reachability": "reachable"})
    ready: bool = node["Status"]["State"] == "ready" and manager["Reachability"] == "reachable"
    return ready


def test_a_lost_worker_s_tasks_come_up_elsewhere(swarm: Swarm) -> None:
    before = swarm.running(1, "echo")
    assert before[swarm.hosts.name(WORKER)]
    swarm.hosts.kill(WORKER)
    took = seconds_until(
        "the lost worker's tasks on the other hosts",
        lambda: _all_run_elsewhere(swarm, 1, WORKER),
        timeout=60,
    )
    print(f"worker lost: its tasks ran elsewhere after {took:.1f} s")
    stayed = {task for name, tasks in before.items() if name != swarm.hosts.name(WORKER) for task in tasks}
    after = {task for tasks in swarm.running(1, "echo").values() for task in tasks}
    assert stayed <= after, "tasks of other hosts were disturbed"


def test_the_worker_comes_back(swarm: Swarm) -> None:
    swarm.hosts.start(WORKER)
    took = seconds_until("the worker to be ready", lambda: _ready(swarm, 1, WORKER), timeout=90)
    print(f"worker back: ready after {took:.1f} s")
    seconds_until("an answer of the worker", lambda: swarm.answer(WORKER, 8080), timeout=30)


def test_without_its_leader_the_swarm_goes_on_accepting_writes(swarm: Swarm) -> None:
    leader = swarm.leader(1)
    other = next(number for number in (1, 2, 3) if number != leader)
    swarm.hosts.kill(leader)
    attempts = 0

    def write() -> bool:
        nonlocal attempts
        attempts += 1
        with contextlib.suppress(Failure):
            swarm.docker(
                other, "service", "update", "--detach", "--label-add", f"try={attempts}", "echo", timeout=20
            )
            return True
        return False

    took = seconds_until("an acknowledged write", write, timeout=30)
    print(f"leader lost: a write was acknowledged after {took:.1f} s, at attempt {attempts}")
    elsewhere = seconds_until(
        "the lost leader's tasks on the other hosts",
        lambda: _all_run_elsewhere(swarm, other, leader),
        timeout=60,
    )
    print(f"leader lost: its tasks ran elsewhere after {took + elsewhere:.1f} s")
    labels = swarm.get(other, "/services/echo")["Spec"]["Labels"]
    assert labels["try"] == str(attempts)
    assert swarm.answer(other, 8080)

    swarm.hosts.start(leader)
    back = seconds_until(
        "the old leader to be a manager again", lambda: _ready(swarm, other, leader), timeout=90
    )
    print(f"leader's host back: a manager again after {back:.1f} s")
    assert swarm.get(leader, "/services/echo")["Spec"]["Labels"] == labels
