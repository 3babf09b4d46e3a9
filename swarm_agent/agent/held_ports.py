"""Ports that programs of this host hold, as the node describes itself: those seen at two looks in a row, so that a program that comes and goes
writes nothing into the cluster's state, and without process ids, so that one that is started anew writes nothing either. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from swarm_agent.objects.records import HeldPort

MOST = 256
"""So many are told, those with the lowest numbers first."""
_PID = re.compile(r" \(pid \d+\)$")


class HeldPorts:
    """``ports``: sorted by protocol and number."""

    def __init__(self) -> None:
        self._last: Mapping[tuple[str, int], str] | None = None
        self.ports: tuple[HeldPort, ...] = ()

    def look(self, holders: Mapping[tuple[str, int], str]) -> bool:
        """Take in who holds what now, by (protocol, number); whether ``ports`` changed. The first look counts at once."""
        last = holders if self._last is None else self._last
        self._last = holders
        steady = sorted(key for key in holders if key in last)[:MOST]
        ports = tuple(
            HeldPort(protocol=key[0], number=key[1], holder=_PID.sub("", holders[key])) for key in steady
        )
        changed = ports != self.ports
        self.ports = ports
        return changed
