"""A container's way onto a network: one veth pair per endpoint, made and taken away by netd.

Owns: links named ``vp<endpoint>`` (in the network's namespace, a port of its bridge) and ``vc<endpoint>`` (born in
the host's namespace; the engine moves it into the container and renames it). Refuses: making networks; the daemon does.
Standard library only. Blocking (a veth takes 1 ms to make and 16 ms to delete): called in netd's worker thread.
"""

from __future__ import annotations

import logging
import os

from swarm_agent.network import namespaces
from swarm_agent.network.netlink import Netlink
from swarm_agent.network.state_files import EndpointEntry, EngineNetworkEntry, NetworkEntry, StateFiles

log = logging.getLogger(__name__)

PREFIX = "ov-"
_PORT, _CONTAINER = "vp", "vc"


class NoNetwork(Exception):
    """The network is not on this host now. The sentence is what a user sees from ``docker start``."""


def port_name(endpoint: str) -> str:
    return _PORT + endpoint[:11]


def container_name(endpoint: str) -> str:
    return _CONTAINER + endpoint[:11]


def join(network: NetworkEntry, endpoint: EndpointEntry) -> str:
    """Make the pair and put its port on the bridge; returns the name of the container's end."""
    port, inner = port_name(endpoint.endpoint), container_name(endpoint.endpoint)
    if not namespaces.usable(network.netns):
        raise NoNetwork(
            f"network {network.network} is not on this host yet (no namespace {network.netns}): is swarm-agent running?"
        )
    with namespaces.entered(network.netns):
        inside = Netlink()
    with inside, Netlink() as host:
        inside.delete_link(port)  # left by a Join whose answer never arrived
        target = os.open(namespaces.path_of(network.netns), os.O_RDONLY | os.O_CLOEXEC)
        try:
            host.make_veth(inner, port, peer_netns_fd=target, mtu=network.mtu, mac=endpoint.mac)
        finally:
            os.close(target)
        try:
            inside.set_link(port, master=inside.index(network.bridge))
            inside.set_bridge_port(port, hairpin=network.hairpin, isolated=network.isolated)
        except OSError:
            host.delete_link(inner)
            raise
    return inner


def leave(network: NetworkEntry | None, endpoint: str) -> None:
    """Take the pair away; nothing there is as good."""
    if network is not None and namespaces.usable(network.netns):
        with namespaces.entered(network.netns):
            inside = Netlink()
        with inside:
            if inside.delete_link(port_name(endpoint)):
                return
    with Netlink() as host:
        host.delete_link(container_name(endpoint))


class Sweeper:
    """Removes pairs nobody uses: their container's end lies in the host's namespace, where it only ever passes by.

    Between Join and the engine's taking it the end lies there too, for milliseconds; so a pair must be found there in
    two sweeps, and netd sweeps at its start and then once a minute.
    """

    def __init__(self, journal: StateFiles) -> None:
        self._journal = journal
        self._suspects: set[str] = set()

    def sweep(self, now: float, grace: float) -> list[str]:
        """Returns the links removed. ``grace``: how old an endpoint's record must be, in seconds, to be suspected."""
        with Netlink() as host:
            lying = {
                name
                for name, link in host.links().items()
                if name.startswith(_CONTAINER) and link.kind == "veth"
            }
            keys = {container_name(key): key for key in self._journal.keys(EndpointEntry)}
            suspects = {
                name
                for name in lying
                if name in keys and self._journal.age(EndpointEntry, keys[name], now) >= grace
            }
            # A pair of ours without any record: the engine has taken its endpoint back.
            suspects |= {name for name in lying if name not in keys and self._is_ours(name)}
            removed = sorted(suspects & self._suspects)
            for name in removed:
                host.delete_link(name)
                log.info(f"link {name} was left behind by a container that is gone: removed")
        self._suspects = suspects - set(removed)
        self._forget_lost(now, grace)
        return removed

    def _forget_lost(self, now: float, grace: float) -> None:
        """Drop records of endpoints whose port is gone: the engine gave them up while we were away, or the host rebooted."""
        links: dict[str, set[str]] = {}
        for key in self._journal.keys(EndpointEntry):
            if self._journal.age(EndpointEntry, key, now) < grace:
                continue
            record = self._journal.get(EndpointEntry, key)
            network = self._journal.get(NetworkEntry, record.network) if record is not None else None
            netns = network.netns if network is not None else ""
            if netns and netns not in links:
                links[netns] = _links_in(netns)
            if port_name(key) not in links.get(netns, set()):
                self._journal.drop(EndpointEntry, key)

    @staticmethod
    def _is_ours(name: str) -> bool:
        """Some namespace of ours holds the other end."""
        port = _PORT + name.removeprefix(_CONTAINER)
        return any(port in _links_in(netns) for netns in namespaces.names(PREFIX))


def _links_in(netns: str) -> set[str]:
    if not namespaces.usable(netns):
        return set()
    with namespaces.entered(netns):
        inside = Netlink()
    with inside:
        return set(inside.links())


def network_of(journal: StateFiles, engine_id: str) -> NetworkEntry:
    """The network an engine's network id stands for."""
    known = journal.get(EngineNetworkEntry, engine_id)
    if known is None:
        raise NoNetwork(f"the engine's network {engine_id[:12]} is not one of swarm-agent's")
    network = journal.get(NetworkEntry, known.network)
    if network is None:
        raise NoNetwork(f"network {known.network} is not on this host yet: is swarm-agent running?")
    return network
