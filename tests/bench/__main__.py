"""``./run bench``: our swarm beside Docker's own, on the same kind of hosts in the same run; writes docs/benchmarks.md.

``./run bench raft`` is Raft alone, beside etcd's (``raft``), ``./run bench scheduler`` the scheduler alone (``scheduler``),
``./run bench loop`` the leader's whole loop with nodes that obey at once (``loop``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.bench import loop, raft, scheduler
from tests.bench.report import render
from tests.bench.sections import sections
from tests.bench.subjects import Docker, Ours, Subject, cpu_seconds, floor, pss_mb, timed
from tests.cluster.network.lab import ROOT, until
from tests.cluster.swarm_lab import IMAGE, swarm_lab

RAW = ROOT / ".cache" / "bench.json"


def say(text: str) -> None:
    print(text, flush=True)


def replicas_50(subject: Subject, network: str) -> float:
    via = subject.leader()
    more: dict[str, object] = {}
    if network == "overlay":
        subject.ok(via, "POST", "/networks/create", {"Name": "bench", "Driver": "overlay"})

        more["template"] = {"Networks": [{"Target": "bench"}]}
    else:
        container = {
            "Image": f"{IMAGE}:1",
            "Command": ["/task", "idle"],
            "StopGracePeriod": 1_000_000_000,
        }
        more["template"] = {"Networks": [{"Target": "host"}], "ContainerSpec": container}

    def run() -> None:
        subject.create(via, "fifty", 50, **more)
        subject.wait_running(via, "fifty", 50, 240)

    took = timed(run)
    subject.remove(via, "fifty")
    if network == "overlay":
        until(
            lambda: subject.api(via, "DELETE", "/networks/bench")[0] in (204, 404),
            "the network's removal",
            60,
        )
    return took


def failover(subject: Subject) -> float:
    """kill -9 of the leader until the next acknowledged write, asked of the others."""
    leader = subject.leader()
    others = [n for n in subject.lab.hosts if n != leader]
    subject.kill_control(leader)
    started = time.monotonic()

    def written() -> bool:
        for number in others:
            try:
                status, _ = subject.api(
                    number, "POST", "/networks/create", {"Name": f"f{time.time_ns()}", "Driver": "overlay"}
                )
            except OSError:
                continue
            if status == 201:
                return True
        return False

    until(written, "an acknowledged write", 90)
    took = time.monotonic() - started
    subject.revive_control(leader)
    via = others[0]
    until(
        lambda: all(n["Status"]["State"] == "ready" for n in subject.ok(via, "GET", "/nodes")),
        "all ready",
        90,
    )
    until(
        lambda: all(
            n["ManagerStatus"]["Reachability"] == "reachable" for n in subject.ok(via, "GET", "/nodes")
        ),
        "all reachable",
        90,
    )
    return took


def worker_loss(subject: Subject) -> float:
    """A host falls silent (its link is cut) until its tasks run elsewhere."""
    via = subject.leader()
    lost = next(n for n in subject.lab.hosts if n != via)
    subject.create(via, "loss", 6)
    subject.wait_running(via, "loss", 6)
    node_id = subject.ok(lost, "GET", "/info")["Swarm"]["NodeID"]
    subject.lab.cut(lost)
    started = time.monotonic()
    until(lambda: sum(t["NodeID"] != node_id for t in subject.running(via, "loss")) == 6, "replacements", 120)
    took = time.monotonic() - started
    subject.lab.mend(lost)
    until(
        lambda: all(n["Status"]["State"] == "ready" for n in subject.ok(via, "GET", "/nodes")),
        "all ready",
        120,
    )
    subject.remove(via, "loss")
    return took


def rolling_update(subject: Subject, order: str) -> float:
    via = subject.leader()
    config = {"Parallelism": 1, "Order": order, "Monitor": 1_000_000_000}
    subject.create(via, "roll", 10, UpdateConfig=config)
    subject.wait_running(via, "roll", 10)
    service = subject.ok(via, "GET", "/services/roll")
    spec = service["Spec"]
    spec["TaskTemplate"]["ContainerSpec"]["Image"] = f"{IMAGE}:2"

    def run() -> None:
        subject.ok(via, "POST", f"/services/roll/update?version={service['Version']['Index']}", spec)
        until(
            lambda: (
                sum(t["Spec"]["ContainerSpec"]["Image"] == f"{IMAGE}:2" for t in subject.running(via, "roll"))
                == 10
            ),
            "ten updated tasks",
            180,
        )

    took = timed(run)
    subject.remove(via, "roll")
    return took


def creates(subject: Subject, clients: int, count: int = 200) -> float:
    """Services (of no replicas) created per second through the leader's API."""
    via = subject.leader()

    def one(index: int) -> str:
        return subject.create(via, f"c{clients}x{index}", 0)

    started = time.monotonic()
    if clients == 1:
        ids = [one(i) for i in range(count)]
    else:
        with ThreadPoolExecutor(clients) as pool:
            ids = list(pool.map(one, range(count)))
    rate = count / (time.monotonic() - started)
    for service in ids:
        subject.ok(via, "DELETE", f"/services/{service}")
    return rate


def footprint(subject: Subject, seconds: float = 20.0) -> dict[str, float]:
    leader = subject.leader()
    other = next(n for n in subject.lab.hosts if n != leader)
    out = {"leader_pss_mb": pss_mb(subject.pids(leader)), "follower_pss_mb": pss_mb(subject.pids(other))}
    before = cpu_seconds(subject.pids(leader))
    threading.Event().wait(seconds)  # measuring idleness takes time
    out["leader_idle_cpu_percent"] = (cpu_seconds(subject.pids(leader)) - before) / seconds * 100
    return out


def spread(work: Callable[[], float], runs: int) -> dict[str, float]:
    values = sorted(work() for _ in range(runs))
    return {"median": statistics.median(values), "min": values[0], "max": values[-1], "runs": runs}


def measure(kind: type[Subject], runs: int, folder: Path) -> dict[str, object]:
    out: dict[str, object] = {}
    with swarm_lab(folder, checked=False) as lab:
        subject = kind(lab)
        subject.prepare()
        if kind is Ours:
            for mode in ("host", "bridge"):
                out[f"floor_{mode}"] = spread(partial(floor, lab, 50, mode), runs)
                say(f"  engine's floor, {mode} network: {out[f'floor_{mode}']}")
        subject.form()
        steps: list[tuple[str, Callable[[], float]]] = [
            ("replicas_50_host", lambda: replicas_50(subject, "host")),
            ("replicas_50_overlay", lambda: replicas_50(subject, "overlay")),
            ("creates_per_s_1", lambda: creates(subject, 1)),
            ("creates_per_s_16", lambda: creates(subject, 16)),
            ("update_10_stop_first", lambda: rolling_update(subject, "stop-first")),
            ("update_10_start_first", lambda: rolling_update(subject, "start-first")),
            ("worker_loss", lambda: worker_loss(subject)),
            ("failover", lambda: failover(subject)),
        ]
        out["footprint"] = footprint(subject)
        say(f"  {subject.name}: footprint {out['footprint']}")
        for name, step in steps:
            out[name] = spread(step, runs)
            say(f"  {subject.name}: {name} {out[name]}")
    return out


def main() -> None:
    if sys.argv[1:2] == ["raft"]:
        raft.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["scheduler"]:
        scheduler.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["loop"]:
        loop.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="./run bench", allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=3, help="times each measure is taken (default 3)")
    parser.add_argument(
        "--only", choices=("ours", "docker"), help="measure one side; nothing is written to docs"
    )
    arguments = parser.parse_args()
    if os.geteuid():
        sys.exit("./run bench needs root: it makes hosts and engines")
    results: dict[str, object] = {}
    for key, kind in (("ours", Ours), ("docker", Docker)):
        if arguments.only in (None, key):
            with tempfile.TemporaryDirectory(prefix="swarm-bench-") as folder:
                say(f"measuring {kind.name}")
                results[key] = measure(kind, arguments.runs, Path(folder))
    RAW.parent.mkdir(exist_ok=True)
    RAW.write_text(json.dumps(results, indent=2))
    if arguments.only is None:
        page = ROOT / "docs" / "benchmarks.md"
        page.write_text(render(results) + sections(page))
        say(f"wrote {page}")


if __name__ == "__main__":
    main()
