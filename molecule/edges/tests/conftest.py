"""A service with tasks on every host, which nothing here may disturb."""

from __future__ import annotations

import pytest

from tests.hosts.hosts import REGISTRY_NAME
from tests.hosts.registry import OPEN_PORT
from tests.hosts.shell import wait_for
from tests.hosts.swarm import Swarm


@pytest.fixture(scope="session", autouse=True)
def echo(swarm: Swarm) -> None:
    swarm.docker(
        1, "service", "create", "--detach", "--name", "echo", "--replicas", "10", "--publish", "8080:8080",
        f"{REGISTRY_NAME}:{OPEN_PORT}/echo:latest",
    )  # fmt: skip
    wait_for("ten tasks", lambda: sum(map(len, swarm.running(1, "echo").values())) == 10, timeout=60)
