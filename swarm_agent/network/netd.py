"""``swarm-agent-net``: the small process every container's start relies on. Serves the engine's plugin and DNS, holds published ports
(``holds``), and runs the guard of leases (``swarm_agent/guard.py``), because it goes on when the daemon does not.

Owns: the plugin socket, the event loop, readiness. Started before the engine and outliving the daemon, it answers from
the journal alone; killed and started again it goes on where it was, because it keeps nothing but the journal.
Refuses: policy, the daemon's errors, every dependency beyond the standard library.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from swarm_agent import guard as guarding
from swarm_agent.network.dnsserver import Forwarder, NameServer
from swarm_agent.network.holds import Holds
from swarm_agent.network.plugin import Plugin
from swarm_agent.network.resolver import Zone
from swarm_agent.network.state_files import DEFAULT_FOLDER, FOLDERS, StateFiles
from swarm_agent.network.veth import Sweeper

log = logging.getLogger(__name__)

DEFAULT_SOCKET = Path("/run/docker/plugins/swarm.sock")
TICK = (
    2.0  # seconds between looks at things no event tells of: a namespace made anew, a port that became free
)
SWEEP = 60.0  # seconds between looks for links left behind
GRACE = 60.0  # age of an endpoint, in seconds, before its link may count as left behind
LARGEST_BODY = 1 << 20
_IN_MOVED_TO, _IN_DELETE, _IN_NONBLOCK, _IN_CLOEXEC = 0x80, 0x200, 0o4000, 0o2000000


class PluginServer:
    """HTTP on a unix socket, as much of it as the engine's plugin client speaks."""

    def __init__(self, plugin: Plugin, worker: ThreadPoolExecutor) -> None:
        self._plugin = plugin
        self._worker = worker
        self._server: asyncio.Server | None = None
        self._path = Path()

    async def open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listening.bind(str(temporary))
        temporary.chmod(0o600)
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=LARGEST_BODY)
        temporary.rename(path)  # at no moment is there a socket nobody answers, nor none
        self._path = path

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while await self._serve_one(reader, writer):
                    pass
        except (ValueError, asyncio.LimitOverrunError) as error:
            log.warning(f"not a request of the engine's plugin client: {error}")
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first = await reader.readline()
        if not first:
            return False
        method, path, _ = first.decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while (line := await reader.readline()).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        if "chunked" in headers.get("transfer-encoding", ""):
            body = await _read_chunks(reader)
        else:
            length = int(headers.get("content-length", "0"))
            if not 0 <= length <= LARGEST_BODY:
                raise ValueError(f"a body of {length} bytes")
            body = await reader.readexactly(length)
        if method != "POST":
            status, answer = "405 Method Not Allowed", b'{"Err":"only POST"}'
        else:
            loop = asyncio.get_running_loop()
            status, answer = (
                "200 OK",
                await loop.run_in_executor(self._worker, self._plugin.handle, path, body),
            )
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/vnd.docker.plugins.v1.1+json\r\nContent-Length: {len(answer)}\r\n\r\n"
        writer.write(head.encode() + answer)
        await writer.drain()
        return headers.get("connection", "").lower() != "close"


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while True:
        size = int((await reader.readline()).split(b";")[0], 16)
        body += await reader.readexactly(size)
        await reader.readline()
        if size == 0:
            return body
        if len(body) > LARGEST_BODY:
            raise ValueError("a body without end")


class Watcher:
    """Calls back when a file of the journal was put in place or removed (inotify)."""

    def __init__(self, folders: list[Path], changed: Callable[[], None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        for folder in folders:
            if libc.inotify_add_watch(self._fd, os.fsencode(folder), _IN_MOVED_TO | _IN_DELETE) < 0:
                raise OSError(ctypes.get_errno(), f"watch {folder}")
        self._changed = changed
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, 1 << 16):
                pass
        self._changed()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)


class Netd:
    """Life: ``run`` opens everything, says it is ready, works until ``stop`` is called, closes everything."""

    def __init__(
        self,
        journal: StateFiles,
        plugin_socket: Path,
        forwarder: Forwarder | None = None,
        leases: Path = guarding.FOLDER,
    ) -> None:
        self._leases = leases
        self._journal = journal
        self._socket = plugin_socket
        self._zone = Zone(journal, random.Random())
        self._names = NameServer(self._zone, forwarder or Forwarder())
        self._holds = Holds(journal)
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()
        self._changed.set()

    async def run(self) -> None:
        self._journal.prepare()
        worker = ThreadPoolExecutor(1, thread_name_prefix="ports")
        server = PluginServer(Plugin(self._journal), worker)
        folder = self._journal.folder
        watcher = Watcher(
            [folder, *(folder / name for name in FOLDERS if name in {"records", "tasks"})], self._changed.set
        )
        await self._refresh()
        await server.open(self._socket)
        notify("READY=1")
        log.info(f"serving the engine at {self._socket} from {folder}")
        guard = guarding.Guard(self._leases)
        guard.start()
        sweeping = asyncio.create_task(self._sweep(worker))
        try:
            while not self._stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK):
                        await self._changed.wait()
                self._changed.clear()
                await self._refresh()
        finally:
            notify("STOPPING=1")
            guard.stop()
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
            await server.close()
            await self._names.close()
            self._holds.close()
            watcher.close()
            worker.shutdown()

    async def _refresh(self) -> None:
        self._zone.reload()
        self._holds.keep()
        await self._names.listen(self._journal.get_resolver().listen)

    async def _sweep(self, worker: ThreadPoolExecutor) -> None:
        sweeper = Sweeper(self._journal)
        loop = asyncio.get_running_loop()
        pause = 1.0  # the first two looks come early: containers may have gone while we were away
        while True:
            try:
                await loop.run_in_executor(worker, sweeper.sweep, time.time(), GRACE)
            except OSError as error:
                log.warning(f"looking for left links failed: {error}")
            await asyncio.sleep(pause)
            pause = SWEEP


def notify(state: str) -> None:
    """Tell systemd, if it asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.sendto(state.encode(), address)


async def _main(options: argparse.Namespace) -> None:
    netd = Netd(StateFiles(options.state_dir), options.plugin_socket)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, netd.stop)
    await netd.run()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="swarm-agent-net", description="serves the engine's network plugin and DNS"
    )
    parser.add_argument(
        "--state-dir", type=Path, default=DEFAULT_FOLDER, metavar="D", help="default: %(default)s"
    )
    parser.add_argument(
        "--plugin-socket", type=Path, default=DEFAULT_SOCKET, metavar="P", help="default: %(default)s"
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    options = parser.parse_args(argv)
    logging.basicConfig(
        level=options.log_level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        asyncio.run(_main(options))
    except OSError as error:
        log.critical(f"cannot start: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
