"""What a service waits for before its tasks are started (label ``swarm-agent.depends-on``)."""

from __future__ import annotations

from swarm_agent.control.names import meant, named_service
from swarm_agent.control.tasks import live
from swarm_agent.control.transaction import Transaction
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.options import Dependency, options
from swarm_agent.objects.records import Service
from swarm_agent.store import View


def waits(p: Transaction, service: Service) -> str:
    """As :func:`unmet`, looked at once a pass."""
    found = p.unmet.get(service.id)
    if found is None:
        found = p.unmet[service.id] = unmet(p.view, service)
        for wanted in options(service.spec.labels).depends_on:
            other = named_service(p.view, service, wanted.service)
            if other is not None:
                p.charge(sum(1 for _ in p.view.tasks.by("service", other.id)))
    return found


def unmet(view: View, service: Service) -> str:
    """The first condition that does not hold, as a sentence; "" when all do."""
    for wanted in options(service.spec.labels).depends_on:
        why = _unmet(view, service, wanted)
        if why:
            return why
    return ""


def _unmet(view: View, service: Service, wanted: Dependency) -> str:
    other = named_service(view, service, wanted.service)
    if other is None:
        return f"waits for service {wanted.service}, which does not exist"
    tasks = view.tasks.by("service", other.id)
    if wanted.condition == "completed":
        return "" if completed(view, other) else f"waits for service {other.spec.name} to complete"
    if wanted.condition == "healthy":
        met = any(t.status.state == TaskState.RUNNING and live(t) for t in tasks)
        return "" if met else f"waits for service {other.spec.name} to be healthy"
    begun = (TaskState.STARTING, TaskState.RUNNING, TaskState.COMPLETE)
    met = any(t.status.state in begun and t.revision_id == other.revision_id for t in tasks)
    return "" if met else f"waits for service {other.spec.name} to be started"


def completed(view: View, service: Service) -> bool:
    """Whether a job's present run is done, or every task of a service has ended with 0."""
    tasks = list(view.tasks.by("service", service.id))
    iteration = service.job.iteration if service.job is not None else 0
    done = {t.place for t in tasks if t.status.state == TaskState.COMPLETE and t.iteration == iteration}
    if service.spec.mode.global_job is not None:
        return bool(done) and done >= {t.place for t in tasks if t.iteration == iteration}
    if service.spec.mode.replicated_job is not None:
        return len(done) >= defaults.job(service.spec).total
    return bool(tasks) and len(done) >= defaults.replicas(service.spec)


def cycle(view: View, service: Service) -> list[str]:
    """The names of services that would wait for each other if ``service`` were as given, first and last the same; empty: none."""
    path: list[str] = []
    seen: set[str] = set()

    def walk(at: Service) -> bool:
        path.append(at.spec.name or "")
        for wanted in options(at.spec.labels).depends_on:
            if _same(service, at, wanted.service):
                path.append(service.spec.name or "")
                return True
            other = named_service(view, at, wanted.service)
            if other is not None and other.id not in seen:
                seen.add(other.id)
                if walk(other):
                    return True
        path.pop()
        return False

    return path if walk(service) else []


def _same(service: Service, at: Service, name: str) -> bool:
    return (service.spec.name or "") in meant(at, name)
