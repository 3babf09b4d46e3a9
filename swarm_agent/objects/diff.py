"""What differs between two documents, field by field, by meaning: an absent field is what the server fills in for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from swarm_agent.objects import defaults
from swarm_agent.objects.specs import ServiceSpec

_NAMED = ("Target", "Name", "SecretName", "ConfigName", "TargetPort")  # what tells the items of a list apart


class FieldChange(msgspec.Struct, frozen=True, rename="pascal"):
    """``path`` as in Docker's documents; ``before`` or ``after`` is ``None`` where there is nothing."""

    path: str
    before: Any
    after: Any


def service_diff(before: ServiceSpec | None, after: ServiceSpec | None) -> tuple[FieldChange, ...]:
    """Of two specs whose networks are resolved."""
    return tuple(_differences("", _plain(before), _plain(after)))


def _plain(spec: ServiceSpec | None) -> Any:
    if spec is None:
        return None
    plain = msgspec.to_builtins(defaults.with_defaults(spec))
    if defaults.is_replicated(spec):
        plain["Mode"] = {"Replicated": {"Replicas": defaults.replicas(spec)}}
    plain["TaskTemplate"].pop("Runtime", None)
    container = plain["TaskTemplate"].get("ContainerSpec") or {}
    if container.get("Isolation") == "default":
        del container["Isolation"]
    return plain


def _differences(path: str, before: Any, after: Any) -> Iterator[FieldChange]:
    before, after = _empty(before), _empty(after)
    if before == after:
        return
    if isinstance(before, dict | None) and isinstance(after, dict | None):
        left, right = before or {}, after or {}
        for key in [*left, *(k for k in right if k not in left)]:
            inner = f"{path}.{key}" if path else key
            yield from _differences(inner, left.get(key), right.get(key))
        return
    keyed = _keyed(before), _keyed(after)
    if keyed[0] is not None and keyed[1] is not None:
        yield from _differences(path, keyed[0], keyed[1])
        return
    yield FieldChange(path, before, after)


def _keyed(value: Any) -> dict[str, Any] | None:
    """A list of named things as a map, so that one more at its head is not a change of all."""
    if value is None:
        return {}
    if not isinstance(value, list | tuple) or not all(isinstance(v, dict) for v in value):
        return None
    out = {}
    for item in value:
        name = next((str(item[n]) for n in _NAMED if item.get(n)), None)
        if name is None or f"[{name}]" in out:
            return None
        out[f"[{name}]"] = item
    return out


def _empty(value: Any) -> Any:
    """Go's zeros and what is left out mean the same."""
    return None if value in ("", 0, False, [], (), {}) else value
