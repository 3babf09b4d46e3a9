"""The accept loop in front of every port: who is let through, who goes when there are too many, and when time is over."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from swarm_agent import gate as gate_module
from swarm_agent.gate import Gate, GateLimits, Visitor, open_streams, tcp_listener


class Port:
    """A gate whose server reads a line, then vouches and answers; ``served`` are the lines."""

    def __init__(self, limits: GateLimits) -> None:
        self.gate = Gate("test port", self.serve, limits)
        self.served: list[bytes] = []
        self.begun = 0

    async def serve(self, sock: socket.socket, visitor: Visitor) -> None:
        self.begun += 1
        reader, writer = await open_streams(sock)
        try:
            line = await reader.readuntil(b"\n")
            visitor.proved()
            self.served.append(line)
            writer.write(line)
            await writer.drain()
            await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def port(limits: GateLimits) -> AsyncIterator[tuple[Port, Callable[[str], socket.socket]]]:
    """And how to connect to it from an address."""
    it = Port(limits)
    listener = tcp_listener("127.0.0.1", 0)
    where = listener.getsockname()
    it.gate.listen(listener)
    opened: list[socket.socket] = []

    def connect(source: str) -> socket.socket:
        one = socket.create_connection(where, timeout=5, source_address=(source, 0))
        one.setblocking(False)
        opened.append(one)
        return one

    try:
        yield it, connect
    finally:
        for one in opened:
            one.close()
        await it.gate.close()


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def is_open(one: socket.socket) -> bool:
    try:
        return one.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


async def ask(one: socket.socket, line: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(5):
        await loop.sock_sendall(one, line)
        return await loop.sock_recv(one, 100)


def test_who_says_nothing_is_not_served_and_goes_in_time() -> None:
    async def main() -> None:
        async with port(GateLimits(seconds=0.3)) as (it, connect):
            silent = [connect("127.0.0.1") for _ in range(20)]
            await until(lambda: it.gate.waiting == 20)
            assert await ask(connect("127.0.0.1"), b"hello\n") == b"hello\n"
            assert it.gate.waiting == 20
            assert it.begun == 1
            await until(lambda: it.gate.waiting == 0)
            assert not any(map(is_open, silent))

    asyncio.run(main())


def test_who_proved_stays() -> None:
    async def main() -> None:
        async with port(GateLimits(seconds=0.2)) as (it, connect):
            good = connect("127.0.0.1")
            assert await ask(good, b"a\n") == b"a\n"
            slow = connect("127.0.0.1")
            slow.send(b"half a line")
            await until(lambda: it.gate.waiting == 1)
            await until(lambda: not is_open(slow))
            assert is_open(good)

    asyncio.run(main())


def test_the_oldest_of_the_heaviest_source_makes_room() -> None:
    async def main() -> None:
        async with port(GateLimits(waiting=10, per_source=8)) as (it, connect):
            many = [connect("127.0.0.2") for _ in range(8)]
            few = [connect("127.0.0.3") for _ in range(2)]
            await until(lambda: it.gate.waiting == 10)
            more = connect("127.0.0.4")
            await until(lambda: it.gate.refused == 1)
            assert [is_open(one) for one in many] == [False] + [True] * 7
            assert all(map(is_open, (*few, more)))
            again = connect("127.0.0.2")  # up to its own limit others pay nothing
            await until(lambda: it.gate.refused == 2)
            assert all(map(is_open, (*few, more, again)))
            assert it.gate.waiting == 10

    asyncio.run(main())


def test_sources_take_turns_and_none_takes_all_places() -> None:
    async def main() -> None:
        async with port(GateLimits(speaking=4, seconds=30)) as (it, connect):
            for _ in range(20):
                connect("127.0.0.2").send(b"half")
            await until(lambda: it.gate.waiting == 20)
            await until(lambda: it.begun >= 2)
            assert it.begun == 2  # half of the places
            assert await ask(connect("127.0.0.3"), b"me\n") == b"me\n"

    asyncio.run(main())


def test_whoever_holds_a_place_too_long_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "SLOW_S", 0.1)

    async def main() -> None:
        async with port(GateLimits(speaking=2, seconds=30)) as (it, connect):
            stuck = [connect("127.0.0.2"), connect("127.0.0.3")]
            for one in stuck:
                one.send(b"half")
            await until(lambda: it.begun == 2)
            assert await ask(connect("127.0.0.2"), b"me\n") == b"me\n"
            await until(lambda: not is_open(stuck[0]))
            assert is_open(stuck[1])

    asyncio.run(main())


def test_so_many_begin_a_second() -> None:
    async def main() -> None:
        async with port(GateLimits(starts_per_second=40.0)) as (it, connect):
            loop = asyncio.get_running_loop()
            began = loop.time()
            asked = [asyncio.create_task(ask(connect("127.0.0.1"), b"x\n")) for _ in range(30)]
            assert await asyncio.gather(*asked) == [b"x\n"] * 30
            assert loop.time() - began > (30 - 10 - 1) / 40
            assert len(it.served) == 30

    asyncio.run(main())


def test_a_process_without_file_descriptors_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The silent make room; without any it waits a little instead of turning in circles."""

    class Exhausted:
        left = 0
        calls = 0

    real = socket.socket.accept

    def accept(self: socket.socket) -> object:
        Exhausted.calls += 1
        if Exhausted.left:
            Exhausted.left -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", accept)

    async def main() -> None:
        async with port(GateLimits()) as (it, connect):
            Exhausted.left = 3
            assert await ask(connect("127.0.0.1"), b"x\n") == b"x\n"
            assert Exhausted.calls < 10
            silent = connect("127.0.0.1")
            await until(lambda: it.gate.waiting == 1)
            Exhausted.left = 1
            assert await ask(connect("127.0.0.1"), b"y\n") == b"y\n"
            assert not is_open(silent)

    asyncio.run(main())


def test_processes_are_the_sources_of_a_unix_socket(tmp_path: Path) -> None:
    async def main() -> None:
        it = Port(GateLimits(per_source=3))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "socket"))
        listener.listen(100)
        it.gate.listen(listener)
        held = [socket.socket(socket.AF_UNIX) for _ in range(5)]
        for one in held:
            one.connect(str(tmp_path / "socket"))
            one.setblocking(False)
        await until(lambda: it.gate.refused == 2)
        assert [is_open(one) for one in held] == [False, False, True, True, True]
        assert await ask(held[4], b"z\n") == b"z\n"
        for one in held:
            one.close()
        await it.gate.close()

    asyncio.run(main())


def test_closing_ends_everybody() -> None:
    async def main() -> None:
        async with port(GateLimits()) as (it, connect):
            good, silent, half = (connect("127.0.0.1") for _ in range(3))
            await ask(good, b"x\n")
            half.send(b"half")
            await until(lambda: it.begun == 2 and it.gate.waiting == 2)
            it.gate.shut()
            await until(lambda: not is_open(silent) and not is_open(half))
            assert is_open(good)
            await it.gate.close()
            assert not is_open(good)
            with contextlib.suppress(OSError), pytest.raises(ConnectionRefusedError):
                connect("127.0.0.1")

    asyncio.run(main())
