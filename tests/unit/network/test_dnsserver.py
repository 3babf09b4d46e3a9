"""The name server's sockets, on this machine's loopback with a fake upstream."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from swarm_agent.network import dnsserver, dnswire
from swarm_agent.network.dnsserver import Forwarder, NameServer
from swarm_agent.network.resolver import Zone
from swarm_agent.network.state_files import NamesEntry, StateFiles, TaskEntry

HOME = "127.0.0.1"


class Upstream(asyncio.DatagramProtocol):
    """Answers every question with 192.0.2.7; ``first`` are sent before that, to be passed over."""

    def __init__(self, first: Callable[[bytes], list[bytes]] = lambda _: []) -> None:
        self.first = first
        self.asked: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)  # not a subclass in 3.11

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked.append(data)
        for packet in [*self.first(data), reply_to(data)]:
            self.transport.sendto(packet, addr)


def reply_to(data: bytes, address: bytes = b"\xc0\0\2\7") -> bytes:
    return dnswire.answer(dnswire.read_question(data), [(dnswire.A, address)], limit=512)


def free_port() -> int:
    """Free for both: what the kernel picks for one kind may be taken, or still waiting to end, for the other."""
    for _ in range(100):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.bind((HOME, 0))
            port: int = udp.getsockname()[1]
            try:
                tcp.bind((HOME, port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free for both UDP and TCP")


class Bench:
    def __init__(self, folder: Path, servers: tuple[str, ...] = (HOME,)) -> None:
        self.journal = StateFiles(folder)
        self.journal.prepare()
        self.journal.put(
            "app",
            NamesEntry(
                "app", "app", {"web": ("10.0.9.200",), "many": tuple(f"10.0.9.{n}" for n in range(90))}
            ),
        )
        self.journal.put("t1", TaskEntry("t1", HOME, ("app",)))
        self.zone = zone = Zone(self.journal, random.Random(1))
        zone.reload()
        (folder / "resolv.conf").write_text("".join(f"nameserver {server}\n" for server in servers))
        self.upstream_port, self.port = free_port(), free_port()
        self.forwarder = Forwarder(folder / "resolv.conf", self.upstream_port)
        self.server = NameServer(zone, self.forwarder, self.port)

    async def listen(self) -> None:
        await self.server.listen((("", HOME),))
        self.forwarder.own = set()  # here both sides live at one address

    async def upstream(self, protocol: Upstream) -> asyncio.DatagramTransport:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: protocol, local_addr=(HOME, self.upstream_port)
        )
        return transport

    async def ask(self, name: str, *, stream: bool = False, kind: int = dnswire.A) -> dnswire.Reply:
        data = dnswire.query(99, name, kind)
        if stream:
            reader, writer = await asyncio.open_connection(HOME, self.port)
            writer.write(struct.pack("!H", len(data)) + data)
            got = await reader.readexactly(struct.unpack("!H", await reader.readexactly(2))[0])
            writer.close()
            await writer.wait_closed()
            return dnswire.read_reply(got)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect((HOME, self.port))
            await loop.sock_sendall(sock, data)
            return dnswire.read_reply(await asyncio.wait_for(loop.sock_recv(sock, 4096), 5))


def run(bench: Bench, work: Callable[[], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        await bench.listen()
        try:
            await work()
        finally:
            await bench.server.close()

    asyncio.run(all_of_it())


def addresses(reply: dnswire.Reply) -> list[str]:
    return [text for _, _, _, text in reply.answers]


def test_own_names_over_both_ways(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ())

    async def work() -> None:
        assert addresses(await bench.ask("web")) == ["10.0.9.200"]
        assert (await bench.ask("many")).truncated
        assert len((await bench.ask("many", stream=True)).answers) == 90

    run(bench, work)


def test_other_names_are_forwarded_with_a_new_id_and_only_the_true_answer_counts(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    other = dnswire.query(5, "elsewhere.example", 1)
    upstream = Upstream(
        lambda data: [
            b"",
            b"\0" * 40,
            reply_to(data[:2] + other[2:]),
            bytes([data[0] ^ 1]) + reply_to(data)[1:],
        ]
    )

    async def work() -> None:
        transport = await bench.upstream(upstream)
        for _ in range(8):
            reply = await bench.ask("example.org")
            assert (reply.id, addresses(reply)) == (99, ["192.0.2.7"])
        transport.close()

    run(bench, work)
    assert len({data[:2] for data in upstream.asked}) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_who_brings_its_own_servers_has_those_asked_and_keeps_our_names(tmp_path: Path, stream: bool) -> None:
    bench = Bench(tmp_path, ("127.0.0.9",))  # the host's server, where nobody answers

    async def work() -> None:
        bench.journal.put("t1", TaskEntry("t1", HOME, ("app",), (HOME,)))
        bench.zone.reload()
        transport = await bench.upstream(Upstream())
        server = await asyncio.start_server(answer_stream, HOME, bench.upstream_port)
        try:
            assert addresses(await bench.ask("elsewhere.example", stream=stream)) == ["192.0.2.7"]
            assert addresses(await bench.ask("web", stream=stream)) == ["10.0.9.200"]
        finally:
            transport.close()
            server.close()

    run(bench, work)


async def answer_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    data = await reader.readexactly(struct.unpack("!H", await reader.readexactly(2))[0])
    reply = reply_to(data)
    writer.write(struct.pack("!H", len(reply)) + reply)
    await writer.drain()
    writer.close()


def test_without_servers_other_names_do_not_exist(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ())

    async def work() -> None:
        assert (await bench.ask("example.org")).code == dnswire.NXDOMAIN
        assert (await bench.ask("example.org", stream=True)).code == dnswire.NXDOMAIN

    run(bench, work)


def test_silent_servers_are_a_failure_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnsserver, "UPSTREAM_TIMEOUT", 0.05)
    bench = Bench(tmp_path)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind((HOME, bench.upstream_port))
            begun = loop.time()
            assert (await bench.ask("example.org")).code == dnswire.SERVFAIL
            assert loop.time() - begun < 1

    run(bench, work)


def test_the_next_server_is_asked_when_one_refuses(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ("127.0.0.9", HOME))  # nobody listens at the first

    async def work() -> None:
        transport = await bench.upstream(Upstream())
        assert addresses(await bench.ask("example.org")) == ["192.0.2.7"]
        transport.close()

    run(bench, work)


def test_too_many_at_once_fail_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnsserver, "FORWARDS_AT_ONCE", 0)
    bench = Bench(tmp_path)

    async def work() -> None:
        assert (await bench.ask("example.org")).code == dnswire.SERVFAIL
        assert addresses(await bench.ask("web")) == ["10.0.9.200"]

    run(bench, work)


def test_nonsense_does_not_stop_the_server(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ())

    async def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for junk in (b"", b"x", b"\0" * 12, b"\xff" * 700, dnswire.query(1, "web", 1)[:-3]):
                sock.sendto(junk, (HOME, bench.port))
        reader, writer = await asyncio.open_connection(HOME, bench.port)
        writer.write(b"\0\1x")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await writer.wait_closed()
        assert addresses(await bench.ask("web")) == ["10.0.9.200"]

    run(bench, work)


def test_it_listens_where_it_is_told_and_never_asks_itself(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def work() -> None:
        await bench.server.listen((("", HOME),))
        assert bench.server.listening() == [("", HOME)]
        assert bench.forwarder.servers() == [], "its own address is no upstream"
        assert (await bench.ask("example.org")).code == dnswire.NXDOMAIN
        await bench.server.listen(())
        assert bench.server.listening() == []
        await bench.server.listen((("ov-none-such", HOME),))
        assert bench.server.listening() == []
        await bench.server.listen((("", HOME),))
        assert addresses(await bench.ask("web")) == ["10.0.9.200"]

    run(bench, work)
