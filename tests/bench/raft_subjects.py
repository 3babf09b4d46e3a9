"""The two clusters that ``tests.bench.raft`` compares: our Raft, and Debian's etcd. Three processes each, mutual TLS, 127.0.0.1.

Owns the processes (each is ended by its pid), their directories and the load clients, which are alike: one grpc.aio channel to the leader, bodies
encoded by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

import grpc
import grpc.aio
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from swarm_agent.ca import ca
from swarm_agent.ca.identity_files import NodeIdentity
from tests.bench.raft_process import CLUSTER, SERVICE, Spec
from tests.cluster.network.lab import ROOT
from tests.cluster.raft_lab import free_ports

NUMBERS = (1, 2, 3)
BATCH = 64
PATIENCE_S = 40.0
Write = Callable[[bytes, bytes], Awaitable[object]]
_OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


async def until(what: str, condition: Callable[[], Awaitable[bool]]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not await condition():
        assert time.monotonic() < ends, f"waited in vain: {what}"
        await asyncio.sleep(0.01)


class Cluster(Protocol):
    @property
    def pids(self) -> dict[int, int]: ...

    async def leader(self) -> int: ...
    async def written(self, number: int) -> bool:
        """One write through this member was acknowledged."""
        ...

    async def kill(self, number: int) -> None: ...
    async def revive(self, number: int) -> None:
        """And wait until it has caught up."""
        ...


class Processes:
    """Children by number."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def pids(self) -> dict[int, int]:
        return {number: child.pid for number, child in self._children.items()}

    def spawn(self, number: int, command: list[str], line: bytes = b"") -> None:
        log: TextIO
        with (self._directory / f"log{number}").open("a") as log:
            child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log)
        assert child.stdin is not None
        child.stdin.write(line)
        child.stdin.close()
        self._children[number] = child

    async def kill(self, number: int) -> None:
        self._children[number].send_signal(signal.SIGKILL)
        await self.gone(number)

    async def gone(self, number: int) -> None:
        child = self._children.pop(number)
        await asyncio.to_thread(child.wait, 20)

    async def kill_all(self) -> None:
        for number in list(self._children):
            await self.kill(number)


def cpu_s(pids: dict[int, int]) -> float:
    ticks = 0
    for pid in pids.values():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


class Batcher:
    """Writes that wait go together, 64 at most, as soon as the loop gets to it; batches overlap."""

    def __init__(self, send: Callable[[list[tuple[bytes, bytes]]], Awaitable[object]]) -> None:
        self._send = send
        self._waiting: list[tuple[tuple[bytes, bytes], asyncio.Future[None]]] = []
        self._running: set[asyncio.Task[None]] = set()

    def write(self, key: bytes, value: bytes) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append(((key, value), future))
        return future

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), BATCH):
            task = asyncio.ensure_future(self._carry(waiting[start : start + BATCH]))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _carry(self, batch: list[tuple[tuple[bytes, bytes], asyncio.Future[None]]]) -> None:
        try:
            await self._send([write for write, _ in batch])
        except Exception as err:  # noqa: BLE001
            for _, future in batch:
                future.set_exception(err)
            return
        for _, future in batch:
            future.set_result(None)


class Stream:
    """One bidirectional call for all batches."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._open: dict[int, asyncio.Future[None]] = {}
        self._number = 0
        self._lock = asyncio.Lock()
        self._reader = asyncio.ensure_future(self._read())

    async def send(self, writes: list[tuple[bytes, bytes]]) -> None:
        self._number += 1
        number = self._number
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open[number] = done
        message = msgspec.msgpack.encode((number, [key + value for key, value in writes]))
        async with self._lock:
            await self._call.write(message)
        await done

    async def _read(self) -> None:
        async for reply in self._call:
            number, _ = msgspec.msgpack.decode(reply)
            self._open.pop(number).set_result(None)

    async def close(self) -> None:
        await self._call.done_writing()
        await self._reader


class Ours:
    """Implements ``Cluster``."""

    name = "swarm_agent.raft"

    def __init__(self, directory: Path, *, store: bool = False) -> None:
        directory.mkdir()
        self._processes = Processes(directory)
        root = ca.make_root()

        def identity(node_id: str) -> NodeIdentity:
            key, csr = ca.make_request()
            cert, _ = ca.sign(root, csr, ca.Subject(node_id, "manager", CLUSTER), 3600 * 10**9)
            return NodeIdentity(key, cert, root.cert)

        ports = free_ports(6)
        raft_ports = {f"n{n}": ports[n - 1] for n in NUMBERS}
        self._specs = {
            n: Spec(
                n, str(directory / f"disk{n}"), ports[n + 2], raft_ports, identity(f"n{n}"), n == 1, store
            )
            for n in NUMBERS
        }
        self._identity = identity("client")
        self._channels: dict[int, Any] = {}

    @property
    def pids(self) -> dict[int, int]:
        return self._processes.pids

    def disk(self, number: int) -> str:
        return self._specs[number].directory

    async def start(self) -> None:
        for n in NUMBERS:
            self._spawn(n)
        await until("a leader", self._led)
        for n in NUMBERS[1:]:
            await self.ask(1, "add", msgspec.to_builtins(self._specs[n].member))

    async def _led(self) -> bool:
        return await self._try(1, "status", "leads")

    async def stop(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        await self._processes.kill_all()

    def _spawn(self, number: int) -> None:
        command = [sys.executable, "-m", "tests.bench.raft_process"]
        self._processes.spawn(number, command, msgspec.json.encode(self._specs[number]) + b"\n")
        own = self._identity
        self._channels[number] = grpc.aio.secure_channel(
            self._specs[number].member.addr,
            grpc.ssl_channel_credentials(own.root, own.key, own.cert),
            [
                *_OPTIONS,
                ("grpc.ssl_target_name_override", f"n{number}"),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 20),
                ("grpc.min_reconnect_backoff_ms", 20),
                ("grpc.max_reconnect_backoff_ms", 50),
            ],
        )

    async def ask(self, number: int, *what: Any, timeout_s: float = PATIENCE_S) -> Any:
        call = self._channels[number].unary_unary(f"/{SERVICE}/Control")
        answer = await call(msgspec.msgpack.encode(what), timeout=timeout_s, wait_for_ready=True)
        return msgspec.msgpack.decode(answer)

    async def _try(self, number: int, what: str, field: str) -> bool:
        try:
            return bool((await self.ask(number, what, timeout_s=1.0))[field])
        except grpc.aio.AioRpcError:
            return False

    async def leader(self) -> int:
        while True:
            for number in self.pids:
                if await self._try(number, "status", "leads"):
                    return number
            await asyncio.sleep(0.01)

    async def unary(self, number: int) -> Write:
        call = self._channels[number].unary_unary(f"/{SERVICE}/Write")

        async def write(key: bytes, value: bytes) -> object:
            return await call(key + value)

        return write

    def stream(self, number: int) -> Stream:
        return Stream(self._channels[number].stream_stream(f"/{SERVICE}/Batches")())

    async def propose(self, number: int, data: bytes) -> Any:
        reply = await self._channels[number].unary_unary(f"/{SERVICE}/Write")(data, timeout=PATIENCE_S)
        return msgspec.msgpack.decode(reply)

    async def written(self, number: int) -> bool:
        call = self._channels[number].unary_unary(f"/{SERVICE}/Write")
        try:
            await call(b"failover/0000000" + bytes(256), timeout=1.0)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def kill(self, number: int) -> None:
        await self._processes.kill(number)
        await self._channels.pop(number).close()

    async def leave(self, number: int) -> None:
        """A planned stop: it hands over and ends by itself."""
        await self.ask(number, "stop")

    async def left(self, number: int) -> None:
        await self._processes.gone(number)
        await self._channels.pop(number).close()

    async def revive(self, number: int) -> None:
        """Also measured: see ``restart``."""
        await self.restart(number)

    async def restart(self, number: int) -> dict[str, float]:
        """Seconds from the process's start to the points of its life."""
        began = time.time()
        self._spawn(number)
        while True:
            try:
                points = await self.ask(number, "barrier")
                break
            except grpc.aio.AioRpcError:  # it hears no leader yet
                await asyncio.sleep(0.01)
        return {name.removesuffix("_at"): at - began for name, at in points.items()}


class Etcd:
    """Implements ``Cluster``. Defaults of etcd 3.4 but for a larger quota."""

    name = "etcd 3.4"

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._processes = Processes(directory)
        self._pair = _certificate(directory)
        ports = free_ports(6)
        self._peer = {n: f"https://127.0.0.1:{ports[n - 1]}" for n in NUMBERS}
        self._client = {n: f"127.0.0.1:{ports[n + 2]}" for n in NUMBERS}
        self._channels: dict[int, Any] = {}

    @property
    def pids(self) -> dict[int, int]:
        return self._processes.pids

    async def start(self) -> None:
        for n in NUMBERS:
            self._spawn(n)
        for n in NUMBERS:
            await until("etcd serves", partial(self.written, n))

    async def stop(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        await self._processes.kill_all()

    def _spawn(self, number: int) -> None:
        d, url = self._directory, f"https://{self._client[number]}"
        cluster = ",".join(f"n{n}={peer}" for n, peer in self._peer.items())
        command = [
            "/usr/bin/etcd",
            *("--name", f"n{number}", "--data-dir", str(d / f"data{number}")),
            *("--listen-peer-urls", self._peer[number], "--initial-advertise-peer-urls", self._peer[number]),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *("--initial-cluster", cluster, "--initial-cluster-state", "new"),
            *("--cert-file", str(d / "cert"), "--key-file", str(d / "key")),
            *("--trusted-ca-file", str(d / "root"), "--client-cert-auth"),
            *("--peer-cert-file", str(d / "cert"), "--peer-key-file", str(d / "key")),
            *("--peer-trusted-ca-file", str(d / "root"), "--peer-client-cert-auth"),
            *("--quota-backend-bytes", str(8 << 30), "--log-level", "error"),
        ]
        self._processes.spawn(number, command)
        key, cert, root = self._pair
        self._channels[number] = grpc.aio.secure_channel(
            self._client[number],
            grpc.ssl_channel_credentials(root, key, cert),
            [*_OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100)],
        )

    async def leader(self) -> int:
        while True:
            for number in self.pids:
                status = await asyncio.to_thread(self._status, number)
                if status is not None and status["header"]["member_id"] == status["leader"]:
                    return number
            await asyncio.sleep(0.05)

    def _status(self, number: int) -> Any:
        d = self._directory
        done = subprocess.run(
            [
                *("etcdctl", "--endpoints", f"https://{self._client[number]}", "--cacert", str(d / "root")),
                *("--cert", str(d / "cert"), "--key", str(d / "key"), "endpoint", "status", "-w", "json"),
            ],
            env={**os.environ, "ETCDCTL_API": "3"},
            capture_output=True,
            timeout=20,
            check=False,
        )
        return json.loads(done.stdout)[0]["Status"] if done.returncode == 0 else None

    async def unary(self, number: int) -> Write:
        call = self._channels[number].unary_unary("/etcdserverpb.KV/Put")

        async def write(key: bytes, value: bytes) -> object:
            return await call(put(key, value))

        return write

    async def transaction(self, number: int, writes: list[tuple[bytes, bytes]]) -> None:
        """All in one entry of etcd's log."""
        operations = b"".join(field(2, field(2, put(key, value))) for key, value in writes)
        await self._channels[number].unary_unary("/etcdserverpb.KV/Txn")(operations)

    async def written(self, number: int) -> bool:
        call = self._channels[number].unary_unary("/etcdserverpb.KV/Put")
        try:
            await call(put(b"failover", bytes(256)), timeout=0.2)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def kill(self, number: int) -> None:
        await self._processes.kill(number)
        await self._channels.pop(number).close()

    async def revive(self, number: int) -> None:
        self._spawn(number)
        await until("etcd is back", lambda: self.written(number))


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of protobuf."""
    head, left = bytearray([number << 3 | 2]), len(data)
    while left > 127:
        head.append(left & 127 | 128)
        left >>= 7
    head.append(left)
    return bytes(head) + data


def put(key: bytes, value: bytes) -> bytes:
    """etcdserverpb.PutRequest."""
    return field(1, key) + field(2, value)


def _certificate(directory: Path) -> tuple[bytes, bytes, bytes]:
    """One pair for every etcd and its clients: Go's etcd wants the address in it. Files, and (key, certificate, root)."""
    root = ca.make_root()
    issuer_key = serialization.load_pem_private_key(root.key, None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ca.SYSTEM.key()
    now = datetime.datetime.now(datetime.UTC)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "etcd")]))
        .issuer_name(x509.load_pem_x509_certificate(root.cert).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=12))
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    pair = ca.key_pem(key), certificate.public_bytes(serialization.Encoding.PEM), root.cert
    for name, data in zip(("key", "cert", "root"), pair, strict=True):
        path = directory / name
        path.write_bytes(data)
        path.chmod(0o600)
    return pair


@contextlib.asynccontextmanager
async def running(cluster: Any) -> Any:
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()
