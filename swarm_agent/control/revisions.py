"""From a service's spec to the revision its tasks are made from."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from swarm_agent.objects.records import Revision
from swarm_agent.objects.specs import EndpointSpec, ServiceSpec

_encoder = msgspec.msgpack.Encoder(order="deterministic")

# Where Go's clients can tell "not given" from zero; everywhere else a zero that comes back is the zero that was left out.
_POINTERS = frozenset({"Delay", "MaxAttempts", "Window", "StopGracePeriod", "Init"})
_DEFAULTS = {
    "Runtime": "container",
    "Isolation": "default",
    "Mode": "vip",
    "Protocol": "tcp",
    "PublishMode": "ingress",
}


def revision_of(service_id: str, spec: ServiceSpec, networks: tuple[str, ...]) -> Revision:
    """The revision of a normalised spec whose networks are resolved to ids.

    Scale, labels and update settings are no part of it. Equal meaning gives an equal id: a client that reads a spec and
    sends it back, with its own idea of what to leave out, makes no new revision and restarts nothing.
    """
    endpoint = spec.endpoint_spec or EndpointSpec()
    plain = msgspec.to_builtins((spec.task_template, endpoint))
    digest = hashlib.sha256(_encoder.encode((_canonical(plain), networks))).hexdigest()[:16]
    return Revision(
        id=f"{service_id}.{digest}",
        service_id=service_id,
        template=spec.task_template,
        endpoint=endpoint,
        networks=networks,
    )


def _canonical(value: Any) -> Any:
    """The value without what means the same when it is left out."""
    if isinstance(value, dict):
        kept = {k: _canonical(v) for k, v in value.items()}
        return {k: v for k, v in kept.items() if not _left_out(k, v)}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    return value


def _left_out(key: str, value: Any) -> bool:
    if key in _POINTERS:
        return value is None
    return value in (None, "", 0, False, [], {}) or _DEFAULTS.get(key) == value
