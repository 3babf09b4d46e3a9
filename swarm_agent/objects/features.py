"""Feature levels: what a cluster of mixed releases may write.

Every release knows levels up to ``LEVEL``. The cluster record carries the level all its managers know, raised by the leader
when the last one does, never lowered. Nobody writes a kind or a field that came with a level above the cluster's; a
manager whose own level is below the cluster's does not start as one. A manager can be held at a lower level
(``feature_level`` in agent.toml) while its cluster should remain open to a downgrade.
"""

from __future__ import annotations

FIRST = 1
COMPACT_STATUS = 2  # ``SetStatus`` in the log
SNAPSHOT_FRAMES = 2  # snapshots that say their format; the first release's are one msgpack array
NODE_LEVELS = 2  # ``Node.feature_level``
AUTOLOCK = 2  # ``Cluster.unlock``
ORCHESTRATION = 3  # see BRINGS
SPEC_VERSIONS = 4  # of secrets and configs
HOST_FACTS = 4  # what a node says of its host beyond its engine: ``NodeDescription.held_ports`` and the like

LEVEL = 4
"""The highest level this release knows."""

BRINGS: dict[int, tuple[str, ...]] = {
    1: ("everything of the first release",),
    2: (
        "a task's status written alone instead of with the whole task",
        "snapshots in frames",
        "a node's level in its record",
        "autolock and its unlock key",
    ),
    3: (
        "global services, jobs, schedules, rollback",
        "secrets and configs with versions",
        "spread preferences, generic resources, templates, what labels of the prefix swarm-agent. ask for",
        "numbers of revisions, back-off of crash loops, drain and rebalance as rolling moves, fencing",
        "since when a node takes tasks",
    ),
    4: (
        "what a node's host uses itself: the ports its programs hold, its addresses and routes",
        "which version of a secret or config its labels were written at",
        "why a node takes no tasks, and why its manager side does not work",
    ),
}
"""What each level brings, for people."""


def too_low(own: int, cluster: int, who: str = "this manager") -> str:
    """What to tell whoever runs a manager the cluster has gone past; "" when it has not."""
    if own >= cluster:
        return ""
    known = f"{who} knows feature level {own}, the swarm is at level {cluster}"
    if cluster <= LEVEL:
        return f"{known}: raise or remove feature_level in its agent.toml and restart it, or upgrade it"
    return (
        f"{known}: install a release that knows level {cluster} (the other managers run one) and restart it"
    )
