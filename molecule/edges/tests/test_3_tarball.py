"""The built tarball, installed somewhere else, runs the playbook: agents are replaced one by one, and services go on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.hosts import ROOT
from tests.hosts.shell import run
from tests.hosts.swarm import Swarm, play

BUILD = ROOT / "collections/ansible_collections/swarm/cluster/tools/build.py"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dist, place = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("collections")
    run([sys.executable, str(BUILD), str(dist)])
    (tarball,) = dist.glob("swarm-cluster-*.tar.gz")
    run(
        [
            "ansible-galaxy",
            "collection",
            "install",
            str(tarball),
            "--offline",
            "--force",
            "--collections-path",
            str(place),
        ]
    )
    return place


def test_it_runs_without_a_checkout(swarm: Swarm, inventory: Path, installed: Path, tmp_path: Path) -> None:
    before = {task for tasks in swarm.running(1, "echo").values() for task in tasks}
    words: dict[str, Any] = {"playbook": "swarm.cluster.site", "cwd": tmp_path, "collections": installed}
    first = play(inventory, **words)
    assert first.code == 0, first.said
    assert {task for task, _host in first.changed} == {
        "Install the program",
        "Restart what runs with an older program, unit or configuration",
    }
    after = {task for tasks in swarm.running(1, "echo").values() for task in tasks}
    assert after == before, "new agents disturbed running tasks"
    second = play(inventory, **words)
    assert (second.code, second.changed) == (0, set()), second.said
