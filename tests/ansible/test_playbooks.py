"""What can be told of playbooks and roles by reading them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = ROOT / "collections/ansible_collections/swarm/cluster"
FILES = sorted([*(COLLECTION / "roles").rglob("*.yml"), *(COLLECTION / "playbooks").rglob("*.yml")])


def tasks(content: Any) -> Iterator[dict[str, Any]]:
    """Every task, with those in plays and blocks."""
    for entry in content if isinstance(content, list) else []:
        if isinstance(entry, dict):
            yield entry
            for key in ("tasks", "block", "rescue", "always"):
                yield from tasks(entry.get(key))


def test_files_are_found() -> None:
    assert len(FILES) > 20


def test_the_first_play_is_about_the_inventory_and_none_about_somebody_elses_hosts() -> None:
    (imported,) = yaml.safe_load((ROOT / "site.yml").read_text())
    assert imported["ansible.builtin.import_playbook"] == "swarm.cluster.site"
    plays = yaml.safe_load((COLLECTION / "playbooks/site.yml").read_text())
    assert plays[0]["name"] == "Check the inventory"
    assert {play["hosts"] for play in plays} == {"managers:workers", "managers", "workers"}


def test_facts_are_named_as_facts() -> None:
    """As variables of their own they are deprecated since ansible-core 2.20, which warns of each use."""
    for path in FILES:
        assert not re.search(r"(?<!ansible_facts\.)\bcluster_host\b", path.read_text()), path


def test_whom_a_task_is_delegated_to_is_a_host_even_if_the_task_is_skipped() -> None:
    """An empty name is an error before ``when`` is looked at."""
    for path in FILES:
        for task in tasks(yaml.safe_load(path.read_text())):
            to = task.get("delegate_to", "{{ item }}")
            certain = to in ("{{ item }}", "{{ ansible_play_hosts | first }}")
            assert certain or "inventory_hostname" in to, f"{path}: {to}"


def test_nothing_is_restarted_because_of_what_a_run_has_changed() -> None:
    """A run that was cut short would not come back to it."""
    for path in FILES:
        assert "handlers" not in path.parts, path
        for task in tasks(yaml.safe_load(path.read_text())):
            assert "notify" not in task, f"{path}: {task.get('name')}"


def test_no_task_needs_the_docker_command() -> None:
    """Debian 13 does not install it with the engine."""
    for path in FILES:
        for task in tasks(yaml.safe_load(path.read_text())):
            command = str(task.get("ansible.builtin.command") or task.get("ansible.builtin.raw") or "")
            assert "docker" not in command, f"{path}: {task.get('name')}"
