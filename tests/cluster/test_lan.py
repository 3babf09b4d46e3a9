"""Hosts in a LAN whose subnet an overlay would be given first."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest

from tests.cluster.network.lab import probe, until
from tests.cluster.swarm_lab import IMAGE, Lab, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

LAN = ipaddress.IPv4Network("10.0.0.0/24")
CLIENT, PORT = "10.0.0.100", 8080


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts with a second address in the LAN, in which the router stands for a client; host 2 has a route to a far place."""
    with swarm_lab(tmp_path_factory.mktemp("lan"), (1, 2)) as found:
        found._router.run("ip", "addr", "add", f"{CLIENT}/24", "dev", "lan")
        for number, host in found.hosts.items():
            host.space.run("ip", "addr", "add", f"10.0.0.{number}/24", "dev", "eth0")
        found[2].space.run("ip", "route", "add", "10.0.1.0/25", "via", "10.92.0.254")
        found[1].swarm("swarm", "init", "--advertise-addr", found[1].address)
        token = found[1].swarm("swarm", "join-token", "-q", "manager").strip()
        found[2].swarm("swarm", "join", "--token", token, f"{found[1].address}:2377")
        until(lambda: len(found.nodes(1)) == 2, "both")
        yield found


def test_a_stated_subnet_that_a_host_uses_is_refused_by_name(lab: Lab) -> None:
    def refusal(subnet: str) -> str:
        body = {"Name": "stated", "Driver": "overlay", "IPAM": {"Config": [{"Subnet": subnet}]}}
        status, answer = lab[1].call_api("POST", "/networks/create", body)
        if status == 201:  # the node has not described itself yet
            lab[1].swarm("network", "rm", "stated")
            return ""
        assert status == 409
        return str(answer["message"])

    name = lab[2].get("/info")["Name"]
    words = until(lambda: refusal("10.0.0.64/26"), "a refusal")
    assert "10.0.0.64/26 overlaps" in words
    assert "is on 10.0.0.0/24 (eth0)" in words
    words = until(lambda: refusal("10.0.1.0/24"), "a refusal")
    assert f"node {name} has a route to 10.0.1.0/25 (eth0)" in words
    assert refusal("10.7.0.0/24") == ""


def test_clients_of_that_lan_reach_published_ports(lab: Lab) -> None:
    lab[1].swarm("network", "create", "-d", "overlay", "first")
    lab[1].swarm(
        *("service", "create", "--no-resolve-image", "-d", "--name", "web", "--network", "first"),
        *("--publish", f"{PORT}:7000", "--replicas", "2", f"{IMAGE}:1", "/task", "serve", "web", "7000"),
    )
    lab.running(1, "web", 2)
    (config,) = lab[1].get("/networks/first")["IPAM"]["Config"]
    chosen = ipaddress.IPv4Network(config["Subnet"])
    assert not chosen.overlaps(LAN)
    assert str(chosen) == "10.0.2.0/24", "past the LAN, and past the route of host 2"
    for number in lab.hosts:

        def answered(number: int = number) -> bool:
            answers = probe(lab._router.enter, "tcp", f"10.0.0.{number}", PORT, 4)
            return {answer.get("client") for answer in answers} == {CLIENT}

        until(answered, f"host {number} to answer the LAN, with the client's own address")
