"""Enumerations, with Swarm's numbers where order matters and Docker's words at the edge."""

from __future__ import annotations

import enum


class TaskState(enum.IntEnum):
    """Where a task stands. Only ever grows; the gaps are Swarm's."""

    NEW = 0
    PENDING = 64
    ASSIGNED = 192
    ACCEPTED = 256
    PREPARING = 320
    READY = 384
    STARTING = 448
    RUNNING = 512
    COMPLETE = 576
    SHUTDOWN = 640
    FAILED = 704
    REJECTED = 768
    REMOVE = 800  # desired only
    ORPHANED = 832

    @property
    def word(self) -> str:
        return self.name.lower()

    @property
    def terminal(self) -> bool:
        """The container has ended or will never start."""
        return self > TaskState.RUNNING


class NodeState(enum.IntEnum):
    UNKNOWN = 0
    DOWN = 1
    READY = 2
    DISCONNECTED = 3

    @property
    def word(self) -> str:
        return self.name.lower()


ROLES = ("worker", "manager")
AVAILABILITIES = ("active", "pause", "drain")
RESTART_CONDITIONS = ("none", "on-failure", "any")
FAILURE_ACTIONS = ("pause", "continue", "rollback")
UPDATE_ORDERS = ("stop-first", "start-first")
PROTOCOLS = ("tcp", "udp", "sctp")
PUBLISH_MODES = ("ingress", "host")
ENDPOINT_MODES = ("vip", "dnsrr")
MOUNT_TYPES = ("bind", "volume", "tmpfs", "npipe", "cluster")
