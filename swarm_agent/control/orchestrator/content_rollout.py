"""New versions of secrets and configs: services that track one roll to it, old versions are forgotten."""

from __future__ import annotations

import msgspec

from swarm_agent.control.references import KEPT_VERSIONS, owner_of, pinned, references, versions
from swarm_agent.control.revisions import revision_of
from swarm_agent.control.transaction import Transaction
from swarm_agent.objects import defaults
from swarm_agent.objects.options import options
from swarm_agent.objects.records import ContentRef, Revision, Service
from swarm_agent.store import Store, View

TRACK = "track"  # kind of the key of a service that tracks something
CONTENTS = "contents"  # kind of the key of a secret or config


def trackers(store: Store, owner_id: str) -> list[str]:
    """Ids of the services that track a secret or config. Looks at every service: owners seldom change."""
    return [s.id for s in store.services.all() if any(r.owner == owner_id for r in _tracked(s))]


def all_trackers(store: Store) -> list[str]:
    """Ids of the services that track anything: what a new leader looks at."""
    return [s.id for s in store.services.all() if _tracked(s)]


def _tracked(service: Service) -> list[ContentRef]:
    """What a service tracks, with the number it has dealt with (0: none)."""
    ctr = defaults.container(service.spec.task_template)
    if not (ctr.secrets or ctr.configs):
        return []
    wanted = options(service.spec.labels)
    dealt = {c.owner: c.number for c in service.tracked}
    return [
        ContentRef(owner=r.owner, number=dealt.get(r.owner, 0))
        for r in references(ctr)
        if wanted.version_of(r.kind, r.name) == "track"
    ]


def reconcile_tracking(p: Transaction, service_id: str) -> None:
    """Give a service a new revision when what it tracks has a version it has not dealt with; it rolls by its own update policy."""
    service = p.view.services.get(service_id)
    if service is None:
        return
    newest = {}
    for ref in _tracked(service):
        owner = p.view.secrets.get(ref.owner) or p.view.configs.get(ref.owner)
        if owner is not None and owner.number > ref.number:
            newest[ref.owner] = owner.number
    revision = p.view.revisions.get(service.revision_id)
    if not newest or revision is None:
        return
    tracked = {c.owner: c.number for c in service.tracked} | newest
    changed = msgspec.structs.replace(
        service, tracked=tuple(ContentRef(owner=o, number=n) for o, n in tracked.items())
    )
    following = _following(p.view, service, revision, newest)
    if following.id != revision.id:
        if p.view.revisions.get(following.id) is None:
            p.put(following)
        changed = msgspec.structs.replace(
            changed,
            revision_id=following.id,
            previous_spec=service.spec,
            previous_revision_id=revision.id,
            update_status=None,
        )
    p.put(changed)


def _following(view: View, service: Service, revision: Revision, newest: dict[str, int]) -> Revision:
    """The present revision with newer contents."""
    contents = tuple(
        ContentRef(owner=c.owner, number=newest.get(c.owner, c.number)) for c in revision.contents
    )
    last = max((r.number for r in view.revisions.by("service", service.id)), default=0)
    spec = msgspec.structs.replace(
        service.spec, task_template=revision.template, endpoint_spec=revision.endpoint
    )
    return revision_of(service.id, spec, revision.networks, contents, last + 1)


def reap_contents(p: Transaction, owner_id: str) -> None:
    """Keep the versions a revision points at, and the last ten; none of an owner that is gone."""
    found = versions(p.view, owner_id)
    gone = owner_of(p.view, "secret", owner_id) is None and owner_of(p.view, "config", owner_id) is None
    if not gone and len(found) <= KEPT_VERSIONS:
        return
    spare = found if gone else found[:-KEPT_VERSIONS]
    p.charge(len(p.view.revisions))
    used = {} if gone else pinned(p.view, owner_id)
    for content in spare:
        if content.number not in used:
            p.delete(content)
