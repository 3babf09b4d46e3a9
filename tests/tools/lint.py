"""Every linter, side by side, each with its time; a linter that fails shows what it said.

usage: lint.py [NAME..]     (all of them if none is named; .pre-commit-config.yaml names one at a time)
"""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = "collections/ansible_collections/swarm/cluster"


def _shell_scripts() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    found = []
    for name in listed:
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                first = file.readline(64)
            if name.endswith(".sh") or (first.startswith(b"#!") and first.rstrip().endswith(b"sh")):
                found.append(name)
    return found


def commands() -> dict[str, list[str]]:
    return {
        # The slowest first: the others run beside it.
        "ansible-lint": ["ansible-lint", "--offline", "--profile=production", "--strict", "-q"],
        "mypy": ["mypy"],
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "import contracts": ["lint-imports", "--no-cache"],
        "yamllint": ["yamllint", "--strict", "."],
        "shellcheck": ["shellcheck", *_shell_scripts()],
    }


def _run(name: str, argv: list[str]) -> tuple[str, int, str, float]:
    start = time.monotonic()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # also where no environment is activated
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        argv,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return name, done.returncode, done.stdout.decode(errors="replace"), time.monotonic() - start


def main(names: list[str]) -> int:
    known = commands()
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no linter is called {', '.join(unknown)}: there are {', '.join(known)}", file=sys.stderr)
        return 64
    chosen = {name: argv for name, argv in known.items() if not names or name in names}
    failed = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(_run, name, argv) for name, argv in chosen.items()]
        for future in concurrent.futures.as_completed(waiting):
            name, code, said, took = future.result()
            if code != 0:
                failed.append(name)
                print(said, end="")
            print(f"{name}: {'ok' if code == 0 else f'FAILED ({code})'} in {took:.1f} s", flush=True)
    if failed:
        print(f"lint failed: {', '.join(sorted(failed))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
