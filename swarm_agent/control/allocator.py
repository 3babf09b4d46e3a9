"""Addresses, virtual IPs, ports, network numbers and node numbers.

Serial allocation with a cursor, so that a freed address rests before it is used again. What cannot be had leaves its
reason with whoever asked; it is tried again when something is freed.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Container, Iterator

import msgspec

from swarm_agent.control import subnets
from swarm_agent.control.scheduler.usage import ClusterUsage, bare
from swarm_agent.control.subnets import NODE_NETWORK, Exhausted
from swarm_agent.control.transaction import Transaction
from swarm_agent.objects import defaults
from swarm_agent.objects.records import (
    Network,
    NetworkAddress,
    Node,
    Revision,
    Service,
    ServiceEndpoint,
    Task,
    VirtualAddress,
)
from swarm_agent.objects.specs import PortConfig

FIRST_VNI, LAST_VNI = 4097, (1 << 24) - 1
DYNAMIC_PORTS = (30000, 32767)
NODE_PREFIX = 22
MAX_NODES = (1 << (NODE_PREFIX - NODE_NETWORK.prefixlen)) - 1


# --- networks ------------------------------------------------------------------------------------------------------
def allocate_network(p: Transaction, network: Network) -> None:
    """Give a network its subnet, gateway and VXLAN number."""
    if network.subnet:
        return
    config = next(iter((network.spec.ipam and network.spec.ipam.config) or ()), None)
    cluster = p.view.cluster
    if cluster is None:
        return
    if config is not None and config.subnet:
        subnet = ipaddress.IPv4Network(config.subnet)
    else:
        try:
            taken, pools = p.usage.subnets.values(), cluster.default_addr_pool
            subnet = subnets.free(taken, list(p.view.nodes.all()), pools, cluster.subnet_size)
        except Exhausted:
            return
    gateway = (config and config.gateway) or str(subnet[1])
    vni = next(n for n in _serial(p.usage, "vni", FIRST_VNI, LAST_VNI) if n not in p.usage.vnis)
    p.usage.cursors["vni"] = vni
    p.put(msgspec.structs.replace(network, subnet=str(subnet), gateway=gateway, vni=vni))


# --- nodes -----------------------------------------------------------------------------------------------------------
def allocate_node(p: Transaction, node: Node) -> None:
    """Give a node its number, which decides its part of the node network."""
    if node.number:
        return
    number = next((n for n in range(1, MAX_NODES + 1) if n not in p.usage.numbers), 0)
    if number:
        p.put(msgspec.structs.replace(node, number=number))


@functools.lru_cache(maxsize=2048)
def node_subnet(number: int) -> ipaddress.IPv4Network:
    base = int(NODE_NETWORK.network_address) + (number << (32 - NODE_PREFIX))
    return ipaddress.IPv4Network((base, NODE_PREFIX))


# --- services --------------------------------------------------------------------------------------------------------
def allocate_service(p: Transaction, service: Service, revision: Revision) -> str:
    """Give a service its virtual IPs and published ports; returns why not, or ""."""
    current = service.endpoint or ServiceEndpoint()
    try:
        vips = _virtual_ips(p, current, revision)
        ports = _ports(p.usage, service, current, revision)
    except Exhausted as err:
        return str(err)
    endpoint = ServiceEndpoint(ports=ports, virtual_ips=vips)
    if endpoint != service.endpoint:
        p.put(msgspec.structs.replace(service, endpoint=endpoint))
    return ""


def _virtual_ips(p: Transaction, current: ServiceEndpoint, revision: Revision) -> tuple[VirtualAddress, ...]:
    have = {v.network_id: v for v in current.virtual_ips}
    out = []
    given: dict[str, set[str]] = {}
    for network_id in revision.networks:
        vip = have.get(network_id)
        if vip is None:
            network = _ready_network(p, network_id)
            address = free_address(p.usage, network, given.setdefault(network_id, set()))
            vip = VirtualAddress(network_id=network_id, address=address)
        out.append(vip)
    return tuple(out)


def _ports(
    usage: ClusterUsage, service: Service, current: ServiceEndpoint, revision: Revision
) -> tuple[PortConfig, ...]:
    """The published ports; a dynamic one stays while (name, protocol, target, mode) is unchanged."""
    sticky = {_port_key(port): port.published_port for port in current.ports}
    out: list[PortConfig] = []
    given: set[tuple[str, int]] = set()
    for port in revision.endpoint.ports or ():
        protocol, mode = defaults.protocol(port), defaults.publish_mode(port)
        published = port.published_port or 0
        if mode == "ingress":
            if published:
                owner = usage.published.get((protocol, published), service.id)
                if owner != service.id:
                    raise Exhausted(f"port {published}/{protocol} is already published by service {owner}")
            else:
                published = sticky.get(_port_key(port)) or _dynamic_port(usage, protocol, given)
            given.add((protocol, published))
        out.append(
            PortConfig(
                name=port.name,
                protocol=protocol,
                target_port=port.target_port,
                published_port=published or None,
                publish_mode=mode,
            )
        )
    return tuple(out)


def _port_key(port: PortConfig) -> tuple[str | None, str, int | None, str]:
    return (port.name, defaults.protocol(port), port.target_port, defaults.publish_mode(port))


def _dynamic_port(usage: ClusterUsage, protocol: str, given: set[tuple[str, int]]) -> int:
    pool = f"port/{protocol}"
    for port in _serial(usage, pool, *DYNAMIC_PORTS):
        key = (protocol, port)
        if key not in usage.published and key not in given and key not in usage.held_ports:
            usage.cursors[pool] = port
            return port
    raise Exhausted(f"no free {protocol} port between {DYNAMIC_PORTS[0]} and {DYNAMIC_PORTS[1]}")


# --- tasks -----------------------------------------------------------------------------------------------------------
def needs_node_address(revision: Revision) -> bool:
    """Whether tasks of this revision stand on the node network: for overlays (default route, DNS) and published ports."""
    return bool(revision.networks or revision.endpoint.ports)


def allocate_task(p: Transaction, task: Task, revision: Revision) -> Task:
    """Addresses for a task that has just been placed.

    Raises:
        Exhausted: with the reason; nothing was written.
    """
    networks = []
    for network_id in revision.networks:
        network = _ready_network(p, network_id)
        networks.append(NetworkAddress(network_id=network_id, address=free_address(p.usage, network, ())))
    node_address = ""
    if needs_node_address(revision):
        node = p.view.nodes.get(task.node_id)
        if node is None or not node.number:
            raise Exhausted(f"node {task.node_id} has no number on the node network yet")
        pool = node_subnet(node.number)
        node_address = _free(
            p.usage, f"node/{node.id}", pool, p.usage.node_addresses[node.id], str(pool[1]), ()
        )
    placed = task
    if networks or node_address:
        placed = msgspec.structs.replace(task, networks=tuple(networks), node_address=node_address)
    p.put(placed)
    return placed


def _ready_network(p: Transaction, network_id: str) -> Network:
    network = p.view.networks.get(network_id)
    if network is None:
        raise Exhausted(f"network {network_id} does not exist any more")
    if not network.subnet:
        raise Exhausted(f"network {network.spec.name} has no subnet: the default address pools are exhausted")
    return network


def free_address(usage: ClusterUsage, network: Network, given: Container[str]) -> str:
    """The next free address of a network, with its prefix length."""
    subnet = ipaddress.IPv4Network(network.subnet)
    address = _free(usage, network.id, subnet, usage.addresses[network.id], network.gateway, given)
    return f"{address}/{subnet.prefixlen}"


def _free(
    usage: ClusterUsage,
    pool: str,
    subnet: ipaddress.IPv4Network,
    used: Container[str],
    gateway: str,
    given: Container[str],
) -> str:
    last = subnet.num_addresses - 2
    for offset in _serial(usage, pool, 1, last):
        address = str(subnet[offset])
        if address != bare(gateway) and address not in used and address not in given:
            usage.cursors[pool] = offset
            return address
    raise Exhausted(f"no free address in {subnet}")


def _serial(usage: ClusterUsage, pool: str, first: int, last: int) -> Iterator[int]:
    """All of ``first..last``, starting after where the pool's last allocation stopped."""
    start = usage.cursors.get(pool, first - 1) + 1
    yield from range(start, last + 1)
    yield from range(first, min(start, last + 1))
