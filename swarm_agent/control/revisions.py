"""From a service's spec to the revision its tasks are made from."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from swarm_agent.objects.options import options
from swarm_agent.objects.records import ContentRef, Revision, Service
from swarm_agent.objects.specs import EndpointSpec, ServiceSpec, TaskTemplate
from swarm_agent.store import View

_encoder = msgspec.msgpack.Encoder(order="deterministic")

# Where Go's clients can tell "not given" from zero; everywhere else a zero that comes back is the zero that was left out.
_POINTERS = frozenset(
    {"Delay", "MaxAttempts", "Window", "StopGracePeriod", "Init", "SwapBytes", "MemorySwappiness"}
)
_DEFAULTS = {
    "Runtime": "container",
    "Isolation": "default",
    "Mode": "vip",
    "Protocol": "tcp",
    "PublishMode": "ingress",
}


def revision_of(
    service_id: str,
    spec: ServiceSpec,
    networks: tuple[str, ...],
    contents: tuple[ContentRef, ...] = (),
    number: int = 0,
) -> Revision:
    """The revision of a normalised spec whose networks and contents are resolved; ``number`` if it turns out to be new.

    Scale, labels and update settings are no part of it, but for what labels ask of each task (``objects/options.py``). Equal
    meaning gives an equal id: a client that reads a spec and sends it back, with its own idea of what to leave out,
    makes no new revision and restarts nothing.
    """
    wanted = options(spec.labels)
    bare = Revision(
        id="",
        service_id=service_id,
        template=spec.task_template,
        endpoint=spec.endpoint_spec or EndpointSpec(),
        networks=networks,
        number=number,
        contents=contents,
        pre_start=wanted.pre_start,
        singleton=wanted.singleton,
    )
    return msgspec.structs.replace(bare, id=f"{service_id}.{_digest(bare, bare.template)}")


def previous_of(view: View, service: Service) -> Revision | None:
    """The revision of a service's previous spec; ``None`` when there is no previous spec. Made anew where it was not kept."""
    spec = service.previous_spec
    if spec is None:
        return None
    kept = view.revisions.get(service.previous_revision_id)
    if kept is not None:
        return kept
    targets = (n.target or "" for n in spec.task_template.networks or ())
    return revision_of(service.id, spec, tuple(t for t in targets if view.networks.get(t) is not None))


def next_number(view: View, service_id: str) -> int:
    """The number of a service's next new revision."""
    return max((r.number for r in view.revisions.by("service", service_id)), default=0) + 1


def same_but_placement(one: Revision, other: Revision) -> bool:
    """Whether tasks of both differ in nothing but where they may run."""
    return one.id == other.id or _core(one) == _core(other)


def _core(revision: Revision) -> str:
    core = _cores.get(revision.id)
    if core is None:
        if len(_cores) >= MAX_CORES:
            _cores.clear()
        core = _digest(revision, msgspec.structs.replace(revision.template, placement=None))
        _cores[revision.id] = core
    return core


MAX_CORES = 4096
_cores: dict[str, str] = {}  # by revision id, which names its content


def _digest(revision: Revision, template: TaskTemplate) -> str:
    """What came later than the first release counts only where it is used: its services keep their ids."""
    plain = msgspec.to_builtins((template, revision.endpoint))
    parts: list[Any] = [_canonical(plain), revision.networks]
    if revision.contents or revision.pre_start is not None or revision.singleton:
        parts += msgspec.to_builtins((revision.contents, revision.pre_start, revision.singleton))
    return hashlib.sha256(_encoder.encode(tuple(parts))).hexdigest()[:16]


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
