"""The network of the whole cluster as the store has it, from which each node's view is cut. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from swarm_agent.control.scheduler.usage import bare
from swarm_agent.dispatcher.assignments import draining, kept, ready
from swarm_agent.network.model import (
    Endpoint,
    NetworkView,
    Overlay,
    Peer,
    PublishedPort,
    TaskAddress,
    VirtualIP,
)
from swarm_agent.objects import defaults
from swarm_agent.objects.records import Network, Node, Service, Task
from swarm_agent.objects.specs import PortConfig
from swarm_agent.store import Store

MTU = 1450
MTU_OPTION = "com.docker.network.driver.mtu"


class ClusterNetworkState:
    """The network side of the whole cluster at one moment, from which each node's view is cut."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.peers = tuple(
            Peer(n.id, n.number, n.data_addr)
            for n in sorted(store.nodes.all(), key=lambda n: n.number)
            if n.number and n.data_addr
        )
        self._members, self._control_ports = addresses(store.nodes.all())
        self._tasks: defaultdict[str, list[Task]] = defaultdict(list)  # by service, those that hold addresses
        self._on_node: defaultdict[str, list[Task]] = defaultdict(list)
        for task in store.tasks.all():
            if task.node_id and not task.status.state.terminal:
                self._tasks[task.service_id].append(task)
                self._on_node[task.node_id].append(task)
        self._endpoints = self._all_endpoints()
        self._vips = self._all_vips()
        self._ingress = self._ingress_ports()

    def view(self, node: Node) -> NetworkView:
        """What this node is told; it knows only the networks its tasks are on."""
        mine = [t for t in self._on_node.get(node.id, ()) if t.node_address or t.networks]
        used = sorted({part.network_id for t in mine for part in t.networks})
        overlays = [n for n in map(self._store.networks.get, used) if n is not None and n.subnet]
        return NetworkView(
            node_id=node.id,
            number=node.number,
            data_addr=node.data_addr,
            peers=tuple(p for p in self.peers if p.node_id != node.id),
            overlays=tuple(_overlay(n) for n in overlays),
            endpoints=tuple(e for i in used for e in self._endpoints.get(i, ())),
            vips=tuple(v for i in used for v in self._vips.get(i, ())),
            ports=self._ingress + self._host_ports(mine),
            local=tuple(
                TaskAddress(t.id, t.node_address, tuple(p.network_id for p in t.networks), self._servers(t))
                for t in sorted(mine, key=lambda t: t.id)
                if t.node_address
            ),
            members=self._members,
            control_ports=self._control_ports,
        )

    def _servers(self, task: Task) -> tuple[str, ...]:
        """The name servers a task on an overlay asked for: ours is the one it speaks to, and asks them."""
        revision = self._store.revisions.get(task.revision_id)
        if revision is None or not task.networks:
            return ()
        return defaults.name_servers(revision.template)

    def _all_endpoints(self) -> dict[str, list[Endpoint]]:
        out: defaultdict[str, list[Endpoint]] = defaultdict(list)
        for tasks in self._tasks.values():
            for task in tasks:
                aliases = self._aliases(task.revision_id)
                for part in task.networks:
                    out[part.network_id].append(
                        Endpoint(
                            network_id=part.network_id,
                            task_id=task.id,
                            task_name=task.name,
                            service_id=task.service_id,
                            service_name=task.service_name,
                            node_id=task.node_id,
                            address=bare(part.address),
                            aliases=aliases.get(part.network_id, ()),
                            ready=ready(task) or kept(self._store, task),
                        )
                    )
        for rows in out.values():
            rows.sort(key=lambda e: e.task_id)
        return out

    def _all_vips(self) -> dict[str, list[VirtualIP]]:
        out: defaultdict[str, list[VirtualIP]] = defaultdict(list)
        for service in sorted(self._store.services.all(), key=lambda s: s.id):
            aliases = self._aliases(service.revision_id)
            for vip in (service.endpoint and service.endpoint.virtual_ips) or ():
                out[vip.network_id].append(
                    VirtualIP(
                        network_id=vip.network_id,
                        service_id=service.id,
                        service_name=service.spec.name or "",
                        address=bare(vip.address),
                        aliases=aliases.get(vip.network_id, ()),
                    )
                )
        return out

    def _aliases(self, revision_id: str) -> dict[str, tuple[str, ...]]:
        """By network id; a stored template names its networks by id."""
        revision = self._store.revisions.get(revision_id)
        if revision is None:
            return {}
        return {n.target: n.aliases or () for n in revision.template.networks or () if n.target}

    def _ingress_ports(self) -> tuple[PublishedPort, ...]:
        out = []
        for service in sorted(self._store.services.all(), key=lambda s: s.id):
            out += self._published(service, "ingress", self._tasks.get(service.id, []))
        return tuple(out)

    def _host_ports(self, mine: list[Task]) -> tuple[PublishedPort, ...]:
        by_service: defaultdict[str, list[Task]] = defaultdict(list)
        for task in mine:
            by_service[task.service_id].append(task)
        out: list[PublishedPort] = []
        for service_id, tasks in sorted(by_service.items()):
            service = self._store.services.get(service_id)
            if service is not None:
                out += self._published(service, "host", tasks)
            out += [_picked(task, port) for task in tasks for port in task.status.ports]
        return tuple(out)

    def _published(self, service: Service, mode: str, tasks: list[Task]) -> list[PublishedPort]:
        held = [t for t in tasks if t.node_address]
        taking = [t for t in held if ready(t) or kept(self._store, t)]
        leaving = [t for t in held if draining(t) and t not in taking]
        return [
            PublishedPort(
                service_id=service.id,
                protocol=defaults.protocol(port),
                published=port.published_port,
                target=port.target_port or 0,
                mode=mode,
                backends=tuple(sorted(t.node_address for t in taking)),
                draining=tuple(sorted(t.node_address for t in leaving)),
            )
            for port in (service.endpoint and service.endpoint.ports) or ()
            if defaults.publish_mode(port) == mode and port.published_port
        ]


def addresses(nodes: Iterable[Node]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Every address of a member that is known, and the ports of managers, as far as the records tell."""
    found: set[str] = set()
    ports: set[int] = set()
    for node in nodes:
        found |= {node.data_addr, node.status.addr, *node.description.addresses}
        for place in (node.manager_addr, node.rpc_addr):
            host, _, port = place.rpartition(":")
            found.add(host.strip("[]"))
            if port.isdigit():
                ports.add(int(port))
    return tuple(sorted(found - {""})), tuple(sorted(ports))


def _picked(task: Task, port: PortConfig) -> PublishedPort:
    """A host-mode port the task's node picked for it."""
    address = (task.node_address,) if task.node_address else ()
    return PublishedPort(
        service_id=task.service_id,
        protocol=defaults.protocol(port),
        published=port.published_port or 0,
        target=port.target_port or 0,
        mode="host",
        backends=address if ready(task) else (),
        draining=address if draining(task) else (),
    )


def _overlay(network: Network) -> Overlay:
    return Overlay(
        network_id=network.id,
        name=network.spec.name or "",
        vni=network.vni,
        subnet=network.subnet,
        gateway=network.gateway,
        mtu=int((network.spec.options or {}).get(MTU_OPTION, MTU)),
        internal=bool(network.spec.internal),
    )
