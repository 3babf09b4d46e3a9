from __future__ import annotations

import ipaddress

import pytest

from swarm_agent.control.subnets import Exhausted, collision, free
from swarm_agent.objects.records import HostSubnet, Node, NodeDescription
from swarm_agent.objects.specs import NodeSpec

TENS = ("10.0.0.0/8",)


def node(name: str, *subnets: HostSubnet, addresses: tuple[str, ...] = ()) -> Node:
    description = NodeDescription(hostname=name, subnets=subnets, addresses=addresses)
    return Node(id=name, spec=NodeSpec(), description=description)


def lan(subnet: str, device: str = "eth0") -> HostSubnet:
    return HostSubnet(subnet=subnet, device=device, connected=True)


def test_the_first_block_that_nobody_uses() -> None:
    nodes = [node("a", lan("10.0.0.0/24")), node("b", HostSubnet(subnet="10.0.1.0/25", device="tun0"))]
    assert str(free([], [], TENS, 24)) == "10.0.0.0/24"
    assert str(free([], nodes, TENS, 24)) == "10.0.2.0/24"
    assert str(free(["10.0.2.0/24", "10.0.4.0/22"], nodes, TENS, 24)) == "10.0.3.0/24"
    assert str(free(["10.0.2.0/24", "10.0.3.0/24", "10.0.4.0/22"], nodes, TENS, 24)) == "10.0.8.0/24"
    assert str(free([], [node("a", lan("10.0.0.128/25"))], TENS, 26)) == "10.0.0.0/26"


def test_the_node_network_is_never_given() -> None:
    below = ["10.0.0.0/9", "10.128.0.0/10", "10.192.0.0/11", "10.224.0.0/12"]
    with pytest.raises(Exhausted):
        free(below, [], TENS, 24)
    assert str(free(below, [], (*TENS, "192.168.0.0/16"), 24)) == "192.168.0.0/24"


def test_a_route_to_everywhere_does_not_leave_nothing() -> None:
    """First the routes give way, then the LANs: where hosts themselves are, an overlay never is."""
    wide = HostSubnet(subnet="10.0.0.0/8", device="wg0")
    assert str(free([], [node("a", wide, lan("10.0.0.0/24"))], TENS, 24)) == "10.0.1.0/24"
    flat = node("a", lan("10.0.0.0/8"), addresses=("10.0.0.7", "10.0.1.9"))
    assert str(free([], [flat], TENS, 24)) == "10.0.2.0/24"


def test_a_collision_names_node_and_device() -> None:
    nodes = [node("b", lan("10.0.0.0/24")), node("a", HostSubnet(subnet="10.9.0.0/16", device="tun0"))]
    wanted = ipaddress.IPv4Network
    assert str(collision(wanted("10.0.0.128/25"), nodes)) == "node b is on 10.0.0.0/24 (eth0)"
    assert str(collision(wanted("10.9.1.0/24"), nodes)) == "node a has a route to 10.9.0.0/16 (tun0)"
    assert collision(wanted("10.8.0.0/24"), nodes) is None


def test_many_networks_are_passed_over_quickly() -> None:
    taken = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(3000)]
    assert str(free(taken, [], TENS, 24)) == "10.11.184.0/24"
