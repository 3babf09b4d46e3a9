"""Which of the engine's bridges lead off the host: there members cannot be told from containers by the link."""

from __future__ import annotations

from swarm_agent.network.netlink import Link
from swarm_agent.network.uplinks import among


def link(index: int, name: str, kind: str, master: int = 0) -> Link:
    return Link(index, name, True, 1500, "", master, True, kind)


def test_a_bridge_with_a_port_that_is_no_containers_leads_off_the_host() -> None:
    for kind in ("", "bond", "vlan", "vxlan"):  # "": a network card
        links = [link(2, "br0", "bridge"), link(3, "docker0", "bridge"), link(4, "up", kind, master=2)]
        links += [link(5, "veth1", "veth", master=2), link(6, "veth2", "veth", master=3)]
        assert among(("br0", "docker0", "gone"), links, ()) == {"br0"}, kind


def test_one_with_containers_and_virtual_machines_alone_does_not() -> None:
    ports = [link(n, f"p{n}", kind, master=2) for n, kind in enumerate(("veth", "tun", "dummy"), 10)]
    assert among(("br0",), [link(2, "br0", "bridge"), link(3, "eth0", ""), *ports], ()) == frozenset()


def test_one_that_is_known_to_does() -> None:
    assert among(("br0",), [link(2, "br0", "bridge")], {"br0", "eth0"}) == {"br0"}
