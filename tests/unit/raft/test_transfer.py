"""Snapshot chunks: any loss, repetition or restart ends in the right bytes or in a reported failure."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable

import pytest

from swarm_agent.raft import RaftConfig
from swarm_agent.raft.core import ConfState, SnapshotMeta
from swarm_agent.raft.transfer import SnapshotReceiver, SnapshotSender
from swarm_agent.raft.wire import ChunkReceipt, SnapshotChunk
from tests.lib.virtual_loop import run

META = SnapshotMeta(5, 1, ConfState())
CONFIG = RaftConfig(cluster_id="c", raft_id=1, node_id="n", addr="a", chunk_bytes=10, chunk_timeout_s=0.1)


def transfer(
    data: bytes, *, loss: float = 0.0, seed: int = 0, restart_at: int | None = None
) -> tuple[bool, list[bytes]]:
    """Outcome at the sender, and the whole snapshots the receiver saw."""
    rng = random.Random(seed)
    arrived: list[bytes] = []

    async def main() -> bool:
        loop = asyncio.get_running_loop()
        receiver = SnapshotReceiver()
        count = 0

        def deliver(chunk: SnapshotChunk) -> None:
            nonlocal receiver, count
            count += 1
            if count == restart_at:
                receiver = SnapshotReceiver()
            wanted, whole = receiver.take(chunk)
            if whole is not None:
                arrived.append(b"".join(whole))
            if rng.random() >= loss:
                loop.call_later(0.001, sender.on_receipt, ChunkReceipt(2, 1, chunk.transfer, wanted))

        def send(chunk: SnapshotChunk) -> None:
            if rng.random() >= loss:
                loop.call_later(0.001, deliver, chunk)

        async def fetch(make: Callable[[], bytes | None]) -> bytes | None:
            return make()

        view = [data[:30], data[30:]]
        sender = SnapshotSender(
            CONFIG, send, fetch, to=2, term=1, transfers=itertools.count(7), meta=META, view=view
        )
        return await sender.run()

    return run(main()), arrived


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 100])
def test_everything_arrives_once(size: int) -> None:
    data = random.Random(1).randbytes(size)
    assert transfer(data) == (True, [data])


@pytest.mark.parametrize("seed", range(30))
def test_losses_are_made_up_for(seed: int) -> None:
    data = random.Random(1).randbytes(60)
    ok, arrived = transfer(data, loss=0.3, seed=seed)
    assert all(whole == data for whole in arrived)
    assert not ok or arrived == [data]


@pytest.mark.parametrize("at", range(2, 10))
def test_a_receiver_that_restarts_makes_the_sender_begin_again(at: int) -> None:
    data = random.Random(1).randbytes(75)
    assert transfer(data, restart_at=at) == (True, [data])


def test_silence_is_a_failure() -> None:
    assert transfer(b"x" * 50, loss=1.0) == (False, [])


def chunk(number: int, data: bytes, *, last: bool = False, transfer: int = 1) -> SnapshotChunk:
    return SnapshotChunk(1, 2, 1, transfer, META, number, last, data)


def test_a_late_copy_changes_nothing() -> None:
    receiver = SnapshotReceiver()
    assert receiver.take(chunk(0, b"abc")) == (1, None)
    assert receiver.take(chunk(0, b"abc")) == (1, None)
    assert receiver.take(chunk(1, b"def", last=True)) == (2, (b"abc", b"def"))
    assert receiver.take(chunk(1, b"def", last=True)) == (2, None)


def test_a_gap_makes_the_sender_begin_again() -> None:
    receiver = SnapshotReceiver()
    assert receiver.take(chunk(3, b"x")) == (0, None)
    assert receiver.take(chunk(0, b"abc")) == (1, None)
    assert receiver.take(chunk(2, b"x")) == (0, None)


def test_another_transfer_takes_the_place_of_the_one_before() -> None:
    receiver = SnapshotReceiver()
    receiver.take(chunk(0, b"old"))
    assert receiver.take(chunk(0, b"new", transfer=2)) == (1, None)
    assert receiver.take(chunk(1, b"er", last=True, transfer=2)) == (2, (b"new", b"er"))
