"""How services name each other, in labels: what ``db`` means depends on who says it."""

from __future__ import annotations

from swarm_agent.objects.records import Service
from swarm_agent.store import View

STACK = "com.docker.stack.namespace"


def named_service(view: View, of: Service, name: str) -> Service | None:
    """The service another one names: of its own stack first, as a Compose file means it."""
    return next((s for n in meant(of, name) for s in view.services.by("name", n.lower())), None)


def names_itself(service: Service, name: str) -> bool:
    """Whether a service means itself by a name."""
    return (service.spec.name or "").lower() in (n.lower() for n in meant(service, name))


def meant(of: Service, name: str) -> tuple[str, ...]:
    """The full names a service may mean, the first there is counts."""
    stack = of.spec.labels.get(STACK)
    return (f"{stack}_{name}", name) if stack else (name,)
