"""One raft member as an operating system process: a real disk, Raft on its thread, frames over TCP, clients over a unix socket.

``python raft_process.py`` is the nursery: it imports once and forks a member for every line on its standard input (a ``Spec`` as JSON), answering
with the pid. Forked before any thread or loop, a member starts in milliseconds, which is what makes killing it hundreds of times cheap.

Peers talk through the test's proxy: a connection begins with a frame that names the sender, each frame is its length in four bytes and
its bytes. Clients send ``Request`` and get ``Reply``, framed alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import sys
from pathlib import Path

import msgspec

from swarm_agent.objects.errors import SwarmError
from swarm_agent.raft import (
    Member,
    NotLeader,
    OutcomeUnknown,
    OwnThread,
    RaftConfig,
    RaftNode,
    RealDisk,
    run_on,
)
from tests.lib.key_value import Applied, KeyValue

QUEUED_FRAMES = 1000


class Spec(msgspec.Struct, frozen=True):
    raft_id: int
    directory: str
    port: int
    """Where peers' frames arrive, from the proxy."""
    addr: str
    """Where peers reach us: the proxy's port for us."""
    control: str
    bootstrap: bool
    log: str

    @property
    def member(self) -> Member:
        return Member(self.raft_id, f"n{self.raft_id}", self.addr)


class Request(msgspec.Struct, frozen=True, array_like=True):
    """``what``: propose (``data``), read (``key``), status, transfer, add (``member``)."""

    what: str
    data: bytes = b""
    key: str = ""
    member: Member | None = None


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """``outcome``: done, nothing done, unknown. ``leader``: who leads, as far as the member knows, 0 if it does not."""

    outcome: str
    index: int = 0
    swapped: bool = False
    value: int | tuple[int, ...] | None = None
    leader: int = 0
    role: str = ""
    applied: int = 0
    voters: int = 0
    error: str = ""


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))


def write_frame(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(len(frame).to_bytes(4, "big") + frame)


async def until_closed(reader: asyncio.StreamReader) -> None:
    """Nobody answers: reading ends when the connection does."""
    with contextlib.suppress(OSError):
        await reader.read()


class TcpTransport:
    """On Raft's loop. One connection per peer for what we send; what cannot be sent is dropped."""

    def __init__(self, raft_id: int) -> None:
        self._raft_id = raft_id
        self._queues: dict[int, asyncio.Queue[tuple[str, bytes]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.node: RaftNode | None = None

    def send(self, to: Member, frame: bytes) -> None:
        queue = self._queues.get(to.raft_id)
        if queue is None:
            queue = self._queues[to.raft_id] = asyncio.Queue(QUEUED_FRAMES)
            self._tasks.append(asyncio.ensure_future(self._deliver(to.raft_id, queue)))
        with contextlib.suppress(asyncio.QueueFull):
            queue.put_nowait((to.addr, frame))

    async def _deliver(self, raft_id: int, queue: asyncio.Queue[tuple[str, bytes]]) -> None:
        while True:
            addr, frame = await queue.get()
            host, _, port = addr.rpartition(":")
            try:
                reader, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                continue
            closed = asyncio.ensure_future(until_closed(reader))
            try:
                write_frame(writer, self._raft_id.to_bytes(4, "big"))
                while not closed.done():
                    write_frame(writer, frame)
                    await writer.drain()
                    following = asyncio.ensure_future(queue.get())
                    await asyncio.wait([following, closed], return_when=asyncio.FIRST_COMPLETED)
                    if not following.done():
                        following.cancel()
                        break
                    addr, frame = following.result()
            except OSError:
                pass
            finally:
                closed.cancel()
                writer.close()
            if self.node is not None:
                self.node.peer_lost(raft_id)

    async def listen(self, port: int) -> None:
        await asyncio.start_server(self._arrive, "127.0.0.1", port)

    async def _arrive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                frame = await read_frame(reader)
                if self.node is not None:
                    self.node.receive(frame)
        except (asyncio.IncompleteReadError, OSError):
            writer.close()


class Control:
    """Clients of one member."""

    def __init__(self, node: RaftNode, fsm: KeyValue) -> None:
        self._node = node
        self._fsm = fsm
        self._decoder = msgspec.msgpack.Decoder(Request)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = self._decoder.decode(await read_frame(reader))
                write_frame(writer, msgspec.msgpack.encode(await self._answer(request)))
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    async def _answer(self, request: Request) -> Reply:
        try:
            return await self._carry_out(request)
        except NotLeader as error:
            return Reply("nothing done", leader=error.leader.raft_id if error.leader else 0, error=str(error))
        except OutcomeUnknown as error:
            return Reply("unknown", error=str(error))
        except SwarmError as error:
            return Reply("nothing done", error=str(error))

    async def _carry_out(self, request: Request) -> Reply:
        node = self._node
        if request.what == "propose":
            applied = await node.propose(request.data)
            assert isinstance(applied, Applied)
            return Reply("done", applied.index, applied.done)
        if request.what == "read":
            index = await node.read_barrier()
            return Reply("done", index, value=self._fsm.read(request.key))
        if request.what == "transfer":
            await node.transfer()
        if request.what == "add" and request.member is not None:
            await node.add_member(request.member)
        status = node.status()
        leader = status.leader.raft_id if status.leader else 0
        voters = sum(not m.learner for m in status.members)
        return Reply(
            "done", status.commit, leader=leader, role=status.role, applied=status.applied, voters=voters
        )


async def run_member(spec: Spec) -> None:
    """Until it is killed."""
    home = OwnThread()
    home.enter()
    transport = TcpTransport(spec.raft_id)
    fsm = KeyValue()
    node = await RaftNode.start(
        RaftConfig(
            cluster_id="processes",
            raft_id=spec.raft_id,
            node_id=spec.member.node_id,
            addr=spec.addr,
            tick_s=0.02,
            snapshot_interval=200,
            keep_entries=50,
            segment_bytes=1 << 16,
        ),
        disk=RealDisk(Path(spec.directory)),
        transport=transport,
        fsm=fsm,
        rng=random.Random(),
        bootstrap=spec.member if spec.bootstrap else None,
        home=home,
    )

    async def open_for_peers() -> None:
        transport.node = node
        await transport.listen(spec.port)

    await run_on(home, open_for_peers)
    _remove(spec.control)
    await asyncio.start_unix_server(Control(node, fsm).serve, spec.control)
    await node.wait_closed()


def _remove(path: str) -> None:
    """A killed member leaves its socket behind."""
    Path(path).unlink(missing_ok=True)


def nursery() -> None:
    """Fork a member per line. The kernel reaps them: nobody asks how they died."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()
    for line in sys.stdin:
        spec = msgspec.json.decode(line, type=Spec)
        pid = os.fork()
        if pid == 0:
            _become_member(spec)
        print(pid, flush=True)


def _become_member(spec: Spec) -> None:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(0)
        log = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        asyncio.run(run_member(spec))
        code = 0
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    nursery()
