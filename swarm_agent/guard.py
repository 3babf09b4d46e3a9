"""Kills containers whose lease has ended, when the agent that should have done it is dead or stuck.

Runs as a thread of ``swarm-agent-net``, which does not share the agent's fate. Owns nothing but the look at the folder of leases: the
agent writes one file for each container that runs under a lease, here it is read. Works without the engine, as containers outlive
that too (live restore): processes are found by their control group. Refuses: policy, clocks that can be set, every dependency
beyond the standard library.

    <folder>/<container id>.json   {"container": id, "engine": its socket, "until": seconds of CLOCK_BOOTTIME}
    <folder>/guard                 when this last looked, seconds of CLOCK_BOOTTIME
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

FOLDER = Path("/run/swarm-agent/leases")  # memory: what was written before a boot means nothing after it
BEAT = "guard"
TICK_S = 0.25
PATIENCE_S = 1.0  # the agent kills at the end of a lease, and can say why
ENGINE_S = 1.0
OFTEN = 240  # looks that kill it again, as its start may have been on the way; after them
SELDOM = 40  # only one in so many does


class LeaseRecord(NamedTuple):
    container: str
    engine: str  # path of the engine's socket
    until: float


def boottime() -> float:
    """Seconds since the host's start, those it slept among them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Guard:
    """``look`` once, or ``start`` a thread that looks until ``stop``."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)
        self._kills: dict[str, int] = {}  # by container, looks since its lease ended

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(TICK_S):
            try:
                self.look()
            except Exception:  # the next look may do better
                log.exception("the look at the leases failed")

    def look(self) -> None:
        """Kill what has to be, and leave word that somebody looked."""
        now = boottime()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for lease in leases(self.folder):
            if now - lease.until < PATIENCE_S:
                self._kills.pop(lease.container, None)
                continue
            looks = self._kills.get(lease.container, 0)
            self._kills[lease.container] = looks + 1
            if not looks:
                log.warning(f"the lease of container {lease.container[:12]} has ended: killing it")
            if looks < OFTEN or looks % SELDOM == 0:
                kill(lease)
        put(self.folder / BEAT, str(now))


def leases(folder: Path) -> list[LeaseRecord]:
    """All of a folder; what is no lease is passed over."""
    found = []
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            raw = json.loads(path.read_text())
            found.append(LeaseRecord(str(raw["container"]), str(raw["engine"]), float(raw["until"])))
    return found


def put(path: Path, text: str) -> None:
    """Nobody ever reads half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def kill(lease: LeaseRecord) -> None:
    """Every process of the container, by its control group and by its engine: either alone will do."""
    for pid in processes(lease.container):
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(pid)
            try:
                if _belongs(pid, lease.container):  # the number may be another's by now
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as engine,
    ):
        engine.settimeout(ENGINE_S)
        engine.connect(lease.engine)
        engine.sendall(
            f"POST /containers/{lease.container}/kill HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        engine.recv(1)


def processes(container: str) -> list[int]:
    """Ids of the processes in the container's control group, whatever manages those."""
    names = (path.name for path in Path("/proc").iterdir())
    return [int(name) for name in names if name.isdigit() and _belongs(int(name), container)]


def _belongs(pid: int, container: str) -> bool:
    try:
        return container in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False
