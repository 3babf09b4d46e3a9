"""Replicated services: as many numbered places as declared."""

from __future__ import annotations

import itertools
from collections import defaultdict

from swarm_agent.control.orchestrator.slot import taken
from swarm_agent.control.orchestrator.slot_index import SlotIndex
from swarm_agent.control.tasks import aim, live, make
from swarm_agent.control.transaction import Key, Transaction
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.options import options
from swarm_agent.objects.records import Service


def scale(p: Transaction, service: Service, seen: SlotIndex) -> None:
    """Make or remove slots."""
    wanted = defaults.replicas(service.spec)
    most = p.portion  # made or removed in one pass
    waiting = seen.waiting  # they have a live task
    open_taken = {s for s, tasks in seen.open.items() if s in waiting or taken(service, tasks)}
    have = len(seen.present) + len(seen.older) + len(open_taken)
    if have < wanted:
        free = (
            n
            for n in range(1, wanted + have + 1)
            if n not in seen.present and n not in seen.older and n not in open_taken
        )
        if wanted - have > most:
            p.more(Key("service", service.id))
        singleton = options(service.spec.labels).singleton  # whatever ran before must have ended
        numbers = list(itertools.islice(free, min(wanted - have, most)))
        for number in numbers:
            task = make(p, service, number, ready=singleton, cause="scale" if have else "create")
            if number in seen.open:
                seen.look_again(p, service, [number])
            else:
                seen.add(number, task)
    elif have > wanted:
        surplus = _surplus(seen, open_taken, wanted)
        if len(surplus) > most:
            p.more(Key("service", service.id))
        for slot in surplus[:most]:
            for task in p.at(service.id, slot):
                aim(p, task, TaskState.REMOVE)
        seen.look_again(p, service, surplus[:most])


def _surplus(seen: SlotIndex, open_taken: set[int | str], wanted: int) -> list[int | str]:
    """Which slots go: those on the most crowded nodes, not running before running, high numbers first (behaviour.md 9.4)."""
    places = [
        (task.status.state != TaskState.RUNNING, slot, task.node_id)
        for settled in (seen.present, seen.older)
        for slot, task in settled.items()
    ]
    for slot in open_taken:
        alive = [t for t in seen.open[slot] if live(t)]
        node_ids = {t.node_id for t in alive}
        running = any(t.status.state == TaskState.RUNNING for t in alive)
        places.append((not running, slot, node_ids.pop() if len(node_ids) == 1 else ""))
    places.sort()
    copies: defaultdict[str, int] = defaultdict(int)
    ranked = []
    for order, (_, slot, node_id) in enumerate(places):
        ranked.append((copies[node_id] if node_id else 1 << 30, order, slot))
        copies[node_id] += 1
    ranked.sort()
    return [slot for _, _, slot in ranked[wanted:]]
