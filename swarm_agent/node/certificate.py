"""This host's certificate: renewed in time, and when its role changes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from swarm_agent.ca import ca
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.ca.join_server import Issued
from swarm_agent.environment import Environment
from swarm_agent.node.state import NodeStateFiles
from swarm_agent.objects.errors import SwarmError
from swarm_agent.rpc.messages import Renew

log = logging.getLogger(__name__)

RENEW_AT = (0.5, 0.8)  # of a certificate's life, drawn at random between
LOOK_EVERY_S = 60.0
RETRY_S = 30.0
TIMEOUT_S = 10.0


class AskLeader(Protocol):
    """A call only the leader answers. SwarmError when none does."""

    async def __call__(self, name: str, request: object, timeout_s: float) -> Any: ...


class Certificate:
    """``renewed`` is called whenever there is a new one."""

    def __init__(
        self,
        papers: NodeStateFiles,
        ask_leader: AskLeader,
        renewed: Callable[[], Awaitable[None]],
        rng: random.Random,
        environment: Environment,
    ) -> None:
        self._papers = papers
        self._ask_leader = ask_leader
        self._renewed = renewed
        self._rng = rng
        self._environment = environment

    async def renew(self) -> None:
        """For the role our record has by now. SwarmError: nobody issued it; OSError: it could not be written down."""
        key, csr = ca.make_request(self._environment.certificates)
        issued: Issued = await self._ask_leader("Renew", Renew(csr), TIMEOUT_S)
        self._papers.take(NodeIdentity(key, issued.cert, self._papers.identity.root))
        await self._renewed()
        log.info("certificate renewed, role %s", issued.role)

    async def keep(self) -> None:
        """Renew somewhere between half and four fifths of a certificate's life, for ever."""
        while True:
            life = ca.life_of(self._papers.identity.cert)
            at = life.begins + int((life.ends - life.begins) * self._rng.uniform(*RENEW_AT))
            while self._environment.now() < at and ca.life_of(self._papers.identity.cert) == life:
                await asyncio.sleep(min(LOOK_EVERY_S, max(0.1, (at - self._environment.now()) / 1e9)))
            if ca.life_of(self._papers.identity.cert) != life:
                continue
            try:
                await self.renew()
            except (SwarmError, OSError) as err:
                log.warning("cannot renew the certificate, trying again: %s", err)
                await asyncio.sleep(RETRY_S)
