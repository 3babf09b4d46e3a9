"""What a task demands of a node, and the filters that ask a node for it, in Swarm's order.

A :class:`Requirements` says nothing about the service it came from: tasks that requirements the same can share what is found out about
nodes. What depends on the service (replicas per node, affinities, volumes) is a :class:`Preferences`, asked after the requirements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from swarm_agent.control.names import named_service
from swarm_agent.control.scheduler.usage import ClusterUsage, NodeUsage
from swarm_agent.objects import defaults, features, ports
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.enums import NodeState
from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.objects.options import Options, options
from swarm_agent.objects.records import Generic, HeldPort, Node, Revision, Service
from swarm_agent.store import View

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
LOCAL_NETWORKS = (
    "",
    "overlay",
    "bridge",
    "host",
    "none",
    "null",
    "macvlan",
    "ipvlan",
)  # every engine has them
NODE_ADDRESSES = 1022  # a node's part of the node network is a /22, see ``allocate``


class Requirements(NamedTuple):
    """What a task needs of whichever node it goes to."""

    cpu: int = 0  # nano CPUs
    memory: int = 0  # bytes
    generic: tuple[tuple[str, int], ...] = ()  # (kind, how many)
    plugins: tuple[tuple[str, str], ...] = ()  # (type, name)
    constraints: tuple[str, ...] = ()
    platforms: tuple[tuple[str, str], ...] = ()  # (os, architecture), "" where any will do; one of them
    ports: tuple[tuple[str, int], ...] = ()  # (protocol, port) on the host
    addressed: bool = False  # whether it stands on the node network
    leased: bool = False  # whether it runs under a lease, which agents know from a level on


class Preferences(NamedTuple):
    """What its service asks for besides, with names resolved. Hard wishes are filters, soft ones rank."""

    service_id: str
    revision_id: str
    max_replicas: int = 0
    strategy: str = "spread"
    with_hard: tuple[str, ...] = ()  # ids of services it must run beside
    apart_hard: tuple[str, ...] = ()
    with_soft: tuple[str, ...] = ()
    apart_soft: tuple[str, ...] = ()
    held: tuple[str, ...] = ()  # volumes some node holds; only a node that holds them will do
    preferred: tuple[str, ...] = ()  # volumes some node holds, and that node is better
    avoid: str = ""  # the node it is to leave
    spread: tuple[str, ...] = ()  # descriptors, the first decides first


# --- from specs -----------------------------------------------------------------------------------------------------------
def demand_of(revision: Revision, view: View) -> Requirements:
    template = revision.template
    reservations = template.resources and template.resources.reservations
    generic: dict[str, int] = {}
    for resource in (reservations and reservations.generic_resources) or ():
        wanted = resource.discrete_resource_spec
        if wanted is not None and wanted.kind:
            generic[wanted.kind] = generic.get(wanted.kind, 0) + (wanted.value or 0)
    return Requirements(
        cpu=(reservations and reservations.nano_cpus) or 0,
        memory=(reservations and reservations.memory_bytes) or 0,
        generic=tuple(sorted(generic.items())),
        plugins=tuple(sorted(_plugins(revision, view))),
        constraints=defaults.constraints(template),
        platforms=_platforms(revision),
        ports=tuple(sorted(set(ports.host_ports(revision)))),
        addressed=bool(revision.networks or revision.endpoint.ports),
        leased=revision.singleton,
    )


def _platforms(revision: Revision) -> tuple[tuple[str, str], ...]:
    placement = revision.template.placement
    found = tuple(
        (p.os or "", ARCHITECTURES.get(p.architecture or "", p.architecture or ""))
        for p in (placement and placement.platforms) or ()
    )
    return () if ("", "") in found else found


def _plugins(revision: Revision, view: View) -> set[tuple[str, str]]:
    wanted = set()
    for mount in defaults.container(revision.template).mounts or ():
        driver = (
            mount.volume_options
            and mount.volume_options.driver_config
            and mount.volume_options.driver_config.name
        )
        if mount.type == "volume" and driver and driver != "local":
            wanted.add(("Volume", driver))
    for network_id in revision.networks:
        network = view.networks.get(network_id)
        if network is not None and (network.spec.driver or "") not in LOCAL_NETWORKS:
            wanted.add(("Network", str(network.spec.driver)))
    log = revision.template.log_driver
    if log is not None and log.name not in (None, "", "none", "default"):
        wanted.add(("Log", str(log.name)))
    return wanted


def local_volumes(revision: Revision) -> tuple[str, ...]:
    """Names of the volumes that stay on the node they are on; one whose name is a template differs from task to task."""
    names = []
    for mount in defaults.container(revision.template).mounts or ():
        config = mount.volume_options and mount.volume_options.driver_config
        driver = (config and config.name) or "local"
        if mount.type == "volume" and mount.source and driver == "local" and "{{" not in mount.source:
            names.append(mount.source)
    return tuple(sorted(set(names)))


def options_of(service: Service | None) -> Options:
    """The service's options; labels from before they meant anything, and that mean nothing, ask for nothing."""
    try:
        return options({} if service is None else service.spec.labels)
    except InvalidSpec:
        return Options()


def preferences_of(
    revision: Revision,
    service: Service | None,
    view: View,
    usage: ClusterUsage,
    avoid: str = "",
    *,
    preset: bool = False,
) -> Preferences:
    """``preset``: for a task that has its node already; it takes that node's volumes as they are."""
    wanted = options_of(service)
    placement = revision.template.placement
    beside: dict[tuple[bool, bool], list[str]] = {}
    for affinity in wanted.affinities:
        named = None if service is None else named_service(view, service, affinity.service)
        other = "" if named is None else named.id
        if other == revision.service_id and affinity.together and other not in usage.hosting:
            continue  # the first of a service that keeps together may go anywhere
        beside.setdefault((affinity.together, affinity.hard), []).append(other)
    volumes: tuple[str, ...] = ()
    if not preset and wanted.volume_affinity != "ignore":
        volumes = tuple(name for name in local_volumes(revision) if name in usage.volumes)
    required = wanted.volume_affinity == "require"
    return Preferences(
        service_id=revision.service_id,
        revision_id=revision.id,
        max_replicas=(placement and placement.max_replicas) or 0,
        strategy=wanted.strategy,
        with_hard=tuple(beside.get((True, True), ())),
        apart_hard=tuple(beside.get((False, True), ())),
        with_soft=tuple(beside.get((True, False), ())),
        apart_soft=tuple(beside.get((False, False), ())),
        held=volumes if required else (),
        preferred=() if required else volumes,
        avoid=avoid,
        spread=spread_of(revision),
    )


def spread_of(revision: Revision) -> tuple[str, ...]:
    """What its tasks are to be spread over, the first decides first."""
    placement = revision.template.placement
    return tuple(
        p.spread.spread_descriptor
        for p in (placement and placement.preferences) or ()
        if p.spread and p.spread.spread_descriptor
    )


# --- the filters --------------------------------------------------------------------------------------------------------
def refusal(
    requirements: Requirements, node: Node, use: NodeUsage, addresses: int, static: str | None = None
) -> str:
    """The code of the first filter after "ready" that a node does not pass, "" when it passes all.

    ``addresses``: how many of the node's are given. ``static``: what :func:`static_refusal` says, where it is known.
    """
    if (requirements.cpu or requirements.memory or requirements.generic) and not _fits(
        requirements, node, use
    ):
        return "resources"
    if static is None:
        static = static_refusal(requirements, node)
    if static:
        return static
    if requirements.ports and any(port in use.ports for port in requirements.ports):
        return "ports"
    if requirements.addressed and (not node.number or addresses >= NODE_ADDRESSES):
        return "addresses"
    return ""


def static_refusal(requirements: Requirements, node: Node) -> str:
    """The same of the filters that look at nothing but the node's own row."""
    if requirements.leased and node.feature_level < features.ORCHESTRATION:
        return "agent"
    if requirements.plugins and missing_plugins(requirements, node):
        return "plugins"
    if requirements.constraints and not node_matches(requirements.constraints, node):
        return "constraints"
    if requirements.platforms and not _platform(requirements, node):
        return "platform"
    if requirements.ports and held_ports(requirements, node):
        return "held-ports"
    return ""


def held_ports(requirements: Requirements, node: Node) -> list[HeldPort]:
    """Those of the host-mode ports that programs of the node's host hold."""
    return [
        held for held in node.description.held_ports if (held.protocol, held.number) in requirements.ports
    ]


def _fits(requirements: Requirements, node: Node, use: NodeUsage) -> bool:
    total = node.description
    if requirements.cpu and total.nano_cpus - use.cpu < requirements.cpu:
        return False
    if requirements.memory and total.memory_bytes - use.memory < requirements.memory:
        return False
    return not requirements.generic or all(
        free_generic(node, use, kind) >= n for kind, n in requirements.generic
    )


def free_generic(node: Node, use: NodeUsage, kind: str) -> int:
    """How many of a kind are not given. A node may have told of them by count before it told their names, or the other way
    round: what was given then takes one each of what it tells now. A name it tells no more takes none of the others."""
    counted = use.generic.get(kind, 0)
    total = 0
    names = []
    for told in node.description.generic:
        if told.kind == kind:
            if told.name:
                names.append(told.name)
            else:
                total += told.count
    if names:
        return max(0, sum((kind, name) not in use.names for name in names) - counted)
    named = sum(given == kind for given, _ in use.names) if use.names else 0
    return max(0, total - counted - named)


def pick_generic(node: Node, use: NodeUsage, wanted: Iterable[tuple[str, int]]) -> tuple[Generic, ...]:
    """What of a node's generic resources a task gets: so many names of a kind that has names, else a count."""
    out: list[Generic] = []
    for kind, count in wanted:
        names = [g.name for g in node.description.generic if g.name and g.kind == kind]
        if names:
            free = [name for name in sorted(set(names)) if (kind, name) not in use.names]
            out += [Generic(kind=kind, name=name) for name in free[:count]]
        elif count:
            out.append(Generic(kind=kind, count=count))
    return tuple(out)


def missing_plugins(requirements: Requirements, node: Node) -> list[tuple[str, str]]:
    """Log drivers are not asked for where the engine tells of none."""
    have = {(p.type, p.name) for p in node.description.plugins}
    logs = any(kind == "Log" for kind, _ in have)
    return [
        (kind, name)
        for kind, name in requirements.plugins
        if (kind, name) not in have and (kind, f"{name}:latest") not in have and (kind != "Log" or logs)
    ]


def _platform(requirements: Requirements, node: Node) -> bool:
    about = node.description
    architecture = ARCHITECTURES.get(about.architecture, about.architecture)
    return any(
        (not os or os == about.os) and (not wanted or wanted == architecture)
        for os, wanted in requirements.platforms
    )


def wish_refusal(preferences: Preferences, node_id: str, use: NodeUsage, usage: ClusterUsage) -> str:
    """The code of the first filter that depends on the service and refuses the node, "" when none does."""
    if preferences.max_replicas and use.by_service.get(preferences.service_id, 0) >= preferences.max_replicas:
        return "max-replicas"
    hosting = usage.hosting
    for other in preferences.with_hard:
        if node_id not in hosting.get(other, ()):
            return "affinity"
    for other in preferences.apart_hard:
        if node_id in hosting.get(other, ()):
            return "affinity"
    for volume in preferences.held:
        if node_id not in usage.volumes.get(volume, ()):
            return "volume"
    return "moves" if node_id == preferences.avoid else ""


def unmet(preferences: Preferences, node_id: str, usage: ClusterUsage) -> int:
    """How many soft wishes a node leaves unmet."""
    hosting = usage.hosting
    return (
        sum(node_id not in hosting.get(other, ()) for other in preferences.with_soft)
        + sum(node_id in hosting.get(other, ()) for other in preferences.apart_soft)
        + sum(node_id not in usage.volumes.get(name, ()) for name in preferences.preferred)
    )


# --- their texts ----------------------------------------------------------------------------------------------------------
def _on_nodes(text: str) -> Callable[[int], str]:
    return lambda n: f"{text} on {n} node{'' if n == 1 else 's'}"


TEXTS: Mapping[str, Callable[[int], str]] = {
    "ready": lambda n: f"{n} node{'' if n == 1 else 's'} not available for new tasks",
    "resources": _on_nodes("insufficient resources"),
    "agent": _on_nodes("the agent is too old for a strict singleton"),
    "plugins": _on_nodes("missing plugin"),
    "constraints": _on_nodes("scheduling constraints not satisfied"),
    "platform": _on_nodes("unsupported platform"),
    "held-ports": _on_nodes("host-mode port held by a program of the host"),
    "ports": _on_nodes("host-mode port already in use"),
    "addresses": _on_nodes("no free address on the node network"),
    "max-replicas": lambda n: "max replicas per node limit exceed",  # noqa: ARG005 - Docker's text has no count
    "affinity": _on_nodes("affinity not satisfied"),
    "volume": _on_nodes("volume not present"),
    "moves": _on_nodes("the task is to move away"),
}
"""By filter, in the order they are asked; those Docker has in Docker's words."""


def state_of(node: Node) -> str:
    """Why a node takes no tasks, "" when it does."""
    if node.status.state != NodeState.READY:
        return node.status.state.word
    if node.spec.availability != "active":
        return {"drain": "drained", "pause": "paused"}.get(node.spec.availability, "")
    return f"unable to take tasks ({node.description.trouble})" if node.description.trouble else ""
