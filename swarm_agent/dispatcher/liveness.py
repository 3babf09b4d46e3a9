"""Who has been silent for too long, as far as that says something of them and not of whoever listens. Pure: told the time, asked for a verdict.

A leader that hears nobody is more likely deaf than alone: its loop stands still, its host is cut off. So when most nodes fall silent
within a few beats of each other, or its own node does, which it hears over the same loop, nobody is lost until it has asked: the other managers, whether
it still leads, and the nodes, by giving them the time a new leader would give.
"""

from __future__ import annotations

from collections.abc import Iterable

SILENCE = 0.7  # of a heartbeat period (five beats long) without a beat: too long
OVERDUE = 0.35  # so much, and a node counts among those that fell silent together with one that was silent for too long
ASKING = 0.8  # periods that nodes have to answer, as after a change of leaders
AGAIN = 3  # times a leader asks while it does not hear itself; then it is not the loop that is deaf


class Liveness:
    """Times are seconds of one clock. ``own``: the node this manager runs on, "" when it is not known."""

    def __init__(self, own: str = "") -> None:
        self._own = own
        self._heard: dict[str, float] = {}  # node -> when last
        self._deadline: dict[str, float] = {}  # node -> after which its silence is too long
        self._excused: set[str] = set()  # they said that they would be silent
        self._asking = 0  # so many times in a row

    def heard(self, node_id: str, now: float, period: float) -> None:
        self._excused.discard(node_id)
        self._heard[node_id] = now
        self._deadline[node_id] = now + period * SILENCE

    def excuse(self, node_id: str, until: float) -> None:
        """It said it would be silent until then."""
        self._excused.add(node_id)
        self._deadline[node_id] = max(until, self._deadline.get(node_id, until))

    def extend(self, node_id: str, until: float) -> None:
        """It has at least so long to be heard again."""
        if node_id in self._deadline:
            self._deadline[node_id] = max(until, self._deadline[node_id])

    def wait_for(self, node_id: str, until: float) -> None:
        """Of one that is not heard yet, or whose loss could not be written down: at this time it is lost."""
        self._deadline.setdefault(node_id, until)

    def forget(self, node_id: str) -> None:
        self._excused.discard(node_id)
        self._heard.pop(node_id, None)
        self._deadline.pop(node_id, None)

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._deadline

    def paused(self, seconds: float) -> None:
        """We did not run for so long: nobody could be heard."""
        for times in (self._deadline, self._heard):
            for node_id in times:
                times[node_id] += seconds

    def lost(self, now: float) -> list[str]:
        """Those whose time is over."""
        return [node_id for node_id, deadline in self._deadline.items() if deadline < now]

    def silent(self, now: float, after: float) -> frozenset[str]:
        """Those not heard for ``after`` seconds, also when nobody would call them lost yet."""
        never = (n for n in self._deadline if n not in self._heard)
        return frozenset([*(n for n, at in self._heard.items() if now - at > after), *never])

    def in_doubt(self, lost: Iterable[str], now: float, period: float) -> bool:
        """Whether it is rather we who are deaf, now that these seem lost; each time it is not, the next doubt is a first one."""
        overdue = {n for n, at in self._heard.items() if now - at > period * OVERDUE} - self._excused
        overdue |= set(lost)
        if self._own in overdue:
            return self._asking < AGAIN
        if len(overdue) > 1 and 2 * len(overdue) > len(self._deadline):
            return self._asking < 1
        self._asking = 0
        return False

    def ask(self, now: float, period: float) -> None:
        """Everybody gets until then to be heard."""
        self._asking += 1
        for node_id, deadline in self._deadline.items():
            self._deadline[node_id] = max(deadline, now + period * ASKING)
