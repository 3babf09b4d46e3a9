"""When to look whether a host's network is still as it was made: at once when the kernel has news of it, and every two seconds
for what nobody tells of (settings, the names of namespaces).

Owns: the loop, its pace, what is known to be wrong. Refuses: knowing what should be and mending it (``host``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

log = logging.getLogger(__name__)

TICK_S = 2.0
SETTLE_S = 0.1  # what changes many things does so at once: a firewall's reload, a restart of the engine
PAUSE_S = 0.3  # between looks, however much news there is


class NetworkTrouble(NamedTuple):
    """``troubles``: what is wrong and could not be mended, by network id; ``gone``: names of containers' links that are no more."""

    troubles: dict[str, str]
    gone: frozenset[str]


Told = Callable[[frozenset[str], frozenset[str]], None]


class Mender:
    """``look`` mends what it can. Nobody else works on the host meanwhile: ``lock``."""

    def __init__(self, lock: asyncio.Lock, look: Callable[[], Awaitable[NetworkTrouble]]) -> None:
        self._lock = lock
        self._look = look
        self._fd = -1
        self._stirred = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._told: Told = lambda _gone, _networks: None
        self.troubles: dict[str, str] = {}

    def tell(self, told: Told) -> None:
        """``told`` is called with links that have gone, and with the networks whose trouble came, changed or ended."""
        self._told = told

    async def start(self, news: int) -> None:
        """``news``: a file descriptor that is readable when there is news."""
        if self._loop_task is None:
            self._fd = news
            self._loop_task = asyncio.create_task(self._run(), name="network watch")

    async def stop(self) -> None:
        if self._loop_task is None:
            return
        self._loop_task.cancel()
        await asyncio.gather(self._loop_task, return_exceptions=True)
        self._loop_task = None
        asyncio.get_running_loop().remove_reader(self._fd)
        self.troubles = {}

    def trouble(self, networks: Iterable[str] | None = None) -> str:
        """What is wrong with these networks, or with any; "" when nothing is."""
        wanted = self.troubles if networks is None else networks
        return "; ".join(self.troubles[network] for network in wanted if network in self.troubles)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            loop.add_reader(self._fd, self._hear)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._stirred.wait()
            if self._stirred.is_set():
                await asyncio.sleep(SETTLE_S)
            self._stirred.clear()
            try:
                async with self._lock:
                    found = await self._look()
            except Exception:  # a bug of ours must not leave the host without anybody looking after it
                log.exception("the network of this node could not be looked at")
            else:
                self._take(found)
            await asyncio.sleep(PAUSE_S)

    def _hear(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)  # until it was read
        self._stirred.set()

    def _take(self, found: NetworkTrouble) -> None:
        both = self.troubles.keys() | found.troubles.keys()
        changed = frozenset(n for n in both if self.troubles.get(n) != found.troubles.get(n))
        for network in sorted(changed):
            if network in found.troubles:
                log.error(found.troubles[network])
            else:
                log.info(f"network {network} of this node is as it should be again")
        self.troubles = found.troubles
        if changed or found.gone:
            self._told(found.gone, changed)
