"""``HostNetwork``: the real ``NodeNetwork``. Applies plans to this host and tells netd what it needs.

Owns: the order of things and what is believed of the host. One worker thread does all kernel work, so the daemon's
loop never waits for netlink, nftables or conntrack; the engine is asked from the loop.
Refuses: deciding what should be (``model``), being needed while it is away: everything it made works on without it.

Life: ``start`` (looks only), ``apply`` as often as the view changes (the first one looks at everything the host has
and takes away strays of ours), ``attach`` and ``detach`` per task, ``stop`` (leaves the data path) or ``leave``
(takes everything away). A part that failed is forgotten, so the next ``apply`` makes sure of all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from swarm_agent.network import firewall, hostnet, links, model, namespaces, resolvconf, rules, uplinks, veth
from swarm_agent.network import guards as guarding
from swarm_agent.network.engine_networks import USUAL_BRIDGES, EngineApi, EngineNetworks, container_network
from swarm_agent.network.firewall import MissingPart
from swarm_agent.network.mend import TICK_S, Mender, NetworkTrouble, Told
from swarm_agent.network.model import (
    NODE_NETNS,
    NODE_NETWORK_ID,
    AttachRequest,
    Change,
    ContainerNetwork,
    Left,
    NetworkView,
    NodePlan,
    OverlayPlan,
    Plan,
    PortKey,
    TaskAddress,
)
from swarm_agent.network.nft import Loaders, NftError
from swarm_agent.network.sockets import HostSockets, Seen, Yielded
from swarm_agent.network.state_files import (
    EndpointEntry,
    NamesEntry,
    NetworkEntry,
    PortsEntry,
    ResolverEntry,
    StateFiles,
    TaskEntry,
)
from swarm_agent.objects.errors import FailedPrecondition, SwarmError, Unavailable
from swarm_agent.objects.records import HostSubnet

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_ENGINE_PATIENCE = 10.0  # seconds to wait for an engine that does not answer about unwanted networks
_FAILURES = (OSError, NftError, MissingPart, KeyError, ValueError)


@contextlib.contextmanager
def _told_if_changed(network_id: str, *spaces: links.NamespaceHandles) -> Iterator[None]:
    before = sum(space.route.sent for space in spaces)
    yield
    if sum(space.route.sent for space in spaces) != before:
        log.warning(f"network {network_id} of this node was changed by somebody else: mended")


def _touched(space: links.NamespaceHandles) -> bool:
    """Whether it is to be made sure of now; for entries alone not more often than settings are looked at."""
    watch = space.watch
    entries = watch.entries and time.monotonic() - space.looked_at >= TICK_S
    return watch.stirred or watch.rules or entries


def _is_looked_at(space: links.NamespaceHandles) -> None:
    space.watch.stirred = space.watch.entries = False
    space.looked_at = time.monotonic()


class NetworkError(Unavailable):
    """Parts of a view could not be applied; the rest was. They are tried again with the next ``apply``."""


class HostNetwork:
    """``control_ports``: where this host's own agent listens for other hosts (TCP)."""

    def __init__(
        self,
        engine: EngineApi,
        journal: StateFiles | None = None,
        loaders: Loaders | None = None,
        sockets: HostSockets | None = None,
        control_ports: tuple[int, ...] = (),
    ) -> None:
        self._control_ports = control_ports
        self._bridges: tuple[str, ...] | None = None  # None: not asked yet
        self._uplinks: frozenset[str] = frozenset()  # those of them that members come in by
        self._journal = journal or StateFiles()
        self._engine = EngineNetworks(engine, self._journal)
        self._loaders = loaders
        self._spaces: links.Spaces | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._lock = asyncio.Lock()
        self._current = Plan()
        self._looked = False  # the first apply looks at everything
        self._doubted = False  # so does the next one
        self._attached: set[str] = set()
        self._engine_strays: set[str] | None = None  # None: not asked yet
        self._failures: list[str] = []  # of the last apply
        self._gone: frozenset[str] = frozenset()  # containers' links that are known to have gone
        self._loose: dict[
            str, frozenset[str]
        ] = {}  # those that were on no bridge when last looked at, by namespace
        self._mender = Mender(self._lock, lambda: self._run(self._look))
        self._sockets = sockets or HostSockets()
        self._yielded = Yielded()
        self._published: frozenset[PortKey] = frozenset()
        self._given_up = Left()

    # --- the contract

    async def start(self) -> None:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="swarm-network")
        await self._run(self._start)
        await self._mender.start(self._s.news.fileno())

    async def apply(self, view: NetworkView) -> None:
        async with self._lock:
            bridges = await self._known_bridges()
            try:
                self._published = frozenset((p.protocol, p.published) for p in view.ports)
                wanted = await self._run(
                    lambda: model.plan(
                        view,
                        self._inner(bridges, view.data_addr),
                        self._control_ports,
                        self._give_up_ports(),
                    )
                )
            except ValueError as error:
                raise NetworkError(f"the network view for this node cannot be true: {error}") from error
            before = set(self._current.overlays)
            self._failures = failures = await self._run(lambda: self._apply(wanted))
            await self._remove_engine_networks(wanted, before)
        if failures:
            raise NetworkError("the network of this node is not as wanted: " + "; ".join(failures))

    async def attach(self, req: AttachRequest) -> ContainerNetwork:
        current = self._current
        if current.node is None:
            raise FailedPrecondition(
                "the node network is not up on this node yet; apply a network view first"
            )
        missing = [network_id for network_id, _, _ in req.overlays if network_id not in current.overlays]
        if missing:
            why = f" ({'; '.join(self._failures)})" if self._failures else ""
            raise FailedPrecondition(
                f"network {', '.join(missing)} is not on this node yet; apply a view that has it first{why}"
            )
        number = current.node.number
        networks = tuple(network_id for network_id, _, _ in req.overlays)
        self._attached.add(req.task_id)
        if req.node_address is not None:
            task = TaskAddress(req.task_id, req.node_address, networks, req.servers)
            await self._run(lambda: self._write_task(task))
            await self._engine.make(
                NODE_NETWORK_ID, str(model.node_subnet(number)), model.node_gateway(number)
            )
        for network_id in networks:
            overlay = current.overlays[network_id]
            await self._engine.make(network_id, overlay.subnet, overlay.gateway)
        resolver = await self._run(lambda: self._resolver(req))
        return container_network(req, model.node_gateway(number), *resolver)

    async def detach(self, task_id: str) -> None:
        self._attached.discard(task_id)
        await self._run(lambda: self._forget_task(task_id))

    async def stop(self) -> None:
        if self._worker is None:
            return
        await self._mender.stop()
        await self._run(self._close)
        self._worker.shutdown()
        self._worker = None

    async def missing(self, endpoints: Mapping[str, str]) -> tuple[str, ...]:
        return await self._run(lambda: self._missing(endpoints))

    def trouble(self, networks: Iterable[str] | None = None) -> str:
        found = self._mender.trouble(networks)
        if found or networks is not None or not self._failures:
            return found
        return "the network of this node is not as wanted: " + "; ".join(self._failures)

    def tell(self, told: Told) -> None:
        self._mender.tell(told)

    def engine_changed(self) -> None:
        self._bridges = None

    # --- the host's own ports

    async def ports_changed(self) -> bool:
        if not self._published:
            return False
        before = self._given_up
        return await self._run(self._give_up_ports) != before

    async def port_holders(self) -> dict[PortKey, str]:
        return (await self._run(self._seen)).holders

    async def host_net(self) -> tuple[tuple[HostSubnet, ...], tuple[str, ...]]:
        return await asyncio.to_thread(hostnet.read)

    # --- beyond the contract

    async def recheck(self) -> None:
        """Believe nothing: the next ``apply`` looks at the whole host. For after a firewall or engine restart."""
        async with self._lock:
            self._doubted = True  # what is believed goes on to serve those who attach meanwhile
            self._looked = False
            self._engine_strays = None
            self._bridges = None

    async def leave(self) -> None:
        """Take away everything of ours: engine networks, namespaces, links, rules, journal."""
        async with self._lock:
            self._engine_strays = None
            await self._remove_engine_networks(Plan(), set())
            await self._run(self._leave)
            self._current = Plan()
            self._looked = False
            self._attached.clear()
            self._failures = []

    # --- the engine's own networks

    async def _known_bridges(self) -> tuple[str, ...]:
        if self._bridges is None:
            try:
                async with asyncio.timeout(_ENGINE_PATIENCE):
                    self._bridges = await self._engine.bridges()
            except (
                OSError,
                SwarmError,
            ) as error:  # it is away, or it refuses; asked again with the next view
                log.warning(f"which bridges the engine has is asked later: {error}")
        return self._bridges or USUAL_BRIDGES

    def _inner(self, bridges: tuple[str, ...], data_addr: str) -> tuple[str, ...]:
        """The bridges with nobody but containers behind them. In the worker thread."""
        found = uplinks.look(bridges, data_addr, self._s.host().route)
        for bridge in sorted(found - self._uplinks):
            log.warning(
                f"bridge {bridge} of the engine is this host's way to others, too: what containers on it send to the swarm's own ports is not kept off"
            )
        self._uplinks = found
        return tuple(bridge for bridge in bridges if bridge not in found)

    # --- engine networks that are no longer wanted

    async def _remove_engine_networks(self, wanted: Plan, before: set[str]) -> None:
        """After the data path is done: an engine that is away or slow to let go must not hold it up."""
        keep = set(wanted.overlays) | ({NODE_NETWORK_ID} if wanted.node is not None else set())
        try:
            if self._engine_strays is None:
                async with asyncio.timeout(_ENGINE_PATIENCE):
                    self._engine_strays = await self._engine.ours()
        except (OSError, SwarmError) as error:  # it is away, or it refuses
            log.warning(f"networks of the engine are looked at later: {error}")
            return
        self._engine_strays |= before
        for network_id in sorted(self._engine_strays - keep):
            try:
                async with asyncio.timeout(_ENGINE_PATIENCE):
                    await self._engine.remove(network_id)
                self._engine_strays.discard(network_id)
            except (OSError, SwarmError) as error:
                log.warning(f"tried again with the next change: {error}")
        self._engine_strays -= keep

    # --- in the worker thread

    async def _run(self, work: Callable[[], _T]) -> _T:
        if self._worker is None:
            raise NetworkError("the network of this node is not started")
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def _seen(self) -> Seen:
        return self._sockets.seen(lambda: set(self._journal.get_holds().inodes))

    def _give_up_ports(self) -> Left:
        """Which published ports are left to programs of this host."""
        seen = self._seen() if self._published else Seen({}, frozenset())
        before = self._yielded.ports
        found = self._yielded.look(self._published, seen.holders, time.monotonic())
        for protocol, number in sorted(found - before):
            log.warning(
                f"published port {number}/{protocol} is not taken on this host: {seen.holders.get((protocol, number))} holds it"
            )
        for protocol, number in sorted((before - found) & self._published):
            log.info(f"published port {number}/{protocol} is free by now and is taken")
        self._given_up = Left(found, seen.inward & self._published)
        return self._given_up

    def _write_ports(self, wanted: Plan) -> None:
        self._journal.put_ports(PortsEntry(tuple(sorted(wanted.ports)), tuple(sorted(self._yielded.ports))))

    def _start(self) -> None:
        self._journal.prepare()
        yielded = self._journal.get_ports().yielded
        self._yielded.remember(((protocol, number) for protocol, number in yielded), time.monotonic())
        firewall.prepare_kernel()
        if self._spaces is None:
            self._spaces = links.Spaces(self._loaders or Loaders())

    def _close(self) -> None:
        if self._spaces is not None:
            self._spaces.close_all()
        self._spaces = None
        self._current = Plan()
        self._looked = False

    @property
    def _s(self) -> links.Spaces:
        if self._spaces is None:
            raise NetworkError("the network of this node is not started")
        return self._spaces

    def _apply(self, wanted: Plan) -> list[str]:
        failures: list[str] = []
        believed = wanted
        before = Plan() if self._doubted else self._current
        self._doubted = False
        if before.node is None:  # all rules of the host are written now; what others do from here on is news
            self._s.host().watch.read()
            self._s.host().watch.rules = False
        self._write_ports(wanted)  # before the rules: who binds in between finds the port in use
        if not self._looked:
            failures += self._remove_strays(wanted)
            self._looked = not failures
        for change in model.changes(before, wanted):
            try:
                self._make(change)
            except _FAILURES as error:
                log.error(f"{type(change).__name__} failed: {error}")
                failures.append(f"{type(change).__name__}: {error}")
                believed = model.without(believed, change)
                if isinstance(change, model.DropOverlay):
                    self._looked = False
        self._current = believed
        return failures

    # --- looking after it

    def _look(self) -> NetworkTrouble:
        """Make sure of what others may have changed. Costs a few reads where there is no news."""
        self._s.read_news()
        current = self._current
        troubles: dict[str, str] = {}
        gone = self._joined()
        parts: dict[str, tuple[str, Callable[..., None]]] = {}
        if current.node is not None:
            parts[NODE_NETWORK_ID] = NODE_NETNS, partial(self._look_at_node, current.node, current)
        for network_id, overlay in current.overlays.items():
            parts[network_id] = overlay.netns, partial(self._look_at_overlay, overlay)
        for network_id, (netns, look) in parts.items():
            try:
                look(sure=network_id in self._mender.troubles)
                gone -= self._look_at_ports(network_id, netns)
            except _FAILURES as error:
                troubles[network_id] = f"network {network_id} of this node is broken: {error}"
        news, self._gone = frozenset(gone) - self._gone, frozenset(gone)
        return NetworkTrouble(troubles, news)

    def _look_at_overlay(self, overlay: OverlayPlan, *, sure: bool) -> None:
        space = self._s.get(overlay.netns)
        changed = links.keep_overlay_sysctls(overlay.netns)
        if sure or changed or _touched(space):
            _is_looked_at(space)
            with _told_if_changed(overlay.network_id, space):
                links.make_overlay(self._s, overlay, rewrite=False)

    def _look_at_node(self, node: NodePlan, current: Plan, *, sure: bool) -> None:
        space, host = self._s.get(NODE_NETNS), self._s.host()
        changed = links.keep_node_sysctls() or firewall.keep_host_sysctls()
        if not (sure or changed or _touched(space) or _touched(host) or host.watch.firewall):
            return
        _is_looked_at(space)
        _is_looked_at(host)
        with _told_if_changed(NODE_NETWORK_ID, space, host):
            links.make_node(self._s, node, rewrite=False)
        firewall.open_host_link()
        tables = [rules.host_table(node, current.ports)]
        tables += [guarding.table(current.guards)] if current.guards is not None else []
        touched = host.watch.rules or host.watch.firewall
        links.write_rules(host, *tables, rewrite=False)
        if touched or sure:
            host.watch.firewall = False
            firewall.open_forwarding()

    def _joined(self) -> set[str]:
        """The links that containers should have, by what the engine asked netd for and has not given back."""
        return {veth.port_name(key) for key in self._journal.keys(EndpointEntry)}

    def _look_at_ports(self, network_id: str, netns: str) -> frozenset[str]:
        """Containers' links that are there."""
        entry = self._journal.get(NetworkEntry, network_id)
        if entry is None:
            return frozenset()
        there, self._loose[netns] = links.make_ports(
            self._s,
            netns,
            self._loose.get(netns, frozenset()),
            hairpin=entry.hairpin,
            isolated=entry.isolated,
        )
        return there

    def _missing(self, endpoints: Mapping[str, str]) -> tuple[str, ...]:
        found = []
        for network_id, endpoint in endpoints.items():
            if network_id == NODE_NETWORK_ID:
                known = self._current.node is not None
            else:
                known = network_id in self._current.overlays
            if not known:
                continue  # nothing is known of it yet
            netns = NODE_NETNS if network_id == NODE_NETWORK_ID else model.netns_of(network_id)
            if veth.port_name(endpoint) not in self._s.get(netns).route.links():
                found.append(network_id)
        return tuple(found)

    def _remove_strays(self, wanted: Plan) -> list[str]:
        failures = []
        keep = {overlay.netns for overlay in wanted.overlays.values()} | {NODE_NETNS}
        for netns in namespaces.names(links.PREFIX):
            if netns not in keep:
                log.info(f"namespace {netns} belongs to no network of this node any more: removed")
                try:
                    links.drop_overlay(self._s, netns)
                except _FAILURES as error:
                    failures.append(f"namespace {netns}: {error}")
        for network_id in self._journal.keys(NetworkEntry):
            if network_id not in wanted.overlays and network_id != NODE_NETWORK_ID:
                self._journal.drop(NetworkEntry, network_id)
        for network_id in self._journal.keys(NamesEntry):
            if network_id not in wanted.names:
                self._journal.drop(NamesEntry, network_id)
        for task_id in {*self._journal.keys(TaskEntry), *self._journal.resolv_confs()}:
            if task_id not in wanted.tasks and task_id not in self._attached:
                self._forget_task(task_id)
        return failures

    def _make(self, change: Change) -> None:
        match change:
            case model.MakeNode(node, published):
                self._make_node(node, published)
            case model.SetGuards(guards):
                self._s.host().nft.run(guarding.table(guards))
            case model.SetPeers(add, remove):
                self._set_peers(add, remove)
            case model.SetPorts(put, remove_ports, cuts):
                self._s.host().nft.run(rules.update_ports(self._current.ports, put, remove_ports))
                firewall.cut(None, cuts)
            case model.MakeOverlay(overlay):
                links.make_overlay(self._s, overlay)
                entry = NetworkEntry(overlay.network_id, overlay.netns, overlay.mtu)
                self._journal.put(overlay.network_id, entry)
            case model.DropOverlay(network_id):
                links.drop_overlay(self._s, model.netns_of(network_id))
                self._journal.drop(NetworkEntry, network_id)
            case model.SetRemotes(network_id, more, less):
                links.set_remotes(self._s, model.netns_of(network_id), more, less)
            case model.SetLocals(network_id, here, gone):
                self._s.get(model.netns_of(network_id)).nft.run(rules.update_self(here, gone))
            case model.SetVips():
                self._set_vips(change)
            case model.SetNames(network_id, None):
                self._journal.drop(NamesEntry, network_id)
            case model.SetNames(network_id, names) if names is not None:
                self._journal.put(network_id, NamesEntry(network_id, names.name, names.names, names.pointers))
            case model.SetTasks(tasks, gone_tasks):
                for task in tasks:
                    self._write_task(task)
                for task_id in set(gone_tasks) - self._attached:
                    self._journal.drop(TaskEntry, task_id)
            case _:
                raise AssertionError(f"no way to make {change}")

    def _make_node(self, node: model.NodePlan, published: dict[model.PortKey, model.PortPlan]) -> None:
        links.make_node(self._s, node)
        firewall.open_host_link()
        firewall.open_forwarding()
        self._s.host().nft.run(rules.host_table(node, published))
        gateway = model.node_gateway(node.number)
        entry = NetworkEntry(
            NODE_NETWORK_ID, NODE_NETNS, node.mtu, default_gateway=gateway, hairpin=False, isolated=True
        )
        self._journal.put(NODE_NETWORK_ID, entry)
        self._journal.put_resolver(ResolverEntry(((NODE_NETNS, gateway),)))

    def _set_peers(self, add: dict[int, str], remove: dict[int, str]) -> None:
        assert self._current.node is not None
        before = self._current.node.peers
        after = {number: end for number, end in before.items() if number not in remove} | add
        self._s.host().nft.run(rules.update_peers(before.values(), after.values()))
        links.set_peers(self._s, add, remove)

    def _set_vips(self, change: model.SetVips) -> None:
        netns = model.netns_of(change.network_id)
        before = self._current.overlays[change.network_id].vips
        links.set_vip_addresses(self._s, netns, [vip for vip in change.put if vip not in before], ())
        self._s.get(netns).nft.run(rules.update_vips(before, change.put, change.remove))
        links.set_vip_addresses(self._s, netns, (), change.remove)
        firewall.cut(netns, change.cut)

    def _write_task(self, task: TaskAddress) -> None:
        self._journal.put(task.task_id, TaskEntry(task.task_id, task.address, task.networks, task.servers))

    def _resolver(self, req: AttachRequest) -> tuple[tuple[str, ...], str]:
        """Options for the create call, and the file to mount over the container's resolv.conf, if one is needed."""
        wanted = resolvconf.for_container(req.search, req.dns_options, resolvconf.of_host())
        if wanted.text:
            return wanted.options, str(self._journal.put_resolv_conf(req.task_id, wanted.text))
        return wanted.options, ""

    def _forget_task(self, task_id: str) -> None:
        self._journal.drop(TaskEntry, task_id)
        self._journal.drop_resolv_conf(task_id)

    def _leave(self) -> None:
        for netns in namespaces.names(links.PREFIX):
            if netns != NODE_NETNS:
                links.drop_overlay(self._s, netns)
        links.drop_node(self._s)
        self._s.host().nft.run(rules.NO_TABLE)
        self._s.host().nft.run(guarding.NO_TABLE)
        firewall.close_forwarding()
        self._journal.put_resolver(ResolverEntry())
        self._journal.put_ports(PortsEntry())
        for kind in (NetworkEntry, NamesEntry, TaskEntry):
            for key in self._journal.keys(kind):
                self._journal.drop(kind, key)
        for task_id in self._journal.resolv_confs():
            self._journal.drop_resolv_conf(task_id)


__all__ = ["HostNetwork", "NetworkError"]
