"""Cores without disk or loop: the test hands the messages over, one by one, in any order it likes.

``make`` builds a member with any past, ``drain`` does what a driver would, ``CoreGroup`` carries the mail between several.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from swarm_agent.raft.core import (
    ConfState,
    Core,
    CoreSettings,
    Effects,
    Entry,
    HardState,
    Member,
    Message,
    Ready,
    Role,
    SnapshotMeta,
    VoteReply,
    VoteRequest,
)


def members(*ids: int, learners: Iterable[int] = ()) -> ConfState:
    everybody = sorted({*ids, *learners})
    return ConfState(tuple(Member(i, f"n{i}", f"a{i}", i in set(learners)) for i in everybody))


def make(
    raft_id: int = 1,
    conf: ConfState | None = None,
    *,
    term: int = 1,
    vote: int = 0,
    terms: Iterable[int] = (),
    base: tuple[int, int] = (0, 0),
    commit: int = 0,
    seed: int = 0,
    **settings: int,
) -> Core:
    """A member whose log holds entries of these terms after ``base``."""
    conf = conf or members(1, 2, 3)
    entries = [Entry(base[0] + i + 1, t, 0, b"%d.%d" % (base[0] + i + 1, t)) for i, t in enumerate(terms)]
    return Core(
        CoreSettings(raft_id, **settings),
        random.Random(seed),
        hard_state=HardState(term, vote, commit),
        snapshot=SnapshotMeta(base[0], base[1], conf),
        entries=entries,
    )


def drain(core: Core) -> list[Message]:
    """Do what the driver does, with a disk that is done at once; everything it says."""
    said: list[Message] = []
    while True:
        effects: Effects = core.flush()
        said += effects.messages
        if not core.has_ready():
            if not effects.messages and not effects.committed:
                core.validate()
                return said
            continue
        ready: Ready = core.ready()
        core.advance()
        said += ready.messages


def of(kind: type, said: Iterable[Message]) -> list[Message]:
    return [m for m in said if isinstance(m, kind)]


def ticks(core: Core, count: int) -> list[Message]:
    said: list[Message] = []
    for _ in range(count):
        core.tick()
        said += drain(core)
    return said


def elect(core: Core) -> None:
    """Make it leader by the votes of all others."""
    core.campaign()
    for _ in range(2):
        for m in of(VoteRequest, drain(core)):
            assert isinstance(m, VoteRequest)
            core.step(VoteReply(m.to, m.frm, m.term, granted=True, pre=m.pre))
    drain(core)
    assert core.role is Role.LEADER


class CoreGroup:
    """Several cores and the mail between them; ``lost`` decides what does not arrive."""

    def __init__(self, cores: Iterable[Core]) -> None:
        self.cores = {core.raft_id: core for core in cores}
        self.lost: Callable[[Message], bool] = lambda _m: False
        self.log: list[Message] = []
        self.snapshots: list[tuple[int, int]] = []

    def deliver(self) -> None:
        """Until nobody says anything any more."""
        while True:
            mail: list[Message] = []
            for core in self.cores.values():
                effects = core.flush()
                self.snapshots += [(core.raft_id, to) for to in effects.snapshots]
                mail += effects.messages
                if core.has_ready():
                    ready = core.ready()
                    core.advance()
                    mail += ready.messages
                core.validate()
            if not mail and not any(core.has_ready() for core in self.cores.values()):
                return
            self.log += mail
            for m in mail:
                if m.to in self.cores and not self.lost(m):
                    self.cores[m.to].step(m)

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            for core in self.cores.values():
                core.tick()
            self.deliver()

    def cut(self, *raft_ids: int) -> None:
        alone = set(raft_ids)
        self.lost = lambda m: (m.frm in alone) != (m.to in alone)

    def heal(self) -> None:
        self.lost = lambda _m: False

    @property
    def elected(self) -> bool:
        return any(core.role is Role.LEADER for core in self.cores.values())

    @property
    def leader(self) -> Core:
        return max((c for c in self.cores.values() if c.role is Role.LEADER), key=lambda c: c.term)


def group_of(count: int = 3, *, seed: int = 0) -> CoreGroup:
    """So many members; number 1 leads."""
    conf = members(*range(1, count + 1))
    group = CoreGroup([make(i, conf, seed=seed * count + i) for i in range(1, count + 1)])
    group.cores[1].campaign()
    group.deliver()
    assert group.leader.raft_id == 1
    return group
