"""Host-mode ports of nobody's choice: this node picks them, one for each task, and says so in the task's status.

The leader sends what was said back in the network view, where such a port is like any other of host mode. A port that was said stays the task's for
its life, whatever becomes of the daemon.
"""

from __future__ import annotations

import socket
import zlib
from collections.abc import Callable

import msgspec

from swarm_agent.objects import defaults
from swarm_agent.objects.errors import Unavailable
from swarm_agent.objects.records import Revision
from swarm_agent.objects.specs import PortConfig

FIRST, LAST = 49153, 65535  # as Docker's engine picks them

IsFree = Callable[[str, int], bool]
"""(protocol, port): whether no program of this host listens there."""


def nobody_listens(protocol: str, port: int) -> bool:
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


class HostPorts:
    """Who has which of them."""

    def __init__(self, is_free: IsFree) -> None:
        self._is_free = is_free
        self._held: dict[tuple[str, int], str] = {}  # (protocol, port) -> task

    def remember(self, task_id: str, ports: tuple[PortConfig, ...]) -> None:
        """What a task said before this daemon began."""
        for port in ports:
            self._held.setdefault((defaults.protocol(port), port.published_port or 0), task_id)

    def pick(self, task_id: str, revision: Revision, known: tuple[PortConfig, ...]) -> tuple[PortConfig, ...]:
        """A port for each the service leaves open; ``known`` are the task's from before.

        Raises:
            Unavailable: none is free now.
        """
        wanted = [
            p
            for p in revision.endpoint.ports or ()
            if defaults.publish_mode(p) == "host" and not p.published_port
        ]
        if len(known) == len(wanted):
            self.remember(task_id, known)
            return known
        return tuple(msgspec.structs.replace(p, published_port=self._one(task_id, p)) for p in wanted)

    def release(self, task_id: str) -> None:
        for key in [key for key, owner in self._held.items() if owner == task_id]:
            del self._held[key]

    def _one(self, task_id: str, wanted: PortConfig) -> int:
        protocol, room = defaults.protocol(wanted), LAST - FIRST + 1
        begin = zlib.crc32(f"{task_id}/{protocol}/{wanted.target_port}".encode())
        for step in range(room):
            port = FIRST + (begin + step) % room
            if (protocol, port) not in self._held and self._is_free(protocol, port):
                self._held[protocol, port] = task_id
                return port
        raise Unavailable(f"no {protocol} port of this host between {FIRST} and {LAST} is free")
