"""Run one step of ``./run``: show or keep its output, never be silent for long, print its time, pass on its exit code.

usage: step.py [--log FILE] LABEL -- COMMAND...    (with --log only a failing step's last lines are shown)
"""

from __future__ import annotations

import argparse
import collections
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

SILENCE_S = 4.0  # a line at least every five seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path)
    parser.add_argument("label")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    start = time.monotonic()
    print(f"== {args.label}", flush=True)
    environment = dict(os.environ)
    if sys.stdout.isatty():
        environment.setdefault("ANSIBLE_FORCE_COLOR", "1")
    process = subprocess.Popen(
        args.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def pump() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=pump, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    tail: collections.deque[str] = collections.deque(maxlen=60)
    log = None
    if args.log is not None:
        args.log.parent.mkdir(parents=True, exist_ok=True)
        log = args.log.open("w")
    try:
        spoken = time.monotonic()
        while True:
            try:
                line = lines.get(timeout=max(0.1, spoken + SILENCE_S - time.monotonic()))
            except queue.Empty:
                line = ""
            if line is None:
                break
            if line and log is not None:
                log.write(line)
                tail.append(line)
            elif line:
                print(line, end="", flush=True)
                spoken = time.monotonic()
            if time.monotonic() - spoken >= SILENCE_S:
                print(f"   ... {args.label}: {time.monotonic() - start:.0f} s", flush=True)
                spoken = time.monotonic()
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        code = process.wait() or 130
    finally:
        if log is not None:
            log.close()
    if code != 0:
        sys.stdout.writelines(tail)
    took = time.monotonic() - start
    print(
        f"== {args.label}: {'done' if code == 0 else f'FAILED with exit code {code}'} in {took:.1f} s",
        flush=True,
    )
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
