"""Placement constraints: ``key == value`` or ``key != value`` over a node (BEHAVIOUR 14)."""

from __future__ import annotations

import functools
import ipaddress
import re
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


def _look_up(constraint: Constraint, node: Node) -> bool | None:
    """Whether the node's value equals the wanted one; ``None`` when the key is unknown (never matches)."""
    key, value = constraint.key, constraint.value
    lower = key.lower()
    simple = {
        "node.id": node.id,
        "node.hostname": node.description.hostname,
        "node.role": node.role,
        "node.platform.os": node.description.os,
        "node.platform.arch": node.description.architecture,
    }
    if lower in simple:
        return simple[lower].lower() == value.lower()
    if lower == "node.ip":
        return _ip_matches(node.status.addr, value)
    for prefix, labels in (
        ("node.labels.", node.spec.labels),
        ("engine.labels.", node.description.engine_labels),
    ):
        if lower.startswith(prefix):
            return labels.get(key[len(prefix) :], "").lower() == value.lower()
    return None


def _ip_matches(address: str, value: str) -> bool | None:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(value, strict=False)
    except ValueError:
        return None
