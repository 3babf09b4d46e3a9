"""What a host tells of the space it uses: all of it in few words, and never more than managers can keep."""

from __future__ import annotations

import ipaddress
import random

from swarm_agent.network.hostnet import MOST, lowest, told
from swarm_agent.objects.records import HostSubnet


def route(subnet: str, device: str = "eth0") -> HostSubnet:
    return HostSubnet(subnet=subnet, device=device)


def lan(subnet: str, device: str = "eth0") -> HostSubnet:
    return HostSubnet(subnet=subnet, device=device, connected=True)


def test_neighbours_on_one_device_become_one() -> None:
    found = [route(f"10.42.{n}.0/24", "tun0") for n in range(64)] + [route("10.42.64.0/24", "tun1")]
    assert told(found) == (route("10.42.0.0/18", "tun0"), route("10.42.64.0/24", "tun1"))


def test_a_route_around_the_hosts_own_subnet_leaves_it_standing() -> None:
    """Where an address is counts for more than where a route leads."""
    found = [route("10.0.0.0/8"), lan("10.1.2.0/24"), route("10.9.0.0/16")]
    assert told(found) == (route("10.0.0.0/8"), lan("10.1.2.0/24"))


def test_they_are_in_order_and_the_same_whatever_order_they_were_read_in() -> None:
    found = [route(f"10.{n}.0.0/17", f"eth{n % 3}") for n in range(200)] + [
        lan("9.1.0.0/24"),
        lan("100.0.0.0/24"),
    ]
    first = told(found)
    subnets = [ipaddress.IPv4Network(one.subnet) for one in first]
    assert subnets == sorted(subnets)
    random.Random(1).shuffle(found)
    assert told(found) == first


def test_of_thousands_of_routes_the_hosts_own_subnets_and_the_widest_are_told() -> None:
    found = [route(f"10.{n // 250}.{n % 250}.{2 * (n % 100)}/32") for n in range(5000)]
    found += [route("172.20.0.0/16", "tun0"), lan("192.168.7.0/30", "eth1")]
    seen = told(found)
    assert len(seen) == MOST
    assert {route("172.20.0.0/16", "tun0"), lan("192.168.7.0/30", "eth1")} <= set(seen)


def test_addresses_are_not_without_end_either() -> None:
    assert lowest({"9.0.0.1", "10.0.0.1"}) == ("10.0.0.1", "9.0.0.1")
    many = lowest({f"10.0.{n // 250}.{n % 250}" for n in range(2000)})
    assert len(many) == MOST
    assert {"10.0.0.0", "10.0.1.5"} <= set(many)
