"""The Raft state machine: messages and ticks in, messages and entries out.

Owns terms, votes, roles and the follower's side of the log. Refuses I/O, clocks and chance of its own: time is
``tick``, randomness is injected, so the same inputs give the same outputs.

What the owner must do, in this order (``driver`` does):
1. ``flush`` at any time: send ``messages``, apply ``committed``, answer ``reads``, start ``snapshots``.
2. ``ready`` while nothing is outstanding: make snapshot, hard state and entries durable, only then send its
   ``messages`` (votes and acknowledgements) and call ``advance``.
3. Report the outcome of every snapshot it was asked to send.

Roles change only in ``become_*``, which raise on a move that Raft does not know:

    follower -> pre-candidate -> candidate -> leader        any -> follower        follower -> candidate (transfer)
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from swarm_agent.raft.core import quorum
from swarm_agent.raft.core.conf import ConfChange, ConfState, decode_change
from swarm_agent.raft.core.entries import Divergence, EntryLog
from swarm_agent.raft.core.leading import LeaderState
from swarm_agent.raft.core.messages import (
    Append,
    AppendReply,
    Effects,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Knock,
    Message,
    ReadReply,
    ReadRequest,
    ReadState,
    Ready,
    RemovedNotice,
    SnapshotMeta,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from swarm_agent.raft.core.quorum import Vote
from swarm_agent.raft.core.settings import CoreSettings, Rng


class Role(enum.StrEnum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class IllegalMove(Exception):
    """A mistake in this package: a role change or call that Raft does not know. Nothing was changed."""


class Core:
    def __init__(
        self,
        settings: CoreSettings,
        rng: Rng,
        *,
        hard_state: HardState | None = None,
        snapshot: SnapshotMeta | None = None,
        entries: Sequence[Entry] = (),
    ) -> None:
        """``entries`` may begin before the snapshot's index, never after the entry that follows it."""
        state = hard_state or HardState()
        self.settings = settings
        self.raft_id = settings.raft_id
        self.term = state.term
        self.vote = state.vote
        self.role = Role.FOLLOWER
        self.leader = 0
        self.now = 0
        self.removed = False
        self.leading: LeaderState | None = None
        self.log = _recovered_log(snapshot, entries)
        self.conf = ConfState()
        self.conf_voters: frozenset[int] = frozenset()
        self.reads: list[ReadState] = []
        self.snapshots: list[int] = []
        self._removed_ids: frozenset[int] = frozenset()
        self._rng = rng
        self._elapsed = 0  # ticks since a leader was heard, a vote given or a campaign begun
        self._timeout = self._draw_timeout()
        self._lease_lost = False
        self._votes: dict[int, bool] = {}
        self._early: list[Message] = []
        self._late: list[Message] = []
        self._snapshot: SnapshotMeta | None = None
        self._outstanding: Ready | None = None
        self._durable_vote = (self.term, self.vote)
        if snapshot is not None:
            self._set_conf(snapshot.conf)
        if state.commit > self.log.commit:
            self.commit_to(min(state.commit, self.log.last_index))

    # -- inputs -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        self.now += 1
        if self.leading is not None:
            if not self.leading.tick():
                self.become_follower(self.term, 0)
            return
        self._elapsed += 1
        if self._elapsed < self._timeout:
            return
        if self.may_campaign:
            self.become_pre_candidate()
        elif not self.removed and self.raft_id not in self.conf_voters:
            self._reset_election()
            for voter in sorted(self.conf_voters):
                self.say(Knock(self.raft_id, voter, self.term))

    @property
    def may_campaign(self) -> bool:
        return self.raft_id in self.conf_voters and not self.removed and self._snapshot is None

    def campaign(self) -> None:
        """Run for election now instead of at the timeout."""
        if self.leading is None and self.may_campaign:
            self.become_pre_candidate()

    def peer_lost(self, raft_id: int) -> None:
        """The transport lost the connection to ``raft_id``. If that is our leader it has probably died: stop vouching
        for it and ask the others soon. A wrong guess costs one refused pre-vote."""
        if raft_id == self.leader and self.leading is None:
            self._lease_lost = True
            soon = self._elapsed + self._rng.randrange(0, self.settings.lost_leader_ticks + 1)
            self._timeout = min(self._timeout, soon)

    def propose_batch(self, batch: list[bytes]) -> int:
        """Append as many of ``batch`` as there is room for; 0 unless we lead and are not handing over."""
        if self.leading is None or self.leading.transferee:
            return 0
        return self.leading.propose(batch)

    def propose_conf(self, change: ConfChange) -> int:
        """The index of the change's entry, 0 when it is not the time for one: ask again after the next commit."""
        if self.leading is None or self.leading.transferee or not self.leading.conf_change_possible:
            return 0
        target = change.member
        if target.raft_id == self.raft_id and (change.remove or target.learner):
            raise IllegalMove("a leader hands over before it is removed or demoted")
        return self.leading.propose_conf(change)

    def propose_noop(self) -> int:
        """The index of an empty entry, 0 unless we lead. Once it is committed, a majority knows what was committed when
        it was proposed: its append said so."""
        return self.leading.propose_noop() if self.leading is not None else 0

    def read_index(self, context: int) -> bool:
        """Ask for an index that is safe to read at; False if there is nobody to ask."""
        if self.leading is not None:
            self.leading.read(self.raft_id, context)
        elif self.leader:
            self.say(ReadRequest(self.raft_id, self.leader, self.term, context))
        else:
            return False
        return True

    def transfer(self, to: int = 0) -> int:
        """Begin to hand leadership to ``to``, by default the most complete peer; who it is, 0 if there is nobody."""
        if self.leading is None:
            return 0
        target = to or self.leading.best_successor()
        if target not in self.leading.peers or target not in self.conf_voters:
            return 0
        self.leading.transfer(target)
        return target

    def report_snapshot(self, raft_id: int, index: int | None) -> None:
        """The snapshot for ``raft_id`` arrived and stands for ``index``, or None: it failed."""
        if self.leading is not None and raft_id in self.leading.peers:
            self.leading.peers[raft_id].snapshot_done(index)

    def report_unreachable(self, raft_id: int) -> None:
        """Appends to ``raft_id`` were dropped on our side: stop sending optimistically."""
        if self.leading is not None and raft_id in self.leading.peers:
            peer = self.leading.peers[raft_id]
            if not peer.paused and peer.match + 1 < peer.next:
                peer.become_probe()

    @property
    def pending_snapshot(self) -> SnapshotMeta | None:
        """The leader's snapshot that has replaced our log in memory and is not yet durable."""
        return self._snapshot

    def compact(self, index: int) -> None:
        self.log.compact(index)

    def step(self, m: Message) -> None:
        if m.to != self.raft_id:
            return
        if m.frm in self._removed_ids:
            if isinstance(m, VoteRequest | Knock):
                self.say(RemovedNotice(self.raft_id, m.frm, self.term))
            return
        if isinstance(m, RemovedNotice):
            self._on_removed()
            return
        if isinstance(m, Knock):
            return
        if m.term > self.term:
            if isinstance(m, VoteRequest):
                if self._in_lease and not m.transfer:
                    return  # we still hear our leader: whoever asks does not, and must not unseat it
                if not m.pre:
                    self.become_follower(m.term, 0)
            elif not (isinstance(m, VoteReply) and m.pre and m.granted):
                leads = isinstance(m, Append | Heartbeat | InstallSnapshot)
                self.become_follower(m.term, m.frm if leads else 0)
        elif m.term < self.term:
            self._answer_the_past(m)
            return
        if isinstance(m, VoteRequest):
            self._on_vote_request(m)
        elif self.role is Role.LEADER:
            self._step_leader(m)
        elif self.role is Role.FOLLOWER:
            self._step_follower(m)
        else:
            self._step_candidate(m)

    # -- outputs ------------------------------------------------------------------------------------------------------

    def say(self, m: Message) -> None:
        """Queue a message that does not depend on our disk."""
        self._early.append(m)

    def promise(self, m: Message) -> None:
        """Queue a message that others will count on: it leaves after the next sync."""
        self._late.append(m)

    def flush(self) -> Effects:
        if self.leading is not None:
            self.leading.send_appends()
        effects = Effects(
            tuple(self._early),
            self.log.hand_over(self.settings.max_handed),
            tuple(self.reads),
            tuple(self.snapshots),
        )
        self._early.clear()
        self.reads.clear()
        self.snapshots.clear()
        return effects

    @property
    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote, self.log.commit)

    def has_ready(self) -> bool:
        return self._outstanding is None and bool(
            self._late
            or self._snapshot is not None
            or self.log.stable < self.log.last_index
            or self._durable_vote != (self.term, self.vote)
        )

    def ready(self) -> Ready:
        if self._outstanding is not None:
            raise IllegalMove("the last ready is not advanced")
        entries = self.log.unstable()
        new_vote = self._durable_vote != (self.term, self.vote)
        self._outstanding = Ready(
            self.hard_state,
            entries,
            self._snapshot,
            tuple(self._late),
            must_sync=bool(entries) or new_vote or self._snapshot is not None,
        )
        self._late.clear()
        self.log.begin_write()
        return self._outstanding

    def advance(self) -> None:
        """The outstanding ready is durable and its messages are sent."""
        done = self._outstanding
        if done is None:
            raise IllegalMove("nothing to advance")
        self._outstanding = None
        if done.must_sync:
            self._durable_vote = (done.hard_state.term, done.hard_state.vote)
        if self._snapshot is done.snapshot:
            self._snapshot = None
        self.log.end_write()
        if self.leading is not None:
            self.leading.own_disk(self.log.stable)
        elif self.role is Role.CANDIDATE and self._durable_vote == (self.term, self.raft_id):
            self._count_vote(self.raft_id, granted=True)  # our own vote, now that it is one

    # -- roles --------------------------------------------------------------------------------------------------------

    def become_follower(self, term: int, leader: int) -> None:
        if term < self.term:
            raise IllegalMove("terms do not run backwards")
        if term > self.term:
            self.vote = 0
        self.term = term
        self.role = Role.FOLLOWER
        self.leader = leader
        self.leading = None
        self._reset_election()

    def become_pre_candidate(self) -> None:
        """Ask whether we would win before anybody's term is disturbed."""
        if self.role is Role.LEADER:
            raise IllegalMove("a leader does not campaign")
        self.role = Role.PRE_CANDIDATE
        self.leader = 0
        self._reset_election()
        self._ask_for_votes(self.term + 1, pre=True)
        self._count_vote(self.raft_id, granted=True)

    def become_candidate(self, *, transfer: bool = False) -> None:
        if self.role is Role.LEADER:
            raise IllegalMove("a leader does not campaign")
        self.role = Role.CANDIDATE
        self.term += 1
        self.vote = self.raft_id
        self.leader = 0
        self._reset_election()
        self._ask_for_votes(self.term, transfer=transfer)

    def become_leader(self) -> None:
        if self.role is not Role.CANDIDATE:
            raise IllegalMove(f"a {self.role} does not become leader")
        self.role = Role.LEADER
        self.leader = self.raft_id
        self._reset_election()
        self.leading = LeaderState(self)
        self.leading.start()

    def _reset_election(self) -> None:
        self._elapsed = 0
        self._lease_lost = False
        self._votes = {}
        self._timeout = self._draw_timeout()

    def _draw_timeout(self) -> int:
        return self._rng.randrange(self.settings.election_ticks, self.settings.election_ticks_max + 1)

    @property
    def _in_lease(self) -> bool:
        if self.leading is not None:
            return True  # it would have stepped down had it lost its majority
        return bool(self.leader) and not self._lease_lost and self._elapsed < self.settings.election_ticks

    # -- elections ----------------------------------------------------------------------------------------------------

    def _ask_for_votes(self, term: int, *, pre: bool = False, transfer: bool = False) -> None:
        last_index, last_term = self.log.last_index, self.log.last_term
        for voter in sorted(self.conf_voters - {self.raft_id}):
            request = VoteRequest(self.raft_id, voter, term, last_index, last_term, pre, transfer)
            if pre:
                self.say(request)
            else:
                self.promise(request)

    def _count_vote(self, voter: int, *, granted: bool) -> None:
        self._votes.setdefault(voter, granted)
        outcome = quorum.tally(self.conf_voters, self._votes)
        if outcome is Vote.WON:
            if self.role is Role.PRE_CANDIDATE:
                self.become_candidate()
            else:
                self.become_leader()
        elif outcome is Vote.LOST:
            self.become_follower(self.term, 0)

    def _on_vote_request(self, m: VoteRequest) -> None:
        free = self.vote == m.frm or (self.vote == 0 and self.leader == 0) or (m.pre and m.term > self.term)
        granted = free and self.log.is_up_to_date(m.last_index, m.last_term)
        if granted and not m.pre:
            self.vote = m.frm
            self._elapsed = 0
        self.promise(VoteReply(self.raft_id, m.frm, m.term if granted else self.term, granted, m.pre))

    def _answer_the_past(self, m: Message) -> None:
        """Somebody lives in an older term. Leaders and candidates are told, or they would stay there for ever."""
        if isinstance(m, Append | Heartbeat | InstallSnapshot):
            self.promise(AppendReply(self.raft_id, m.frm, self.term, 0, rejected=True))
        elif isinstance(m, VoteRequest):
            self.promise(VoteReply(self.raft_id, m.frm, self.term, granted=False, pre=m.pre))

    # -- one step per role, at our own term ----------------------------------------------------------------------------

    def _step_leader(self, m: Message) -> None:
        leading = self.leading
        assert leading is not None
        match m:
            case AppendReply():
                leading.on_append_reply(m)
            case HeartbeatReply():
                leading.on_heartbeat_reply(m)
            case ReadRequest():
                leading.on_read_request(m)
            case Append() | Heartbeat() | InstallSnapshot():
                raise IllegalMove(f"two leaders in term {self.term}: {self.raft_id} and {m.frm}")
            case _:
                pass

    def _step_candidate(self, m: Message) -> None:
        match m:
            case VoteReply():
                pre = self.role is Role.PRE_CANDIDATE
                asked = self.term + 1 if pre and m.granted else self.term
                if m.pre == pre and m.term == asked:
                    self._count_vote(m.frm, granted=m.granted)
            case Append() | Heartbeat() | InstallSnapshot():
                self.become_follower(m.term, m.frm)
                self._step_follower(m)
            case TimeoutNow():
                self._on_timeout_now()
            case _:
                pass

    def _step_follower(self, m: Message) -> None:
        match m:
            case Append():
                self._heard_leader(m.frm)
                self._on_append(m)
            case Heartbeat():
                self._heard_leader(m.frm)
                self.commit_to(min(m.commit, self.log.last_index))
                self.promise(HeartbeatReply(self.raft_id, m.frm, self.term, m.round))
            case InstallSnapshot():
                self._heard_leader(m.frm)
                self._on_snapshot(m)
            case TimeoutNow():
                self._on_timeout_now()
            case ReadReply():
                self.reads.append(ReadState(m.context, m.index))
            case _:
                pass

    def _heard_leader(self, leader: int) -> None:
        self.leader = leader
        self._elapsed = 0
        if self._lease_lost:
            self._lease_lost = False
            self._timeout = self._draw_timeout()

    def _on_append(self, m: Append) -> None:
        log = self.log
        if m.prev_index < log.commit:
            for entry in m.entries:
                if entry.index <= log.commit and log.term(entry.index) not in {None, entry.term}:
                    raise Divergence(f"entry {entry.index} is committed and a leader sent a different one")
            self.promise(AppendReply(self.raft_id, m.frm, self.term, log.commit))
            return
        last = log.merge(m.prev_index, m.prev_term, m.entries)
        if last is None:
            hint_index, hint_term = log.agreement_hint(m.prev_index, m.prev_term)
            self.promise(
                AppendReply(self.raft_id, m.frm, self.term, m.prev_index, True, hint_index, hint_term)
            )
            return
        self.commit_to(min(m.commit, last))
        self.promise(AppendReply(self.raft_id, m.frm, self.term, last))

    def _on_snapshot(self, m: InstallSnapshot) -> None:
        meta, log = m.meta, self.log
        if meta.index > log.commit:
            if log.term(meta.index) == meta.term:
                self.commit_to(meta.index)  # we have it all, we only did not know that it is committed
            else:
                log.restore(meta.index, meta.term)
                self._snapshot = meta
                self._set_conf(meta.conf)
        self.promise(AppendReply(self.raft_id, m.frm, self.term, log.commit))

    def _on_timeout_now(self) -> None:
        if self.may_campaign:
            self.become_candidate(transfer=True)

    def _on_removed(self) -> None:
        self.removed = True
        self.become_follower(self.term, 0)

    # -- commit and membership ----------------------------------------------------------------------------------------

    def commit_to(self, index: int) -> None:
        """Everything up to ``index`` is committed. Membership follows the committed log, here and nowhere else."""
        log = self.log
        if index <= log.commit:
            return
        fresh = log.slice(log.commit + 1, index)
        log.commit = index
        for entry in fresh:
            if entry.kind == EntryKind.CONF:
                self._set_conf(self.conf.apply(decode_change(entry.data)))

    def _set_conf(self, conf: ConfState) -> None:
        self.conf = conf
        self.conf_voters = conf.voters()
        self._removed_ids = conf.removed_ids()
        if self.raft_id in self._removed_ids:
            self._on_removed()
        if self.leading is not None:
            self.leading.follow_conf()

    def validate(self) -> None:
        """Invariants across the parts; tests and the simulator call it after every step."""
        self.log.validate()
        assert (self.leading is not None) == (self.role is Role.LEADER), "leading without the role"
        assert self.role is not Role.LEADER or self.leader == self.raft_id, "leads, yet names another"
        if self.leading is not None:
            for peer in self.leading.peers.values():
                assert 0 <= peer.match < peer.next, "progress out of order"
                assert peer.match <= self.log.last_index, "a peer matches what we do not have"


def _recovered_log(snapshot: SnapshotMeta | None, entries: Sequence[Entry]) -> EntryLog:
    if not entries:
        return EntryLog(snapshot.index, snapshot.term) if snapshot else EntryLog()
    first = entries[0]
    applied = snapshot.index if snapshot else 0
    if not first.index <= applied + 1 <= entries[-1].index + 1:
        raise ValueError(
            f"entries {first.index} to {entries[-1].index} do not meet the snapshot at {applied}"
        )
    if first.index == applied + 1:
        return EntryLog(applied, snapshot.term if snapshot else 0, entries)
    # Entries that the snapshot covers still serve slow followers; the first gives the term the log begins at.
    return EntryLog(first.index, first.term, entries[1:], applied=applied)
