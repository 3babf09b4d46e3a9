"""What must hold after every step of a raft cluster, whatever the network and the disks did.

``RaftChecks`` looks at the members of a ``RaftCluster`` from outside, as nobody in a real cluster could, and raises ``Violation`` with the
first thing that is wrong. Names in brackets are the properties of the Raft paper, figure 3. The cost follows what changed: a member whose
outline is as it was costs one comparison, every entry is looked at once per log it enters.
"""

from __future__ import annotations

import msgspec

from swarm_agent.raft import RaftNode, wire
from swarm_agent.raft.core import AppendReply, Entry, EntryKind, Role, VoteReply
from tests.lib.key_value import chain
from tests.lib.raft_cluster import RaftCluster, RaftHost

Outline = tuple[int, Role, int, int, int, int]


class Violation(AssertionError):
    """Raft is broken."""


class _Seen(msgspec.Struct):
    """How far a member was looked at."""

    node: RaftNode
    outline: Outline
    term: int
    commit: int
    last_index: int
    last_term: int


class RaftChecks:
    def __init__(self, cluster: RaftCluster, *, thorough_every: int = 250) -> None:
        self._cluster = cluster
        self._leaders: dict[int, int] = {}  # term -> who led in it
        self._entries: dict[tuple[int, int], tuple[Entry, int]] = {}  # (index, term) -> entry, term before it
        self._committed: dict[int, Entry] = {}
        self._highest = 0
        self._proposals: set[bytes] = set()
        self._history = {0: (0, 0)}  # index -> count and digest of the data entries up to it
        self._chained = 0
        self._seen: dict[int, _Seen] = {}
        self._steps = 0
        self._thorough_every = thorough_every
        self.highest_acknowledged = 0
        self.truncations = 0
        """Times that a member's log lost entries to another leader's."""
        self.conf_entries = 0
        cluster.watch_apply = self._applied
        cluster.net.on_frame = self._frame

    @property
    def elections(self) -> int:
        return len(self._leaders)

    def __call__(self) -> None:
        """After every step; the expensive part now and then."""
        self._steps += 1
        for host in self._cluster.hosts:
            node = host.node
            if node is None:
                continue
            core = node.core
            log = core.log
            outline = (core.term, core.role, log.commit, log.last_index, log.last_term, log.base_index)
            seen = self._seen.get(host.raft_id)
            if seen is None or seen.node is not node:
                base = log.base_index
                seen = self._seen[host.raft_id] = _Seen(node, outline, 0, base, base, log.base_term)
            elif seen.outline == outline:
                continue
            seen.outline = outline
            self._check_term(node, seen)
            self._check_log(node, seen)
            self._check_commit(node, seen)
            if core.role is Role.LEADER:
                self._check_leader(node)
        if self._steps % self._thorough_every == 0:
            self.thorough()

    def thorough(self) -> None:
        for host in self._cluster.hosts:
            node = host.node
            if node is None:
                continue
            if failure := node.status().failure:
                if not host.disk_failed:
                    raise Violation(f"member {host.raft_id} stopped by itself: {failure}")
                continue
            node.core.validate()
            self._check_state(host)

    def acknowledged(self, data: bytes, index: int) -> None:
        """A proposer was told that ``data`` is in, at ``index``."""
        self.highest_acknowledged = max(self.highest_acknowledged, index)
        entry = self._committed.get(index)
        if entry is None or entry.data != data:
            raise Violation(f"acknowledged {data!r} at {index}, where {entry} is committed")

    def read(self, index: int, floor: int, applied: int) -> None:
        """A read at ``index`` began when ``floor`` was the highest acknowledged index."""
        if index < floor:
            raise Violation(f"a read at {index} missed a write acknowledged before it, at {floor}")
        if applied < index:
            raise Violation(f"a read barrier at {index} returned with {applied} applied")

    def finished(self) -> None:
        """The cluster has healed and converged. What is committed never changed and every leader had it, so that equal
        histories up to here hold every acknowledged write."""
        self.thorough()
        for host in self._cluster.hosts:
            node = host.node
            if node is None:
                continue
            self._check_all_entries(node)
            if node.status().applied < self._highest:
                raise Violation(f"member {host.raft_id} applied {node.status().applied} of {self._highest}")

    # -- the properties -----------------------------------------------------------------------------------------------

    def _check_term(self, node: RaftNode, seen: _Seen) -> None:
        if node.core.term < seen.term:
            raise Violation(
                f"member {node.core.raft_id}: term went back from {seen.term} to {node.core.term}"
            )
        seen.term = node.core.term

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

    def _check_log(self, node: RaftNode, seen: _Seen) -> None:
        """(Log Matching) index and term name one entry and the term before it, in every log there ever was: then, step by
        step, they name everything before it."""
        log = node.core.log
        if (
            log.base_index <= seen.last_index <= log.last_index
            and log.term(seen.last_index) == seen.last_term
        ):
            low = seen.last_index + 1
        else:
            low = max(log.commit, log.base_index) + 1
            if log.base_index < seen.last_index and node.core.pending_snapshot is None:
                self.truncations += 1
        self._check_entries(node, low)
        seen.last_index, seen.last_term = log.last_index, log.last_term

    def _check_all_entries(self, node: RaftNode) -> None:
        self._check_entries(node, node.core.log.first_index)

    def _check_entries(self, node: RaftNode, low: int) -> None:
        log = node.core.log
        before = log.term(low - 1)
        assert before is not None
        for entry in log.slice(low, log.last_index):
            known = self._entries.setdefault((entry.index, entry.term), (entry, before))
            if known != (entry, before):
                raise Violation(
                    f"member {node.core.raft_id} holds {entry} after term {before}, another log {known}"
                )
            before = entry.term

    def _check_commit(self, node: RaftNode, seen: _Seen) -> None:
        """(State Machine Safety) what one member holds committed, no other ever replaces."""
        log = node.core.log
        if log.commit == seen.commit:
            return
        if log.commit < seen.commit:
            raise Violation(
                f"member {node.core.raft_id}: commit went back from {seen.commit} to {log.commit}"
            )
        for entry in log.slice(max(seen.commit, log.base_index) + 1, log.commit):
            first = self._committed.get(entry.index)
            if first is None:
                self._commit(entry)
            elif first != entry:
                raise Violation(f"entry {entry.index} is committed as {first} and as {entry}")
        self._highest = max(self._highest, log.commit)
        seen.commit = log.commit

    def _commit(self, entry: Entry) -> None:
        self._committed[entry.index] = entry
        self.conf_entries += entry.kind == EntryKind.CONF
        if entry.kind == EntryKind.DATA:
            if entry.data in self._proposals:
                raise Violation(f"a proposal is committed twice: {entry}")
            self._proposals.add(entry.data)

    def _check_state(self, host: RaftHost) -> None:
        """(State Machine Safety) everybody applies the same entries in the same order."""
        while (following := self._committed.get(self._chained + 1)) is not None:
            count, digest = self._history[self._chained]
            if following.kind == EntryKind.DATA:
                count += 1
                digest = chain(digest, following.index, following.term, following.data)
            self._chained += 1
            self._history[self._chained] = (count, digest)
        index, count, digest = host.fsm.digest
        if self._history.get(index) != (count, digest):
            raise Violation(
                f"member {host.raft_id} is in another state at {index} than what is committed makes"
            )

    def _applied(self, host: RaftHost, index: int, term: int, data: bytes) -> None:
        entry = self._committed.get(index)
        if entry is not None and (entry.term, entry.data) != (term, data):
            raise Violation(f"member {host.raft_id} applied another entry {index} than was committed")

    def _frame(self, source: str, _target: str, frame: bytes) -> bool:
        """Nobody whose disk has failed promises anything any more."""
        for host in self._cluster.hosts:
            if host.addr == source and host.disk_failed:
                for item in wire.decode(frame).items:
                    accepted = isinstance(item, AppendReply) and not item.rejected
                    if accepted or (isinstance(item, VoteReply) and item.granted and not item.pre):
                        raise Violation(f"member {host.raft_id} promised {item} after its disk failed")
        return True
