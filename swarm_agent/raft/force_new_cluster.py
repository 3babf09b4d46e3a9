"""A membership of one, made by hand: when the majority is gone for good, or the whole cluster is.

Owns the two ways to begin again. ``stand_alone`` goes on with this member's log: all of it counts as committed, for whatever was acknowledged by a
majority that this member belonged to is in there. ``begin_from`` lays down a state from elsewhere (a backup) on an empty disk. Refuses to
judge whether either is right: it is not while a majority lives, and whoever asks has to know.

Both call for the disk's worker.
"""

from __future__ import annotations

from collections.abc import Iterable

from swarm_agent.raft.core import ConfChange, ConfState, Entry, EntryKind, HardState, Member, SnapshotMeta
from swarm_agent.raft.core.conf import decode_change, encode_change
from swarm_agent.raft.errors import MembershipRefused
from swarm_agent.raft.log import Log, Recovered


def stand_alone(store: Log, recovered: Recovered, me: Member) -> Recovered:
    """Remove everybody else, durably; the others are told when they come back. ``me`` may stand at a new address."""
    snapshot = recovered.snapshot
    if snapshot is None and not recovered.entries:
        raise MembershipRefused(
            "this manager's log is empty: there is nothing to go on with. Use another manager, or recover from a backup"
        )
    conf = snapshot.conf if snapshot is not None else ConfState()
    covered = snapshot.index if snapshot is not None else 0
    for entry in recovered.entries:
        if entry.index > covered and entry.kind == EntryKind.CONF:
            conf = conf.apply(decode_change(entry.data))
    if me.raft_id in conf.removed_ids():
        raise MembershipRefused(
            "this manager was removed from its swarm: use one that was not, or recover from a backup"
        )
    changes = [] if conf.get(me.raft_id) == me else [ConfChange(me)]
    changes += [ConfChange(m, remove=True) for m in conf.members if m.raft_id != me.raft_id]
    last = recovered.entries[-1].index if recovered.entries else covered
    term = recovered.hard_state.term + 1
    entries = [
        Entry(last + n, term, EntryKind.CONF, encode_change(change)) for n, change in enumerate(changes, 1)
    ]
    state = HardState(term, me.raft_id, last + len(entries))
    store.append(state, entries)
    return Recovered(state, snapshot, recovered.snapshot_pieces, [*recovered.entries, *entries])


def begin_from(
    store: Log, recovered: Recovered, me: Member, meta: SnapshotMeta, pieces: Iterable[bytes]
) -> Recovered:
    """A log that begins behind ``pieces``, a state at ``meta``, with ``me`` as the only member. The former members stay removed.

    Versions of rows are indexes of the log: going on behind the former one keeps them growing.
    """
    if not recovered.is_new:
        raise MembershipRefused("there is a log already: a backup is recovered on a host without one")
    former = tuple(m for m in (*meta.conf.members, *meta.conf.removed) if m.raft_id != me.raft_id)
    begin = SnapshotMeta(meta.index, meta.term, ConfState((me,), former))
    kept = tuple(pieces)
    for step in store.install_steps(begin, kept):
        while step():
            pass
    state = HardState(meta.term, 0, meta.index)
    store.append(state, ())
    return Recovered(state, begin, kept, [])
