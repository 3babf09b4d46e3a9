"""Nodes that shrank: what they run must fit into what they have (BEHAVIOUR 13.1)."""

from __future__ import annotations

from swarm_agent.control.ledger import NodeUse, reserved
from swarm_agent.control.passes import Pass
from swarm_agent.control.slots import reject
from swarm_agent.control.tasks import live
from swarm_agent.objects.records import Node


def fit_in(p: Pass, node: Node) -> None:
    """Reject the newest tasks of an active node until the others' reservations fit; their places are filled elsewhere."""
    if node.spec.availability != "active" or not node.description.nano_cpus:
        return
    use = p.ledger.nodes[node.id]
    if _fits(node, use):
        return
    tasks = [t for t in p.view.tasks.by("node", node.id) if live(t) and not t.status.state.terminal]
    p.looked(len(tasks))
    for task in sorted(tasks, key=lambda t: (t.created_at, t.id), reverse=True):
        revision = p.ledger.revision(task)
        if _fits(node, use):
            return
        if revision is not None and reserved(revision) != (0, 0):
            p.view.group(task.service_id)
            reject(p, task)


def _fits(node: Node, use: NodeUse) -> bool:
    return use.cpu <= node.description.nano_cpus and use.memory <= node.description.memory_bytes
