"""Snapshots on their way: chunks out, chunks in.

Owns buffers and receipts. Refuses to know what a snapshot is for: the driver steps it into the core once it is whole.
One chunk is out at a time, repeated until its receipt comes; the receipt says where to go on, so that a receiver that restarted or saw
another sender makes the sender begin again instead of failing.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable

from swarm_agent.raft.config import RaftConfig
from swarm_agent.raft.core.messages import SnapshotMeta
from swarm_agent.raft.wire import ChunkReceipt, SnapshotChunk


class SnapshotSender:
    """One transfer to one peer."""

    def __init__(
        self,
        config: RaftConfig,
        send: Callable[[SnapshotChunk], None],
        *,
        to: int,
        term: int,
        transfer: int,
        meta: SnapshotMeta,
        data: bytes,
    ) -> None:
        self._config = config
        self._send = send
        self._to = to
        self._term = term
        self._transfer = transfer
        self._meta = meta
        self._data = data
        self._crc = zlib.crc32(data)
        self._receipt: asyncio.Future[int] | None = None

    async def run(self) -> bool:
        """Whether every byte arrived."""
        offset, restarts = 0, 0
        while restarts < self._config.chunk_attempts:
            following = await self._send_chunk(offset)
            if following is None:
                return False
            if following >= len(self._data) > 0 or (not self._data and following == 0):
                return True
            if following <= offset:
                restarts += 1
            offset = following
        return False

    async def _send_chunk(self, offset: int) -> int | None:
        config = self._config
        piece = self._data[offset : offset + config.chunk_bytes]
        chunk = SnapshotChunk(
            config.raft_id,
            self._to,
            self._term,
            self._transfer,
            self._meta,
            offset,
            len(self._data),
            self._crc,
            piece,
        )
        self._receipt = asyncio.get_running_loop().create_future()
        for _ in range(config.chunk_attempts):
            self._send(chunk)
            done, _pending = await asyncio.wait([self._receipt], timeout=config.chunk_timeout_s)
            if done:
                return self._receipt.result()
        return None

    def on_receipt(self, receipt: ChunkReceipt) -> None:
        if receipt.transfer == self._transfer and self._receipt is not None and not self._receipt.done():
            self._receipt.set_result(receipt.next_offset)


class SnapshotReceiver:
    """Assembles the one snapshot that is coming in."""

    def __init__(self) -> None:
        self._current: tuple[int, int] | None = None  # sender, transfer
        self._finished: tuple[int, int] | None = None
        self._buffer = bytearray()

    def take(self, chunk: SnapshotChunk) -> tuple[int, bytes | None]:
        """Where the sender should go on, and the whole once it is there."""
        key = (chunk.frm, chunk.transfer)
        if key == self._finished:
            return chunk.total, None
        if key != self._current:
            if chunk.offset != 0:
                return 0, None
            self._current = key
            self._buffer.clear()
        if chunk.offset == len(self._buffer) and chunk.offset + len(chunk.data) <= chunk.total:
            self._buffer += chunk.data
        if len(self._buffer) < chunk.total:
            return len(self._buffer), None
        data = bytes(self._buffer)
        self._current = None
        self._buffer.clear()
        if zlib.crc32(data) != chunk.crc:
            return 0, None
        self._finished = key
        return chunk.total, data
