"""Where tasks go: filters say which nodes can, ranking says which should, and each refusal leaves its reason.

Tasks of one service and revision are placed as a group: the filters look at every node once, then a heap hands out the
tasks, each to the node that is then best (fewest recent failures, fewest tasks of the service, fewest tasks).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from swarm_agent.control.allocate import Exhausted, allocate_task
from swarm_agent.control.ledger import FAILURE_MEMORY, NodeUse, host_ports, reserved
from swarm_agent.control.passes import MAX_LOOKS, Pass
from swarm_agent.objects import defaults
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import Node, Reason, Revision, Task

FAILURES_THAT_COUNT = 5
_READY = NodeState.READY
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class _Filter(NamedTuple):
    code: str
    applies: Callable[[Revision], bool]
    passes: Callable[[Node, NodeUse, Revision, str], bool]
    explain: Callable[[int], str]


def place(p: Pass, tasks: list[Task]) -> list[Task]:
    """Assign every task that can be; the others get PENDING with the reasons. Returns those this pass has no room for."""
    if not tasks:
        return []
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.revision_id, []).append(task)
    left: list[Task] = []
    ready, away = _ready_nodes(p)
    for revision_id, group in groups.items():
        revision = p.view.revisions.get(revision_id)
        if revision is None:
            continue
        if p.looks >= MAX_LOOKS and not any(t.id in p.unplaced for t in group):
            left += group
            continue
        p.view.group(group[0].service_id)
        for preset in sorted({t.preset for t in group}):
            some = sorted((t for t in group if t.preset == preset), key=lambda t: t.slot)
            at = [(n, u) for n, u in ready if n.id == preset] if preset else ready
            left += _place_group(p, revision, some, at, (1 if preset and not at else away))
    return left


def _ready_nodes(p: Pass) -> tuple[list[tuple[Node, NodeUse]], int]:
    """The nodes that take tasks, and how many others there are."""
    nodes = list(p.view.nodes.all())
    p.looked(len(nodes))
    ready = [
        (n, p.ledger.nodes[n.id])
        for n in nodes
        if n.status.state == _READY and n.spec.availability == "active"
    ]
    return ready, len(nodes) - len(ready)


def _place_group(
    p: Pass, revision: Revision, tasks: list[Task], ready: list[tuple[Node, NodeUse]], away: int
) -> list[Task]:
    filters = [f for f in FILTERS[1:] if f.applies(revision)]
    service_id = revision.service_id
    p.looked(len(ready))
    heap: list[tuple[int, int, int, str]] = []
    refused: dict[str, int] = {FILTERS[0].code: away} if away else {}
    for node, use in ready:
        code = _refusal(filters, node, use, revision, service_id) if filters else ""
        if code:
            refused[code] = refused.get(code, 0) + 1
        else:
            heap.append(_rank(p, node, use, revision))
    heapq.heapify(heap)
    trouble = ""
    left = []
    for task in tasks:
        if not p.room_for(task):
            left.append(task)
            continue
        while heap:
            node_id = heap[0][-1]
            best = p.view.nodes.get(node_id)
            use = p.ledger.nodes[node_id]
            code = "" if best is None else _refusal(filters, best, use, revision, service_id)
            if best is None or code:
                refused[code] = refused.get(code, 0) + 1
                heapq.heappop(heap)
                continue
            try:
                _assign(p, task, best, revision)
            except Exhausted as err:
                trouble = str(err)
                heap.clear()
                break
            heapq.heapreplace(heap, _rank(p, best, use, revision))
            break
        else:
            pend(p, task, refused)
            continue
        if trouble:
            pend(p, task, refused, trouble)
    return left


def _refusal(filters: list[_Filter], node: Node, use: NodeUse, revision: Revision, service_id: str) -> str:
    return next((f.code for f in filters if not f.passes(node, use, revision, service_id)), "")


def _rank(p: Pass, node: Node, use: NodeUse, revision: Revision) -> tuple[int, int, int, str]:
    failures = 0
    if use.failures:
        recent = sum(1 for at in use.failures.get(revision.id, ()) if at > p.now - FAILURE_MEMORY)
        failures = recent if recent >= FAILURES_THAT_COUNT else 0
    return (failures, use.by_service.get(revision.service_id, 0), use.active, node.id)


def _assign(p: Pass, task: Task, node: Node, revision: Revision) -> None:
    status = msgspec.structs.replace(
        task.status,
        state=TaskState.ASSIGNED,
        message="scheduler assigned task to node",
        err="",
        timestamp=p.now,
    )
    placed = msgspec.structs.replace(task, node_id=node.id, status=status, reasons=())
    allocate_task(p, placed, revision)


def pend(p: Pass, task: Task, refused: dict[str, int], trouble: str = "") -> None:
    """Say why a task is not placed; written only when the reason changed."""
    ordered = sorted(refused.items(), key=lambda item: -item[1])
    texts = {f.code: f.explain for f in FILTERS}
    reasons = tuple(Reason(code=code, nodes=n, text=texts[code](n)) for code, n in ordered if code)
    if trouble:
        reasons = (Reason(code="address", nodes=0, text=trouble),)
    explanation = "; ".join(r.text for r in reasons)
    err = f"no suitable node ({explanation})" if explanation else "no suitable node"
    if task.status.state == TaskState.PENDING and task.status.err == err and task.reasons == reasons:
        return
    status = msgspec.structs.replace(
        task.status, state=TaskState.PENDING, message="pending task scheduling", err=err, timestamp=p.now
    )
    p.put(msgspec.structs.replace(task, status=status, reasons=reasons))


# --- the filters, in Swarm's order --------------------------------------------------------------------------------------
def _ready(node: Node, use: NodeUse, revision: Revision, service_id: str) -> bool:  # noqa: ARG001
    return node.status.state == NodeState.READY and node.spec.availability == "active"


def _fits(node: Node, use: NodeUse, revision: Revision, service_id: str) -> bool:  # noqa: ARG001
    cpu, memory = reserved(revision)
    total = node.description
    return (not cpu or total.nano_cpus - use.cpu >= cpu) and (
        not memory or total.memory_bytes - use.memory >= memory
    )


def _plugins(node: Node, use: NodeUse, revision: Revision, service_id: str) -> bool:  # noqa: ARG001
    have = {(p.type, p.name) for p in node.description.plugins}
    return all(
        (kind, name) in have or (kind, f"{name}:latest") in have or not any(k == kind for k, _ in have)
        for kind, name in _wanted_plugins(revision)
    )


def _wanted_plugins(revision: Revision) -> set[tuple[str, str]]:
    wanted = set()
    for mount in defaults.container(revision.template).mounts or ():
        driver = (
            mount.volume_options
            and mount.volume_options.driver_config
            and mount.volume_options.driver_config.name
        )
        if mount.type == "volume" and driver and driver != "local":
            wanted.add(("Volume", driver))
    log = revision.template.log_driver
    if log is not None and log.name not in (None, "", "none", "default"):
        wanted.add(("Log", str(log.name)))
    return wanted


def _constraints(node: Node, use: NodeUse, revision: Revision, service_id: str) -> bool:  # noqa: ARG001
    return node_matches(defaults.constraints(revision.template), node)


def _platform(node: Node, use: NodeUse, revision: Revision, service_id: str) -> bool:  # noqa: ARG001
    architecture = _ARCHITECTURES.get(node.description.architecture, node.description.architecture)
    for platform in (revision.template.placement and revision.template.placement.platforms) or ():
        wanted = _ARCHITECTURES.get(platform.architecture or "", platform.architecture)
        if (not platform.os or platform.os == node.description.os) and (not wanted or wanted == architecture):
            return True
    return False


def _host_ports(node: Node, use: NodeUse, revision: Revision, service_id: str) -> bool:  # noqa: ARG001
    return not any(port in use.ports for port in host_ports(revision))


def _max_replicas(node: Node, use: NodeUse, revision: Revision, service_id: str) -> bool:  # noqa: ARG001
    limit = (revision.template.placement and revision.template.placement.max_replicas) or 0
    return use.by_service.get(service_id, 0) < limit


def _on_nodes(text: str) -> Callable[[int], str]:
    return lambda n: f"{text} on {n} node{'' if n == 1 else 's'}"


FILTERS: tuple[_Filter, ...] = (
    _Filter(
        "ready",
        lambda r: True,  # noqa: ARG005
        _ready,
        lambda n: f"{n} node{'' if n == 1 else 's'} not available for new tasks",
    ),
    _Filter("resources", lambda r: reserved(r) != (0, 0), _fits, _on_nodes("insufficient resources")),
    _Filter("plugins", lambda r: bool(_wanted_plugins(r)), _plugins, _on_nodes("missing plugin")),
    _Filter(
        "constraints",
        lambda r: bool(defaults.constraints(r.template)),
        _constraints,
        _on_nodes("scheduling constraints not satisfied"),
    ),
    _Filter(
        "platform",
        lambda r: bool(r.template.placement and r.template.placement.platforms),
        _platform,
        _on_nodes("unsupported platform"),
    ),
    _Filter("ports", lambda r: bool(host_ports(r)), _host_ports, _on_nodes("host-mode port already in use")),
    _Filter(
        "max-replicas",
        lambda r: bool(r.template.placement and r.template.placement.max_replicas),
        _max_replicas,
        lambda n: "max replicas per node limit exceed",  # noqa: ARG005 - Docker's text has no count
    ),
)
