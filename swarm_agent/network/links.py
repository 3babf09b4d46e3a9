"""Namespaces, links, addresses, routes and forwarding entries of this host, made equal to a plan.

Owns: ``ov-<network>`` and ``ov-node`` with what is inside them, and ``swarm0`` in the host. Everything is looked at
first and only what differs is changed, so running it again costs reads and changes nothing: adopting after a restart
and repairing are the same call. Refuses: deciding what should be (``model``), rule text (``rules``).
Runs in the worker thread; nothing here may be called from the event loop.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Iterable
from pathlib import Path

from swarm_agent.network import namespaces, rules
from swarm_agent.network.model import (
    HOST_LINK,
    NODE_NETNS,
    NODE_POOL,
    NODE_VNI,
    VXLAN_PORT,
    NodePlan,
    OverlayPlan,
    host_identity,
    node_gateway,
    node_subnet,
)
from swarm_agent.network.netlink import Message, Netlink, NetlinkError, Route, Rule, mac_of
from swarm_agent.network.nft import Loader, Loaders
from swarm_agent.network.watch import Watch, WatchedLoader

log = logging.getLogger(__name__)

PREFIX = "ov-"
PORT = "vp"  # and the endpoint's id: a container's link on its bridge (``ports``)
TUNNEL = "vx0"
HOST_SIDE, NODE_SIDE = "169.254.51.1", "169.254.51.2"
UNMARKED = Rule(
    50, 0, 254
)  # most packets carry no mark and leave the list of rules here, however many hosts there are

# Why each: docs/design/network.md, "Settings of the kernel".
_QUIET = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/bridge/bridge-nf-call-arptables": "0",
    "net/bridge/bridge-nf-call-ip6tables": "0",
    "net/bridge/bridge-nf-filter-vlan-tagged": "0",
}
OVERLAY_SYSCTLS = {**_QUIET, "net/bridge/bridge-nf-call-iptables": "1"}
NODE_SYSCTLS = {**_QUIET, "net/bridge/bridge-nf-call-iptables": "0"}


class NamespaceHandles:
    """One namespace's open handles: a route socket and a rule loader, both acting inside it, and the news of it."""

    def __init__(self, name: str | None, loaders: Loaders) -> None:
        self.name = name
        self.identity = namespaces.identity(name) if name is not None else 0
        self.held = -1  # the namespace itself
        self.looked_at = 0.0  # when it was last made sure of, by time.monotonic
        if name is None:
            self.route, self.watch = Netlink(), Watch(frozenset({HOST_LINK}))
        else:
            with namespaces.entered(name):
                self.route, self.watch = Netlink(), Watch(None)
                self.held = namespaces.hold()
        self.nft: Loader = WatchedLoader(loaders.open(name), self.watch)

    def close(self) -> None:
        self.route.close()
        self.nft.close()
        self.watch.close()
        if self.held >= 0:
            os.close(self.held)


class Spaces:
    """The open namespaces. A handle keeps a namespace alive, so one that goes must be closed here first.

    ``news``: readable when something was said of any of them.
    """

    def __init__(self, loaders: Loaders) -> None:
        self._loaders = loaders
        self._open: dict[str | None, NamespaceHandles] = {}
        self.news = select.epoll()

    def host(self) -> NamespaceHandles:
        return self._get(None)

    def get(self, name: str) -> NamespaceHandles:
        """The namespace of that name; one that lost its name while it was known here gets it back, with all that is in it."""
        known = self._open.get(name)
        if known is not None and known.identity != namespaces.identity(name):
            log.warning(f"the name of namespace {name} was taken away: given back")
            namespaces.restore(name, known.held)
        return self._get(name)

    def ensure(self, name: str) -> NamespaceHandles:
        """As ``get``, and made if there is none."""
        if name not in self._open:
            namespaces.make(name)
        return self.get(name)

    def knows(self, name: str) -> bool:
        return name in self._open

    def open(self) -> list[NamespaceHandles]:
        return list(self._open.values())

    def read_news(self) -> None:
        for space in self._open.values():
            space.watch.read()

    def _get(self, name: str | None) -> NamespaceHandles:
        if name not in self._open:
            self._open[name] = NamespaceHandles(name, self._loaders)
            for fd in self._open[name].watch.fds():
                self.news.register(fd, select.EPOLLIN)
        return self._open[name]

    def close(self, name: str | None) -> None:
        known = self._open.pop(name, None)
        if known is not None:
            known.close()

    def close_all(self) -> None:
        for name in list(self._open):
            self.close(name)
        self.news.close()


def node_mac(number: int) -> str:
    return mac_of(host_identity(number))


# --- overlays


def make_overlay(spaces: Spaces, overlay: OverlayPlan, *, rewrite: bool = True) -> None:
    """``rewrite``: load the rules even if nobody touched them since they were loaded last."""
    space = spaces.ensure(overlay.netns)
    keep_sysctls(overlay.netns, OVERLAY_SYSCTLS)
    route = space.route
    route.forget()
    route.ensure_link("lo")
    _make_bridge(route, mac_of(overlay.gateway), overlay.mtu)
    _make_tunnel(spaces, space, TUNNEL, vni=overlay.vni, local=overlay.data_addr, mtu=overlay.mtu, mac=None)
    route.ensure_link(TUNNEL, master=route.index("br0"), mtu=overlay.mtu)
    keep_sysctls(overlay.netns, _of_devices("br0"))
    length = overlay.subnet.partition("/")[2]
    route.set_addresses("br0", [f"{overlay.gateway}/{length}", *(f"{vip}/32" for vip in overlay.vips)])
    # In place of the kernel's own, which does not come back when it is taken away.
    _equal_routes(route, {Route(overlay.subnet, "br0", source=overlay.gateway)})
    _equal_entries(
        route,
        TUNNEL,
        {(mac_of(a), end) for a, end in overlay.remotes.items()},
        {(a, mac_of(a)) for a in overlay.remotes},
    )
    write_rules(space, rules.overlay_table(overlay), rewrite=rewrite)


def write_rules(space: NamespaceHandles, *tables: str, rewrite: bool) -> None:
    """Load whole tables, unless they are known to be as they were loaded last."""
    space.watch.read()
    if not rewrite and not space.watch.rules:
        return
    if not rewrite:
        log.warning(f"rules of {space.name or 'this host'} were changed by somebody else: loaded again")
    space.watch.rules = False
    for table in tables:
        space.nft.run(table)


def make_ports(
    spaces: Spaces, netns: str, suspects: frozenset[str], *, hairpin: bool, isolated: bool
) -> tuple[frozenset[str], frozenset[str]]:
    """Containers' links on their bridge, and up. Returns their names, and those of the ones that are not.

    netd puts a new link there in two steps, so only one that was found loose last time, a suspect, is put back.
    """
    route = spaces.get(netns).route
    found = route.links()
    bridge = found["br0"].index
    ports = {name: link for name, link in found.items() if name.startswith(PORT)}
    loose = {name for name, link in ports.items() if link.master != bridge or not link.up}
    for name in sorted(loose & suspects):
        log.warning(f"link {name} in {netns} was taken off its bridge or down: put back")
        route.set_link(name, master=bridge)
        route.set_bridge_port(name, hairpin=hairpin, isolated=isolated)
    return frozenset(ports), frozenset(loose - suspects)


def drop_overlay(spaces: Spaces, netns: str) -> None:
    """Take a namespace away with all links in it: its tunnel's id is free again when this returns."""
    if spaces.knows(netns) or namespaces.usable(netns):
        space = spaces.get(netns)
        for link in space.route.links().values():
            if link.kind in {"bridge", "vxlan", "veth"}:
                space.route.delete_link(link.name)
    spaces.close(netns)
    namespaces.remove(netns)


def set_remotes(spaces: Spaces, netns: str, add: dict[str, str], remove: dict[str, str]) -> None:
    route = spaces.get(netns).route
    messages: list[Message] = []
    for address, end in remove.items():
        if address not in add:  # an add replaces; taking the old way first would lose packets
            messages.append(route.forwarding_message(TUNNEL, mac_of(address), end, add=False))
            messages.append(route.neighbour_message(TUNNEL, address, mac_of(address), add=False))
    for address, end in add.items():
        messages.append(route.forwarding_message(TUNNEL, mac_of(address), end, add=True))
        messages.append(route.neighbour_message(TUNNEL, address, mac_of(address), add=True))
    route.do(*messages)


def set_vip_addresses(spaces: Spaces, netns: str, add: Iterable[str], remove: Iterable[str]) -> None:
    route = spaces.get(netns).route
    messages = [route.address_message("br0", f"{vip}/32", add=False) for vip in remove]
    route.do(*messages, *(route.address_message("br0", f"{vip}/32", add=True) for vip in add))


# --- the node network


def make_node(spaces: Spaces, node: NodePlan, *, rewrite: bool = True) -> None:
    """The routed network of a host's tasks, and its way to the host and to the other hosts. ``rewrite``: as above."""
    space, host = spaces.ensure(NODE_NETNS), spaces.host()
    keep_sysctls(NODE_NETNS, NODE_SYSCTLS)
    _make_pair(space, host)
    route = space.route
    route.forget()
    route.ensure_link("lo")
    _make_bridge(route, mac_of(node_gateway(node.number)), node.mtu)
    mac = node_mac(node.number)
    _make_tunnel(spaces, space, rules.SWING, vni=NODE_VNI, local=node.data_addr, mtu=node.mtu, mac=mac)
    route.ensure_link(rules.SWING, mtu=node.mtu, mac=mac)
    keep_sysctls(NODE_NETNS, _of_devices("br0", rules.SWING, rules.NODE_LINK))

    # /32 and a route of our own: no broadcast addresses, every address of the subnet can be a task's.
    route.set_addresses("br0", [f"{node_gateway(node.number)}/32"])
    route.set_addresses(rules.NODE_LINK, [f"{NODE_SIDE}/30"])
    routes = {
        # On the link, so that they hang on no route of the kernel's own, which does not come back when it is taken away.
        Route("0.0.0.0/0", rules.NODE_LINK, gateway=HOST_SIDE, onlink=True),
        Route(f"{host_identity(node.number)}/32", rules.NODE_LINK, gateway=HOST_SIDE, onlink=True),
        Route(str(node_subnet(node.number)), "br0", source=node_gateway(node.number)),
    }
    for number in node.peers:
        routes |= _peer_routes(number)
    marks = {UNMARKED, *(_peer_rule(number) for number in node.peers)}
    forwarding = {(node_mac(number), end) for number, end in node.peers.items()}
    _equal_entries(
        route, rules.SWING, forwarding, {(host_identity(number), node_mac(number)) for number in node.peers}
    )
    _equal_routes(route, routes)
    have = route.rules()
    route.do(
        *(route.rule_message(rule, add=True) for rule in sorted(marks - have, key=_rule_order)),
        *(route.rule_message(rule, add=False) for rule in sorted(have - marks, key=_rule_order)),
    )
    write_rules(space, rules.node_table(node), rewrite=rewrite)

    host.route.set_addresses(HOST_LINK, [f"{HOST_SIDE}/30", f"{host_identity(node.number)}/32"])
    _equal_routes(
        host.route,
        {
            Route(
                str(NODE_POOL),
                HOST_LINK,
                gateway=NODE_SIDE,
                source=host_identity(node.number),
                onlink=True,
            )
        },
    )


def drop_node(spaces: Spaces) -> None:
    drop_overlay(spaces, NODE_NETNS)
    spaces.host().route.delete_link(HOST_LINK)


def set_peers(spaces: Spaces, add: dict[int, str], remove: dict[int, str]) -> None:
    space = spaces.get(NODE_NETNS)
    route = space.route
    messages: list[Message] = []
    for number, end in remove.items():
        if number not in add:
            messages.append(route.forwarding_message(rules.SWING, node_mac(number), end, add=False))
            messages += [
                route.route_message(r, add=False) for r in sorted(_peer_routes(number), key=_route_order)
            ]
            messages.append(route.rule_message(_peer_rule(number), add=False))
            messages.append(
                route.neighbour_message(rules.SWING, host_identity(number), node_mac(number), add=False)
            )
    for number, end in add.items():
        messages.append(route.forwarding_message(rules.SWING, node_mac(number), end, add=True))
        messages.append(
            route.neighbour_message(rules.SWING, host_identity(number), node_mac(number), add=True)
        )
        messages += [route.route_message(r, add=True) for r in sorted(_peer_routes(number), key=_route_order)]
        messages.append(route.rule_message(_peer_rule(number), add=True))
    route.do(*messages)
    space.nft.run(
        rules.update_nodes([n for n in add if n not in remove], [n for n in remove if n not in add])
    )


def _peer_routes(number: int) -> set[Route]:
    hop = host_identity(number)  # resolved by a permanent neighbour entry, never asked for
    return {
        Route(f"{hop}/32", rules.SWING, gateway=hop, onlink=True),
        Route(str(node_subnet(number)), rules.SWING, gateway=hop, onlink=True),
        Route("0.0.0.0/0", rules.SWING, gateway=hop, onlink=True, table=10000 + number),
    }


def _peer_rule(number: int) -> Rule:
    return Rule(100, number, 10000 + number)


def _make_pair(space: NamespaceHandles, host: NamespaceHandles) -> None:
    """``swarm0`` in the host, ``nd1`` in ov-node. Half a pair is a pair lost: both go and come together."""
    inside, outside = space.route.links(), host.route.links()
    if HOST_LINK not in outside or rules.NODE_LINK not in inside:
        space.route.delete_link(rules.NODE_LINK)
        host.route.delete_link(HOST_LINK)
        target = os.open(namespaces.path_of(NODE_NETNS), os.O_RDONLY | os.O_CLOEXEC)
        try:
            host.route.make_veth(HOST_LINK, rules.NODE_LINK, peer_netns_fd=target, mtu=1500)
        finally:
            os.close(target)
        space.route.forget()
    host.route.ensure_link(HOST_LINK)
    space.route.ensure_link(rules.NODE_LINK)


# --- shared parts


def _of_devices(*devices: str) -> dict[str, str]:
    return {
        f"net/ipv4/conf/{device}/{key}": "0" for device in devices for key in ("rp_filter", "send_redirects")
    }


def keep_sysctls(netns: str, settings: dict[str, str]) -> bool:
    """True when some had to be set."""
    with namespaces.entered(netns):
        done = [namespaces.set_sysctl(key, value) for key, value in settings.items()]
    return any(done)


def keep_overlay_sysctls(netns: str) -> bool:
    """True when something had to be set, or cannot be, for want of the link it belongs to."""
    try:
        return keep_sysctls(netns, {**OVERLAY_SYSCTLS, **_of_devices("br0")})
    except FileNotFoundError:
        return True


def keep_node_sysctls() -> bool:
    """As ``keep_overlay_sysctls``, for the node network."""
    try:
        devices = _of_devices("br0", rules.SWING, rules.NODE_LINK)
        return keep_sysctls(NODE_NETNS, {**NODE_SYSCTLS, **devices})
    except FileNotFoundError:
        return True


def _make_bridge(route: Netlink, mac: str, mtu: int) -> None:
    have = route.links().get("br0")
    if have is not None and have.kind != "bridge":
        route.delete_link("br0")
        have = None
    if have is None:
        route.make_bridge("br0", mac, mtu)
        route.set_link("br0")
    elif (have.mac, have.mtu, have.up) != (mac, mtu, True):
        route.set_link("br0", mac=mac, mtu=mtu)


def _make_tunnel(
    spaces: Spaces, space: NamespaceHandles, name: str, *, vni: int, local: str, mtu: int, mac: str | None
) -> None:
    have = space.route.links().get(name)
    if have is not None and (have.kind, have.vni, have.local, have.port) == ("vxlan", vni, local, VXLAN_PORT):
        return
    if have is not None:
        space.route.delete_link(name)
    assert space.name is not None
    target = os.open(namespaces.path_of(space.name), os.O_RDONLY | os.O_CLOEXEC)

    def make() -> None:
        spaces.host().route.make_vxlan(
            name, vni=vni, local=local, port=VXLAN_PORT, mac=mac, mtu=mtu, netns_fd=target
        )

    try:
        make()
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        if not _free_lost_tunnel(name, vni):
            raise NetlinkError(
                errno.EEXIST, f"vxlan id {vni} is in use on this host by something else"
            ) from error
        make()
    finally:
        os.close(target)
    space.route.forget()


def _free_lost_tunnel(name: str, vni: int) -> bool:
    """Take away a tunnel of ours in a namespace that lost its name while some process stays in it. True when there was one.

    A device of our name, port and id that lies in another namespace than this host's, and whose packets leave by this host's, is ours.
    """
    here = namespaces.hold()
    try:
        return _free_lost_tunnel_of(here, name, vni)
    finally:
        os.close(here)


def _free_lost_tunnel_of(host: int, name: str, vni: int) -> bool:
    known = {namespaces.identity(netns) for netns in namespaces.names(PREFIX)}
    for place in sorted(Path("/proc").glob("[0-9]*/ns/net")):
        try:
            identity = place.stat().st_ino
            if identity in known:
                continue
            known.add(identity)
            with namespaces.entered_at(place):
                route = Netlink()
        except OSError:
            continue  # the process has gone meanwhile
        with route:
            have, lower = route.links().get(name), route.namespace_id(host)
            if have is None or (have.kind, have.vni, have.port) != ("vxlan", vni, VXLAN_PORT):
                continue
            if have.lower >= 0 and have.lower == lower:
                log.warning(f"tunnel {vni} is taken out of a namespace that lost its name")
                return route.delete_link(name)
    return False


def _equal_entries(
    route: Netlink, device: str, forwarding: set[tuple[str, str]], neighbours: set[tuple[str, str]]
) -> None:
    have_forwarding = {entry for entry in route.forwarding(device) if entry[0] != "00:00:00:00:00:00"}
    have_neighbours = route.neighbours(device)
    macs = {mac for mac, _ in forwarding}
    messages = [
        route.forwarding_message(device, m, end, add=False)
        for m, end in sorted(have_forwarding - forwarding)
        if m not in macs
    ]
    messages += [
        route.forwarding_message(device, m, end, add=True) for m, end in sorted(forwarding - have_forwarding)
    ]
    wanted = {address for address, _ in neighbours}
    messages += [
        route.neighbour_message(device, a, m, add=False)
        for a, m in sorted(have_neighbours - neighbours)
        if a not in wanted
    ]
    messages += [
        route.neighbour_message(device, a, m, add=True) for a, m in sorted(neighbours - have_neighbours)
    ]
    route.do(*messages)


def _equal_routes(route: Netlink, wanted: set[Route]) -> None:
    have = route.routes()
    adds = [route.route_message(r, add=True) for r in sorted(wanted - have, key=_route_order)]
    # An add replaces a route of the same destination and table; removing that one afterwards would take the new one.
    kept = {(r.destination, r.table) for r in wanted}
    removes = [
        route.route_message(r, add=False)
        for r in sorted(have - wanted, key=_route_order)
        if (r.destination, r.table) not in kept
    ]
    route.do(*adds, *removes)


def _route_order(route: Route) -> tuple[int, str, str]:
    return (route.table, route.destination, route.device)


def _rule_order(rule: Rule) -> tuple[int, int]:
    return (rule.priority, rule.mark)
