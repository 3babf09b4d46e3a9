"""Running commands, saying what is done, waiting for conditions."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence


class Failure(Exception):
    """Something that a person has to act on; the text says what and how."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, check: bool = True, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; a failure carries its command and its last words."""
    try:
        done = subprocess.run(
            list(argv),
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise Failure(f"{argv[0]} is not installed on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise Failure(f"`{' '.join(argv)}` did not end within {timeout:.0f} s") from error
    if check and done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "it said nothing")[-2000:]
        raise Failure(f"`{' '.join(argv)}` ended with {done.returncode}: {words}")
    return done


def wait_for(what: str, condition: Callable[[], object], *, timeout: float, every: float = 0.1) -> None:
    """Ask ``condition`` until it is true; say now and then what is awaited; fail naming it after ``timeout``."""
    start = time.monotonic()
    spoken = start
    while not condition():
        now = time.monotonic()
        if now - start > timeout:
            raise Failure(f"waited {timeout:.0f} s in vain for {what}")
        if now - spoken >= 4:
            say(f"  ... waiting for {what} ({now - start:.0f} s)")
            spoken = now
        time.sleep(every)
