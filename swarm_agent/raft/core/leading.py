"""A term in office: everything only a leader knows.

Owns the peers' progress, counting for commit, the check that a majority still listens, handing over, read confirmation
and the gate for membership changes. Born in ``Core.become_leader``, thrown away with the role. Refuses elections and
everything a follower does: that is ``machine``.

Rules kept here, each with a test that names it:
- Only entries of its own term are committed by counting (section 5.4.2, figure 8).
- The leader counts itself only up to what its own disk holds (thesis 10.2.1).
- Reads wait until an entry of its own term is committed (thesis 6.4); a round of heartbeats that began after a read
  arrived confirms it, and one round serves all that wait.
- A membership change is proposed only when the one before is committed and so is an entry of the own term (thesis 4.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarm_agent.raft.core import quorum
from swarm_agent.raft.core.conf import ConfChange, encode_change
from swarm_agent.raft.core.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    ReadReply,
    ReadRequest,
    ReadState,
    TimeoutNow,
)
from swarm_agent.raft.core.progress import Flow, Progress

if TYPE_CHECKING:
    from swarm_agent.raft.core.machine import Core


class LeaderState:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._settings = core.settings
        self.peers: dict[int, Progress] = {}
        self.transferee = 0
        self.uncommitted_bytes = 0
        self._own_match = core.log.stable
        self._own_term_start = 0  # index of this term's no-op
        self._pending_conf = core.log.last_index  # an older change may hide anywhere in the log we inherited
        self._since_heartbeat = 0
        self._transfer_ticks = 0
        self._round = 0  # the newest round of heartbeats that carries reads
        self._round_done = 0
        self._reads_next: list[tuple[int, int]] = []  # (asking member, context), waiting for a round to start
        self._reads_now: list[tuple[int, int]] = []  # waiting for round ``_round``
        self._read_index = 0  # the commit index when that round started
        self.follow_conf()

    # -- proposing ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The no-op whose commitment commits all that is inherited."""
        self._own_term_start = self.propose_noop()

    def propose_noop(self) -> int:
        return self._append(EntryKind.NOOP, [b""])

    def _append(self, kind: EntryKind, batch: list[bytes]) -> int:
        core = self._core
        first = core.log.last_index + 1
        core.log.append([Entry(first + i, core.term, kind, data) for i, data in enumerate(batch)])
        return first

    def propose(self, batch: list[bytes]) -> int:
        """How many of the batch were taken: all, or as many as fit the bound on uncommitted bytes."""
        taken, bound, held = 0, self._settings.max_uncommitted_bytes, self.uncommitted_bytes
        for data in batch:
            if held and held + len(data) > bound:
                break
            held += len(data)
            taken += 1
        if taken:
            self.uncommitted_bytes = held
            self._append(EntryKind.DATA, batch[:taken])
        return taken

    @property
    def conf_change_possible(self) -> bool:
        commit = self._core.log.commit
        return commit >= self._own_term_start and commit >= self._pending_conf

    def propose_conf(self, change: ConfChange) -> int:
        """The index of the change. The caller has asked ``conf_change_possible``."""
        self._pending_conf = self._append(EntryKind.CONF, [encode_change(change)])
        return self._pending_conf

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> bool:
        """False: a majority has been silent for an election timeout, somebody else may lead already."""
        if not self.has_quorum(self._core.conf_voters):
            return False
        if self.transferee:
            self._transfer_ticks += 1
            if self._transfer_ticks >= self._settings.election_ticks:
                self.transferee = 0
        self._since_heartbeat += 1
        if self._since_heartbeat >= self._settings.heartbeat_ticks:
            self.heartbeat()
        return True

    def is_active(self, raft_id: int) -> bool:
        if raft_id == self._core.raft_id:
            return True
        peer = self.peers.get(raft_id)
        return peer is not None and self._core.now - peer.last_seen < self._settings.election_ticks

    def has_quorum(self, voters: frozenset[int]) -> bool:
        return sum(map(self.is_active, voters)) >= quorum.size(len(voters))

    def heartbeat(self) -> None:
        self._since_heartbeat = 0
        core = self._core
        for raft_id, peer in self.peers.items():
            core.say(
                Heartbeat(core.raft_id, raft_id, core.term, min(peer.match, core.log.commit), self._round)
            )

    # -- answers ------------------------------------------------------------------------------------------------------

    def on_append_reply(self, m: AppendReply) -> None:
        peer = self.peers.get(m.frm)
        if peer is None:
            return
        peer.last_seen = self._core.now
        log = self._core.log
        if m.rejected:
            agreement, _ = log.agreement_hint(m.hint_index, m.hint_term)
            peer.rejected(m.index, agreement)
            return
        news = peer.accepted(m.index)
        agreed = peer.flow is Flow.PROBE and peer.match == m.index
        if agreed or (peer.flow is Flow.SNAPSHOT and peer.match >= log.base_index):
            peer.become_replicate()
        if news:
            self.maybe_commit()
            self._maybe_hand_over()

    def on_heartbeat_reply(self, m: HeartbeatReply) -> None:
        peer = self.peers.get(m.frm)
        if peer is None:
            return
        peer.last_seen = self._core.now
        peer.heard(self._core.log.last_index)
        if m.round > peer.read_round:
            peer.read_round = m.round
            self._confirm_reads()

    def own_disk(self, stable: int) -> None:
        """Our own disk holds everything up to ``stable``: now we count."""
        if stable > self._own_match:
            self._own_match = stable
            self.maybe_commit()

    def match_of(self, raft_id: int) -> int:
        if raft_id == self._core.raft_id:
            return self._own_match
        peer = self.peers.get(raft_id)
        return peer.match if peer else 0

    def maybe_commit(self) -> None:
        core, log = self._core, self._core.log
        while True:
            index = quorum.agreed_index(self.match_of(v) for v in core.conf_voters)
            if index <= log.commit or log.term(index) != core.term:
                return
            if log.commit < self._pending_conf < index:
                index = self._pending_conf  # what follows the change is counted with the membership it makes
            before = log.commit
            core.commit_to(index)
            if core.leading is not self:
                return
            if self.uncommitted_bytes:
                settled = sum(len(e.data) for e in log.slice(before + 1, index) if e.kind == EntryKind.DATA)
                self.uncommitted_bytes = max(0, self.uncommitted_bytes - settled)

    def follow_conf(self) -> None:
        """Make ``peers`` equal to the membership."""
        core = self._core
        wanted = {m.raft_id for m in core.conf.members} - {core.raft_id}
        for raft_id in [known for known in self.peers if known not in wanted]:
            del self.peers[raft_id]
        for raft_id in sorted(wanted - self.peers.keys()):
            self.peers[raft_id] = Progress(core.log.last_index + 1, self._settings.max_in_flight, core.now)
        if self.transferee not in core.conf_voters:
            self.transferee = 0
        self._confirm_reads()  # with fewer voters, those who answered may be enough

    # -- reads --------------------------------------------------------------------------------------------------------

    def read(self, frm: int, context: int) -> None:
        self._reads_next.append((frm, context))

    def on_read_request(self, m: ReadRequest) -> None:
        if m.frm in self.peers:
            self.read(m.frm, m.context)

    def _start_round(self) -> None:
        log = self._core.log
        if self._reads_now or not self._reads_next or log.commit < self._own_term_start:
            return
        self._reads_now, self._reads_next = self._reads_next, []
        self._read_index = log.commit
        self._round += 1
        self.heartbeat()
        self._confirm_reads()

    def _confirm_reads(self) -> None:
        core = self._core
        confirmed = quorum.agreed_index(
            self._round if v == core.raft_id else self.peers[v].read_round if v in self.peers else 0
            for v in core.conf_voters
        )
        if not self._reads_now or confirmed < self._round:
            return
        answered, self._reads_now = self._reads_now, []
        for frm, context in answered:
            if frm == core.raft_id:
                core.reads.append(ReadState(context, self._read_index))
            else:
                core.say(ReadReply(core.raft_id, frm, core.term, context, self._read_index))

    # -- handing over -------------------------------------------------------------------------------------------------

    def transfer(self, to: int) -> None:
        if to == self.transferee:
            return
        self.transferee, self._transfer_ticks = to, 0
        self._maybe_hand_over()

    def best_successor(self) -> int:
        """The most complete among the voters we hear of, 0 if there is none."""
        candidates = [v for v in sorted(self._core.conf_voters) if v in self.peers and self.is_active(v)]
        return max(candidates, key=lambda v: self.peers[v].match, default=0)

    def _maybe_hand_over(self) -> None:
        core = self._core
        if self.transferee and self.match_of(self.transferee) == core.log.last_index:
            core.say(TimeoutNow(core.raft_id, self.transferee, core.term))

    # -- sending ------------------------------------------------------------------------------------------------------

    def send_appends(self) -> None:
        """Called once a flush, so that whatever was proposed or learnt since shares one append per peer."""
        self._start_round()
        last, commit = self._core.log.last_index, self._core.log.commit
        for raft_id, peer in self.peers.items():
            while not peer.paused and (peer.next <= last or peer.sent_commit < commit or peer.wake):
                if not self._send_append(raft_id, peer):
                    break

    def _send_append(self, raft_id: int, peer: Progress) -> bool:
        core, log = self._core, self._core.log
        prev = peer.next - 1
        prev_term = log.term(prev)
        if prev_term is None:
            if self.is_active(raft_id):
                peer.become_snapshot()
                core.snapshots.append(raft_id)
            return False
        entries = log.slice_bytes(peer.next, self._settings.max_append_bytes)
        core.say(Append(core.raft_id, raft_id, core.term, prev, prev_term, log.commit, entries))
        peer.sent(prev + len(entries), len(entries), log.commit)
        return True
