"""What nodes and other managers may ask of a manager by RPC, and who may ask what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import msgspec

from swarm_agent.ca.ca import Subject
from swarm_agent.ca.join_server import Issued
from swarm_agent.manager.certificate_issuer import CertificateIssuer
from swarm_agent.manager.role_manager import admit
from swarm_agent.objects.errors import NotLeading, PermissionDenied
from swarm_agent.rpc.grpc import Method, Redirect
from swarm_agent.rpc.messages import (
    Down,
    ForwardedAnswer,
    ForwardedCall,
    IssueFor,
    JoinRaft,
    Leave,
    Members,
    Nothing,
    Renew,
    Up,
)
from swarm_agent.store import Group, Put

if TYPE_CHECKING:
    from swarm_agent.manager.manager import Manager

LET_GO_S = 10.0

ServeForwarded = Callable[[ForwardedCall], AsyncIterator[ForwardedAnswer]]


class RpcHandlers:
    """``serve_forwarded`` is the API's answer to calls followers pass on."""

    def __init__(
        self, manager: Manager, authority: CertificateIssuer, serve_forwarded: ServeForwarded
    ) -> None:
        self._manager = manager
        self._authority = authority
        self._serve = serve_forwarded

    def methods(self) -> list[Method]:
        return [
            Method("Session", True, True, True, self._session),
            Method("Logs", True, False, True, self._manager.logs.serve),
            Method("Forward", False, True, False, self._forwarded),
            Method("JoinRaft", False, False, False, self._join_raft),
            Method("Renew", False, False, True, self._renew),
            Method("Issue", False, False, False, self._issue_for),
            Method("Leave", False, False, True, self._leave),
        ]

    def allow(self, caller: Subject, method: Method) -> None:
        """The second check of every call: the node table. A joining manager has no table yet and trusts certificates."""
        self._manager.admit(caller)
        if self._manager.store.cluster is None:
            return
        node = self._manager.store.nodes.get(caller.node_id)
        if node is None:
            raise PermissionDenied(f"Permission denied: node {caller.node_id} is not known here")
        if not method.workers and node.role != "manager":
            raise PermissionDenied(f"Permission denied: node {caller.node_id} is not a manager")

    async def _session(self, caller: Subject, requests: AsyncIterator[Up]) -> AsyncIterator[Down]:
        self._manager.must_lead()
        await (
            self._manager.read_barrier()
        )  # a leader that was deposed and does not know it would hand out an old world
        leadership = self._manager.must_lead()
        async for message in leadership.dispatcher.session(caller.node_id, requests, ""):
            yield message

    async def _forwarded(self, caller: Subject, call: ForwardedCall) -> AsyncIterator[ForwardedAnswer]:  # noqa: ARG002
        self._manager.must_lead()
        try:
            async for piece in self._serve(call):
                yield piece
        except NotLeading as err:
            raise Redirect("") from err  # leadership went while we looked: the caller asks whoever leads now

    async def _join_raft(self, caller: Subject, request: JoinRaft) -> Members:
        self._manager.must_lead()
        assert self._manager.raft is not None
        await admit(
            self._manager.raft,
            self._manager.store,
            self._manager.propose,
            caller.node_id,
            request.raft_id,
            request.rpc_addr,
            request.manager_addr,
            request.feature_level,
        )
        members = tuple((m.raft_id, m.node_id, m.addr) for m in self._manager.status.members)
        return Members(members, self._manager.settings.cluster_id)

    async def _renew(self, caller: Subject, request: Renew) -> Issued:
        self._manager.must_lead()
        return await self._authority.renew(caller, request.csr)

    async def _issue_for(self, caller: Subject, request: IssueFor) -> Issued:  # noqa: ARG002 - managers only
        self._manager.must_lead()
        return await self._authority.issue(request.request)

    async def _leave(self, caller: Subject, request: Leave) -> Nothing:  # noqa: ARG002
        """A node leaves for good: a manager is first made a worker, so that it counts no more."""
        self._manager.must_lead()
        while True:
            node = self._manager.store.nodes.get(caller.node_id)
            if node is None:
                return Nothing()
            changed = msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, role="worker"))
            if changed == node:
                break
            if (
                await self._manager.propose((Group(f"node/{node.id}", (Put(changed, node.version),)),))
            ).accepted[0]:
                break
        await self._manager.wait_until(
            lambda: all(m.node_id != caller.node_id for m in self._manager.status.members),
            LET_GO_S,
            "for Raft to let the manager go",
        )
        return Nothing()
