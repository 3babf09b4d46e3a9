"""A host that does not come up: its container's state, its console, and the limit of the machine that is used up."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import hosts as module
from tests.hosts import limits
from tests.hosts.engine import Engine
from tests.hosts.hosts import HostSet
from tests.hosts.limits import Limit
from tests.hosts.shell import Failure

CONSOLE = (
    "Failed to create control group inotify object: Too many open files\nFailed to allocate manager object"
)


class FakeEngine(Engine):
    def __init__(self) -> None:
        super().__init__(Path("/nowhere"))

    def docker(self, *argv: str, check: bool = True, timeout: float = 300) -> str:
        if argv[0] == "info":
            return "/"
        if argv[0] != "inspect":
            return ""
        return "exited" if argv[2] == "{{.State.Status}}" else "exited, exit code 255 "

    def console(self, name: str, *, lines: int) -> str:
        return CONSOLE


@pytest.fixture
def failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "_open", lambda *_: False)
    few = Limit("fs.inotify.max_user_instances", 128, 128, "raise it")
    monkeypatch.setattr(limits, "measure", lambda *_: [few, Limit("kernel.pid_max", 5, 100, "raise it")])
    hosts = HostSet(FakeEngine(), "demo", ipaddress.IPv4Network("192.0.2.0/24"), tmp_path)
    with pytest.raises(Failure) as caught:
        hosts.start(1)
    return str(caught.value)


def test_all_of_it_is_said_and_at_once(failure: str) -> None:
    assert failure == (
        "demo-1 does not run any more. Its container: exited, exit code 255. "
        "This machine's limit fs.inotify.max_user_instances is used up: 128 of 128 (raise it). "
        f"The last lines of its console:\n{CONSOLE}"
    )


def test_limits_are_measured_as_they_are(tmp_path: Path) -> None:
    def instances() -> Any:
        return next(m for m in limits.measure(tmp_path) if m.name == "fs.inotify.max_user_instances")

    libc = __import__("ctypes").CDLL(None)
    before = instances().used
    opened = [libc.inotify_init1(0) for _ in range(5)]
    try:
        assert all(number >= 0 for number in opened)
        # Others on this machine come and go.
        assert abs(instances().used - before - 5) <= 3
    finally:
        for number in opened:
            os.close(number)
    assert all(limit.most > 0 for limit in limits.measure(tmp_path))
    assert not Limit("x", 90, 100, "").spent
    assert Limit("x", 99, 100, "").spent
