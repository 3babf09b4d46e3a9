"""A service that cannot become what was asked for is told soon and with each reason once; what was stated can be taken away again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.hosts.hosts import REGISTRY_NAME
from tests.hosts.registry import OPEN_PORT
from tests.hosts.swarm import Play, Swarm, play

REGISTRY = f"{REGISTRY_NAME}:{OPEN_PORT}"


def declare(inventory: Path, tmp_path: Path, **options: Any) -> tuple[Play, float]:
    """The module as a playbook of one task, and how long it took."""
    book = tmp_path / "book.yml"
    task = {"name": "Have it", "swarm.cluster.swarm_service": options}
    book.write_text(json.dumps([{"hosts": "managers[0]", "gather_facts": False, "tasks": [task]}]))
    started = time.monotonic()
    return play(inventory, playbook=str(book)), time.monotonic() - started


def words(done: Play) -> str:
    return " ".join(done.said.split())


def test_an_image_that_is_not_there(swarm: Swarm, inventory: Path, tmp_path: Path) -> None:
    done, took = declare(
        inventory, tmp_path, name="lost", image=f"{REGISTRY}/nothing:v1", replicas=2, resolve_image="never"
    )
    swarm.docker(1, "service", "rm", "lost")
    assert done.code == 2, done.said
    assert "the same would be refused again" in words(done), done.said
    # Once in the line that Ansible shows as the error, once in the result's own "msg".
    assert words(done).count("No such image") <= 2, done.said
    assert took < 60, done.said
    print(f"told after {took:.0f} s")


def test_a_task_that_none_follows(swarm: Swarm, inventory: Path, tmp_path: Path) -> None:
    done, took = declare(
        inventory, tmp_path, name="once", image=f"{REGISTRY}/crash:latest", restart_policy={"condition": "none"}
    )  # fmt: skip
    swarm.docker(1, "service", "rm", "once")
    assert done.code == 2, done.said
    assert "by its restart policy no other follows" in words(done), done.said
    assert took < 30, done.said
    print(f"told after {took:.0f} s")


def test_zero_takes_limits_and_reservations_away(swarm: Swarm, inventory: Path, tmp_path: Path) -> None:
    def resources() -> dict[str, Any]:
        found: dict[str, Any] = swarm.get(1, "/services/bounded")["Spec"]["TaskTemplate"]["Resources"]
        return {kind: {k: v for k, v in of.items() if v} for kind, of in found.items() if of}

    service = {"name": "bounded", "image": f"{REGISTRY}/echo:latest", "wait": False}
    both = {"memory": "64M", "cpus": 0.25}
    made, _took = declare(inventory, tmp_path, **service, limits=both, reservations=both)
    assert made.code == 0, made.said
    bounds = {"MemoryBytes": 64 << 20, "NanoCPUs": 250_000_000}
    assert resources() == {"Limits": bounds, "Reservations": bounds}
    none = {"memory": "0", "cpus": 0}
    freed, _took = declare(inventory, tmp_path, **service, limits=none, reservations={"memory": "0"})
    assert (freed.code, len(freed.changed)) == (0, 1), freed.said
    assert {kind: of for kind, of in resources().items() if of} == {"Reservations": {"NanoCPUs": 250_000_000}}
    again, _took = declare(inventory, tmp_path, **service, limits=none, reservations={"memory": "0"})
    swarm.docker(1, "service", "rm", "bounded")
    assert (again.code, again.changed) == (0, set()), again.said
