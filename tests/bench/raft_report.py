"""The section of docs/benchmarks.md that ``./run bench raft`` writes."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

from tests.bench import sections

BEGIN = "<!-- from here on: written by ./run bench raft -->"

METHOD = """\
## Raft beside etcd

Measured by `./run bench raft` on {cores} cores that all six members and the client share: latencies include waiting for a core, and the
ratios count, not the rates. Both clusters run at the same time and take turns at every level, for {seconds:g} s each; figures are the
median of {runs} run(s), with the lowest and highest rate. Real: three processes each, fdatasync before every acknowledgement, mutual TLS
between members and to clients, our log encrypted (etcd's is not), 256-byte values. Not real: loopback instead of a network, and one
disk for all members. Our state here is a dictionary; etcd writes its own to bbolt. The clients are the same Python code (one
grpc.aio channel to the leader); etcd is Debian's 3.4 with its defaults except for a larger quota. The rows with one write per unary call
are limited by that client and by our Python server, so etcd with a client in Go would achieve more there; CPU per write depends on
the client least.

- **inside**: concurrent `RaftNode.propose` in the leader's process, no client. etcd has no equivalent.
- **stream**: writes in messages of up to 64 on one bidirectional call; every write is an entry of its own.
- **unary**: one gRPC call per write; **etcd Put**: the same with etcd.
- **etcd Txn**: up to 64 puts in one transaction, one entry of etcd's log: its closest equivalent of the stream.
- **CPU**: of the three members, microseconds per write; **client**: of the client; **RSS**: the leader's, after the level.

| proposers | way | writes/s (least to most) | p50, ms | p99, ms | CPU, us | client, us | RSS, MB | rate / etcd Put | rate / etcd Txn |
|---|---|---|---|---|---|---|---|---|---|
"""

WAYS = (
    ("inside", "inside"),
    ("stream", "stream"),
    ("unary", "unary"),
    ("etcd_put", "etcd Put"),
    ("etcd_txn", "etcd Txn"),
)


def write_section(page: Path, results: dict[str, Any]) -> None:
    sections.write_section(page, BEGIN, _render(results))


def _render(results: dict[str, Any]) -> str:
    writes, elections, store = results["writes"], results["elections"], results["store"]
    first = next(iter(writes.values()))
    text = METHOD.format(cores=os.cpu_count(), seconds=first["writes"] / first["per_s"], runs=first["runs"])
    rows = []
    for count in dict.fromkeys(int(key.split()[1]) for key in writes):
        rivals = [writes[f"{name} {count}"]["per_s"] for name in ("etcd_put", "etcd_txn")]
        for name, title in WAYS:
            r = writes[f"{name} {count}"]
            ratios = " | ".join(f"{r['per_s'] / rival:.2f}" for rival in rivals)
            rows.append(
                f"| {count} | {title} | {r['per_s']:.0f} ({r['least_per_s']:.0f} to {r['most_per_s']:.0f}) "
                f"| {r['p50_ms']:.1f} | {r['p99_ms']:.1f} | {r['cpu_us']:.0f} | {r['client_us']:.0f} "
                f"| {r['rss_mb']:.0f} | {ratios} |"
            )
    return text + "\n".join([*rows, "", *_elections(elections), "", *_store(store)]) + "\n"


def _elections(elections: dict[str, Any]) -> list[str]:
    lines = [
        "Time without a leader: from kill -9 of its process, or from asking it to stop, to the next write that another member acknowledges.",
        "A killed process resets its connections, which our followers notice at once; a host that goes silent is not measured here.",
        "With fewer than 100 measurements, the p99 is the longest of them.",
        "",
        "| what | times | p50, s | p99, s | longest, s |",
        "|---|---|---|---|---|",
    ]
    for key, title in (("kill", "kill -9"), ("stop", "planned stop"), ("etcd_kill", "etcd, kill -9")):
        r = elections[key]
        lines.append(f"| {title} | {r['count']} | {r['p50']:.3f} | {r['p99']:.3f} | {r['max']:.3f} |")
    return lines


def _store(store: dict[str, Any]) -> list[str]:
    restarts = store["restarts"]
    served, recovered = (statistics.median(r[name] for r in restarts) for name in ("served", "recovered"))
    leader_s, follower_s = store["snapshot_s"]
    return [
        "The real store with 100,000 tasks, 1,000 nodes and 100 services; a follower is killed and restarted. Recovery reads the",
        "snapshot and the log; the follower serves once a read barrier has passed, for which it applies the 9,000 entries behind the snapshot.",
        "",
        "| what | figure |",
        "|---|---|",
        f"| snapshot, leader and follower, s | {leader_s:.2f}, {follower_s:.2f} |",
        f"| process start to serving, s, median of {len(restarts)} (longest) | {served:.2f} ({max(r['served'] for r in restarts):.2f}) |",
        f"| of it, to the end of recovery, s | {recovered:.2f} |",
        f"| memory for 10,000 tasks, growth of RSS, MB | {store['rss_per_10000_mb']:.1f} |",
        f"| RSS of the leader, of the follower after its restart, MB | {store['rss_leader_mb']:.0f}, {store['rss_after_restart_mb']:.0f} |",
        f"| snapshot and log on disk, MB | {store['disk_mb']:.0f} |",
    ]
