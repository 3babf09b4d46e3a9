"""The language of the raft scenarios: commands that move messages and time by hand, and the trace of what happened.

A file is prose (lines that begin with #), commands, ``----`` and the trace, up to an empty line. Members are pure cores with disks that
are done at once; a member numbered n waits 11 + n ticks for a leader. The commands:

    members 1 2 3 [learners 4]      begin anew with these, all followers in term 1 with empty logs
    log 2 term 3 : 1 1 2            member 2 has been in term 3 and holds entries of terms 1, 1 and 2
    campaign 1                      do not wait for the timeout
    tick 1 12 | tick all 4          so many ticks; messages wait for delivery
    deliver [quietly]               every message, and the answers, until nobody says anything; quietly: what changed only
    deliver 1 2                     of what waits, only what goes from 1 to 2; no answers
    drop 1 2                        of what waits, what goes from 1 to 2 is lost
    cut 3 ... | heal                messages between these and all others are lost at delivery
    propose 1 x y                   one entry for each word
    read 2 7                        a read with context 7
    add 1 4 [learner] | remove 1 3  a membership change proposed at 1
    transfer 1 3                    1 hands leadership to 3
    compact 1 5                     1 forgets entries up to 5, as after a snapshot
    snapshot 1 3                    the snapshot of 1 arrives whole at 3
    report 1 3 arrived|failed       1 learns what became of the snapshot for 3
    lost 2 1                        the connection from 2 to 1 was reset
    slow 1 | sync 1                 the disk of 1 stalls | is done
    restart 2                       what was not synced is gone
    status | logs                   where everybody stands
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from swarm_agent.raft.core import (
    Append,
    AppendReply,
    ConfChange,
    ConfState,
    Core,
    CoreSettings,
    Effects,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    IllegalMove,
    InstallSnapshot,
    Knock,
    Member,
    Message,
    ReadReply,
    ReadRequest,
    Ready,
    RemovedNotice,
    SnapshotMeta,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from swarm_agent.raft.core.conf import decode_change
from tests.lib.raft_cores import members

ELECTION_TICKS = 12


class _Patience:
    """Stands for chance: the same wait every time, another one for each member."""

    def __init__(self, raft_id: int) -> None:
        self._raft_id = raft_id

    def randrange(self, start: int, stop: int, /) -> int:
        return min(start + self._raft_id - 1, stop - 1)


class _Host:
    """One member, and what its disk holds."""

    def __init__(self, raft_id: int, conf: ConfState, term: int = 1, terms: Iterable[int] = ()) -> None:
        self.raft_id = raft_id
        self.state = HardState(term)
        self.snapshot = SnapshotMeta(0, 0, conf)
        self.entries = [Entry(i, t, EntryKind.DATA, b"%d/%d" % (i, t)) for i, t in enumerate(terms, 1)]
        self.slow = False
        self.writing: Ready | None = None
        self.start()

    def start(self) -> None:
        self.writing = None
        self.core = Core(
            CoreSettings(self.raft_id, election_ticks=ELECTION_TICKS),
            _Patience(self.raft_id),
            hard_state=self.state,
            snapshot=self.snapshot,
            entries=self.entries,
        )
        self.seen = _outline(self.core)

    def keep(self, ready: Ready) -> None:
        self.state = ready.hard_state
        if ready.snapshot is not None:
            self.snapshot, self.entries = ready.snapshot, []
        if ready.entries:
            first = ready.entries[0].index
            self.entries = [e for e in self.entries if e.index < first] + list(ready.entries)


class Script:
    def __init__(self) -> None:
        self._founding = ConfState()
        self._hosts: dict[int, _Host] = {}
        self._mail: list[Message] = []
        self._alone: set[int] = set()
        self._out: list[str] = []
        self._quiet = False

    def run(self, command: str) -> list[str]:
        """The trace of one command."""
        self._out = []
        name, *words = command.split()
        handler: Callable[..., None] | None = getattr(self, "_do_" + name, None)
        if handler is None:
            raise ValueError(f"unknown command: {command}")
        handler(*words)
        return self._out

    # -- the commands -------------------------------------------------------------------------------------------------

    def _do_members(self, *words: str) -> None:
        voters, _, learners = " ".join(words).partition("learners")
        conf = members(*map(int, voters.split()), learners=[int(word) for word in learners.split()])
        self._founding = conf
        self._hosts = {m.raft_id: _Host(m.raft_id, conf) for m in conf.members}
        self._mail, self._alone = [], set()

    def _do_log(self, raft_id: str, _term: str, term: str, _colon: str, *terms: str) -> None:
        old = self._hosts[int(raft_id)]
        self._hosts[int(raft_id)] = _Host(int(raft_id), old.core.conf, int(term), map(int, terms))

    def _do_campaign(self, raft_id: str) -> None:
        self._core(raft_id).campaign()
        self._settle()

    def _do_tick(self, who: str, count: str) -> None:
        chosen = list(self._hosts.values()) if who == "all" else [self._hosts[int(who)]]
        for _ in range(int(count)):
            for host in chosen:
                host.core.tick()
            self._settle()

    def _do_deliver(self, *words: str) -> None:
        if words and words[0] != "quietly":
            link = (int(words[0]), int(words[1]))
            chosen = [m for m in self._mail if (m.frm, m.to) == link]
            self._mail = [m for m in self._mail if (m.frm, m.to) != link]
            for m in chosen:
                self._carry(m)
            return
        self._quiet = bool(words)
        for _ in range(10_000):
            if not self._mail:
                break
            self._carry(self._mail.pop(0))
        else:
            raise ValueError("they never stop talking")
        self._quiet = False

    def _do_drop(self, frm: str, to: str) -> None:
        for m in [m for m in self._mail if (m.frm, m.to) == (int(frm), int(to))]:
            self._mail.remove(m)
            self._say(f"{_told(m)}  lost")

    def _do_cut(self, *words: str) -> None:
        self._alone = {int(word) for word in words}

    def _do_heal(self) -> None:
        self._alone = set()

    def _do_propose(self, raft_id: str, *words: str) -> None:
        taken = self._core(raft_id).propose_batch([word.encode() for word in words])
        self._say(f"{taken} of {len(words)} taken")
        self._settle()

    def _do_read(self, raft_id: str, context: str) -> None:
        if not self._core(raft_id).read_index(int(context)):
            self._say("refused: it knows no leader")
        self._settle()

    def _do_add(self, raft_id: str, new: str, *words: str) -> None:
        member = Member(int(new), f"n{new}", f"a{new}", learner="learner" in words)
        if member.raft_id not in self._hosts:
            self._hosts[member.raft_id] = _Host(member.raft_id, self._founding, term=0)
        self._change(raft_id, ConfChange(member))

    def _do_remove(self, raft_id: str, gone: str) -> None:
        member = self._core(raft_id).conf.get(int(gone))
        assert member is not None, f"{gone} is no member"
        self._change(raft_id, ConfChange(member, remove=True))

    def _change(self, raft_id: str, change: ConfChange) -> None:
        try:
            index = self._core(raft_id).propose_conf(change)
        except IllegalMove as error:
            self._say(f"refused: {error}")
        else:
            self._say(f"entry {index}" if index else "refused: not now")
        self._settle()

    def _do_transfer(self, raft_id: str, to: str) -> None:
        target = self._core(raft_id).transfer(int(to))
        self._say(f"to {target}" if target else "refused")
        self._settle()

    def _do_compact(self, raft_id: str, index: str) -> None:
        self._core(raft_id).compact(int(index))

    def _do_snapshot(self, frm: str, to: str) -> None:
        core = self._core(frm)
        index = core.log.handed
        meta = SnapshotMeta(index, core.log.term(index) or 0, core.conf)
        self._carry(InstallSnapshot(int(frm), int(to), core.term, meta))

    def _do_report(self, frm: str, to: str, outcome: str) -> None:
        core = self._core(frm)
        core.report_snapshot(int(to), core.log.handed if outcome == "arrived" else None)
        self._settle()

    def _do_lost(self, raft_id: str, peer: str) -> None:
        self._core(raft_id).peer_lost(int(peer))
        self._settle()

    def _do_slow(self, raft_id: str) -> None:
        self._hosts[int(raft_id)].slow = True

    def _do_sync(self, raft_id: str) -> None:
        host = self._hosts[int(raft_id)]
        host.slow = False
        if host.writing is not None:
            self._written(host, host.writing)
        self._settle()

    def _do_restart(self, raft_id: str) -> None:
        self._hosts[int(raft_id)].start()
        self._mail = [m for m in self._mail if int(raft_id) not in {m.frm, m.to}]

    def _do_status(self) -> None:
        for raft_id, host in self._hosts.items():
            core = host.core
            leader = f"follows {core.leader}" if core.leader not in {0, raft_id} else ""
            facts = [
                core.role.value,
                f"term {core.term}",
                leader,
                f"commit {core.log.commit}",
                _members(core),
            ]
            self._say(f"{raft_id}: {', '.join(fact for fact in facts if fact)}")

    def _do_logs(self) -> None:
        for raft_id, host in self._hosts.items():
            log = host.core.log
            start = f"after {log.base_index}/{log.base_term}: " if log.base_index else ""
            held = log.slice(log.first_index, log.last_index)
            self._say(f"{raft_id}: {start}{' '.join(map(_entry, held)) or 'empty'}")

    # -- what the world does ------------------------------------------------------------------------------------------

    def _core(self, raft_id: str) -> Core:
        return self._hosts[int(raft_id)].core

    def _say(self, line: str) -> None:
        self._out.append(line)

    def _carry(self, m: Message) -> None:
        lost = (m.frm in self._alone) != (m.to in self._alone) or m.to not in self._hosts
        if not self._quiet:
            self._say(_told(m) + ("  lost" if lost else ""))
        if not lost:
            self._hosts[m.to].core.step(m)
            self._settle()

    def _settle(self) -> None:
        """What the driver does: send, write, send what waited for the write."""
        moved = True
        while moved:
            moved = False
            for host in self._hosts.values():
                moved |= self._pump(host)

    def _pump(self, host: _Host) -> bool:
        core = host.core
        effects: Effects = core.flush()
        self._mail += effects.messages
        self._note(host)
        for read in effects.reads:
            self._say(f"{host.raft_id} answers read {read.context} at {read.index}")
        for to in effects.snapshots:
            self._say(f"{host.raft_id} has to send {to} a snapshot")
        wrote = core.has_ready()
        if wrote:
            ready = core.ready()
            if host.slow and ready.must_sync:
                host.writing = ready
            else:
                self._written(host, ready)
        core.validate()
        return bool(wrote or effects.messages or effects.committed)

    def _written(self, host: _Host, ready: Ready) -> None:
        host.writing = None
        host.keep(ready)
        self._mail += ready.messages
        host.core.advance()
        self._note(host)

    def _note(self, host: _Host) -> None:
        """Say what changed."""
        core, (role, term, commit, conf, removed) = host.core, host.seen
        host.seen = _outline(core)
        if (core.role, core.term) != (role, term):
            self._say(f"{host.raft_id} is {core.role.value} in term {core.term}")
        if core.log.commit != commit:
            self._say(f"{host.raft_id} commits up to {core.log.commit}")
        if core.conf != conf:
            self._say(f"{host.raft_id} knows {_members(core)}")
        if core.removed and not removed:
            self._say(f"{host.raft_id} knows that it was removed")


def _outline(core: Core) -> tuple[object, int, int, ConfState, bool]:
    return core.role, core.term, core.log.commit, core.conf, core.removed


def _members(core: Core) -> str:
    return "members " + " ".join(f"{m.raft_id}{'(learner)' if m.learner else ''}" for m in core.conf.members)


def _entry(entry: Entry) -> str:
    what = entry.data.decode() if entry.kind == EntryKind.DATA else "no-op"
    if entry.kind == EntryKind.CONF:
        change = decode_change(entry.data)
        sign = "-" if change.remove else "+"
        what = f"{sign}{change.member.raft_id}{'(learner)' if change.member.learner else ''}"
    place = f"{entry.index}/{entry.term}"
    return place if what == place else f"{place}({what})"


def _told(m: Message) -> str:
    """One line. Places in logs are index/term."""
    head = f"{m.frm} -> {m.to} "
    match m:
        case VoteRequest():
            kind = "pre-vote?" if m.pre else "vote? (transfer)" if m.transfer else "vote?"
            return f"{head}{kind} term {m.term}, log ends at {m.last_index}/{m.last_term}"
        case VoteReply():
            return f"{head}{'pre-vote' if m.pre else 'vote'} {'granted' if m.granted else 'refused'}, term {m.term}"
        case Append():
            entries = " ".join(map(_entry, m.entries)) or "nothing new"
            return f"{head}append term {m.term}, after {m.prev_index}/{m.prev_term}: {entries}; commit {m.commit}"
        case AppendReply():
            if m.rejected:
                return f"{head}append refused at {m.index}, term {m.term}, try {m.hint_index}/{m.hint_term}"
            return f"{head}has {m.index}, term {m.term}"
        case Heartbeat():
            return f"{head}heartbeat term {m.term}, commit {m.commit}, round {m.round}"
        case HeartbeatReply():
            return f"{head}heard, term {m.term}, round {m.round}"
        case InstallSnapshot():
            return f"{head}snapshot term {m.term}, up to {m.meta.index}/{m.meta.term}"
        case TimeoutNow():
            return f"{head}run for election now, term {m.term}"
        case ReadRequest():
            return f"{head}where may I read? {m.context}"
        case ReadReply():
            return f"{head}read {m.context} at {m.index}"
        case RemovedNotice():
            return f"{head}you were removed"
        case Knock():
            return f"{head}am I still a member?"
