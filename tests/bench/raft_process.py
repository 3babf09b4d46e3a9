"""One Raft member as an operating system process, wired as a manager wires it: thread, TLS links, sealed log, gRPC for clients.

``python -m tests.bench.raft_process`` reads a ``Spec`` as one line of JSON and serves until it is told to stop. The state is a dictionary, or
the real store. Refuses to measure anything but what only the leader's own process can: proposals made inside it.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import uvloop

from swarm_agent.ca import ca
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.objects.errors import SwarmError
from swarm_agent.raft import Member, OwnThread, RaftConfig, RaftNode, RealDisk, run_on
from swarm_agent.raft.log import DataKey, DataKeys, SealedCodec
from swarm_agent.raft.status import StateMachine
from swarm_agent.rpc.raft_links import LinkListener, RaftLink, Take, Tls
from swarm_agent.rpc.raft_transport import PeerTransport
from swarm_agent.store import Store

CLUSTER = "bench"
SERVICE = "bench"
KEY_BYTES, VALUE_BYTES = 16, 256


class Spec(msgspec.Struct, frozen=True):
    number: int
    directory: str
    rpc_port: int
    raft_ports: dict[str, int]
    """Where the members' links arrive, by node id."""
    identity: NodeIdentity
    found: bool
    store: bool
    """The real store instead of a dictionary."""

    @property
    def member(self) -> Member:
        return Member(self.number, f"n{self.number}", f"127.0.0.1:{self.rpc_port}")


class Dictionary:
    """Implements ``StateMachine``: an entry is a key and a value."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def apply(self, index: int, term: int, data: bytes) -> object:
        self.values[data[:KEY_BYTES]] = data[KEY_BYTES:]
        return None

    def snapshot(self) -> Iterable[bytes]:
        items = list(self.values.items())
        return _Pieces(items)

    def restore(self, index: int, pieces: Iterable[bytes]) -> None:
        self.values = dict(msgspec.msgpack.decode(b"".join(pieces), type=list[tuple[bytes, bytes]]))


class _Pieces:
    def __init__(self, items: list[tuple[bytes, bytes]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[bytes]:
        return iter([msgspec.msgpack.encode(self._items)])


class OneAddress:
    """Implements ``Links``: TLS links of members that share 127.0.0.1 and differ in their port."""

    def __init__(self, ports: dict[str, int]) -> None:
        self._tls = Tls()
        self._ports = ports

    async def listen(
        self,
        host: str,
        port: int,
        identity: Callable[[], NodeIdentity],
        admit: Callable[[ca.Subject], None],
        take: Take,
    ) -> LinkListener:
        return await self._tls.listen(host, port, identity, admit, take)

    async def connect(self, addr: str, identity: NodeIdentity, node_id: str) -> RaftLink:
        return await self._tls.connect(f"127.0.0.1:{self._ports[node_id]}", identity, node_id)


def percentile(values: list[float], share: float) -> float:
    """``values`` sorted."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def write_of(proposer: int, serial: int) -> tuple[bytes, bytes]:
    """No two proposers share a key: etcd takes a key once in a transaction."""
    return b"%06d/%09d" % (proposer, serial % 100), (b"%08d" % serial) * (VALUE_BYTES // 8)


async def proposers(count: int, seconds: float, write: Callable[[bytes, bytes], Any]) -> list[float]:
    """So many of them, each with one write under way; the latencies of what was acknowledged in time."""
    latencies: list[float] = []
    clock = time.perf_counter
    ends = clock() + seconds

    async def one(proposer: int) -> None:
        serial = 0
        while (began := clock()) < ends:
            serial += 1
            await write(*write_of(proposer, serial))
            if (now := clock()) <= ends:
                latencies.append(now - began)

    await asyncio.gather(*(one(i) for i in range(count)))
    return latencies


def summary(latencies: list[float], seconds: float) -> dict[str, float]:
    latencies.sort()
    return {
        "writes": len(latencies),
        "per_s": len(latencies) / seconds,
        "p50_ms": percentile(latencies, 0.5) * 1e3,
        "p99_ms": percentile(latencies, 0.99) * 1e3,
    }


class Served:
    """What clients may ask a member for. Bodies are bytes; ``Control`` speaks msgpack."""

    def __init__(self, node: RaftNode, timings: dict[str, float]) -> None:
        self._node = node
        self._timings = timings
        self.stopping = asyncio.Event()

    async def write(self, request: bytes, context: Any) -> bytes:
        try:
            return await self._one(request)
        except SwarmError as err:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(err))
            raise

    async def _one(self, data: bytes) -> bytes:
        result: Any = await self._node.propose(data)
        return b"" if result is None else msgspec.msgpack.encode((result.index, all(result.accepted)))

    async def batches(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """A message is (number, writes), the answer to it (number, how many were done), in whatever order they end."""
        lock = asyncio.Lock()

        async def carry_out(number: int, writes: list[bytes]) -> None:
            await asyncio.gather(*map(self._node.propose, writes))
            async with lock:
                await context.write(msgspec.msgpack.encode((number, len(writes))))

        decoder = msgspec.msgpack.Decoder(tuple[int, list[bytes]])
        running: set[asyncio.Task[None]] = set()
        async for request in requests:
            task = asyncio.ensure_future(carry_out(*decoder.decode(request)))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    async def control(self, request: bytes, context: Any) -> bytes:
        what, *arguments = msgspec.msgpack.decode(request)
        return msgspec.msgpack.encode(await self._carry_out(what, arguments))

    async def _carry_out(self, what: str, arguments: list[Any]) -> Any:
        node = self._node
        if what == "inside":
            count, seconds = arguments
            return summary(await proposers(count, seconds, lambda k, v: node.propose(k + v)), seconds)
        if what == "add":
            await node.add_member(msgspec.convert(arguments[0], Member))
        if what == "barrier":
            await node.read_barrier()
            return {**self._timings, "served_at": time.time()}
        if what == "snapshot":
            began = time.perf_counter()
            await node.rotate_log()
            return time.perf_counter() - began
        if what == "stop":
            self.stopping.set()
        status = node.status()
        return {"leads": node.is_leader, "applied": status.applied, "commit": status.commit}


async def serve(spec: Spec) -> None:
    timings = {"main_at": time.time()}
    home = OwnThread()
    home.enter()
    disk = RealDisk(Path(spec.directory))
    node_id = spec.member.node_id
    transport = PeerTransport(
        lambda: spec.identity, OneAddress(spec.raft_ports), spec.raft_ports[node_id], lambda _: None
    )
    await run_on(home, lambda: transport.start("127.0.0.1"))
    fsm: StateMachine = Store() if spec.store else Dictionary()
    node = await RaftNode.start(
        RaftConfig(cluster_id=CLUSTER, raft_id=spec.number, node_id=node_id, addr=spec.member.addr),
        disk=disk,
        transport=transport,
        fsm=fsm,
        rng=random.Random(),
        bootstrap=spec.member if spec.found else None,
        codec=SealedCodec(DataKeys((DataKey(1, bytes(range(32))),))),
        home=home,
    )
    transport.receive, transport.lost = node.receive, node.peer_lost
    timings["recovered_at"] = time.time()
    served = Served(node, timings)
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 << 20)]
    )
    handlers = {
        "Write": grpc.unary_unary_rpc_method_handler(served.write),
        "Batches": grpc.stream_stream_rpc_method_handler(served.batches),
        "Control": grpc.unary_unary_rpc_method_handler(served.control),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    own = spec.identity
    credentials = grpc.ssl_server_credentials([(own.key, own.cert)], own.root, require_client_auth=True)
    server.add_secure_port(f"127.0.0.1:{spec.rpc_port}", credentials)
    await server.start()
    await served.stopping.wait()
    await node.stop(transfer=True)
    await server.stop(0)
    await run_on(home, transport.stop)
    await home.leave()
    disk.close()


def main() -> None:
    spec = msgspec.json.decode(sys.stdin.readline(), type=Spec)
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # this and the interval: as the daemon does
    sys.setswitchinterval(0.0005)
    uvloop.run(serve(spec))


if __name__ == "__main__":
    main()
