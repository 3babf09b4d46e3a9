"""What a node's network should be: the manager's view in, a plan out, and the difference between two plans.

Owns: the words of the contract (``NetworkView`` and its parts, ``AttachRequest``, ``ContainerNetwork``), the address
arithmetic of the node network, and every decision of the data path: who is a backend, whose entries go where, which
connections must be cut. Pure: no I/O, no clock, no randomness; the same view gives the same plan.
Refuses: how a plan reaches the kernel (``links``, ``rules``, ``nft``) and how names reach netd (``state_files``).

Invariants: plans hold sorted tuples and plain dicts keyed by what identifies the thing, so two plans compare by
value; ``changes(old, new)`` is empty exactly when they are equal, and names only what differs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from swarm_agent.objects.records import HostSubnet

NODE_POOL = ipaddress.IPv4Network("10.240.0.0/12")
NODE_NETWORK_ID = "node"
NODE_NETNS = "ov-node"
NODE_VNI = 4095
"""Reserved for the node network; overlays get theirs from 4096 up."""
LAST_NODE_NUMBER = 1023
VXLAN_PORT = 4789
HOST_LINK = "swarm0"
"""The host's end of the pair between host and ov-node: whatever comes in by it was sent by a task."""

PortKey = tuple[str, int]
"""(protocol, number) of a port of the host."""


# --- the contract with the agent and the dispatcher


class Peer(Struct, frozen=True):
    node_id: str
    number: int  # 1..1023; decides the node's subnet
    data_addr: str


class Overlay(Struct, frozen=True):
    network_id: str
    name: str
    vni: int
    subnet: str
    gateway: str
    mtu: int = 1450
    internal: bool = False


class Endpoint(Struct, frozen=True):
    network_id: str
    task_id: str
    task_name: str
    service_id: str
    service_name: str
    node_id: str
    address: str
    aliases: tuple[str, ...] = ()
    ready: bool = False  # RUNNING and not being stopped


class VirtualIP(Struct, frozen=True):
    network_id: str
    service_id: str
    service_name: str
    address: str
    aliases: tuple[str, ...] = ()


class PublishedPort(Struct, frozen=True):
    """``draining`` holds backends that get no new connections but keep the ones they have."""

    service_id: str
    protocol: str  # "tcp" | "udp"
    published: int
    target: int
    mode: str  # "ingress" | "host"
    backends: tuple[str, ...]  # node-network addresses of ready tasks
    draining: tuple[str, ...] = ()


class TaskAddress(Struct, frozen=True):
    task_id: str
    address: str
    networks: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()  # asked for names that are none of ours; none: the host's own


class NetworkView(Struct, frozen=True):
    """All a node needs to know. ``peers`` may name the node itself; it is passed over. ``mtu``: of the node network.

    ``members``: every address the swarm's hosts are known to have; ``control_ports``: where they talk to each other (TCP).
    """

    node_id: str
    number: int
    data_addr: str
    peers: tuple[Peer, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    vips: tuple[VirtualIP, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    local: tuple[TaskAddress, ...] = ()
    mtu: int = 1450
    members: tuple[str, ...] = ()
    control_ports: tuple[int, ...] = ()


class AttachRequest(Struct, frozen=True):
    task_id: str
    node_address: str | None
    overlays: tuple[tuple[str, str, tuple[str, ...]], ...] = ()  # (network_id, address, aliases)
    servers: tuple[str, ...] = ()  # as of TaskAddress
    search: tuple[str, ...] = ()  # what the user states for the container's resolv.conf; none: the host's
    dns_options: tuple[str, ...] = ()


class ContainerNetwork(Struct, frozen=True):
    """What ``docker create`` is told. ``connect`` goes, in order, between create and start: never after start.

    ``dns_options`` has what the user stated in it. ``resolv_conf``: a file of the host to mount over the container's.
    """

    network_mode: str
    first: dict[str, Any] | None
    connect: tuple[tuple[str, dict[str, Any]], ...] = ()
    dns: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    resolv_conf: str = ""


class NodeNetwork(Protocol):
    """A host's network. ``network.host.HostNetwork`` is the real one, ``tests.lib.fake_network`` its double."""

    async def start(self) -> None:
        """Get ready; touches nothing that carries packets."""

    async def apply(self, view: NetworkView) -> None:
        """Make the host equal to the view. Idempotent; cost follows the change. What failed is tried again next time."""

    async def attach(self, req: AttachRequest) -> ContainerNetwork:
        """Before ``docker create``. The overlays must be in the applied view."""

    async def ports_changed(self) -> bool:
        """Look at who holds ports of this host; whether the next ``apply`` would take other published ports than the last."""
        ...

    async def port_holders(self) -> dict[PortKey, str]:
        """By port the program of this host that holds it, for people: what the swarm cannot have here."""
        ...

    async def host_net(self) -> tuple[tuple[HostSubnet, ...], tuple[str, ...]]:
        """What the host uses of IPv4's space itself, and the addresses others reach it by. Also before ``start``."""
        ...

    async def recheck(self) -> None:
        """Believe nothing of what was applied: the next ``apply`` looks at the whole host."""
        ...

    async def leave(self) -> None:
        """Leaving the swarm: take everything of ours away."""

    async def detach(self, task_id: str) -> None:
        """After the container is gone. Not an error for a task never attached."""

    async def missing(self, endpoints: Mapping[str, str]) -> tuple[str, ...]:
        """Which networks a container has lost for good. ``endpoints``: the engine's endpoint ids, by network id."""
        ...

    def trouble(self, networks: Iterable[str] | None = None) -> str:
        """What is wrong now with these networks, or with the whole of it, and could not be mended at once; "" when nothing is."""
        ...

    def tell(self, told: Callable[[frozenset[str], frozenset[str]], None]) -> None:
        """``told`` will be called with names of containers' links that have gone (``vp`` and the endpoint id's beginning), and with
        the ids of networks whose trouble came, changed or ended."""
        ...

    def engine_changed(self) -> None:
        """The engine's own networks are others now: the next ``apply`` asks for them."""

    async def stop(self) -> None:
        """Let go; the data path stays as it is."""


# --- the node network's arithmetic


def node_subnet(number: int) -> ipaddress.IPv4Network:
    """Host ``number`` owns 10.240.0.0 + number * 1024, a /22."""
    if not 1 <= number <= LAST_NODE_NUMBER:
        raise ValueError(
            f"node number {number} is out of range: 1 to {LAST_NODE_NUMBER} hosts can be in the node network"
        )
    return ipaddress.IPv4Network((int(NODE_POOL.network_address) + number * 1024, 22))


def node_gateway(number: int) -> str:
    """Default gateway and DNS server of the host's tasks: the first address."""
    return str(node_subnet(number).network_address + 1)


def host_identity(number: int) -> str:
    """The host itself in the node network: 10.240.0.0 + number, out of the /22 no host owns.

    The source of what localhost and tasks send to published ports; no task holds it for a neighbour.
    """
    node_subnet(number)
    return str(NODE_POOL.network_address + number)


def netns_of(network_id: str) -> str:
    return f"ov-{network_id[:12]}"


# --- plans


class OverlayPlan(Struct, frozen=True):
    """One overlay on this host. ``remotes``: address -> tunnel end; ``vips``: virtual address -> backends, in order."""

    network_id: str
    vni: int
    subnet: str
    gateway: str
    mtu: int
    data_addr: str
    remotes: dict[str, str]
    locals: tuple[str, ...]
    vips: dict[str, tuple[str, ...]]

    @property
    def netns(self) -> str:
        return netns_of(self.network_id)

    @property
    def shape(self) -> tuple[int, str, str, int, str]:
        """What the links are made of; a change means making sure of all of them."""
        return (self.vni, self.subnet, self.gateway, self.mtu, self.data_addr)


class NodePlan(Struct, frozen=True):
    """The routed node network. ``peers``: number -> tunnel end."""

    number: int
    data_addr: str
    mtu: int
    peers: dict[int, str]

    @property
    def shape(self) -> tuple[int, str, int]:
        return (self.number, self.data_addr, self.mtu)


class PortPlan(Struct, frozen=True):
    """``spared``: at loopback addresses a program of this host goes on being reached."""

    target: int
    backends: tuple[str, ...]
    draining: tuple[str, ...] = ()
    spared: bool = False


class Left(Struct, frozen=True):
    """What of the published ports is left to programs of this host: all of a port, or its loopback addresses."""

    not_taken: frozenset[PortKey] = frozenset()
    spared: frozenset[PortKey] = frozenset()


class Guards(Struct, frozen=True):
    """What containers must not reach. ``inner``: the host's links behind which containers are.

    ``subnets``: of the overlays here; what is sent there goes through the overlay or nowhere.
    """

    inner: tuple[str, ...]
    members: tuple[str, ...]
    ports: tuple[int, ...]
    subnets: tuple[str, ...] = ()


class Names(Struct, frozen=True):
    """Names of one network, lower case; ``pointers``: address -> name."""

    name: str
    names: dict[str, tuple[str, ...]]
    pointers: dict[str, str]


class Plan(Struct, frozen=True):
    node: NodePlan | None = None
    overlays: dict[str, OverlayPlan] = {}
    ports: dict[PortKey, PortPlan] = {}
    names: dict[str, Names] = {}
    tasks: dict[str, TaskAddress] = {}
    guards: Guards | None = None


def plan(
    view: NetworkView,
    bridges: Iterable[str] = (),
    ports: Iterable[int] = (),
    left: Left | None = None,
) -> Plan:
    """What this node's network should be. Raises ``ValueError`` for a view that cannot be true.

    ``bridges``: those of the engine on this host; ``ports``: the control ports of this host's own configuration; ``left``: published
    ports, or parts of them, that are left to programs of this host.
    """
    own = node_subnet(view.number)
    peers = {peer.number: peer.data_addr for peer in view.peers if peer.number != view.number}
    for number in peers:
        node_subnet(number)
    tunnel_ends = {peer.node_id: peer.data_addr for peer in view.peers}

    endpoints: dict[str, list[Endpoint]] = {overlay.network_id: [] for overlay in view.overlays}
    for endpoint in view.endpoints:
        if endpoint.network_id in endpoints:
            endpoints[endpoint.network_id].append(endpoint)
    vips: dict[str, list[VirtualIP]] = {overlay.network_id: [] for overlay in view.overlays}
    for vip in view.vips:
        if vip.network_id in vips:
            vips[vip.network_id].append(vip)

    overlays = {}
    names = {}
    for overlay in view.overlays:
        here, virtual = endpoints[overlay.network_id], vips[overlay.network_id]
        overlays[overlay.network_id] = _overlay_plan(view, overlay, here, virtual, tunnel_ends)
        names[overlay.network_id] = _names(overlay, here, virtual)
    netns = [o.netns for o in overlays.values()]
    if len(set(netns)) != len(netns) or NODE_NETNS in netns:
        raise ValueError("two networks of this node would share a namespace: their ids begin alike")

    return Plan(
        node=NodePlan(view.number, view.data_addr, view.mtu, peers),
        overlays=overlays,
        ports=_taken(_ports(view, own), left or Left()),
        names=names,
        tasks={task.task_id: task for task in view.local},
        guards=_guards(view, bridges, ports),
    )


def _guards(view: NetworkView, bridges: Iterable[str], ports: Iterable[int]) -> Guards:
    addresses = {view.data_addr, *(peer.data_addr for peer in view.peers), *view.members}
    return Guards(
        inner=tuple(sorted({HOST_LINK, *bridges})),
        members=_in_order({address for address in addresses if _is_ipv4(address)}),
        ports=tuple(sorted({*ports, *view.control_ports})),
        subnets=tuple(sorted({overlay.subnet for overlay in view.overlays})),
    )


def _is_ipv4(address: str) -> bool:
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return True


def _overlay_plan(
    view: NetworkView,
    overlay: Overlay,
    endpoints: list[Endpoint],
    vips: list[VirtualIP],
    tunnel_ends: dict[str, str],
) -> OverlayPlan:
    remotes, local = {}, []
    backends: dict[str, list[str]] = {}
    for endpoint in endpoints:
        if endpoint.node_id == view.node_id:
            local.append(endpoint.address)
        elif endpoint.node_id in tunnel_ends:
            remotes[endpoint.address] = tunnel_ends[endpoint.node_id]
        else:
            continue  # its node is gone: no way there, so no backend either
        if endpoint.ready:
            backends.setdefault(endpoint.service_id, []).append(endpoint.address)
    return OverlayPlan(
        network_id=overlay.network_id,
        vni=overlay.vni,
        subnet=overlay.subnet,
        gateway=overlay.gateway,
        mtu=overlay.mtu,
        data_addr=view.data_addr,
        remotes=remotes,
        locals=_in_order(local),
        vips={vip.address: rotate(_in_order(backends.get(vip.service_id, [])), view.number) for vip in vips},
    )


def _taken(ports: dict[PortKey, PortPlan], left: Left) -> dict[PortKey, PortPlan]:
    return {
        key: msgspec.structs.replace(port, spared=key in left.spared)
        for key, port in ports.items()
        if key not in left.not_taken
    }


def _ports(view: NetworkView, own: ipaddress.IPv4Network) -> dict[PortKey, PortPlan]:
    ports: dict[PortKey, PortPlan] = {}
    # Two services on one port is the manager's mistake; the lowest service id wins, on every host alike.
    for port in sorted(view.ports, key=lambda p: (p.service_id, p.protocol, p.published), reverse=True):
        backends, draining = set(port.backends), set(port.draining) - set(port.backends)
        if port.mode == "host":
            backends = {address for address in backends if ipaddress.IPv4Address(address) in own}
            draining = {address for address in draining if ipaddress.IPv4Address(address) in own}
        entry = PortPlan(port.target, rotate(_in_order(backends), view.number), _in_order(draining))
        ports[port.protocol, port.published] = entry
    return ports


def _names(overlay: Overlay, endpoints: list[Endpoint], vips: list[VirtualIP]) -> Names:
    """Service and alias -> virtual address; ``tasks.`` before either -> its ready tasks; task -> its address."""
    found: dict[str, set[str]] = {}
    pointers: dict[str, str] = {}
    balanced = set()
    for vip in vips:
        balanced.add(vip.service_id)
        pointers[vip.address] = f"{vip.service_name}.{overlay.name}"
        for name in (vip.service_name, *vip.aliases):
            found.setdefault(name.lower(), set()).add(vip.address)
            found.setdefault(f"tasks.{name}".lower(), set())
    for endpoint in endpoints:
        pointers[endpoint.address] = f"{endpoint.task_name}.{overlay.name}"
        found.setdefault(endpoint.task_name.lower(), set()).add(endpoint.address)
        if not endpoint.service_name:
            shared: tuple[str, ...] = endpoint.aliases
        else:
            own = (endpoint.service_name, *endpoint.aliases)
            shared = tuple(f"tasks.{name}" for name in own)
            if (
                endpoint.service_id not in balanced
            ):  # no virtual address: the service's names lead to its tasks
                shared += own
        for name in shared:
            addresses = found.setdefault(name.lower(), set())
            if endpoint.ready:
                addresses.add(endpoint.address)
    return Names(overlay.name, {name: _in_order(found[name]) for name in sorted(found)}, pointers)


def _in_order(addresses: list[str] | set[str]) -> tuple[str, ...]:
    return tuple(sorted(set(addresses), key=lambda address: tuple(int(part) for part in address.split("."))))


def rotate(backends: tuple[str, ...], by: int) -> tuple[str, ...]:
    """Every host starts counting at another backend, or the first one would get every host's first connection."""
    if not backends:
        return ()
    at = by % len(backends)
    return backends[at:] + backends[:at]


# --- differences


class Cut(Struct, frozen=True):
    """Forget tracked connections, so that the next packet meets the new rules. Empty fields match everything."""

    protocol: str = ""
    vip: str = ""
    port: int = 0
    backend: str = ""


class MakeNode(Struct, frozen=True, tag=True):
    """Make sure of the whole node network, whatever is there."""

    node: NodePlan
    ports: dict[PortKey, PortPlan]


class SetPeers(Struct, frozen=True, tag=True):
    add: dict[int, str]
    remove: dict[int, str]


class MakeOverlay(Struct, frozen=True, tag=True):
    """Make sure of the whole overlay, whatever is there."""

    overlay: OverlayPlan


class DropOverlay(Struct, frozen=True, tag=True):
    network_id: str


class SetRemotes(Struct, frozen=True, tag=True):
    network_id: str
    add: dict[str, str]
    remove: dict[str, str]


class SetLocals(Struct, frozen=True, tag=True):
    network_id: str
    add: tuple[str, ...]
    remove: tuple[str, ...]


class SetVips(Struct, frozen=True, tag=True):
    """``put`` with no backends: the address answers with a refusal. ``cut`` is done after the rules changed."""

    network_id: str
    put: dict[str, tuple[str, ...]]
    remove: tuple[str, ...]
    cut: tuple[Cut, ...]


class SetPorts(Struct, frozen=True, tag=True):
    put: dict[PortKey, PortPlan]
    remove: tuple[PortKey, ...]
    cut: tuple[Cut, ...]


class SetNames(Struct, frozen=True, tag=True):
    network_id: str
    names: Names | None


class SetTasks(Struct, frozen=True, tag=True):
    put: tuple[TaskAddress, ...]
    remove: tuple[str, ...]


class SetGuards(Struct, frozen=True, tag=True):
    guards: Guards


Change = (
    MakeNode
    | SetPeers
    | MakeOverlay
    | DropOverlay
    | SetRemotes
    | SetLocals
    | SetVips
    | SetPorts
    | SetNames
    | SetTasks
    | SetGuards
)


def changes(old: Plan, new: Plan) -> list[Change]:
    """What to do to get from ``old`` to ``new``, in an order in which each step finds what it needs.

    Ways are made before anything is sent along them, and taken away after nothing is.
    """
    found: list[Change] = []
    late: list[Change] = []
    found.extend(_node_changes(old, new))
    if new.guards is not None and new.guards != old.guards:
        found.append(SetGuards(new.guards))
    for network_id, overlay in new.overlays.items():
        before = old.overlays.get(network_id)
        if before is None or before.shape != overlay.shape:
            found.append(MakeOverlay(overlay))
        elif before != overlay:
            early, after = _overlay_changes(before, overlay)
            found.extend(early)
            late.extend(after)
    for network_id in sorted(new.names.keys() | old.names.keys()):
        names = new.names.get(network_id)
        if names != old.names.get(network_id):
            found.append(SetNames(network_id, names))
    put = tuple(task for task_id, task in new.tasks.items() if old.tasks.get(task_id) != task)
    gone = tuple(task_id for task_id in old.tasks if task_id not in new.tasks)
    if put or gone:
        found.append(SetTasks(put, gone))
    late.extend(DropOverlay(network_id) for network_id in old.overlays if network_id not in new.overlays)
    return found + late


def _node_changes(old: Plan, new: Plan) -> list[Change]:
    if new.node is None:
        return []
    if old.node is None or old.node.shape != new.node.shape:
        return [MakeNode(new.node, new.ports)]
    found: list[Change] = []
    had, has = old.node.peers, new.node.peers
    add = {number: end for number, end in has.items() if had.get(number) != end}
    remove = {number: end for number, end in had.items() if has.get(number) != end}
    if add or remove:
        found.append(SetPeers(add, remove))
    put = {key: port for key, port in new.ports.items() if old.ports.get(key) != port}
    gone = tuple(key for key in old.ports if key not in new.ports)
    if put or gone:
        found.append(SetPorts(put, gone, _port_cuts(old.ports, new.ports, (*put, *gone))))
    return found


def _port_cuts(
    old: dict[PortKey, PortPlan], new: dict[PortKey, PortPlan], keys: tuple[PortKey, ...]
) -> tuple[Cut, ...]:
    cuts: list[Cut] = []
    nothing = PortPlan(0, ())
    for protocol, number in keys:
        before, after = old.get((protocol, number), nothing), new.get((protocol, number), nothing)
        moved = before.target != after.target
        had, has = {*before.backends, *before.draining}, {*after.backends, *after.draining}
        if protocol == "udp":  # a flow sticks to what it first met, so a backend that drains must lose it too
            had, has = set(before.backends), set(after.backends)
            if has and not had:
                cuts.append(Cut("udp", port=number))  # ... and one that met nobody would meet nobody for ever
        gone = had if moved else had - has
        cuts.extend(Cut(protocol, port=number, backend=backend) for backend in _in_order(gone))
    return tuple(cuts)


def _overlay_changes(old: OverlayPlan, new: OverlayPlan) -> tuple[list[Change], list[Change]]:
    early: list[Change] = []
    late: list[Change] = []
    add = {address: end for address, end in new.remotes.items() if old.remotes.get(address) != end}
    remove = {address: end for address, end in old.remotes.items() if new.remotes.get(address) != end}
    if add:
        early.append(SetRemotes(new.network_id, add, {a: end for a, end in remove.items() if a in add}))
    only_removed = {address: end for address, end in remove.items() if address not in add}
    if only_removed:
        late.append(SetRemotes(new.network_id, {}, only_removed))
    had, has = set(old.locals), set(new.locals)
    if had != has:
        early.append(SetLocals(new.network_id, _in_order(has - had), _in_order(had - has)))
    put = {vip: backends for vip, backends in new.vips.items() if old.vips.get(vip) != backends}
    gone = tuple(vip for vip in old.vips if vip not in new.vips)
    if put or gone:
        early.append(SetVips(new.network_id, put, gone, _vip_cuts(old, new, (*put, *gone))))
    # A stopping task that was no backend any more disappears now: its last connections go with it.
    present, were_present = _present(new), _present(old)
    orphans = tuple(
        Cut("tcp", vip=vip, backend=address)
        for address in _in_order(were_present - present)
        for vip in old.vips
        if vip in new.vips and address not in old.vips[vip]
    )
    if orphans:
        late.append(SetVips(new.network_id, {}, (), orphans))
    return early, late


def _present(overlay: OverlayPlan) -> set[str]:
    return {*overlay.locals, *overlay.remotes}


def _vip_cuts(old: OverlayPlan, new: OverlayPlan, vips: tuple[str, ...]) -> tuple[Cut, ...]:
    cuts: list[Cut] = []
    present = _present(new)
    for vip in vips:
        before, after = set(old.vips.get(vip, ())), set(new.vips.get(vip, ()))
        if after and not before:
            cuts.append(Cut("udp", vip=vip))  # a flow that met nobody would meet nobody for ever
        for backend in _in_order(before - after):
            cuts.append(Cut("udp", vip=vip, backend=backend))
            if backend not in present or vip not in new.vips:  # one that still stops keeps its connections
                cuts.append(Cut("tcp", vip=vip, backend=backend))
    return tuple(cuts)


def without(current: Plan, failed: Change) -> Plan:
    """The plan that may still be believed to hold after ``failed`` did not go through: next time it is made anew."""
    if isinstance(failed, MakeNode | SetPeers | SetPorts):
        return msgspec.structs.replace(current, node=None)
    if isinstance(failed, MakeOverlay):
        network_id = failed.overlay.network_id
    elif isinstance(failed, SetRemotes | SetLocals | SetVips):
        network_id = failed.network_id
    elif isinstance(failed, SetNames):
        return msgspec.structs.replace(
            current, names={k: v for k, v in current.names.items() if k != failed.network_id}
        )
    elif isinstance(failed, SetTasks):
        return msgspec.structs.replace(current, tasks={})
    elif isinstance(failed, SetGuards):
        return msgspec.structs.replace(current, guards=None)
    else:
        return current  # a network that would not go is a stray, which the next full look finds
    return msgspec.structs.replace(
        current, overlays={k: v for k, v in current.overlays.items() if k != network_id}
    )
