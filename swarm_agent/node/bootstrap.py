"""The first records of a new cluster: its root, tokens, unlock key, and the node that founds it.

Owns what ``docker swarm init`` puts into the world. Refuses to start anything and to touch the disk: ``node.node`` does, and undoes
it when it fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from swarm_agent.ca import ca
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.ca.tokens import new_tokens
from swarm_agent.ca.unlock import new_unlock_key
from swarm_agent.node.membership import MembershipRecord
from swarm_agent.objects import defaults, features
from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.objects.records import Cluster, Node, NodeStatus, UnlockKey
from swarm_agent.objects.specs import ClusterSpec, EncryptionConfig, InitRequest, NodeSpec


class ManagerAddresses(NamedTuple):
    """Where the founding manager stands."""

    host: str  # what others reach it by
    data_addr: str
    listen_host: str
    join_port: int
    rpc_port: int


class Bootstrapped(NamedTuple):
    cluster: Cluster
    node: Node
    membership: MembershipRecord
    identity: NodeIdentity


def bootstrap(
    request: InitRequest, place: ManagerAddresses, new_id: Callable[[], str], source: ca.Source, level: int
) -> Bootstrapped:
    """Everything new, from ``source``."""
    node_id, cluster_id = new_id(), new_id()
    root = ca.make_root(source)
    key, csr = ca.make_request(source)
    spec = defaults.cluster_defaults(request.spec or ClusterSpec())
    unlock = UnlockKey()
    if request.auto_lock_managers or spec.encryption_config.auto_lock_managers:
        unlock = UnlockKey(key=new_unlock_key(source.bits), version=1)
        spec = msgspec.structs.replace(spec, encryption_config=EncryptionConfig(auto_lock_managers=True))
        if level < features.AUTOLOCK:
            raise InvalidSpec(
                f"autolock needs feature level {features.AUTOLOCK}; this manager is held at {level} by feature_level in agent.toml"
            )
    subject = ca.Subject(node_id, "manager", cluster_id)
    cert, ends = ca.sign(root, csr, subject, defaults.node_cert_expiry(spec), source)
    cluster = Cluster(
        id=cluster_id,
        spec=spec,
        root_ca=root,
        join_tokens=new_tokens(root.digest, source.bits),
        unlock=unlock,
        default_addr_pool=request.default_addr_pool or ("10.0.0.0/8",),
        pool_given=bool(request.default_addr_pool) or request.subnet_size is None,
        subnet_size=request.subnet_size or 24,
        feature_level=level,
    )
    node, membership = _stands(cluster, place, node_id, ends, availability=request.availability or "active")
    return Bootstrapped(cluster, node, membership, NodeIdentity(key, cert, root.cert))


def recover(
    cluster: Cluster, place: ManagerAddresses, new_id: Callable[[], str], source: ca.Source
) -> Bootstrapped:
    """A new node for a cluster that comes from a backup: the root signs for it, everything else stays."""
    node_id = new_id()
    key, csr = ca.make_request(source)
    subject = ca.Subject(node_id, "manager", cluster.id)
    cert, ends = ca.sign(cluster.root_ca, csr, subject, defaults.node_cert_expiry(cluster.spec), source)
    node, membership = _stands(cluster, place, node_id, ends)
    return Bootstrapped(cluster, node, membership, NodeIdentity(key, cert, cluster.root_ca.cert))


def _stands(
    cluster: Cluster, place: ManagerAddresses, node_id: str, ends: int, availability: str = "active"
) -> tuple[Node, MembershipRecord]:
    node = Node(
        id=node_id,
        spec=NodeSpec(role="manager", availability=availability),
        role="manager",
        status=NodeStatus(addr=place.host),
        manager_addr=f"{place.host}:{place.join_port}",
        rpc_addr=f"{place.host}:{place.rpc_port}",
        cert_not_after=ends,
    )
    membership = MembershipRecord(
        cluster_id=cluster.id,
        node_id=node_id,
        role="manager",
        advertise_host=place.host,
        listen_host=place.listen_host,
        join_port=place.join_port,
        data_addr=place.data_addr,
        managers=(),
    )
    return node, membership
