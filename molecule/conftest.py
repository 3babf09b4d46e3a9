"""The hosts that molecule made, and the swarm that site.yml made of them. Tests run in the order of their names."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from tests.hosts import engine
from tests.hosts.hosts import ROOT, TEST_PREFIX, TEST_SUBNET, HostSet
from tests.hosts.swarm import Swarm


@pytest.fixture(scope="session")
def hosts() -> HostSet:
    return HostSet(
        engine.start(), TEST_PREFIX, ipaddress.IPv4Network(TEST_SUBNET), ROOT / ".cache" / TEST_PREFIX
    )


@pytest.fixture(scope="session")
def swarm(hosts: HostSet) -> Swarm:
    return Swarm(hosts)


@pytest.fixture(scope="session")
def inventory(hosts: HostSet) -> Path:
    return hosts.directory / "inventory"
