"""Why a task is not placed, for people: how many nodes each filter refuses, Docker's words for it, and the nearest miss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from swarm_agent.control.scheduler.feasibility import (
    ARCHITECTURES,
    TEXTS,
    Preferences,
    Requirements,
    demand_of,
    free_generic,
    held_ports,
    missing_plugins,
    preferences_of,
    refusal,
    state_of,
    wish_refusal,
)
from swarm_agent.control.scheduler.feasible_nodes import FeasibleNodes
from swarm_agent.control.scheduler.usage import ClusterUsage, NodeUsage, takes_tasks
from swarm_agent.objects import ports
from swarm_agent.objects.constraints import parse_constraint, value_of
from swarm_agent.objects.records import Node, Reason, Revision, Service
from swarm_agent.store import View

ADDRESS = "address"  # what is missing is no node's matter: an address, a port, a network


class Explanation(NamedTuple):
    """What would become of a task: so many nodes would do, the others are refused for these reasons."""

    fits: int
    reasons: tuple[Reason, ...]


def explain(
    view: View,
    usage: ClusterUsage,
    revision: Revision,
    service: Service | None,
    avoid: str = "",
    preset: str = "",
) -> Explanation:
    """What would become of a task of a revision, stored or not. Looks at every node and changes nothing.

    ``avoid``: the id of a node it is to leave. ``preset``: of the only one it may go to.
    """
    requirements = demand_of(revision, view)
    preferences = preferences_of(revision, service, view, usage, avoid, preset=bool(preset))
    if preset and preset not in usage.rows:
        return Explanation(0, texts(usage, preferences, {"ready": 1}))
    nodes = (usage.rows[preset],) if preset else usage.rows.values()
    counts, fits = _count(usage, requirements, preferences, nodes)
    return Explanation(fits, reasons(usage, view, requirements, preferences, counts, preset))


def _count(
    usage: ClusterUsage, requirements: Requirements, preferences: Preferences, nodes: Iterable[Node]
) -> tuple[dict[str, int], int]:
    counts: dict[str, int] = {}
    fits = 0
    for node in nodes:
        code = refusal_of(usage, requirements, preferences, node)
        if code:
            counts[code] = counts.get(code, 0) + 1
        else:
            fits += 1
    return counts, fits


def refusal_of(usage: ClusterUsage, requirements: Requirements, preferences: Preferences, node: Node) -> str:
    """The code of the first filter that refuses a node, "" when none does."""
    if not takes_tasks(node):
        return "ready"
    use = usage.nodes.get(node.id) or NodeUsage()
    given = len(usage.node_addresses.get(node.id, ())) if requirements.addressed else 0
    return refusal(requirements, node, use, given) or wish_refusal(preferences, node.id, use, usage)


def count_refusals(pool: FeasibleNodes, preferences: Preferences) -> dict[str, int]:
    """By filter, how many nodes it refuses, once no node is left that will do."""
    usage = pool.usage
    away = len(usage.rows) - len(usage.up)
    counts = {"ready": away} if away else {}
    if pool.best() is None:
        return {**counts, **{code: n for code, n in pool.counts.items() if n}}
    for node in usage.rows.values():
        if takes_tasks(node):
            code = pool.verdict(node.id) or wish_refusal(preferences, node.id, usage.nodes[node.id], usage)
            if code:
                counts[code] = counts.get(code, 0) + 1
    pool.meter.cost += len(usage.up)
    return counts


def texts(usage: ClusterUsage, preferences: Preferences, counts: Mapping[str, int]) -> tuple[Reason, ...]:
    """Reasons without the nearest misses, most nodes first; of as many, the filter first asked."""
    order = list(TEXTS)
    return tuple(
        Reason(code=code, nodes=n, text=_volumes(usage, preferences) if code == "volume" else TEXTS[code](n))
        for code, n in sorted(counts.items(), key=lambda item: (-item[1], order.index(item[0])))
        if n
    )


def reasons(
    usage: ClusterUsage,
    view: View,
    requirements: Requirements,
    preferences: Preferences,
    counts: Mapping[str, int],
    only: str = "",
) -> tuple[Reason, ...]:
    """Reasons with the nearest miss of each filter. Looks at every node, or at the one called ``only``."""
    nodes = [usage.rows[only]] if only in usage.rows else ([] if only else list(usage.rows.values()))
    refused: dict[str, list[Node]] = {}
    for node in nodes:
        code = refusal_of(usage, requirements, preferences, node)
        if code:
            refused.setdefault(code, []).append(node)
    out = []
    for reason in texts(usage, preferences, counts):
        miss = _MISSES.get(reason.code)
        found = refused.get(reason.code)
        best = (
            min(miss(usage, view, requirements, preferences, n) for n in found)[1] if miss and found else ""
        )
        out.append(Reason(code=reason.code, nodes=reason.nodes, text=reason.text, best=best))
    return tuple(out)


# --- nearest misses: (how far off, text), for one node a filter refused ------------------------------------------------
_Miss = tuple[float, str]


def _name(node: Node) -> str:
    return node.description.hostname or node.id


def _ready(
    usage: ClusterUsage, view: View, requirements: Requirements, preferences: Preferences, node: Node
) -> _Miss:
    order = ("paused", "drained", "disconnected", "unknown", "down")
    state = state_of(node)
    return (order.index(state) if state in order else len(order), f"{_name(node)} is {state}")


def _resources(
    usage: ClusterUsage, view: View, requirements: Requirements, preferences: Preferences, node: Node
) -> _Miss:
    use = usage.nodes.get(node.id) or NodeUsage()
    total = node.description
    wanted: list[tuple[str, int, int, Callable[[int], str]]] = [
        ("CPUs", requirements.cpu, total.nano_cpus - use.cpu, lambda n: f"{n / 1e9:g}"),
        ("of memory", requirements.memory, total.memory_bytes - use.memory, _size),
        *((kind, n, free_generic(node, use, kind), str) for kind, n in requirements.generic),
    ]
    short = [(what, n, max(0, free), show) for what, n, free, show in wanted if n and n > free]
    far = max((1 - free / n for _, n, free, _ in short), default=0.0)
    parts = [
        f"needs {show(n)} {what}, most free is {show(free)} on {_name(node)}" for what, n, free, show in short
    ]
    return (len(short) - 1 + far, "; ".join(parts))


def _size(n: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n >= size:
            return f"{n / size:.4g} {unit}"
    return f"{n} B"


def _plugins(
    usage: ClusterUsage, view: View, requirements: Requirements, preferences: Preferences, node: Node
) -> _Miss:
    missing = missing_plugins(requirements, node)
    text = " and ".join(f"{kind.lower()} plugin {name}" for kind, name in missing)
    return (len(missing), f"{_name(node)} has no {text}")


def _constraints(
    usage: ClusterUsage, view: View, requirements: Requirements, preferences: Preferences, node: Node
) -> _Miss:
    parts = []
    for text in requirements.constraints:
        constraint = parse_constraint(text)
        if constraint.matches(node):
            continue
        value = value_of(constraint, node)
        if value is None:
            parts.append(f"{constraint.key} is nothing a node has")
        elif not constraint.equal:
            parts.append(f"{constraint.key} is {value} on {_name(node)}, wanted any other")
        else:
            held = f"is {value}" if value else "is not set"
            parts.append(f"{constraint.key} {held} on {_name(node)}, wanted {constraint.value}")
    return (len(parts), "; ".join(parts))


def _platform(
    usage: ClusterUsage, view: View, requirements: Requirements, preferences: Preferences, node: Node
) -> _Miss:
    about = node.description
    architecture = ARCHITECTURES.get(about.architecture, about.architecture)
    wanted = " or ".join("/".join(part or "any" for part in p) for p in requirements.platforms)
    far = all(os and os != about.os for os, _ in requirements.platforms)
    return (far, f"{_name(node)} is {about.os}/{architecture}, wanted {wanted}")


def _ports(
    usage: ClusterUsage, view: View, requirements: Requirements, preferences: Preferences, node: Node
) -> _Miss:
    taken = [
        f"{port}/{protocol}"
        for protocol, port in requirements.ports
        if (protocol, port) in usage.nodes[node.id].ports
    ]
    return (len(taken), f"{' and '.join(taken)} {'is' if len(taken) == 1 else 'are'} taken on {_name(node)}")


def _held_ports(
    usage: ClusterUsage, view: View, requirements: Requirements, preferences: Preferences, node: Node
) -> _Miss:
    held = held_ports(requirements, node)
    return (len(held), "; ".join(ports.not_taken(ports.key(p), [(_name(node), p.holder)]) for p in held))


def _addresses(
    usage: ClusterUsage, view: View, requirements: Requirements, preferences: Preferences, node: Node
) -> _Miss:
    if not node.number:
        return (0, f"{_name(node)} has no number on the node network yet")
    return (1, f"every address of {_name(node)} is given")


def _replicas(
    usage: ClusterUsage, view: View, requirements: Requirements, preferences: Preferences, node: Node
) -> _Miss:
    has = usage.nodes[node.id].by_service.get(preferences.service_id, 0)
    return (has, f"{_name(node)} has {has} of at most {preferences.max_replicas}")


def _affinity(
    usage: ClusterUsage, view: View, requirements: Requirements, preferences: Preferences, node: Node
) -> _Miss:
    def name(service_id: str) -> str:
        service = view.services.get(service_id)
        return (service and service.spec.name) or "that does not exist"

    apart = [s for s in preferences.apart_hard if node.id in usage.hosting.get(s, ())]
    parts = [
        f"no task of service {name(s)} on {_name(node)}"
        for s in preferences.with_hard
        if node.id not in usage.hosting.get(s, ())
    ]
    parts += [f"a task of service {name(s)} is on {_name(node)}" for s in apart]
    return (len(parts), "; ".join(parts))


_MISSES: dict[str, Callable[[ClusterUsage, View, Requirements, Preferences, Node], _Miss]] = {
    "ready": _ready,
    "resources": _resources,
    "plugins": _plugins,
    "constraints": _constraints,
    "platform": _platform,
    "held-ports": _held_ports,
    "ports": _ports,
    "addresses": _addresses,
    "max-replicas": _replicas,
    "affinity": _affinity,
}


# --- volumes ----------------------------------------------------------------------------------------------------------------
def _volumes(usage: ClusterUsage, preferences: Preferences) -> str:
    return "; ".join(where(usage, name) for name in preferences.held)


def where(usage: ClusterUsage, volume: str) -> str:
    """Which node holds a volume, and why it takes no task when it does not: ``volume "data" is on node n1, which is down``."""
    holders = [usage.rows[id_] for id_ in usage.volumes.get(volume, ())]
    if not holders:
        return f'volume "{volume}" is on no node'
    node = min(holders, key=lambda n: (not takes_tasks(n), n.id))
    state = state_of(node)
    return f'volume "{volume}" is on node {_name(node)}' + (f", which is {state}" if state else "")
