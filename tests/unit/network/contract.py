"""What every ``NodeNetwork`` keeps, run against the fake in unit tests and against the real one inside a host."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

from swarm_agent.network.host import HostNetwork, NetworkError
from swarm_agent.network.model import (
    AttachRequest,
    ContainerNetwork,
    Endpoint,
    NetworkView,
    NodeNetwork,
    Overlay,
    Peer,
    PublishedPort,
    VirtualIP,
)
from swarm_agent.network.state_files import StateFiles
from swarm_agent.objects.errors import FailedPrecondition

VIEW = NetworkView(
    node_id="node1",
    number=1,
    data_addr="127.0.0.1",
    peers=(Peer("node2", 2, "127.0.0.2"),),
    overlays=(Overlay("app", "app", 4096, "10.0.9.0/24", "10.0.9.1"),),
    endpoints=(Endpoint("app", "t2", "web.2.t2", "web", "web", "node2", "10.0.9.12", ready=True),),
    vips=(VirtualIP("app", "web", "web", "10.0.9.200"),),
    ports=(PublishedPort("web", "tcp", 8080, 80, "ingress", ("10.240.8.12",)),),
)


@contextlib.contextmanager
def refuses(kind: type[Exception], words: str) -> Iterator[None]:
    try:
        yield
    except kind as error:
        said = str(error)
    else:
        raise AssertionError(f"no {kind.__name__} about {words!r}")
    assert words in said, said


async def nothing_before_start(network: NodeNetwork) -> None:
    with refuses(NetworkError, "not started"):
        await network.apply(VIEW)


async def attach_needs_a_view(network: NodeNetwork) -> None:
    await network.start()
    with refuses(FailedPrecondition, "apply a network view first"):
        await network.attach(AttachRequest("t1", "10.240.4.11"))


async def attach_needs_its_networks(network: NodeNetwork) -> None:
    await network.start()
    await network.apply(VIEW)
    with refuses(FailedPrecondition, "network back is not on this node yet"):
        await network.attach(
            AttachRequest("t1", "10.240.4.11", (("app", "10.0.9.11", ()), ("back", "10.0.10.11", ())))
        )


async def attach_says_how_to_create(network: NodeNetwork) -> None:
    await network.start()
    await network.apply(VIEW)
    got = await network.attach(AttachRequest("t1", "10.240.4.11", (("app", "10.0.9.11", ("www",)),)))
    assert got == ContainerNetwork(
        network_mode="swarm_node",
        first={"swarm_node": {"IPAMConfig": {"IPv4Address": "10.240.4.11"}}},
        connect=(("swarm-app", {"IPAMConfig": {"IPv4Address": "10.0.9.11"}}),),
        dns=("10.240.4.1",),
        dns_options=got.dns_options,
    )
    assert got.dns_options
    assert not [option for option in got.dns_options if "ndots" in option]
    asked = AttachRequest("t1", "10.240.4.11", (), (), ("example.org",), ("ndots:2", "timeout:3"))
    got = await network.attach(asked)
    assert got.dns_options == ("timeout:3",)
    assert got.resolv_conf
    await network.detach("t1")


async def attach_to_nothing(network: NodeNetwork) -> None:
    await network.start()
    await network.apply(VIEW)
    assert await network.attach(AttachRequest("t1", None)) == ContainerNetwork("none", None)


async def detach_of_a_stranger(network: NodeNetwork) -> None:
    await network.start()
    await network.detach("never-seen")


async def impossible_views(network: NodeNetwork) -> None:
    await network.start()
    with refuses(NetworkError, "node number 0 is out of range"):
        await network.apply(NetworkView("n", 0, "127.0.0.1"))


async def applying_again(network: NodeNetwork) -> None:
    await network.start()
    await network.apply(VIEW)
    await network.apply(VIEW)
    await network.stop()
    await network.stop()
    await network.start()
    await network.apply(VIEW)


CONTRACT = (
    nothing_before_start, attach_needs_a_view, attach_needs_its_networks, attach_says_how_to_create,
    attach_to_nothing, detach_of_a_stranger, impossible_views, applying_again,
)  # fmt: skip


class ScriptedEngine:
    """An engine that has networks and nothing else."""

    def __init__(self) -> None:
        self.networks: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, list[str]] = {}
        self.calls: list[tuple[str, str]] = []

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        self.calls.append((method, path))
        parts = path.partition("?")[0].strip("/").split("/")
        if (method, path) == ("POST", "/networks/create"):
            if body["Name"] in self.networks:
                return 409, {"message": "exists"}
            self.networks[body["Name"]] = {"Id": f"id-{body['Name']}", **body}
            return 201, {"Id": f"id-{body['Name']}"}
        if parts == ["networks"]:
            return 200, list(self.networks.values())
        if parts[1] not in self.networks:
            return 404, {"message": "no such network"}
        if parts[-1] == "disconnect":
            self.endpoints[parts[1]].remove(body["Container"])
            return 200, None
        here = self.endpoints.get(parts[1], [])
        if method == "DELETE":
            if here:
                return 403, {"message": "has active endpoints"}
            del self.networks[parts[1]]
            return 204, None
        return 200, {**self.networks[parts[1]], "Containers": {name: {} for name in here}}


async def _run_for_real(folder: Path) -> None:
    for number, check in enumerate(CONTRACT):
        network = HostNetwork(ScriptedEngine(), StateFiles(folder / str(number)))
        done: Awaitable[None] = check(network)
        await done
        await network.start()
        await network.leave()
        await network.stop()
        print(check.__name__, flush=True)


if __name__ == "__main__":
    asyncio.run(_run_for_real(Path(sys.argv[1])))
