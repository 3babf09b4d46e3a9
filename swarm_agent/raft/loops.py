"""Where Raft runs, and how calls cross between its loop and its owner's.

Owns the two mailboxes and the thread. A call is a function and frozen arguments; calls of one direction arrive in the order they were made,
which is what lets both sides go without locks. Refuses to know what is called.

``OwnThread`` is production: heartbeats, votes and syncs go on while the owner's loop works through a long pass. ``SameLoop``
runs both on one loop with the same mailboxes: simulations, and tests that want a member's parts in reach.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import uvloop

from swarm_agent.raft.errors import Stopped

T = TypeVar("T")

SLICE_S = 0.005  # how long a mailbox keeps its loop from everything else


class Mailbox:
    """Calls for one loop. ``put`` from any thread; they run on the loop, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, threads: bool) -> None:
        self._loop = loop
        self._schedule = loop.call_soon_threadsafe if threads else loop.call_soon
        self._context = contextvars.copy_context()
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._scheduled = False
        self.closed = False

    def put(self, function: Callable[..., object], *arguments: Any) -> None:
        if self.closed:
            return
        self._calls.append((function, arguments))
        if not self._scheduled:  # the flag falls before the queue is read: what is added meanwhile is seen
            self._scheduled = True
            try:
                self._schedule(self._drain, context=self._context)
            except RuntimeError:  # the loop is closed: its owner has ended
                self.close()

    def _drain(self) -> None:
        self._scheduled = False
        until = self._loop.time() + SLICE_S
        try:
            while self._calls:
                function, arguments = self._calls.popleft()
                function(*arguments)
                if self._loop.time() > until:
                    break
        finally:
            if self._calls and not self._scheduled:
                self._scheduled = True
                self._loop.call_soon(self._drain, context=self._context)

    def close(self) -> None:
        """What waits is forgotten, what comes is ignored."""
        self.closed = True
        self._calls.clear()


class LoopHost(Protocol):
    """The loop Raft runs on. ``enter`` from the owner's loop before anything else; ``leave`` at the end."""

    raft: Mailbox
    owner: Mailbox

    def enter(self) -> None: ...
    async def leave(self) -> None: ...


class SameLoop:
    """No thread: both mailboxes belong to the running loop."""

    raft: Mailbox
    owner: Mailbox

    def enter(self) -> None:
        loop = asyncio.get_running_loop()
        self.raft = Mailbox(loop, threads=False)
        self.owner = Mailbox(loop, threads=False)

    async def leave(self) -> None:
        self.raft.close()
        self.owner.close()


class OwnThread:
    """A loop in a thread of its own."""

    raft: Mailbox
    owner: Mailbox

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def enter(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(self._loop,), name="raft", daemon=True)
        self.raft = Mailbox(self._loop, threads=True)
        self.owner = Mailbox(asyncio.get_running_loop(), threads=True)
        self._thread.start()

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    async def leave(self) -> None:
        """Stop the loop and wait for the thread. Whoever runs on it has ended before."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._loop = self._thread = None
        self.raft.close()
        self.owner.close()
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)


async def run_on(home: LoopHost, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on Raft's loop and wait for it on the owner's. Cancelling here cancels it there."""
    if home.raft.closed:
        raise Stopped
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    running: list[asyncio.Task[T]] = []

    def tell(done: asyncio.Task[T]) -> None:
        if not done.cancelled():
            done.exception()  # seen, also when the owner is gone and hears of it no more
        home.owner.put(_settle, future, done)

    def begin() -> None:
        task = asyncio.get_running_loop().create_task(make())
        running.append(task)
        task.add_done_callback(tell)

    def cancel() -> None:
        for task in running:
            task.cancel()

    home.raft.put(begin)
    try:
        return await future
    except asyncio.CancelledError:
        home.raft.put(cancel)
        raise


def _settle(future: asyncio.Future[T], done: asyncio.Task[T]) -> None:
    if done.cancelled():
        future.cancel()
    elif (error := done.exception()) is not None:
        if not future.done():
            future.set_exception(error)
    elif not future.done():
        future.set_result(done.result())
