from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.cluster.network.lab import Cluster, lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cluster/network" in str(item.path):
            item.add_marker("host")
            item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def able() -> None:
    missing = [name for name in ("nft", "conntrack", "iptables", "unshare", "gcc") if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs root and {', '.join(missing) or 'nothing else'}")


@pytest.fixture(scope="session")
def engine_needed() -> None:
    if not shutil.which("dockerd"):
        pytest.skip("needs dockerd (package docker.io)")


@pytest.fixture(scope="module")
def three(engine_needed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with lab(tmp_path_factory.mktemp("swnet"), (1, 2, 3)) as cluster:
        yield cluster


@pytest.fixture
def two(engine_needed: None, tmp_path: Path) -> Iterator[Cluster]:
    with lab(tmp_path, (1, 2)) as cluster:
        yield cluster
