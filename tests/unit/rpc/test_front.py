"""The RPC port with real sockets, TLS and gRPC, the server in a process of its own: strangers, storms, sizes, renewals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec
import pytest

from swarm_agent.ca import ca, tls
from swarm_agent.ca.ca import Subject
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.objects.errors import PermissionDenied, SwarmError
from swarm_agent.objects.records import NodeDescription, RootCA
from swarm_agent.rpc.grpc import Call, Client, Grpc
from swarm_agent.rpc.messages import Beat, Hello, Leave, Nothing, Welcome

DAY = 24 * 3600 * 10**9
ROOT = Path(__file__).resolve().parents[3]
PROCESS = Path(__file__).with_name("rpc_process.py")
HELD_S = 0.02  # some thousand connections a second: without a pause, who gets in is left to chance


def identity_of(root: RootCA, node_id: str = "w1", role: str = "worker") -> NodeIdentity:
    key, csr = ca.make_request()
    return NodeIdentity(key, ca.sign(root, csr, Subject(node_id, role, "c"), DAY)[0], root.cert)


class Process:
    """The server, and what it costs."""

    def __init__(self, folder: Path) -> None:
        self.root = ca.make_root()
        file = folder / "root"
        file.write_bytes(msgspec.msgpack.encode(self.root))
        self.popen = subprocess.Popen(
            [sys.executable, PROCESS, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self.popen.stdout is not None
        said = self.popen.stdout.readline()
        if not said:
            self.end()
        self.port = int(said)

    def client(self, node_id: str = "w1", role: str = "worker") -> Client:
        return Grpc().client(f"127.0.0.1:{self.port}", identity_of(self.root, node_id, role))

    def renew(self) -> None:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write("renew\n")
        self.popen.stdin.flush()
        assert self.popen.stdout.readline() == "renewed\n"

    def memory(self) -> int:
        """Resident, KiB."""
        text = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0])

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.popen.pid}/fd").iterdir()))

    def end(self) -> int:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        with contextlib.suppress(OSError):
            self.popen.stdin.close()
        status = self.popen.wait(20)
        self.popen.stdout.close()
        return status


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    process = Process(tmp_path)
    yield process
    assert process.end() == 0


def connect(port: int, count: int, data: bytes = b"") -> list[socket.socket]:
    """So many connections that do not wait for anything."""
    out = []
    for _ in range(count):
        one = socket.socket()
        one.settimeout(5)
        try:
            one.connect(("127.0.0.1", port))
            if data:
                one.send(data)
        except OSError:
            one.close()
            continue
        out.append(one)
    return out


async def say(call: Call, message: object) -> object:
    """And what is answered."""
    await call.write(message)
    return await call.read()


async def works(client: Client) -> None:
    assert await client.unary("Leave", Leave(), 5.0) == Nothing()


async def until(condition: object, seconds: float, what: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s: {what}"
        await asyncio.sleep(0.05)


class Storm:
    """Threads that connect, hold for ``HELD_S`` and close, until it is over. ``data``: what each sends first."""

    def __init__(self, port: int, data: bytes = b"", threads: int = 2) -> None:
        self._port, self._data = port, data
        self._over = threading.Event()
        self.connects = 0
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._over.is_set():
            held = connect(self._port, 100, self._data)
            self.connects += len(held)
            self._over.wait(HELD_S)
            for one in held:
                one.close()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.slow
def test_a_thousand_connections_that_say_nothing(server: Process) -> None:
    """They come and go while a member calls; the process lives, its certificate changes meanwhile."""

    async def main() -> None:
        member = server.client()
        await works(member)
        for _ in range(3):
            held = connect(server.port, 1000)
            await works(member)
            server.renew()
            for one in held:
                one.close()
            await works(member)
            fresh = server.client("w2")
            await works(fresh)
            await fresh.close()
        await member.close()

    asyncio.run(main())


@pytest.mark.slow
def test_what_they_cost(server: Process) -> None:
    async def main() -> None:
        member = server.client()
        await works(member)
        before, files = server.memory(), server.files()
        held = connect(server.port, 3000)
        held += connect(server.port, 300, b"\x16\x03\x01\x02\x00\x01")  # five bytes of a handshake
        await works(member)
        assert server.files() - files < 1100
        assert server.memory() - before < 24 * 1024
        await until(lambda: server.files() - files < 20, 8, "idle connections are closed in time")
        await works(member)
        for one in held:
            one.close()
        await member.close()

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "begun"])
def test_a_member_gets_in_during_a_storm_from_its_own_address(server: Process, data: bytes) -> None:
    """Of one source the newest is served first: five in a row are not kept out."""

    async def main(storm: Storm) -> None:
        await until(lambda: storm.connects > 1000, 10, "a storm")
        began = time.monotonic()
        for round_ in range(5):
            member = server.client(f"w{round_}")
            while True:
                try:
                    await works(member)
                    break
                except SwarmError:
                    assert time.monotonic() - began < 30, "kept out"
                    await asyncio.sleep(0.05)  # gRPC refuses calls at once until it is time to connect again
            await member.close()

    with Storm(server.port, data) as storm:
        asyncio.run(main(storm))


def test_the_certificate_of_now_is_shown(server: Process) -> None:
    def shown() -> bytes | None:
        context = tls.mutual_client(identity_of(server.root))
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="m1") as connection,
        ):
            return connection.getpeercert(True)

    first = shown()
    assert first == shown()
    server.renew()
    assert first != shown()


def test_strangers_are_refused(server: Process) -> None:
    async def main() -> None:
        stranger = Grpc().client(f"127.0.0.1:{server.port}", identity_of(ca.make_root()))
        with pytest.raises(SwarmError):
            await stranger.unary("Leave", Leave(), 2.0)
        await stranger.close()
        mixed = identity_of(ca.make_root())
        other = Grpc().client(
            f"127.0.0.1:{server.port}", NodeIdentity(mixed.key, mixed.cert, server.root.cert)
        )
        with pytest.raises(SwarmError):
            await other.unary("Leave", Leave(), 2.0)
        await other.close()

    asyncio.run(main())


def test_each_call_has_the_caller_its_connection_proved(server: Process) -> None:
    async def main() -> None:
        worker, manager = server.client("w1"), server.client("m2", "manager")
        for client in (worker, manager, worker):
            await works(client)
        with pytest.raises((PermissionDenied, SwarmError)):
            await worker.unary("Forward", Nothing(), 2.0)
        await worker.close()
        await manager.close()

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize(("role", "mebibytes"), [("worker", 60), ("worker", 3), ("manager", 15)])
def test_a_hello_that_is_too_large_is_not_decoded(server: Process, role: str, mebibytes: int) -> None:
    """The server says afterwards how large the largest message was that it decoded."""

    async def main() -> None:
        client = server.client("n1", role)
        labels = {f"{n:06}": "x" * 42 for n in range(mebibytes * (1 << 20) // 50)}
        hello = Hello(NodeDescription(engine_labels=labels), "")
        for _ in range(2):
            with pytest.raises(SwarmError, match=r"larger|too large|RESOURCE"):
                await say(client.bidirectional("Session"), hello)
        answer = await say(client.bidirectional("Session"), Beat())
        assert isinstance(answer, Welcome)
        assert 0 < answer.heartbeat_period < 2 << 20
        await client.close()

    asyncio.run(main())


@pytest.mark.slow
def test_one_member_has_so_many_connections(server: Process) -> None:
    async def main() -> None:
        identity = identity_of(server.root)
        files = server.files()
        clients = [Grpc().client(f"127.0.0.1:{server.port}", identity) for _ in range(300)]
        for n in range(0, 250, 10):
            await asyncio.gather(*(works(c) for c in clients[n : n + 10]))
        await asyncio.gather(*(works(c) for c in clients[250:]), return_exceptions=True)
        assert 2 * 250 <= server.files() - files < 3 * 256 + 80
        other = server.client("w2")
        await works(other)
        for client in (*clients, other):
            await client.close()

    asyncio.run(main())
