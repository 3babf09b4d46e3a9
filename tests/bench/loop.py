"""``./run bench loop``: orchestrating, allocating, scheduling and committing together, with nodes that obey at once; writes its
section of docs/benchmarks.md.

CPU seconds of the leader's one thread: passes, encoding and applying their entries and the nodes' reports, the books. No Raft, no
network, no engines. Each case runs in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import NodeStatus
from swarm_agent.objects.specs import ContainerSpec, TaskTemplate, UpdateConfig
from swarm_agent.store import Group, Put
from tests.bench.sections import write_section
from tests.bench.store import Leader, World, change_service, set_status

ROOT = Path(__file__).parents[2]
BEGIN = "<!-- from here on: written by ./run bench loop -->"
replace = msgspec.structs.replace


class Case(NamedTuple):
    """``what`` happens to ``services`` of ``replicas`` each."""

    what: str
    nodes: int
    services: int
    replicas: int


CASES = (
    *(
        Case(what, nodes, 1, 10_000)
        for nodes in (100, 1_000)
        for what in ("bring-up", "update, all at once", "update, 10 at a time", "node loss")
    ),
    Case("bring-up", 1_000, 100, 1_000),
    Case("node loss", 1_000, 100, 1_000),
    Case("update, all at once", 1_000, 100, 1_000),  # of one of them
    Case("update, 10 at a time", 1_000, 100, 1_000),  # the same
    Case("status changes", 1_000, 1_000, 10),
    Case("status changes", 1_000, 1, 10_000),
)
CHANGES = 1000  # statuses reported one by one


def measure(case: Case) -> dict[str, float]:
    world = World(case.nodes, case.services, case.replicas)
    world.found()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # as the daemon does
    leader = Leader(world)
    total = case.services * case.replicas
    if case.what == "bring-up":
        return figures(leader, total)
    leader.drive()
    assert world.store.tasks.tallies["state"] == {TaskState.RUNNING: total}
    match case.what:
        case "status changes":
            return statuses(leader)
        case "node loss":
            node = world.store.nodes.get(world.nodes[0].id)
            assert node is not None
            lost = len(list(world.store.tasks.by("node", node.id)))
            down = replace(node, status=NodeStatus(state=NodeState.DOWN))
            return figures(
                leader, lost, lambda: world.apply(world.entry(Group("", (Put(down, node.version),))))
            )
        case what:
            together = 0 if what == "update, all at once" else 10
            update = UpdateConfig(parallelism=together, monitor=1, order="stop-first")
            template = TaskTemplate(container_spec=ContainerSpec(image="registry.example.org/team/app-0:2"))
            return figures(
                leader,
                case.replicas,
                lambda: change_service(world, task_template=template, update_config=update),
            )


def figures(leader: Leader, tasks: int, begin: Callable[[], None] | None = None) -> dict[str, float]:
    """What it costs until nothing is left to do."""
    started = time.thread_time()
    if begin is not None:
        begin()
    leader.drive()
    took = time.thread_time() - started
    calls = sorted(leader.runs)
    return {
        "cpu_s": took,
        "tasks": tasks,
        "calls": len(calls),
        "median_ms": statistics.median(calls) * 1000,
        "worst_ms": calls[-1] * 1000,
        "above_20": sum(call > 0.020 for call in calls),
        "booking_ms": max(leader.books) * 1000,
    }


def statuses(leader: Leader) -> dict[str, float]:
    """Tasks report one by one that their containers are healthy still."""
    world = leader.world
    took = []
    for task in world.rng.sample(list(world.store.tasks.all()), CHANGES):
        data = world.entry(set_status(world, task))
        started = time.thread_time()
        world.apply(data)
        at = leader.controllers.next_wake()
        while at is not None and at <= world.now:
            leader.controllers.run(world.now)
            at = leader.controllers.next_wake()
        took.append(time.thread_time() - started)
    return {
        "each_ms": sum(took) / len(took) * 1000,
        "median_ms": statistics.median(took) * 1000,
        "worst_ms": max(took) * 1000,
    }


METHOD = """\
## The whole loop

Measured by `./run bench loop`, one process per line, on one of {cores} shared cores: orchestrating, allocating, scheduling, encoding and applying the
entries, and the same for what the nodes report; nodes obey at once. *CPU*: of the leader's thread, from the cause until nothing is left to do.
*Calls*: into the controllers; *booking*: the longest time to record the changes of one entry. No Raft, no network, no engines. The aim is no call
above 20 ms. The core is about three times as fast as the one on which these figures were first taken.

| what | nodes | services x replicas | CPU, s | tasks | ms a task | calls | median call, ms | worst call, ms | above 20 ms | booking, ms |
|---|---|---|---|---|---|---|---|---|---|---|
"""
STATUSES = """
One status of a running task, from its entry until nothing is left to do (aim: under 0.2 ms, and less than twice as much in a service of 10,000 as in one of 10):

| services x replicas | mean, ms | median, ms | worst, ms |
|---|---|---|---|
"""


def render(results: list[tuple[Case, dict[str, float]]]) -> str:
    rows, changes = [], []
    for case, r in results:
        size = f"{case.services:,} x {case.replicas:,}"
        if "each_ms" in r:
            changes.append(f"| {size} | {r['each_ms']:.3f} | {r['median_ms']:.3f} | {r['worst_ms']:.2f} |")
            continue
        rows.append(
            f"| {case.what} | {case.nodes:,} | {size} | {r['cpu_s']:.2f} | {r['tasks']:,} | {r['cpu_s'] / r['tasks'] * 1000:.2f} "
            f"| {r['calls']:,} | {r['median_ms']:.1f} | {r['worst_ms']:.0f} | {r['above_20']} | {r['booking_ms']:.1f} |"
        )
    return METHOD.format(cores=os.cpu_count()) + "\n".join(rows) + "\n" + STATUSES + "\n".join(changes) + "\n"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="./run bench loop", allow_abbrev=False)
    parser.add_argument("--only", default="", help="only what is named so; nothing is written")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.case:
        print(json.dumps(measure(msgspec.json.decode(given.case, type=Case))))
        return
    results = []
    for case in CASES:
        if given.only not in case.what:
            continue
        run = subprocess.run(
            [sys.executable, "-m", "tests.bench.loop", "--case", json.dumps(case)],
            check=True,
            capture_output=True,
            text=True,
        )
        figured = json.loads(run.stdout)
        results.append((case, figured))
        print(case, {key: round(value, 3) for key, value in figured.items()}, flush=True)
    if not given.only:
        page = ROOT / "docs" / "benchmarks.md"
        write_section(page, BEGIN, render(results))
        print(f"wrote {page}")


if __name__ == "__main__":
    main(sys.argv[1:])
