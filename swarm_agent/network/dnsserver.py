"""The sockets of name service: one UDP and one TCP listener per gateway, and forwarding to the host's own servers.

Owns: sockets, deadlines and bounds. Refuses: knowing names (``resolver``) and bytes (``dnswire``).
Standard library only; runs on netd's loop. Listeners live in ``ov-node``; forwarded questions leave from the host's
own namespace, so whatever the host resolves through works, a server at 127.0.0.53 too.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from swarm_agent.network import dnswire, namespaces
from swarm_agent.network.resolver import Zone, upstreams

log = logging.getLogger(__name__)

IP_FREEBIND: Final = 15
UPSTREAM_TIMEOUT: Final = 1.5
"""Seconds for each of the host's servers; two of them fit the five seconds in which Docker's own resolver gives up."""
FORWARDS_AT_ONCE: Final = 512
TCP_CLIENTS: Final = 256
TCP_IDLE: Final = 10.0


class Forwarder:
    """Asks the host's servers on a client's behalf: a new socket, port and id for every question."""

    def __init__(self, resolv_conf: Path = Path("/etc/resolv.conf"), port: int = 53) -> None:
        self._path = resolv_conf
        self._port = port
        self._stamp: tuple[int, int] | None = None
        self._servers: list[str] = []
        self._busy = 0
        self.own: set[str] = (
            set()
        )  # addresses we listen on ourselves: never asked, or a question would go round

    def servers(self) -> list[str]:
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
        except OSError:
            stamp = None
        if stamp is None or stamp != self._stamp:
            self._stamp = stamp
            self._servers = upstreams(self._path)
        return [server for server in self._servers if server not in self.own]

    async def ask(
        self, data: bytes, question: dnswire.Question, *, stream: bool, wanted: tuple[str, ...] = ()
    ) -> bytes:
        """``wanted``: servers to ask in place of the host's."""
        servers = [server for server in wanted if server not in self.own] or self.servers()
        if not servers:
            return dnswire.failure(question, dnswire.NXDOMAIN)
        if self._busy >= FORWARDS_AT_ONCE:
            return dnswire.failure(question, dnswire.SERVFAIL)
        self._busy += 1
        try:
            for server in servers:
                with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                    async with asyncio.timeout(UPSTREAM_TIMEOUT):
                        ask = self._ask_stream if stream else self._ask_datagram
                        return await ask(server, data, question)
        finally:
            self._busy -= 1
        return dnswire.failure(question, dnswire.SERVFAIL)

    async def _ask_datagram(self, server: str, data: bytes, question: dnswire.Question) -> bytes:
        loop = asyncio.get_running_loop()
        identifier = secrets.token_bytes(2)
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as udp:
            udp.connect((server, self._port))
            await loop.sock_sendall(udp, identifier + data[2:])
            while True:
                reply = await loop.sock_recv(udp, 65535)
                # Only the answer to this very question; anything else is noise or forgery.
                if (
                    reply[:2] == identifier
                    and reply[12 : 12 + len(question.section)].lower() == question.section.lower()
                ):
                    return data[:2] + reply[2:]

    async def _ask_stream(self, server: str, data: bytes, question: dnswire.Question) -> bytes:
        reader, writer = await asyncio.open_connection(server, self._port)
        try:
            writer.write(struct.pack("!H", len(data)) + data)
            await writer.drain()
            reply = await reader.readexactly(struct.unpack("!H", await reader.readexactly(2))[0])
        finally:
            writer.close()
        if reply[:2] != data[:2]:
            return dnswire.failure(question, dnswire.SERVFAIL)
        return reply


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # 3.11's own one is no subclass of it

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._server.datagram(data, addr, lambda reply: transport.sendto(reply, addr))


class NameServer:
    """Listens where it is told to, and again when a namespace was made anew."""

    def __init__(self, zone: Zone, forwarder: Forwarder, port: int = 53) -> None:
        self._zone = zone
        self._forwarder = forwarder
        self._port = port
        self._open: dict[tuple[str, str], tuple[int, Callable[[], None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients = 0

    def listening(self) -> list[tuple[str, str]]:
        return sorted(self._open)

    async def listen(self, wanted: tuple[tuple[str, str], ...]) -> None:
        """Make the open listeners these. A namespace not there yet is tried again with the next call."""
        for place in list(self._open):
            identity, close = self._open[place]
            if place not in wanted or _identity(place[0]) != identity:
                del self._open[place]
                close()
                log.info(f"no longer listening on {place[1]} in {place[0]}")
        self._forwarder.own = {address for _, address in wanted}
        for place in wanted:
            if place not in self._open:
                await self._listen(*place)

    async def close(self) -> None:
        for _, close in self._open.values():
            close()
        self._open.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self, netns: str, address: str) -> None:
        identity = _identity(netns)
        if netns and not identity:
            return
        try:
            udp, tcp = _sockets(netns, address, self._port)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.EINVAL}:
                log.error(f"cannot listen for names on {address} in {netns}, tried again: {error}")
            return
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(self), sock=udp
        )
        server = await asyncio.start_server(self._stream, sock=tcp)

        def close() -> None:
            transport.close()
            server.close()

        self._open[netns, address] = (identity, close)
        log.info(f"answering names on {address} in {netns or 'this namespace'}")

    # --- answering

    def datagram(self, data: bytes, source: tuple[str, int], reply: Callable[[bytes], None]) -> None:
        try:
            question = dnswire.read_question(data)
        except dnswire.NotAQuestion as error:
            if error.reply:
                reply(error.reply)
            return
        known = self._zone.answer(question, source[0], question.size)
        if known is not None:
            reply(known)
            return
        if len(self._tasks) >= 2 * FORWARDS_AT_ONCE:
            reply(dnswire.failure(question, dnswire.SERVFAIL))
            return
        wanted = self._zone.servers(source[0])
        task = asyncio.get_running_loop().create_task(self._forward(data, question, wanted, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(
        self,
        data: bytes,
        question: dnswire.Question,
        wanted: tuple[str, ...],
        reply: Callable[[bytes], None],
    ) -> None:
        reply(await self._forwarder.ask(data, question, stream=False, wanted=wanted))

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            source = writer.get_extra_info("peername")[0]
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                while self._clients <= TCP_CLIENTS:
                    async with asyncio.timeout(TCP_IDLE):
                        data = await reader.readexactly(struct.unpack("!H", await reader.readexactly(2))[0])
                        answer = await self._answer_stream(data, source)
                        if not answer:
                            return
                        writer.write(struct.pack("!H", len(answer)) + answer)
                        await writer.drain()
        finally:
            self._clients -= 1
            writer.close()

    async def _answer_stream(self, data: bytes, source: str) -> bytes:
        try:
            question = dnswire.read_question(data)
        except dnswire.NotAQuestion as error:
            return error.reply
        known = self._zone.answer(question, source, dnswire.LARGEST_TCP)
        if known is not None:
            return known
        wanted = self._zone.servers(source)
        return await self._forwarder.ask(data, question, stream=True, wanted=wanted)


def _identity(netns: str) -> int:
    return namespaces.identity(netns) if netns else 0


def _sockets(netns: str, address: str, port: int) -> tuple[socket.socket, socket.socket]:
    with contextlib.ExitStack() as stack:
        if netns:
            stack.enter_context(namespaces.entered(netns))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        for one in (udp, tcp):
            one.setsockopt(socket.SOL_IP, IP_FREEBIND, 1)  # the address may come a moment after the namespace
            one.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # beside a listener that is just closing
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        udp.bind((address, port))
        tcp.bind((address, port))
    except OSError:
        udp.close()
        tcp.close()
        raise
    return udp, tcp
