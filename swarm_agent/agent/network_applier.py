"""The network of this host, made and kept as the last view says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from swarm_agent.network.model import NetworkView, NodeNetwork
from swarm_agent.network.probe import Echoes, Prober, avoiding
from swarm_agent.objects.errors import SwarmError

log = logging.getLogger(__name__)

RECHECK_EVERY_S = 60.0
RETRY_S = 0.5


class NetworkApplier:
    """The latest view counts; one that is overtaken is never applied."""

    def __init__(self, network: NodeNetwork, echoes: Callable[[], Echoes]) -> None:
        self._network = network
        self.prober = Prober(echoes, self._avoid)
        self._told: NetworkView | None = None
        self._gone: frozenset[str] = frozenset()
        self._wanted: NetworkView | None = None
        self._done: NetworkView | None = None
        self._news = asyncio.Event()
        self._applied = asyncio.Event()

    def take(self, view: NetworkView) -> None:
        self._told = view
        self.prober.peers(view.node_id, view.peers)
        self._want()

    def _avoid(self, gone: frozenset[str]) -> None:
        self._gone = gone
        self._want()

    def _want(self) -> None:
        """What we were told, but for peers that are not there."""
        if self._told is not None:
            self._wanted = avoiding(self._told, self._gone)
            self._news.set()

    def engine_changed(self) -> None:
        """The engine's own networks are others now: what was applied depends on them, too."""
        self._network.engine_changed()
        self._news.set()

    async def ready(self) -> None:
        """Wait until the last view was applied, as far as it could be: tasks need the networks that came before them."""
        wanted = self._wanted
        while self._done is not wanted and self._wanted is wanted:
            self._applied.clear()
            await self._applied.wait()

    async def run(self) -> None:
        """Apply what comes. What failed is tried again for as long as it is wanted; tasks that do not need it go on meanwhile."""
        while True:
            await self._news.wait()
            self._news.clear()
            view = self._wanted
            if view is None:
                continue
            try:
                await self._network.apply(view)
            except SwarmError as err:
                log.error("%s", err)
                self._retry()
            except Exception:  # a bug of ours in one view must not end the network of this host
                log.exception("the network of this node could not be set up")
                self._retry()
            self._done = view
            self._applied.set()

    def _retry(self) -> None:
        asyncio.get_running_loop().call_later(RETRY_S, self._news.set)

    async def look_at_ports(self) -> None:
        """Apply the view again where a program of this host has come to hold a published port, or has let go of one."""
        if await self._network.ports_changed():
            self._news.set()

    async def keep(self) -> None:
        """Against drift: other programs change firewalls and links too. Look at everything once in a while."""
        while True:
            await asyncio.sleep(RECHECK_EVERY_S)
            await self._network.recheck()
            self._news.set()
