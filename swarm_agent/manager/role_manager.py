"""The role manager: makes Raft's membership and every node's observed role follow what was asked. Leader only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from swarm_agent.objects import features
from swarm_agent.objects.errors import FailedPrecondition, ReleaseTooOld, SwarmError
from swarm_agent.objects.records import Node
from swarm_agent.raft import Member, RaftNode
from swarm_agent.store import ApplyResult, Change, Group, Put, Store

log = logging.getLogger(__name__)

Propose = Callable[[tuple[Group, ...]], Awaitable[ApplyResult]]
RETRY_S = 2.0


class RoleManager:
    """Promotes by setting the role (the node then renews its certificate and joins Raft itself); demotes by taking
    the member out of Raft first, itself last and only after handing leadership over."""

    def __init__(self, store: Store, raft: RaftNode, propose: Propose) -> None:
        self._store = store
        self._raft = raft
        self._propose = propose
        self._wake = asyncio.Event()
        self._unwatch = store.watch(self._on_commit, Node)

    def _on_commit(self, index: int, changes: Sequence[Change]) -> None:  # noqa: ARG002 - the watcher's signature
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._wake.clear()
                again = await self._look()
                try:
                    async with asyncio.timeout(RETRY_S if again else None):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            self.close()

    def close(self) -> None:
        """Hear of no more commits."""
        self._unwatch()

    async def _look(self) -> bool:
        """Do what can be done; whether something is left that may work later."""
        again = False
        for node in list(self._store.nodes.all()):
            if node.spec.role == node.role:
                continue
            try:
                if node.spec.role == "manager":
                    await self._set_role(node, "manager")
                else:
                    await self._demote(node)
            except SwarmError as err:
                log.info("cannot make %s a %s yet: %s", node.id, node.spec.role, err, extra={"node": node.id})
                again = True
        for member in self._raft.status().members:
            node_now = self._store.nodes.get(member.node_id)
            is_manager = node_now is not None and "manager" in (node_now.role, node_now.spec.role)
            if not is_manager and member.raft_id != self._raft.status().raft_id:
                try:
                    await self._raft.remove_member(member.raft_id)
                except SwarmError as err:
                    log.info("cannot remove member %s, which is no manager: %s", member.node_id, err)
                    again = True
        return again

    async def _demote(self, node: Node) -> None:
        member = self._member(node.id)
        if member is not None:
            if member.raft_id == self._raft.status().raft_id:
                log.info("handing leadership over: this manager is to be a worker")
                await self._raft.transfer()
                return  # the next leader does the rest
            await self._raft.remove_member(member.raft_id)
        await self._set_role(node, "worker")

    async def _set_role(self, node: Node, role: str) -> None:
        while True:
            current = self._store.nodes.get(node.id)
            if current is None:
                return
            gone = {"manager_addr": "", "rpc_addr": "", "raft_id": 0} if role == "worker" else {}
            changed = msgspec.structs.replace(current, role=role, **gone)
            result = await self._propose((Group(f"node/{node.id}", (Put(changed, current.version),)),))
            if result.accepted[0]:
                return

    def _member(self, node_id: str) -> Member | None:
        return next((m for m in self._raft.status().members if m.node_id == node_id), None)


async def admit(
    raft: RaftNode,
    store: Store,
    propose: Propose,
    node_id: str,
    raft_id: int,
    rpc_addr: str,
    manager_addr: str,
    level: int,
) -> None:
    """Make a manager that asks for it a member of Raft; again with another address is a change of address.

    Raises:
        FailedPrecondition: it is to be a worker; nothing was done.
        ReleaseTooOld: the cluster is above its feature level; nothing was done.
    """
    too_low = features.too_low(level, store.feature_level)
    if too_low:
        raise ReleaseTooOld(too_low)
    asking = store.nodes.get(node_id)
    if asking is None or asking.spec.role != "manager" or asking.role != "manager":
        raise FailedPrecondition(f"node {node_id} is not to be a manager")
    for old in [m for m in raft.status().members if m.node_id == node_id and m.raft_id != raft_id]:
        log.info("manager %s comes back with an empty disk: its old membership ends", node_id)
        await raft.remove_member(old.raft_id)
    known = next((m for m in raft.status().members if m.raft_id == raft_id), None)
    member = Member(raft_id=raft_id, node_id=node_id, addr=rpc_addr)
    if known is None or known.learner:  # a learner: an earlier attempt was cut short
        await raft.add_member(member)
    elif known.addr != rpc_addr:
        await raft.update_member(member)
    while True:
        node = store.nodes.get(node_id)
        if node is None:
            return
        changed = msgspec.structs.replace(node, raft_id=raft_id, rpc_addr=rpc_addr, manager_addr=manager_addr)
        if changed == node:
            return
        result = await propose((Group(f"node/{node_id}", (Put(changed, node.version),)),))
        if result.accepted[0]:
            return
