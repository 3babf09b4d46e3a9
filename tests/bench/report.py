"""The page of figures: docs/benchmarks.md."""

from __future__ import annotations

import os
from typing import Any

METHOD = """\
# Benchmarks

Measured by `./run bench` on {cores} cores. Both systems ran in the same run on the same kind of hosts: three pairs of network and
mount namespaces on one machine, each with its own Docker Engine, all three managers. Docker Swarm is the engine's own swarm mode
(with `DOCKER_SERVICE_PREFER_OFFLINE_IMAGE=1`, so that it contacts no registry). Every figure is the median of {runs} run(s), followed by
the minimum and the maximum. All hosts share the cores, so absolute figures say little; the ratio is what counts.

- **50 replicas**: from the create call to 50 tasks running, as the API shows them, on the host network and on an overlay.
  *Engine's floor*: the same 50 containers made by plain create and start calls, 8 at a time per engine (on the host network, and on the
  engine's bridge, the closest plain equivalent of an overlay).
- **failover**: from kill -9 of the leader (for Docker: of its engine) to the next acknowledged write at any other manager.
- **worker loss**: from cutting a host's link to the moment all six tasks run on the others.
- **rolling update**: ten replicas, one at a time, no delay, monitor 1 s, until all ten run the new image.
- **creates**: services without replicas created per second through the leader's API, by one client and by sixteen.
- **memory, idle CPU**: proportional set size of the agent with netd, and its CPU over 20 s without work; for Docker, those of the whole
  engine, because its swarm mode cannot be measured separately.

"""

ROWS = (
    ("50 replicas, host network, s", "replicas_50_host", False),
    ("50 replicas, overlay, s", "replicas_50_overlay", False),
    ("failover, s", "failover", False),
    ("worker loss to replacement, s", "worker_loss", False),
    ("rolling update of 10, stop-first, s", "update_10_stop_first", False),
    ("rolling update of 10, start-first, s", "update_10_start_first", False),
    ("creates per second, 1 client", "creates_per_s_1", True),
    ("creates per second, 16 clients", "creates_per_s_16", True),
)


def render(results: dict[str, Any]) -> str:
    ours, docker = results["ours"], results["docker"]
    lines = [METHOD.format(cores=os.cpu_count(), runs=ours["failover"]["runs"])]
    lines += ["| what | swarm-agent | Docker Swarm | ratio (ours / Docker's) |", "|---|---|---|---|"]
    for text, key, _ in ROWS:
        a, b = ours[key], docker[key]
        lines.append(f"| {text} | {_cell(a)} | {_cell(b)} | {a['median'] / b['median']:.2f} |")
    lines += [
        "",
        "| 50 replicas against the engine's floor | floor, s | ours, s | ratio |",
        "|---|---|---|---|",
    ]
    for text, bottom, key in (
        ("host network", "floor_host", "replicas_50_host"),
        ("overlay, floor on the bridge", "floor_bridge", "replicas_50_overlay"),
    ):
        a, b = ours[key], ours[bottom]
        lines.append(f"| {text} | {_cell(b)} | {_cell(a)} | {a['median'] / b['median']:.2f} |")
    lines += ["", "| footprint | swarm-agent with netd | Docker Engine in swarm mode |", "|---|---|---|"]
    for text, key in (
        ("leader, PSS, MB", "leader_pss_mb"),
        ("follower, PSS, MB", "follower_pss_mb"),
        ("leader, idle, % of a core", "leader_idle_cpu_percent"),
    ):
        lines.append(f"| {text} | {ours['footprint'][key]:.1f} | {docker['footprint'][key]:.1f} |")
    return "\n".join(lines) + "\n"


def _cell(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['min']:.2f} to {value['max']:.2f})"
