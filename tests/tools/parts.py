"""The parts of ``./run check|test|test-all``: each runs to its end, each one's exit code counts, each shows its time."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTEST = (sys.executable, "-m", "pytest", "--quiet", "-ra")


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    minutes: int  # its share of the time; over it the part is made faster or moved to test-all
    command: tuple[str, ...]
    needs: str  # a path that has to exist
    environment: tuple[tuple[str, str], ...] = ()


UNIT = Part(
    "unit",
    3,
    (
        *PYTEST,
        "--durations=10",
        "--durations-min=1.0",
        "-m",
        "not engine and not host",
        "--ignore=tests/sim",
        "--ignore=tests/cluster",
        "--ignore=tests/bench",
        "--ignore=tests/load",
        "tests",
    ),
    "tests",
)
SIM_SHORT = Part(
    "sim", 2, (*PYTEST, "tests/sim"), "tests/sim", (("SWARM_SIM_SEEDS", "50"), ("SWARM_SIM_QUICK", "1"))
)
SIM = Part("sim", 8, (*PYTEST, "tests/sim"), "tests/sim", (("SWARM_SIM_SEEDS", "40"),))
SIM_LONG = Part("sim", 120, (*PYTEST, "tests/sim"), "tests/sim", (("SWARM_SIM_SEEDS", "1000"),))
SLOWEST = ("--durations=25", "--durations-min=5.0")
CLUSTER = Part("real processes and engines", 12, (*PYTEST, *SLOWEST, "tests/cluster"), "tests/cluster")
CLUSTER_LONG = Part(
    "real processes and engines",
    25,
    (*PYTEST, "tests/cluster"),
    "tests/cluster",
    (("SWARM_KILL_ALL", "100"), ("SWARM_REAL_SEEDS", "20")),
)
LOAD = Part(
    "saturated for half an hour",
    35,
    (*PYTEST, "-s", "-o", "faulthandler_timeout=0", "tests/load"),  # one test takes all the time
    "tests/load",
    (("SWARM_SATURATED_MINUTES", "30"),),
)
PLAIN = (("MOLECULE_COMMAND_BORDERS", "false"), ("NO_COLOR", "1"))
MOLECULE = Part(
    "molecule default", 10, ("molecule", "test", "--scenario-name", "default"), "molecule/default", PLAIN
)
BARE = Part("molecule bare", 9, ("molecule", "test", "--scenario-name", "bare"), "molecule/bare", PLAIN)
BARE_LONG = dataclasses.replace(BARE, minutes=60, environment=(*PLAIN, ("SWARM_CUT_ALL", "1")))
RESET = Part("molecule reset", 4, ("molecule", "test", "--scenario-name", "reset"), "molecule/reset", PLAIN)
EDGES = Part("molecule edges", 8, ("molecule", "test", "--scenario-name", "edges"), "molecule/edges", PLAIN)
SANITY = Part("ansible-test sanity", 3, (sys.executable, "tests/tools/sanity.py"), "tests/tools/sanity.py")

WORDS = {
    "check": (UNIT, SIM_SHORT),
    "test": (UNIT, SIM, CLUSTER, MOLECULE, BARE, RESET, SANITY),
    "test-all": (UNIT, SIM_LONG, CLUSTER_LONG, LOAD, MOLECULE, BARE_LONG, RESET, EDGES, SANITY),
}
_COUNTS = re.compile(r"(\d+) (passed|failed|errors?|skipped)")


def main() -> int:
    word = sys.argv[1]
    rows, failed, counts = [], 0, {"passed": 0, "failed": 0, "skipped": 0}
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    for part in WORDS[word]:
        if not (ROOT / part.needs).exists():
            rows.append((part.name, "not run: no " + part.needs, 0.0, part.minutes))
            counts["skipped"] += 1
            continue
        print(f"-- {part.name} (share: {part.minutes} min)", flush=True)
        start = time.monotonic()
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env={**environment, **dict(part.environment)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line if line.strip() else last
        code = process.wait()
        took = time.monotonic() - start
        said = {
            kind.rstrip("s") if kind.startswith("error") else kind: int(n)
            for n, kind in _COUNTS.findall(last)
        }
        if "pytest" in part.command:
            counts["passed"] += said.get("passed", 0)
            counts["failed"] += said.get("failed", 0) + said.get("error", 0)
            counts["skipped"] += said.get("skipped", 0)
        elif code == 0:
            counts["passed"] += 1
        if code != 0:
            failed += 1
            counts["failed"] += 0 if "pytest" in part.command and counts["failed"] else 1
        rows.append((part.name, "ok" if code == 0 else f"FAILED with exit code {code}", took, part.minutes))
    print()
    for name, result, took, share in rows:
        late = f", over its share of {share} min" if took > share * 60 else ""
        print(f"{name:30} {result:30} {took:7.1f} s{late}")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
