"""Placement constraints: ``key == value`` or ``key != value`` over a node (behaviour.md 14)."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable
from typing import NamedTuple

from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.records import Node

_KEY = re.compile(r"(?i)[a-z_][a-z0-9\-_.]+")
_VALUE = re.compile(r"(?i)[a-z0-9:\-_\s.*()?+\[\]\\^$|/]+")


class BadConstraint(SwarmError):
    """A constraint that does not parse (Docker answers 500 with this text)."""


class Constraint(NamedTuple):
    key: str
    equal: bool
    value: str

    def matches(self, node: Node) -> bool:
        found = _look_up(self, node)
        return found is not None and found == self.equal


@functools.lru_cache(maxsize=4096)
def parse_constraint(text: str) -> Constraint:
    """Raises BadConstraint with Docker's text."""
    for operator in ("==", "!="):
        key, found, value = text.partition(operator)
        if not found:
            continue
        key, value = key.strip(), value.strip()
        if not _KEY.fullmatch(key):
            raise BadConstraint(f"key '{key}' is invalid")
        if not _VALUE.fullmatch(value):
            raise BadConstraint(f"value '{value}' is invalid")
        return Constraint(key, operator == "==", value)
    raise BadConstraint("constraint expected one operator from ==, !=")


def node_matches(constraints: tuple[str, ...], node: Node) -> bool:
    return all(parse_constraint(c).matches(node) for c in constraints)


def value_of(constraint: Constraint, node: Node) -> str | None:
    """What the node has for the constraint's key, "" for a label it lacks, ``None`` for a key that means nothing."""
    key = constraint.key
    lower = key.lower()
    if lower.startswith("node.labels."):
        return node.spec.labels.get(key[len("node.labels.") :], "")
    if lower.startswith("engine.labels."):
        return node.description.engine_labels.get(key[len("engine.labels.") :], "")
    read = _SIMPLE.get(lower)
    return None if read is None else read(node)


_SIMPLE: dict[str, Callable[[Node], str]] = {
    "node.id": lambda node: node.id,
    "node.hostname": lambda node: node.description.hostname,
    "node.ip": lambda node: node.status.addr,
    "node.role": lambda node: node.role,
    "node.platform.os": lambda node: node.description.os,
    "node.platform.arch": lambda node: node.description.architecture,
}


def _look_up(constraint: Constraint, node: Node) -> bool | None:
    """Whether the node's value equals the wanted one; ``None`` when the key is unknown (never matches)."""
    found = value_of(constraint, node)
    if found is None:
        return None
    if constraint.key.lower() == "node.ip":
        return _ip_matches(found, constraint.value)
    return found.lower() == constraint.value.lower()


def _ip_matches(address: str, value: str) -> bool | None:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(value, strict=False)
    except ValueError:
        return None
