"""Raft members as real processes that are killed, stopped and cut off. What clients were told must have one order, and no acknowledged write is lost.

SWARM_KILL_ALL=100 kills all three at once so many times.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from tests.cluster.raft_lab import RaftLab
from tests.lib.linearizability import NotLinearizable, check
from tests.lib.raft_clients import Keys

ROUNDS = int(os.environ.get("SWARM_KILL_ALL", "5"))


def in_a_lab(directory: Path, story: Callable[[RaftLab], Awaitable[None]]) -> None:
    async def main() -> None:
        lab = RaftLab(directory)
        try:
            await lab.start()
            await story(lab)
        except BaseException as error:
            error.add_note(lab.logs())
            raise
        finally:
            await lab.stop()

    asyncio.run(main())


async def kill_and_restart(lab: RaftLab, raft_id: int) -> None:
    member = lab.members[raft_id]
    await member.kill()
    await lab.more_answers(60)
    member.start()
    await lab.more_answers(60)


async def stop_and_continue(lab: RaftLab, raft_id: int) -> None:
    member = lab.members[raft_id]
    member.send(signal.SIGSTOP)
    await lab.more_answers(60)
    member.send(signal.SIGCONT)
    await lab.more_answers(60)


async def cut_off(lab: RaftLab, raft_id: int, *, deaf: bool = True, mute: bool = True) -> None:
    lab.proxy.isolate(raft_id, deaf=deaf, mute=mute)
    await lab.more_answers(60)
    lab.proxy.heal()
    await lab.more_answers(60)


@pytest.mark.slow
def test_what_clients_were_told_has_one_order(tmp_path: Path) -> None:
    async def story(lab: RaftLab) -> None:
        keys = Keys(lab.rng)
        transfers = 0
        async with lab.clients(6, keys):
            await lab.more_answers(100)
            for _ in range(2):
                await kill_and_restart(lab, await lab.leader())
                await cut_off(lab, await lab.leader())
                await stop_and_continue(lab, await lab.leader())
                transfers += await lab.transfer()
                await cut_off(lab, await lab.leader(), mute=False)
                follower = min(lab.members.keys() - {await lab.leader()})
                await kill_and_restart(lab, follower)
                await stop_and_continue(lab, follower)
                await cut_off(lab, follower, deaf=False)
                transfers += await lab.transfer()
                await lab.more_answers(60)
        assert transfers >= 2
        operations = lab.history.operations()
        assert len(lab.history) > 1500
        assert {op.kind for op in operations if op.known} == {"read", "write", "cas", "append"}
        lab.history.check()
        other = next(op for op in operations if op.kind == "read" and isinstance(op.answer, int))
        swapped = [msgspec.structs.replace(op, answer=-1) if op is other else op for op in operations]
        with pytest.raises(NotLinearizable):
            check(swapped)

    in_a_lab(tmp_path, story)


@pytest.mark.slow
def test_after_all_are_killed_at_once_every_acknowledged_write_is_there(tmp_path: Path) -> None:
    async def story(lab: RaftLab) -> None:
        for round_ in range(ROUNDS):
            keys = Keys(lab.rng, "l", born=round_, uses=1 << 30)
            key = f"l{round_ + 1}"
            async with lab.clients(6, keys):
                await lab.more_answers(40)
                for member in lab.members.values():
                    member.kill_now()
            for member in lab.members.values():
                await member.gone()
                member.start()
            await lab.leader()
            assert lab.acknowledged[key], "nothing was at stake"
            for raft_id in lab.members:
                await expect_all(lab, raft_id, key)
        for key in lab.acknowledged:
            await expect_all(lab, 1, key)
        lab.history.check()

    in_a_lab(tmp_path, story)


async def expect_all(lab: RaftLab, raft_id: int, key: str) -> None:
    found = await lab.read(raft_id, key)
    assert isinstance(found, tuple)
    assert len(found) == len(set(found)), "a write was done twice"
    lost = set(lab.acknowledged[key]) - set(found)
    assert not lost, f"member {raft_id} has lost acknowledged writes {sorted(lost)} of {key}"
