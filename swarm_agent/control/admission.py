"""Which published ports a service may have beside the others' (behaviour.md 5.6), the swarm's own and those that hosts hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from swarm_agent.objects import defaults, ports
from swarm_agent.objects.enums import NodeState
from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.objects.ports import PortKey
from swarm_agent.objects.records import Service
from swarm_agent.objects.specs import PortConfig, ServiceSpec
from swarm_agent.store import View


def must_not_be_the_swarms(
    spec: ServiceSpec, own: Mapping[PortKey, str], before: ServiceSpec | None = None
) -> None:
    """``own``: what the swarm itself uses on its hosts, and what for. ``before``: the spec it follows, which may have had such a port already:
    no host takes it, and the service can be changed all the same.

    Raises:
        InvalidSpec: the service asks for one of them; every host would lose what it serves.
    """
    had = (
        {(defaults.protocol(p), p.published_port or 0) for p in _stated(before)}
        if before is not None
        else set()
    )
    for number, port in enumerate((spec.endpoint_spec and spec.endpoint_spec.ports) or ()):
        key = (defaults.protocol(port), port.published_port or 0)
        used_for = own.get(key)
        if used_for is not None and key not in had:
            raise InvalidSpec(
                f"published port {port.published_port}/{defaults.protocol(port)} is the swarm's own on every host ({used_for}): "
                "publish the service on another one",
                f"EndpointSpec.Ports[{number}].PublishedPort",
            )


def held(view: View, spec: ServiceSpec) -> list[str]:
    """A sentence for each stated port of a spec that is not taken on some node that is up, because a program of its host holds it."""
    return _sentences(view, [(defaults.protocol(p), p.published_port or 0) for p in _stated(spec)])


def held_ingress(view: View, service: Service) -> list[str]:
    """The same of a service's ingress ports, the automatic ones among them."""
    return _sentences(view, _ingress(service))


def held_everywhere(view: View, service: Service) -> set[PortKey]:
    """The ingress ports of a service that no node takes."""
    wanted = _ingress(service)
    if not wanted:
        return set()
    up = sum(1 for node in view.nodes.all() if node.status.state == NodeState.READY)
    return {key for key, where in _where(view, wanted).items() if len(where) == up}


def _sentences(view: View, wanted: list[PortKey]) -> list[str]:
    found = _where(view, wanted)
    return [ports.not_taken(key, found[key]) for key in wanted if key in found]


def _where(view: View, wanted: list[PortKey]) -> dict[PortKey, list[tuple[str, str]]]:
    """By port the nodes that are up and do not take it, in order of their names, each with the program that holds it."""
    found: dict[PortKey, list[tuple[str, str]]] = {}
    if not wanted:
        return found
    for node in sorted(view.nodes.all(), key=lambda n: (n.description.hostname, n.id)):
        if node.status.state != NodeState.READY:
            continue
        for port in node.description.held_ports:
            if ports.key(port) in wanted:
                name = node.description.hostname or node.id
                found.setdefault(ports.key(port), []).append((name, port.holder))
    return found


def _ingress(service: Service) -> list[PortKey]:
    return [
        (defaults.protocol(p), p.published_port or 0)
        for p in (service.endpoint and service.endpoint.ports) or ()
        if defaults.publish_mode(p) == "ingress" and p.published_port
    ]


def _stated(spec: ServiceSpec) -> Iterator[PortConfig]:
    yield from (p for p in (spec.endpoint_spec and spec.endpoint_spec.ports) or () if p.published_port)


def must_be_free(view: View, spec: ServiceSpec, own_id: str) -> None:
    """Ingress against anything conflicts, host against host does not. ``own_id``: the service's that is to have ``spec``, "" of a
    new one.

    Raises:
        InvalidSpec: another service has one of the ports, by its spec or as it was given it.
    """
    wanted = list(_stated(spec))
    if not wanted:
        return
    for other in view.services.all():
        if other.id == own_id:
            continue
        taken = list((other.spec.endpoint_spec and other.spec.endpoint_spec.ports) or ())
        taken += (other.endpoint and other.endpoint.ports) or ()
        for port in wanted:
            for theirs in taken:
                if theirs.published_port != port.published_port or defaults.protocol(
                    theirs
                ) != defaults.protocol(port):
                    continue
                mode = defaults.publish_mode(theirs)
                if mode == "host" and defaults.publish_mode(port) == "host":
                    continue
                kind = "an ingress port" if mode == "ingress" else "a host-published port"
                raise InvalidSpec(
                    f"port '{port.published_port}' is already in use by service '{other.spec.name}' ({other.id}) as {kind}"
                )
