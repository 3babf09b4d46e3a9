"""What tests ask of a swarm on these hosts: through SSH, as an operator does, and through published ports, as a client does."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.hosts.hosts import ROOT, HostSet
from tests.hosts.shell import Failure, run, wait_for

SOCKET = "/run/swarm-agent/docker.sock"
_TASK = re.compile(r"^(?:TASK|RUNNING HANDLER) \[(?:[a-z_.]+ : )?(.*?)\] \**$")
_CHANGED = re.compile(r"^changed: \[([^\] ]+)")


@dataclass(frozen=True)
class Play:
    """How a playbook ended: its exit code, what it said, and which task changed (or would change) which host."""

    code: int
    said: str
    changed: AbstractSet[tuple[str, str]] = field(default_factory=frozenset)


def play(
    inventory: Path,
    *words: str,
    playbook: str = "site.yml",
    cwd: Path = ROOT,
    collections: Path | None = None,
    timeout: float = 600,
) -> Play:
    """Run a playbook of this project, or, with ``collections``, one of a collection that is installed there."""
    done = subprocess.run(
        ["ansible-playbook", playbook, "--inventory", str(inventory), *words],
        cwd=cwd,
        env=_environment(collections),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Play(done.returncode, done.stdout, frozenset(_changes(done.stdout.splitlines())))


def cut(inventory: Path, *words: str, at: str) -> Play:
    """Run site.yml and interrupt it, as with Ctrl-C, when the task ``at`` begins.

    Now and then Ansible waits for ever for a worker that the signal has ended; a person would press Ctrl-C again.
    """

    def interrupt(group: int) -> None:
        os.killpg(group, signal.SIGINT)

    return play_until(inventory, *words, at=at, then=interrupt, patience=15)


def play_with(inventory: Path, *words: str, at: str, meanwhile: Callable[[], object]) -> Play:
    """Run site.yml; when the task ``at`` begins the run stands still until ``meanwhile`` is done."""

    def then(group: int) -> None:
        os.killpg(group, signal.SIGSTOP)
        try:
            meanwhile()
        finally:
            os.killpg(group, signal.SIGCONT)

    return play_until(inventory, *words, at=at, then=then)


def play_until(
    inventory: Path, *words: str, at: str, then: Callable[[int], object], patience: float = 300
) -> Play:
    """Run site.yml and call ``then`` with its process group when the task ``at`` begins; it is killed ``patience`` seconds later."""
    process = subprocess.Popen(
        ["ansible-playbook", "site.yml", "--inventory", str(inventory), *words],
        cwd=ROOT,
        # A task is named when it begins, not when its first result shows that it is not skipped.
        env={**_environment(None), "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    # A run that says nothing more is ended, not waited for.
    alarm = threading.Timer(300, os.killpg, (process.pid, signal.SIGKILL))
    alarm.start()
    said = []
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            said.append(line)
            if (found := _TASK.match(line.rstrip())) and found[1] == at:
                then(process.pid)
                alarm.cancel()
                alarm = threading.Timer(patience, os.killpg, (process.pid, signal.SIGKILL))
                alarm.start()
                break
        said += process.stdout.readlines()
    code = process.wait()
    alarm.cancel()
    return Play(code, "".join(said), frozenset(_changes(line.rstrip() for line in said)))


def tasks(said: str) -> list[str]:
    """The names of the tasks that a run began, each once, in their order."""
    return list(dict.fromkeys(found[1] for line in said.splitlines() if (found := _TASK.match(line))))


def _environment(collections: Path | None) -> dict[str, str]:
    configured = (
        {"ANSIBLE_COLLECTIONS_PATH": str(collections)}
        if collections
        else {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    return {**kept, **configured, "ANSIBLE_NOCOLOR": "1"}


def _changes(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    task = ""
    for line in lines:
        if found := _TASK.match(line):
            task = found[1]
        elif found := _CHANGED.match(line):
            yield task, found[1]


@dataclass(frozen=True)
class Swarm:
    """The swarm on a set of hosts. Each question goes to one host, by number."""

    hosts: HostSet

    def docker(self, via: int, *words: str, check: bool = True, timeout: float = 120) -> str:
        """The docker command on a host, with the default that the roles gave it."""
        line = " ".join(f"'{word}'" for word in words)
        return self.hosts.ssh(via, f"docker {line}", check=check, timeout=timeout).strip()

    def get(self, via: int, path: str) -> Any:
        said = self.hosts.ssh(
            via, f"curl --silent --fail --max-time 10 --unix-socket {SOCKET} 'http://swarm{path}'"
        )
        return json.loads(said)

    def nodes(self, via: int) -> dict[str, dict[str, Any]]:
        return {node["Description"]["Hostname"]: node for node in self.get(via, "/nodes")}

    def leader(self, via: int) -> int:
        """The number of the host that leads."""
        found = [name for name, n in self.nodes(via).items() if n.get("ManagerStatus", {}).get("Leader")]
        if len(found) != 1:
            raise Failure(f"there should be one leader, not {found or 'none'}")
        return int(found[0].rpartition("-")[2])

    def running(self, via: int, service: str) -> dict[str, list[str]]:
        """Names of the hosts on which tasks run, each with the tasks' ids."""
        names = {node["ID"]: name for name, node in self.nodes(via).items()}
        wanted = json.dumps({"service": [service], "desired-state": ["running"]})
        found: dict[str, list[str]] = {}
        for task in self.get(via, f"/tasks?filters={quote(wanted)}"):
            if task["Status"]["State"] == "running":
                found.setdefault(names[task["NodeID"]], []).append(task["ID"])
        return found

    def answer(self, number: int, port: int) -> str | None:
        """What the service says to this machine at a host's published port."""
        connection = http.client.HTTPConnection(self.hosts.address(number), port, timeout=3)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode().strip()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def own_address(self) -> str:
        """The address from which this machine speaks to the hosts."""
        route = json.loads(run(["ip", "-json", "route", "get", self.hosts.address(1)]).stdout)
        return str(route[0]["prefsrc"])


def seconds_until(what: str, condition: Callable[[], object], *, timeout: float) -> float:
    """Wait for it; how long that took."""
    start = time.monotonic()
    wait_for(what, condition, timeout=timeout)
    return time.monotonic() - start
