"""``FakeNodeNetwork``: a ``NodeNetwork`` that touches nothing and remembers everything.

Keeps the real one's contract (``tests/unit/network/contract.py`` runs against both): what may be called when, what is
refused and with which error, what ``attach`` answers. Faults are asked for with ``fail``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from swarm_agent.network import model, resolvconf
from swarm_agent.network.engine_networks import container_network
from swarm_agent.network.host import NetworkError
from swarm_agent.network.model import AttachRequest, Change, ContainerNetwork, NetworkView, Plan, PortKey
from swarm_agent.objects.errors import FailedPrecondition
from swarm_agent.objects.records import HostSubnet


class FakeNodeNetwork:
    """``calls`` holds (name, argument) in order; ``made`` the changes each ``apply`` came to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.made: list[list[Change]] = []
        self.attached: dict[str, AttachRequest] = {}
        self.view: NetworkView | None = None
        self.plan = Plan()
        self.started = False
        self.own_net: tuple[tuple[HostSubnet, ...], tuple[str, ...]] = ((), ())
        self.lost: set[str] = set()  # networks that ``missing`` finds lost
        self.troubles: dict[str, str] = {}
        self.told: Callable[[frozenset[str], frozenset[str]], None] = lambda _gone, _networks: None
        self.holders: dict[PortKey, str] = {}
        self._taken_from: frozenset[PortKey] = frozenset()
        self._faults: dict[str, list[Exception]] = {}

    def fail(self, call: str, error: Exception) -> None:
        """The next call of that name raises ``error`` and changes nothing."""
        self._faults.setdefault(call, []).append(error)

    def fails(self, call: str) -> bool:
        """Whether the next call of that name will."""
        return bool(self._faults.get(call))

    async def start(self) -> None:
        self._called("start", None)
        self.started = True

    async def apply(self, view: NetworkView) -> None:
        self._called("apply", view)
        self._must_run()
        try:
            self._taken_from = self._not_taken(view)
            wanted = model.plan(view, left=model.Left(self._taken_from))
        except ValueError as error:
            raise NetworkError(f"the network view for this node cannot be true: {error}") from error
        self.made.append(model.changes(self.plan, wanted))
        self.plan, self.view = wanted, view

    async def attach(self, req: AttachRequest) -> ContainerNetwork:
        self._called("attach", req)
        self._must_run()
        if self.plan.node is None:
            raise FailedPrecondition(
                "the node network is not up on this node yet; apply a network view first"
            )
        missing = [network_id for network_id, _, _ in req.overlays if network_id not in self.plan.overlays]
        if missing:
            raise FailedPrecondition(
                f"network {', '.join(missing)} is not on this node yet; apply a view that has it first"
            )
        self.attached[req.task_id] = req
        resolver = resolvconf.for_container(req.search, req.dns_options, resolvconf.Resolv())
        path = f"/fake/{req.task_id}/resolv.conf" if resolver.text else ""
        return container_network(req, model.node_gateway(self.plan.node.number), resolver.options, path)

    def _not_taken(self, view: NetworkView) -> frozenset[PortKey]:
        return frozenset((p.protocol, p.published) for p in view.ports) & self.holders.keys()

    async def ports_changed(self) -> bool:
        return self.view is not None and self._not_taken(self.view) != self._taken_from

    async def port_holders(self) -> dict[PortKey, str]:
        return dict(self.holders)

    async def detach(self, task_id: str) -> None:
        self._called("detach", task_id)
        self._must_run()
        self.attached.pop(task_id, None)

    async def host_net(self) -> tuple[tuple[HostSubnet, ...], tuple[str, ...]]:
        self._called("host_net", None)
        return self.own_net

    async def missing(self, endpoints: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(network for network in endpoints if network in self.lost)

    def trouble(self, networks: Iterable[str] | None = None) -> str:
        wanted = self.troubles if networks is None else networks
        return "; ".join(self.troubles[network] for network in wanted if network in self.troubles)

    def tell(self, told: Callable[[frozenset[str], frozenset[str]], None]) -> None:
        self.told = told

    def engine_changed(self) -> None:
        self._called("engine_changed", None)

    async def stop(self) -> None:
        self._called("stop", None)
        self.started = False
        self.plan = Plan()  # what is on the host is looked at again after a start

    async def recheck(self) -> None:
        self._called("recheck", None)
        self.plan = Plan()

    async def leave(self) -> None:
        self._called("leave", None)
        self._must_run()
        self.plan, self.view = Plan(), None
        self.attached.clear()

    def _called(self, name: str, argument: object) -> None:
        self.calls.append((name, argument))
        faults = self._faults.get(name)
        if faults:
            raise faults.pop(0)

    def _must_run(self) -> None:
        if not self.started:
            raise NetworkError("the network of this node is not started")
