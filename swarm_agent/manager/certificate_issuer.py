"""Who gets a certificate: joiners with a token, members that renew. Leader only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from swarm_agent.ca.ca import Source, Subject, sign
from swarm_agent.ca.join_server import Issued, IssueRequest
from swarm_agent.ca.tokens import role_of
from swarm_agent.dispatcher.assignments import managers
from swarm_agent.objects import defaults, features
from swarm_agent.objects.enums import AVAILABILITIES
from swarm_agent.objects.errors import NotFound, ReleaseTooOld, Unavailable, UserError
from swarm_agent.objects.records import Cluster, Node, NodeDescription, NodeStatus
from swarm_agent.objects.specs import NodeSpec
from swarm_agent.store import ApplyResult, Group, Put, Store

MAX_CLOCK_DIFFERENCE = 10 * 60 * defaults.SECOND

Propose = Callable[[tuple[Group, ...]], Awaitable[ApplyResult]]


class CertificateIssuer:
    """Signs with the root key in the store."""

    def __init__(self, store: Store, propose: Propose, new_id: Callable[[], str], source: Source) -> None:
        self._source = source
        self._store = store
        self._propose = propose
        self._new_id = new_id

    async def issue(self, request: IssueRequest) -> Issued:
        """A certificate and a node record for a joiner.

        Raises:
            UserError: the token is not ours, the clock is hours off, the request is malformed; nothing was written.
        """
        cluster = self._cluster()
        role = role_of(request.token, cluster.join_tokens)
        if role is None:
            raise UserError("A valid join token is necessary to join this cluster")
        if request.availability and request.availability not in AVAILABILITIES:
            raise UserError(f'invalid Availability: "{request.availability}"')
        self._check_clock(request)
        too_low = features.too_low(
            request.feature_level, cluster.feature_level, request.hostname or "this node"
        )
        if role == "manager" and too_low:
            raise ReleaseTooOld(f"it cannot join as a manager: {too_low}")
        node_id = self._new_id()
        cert, ends = self._sign(cluster, request.csr, Subject(node_id, role, cluster.id))
        node = Node(
            id=node_id,
            spec=NodeSpec(role=role, availability=request.availability or "active"),
            role=role,
            description=NodeDescription(hostname=request.hostname),
            status=NodeStatus(message="waiting for the node's first session"),
            cert_not_after=ends,
        )
        await self._propose((Group(f"node/{node_id}", (Put(node, 0),)),))
        return Issued(node_id, cluster.id, role, cert, managers(self._store))

    async def renew(self, caller: Subject, csr: bytes) -> Issued:
        """A new certificate for a member, in the role its record gives it now."""
        cluster = self._cluster()
        while True:
            node = self._store.nodes.get(caller.node_id)
            if node is None:
                raise NotFound(f"node {caller.node_id} not found when attempting to renew certificate")
            cert, ends = self._sign(cluster, csr, Subject(node.id, node.role, cluster.id))
            changed = msgspec.structs.replace(node, cert_not_after=ends)
            result = await self._propose((Group(f"node/{node.id}", (Put(changed, node.version),)),))
            if result.accepted[0]:
                return Issued(node.id, cluster.id, node.role, cert, managers(self._store))

    def _cluster(self) -> Cluster:
        cluster = self._store.cluster
        if cluster is None:
            raise Unavailable("the cluster is still being prepared, try again")
        return cluster

    def _sign(self, cluster: Cluster, csr: bytes, subject: Subject) -> tuple[bytes, int]:
        return sign(cluster.root_ca, csr, subject, defaults.node_cert_expiry(cluster.spec), self._source)

    def _check_clock(self, request: IssueRequest) -> None:
        if not request.clock:
            return
        off = request.clock - self._source.now()
        if abs(off) > MAX_CLOCK_DIFFERENCE:
            way = "ahead of" if off > 0 else "behind"
            raise UserError(
                f"the clock of {request.hostname or 'this node'} is {abs(off) // defaults.SECOND} s {way} the manager's: "
                "certificates would not be valid. Set the clock (for example with chrony) and join again"
            )
