"""Simulate with fresh seeds until stopped: raft clusters and whole clusters in turn, totals every minute.

    python -m tests.sim.soak                      # until Ctrl-C
    python -m tests.sim.soak --minutes 60         # for an hour
    python -m tests.sim.soak --raft 4711          # replay one story and, if it fails, make it small
    python -m tests.sim.soak --cluster 4711

A failure is told with the line that replays it, made small, and told again as an entry for ``once_failed.toml``. The exit code is 1 if there was one.
"""

from __future__ import annotations

import argparse
import functools
import logging
import random
import sys
import time
import traceback
from collections.abc import Iterator

import msgspec

from tests.lib import raft_chaos, sim_chaos
from tests.lib.raft_chaos import Failure, Totals
from tests.lib.transitions import SEEN
from tests.sim.minimise import minimise_raft, shrink


class Soak:
    def __init__(self) -> None:
        self.raft = Totals()
        self.raft_stories = self.cluster_stories = self.acknowledged = self.deeds = self.failures = 0
        self._began = self._told = time.monotonic()

    def run(self, seeds: Iterator[int], minutes: float | None) -> None:
        while minutes is None or time.monotonic() < self._began + minutes * 60:
            seed = next(seeds)
            self.raft_story(seed)
            self.cluster_story(seed)
            if time.monotonic() >= self._told + 60:
                self._told += 60
                self.tell()

    def tell(self) -> None:
        print(
            f"{(time.monotonic() - self._began) / 60:.0f} min, {self.failures} failures;"
            f" {self.raft_stories} raft stories: {self.raft};"
            f" {self.cluster_stories} whole clusters: {self.acknowledged} acknowledged changes, {self.deeds} deeds\n{SEEN}",
            flush=True,
        )

    def raft_story(self, seed: int) -> None:
        self.raft_stories += 1
        plan = raft_chaos.plan_of(seed)
        outcome = raft_chaos.attempt(seed, plan)
        if not isinstance(outcome, Failure):
            self.raft += outcome.totals
            return
        self._failed(outcome.error)
        small = minimise_raft(seed, outcome, plan)
        again = raft_chaos.attempt(seed, small)
        if isinstance(again, Failure):
            print("-- the same, made small:")
            traceback.print_exception(again.error, limit=-1)
        print(f"-- for once_failed.toml:\n{entry('raft', seed, outcome.error, small)}", flush=True)

    def cluster_story(self, seed: int) -> None:
        self.cluster_stories += 1
        try:
            result = sim_chaos.chaos(seed)
        except Exception as error:  # noqa: BLE001
            self._failed(error)
            print(f'-- replay: python -c "from tests.lib.sim_chaos import chaos; print(chaos({seed}))"')
            fails = functools.partial(cluster_fails, seed, type(error))
            small = shrink(sim_chaos.SimPlan(), smaller_cluster, fails)
            print(f"-- the same, made small: sim_chaos.chaos({seed}, {small})")
            print(f"-- for once_failed.toml:\n{entry('cluster', seed, error, small)}", flush=True)
        else:
            self.acknowledged += result.acknowledged
            self.deeds += result.deeds

    def _failed(self, error: BaseException) -> None:
        self.failures += 1
        print("== a story failed")
        traceback.print_exception(error, limit=-3)
        sys.stderr.flush()


def cluster_fails(seed: int, kind: type[Exception], plan: sim_chaos.SimPlan) -> bool:
    try:
        sim_chaos.chaos(seed, plan)
    except Exception as error:  # noqa: BLE001
        return type(error) is kind
    return False


def smaller_cluster(plan: sim_chaos.SimPlan) -> Iterator[sim_chaos.SimPlan]:
    change = msgspec.structs.replace
    for seconds in (plan.seconds / 2, plan.seconds - 2):
        if seconds >= 2:
            yield change(plan, seconds=seconds)
    if plan.managers > 1:
        yield change(plan, managers=plan.managers - 2 if plan.managers > 2 else 1)
    if plan.workers > 0:
        yield change(plan, workers=plan.workers - 1)
    if plan.people > 1:
        yield change(plan, people=plan.people - 1)
    for switch in ("roles", "leaving"):
        if getattr(plan, switch):
            yield change(plan, **{switch: False})


def entry(kind: str, seed: int, error: BaseException, plan: msgspec.Struct) -> str:
    first = (str(error) or type(error).__name__).splitlines()[0].replace('"', "'")
    fields = {name: value for name, value in msgspec.structs.asdict(plan).items() if value is not None}
    plain = msgspec.structs.asdict(type(plan)())
    changed = ", ".join(f"{name} = {toml(value)}" for name, value in fields.items() if value != plain[name])
    lines = [f"[[{kind}]]", f"seed = {seed}", f'found = "{first}"']
    return "\n".join(lines + ([f"plan = {{ {changed} }}"] if changed else []))


def toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def fresh_seeds(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--first", type=int, help="the first seed; by default nobody has seen it before")
    parser.add_argument("--raft", type=int, metavar="SEED", help="this raft story only")
    parser.add_argument("--cluster", type=int, metavar="SEED", help="this story of a whole cluster only")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)  # members that end are part of the story
    soak = Soak()
    try:
        if args.raft is not None:
            soak.raft_story(args.raft)
        if args.cluster is not None:
            soak.cluster_story(args.cluster)
        if args.raft is None and args.cluster is None:
            first = args.first if args.first is not None else random.SystemRandom().randrange(1 << 32)
            print(f"seeds from {first}", flush=True)
            soak.run(fresh_seeds(first), args.minutes)
    except KeyboardInterrupt:
        print()
    soak.tell()
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
