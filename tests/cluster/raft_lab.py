"""Three raft processes, the wires between them, and clients that remember what they were told.

Owns pids (it kills only what its own nursery forked), the proxy that can hold back any direction between two members, and the history. Refuses
to judge: the tests do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from tests.cluster.raft_process import Reply, Request, Spec, read_frame, until_closed, write_frame
from tests.lib.key_value import Command, Value, encode
from tests.lib.linearizability import History
from tests.lib.raft_clients import Keys

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 1.0
DEADLINE_S = 30.0


async def until(what: str, condition: Callable[[], bool], patience_s: float = DEADLINE_S) -> None:
    """For what has no event of its own."""
    try:
        async with asyncio.timeout(patience_s):
            while not condition():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"waited {patience_s:.0f} s in vain: {what}") from None


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Proxy:
    """Carries frames to the members. A direction that is cut holds them back, as TCP does, until it is healed."""

    def __init__(self, ports: dict[int, tuple[int, int]]) -> None:
        self._ports = ports  # raft id -> where we listen for it, where it listens
        self._cut: set[tuple[int, int]] = set()
        self._healed = asyncio.Event()
        self._healed.set()
        self._servers: list[asyncio.Server] = []
        self._carrying: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        for raft_id, (ours, _) in self._ports.items():
            self._servers.append(await asyncio.start_server(self._taker(raft_id), "127.0.0.1", ours))

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._carrying:
            task.cancel()
        if self._carrying:
            await asyncio.wait(self._carrying)

    def isolate(self, raft_id: int, *, deaf: bool = True, mute: bool = True) -> None:
        others = self._ports.keys() - {raft_id}
        self._healed.clear()
        self._cut |= {(other, raft_id) for other in others if deaf} | {
            (raft_id, other) for other in others if mute
        }

    def heal(self) -> None:
        self._cut.clear()
        self._healed.set()

    def _taker(self, target: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._carry(target, reader, writer))
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

        return take

    async def _carry(self, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward: asyncio.StreamWriter | None = None
        try:
            source = int.from_bytes(await read_frame(reader), "big")
            answers, onward = await asyncio.open_connection("127.0.0.1", self._ports[target][1])
            ended = asyncio.ensure_future(until_closed(answers))
            ended.add_done_callback(lambda _: writer.close())
            while True:
                frame = await read_frame(reader)
                while (source, target) in self._cut:
                    await self._healed.wait()
                write_frame(onward, frame)
                await onward.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()
            if onward is not None:
                onward.close()


class MemberProcess:
    def __init__(self, lab: RaftLab, spec: Spec) -> None:
        self._lab = lab
        self.spec = spec
        self.pid = 0

    def start(self) -> None:
        assert not self.pid, f"member {self.spec.raft_id} runs already"
        self.pid = self._lab.fork(self.spec)

    def send(self, what: signal.Signals) -> None:
        os.kill(self.pid, what)

    async def kill(self) -> None:
        self.kill_now()
        await self.gone()

    def kill_now(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    async def gone(self) -> None:
        pid, self.pid = self.pid, 0
        await until(f"process {pid} ends", lambda: not Path(f"/proc/{pid}").exists())


class Client:
    """One conversation with one member at a time; broken off when patience ends."""

    def __init__(self, lab: RaftLab) -> None:
        self._lab = lab
        self._open: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def ask(self, raft_id: int, request: Request, patience_s: float = PATIENCE_S) -> Reply | None:
        """None: nobody answered, so anything may have happened."""
        try:
            async with asyncio.timeout(patience_s):
                if raft_id not in self._open:
                    self._open[raft_id] = await asyncio.open_unix_connection(
                        self._lab.members[raft_id].spec.control
                    )
                reader, writer = self._open[raft_id]
                write_frame(writer, msgspec.msgpack.encode(request))
                return msgspec.msgpack.decode(await read_frame(reader), type=Reply)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            self._hang_up(raft_id)
            return None
        except asyncio.CancelledError:
            self._hang_up(raft_id)
            raise

    def _hang_up(self, raft_id: int) -> None:
        connection = self._open.pop(raft_id, None)
        if connection is not None:
            connection[1].close()

    def close(self) -> None:
        for raft_id in list(self._open):
            self._hang_up(raft_id)


class RaftLab:
    def __init__(self, directory: Path, size: int = 3) -> None:
        self.rng = random.Random(size)
        self.history = History()
        self.acknowledged: dict[str, list[int]] = {}  # key -> values of acknowledged changes
        ports = free_ports(2 * size)
        self.proxy = Proxy({i + 1: (ports[2 * i], ports[2 * i + 1]) for i in range(size)})
        self.members = {
            i + 1: MemberProcess(
                self,
                Spec(
                    raft_id=i + 1,
                    directory=str(directory / f"disk{i + 1}"),
                    port=ports[2 * i + 1],
                    addr=f"127.0.0.1:{ports[2 * i]}",
                    control=str(directory / f"control{i + 1}"),
                    bootstrap=i == 0,
                    log=str(directory / f"log{i + 1}"),
                ),
            )
            for i in range(size)
        }
        self._serial = 0
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.raft_process"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._supervisor = Client(self)

    async def start(self) -> None:
        await self.proxy.start()
        self.members[1].start()
        await self.leader()
        for raft_id in list(self.members)[1:]:
            self.members[raft_id].start()
            added = await self._supervisor.ask(
                1, Request("add", member=self.members[raft_id].spec.member), DEADLINE_S
            )
            assert added is not None, f"member {raft_id} could not join"
            assert added.outcome == "done", added.error

    async def stop(self) -> None:
        running = [member for member in self.members.values() if member.pid]
        for member in running:
            member.kill_now()  # a stopped process dies too
        for member in running:
            await member.gone()
        self._supervisor.close()
        await self.proxy.stop()
        for stream in (self._nursery.stdin, self._nursery.stdout):
            if stream is not None:
                stream.close()
        self._nursery.wait(10)

    def logs(self) -> str:
        """The last words of each member."""
        told = []
        for raft_id, member in self.members.items():
            log = Path(member.spec.log)
            told.append(f"member {raft_id}: {log.read_text()[-1500:] if log.exists() else 'no log'}")
        return "\n".join(told)

    def fork(self, spec: Spec) -> int:
        stdin, stdout = self._nursery.stdin, self._nursery.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(msgspec.json.encode(spec).decode() + "\n")
        stdin.flush()
        return int(stdout.readline())

    async def leader(self) -> int:
        """Who leads: somebody who says so and answers a read, which only a leader with a majority does."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for raft_id, member in self.members.items():
                    status = (
                        await self._supervisor.ask(raft_id, Request("status"), 0.2) if member.pid else None
                    )
                    if status is not None and status.role == "leader":
                        proof = await self._supervisor.ask(raft_id, Request("read", key="-"), PATIENCE_S)
                        if proof is not None and proof.outcome == "done":
                            return raft_id
                await asyncio.sleep(0.01)

    async def transfer(self) -> bool:
        reply = await self._supervisor.ask(await self.leader(), Request("transfer"), 5.0)
        return reply is not None and reply.outcome == "done"

    async def read(self, raft_id: int, key: str) -> Value:
        """Through a read barrier at this member, however long it takes."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                reply = await self._supervisor.ask(raft_id, Request("read", key=key))
                if reply is not None and reply.outcome == "done":
                    return reply.value
                await asyncio.sleep(0.005)

    async def change(self, client: Client, number: int, to: int, kind: str, key: str) -> int:
        """Ask ``to``; who to ask next, 0 if nobody knows."""
        self._serial += 1
        value = self._serial
        known = self.acknowledged.get(key)
        expected = self.rng.choice(known[-3:]) if kind == "cas" and known else None
        asked = self.history.call(number, kind, key, value, expected)
        command = Command(value, kind, key, value, expected)
        reply = await client.ask(to, Request("propose", encode(command)))
        if reply is None:
            return 0
        if reply.outcome == "done":
            self.history.answer(asked, reply.swapped if kind == "cas" else None)
            if kind != "cas" or reply.swapped:
                self.acknowledged.setdefault(key, []).append(value)
            return to
        if reply.outcome == "nothing done":
            self.history.failed(asked)
        return reply.leader

    async def observe(self, client: Client, number: int, at: int, key: str) -> None:
        asked = self.history.call(number, "read", key)
        reply = await client.ask(at, Request("read", key=key))
        if reply is not None and reply.outcome == "done":
            self.history.answer(asked, reply.value)
        else:
            self.history.failed(asked)

    @contextlib.asynccontextmanager
    async def clients(self, count: int, keys: Keys) -> AsyncIterator[None]:
        """So many at work while the block runs."""
        tasks = [asyncio.ensure_future(self._client(number, keys)) for number in range(count)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    async def _client(self, number: int, keys: Keys) -> None:
        client, rng = Client(self), random.Random(number)
        leader = 0
        try:
            while True:
                await asyncio.sleep(rng.uniform(0.001, 0.01))
                key = keys.pick()
                if rng.random() < 0.4:
                    await self.observe(client, number, rng.choice(list(self.members)), key)
                    continue
                kind = "append" if key[0] == "l" else rng.choice(["write", "write", "cas"])
                leader = leader or rng.choice(list(self.members))
                leader = await self.change(client, number, leader, kind, key)
        finally:
            client.close()

    async def more_answers(self, count: int) -> None:
        """The cluster serves."""
        goal = len(self.history) + count
        await until(f"{count} more answers", lambda: len(self.history) >= goal)
