"""What a change of a node does to the tasks that stand there: it shrank (behaviour.md 13.1), or it is gone for good (behaviour.md 17.5)."""

from __future__ import annotations

from collections import Counter

from swarm_agent.control.orchestrator.slot import evict
from swarm_agent.control.scheduler.usage import NodeUsage, reserved
from swarm_agent.control.tasks import at_work, observe
from swarm_agent.control.transaction import Key, Transaction
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import Node

PATIENCE = 24 * 3600 * defaults.SECOND


def fit_in(p: Transaction, node: Node) -> None:
    """Reject the newest tasks of an active node until the others' reservations fit; their places are filled elsewhere."""
    if node.spec.availability != "active" or not node.description.nano_cpus:
        return
    use = p.usage.nodes[node.id]
    if not _short(node, use):
        return
    tasks = [t for t in p.view.tasks.by("node", node.id) if at_work(t)]
    p.charge(len(tasks))
    for task in sorted(tasks, key=lambda t: (t.created_at, t.id), reverse=True):
        revision, service = p.usage.revision(task), p.view.services.get(task.service_id)
        short = _short(node, use)
        if not short:
            return
        if revision is None or service is None:
            continue
        cpu, memory = reserved(revision)
        takes = {kind for kind, amount in (("cpu", cpu), ("memory", memory)) if amount} | {
            g.kind for g in task.generic
        }
        if takes & short:
            p.view.group(task.service_id)
            evict(p, service, task)


def _short(node: Node, use: NodeUsage) -> set[str]:
    """Of what more is given than there is: "cpu", "memory", kinds of generic resources."""
    about = node.description
    short = set()
    if use.cpu > about.nano_cpus:
        short.add("cpu")
    if use.memory > about.memory_bytes:
        short.add("memory")
    named = {(g.kind, g.name) for g in about.generic if g.name}
    counts = Counter({g.kind: g.count for g in about.generic if not g.name})
    short |= {kind for kind, name in use.names if (kind, name) not in named}
    return short | {kind for kind, count in use.generic.items() if count > counts[kind]}


def orphan(p: Transaction, node: Node) -> None:
    """A node that has been down for a day: what ran there is given up, and its addresses are free again."""
    since = node.status.since
    if node.status.state != NodeState.DOWN or not since:
        return
    if p.now < since + PATIENCE:
        p.wake(Key("node", node.id), since + PATIENCE)
        return
    for task in p.view.tasks.by("node", node.id):
        if p.full:
            p.more(Key("node", node.id))
            return
        if not task.status.state.terminal:
            p.view.group(task.service_id)
            observe(p, task, TaskState.ORPHANED, "its node has been down for a day")
