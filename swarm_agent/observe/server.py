"""``/metrics``, ``/healthz``, ``/readyz`` on a local TCP port. Reads only."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from typing import Protocol

from swarm_agent import __version__
from swarm_agent.gate import Gate, GateLimits, Visitor, open_streams, tcp_listener
from swarm_agent.manager.manager import Manager
from swarm_agent.node.member import LocalMember
from swarm_agent.objects.errors import Unavailable
from swarm_agent.observe import metrics

log = logging.getLogger(__name__)

LAG_EVERY_S = 0.25
LIMITS = GateLimits(seconds=5.0, waiting=256, per_source=256, speaking=32)  # until a request is complete


class Observed(Protocol):
    """What is looked at: the daemon."""

    @property
    def state(self) -> str: ...
    @property
    def error(self) -> str: ...
    @property
    def is_manager(self) -> bool: ...
    @property
    def is_leader(self) -> bool: ...
    @property
    def member(self) -> LocalMember | None: ...


class ObserveServer:
    """A few lines of HTTP; everything it tells is read at the moment it is asked."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._gate = Gate("metrics port", self._serve, LIMITS)
        self._lag: asyncio.Task[None] | None = None
        self.worst_lag_s = 0.0
        self.stalls = 0

    async def start(self, addr: str) -> None:
        self._lag = asyncio.create_task(self._watch_lag(), name="loop lag")
        if addr:
            host, _, port = addr.rpartition(":")
            try:
                self._gate.listen(tcp_listener(host, int(port)))
            except OSError as err:
                raise Unavailable(
                    f"cannot serve metrics on {addr}: {err.strerror}. Free the port (the engine's own metrics like it "
                    "too) or set metrics_addr in the agent's configuration"
                ) from err

    async def stop(self) -> None:
        if self._lag is not None:
            self._lag.cancel()
            await asyncio.gather(self._lag, return_exceptions=True)
        await self._gate.close()

    async def _watch_lag(self) -> None:
        """How late the loop is with what it should have done."""
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(LAG_EVERY_S)
            lag = loop.time() - before - LAG_EVERY_S
            self.worst_lag_s = max(self.worst_lag_s, lag)
            if lag > LAG_EVERY_S:
                self.stalls += 1
                log.warning("the event loop stood still for %.0f ms", lag * 1000)

    async def _serve(self, sock: socket.socket, visitor: Visitor) -> None:
        reader, writer = await open_streams(sock)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            visitor.proved()
            path = head.split(b" ", 2)[1].partition(b"?")[0].decode("latin-1")
            status, kind, text = self._answer(path)
            body = text.encode()
            writer.write(
                f"HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        except (OSError, TimeoutError, EOFError, IndexError, asyncio.LimitOverrunError):
            log.debug("bad request on the metrics port")
        finally:
            writer.close()

    def _answer(self, path: str) -> tuple[int, str, str]:
        if path == "/healthz":
            return 200, "text/plain", "ok\n"
        if path == "/readyz":
            why = self._not_ready()
            return (503, "text/plain", why + "\n") if why else (200, "text/plain", "ok\n")
        if path == "/metrics":
            return 200, "text/plain; version=0.0.4; charset=utf-8", "".join(self.metrics())
        return 404, "text/plain", "page not found\n"

    def _not_ready(self) -> str:
        """Why this node does not do its work now; "" when it does. A node outside a swarm is ready to join one."""
        observed = self._observed
        if observed.state == "inactive":
            return ""
        if observed.state == "locked":
            return 'locked: this manager waits for its unlock key, "docker swarm unlock"'
        if observed.state != "active":
            return f"not active: {observed.error or observed.state}"
        if observed.error:
            return observed.error
        member = observed.member
        assert member is not None  # as it is active
        if not member.session.connected.is_set():
            return "no session with a leader"
        if member.manager is not None and member.manager.status.leader is None:
            return "raft has no leader"
        return member.network_trouble

    def metrics(self) -> list[str]:
        """A block of Prometheus text for each metric that has a value now."""
        observed = self._observed
        out = [
            metrics.AGENT_INFO.text(1, version=__version__),
            metrics.LOOP_LAG_WORST.text(round(self.worst_lag_s, 6)),
            metrics.LOOP_STALLS.text(self.stalls),
            metrics.NODE_MANAGER.text(int(observed.is_manager)),
            metrics.MANAGER_LEADER.text(int(observed.is_leader)),
        ]
        member = observed.member
        if member is None:
            return out
        ids = member.membership
        states = Counter(r.status.state.word for r in member.worker.runners.values())
        out += [
            metrics.NODE_INFO.text(1, node_id=ids.node_id, swarm_id=ids.cluster_id),
            metrics.SESSION_CONNECTED.text(int(member.session.connected.is_set())),
            metrics.AGENT_TASKS.text_by("state", states),
        ]
        manager = member.manager
        if manager is not None and manager.raft is not None:
            out += self._manager_metrics(manager)
        return out

    def _manager_metrics(self, manager: Manager) -> list[str]:
        store, status = manager.store, manager.status
        nodes = {state.word: n for state, n in store.nodes.tallies["state"].items()}
        tasks = {state.word: n for state, n in store.tasks.tallies["state"].items()}
        out = [
            metrics.RAFT_TERM.text(status.term),
            metrics.RAFT_COMMIT_INDEX.text(status.commit),
            metrics.RAFT_APPLIED_INDEX.text(status.applied),
            metrics.RAFT_MEMBERS.text(len(status.members)),
            metrics.RAFT_MISSED_TICKS.text(status.missed_ticks),
            metrics.CLUSTER_FEATURE_LEVEL.text(store.feature_level),
            metrics.MANAGER_FEATURE_LEVEL.text(store.level),
            metrics.MANAGER_SERVICES.text(len(store.services)),
            metrics.MANAGER_NETWORKS.text(len(store.networks)),
            metrics.MANAGER_SECRETS.text(len(store.secrets)),
            metrics.MANAGER_CONFIGS.text(len(store.configs)),
            metrics.MANAGER_NODES.text_by("state", nodes),
            metrics.MANAGER_TASKS.text_by("state", tasks),
        ]
        if manager.leadership is not None:
            control = manager.leadership.control
            out += [
                metrics.CONTROL_PASSES.text(control.passes),
                metrics.CONTROL_REJECTED.text(control.rejected),
                metrics.CONTROL_FAULTS.text(control.faults),
                metrics.CONTROL_LAST_PASS.text(round(control.last_pass_s, 6)),
                metrics.MANAGER_SESSIONS.text(len(manager.leadership.dispatcher.sessions)),
            ]
        return out
