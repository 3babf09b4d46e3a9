"""Which versions of secrets and configs a service's tasks get, and which versions are kept.

A reference follows its owner (the secret or config) as the service's labels say: it keeps the version it has (``pin``), takes a new one
when there is one (``track``), or has the one that is named. A version that was rolled back from is not taken again by
itself: ``Service.tracked`` holds the newest one the service has dealt with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from swarm_agent.objects import defaults
from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.objects.options import options
from swarm_agent.objects.records import Config, Content, ContentRef, Revision, Secret, Service
from swarm_agent.objects.specs import ContainerSpec, ServiceSpec
from swarm_agent.store import View

KEPT_VERSIONS = 10


class Reference(NamedTuple):
    kind: str  # secret, config
    owner: str  # id
    name: str


class ResolvedReferences(NamedTuple):
    contents: tuple[ContentRef, ...]  # in the order of the references, secrets first
    tracked: tuple[ContentRef, ...]  # what tracking has dealt with from here on


def references(ctr: ContainerSpec) -> Iterator[Reference]:
    """Those with a file; secrets first, in order."""
    for secret in ctr.secrets or ():
        yield Reference("secret", secret.secret_id or "", secret.secret_name or "")
    for config in ctr.configs or ():
        yield Reference("config", config.config_id or "", config.config_name or "")


def owner_of(view: View, kind: str, id_: str) -> Secret | Config | None:
    return view.secrets.get(id_) if kind == "secret" else view.configs.get(id_)


def resolve_contents(view: View, spec: ServiceSpec, service: Service | None = None) -> ResolvedReferences:
    """The versions for a new revision of ``service`` (None: it is created).

    Raises:
        InvalidSpec: a secret or config is not there under this id and name, or a version that is named is not kept.
    """
    wanted = options(spec.labels)
    refs = list(references(defaults.container(spec.task_template)))
    for kind in ("secret", "config"):
        _must_exist(view, kind, [r for r in refs if r.kind == kind])
    revision = view.revisions.get(service.revision_id) if service is not None else None
    present = {c.owner: c.number for c in revision.contents} if revision is not None else {}
    dealt = {c.owner: c.number for c in service.tracked} if service is not None else {}
    contents, tracked = [], []
    for ref in refs:
        owner = owner_of(view, ref.kind, ref.owner)
        assert owner is not None
        how = wanted.version_of(ref.kind, ref.name)
        number = present.get(ref.owner, owner.number)
        if how == "track":
            if dealt.get(ref.owner) != owner.number:
                number = owner.number
            tracked.append(ContentRef(owner=ref.owner, number=owner.number))
        elif how != "pin":
            number = int(how)
        if view.contents.get(f"{ref.owner}.{number}") is None:
            kept = ", ".join(str(c.number) for c in versions(view, ref.owner))
            raise InvalidSpec(
                f"{ref.kind} {ref.name} has no version {number}: {kept or 'none'} are kept",
                f"Labels['swarm-agent.{ref.kind}.{ref.name}']",
            )
        contents.append(ContentRef(owner=ref.owner, number=number))
    return ResolvedReferences(tuple(contents), tuple(tracked))


def _must_exist(view: View, kind: str, refs: list[Reference]) -> None:
    missing = []
    for ref in refs:
        owner = owner_of(view, kind, ref.owner)
        if owner is None or owner.spec.name != ref.name:
            missing.append(ref.name)
    if missing:
        word = kind if len(missing) == 1 else f"{kind}s"
        raise InvalidSpec(f"{word} not found: {', '.join(missing)}")


def must_be_kept(view: View, revision: Revision) -> None:
    """Whether a revision that is gone back to still has all its secrets and configs.

    Raises:
        InvalidSpec: one was removed, or its version is not kept any more.
    """
    refs = list(references(defaults.container(revision.template)))
    for kind in ("secret", "config"):
        _must_exist(view, kind, [r for r in refs if r.kind == kind])
    numbers = [c.number for c in revision.contents]
    for i, ref in enumerate(refs):
        number = numbers[i] if i < len(numbers) else 0
        if view.contents.get(f"{ref.owner}.{number}") is None:
            raise InvalidSpec(f"version {number} of {ref.kind} {ref.name} is not kept any more")


def dealt_with(view: View, spec: ServiceSpec) -> tuple[ContentRef, ...]:
    """``Service.tracked`` of a service that was just taken back: only what is newer than now rolls it again."""
    wanted = options(spec.labels)
    out = []
    for ref in references(defaults.container(spec.task_template)):
        owner = owner_of(view, ref.kind, ref.owner)
        if owner is not None and wanted.version_of(ref.kind, ref.name) == "track":
            out.append(ContentRef(owner=ref.owner, number=owner.number))
    return tuple(out)


def versions(view: View, owner_id: str) -> list[Content]:
    """All kept versions, oldest first."""
    return sorted(view.contents.by("owner", owner_id), key=lambda c: c.number)


def pinned(view: View, owner_id: str) -> dict[int, list[Revision]]:
    """The revisions that point at each version."""
    out: dict[int, list[Revision]] = {}
    for revision in view.revisions.all():
        for ref in revision.contents:
            if ref.owner == owner_id:
                out.setdefault(ref.number, []).append(revision)
    return out
