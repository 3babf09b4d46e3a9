"""``./run bench raft``: our Raft beside etcd's, three processes each; writes a section of docs/benchmarks.md.

Prints figures and writes them down, judges nothing. ``--only`` takes a part anew and keeps the figures of the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from swarm_agent.store import Group, StoreEntry, encode_entry
from tests.bench.raft_process import percentile, proposers, summary
from tests.bench.raft_report import write_section
from tests.bench.raft_subjects import NUMBERS, Batcher, Cluster, Etcd, Ours, cpu_s, own_cpu_s, rss_mb, running
from tests.bench.store import World, set_status
from tests.cluster.network.lab import ROOT

RAW = ROOT / ".cache" / "bench-raft.json"
LEVELS = (1, 16, 64, 256)
SECONDS = 4.0
TASKS = 100_000
REPLAYED = 9_000  # a snapshot comes every 10,000 entries: nearly the most there can be

Run = Callable[[int], Awaitable[dict[str, float]]]


def say(text: str) -> None:
    print(text, flush=True)


# --- writes ----------------------------------------------------------------------------------------------------------
async def _clients(count: int, write: Callable[[bytes, bytes], Any]) -> dict[str, float]:
    before = own_cpu_s()
    latencies = await proposers(count, SECONDS, write)
    client_us = (own_cpu_s() - before) / max(1, len(latencies)) * 1e6
    return {**summary(latencies, SECONDS), "client_us": client_us}


def _ways(ours: Ours, etcd: Etcd) -> list[tuple[str, Cluster, Run]]:
    async def inside(count: int) -> dict[str, float]:
        answer: dict[str, float] = await ours.ask(await ours.leader(), "inside", count, SECONDS)
        return {**answer, "client_us": 0.0}

    async def streamed(count: int) -> dict[str, float]:
        stream = ours.stream(await ours.leader())
        try:
            return await _clients(count, Batcher(stream.send).write)
        finally:
            await stream.close()

    async def ours_unary(count: int) -> dict[str, float]:
        return await _clients(count, await ours.unary(await ours.leader()))

    async def etcd_unary(count: int) -> dict[str, float]:
        return await _clients(count, await etcd.unary(await etcd.leader()))

    async def etcd_transactions(count: int) -> dict[str, float]:
        leader = await etcd.leader()
        return await _clients(count, Batcher(lambda writes: etcd.transaction(leader, writes)).write)

    return [
        ("inside", ours, inside),
        ("stream", ours, streamed),
        ("unary", ours, ours_unary),
        ("etcd_put", etcd, etcd_unary),
        ("etcd_txn", etcd, etcd_transactions),
    ]


async def bench_writes(folder: Path, runs: int) -> dict[str, Any]:
    taken: dict[str, list[dict[str, float]]] = {}
    async with running(Ours(folder / "ours")) as ours, running(Etcd(folder / "etcd")) as etcd:
        ways = _ways(ours, etcd)
        for run in range(runs):
            for count in LEVELS:
                for name, cluster, work in ways:
                    leader = await cluster.leader()
                    before = cpu_s(cluster.pids)
                    result = await work(count)
                    result["cpu_us"] = (cpu_s(cluster.pids) - before) / max(1, result["writes"]) * 1e6
                    result["rss_mb"] = rss_mb(cluster.pids[leader])
                    taken.setdefault(f"{name} {count}", []).append(result)
                    say(
                        f"  run {run + 1}, {name:9} {count:4}: {result['per_s']:8.0f}/s, "
                        f"p50 {result['p50_ms']:7.2f} ms, p99 {result['p99_ms']:7.2f} ms, "
                        f"{result['cpu_us']:6.0f} us, client {result['client_us']:5.0f} us, RSS {result['rss_mb']:.0f} MB"
                    )
    return {key: _medians(results) for key, results in taken.items()}


def _medians(results: list[dict[str, float]]) -> dict[str, float]:
    rates = [r["per_s"] for r in results]
    return {
        **{name: statistics.median(r[name] for r in results) for name in results[0]},
        "least_per_s": min(rates),
        "most_per_s": max(rates),
        "runs": len(results),
    }


# --- elections -------------------------------------------------------------------------------------------------------
def _spread(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    return {
        "p50": percentile(values, 0.5),
        "p99": percentile(values, 0.99),
        "max": values[-1],
        "count": len(values),
    }


async def _first_write(cluster: Cluster, others: list[int]) -> None:
    async def at(number: int) -> None:
        while not await cluster.written(number):
            await asyncio.sleep(0.002)

    tasks = [asyncio.ensure_future(at(number)) for number in others]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=60)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _without_leader(cluster: Any, *, planned: bool) -> float:
    leader = await cluster.leader()
    others = [n for n in NUMBERS if n != leader]
    for number in others:  # their channels are open, and they follow
        await cluster.written(number)
    began = time.perf_counter()
    if planned:
        await cluster.leave(leader)
        await _first_write(cluster, others)
    else:
        killed = asyncio.ensure_future(cluster.kill(leader))
        await _first_write(cluster, others)
    took = time.perf_counter() - began
    await (cluster.left(leader) if planned else killed)
    await cluster.revive(leader)
    await asyncio.sleep(0.3)  # not in step with the heartbeats
    return took


async def bench_elections(folder: Path, kills: int, stops: int, etcd_kills: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    async with running(Ours(folder / "elections")) as ours:
        out["kill"] = _spread([await _without_leader(ours, planned=False) for _ in range(kills)])
        say(f"  kill -9 of the leader: {out['kill']}")
        out["stop"] = _spread([await _without_leader(ours, planned=True) for _ in range(stops)])
        say(f"  planned stop of the leader: {out['stop']}")
    async with running(Etcd(folder / "etcd-elections")) as etcd:
        out["etcd_kill"] = _spread([await _without_leader(etcd, planned=False) for _ in range(etcd_kills)])
        say(f"  etcd, kill -9 of the leader: {out['etcd_kill']}")
    return out


# --- the real store --------------------------------------------------------------------------------------------------
class Entries(World):
    """Collects its entries: a member applies them."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.collected: list[bytes] = []

    def apply(self, data: bytes) -> None:
        self.collected.append(data)


async def bench_store(folder: Path, restarts: int) -> dict[str, Any]:
    world = Entries(1000, 100, TASKS // 100)
    world.found()
    async with _with_store(folder) as (ours, leader, follower):
        out: dict[str, Any] = {}
        before = rss_mb(ours.pids[follower])
        for data in [*world.collected, *world.create_entries()]:
            index, accepted = await ours.propose(leader, data)
            assert accepted
            world.store.apply(index, 1, data)
        await ours.ask(follower, "barrier")
        out["rss_per_10000_mb"] = (rss_mb(ours.pids[follower]) - before) / TASKS * 10_000
        out["snapshot_s"] = [await ours.ask(n, "snapshot") for n in (leader, follower)]
        tasks = [t.id for t in world.store.tasks.all()][:REPLAYED]
        groups: list[Group] = [set_status(world, world.store.tasks.get(id_)) for id_ in tasks]
        for start in range(0, len(groups), 250):
            entries = [encode_entry(StoreEntry(world.now, (group,))) for group in groups[start : start + 250]]
            answers = await asyncio.gather(*(ours.propose(leader, data) for data in entries))
            assert all(accepted for _, accepted in answers)
        out["disk_mb"] = _size_mb(Path(ours.disk(follower)))
        out["restarts"] = []
        for _ in range(restarts):
            await ours.kill(follower)
            out["restarts"].append(await ours.restart(follower))
            say(f"  restart with {TASKS} tasks: {out['restarts'][-1]}")
        out["rss_after_restart_mb"] = rss_mb(ours.pids[follower])
        out["rss_leader_mb"] = rss_mb(ours.pids[leader])
    say(f"  store: {out}")
    return out


def _size_mb(directory: Path) -> float:
    return sum(file.stat().st_size for file in directory.iterdir()) / 2**20


@asynccontextmanager
async def _with_store(folder: Path) -> AsyncIterator[tuple[Ours, int, int]]:
    async with running(Ours(folder / "store", store=True)) as ours:
        leader = await ours.leader()
        yield ours, leader, next(n for n in NUMBERS if n != leader)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="./run bench raft", description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=3, help="times each level is taken (default 3)")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--only", choices=("writes", "elections", "store"))
    chosen = parser.parse_args(arguments)
    results: dict[str, Any] = json.loads(RAW.read_text()) if chosen.only and RAW.exists() else {}
    parts: dict[str, Callable[[Path], Any]] = {
        "writes": lambda folder: bench_writes(folder, chosen.runs),
        "elections": lambda folder: bench_elections(folder, chosen.kills, chosen.stops, 20),
        "store": lambda folder: bench_store(folder, chosen.runs),
    }
    for part, work in parts.items():
        if chosen.only in (None, part):
            say(f"measuring {part}, load before it {os.getloadavg()[0]:.1f}")
            with tempfile.TemporaryDirectory(prefix="raft-bench-") as folder:
                results[part] = uvloop.run(work(Path(folder)))
            RAW.parent.mkdir(exist_ok=True)
            RAW.write_text(json.dumps(results, indent=2))
    if all(part in results for part in parts):
        page = ROOT / "docs" / "benchmarks.md"
        write_section(page, results)
        say(f"wrote {page}")
