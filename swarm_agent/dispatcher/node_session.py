"""What the leader knows of one node's open stream: what it was told last, and what it is to look at again."""

from __future__ import annotations

import asyncio

from swarm_agent.objects.records import Node
from swarm_agent.rpc.messages import Down, Hello


class NodeSession:
    """One node's open stream."""

    def __init__(self, node_id: str, session_id: str, hello: Hello) -> None:
        self.node_id = node_id
        self.level = hello.feature_level
        self.description = hello.description  # as told last
        self.leaving = False
        self.period_s = 0.0  # as told when it began: how often the node beats, until it says hello again
        self.id = session_id
        self.wake = asyncio.Event()
        self.closed = False
        self.sequence = 0
        self.sent: dict[str, int] = {}  # task id -> desired state as last told
        self.needs: dict[str, tuple[str, ...]] = {}  # task id -> contents it needs, of those that need any
        self.contents: set[str] = set()  # ids of contents the node has
        self.tasks: dict[str, None] | None = None  # task ids to look at; None: all
        self.network_dirty = True
        self.managers_dirty = True
        self.node_dirty = True
        self.last_view: bytes = b""
        self.last_managers: object = None
        self.last_node: Node | None = None
        self.last_silent: tuple[str, ...] | None = None
        self.extra: list[Down] = []

    def touch(self) -> None:
        self.wake.set()
