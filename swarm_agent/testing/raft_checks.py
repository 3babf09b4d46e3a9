"""What must hold after every step of a raft cluster, whatever the network and the disks did.

``RaftChecks`` looks at the members of a ``RaftCluster`` from outside, as nobody in a real cluster could, and raises ``Violation`` with the
first thing that is wrong. Names in brackets are the properties of the Raft paper, figure 3.
"""

from __future__ import annotations

from swarm_agent.raft import RaftNode
from swarm_agent.raft.core import Entry, Role
from swarm_agent.testing.raft_cluster import RaftCluster, RaftHost


class Violation(AssertionError):
    """Raft is broken."""


class RaftChecks:
    def __init__(self, cluster: RaftCluster, *, thorough_every: int = 50) -> None:
        self._cluster = cluster
        self._leaders: dict[int, int] = {}  # term -> who led in it
        self._committed: dict[int, Entry] = {}
        self._highest = 0
        self._seen_commit: dict[int, tuple[RaftNode, int]] = {}
        self._acknowledged: dict[bytes, int] = {}
        self.highest_acknowledged = 0
        self._steps = 0
        self._thorough_every = thorough_every
        cluster.watch_apply = self._applied

    def __call__(self) -> None:
        """After every step; the expensive part now and then."""
        self._steps += 1
        for node in self._cluster.nodes:
            self._check_commit(node)
            if node.core.role is Role.LEADER:
                self._check_leader(node)
        if self._steps % self._thorough_every == 0:
            self.thorough()

    def thorough(self) -> None:
        nodes = self._cluster.nodes
        for node in nodes:
            node.core.validate()
            if node.status().failure:
                raise Violation(f"member {node.core.raft_id} stopped by itself: {node.status().failure}")
        for i, a in enumerate(nodes):
            for b in nodes[i + 1 :]:
                self._check_matching(a, b)

    def acknowledged(self, data: bytes, index: int) -> None:
        """A proposer was told that ``data`` is in, at ``index``."""
        self._acknowledged[data] = index
        self.highest_acknowledged = max(self.highest_acknowledged, index)
        entry = self._committed.get(index)
        if entry is None or entry.data != data:
            raise Violation(f"acknowledged {data!r} at {index}, where {entry} is committed")

    def read(self, index: int, floor: int) -> None:
        """A read at ``index`` began when ``floor`` was the highest acknowledged index."""
        if index < floor:
            raise Violation(f"a read at {index} missed a write acknowledged before it, at {floor}")

    def finished(self) -> None:
        """The cluster has healed and converged: everything acknowledged is there, once, everywhere."""
        self.thorough()
        states = [(host.raft_id, host.fsm.applied) for host in self._cluster.hosts if host.node is not None]
        if not states:
            return
        reference = states[0][1]
        for raft_id, applied in states:
            if applied != reference:
                raise Violation(f"members {states[0][0]} and {raft_id} ended in different states")
        where = {data: index for index, _, data in reference}
        if len(where) != len(reference):
            raise Violation("a proposal was applied twice")
        for data, index in self._acknowledged.items():
            if where.get(data) != index:
                raise Violation(
                    f"acknowledged {data!r} at {index} is {'lost' if data not in where else 'moved'}"
                )

    # -- the properties -----------------------------------------------------------------------------------------------

    def _check_leader(self, node: RaftNode) -> None:
        """(Election Safety) at most one leader a term; (Leader Completeness) it has all that is committed."""
        core = node.core
        known = self._leaders.get(core.term)
        if known == core.raft_id:
            return
        if known is not None:
            raise Violation(f"members {known} and {core.raft_id} both lead in term {core.term}")
        self._leaders[core.term] = core.raft_id
        for index in range(core.log.base_index, self._highest + 1):
            entry = self._committed.get(index)
            if entry is not None and entry.term < core.term and core.log.term(index) != entry.term:
                raise Violation(
                    f"member {core.raft_id} leads term {core.term} without committed entry {index}"
                )

    def _check_commit(self, node: RaftNode) -> None:
        """(State Machine Safety) what one member holds committed, no other ever replaces."""
        log = node.core.log
        known = self._seen_commit.get(node.core.raft_id)
        seen = known[1] if known is not None and known[0] is node else log.base_index
        if log.commit < seen:
            raise Violation(f"member {node.core.raft_id}: commit went back from {seen} to {log.commit}")
        for entry in log.slice(max(seen, log.base_index) + 1, log.commit):
            first = self._committed.setdefault(entry.index, entry)
            if first != entry:
                raise Violation(f"entry {entry.index} is committed as {first} and as {entry}")
        self._highest = max(self._highest, log.commit)
        self._seen_commit[node.core.raft_id] = (node, log.commit)

    def _check_matching(self, a: RaftNode, b: RaftNode) -> None:
        """(Log Matching) where two logs agree on a term, they agree on everything before."""
        low = max(a.core.log.base_index, b.core.log.base_index) + 1
        high = min(a.core.log.last_index, b.core.log.last_index)
        if high < low:
            return
        agreed = False
        mine, theirs = a.core.log.slice(low, high), b.core.log.slice(low, high)
        for x, y in zip(reversed(mine), reversed(theirs), strict=True):
            agreed = agreed or x.term == y.term
            if agreed and x != y:
                raise Violation(
                    f"members {a.core.raft_id} and {b.core.raft_id} agree above, not at {x.index}"
                )

    def _applied(self, host: RaftHost, index: int, term: int, data: bytes) -> None:
        entry = self._committed.setdefault(index, Entry(index, term, 0, data))
        if (entry.term, entry.data) != (term, data):
            raise Violation(f"member {host.raft_id} applied another entry {index} than was committed")
