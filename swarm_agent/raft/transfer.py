"""Snapshots on their way: pieces out, pieces in.

Owns receipts and what has arrived. Refuses to know what a snapshot is for: the driver steps it into the core once it is whole.
One piece is out at a time, repeated until its receipt comes, so that the sender never holds more than one; the receipt says which
comes next. A receiver that restarted or saw another sender wants the first again: the sender begins anew instead of failing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator

from swarm_agent.raft.config import RaftConfig
from swarm_agent.raft.core.messages import SnapshotMeta
from swarm_agent.raft.wire import ChunkReceipt, SnapshotChunk

Fetch = Callable[[Callable[[], bytes | None]], Awaitable[bytes | None]]


class SnapshotSender:
    """One transfer to one peer. ``view`` can be iterated again; ``fetch`` runs what makes a piece off the loop."""

    def __init__(
        self,
        config: RaftConfig,
        send: Callable[[SnapshotChunk], None],
        fetch: Fetch,
        *,
        to: int,
        term: int,
        transfers: Iterator[int],
        meta: SnapshotMeta,
        view: Iterable[bytes],
    ) -> None:
        self._config = config
        self._send = send
        self._fetch = fetch
        self._to = to
        self._term = term
        self._transfers = transfers  # a new number for each start: late receipts of the last one do not count
        self._transfer = 0
        self._number = 0
        self._meta = meta
        self._view = view
        self._receipt: asyncio.Future[int] | None = None

    async def run(self) -> bool:
        """Whether every piece arrived."""
        for _ in range(self._config.chunk_attempts):
            arrived = await self._from_the_start()
            if arrived is not None:
                return arrived
        return False

    async def _from_the_start(self) -> bool | None:
        """None: the receiver wants another piece than the next, which only a new start can give."""
        pieces = cut(self._view, self._config.chunk_bytes)
        self._transfer = next(self._transfers)
        number = 0
        piece = await self._next(pieces) or b""
        while True:
            following = await self._next(pieces)
            wanted = await self._deliver(number, piece, last=following is None)
            if wanted is None:
                return False
            if wanted == 0:
                return None
            if following is None:
                return True
            number, piece = wanted, following

    async def _next(self, pieces: Iterator[bytes]) -> bytes | None:
        return await self._fetch(lambda: next(pieces, None))

    async def _deliver(self, number: int, piece: bytes, *, last: bool) -> int | None:
        """The next piece's number, or 0 to begin anew; None if the receiver never answers."""
        config = self._config
        chunk = SnapshotChunk(
            config.raft_id, self._to, self._term, self._transfer, self._meta, number, last, piece
        )
        self._number = number
        self._receipt = asyncio.get_running_loop().create_future()
        for _ in range(config.chunk_attempts):
            self._send(chunk)
            done, _pending = await asyncio.wait([self._receipt], timeout=config.chunk_timeout_s)
            if done:
                return self._receipt.result()
        return None

    def on_receipt(self, receipt: ChunkReceipt) -> None:
        if receipt.transfer != self._transfer or receipt.wanted not in (0, self._number + 1):
            return  # of an earlier start, or a late copy
        if self._receipt is not None and not self._receipt.done():
            self._receipt.set_result(receipt.wanted)


class SnapshotReceiver:
    """Collects the one snapshot that is coming in."""

    def __init__(self) -> None:
        self._current: tuple[int, int] | None = None  # sender, transfer
        self._finished: tuple[int, int] | None = None
        self._pieces: list[bytes] = []

    def take(self, chunk: SnapshotChunk) -> tuple[int, tuple[bytes, ...] | None]:
        """Which piece the sender should send next, and all of them once the last is there."""
        key = (chunk.frm, chunk.transfer)
        if key == self._finished:
            return chunk.number + 1, None
        if key != self._current:
            if chunk.number != 0:
                return 0, None
            self._current = key
            self._pieces = []
        if chunk.number != len(self._pieces):
            # a late copy is received already; a gap means that the sender goes on where somebody before us was
            return (chunk.number + 1 if chunk.number < len(self._pieces) else 0), None
        self._pieces.append(chunk.data)
        if not chunk.last:
            return len(self._pieces), None
        pieces, self._pieces = tuple(self._pieces), []
        self._current, self._finished = None, key
        return chunk.number + 1, pieces


def cut(view: Iterable[bytes], most: int) -> Iterator[bytes]:
    """The pieces of a view, none larger than ``most`` bytes."""
    for piece in view:
        for start in range(0, len(piece), most):
            yield piece[start : start + most]
