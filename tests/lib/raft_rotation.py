"""The story of ``raft_chaos`` with members that change the keys of their logs all the time, and its end: one key each.

Owns the rotations and what must hold of keys and files afterwards. Refuses everything else: ``raft_chaos`` tells the rest of the story.
"""

from __future__ import annotations

import asyncio
import random
from typing import NamedTuple

import msgspec

from swarm_agent.raft import RaftNode
from swarm_agent.raft.log import DataKeys, Log, Owner, SealedCodec
from tests.lib.process_loop import ProcessLoop
from tests.lib.raft_chaos import ChaosPlan, ChaosResult, _Story, plan_of
from tests.lib.raft_checks import Violation
from tests.lib.raft_clients import REFUSALS
from tests.lib.raft_cluster import RaftHost
from tests.lib.raft_keys import HostKeys
from tests.lib.raft_nemesis import DEEDS


class RotationResult(NamedTuple):
    chaos: ChaosResult
    rotations: int
    cut_short: int
    finished: int
    """Found cut short by a later process, or by the same after a timeout, and finished."""


def rotating_chaos(seed: int, plan: ChaosPlan | None = None) -> RotationResult:
    """Raises ``Violation`` (or what else broke) if the story goes wrong."""
    if plan is None:
        # the key file lies on the log's disk here: what fails for it would have to end the member, which does not know it
        deeds = tuple(deed for deed in DEEDS if deed not in ("failing_disk", "full_disk"))
        plan = msgspec.structs.replace(plan_of(seed, quick=True), deeds=deeds)
    story = _Rotating(seed, plan)
    with ProcessLoop() as loop:
        loop.after_step = story.step
        try:
            result = loop.run_until_complete(story.run())
        finally:
            loop.after_step = None
            story.end()
    return RotationResult(result, story.rotations, story.cut_short, story.finished)


class _Rotating(_Story):
    def __init__(self, seed: int, plan: ChaosPlan) -> None:
        super().__init__(seed, plan)
        self._key_rng = random.Random(f"{seed} rotations")
        self.rotations = self.cut_short = self.finished = 0

    async def run(self) -> ChaosResult:
        rotating = asyncio.ensure_future(self._rotate_now_and_then())
        try:
            result = await super().run()
        finally:
            rotating.cancel()
            await asyncio.wait([rotating])
        if not rotating.cancelled():
            rotating.result()
        for host in self.cluster.hosts:
            if host.node is not None and host.keys is not None:
                await host.keys.finish(host.node)
                check_only_key(host)
        return result

    async def _rotate_now_and_then(self) -> None:
        rng = self._key_rng
        while True:
            await asyncio.sleep(rng.uniform(0.02, 0.6))
            running = [h for h in self.cluster.hosts if h.node is not None and h.keys is not None]
            if not running:
                continue
            host = rng.choice(running)
            assert host.node is not None
            assert host.keys is not None
            # the shorter ones end in the middle of what takes a good disk some ten milliseconds
            patience_s = rng.uniform(0.001, 0.02) if rng.random() < 0.6 else rng.uniform(0.1, 3.0)
            await self._rotate(host.node, host.keys, patience_s)

    async def _rotate(self, node: RaftNode, keys: HostKeys, patience_s: float) -> None:
        unsettled = not keys.codec.keys.settled
        try:
            async with asyncio.timeout(patience_s):
                if unsettled and self._key_rng.random() < 0.6:
                    await keys.finish(node)
                    self.finished += 1
                else:
                    await keys.rotate(node)
                    self.rotations += 1
        except (*REFUSALS, TimeoutError):
            self.cut_short += 1


def check_only_key(host: RaftHost) -> None:
    """Every file of the host opens with its last key alone."""
    assert host.keys is not None
    keys = host.keys.codec.keys
    if not keys.settled:
        raise Violation(f"{host.addr} holds keys {[k.id for k in keys.keys]} after its last rotation")
    config = host.config
    copy = host.disk.copy()
    Log.open(
        copy.open(),
        Owner(config.cluster_id, config.node_id, config.raft_id),
        codec=SealedCodec(DataKeys(keys.keys)),
    )
