"""Packets through three hosts with real engines: who reaches whom, and as whom."""

from __future__ import annotations

import subprocess
from collections import Counter
from typing import Any

import pytest

from swarm_agent.network.model import VirtualIP, host_identity, node_gateway
from tests.cluster.network.lab import CLIENT, Cluster, Held, Listener, Refused, probe, probe_command

pytestmark = pytest.mark.engine

VIP, IDLE, DB = "10.0.9.200", "10.0.9.201", "10.0.10.200"
PORT, IDLE_PORT, LOCAL_PORT = 8080, 8081, 8082
HOSTS = (1, 2, 3)
HASTY = ["env", "PROBE_TIMEOUT=0.7"]  # for answers that must not come
SERVERS = {f"web.t{n}" for n in HOSTS}


@pytest.fixture(scope="module")
def cluster(three: Cluster) -> Cluster:
    """Service web (t1..t3) and clients (c1..c3) on network app, db (d1, d2) on back, one of each a host."""
    three.overlay("app", 4096, "10.0.9.0/24")
    three.overlay("back", 4097, "10.0.10.0/24")
    three.vips += [
        VirtualIP("app", "web", "web", VIP, ("www",)),
        VirtualIP("app", "idle", "idle", IDLE),
        VirtualIP("back", "db", "db", DB),
    ]
    three.ports += [
        ("web", "tcp", PORT, 7000, "ingress"),
        ("web", "udp", PORT, 7000, "ingress"),
        ("idle", "tcp", IDLE_PORT, 7000, "ingress"),
        ("idle", "udp", IDLE_PORT, 7000, "ingress"),
        ("web", "tcp", LOCAL_PORT, 7000, "host"),
    ]
    three.apply()
    for n in HOSTS:
        three.task(f"t{n}", n, "web", 10 + n, app=f"10.0.9.1{n}")
        three.task(f"c{n}", n, "client", 20 + n, app=f"10.0.9.2{n}")
    for n in (1, 2):
        three.task(f"d{n}", n, "db", 30 + n, back=f"10.0.10.1{n}")
    three.apply()
    for task in three.tasks.values():
        three.start(task)
    return three


def servers(answers: list[dict[str, Any]]) -> set[str]:
    assert not [answer for answer in answers if "error" in answer], answers
    return {answer["name"] for answer in answers}


def clients(answers: list[dict[str, Any]]) -> set[str]:
    return {answer["client"] for answer in answers}


# --- between services


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_virtual_address_reaches_every_task_with_the_callers_address(
    cluster: Cluster, host: int, protocol: str
) -> None:
    answers = probe(cluster.inside(f"c{host}"), protocol, VIP, 7000, 9)
    assert Counter(answer["name"] for answer in answers) == dict.fromkeys(SERVERS, 3), answers
    assert clients(answers) == {f"10.0.9.2{host}"}
    assert max(answer["seconds"] for answer in answers) < 0.9, "a second means a lost packet"


@pytest.mark.parametrize("host", HOSTS)
def test_a_task_can_pick_itself(cluster: Cluster, host: int) -> None:
    answers = probe(cluster.inside(f"t{host}"), "tcp", VIP, 7000, 9)
    assert servers(answers) == SERVERS
    own = [answer for answer in answers if answer["name"] == f"web.t{host}"]
    assert clients(own) == {"10.0.9.1"}, "only the self-pick shows the gateway"
    assert max(answer["seconds"] for answer in answers) < 0.9


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_service_without_tasks_refuses_at_once(cluster: Cluster, protocol: str) -> None:
    (answer,) = probe(cluster.inside("c1"), protocol, IDLE, 7000, 1)
    assert answer["error"] == "ConnectionRefusedError"
    assert answer["seconds"] < 0.9


@pytest.mark.parametrize("size", [1400, 1500, 4000, 20000])
def test_large_datagrams_pass(cluster: Cluster, size: int) -> None:
    """Fragments too: between hosts, through the virtual address and through a published port."""
    for address in ("10.0.9.12", "10.0.9.13", *[VIP] * 3):
        (answer,) = probe(cluster.inside("c1"), "big", address, 7000, size)
        assert answer.get("client") == "10.0.9.21", (address, answer)
    for _ in range(3):
        (answer,) = probe(cluster.client.enter, "big", "10.92.0.1", PORT, size)
        assert answer.get("client") == CLIENT, answer


# --- names


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("web", {VIP}),
        ("www", {VIP}),
        ("web.app", {VIP}),
        ("tasks.web", {"10.0.9.11", "10.0.9.12", "10.0.9.13"}),
        ("web.t1", {"10.0.9.11"}),
        ("web.t2", {"10.0.9.12"}),
        ("idle", {IDLE}),
    ],
)
@pytest.mark.parametrize("host", [1, 2])
def test_a_program_in_a_container_finds_names(
    cluster: Cluster, host: int, name: str, found: set[str]
) -> None:
    client = cluster.tasks[f"c{host}"]
    assert set(cluster.hosts[host].resolve(client.name, name)) == found


def test_names_of_a_network_are_seen_by_its_tasks_only(cluster: Cluster) -> None:
    (inside,) = probe(cluster.inside("d2"), "dns", node_gateway(2), "db", 1)
    (outside,) = probe(cluster.inside("c2"), "dns", node_gateway(2), "db", 1)
    (other,) = probe(cluster.inside("d2"), "dns", node_gateway(2), "web", 1)
    assert inside["answers"] == [DB]
    assert outside["answers"] == other["answers"] == []
    assert 0 not in {outside["code"], other["code"]}


def test_names_over_tcp_pointers_and_no_ipv6(cluster: Cluster) -> None:
    server, inside = node_gateway(3), cluster.inside("c3")
    assert probe(inside, "dns", server, "web", 1, "tcp")[0]["answers"] == [VIP]
    assert probe(inside, "dns", server, "12.9.0.10.in-addr.arpa", 12)[0]["answers"] == ["web.t2.app"]
    assert probe(inside, "dns", server, "web", 28)[0] == {"code": 0, "truncated": False, "answers": []}


def test_other_names_are_asked_of_the_hosts_own_servers(cluster: Cluster) -> None:
    upstream = Listener(cluster.client.enter, "upstream", CLIENT)
    try:
        client = cluster.tasks["c2"]
        assert cluster.hosts[2].resolve(client.name, "example.org") == ["192.0.2.7"]
    finally:
        upstream.close()


# --- published ports


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("host", HOSTS)
def test_every_host_serves_a_published_port_with_the_clients_own_address(
    cluster: Cluster, host: int, protocol: str
) -> None:
    # a source port the client used a moment ago may come again, and its flow would stay where it was
    enter = cluster.hosts[host].space.enter
    subprocess.run(
        [*enter, "conntrack", "-D", "-s", CLIENT], capture_output=True, check=False
    )  # 1: there were none
    answers = probe(cluster.client.enter, protocol, f"10.92.0.{host}", PORT, 9)
    assert Counter(answer["name"] for answer in answers) == dict.fromkeys(SERVERS, 3), answers
    assert clients(answers) == {CLIENT}
    assert max(answer["seconds"] for answer in answers) < 0.9


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_reaches_published_ports(cluster: Cluster, host: int) -> None:
    enter, other = cluster.hosts[host].space.enter, host % 3 + 1
    for address, seen in (
        ("127.0.0.1", host_identity(host)),
        (f"10.92.0.{host}", f"10.92.0.{host}"),
        (f"10.92.0.{other}", f"10.92.0.{host}"),
    ):
        for protocol in ("tcp", "udp"):
            answers = probe(enter, protocol, address, PORT, 6)
            assert servers(answers) == SERVERS
            assert clients(answers) == {seen}, f"{protocol} to {address}"


@pytest.mark.parametrize("host", HOSTS)
def test_a_task_reaches_published_ports(cluster: Cluster, host: int) -> None:
    inside, other = cluster.inside(f"t{host}"), host % 3 + 1
    own = probe(inside, "tcp", f"10.92.0.{host}", PORT, 6)
    through_other = probe(inside, "tcp", f"10.92.0.{other}", PORT, 6)
    assert servers(own) == servers(through_other) == SERVERS
    assert clients(own) == {host_identity(host)}
    assert clients(through_other) == {f"10.92.0.{host}"}, "leaves as its host, as any egress"


def test_a_host_port_serves_local_tasks_only(cluster: Cluster) -> None:
    for host in HOSTS:
        assert servers(probe(cluster.client.enter, "tcp", f"10.92.0.{host}", LOCAL_PORT, 3)) == {
            f"web.t{host}"
        }


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_without_tasks_refuses_at_once(cluster: Cluster, protocol: str) -> None:
    (answer,) = probe(cluster.client.enter, protocol, "10.92.0.1", IDLE_PORT, 1)
    assert answer["error"] == "ConnectionRefusedError"
    assert answer["seconds"] < 0.9


def test_a_client_may_use_its_port_again_towards_another_host(cluster: Cluster) -> None:
    """The stale mark of the first host must not lead the second host's answers astray."""
    answers = [
        answer
        for turn in range(12)
        for answer in probe(cluster.client.enter, "tcp", f"10.92.0.{turn % 3 + 1}", PORT, 1, 40000)
    ]
    assert servers(answers) == SERVERS
    assert max(answer["seconds"] for answer in answers) < 0.5, answers


def test_tasks_reach_the_outside_as_their_host(cluster: Cluster) -> None:
    listener = Listener(cluster.client.enter, "listen", CLIENT, 7777)
    try:
        probe([*cluster.inside("c2"), *HASTY], "udp", CLIENT, 7777, 1)
        assert listener.next() == "10.92.0.2"
    finally:
        listener.close()


# --- doors that must stay shut


def test_tasks_of_different_networks_are_strangers(cluster: Cluster) -> None:
    for source, target in (("d1", "t1"), ("d1", "t2"), ("d2", "t1")):
        (answer,) = probe(
            [*cluster.inside(source), *HASTY], "tcp", cluster.tasks[target].node_address, 7000, 1
        )
        assert "error" in answer, f"{source} reached {target} over the node network"
        (answer,) = probe([*cluster.inside(source), *HASTY], "tcp", VIP, 7000, 1)
        assert "error" in answer


def test_nobody_outside_walks_into_the_node_network(cluster: Cluster) -> None:
    """Even where the routes of the outside lead to a host: only published ports are doors."""
    cluster.router.run("ip", "route", "add", "10.240.0.0/12", "via", "10.92.0.1")
    try:
        (answer,) = probe([*cluster.client.enter, *HASTY], "tcp", cluster.tasks["t1"].node_address, 7000, 1)
        assert "error" in answer
        cluster.hosts[1].call("watch", False)
        cluster.hosts[1].space.run("nft", "insert", "rule", "ip", "swarm", "forward", "accept")
        (answer,) = probe(cluster.client.enter, "tcp", cluster.tasks["t1"].node_address, 7000, 1)
        assert answer["client"] == CLIENT, "without our rule the way is open: the test means something"
    finally:
        cluster.router.run("ip", "route", "del", "10.240.0.0/12")
        cluster.hosts[1].call("watch", True)


def test_tunnels_from_others_than_peers_are_dropped(cluster: Cluster) -> None:
    listener = Listener(cluster.inside("c1"), "listen", "0.0.0.0", 7777)
    try:
        cluster.client.run(*probe_command("vxlan", "10.92.0.1", 4096, "10.0.9.99", "10.0.9.21"))
        cluster.hosts[2].call("watch", False)  # a program may not, a host's kernel may
        cluster.hosts[2].space.run("nft", "flush", "chain", "inet", "swarm_guard", "output")
        cluster.hosts[2].space.run(*probe_command("vxlan", "10.92.0.1", 4096, "10.0.9.98", "10.0.9.21"))
        assert listener.next() == "10.0.9.98", "the peer's came, the stranger's did not"
    finally:
        listener.close()
        cluster.hosts[2].call("watch", True)


# --- leaving backends


def test_a_backend_that_leaves_takes_only_its_own_connections(cluster: Cluster) -> None:
    held = Held(cluster.inside("c1"), VIP, 7000, 9)
    outside = Held(cluster.client.enter, "10.92.0.1", PORT, 6)
    try:
        assert servers(held.first) == servers(outside.first) == SERVERS
        leaving = cluster.tasks["t2"]
        leaving.ready = False  # stopping: no new connections, the old ones stay
        cluster.apply()
        assert servers(held.again()) == SERVERS
        assert servers(probe(cluster.inside("c1"), "tcp", VIP, 7000, 6)) == SERVERS - {"web.t2"}
        assert servers(probe(cluster.client.enter, "tcp", "10.92.0.3", PORT, 6)) == SERVERS - {"web.t2"}

        del cluster.tasks["t2"]  # gone
        cluster.apply()
        for connections in (held, outside):
            after = connections.again()
            lost = {
                first["name"] for first, now in zip(connections.first, after, strict=True) if "error" in now
            }
            assert lost == {"web.t2"}, after
            assert max(now["seconds"] for now in after) < 0.9, "a lost connection must say so at once"
    finally:
        held.close()
        outside.close()
        leaving.ready = True
        cluster.tasks["t2"] = leaving
        cluster.apply()
    assert servers(probe(cluster.inside("c1"), "tcp", VIP, 7000, 6)) == SERVERS


def test_datagrams_move_away_from_a_stopping_backend(cluster: Cluster) -> None:
    def ask() -> str:
        (answer,) = probe(cluster.inside("c3"), "udp", VIP, 7000, 1, 41000)
        return str(answer["name"])

    first = ask()
    assert ask() == first, "a flow sticks"
    task = cluster.tasks[first.removeprefix("web.")]
    task.ready = False
    try:
        cluster.apply()
        assert ask() in SERVERS - {first}
    finally:
        task.ready = True
        cluster.apply()


def test_attaching_to_an_unknown_network_is_refused(cluster: Cluster) -> None:
    with pytest.raises(Refused, match="network nowhere is not on this node yet"):
        cluster.hosts[1].call(
            "attach",
            {"task_id": "x", "node_address": "10.240.4.99", "overlays": [("nowhere", "10.9.9.9", [])]},
        )
