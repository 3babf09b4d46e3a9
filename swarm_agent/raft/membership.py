"""Who belongs: adding, promoting, changing and removing members, one change after the other.

Owns the order of the steps and the refusals. A new member is a learner until it has caught up, so that it never costs the majority while it
is empty; a leader that is to go hands over first; nobody goes whom the majority needs. Refuses to count votes
or entries: that is the core's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from swarm_agent.raft.core import ConfChange, Member, quorum
from swarm_agent.raft.errors import MembershipRefused, NotLeader

if TYPE_CHECKING:
    from swarm_agent.raft.driver import Driver


class Membership:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._core = driver.core
        self._lock = asyncio.Lock()

    async def add(self, m: Member) -> None:
        async with self._lock:
            known = self._known(m.raft_id)
            if known is not None and m.learner and not known.learner:
                raise MembershipRefused(f"member {m.raft_id} is a voter; demote it by an update")
            if known is None or (known.learner and known != m):
                learner = msgspec.structs.replace(m, learner=True)
                if known != learner:
                    await self._change(ConfChange(learner))
            if not m.learner and (known is None or known.learner):
                await self._caught_up(m.raft_id)
            if self._known(m.raft_id) != m:
                await self._change(ConfChange(m))

    async def update(self, m: Member) -> None:
        if m.learner and m.raft_id == self._core.raft_id:
            await self._step_aside()
        async with self._lock:
            self._driver.require_leader()
            known = self._known(m.raft_id)
            if known is None:
                raise MembershipRefused(f"{m.raft_id} is not a member; add it first")
            if m.learner and not known.learner:
                await self._require_answers_without(m.raft_id)
            if known != m:
                await self._change(ConfChange(m))

    async def remove(self, raft_id: int) -> None:
        if raft_id == self._core.raft_id:
            await self._step_aside()
        async with self._lock:
            self._driver.require_leader()
            known = self._core.conf.get(raft_id)
            if known is None:
                if raft_id in self._core.conf.removed_ids():
                    return
                raise MembershipRefused(f"{raft_id} is not a member")
            if not known.learner:
                await self._require_answers_without(raft_id)
            await self._change(ConfChange(known, remove=True))

    def _known(self, raft_id: int) -> Member | None:
        self._driver.require_leader()
        if raft_id in self._core.conf.removed_ids():
            raise MembershipRefused(
                f"member {raft_id} was removed and its id is not used again; join with a new one"
            )
        return self._core.conf.get(raft_id)

    def _require_quorum_without(self, raft_id: int) -> None:
        rest = self._core.conf_voters - {raft_id}
        if not rest:
            raise MembershipRefused("the last voter cannot go; there would be no cluster")
        if self._core.leading is not None and not self._core.leading.has_quorum(rest):
            raise MembershipRefused(f"without member {raft_id} too few managers are reachable to go on")

    async def _require_answers_without(self, raft_id: int) -> None:
        """Those who stay take an entry written now: one that went away a moment ago still counts as reachable, and the change could then
        neither be committed nor taken back."""
        self._require_quorum_without(raft_id)
        index = self._core.propose_noop() or self._core.log.last_index
        while True:
            self._driver.require_leader()
            leading = self._core.leading
            assert leading is not None  # as require_leader says
            rest = self._core.conf_voters - {raft_id}
            answered = [
                v
                for v in rest
                if v == self._core.raft_id or (v in leading.peers and leading.peers[v].match >= index)
            ]
            if len(answered) >= quorum.size(len(rest)):
                return
            self._require_quorum_without(raft_id)
            await self._driver.progress()

    async def _change(self, change: ConfChange) -> None:
        while True:
            self._driver.require_leader()
            index = self._core.propose_conf(change)
            if index:
                break
            await self._driver.progress()
        await self._driver.logged(index)
        # Members act on a change once they know that it is committed. Before anybody is told, a majority of the new
        # membership must know, or the loss of this leader could leave members that all count by the old one.
        if noop := self._core.propose_noop():
            await self._driver.logged(noop)

    async def _caught_up(self, raft_id: int) -> None:
        """Wait until it has what we had when it began to follow."""
        goal = 0
        while True:
            self._driver.require_leader()
            leading = self._core.leading
            peer = leading.peers.get(raft_id) if leading else None
            if peer is None:
                raise MembershipRefused(f"member {raft_id} was removed while it caught up")
            if peer.flow == "replicate":
                goal = goal or self._core.log.last_index
                if peer.match >= goal:
                    return
            await self._driver.progress()

    async def _step_aside(self) -> None:
        self._driver.require_leader()
        if self._core.conf_voters == {self._core.raft_id}:
            raise MembershipRefused("the last voter cannot go; there would be no cluster")
        await self._driver.hand_over(0)
        raise NotLeader(self._driver.leader())
