"""People who use a raft cluster in a simulation, and the history of what they were told.

Owns what is asked (writes, swaps, appends through whoever they take for the leader; reads at any member after a read barrier), which
answers count as "surely not done", and the keys: each is used for a while and then left, so that its history can be checked in no time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from swarm_agent.raft import (
    MembershipRefused,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    Stopped,
    TransferFailed,
)
from tests.lib.key_value import Applied, Command, Value, encode
from tests.lib.linearizability import History
from tests.lib.raft_checks import RaftChecks
from tests.lib.raft_cluster import RaftCluster, RaftHost

NOTHING_DONE = (NotLeader, Overloaded, Stopped)
REFUSALS = (*NOTHING_DONE, OutcomeUnknown, TransferFailed, MembershipRefused)
PATIENCE_S = 2.0
OPERATIONS_PER_KEY = 40


class Keys:
    """A few registers and lists at a time."""

    def __init__(
        self, rng: random.Random, kinds: str = "rrl", *, born: int = 0, uses: int = OPERATIONS_PER_KEY
    ) -> None:
        """``kinds``: one letter each, r for a register, l for a list. ``born``: so many keys there were before."""
        self._rng = rng
        self._uses = uses
        self._born = born
        self._current = [self._new(kind) for kind in kinds]
        self._used = [0] * len(kinds)

    def pick(self) -> str:
        i = self._rng.randrange(len(self._current))
        self._used[i] += 1
        if self._used[i] > self._uses:
            self._current[i], self._used[i] = self._new(self._current[i][0]), 1
        return self._current[i]

    def _new(self, kind: str) -> str:
        self._born += 1
        return f"{kind}{self._born}"


class Clients:
    def __init__(
        self, cluster: RaftCluster, checks: RaftChecks | None, seed: int, *, count: int, pause_s: float
    ) -> None:
        self.history = History()
        self.reads = self.writes = 0
        """Answered ones."""
        self._cluster = cluster
        self._checks = checks
        self._rng = random.Random(f"{seed} clients")
        self._keys = Keys(self._rng)
        self._count = count
        self._pause_s = pause_s
        self._serial = 0
        self._seen: dict[str, int] = {}  # key -> a value somebody read, to swap against
        self._answered: dict[int, int] = {}  # reads, by member
        self._over = False

    def start(self) -> list[asyncio.Task[None]]:
        return [asyncio.ensure_future(self._client(number)) for number in range(self._count)]

    def finish(self) -> None:
        """Begin nothing more."""
        self._over = True

    async def write_now(self) -> bool:
        """Through the present leader; whether it was acknowledged."""
        leader = self._cluster.current_leader()
        if leader is None:
            return False
        before = self.writes
        await self._change(self._cluster.host(leader.core.raft_id), -1, "write", "last")
        return self.writes > before

    async def read_everywhere(self, raft_ids: set[int]) -> None:
        """Until each of these members has answered a read."""
        for raft_id in sorted(raft_ids):
            before = self._answered.get(raft_id, 0)
            while self._answered.get(raft_id, 0) == before:
                await self._read(self._cluster.host(raft_id), -1, "last")
                await asyncio.sleep(0.05)

    async def _client(self, number: int) -> None:
        rng = self._rng
        host: RaftHost | None = None
        while not self._over:
            await asyncio.sleep(rng.uniform(0.2, 1.8) * self._pause_s)
            key = self._keys.pick()
            if rng.random() < (0.9 if number % 3 == 0 else 0.1):  # some mostly read, some mostly write
                await self._read(self._whom_to_read_from(), number, key)
                continue
            if host is None or host.node is None or rng.random() < 0.2:
                host = rng.choice(self._cluster.hosts)
            kind = "append" if key[0] == "l" else rng.choice(["write", "write", "cas"])
            host = await self._change(host, number, kind, key)

    def _whom_to_read_from(self) -> RaftHost:
        """Anybody; but a leader that was deposed without knowing is where stale reads would come from, and rare."""
        leaders = [host for host in self._cluster.hosts if host.node is not None and host.node.is_leader]
        if len(leaders) > 1:
            return min(leaders, key=lambda host: host.node.core.term if host.node is not None else 0)
        return self._rng.choice(self._cluster.hosts)

    async def _change(self, host: RaftHost, client: int, kind: str, key: str) -> RaftHost | None:
        """Where to send the next change, if that is known."""
        node = host.node
        if node is None:
            return None
        self._serial += 1
        expected = self._seen.get(key) if kind == "cas" else None
        padding = bytes(self._rng.randrange(60))
        data = encode(Command(self._serial, kind, key, self._serial, expected, padding))
        asked = self.history.call(client, kind, key, self._serial, expected)
        outcome = await self._ask(host, lambda: node.propose(data))
        if isinstance(outcome, Applied):
            self.history.answer(asked, outcome.done if kind == "cas" else None)
            self.writes += 1
            if self._checks is not None:
                self._checks.acknowledged(data, outcome.index)
            return host
        if isinstance(outcome, NOTHING_DONE):
            self.history.failed(asked)
        if isinstance(outcome, NotLeader) and outcome.leader is not None:
            return self._cluster.host(outcome.leader.raft_id)
        return None

    async def _read(self, host: RaftHost, client: int, key: str) -> None:
        node, fsm = host.node, host.fsm
        if node is None:
            return

        async def read() -> tuple[int, int, Value]:
            index = await node.read_barrier()
            return index, node.status().applied, fsm.read(key)

        checks = self._checks
        floor = checks.highest_acknowledged if checks is not None else 0
        asked = self.history.call(client, "read", key)
        outcome = await self._ask(host, read)
        if not isinstance(outcome, tuple):
            self.history.failed(asked)
            return
        index, applied, value = outcome
        self.history.answer(asked, value)
        self.reads += 1
        self._answered[host.raft_id] = self._answered.get(host.raft_id, 0) + 1
        if isinstance(value, int):
            self._seen[key] = value
        if checks is not None:
            checks.read(index, floor, applied)

    async def _ask(self, host: RaftHost, work: Callable[[], Coroutine[Any, Any, Any]]) -> object:
        """The answer, the refusal, or None when patience ends first."""
        task = host.call(work())
        await asyncio.wait([task], timeout=PATIENCE_S)
        if not task.done():
            task.cancel()
            return None
        try:
            return task.result()
        except REFUSALS as error:
            return error
