"""What goes on while parts are away: netd, the daemon, the engine; and what is left when all is taken away."""

from __future__ import annotations

import signal

import pytest

from swarm_agent.network.model import VirtualIP, node_gateway
from swarm_agent.network.state_files import HoldsEntry, StateFiles
from tests.cluster.network.lab import CLIENT, Cluster, Held, Host, probe, until

pytestmark = pytest.mark.engine

VIP, PORT = "10.0.9.200", 8080


def web(cluster: Cluster) -> None:
    """Service web with a task a host (t1, t2), a client on host 1 (c1), one published port."""
    cluster.overlay("app", 4096, "10.0.9.0/24")
    cluster.vips.append(VirtualIP("app", "web", "web", VIP))
    cluster.ports.append(("web", "tcp", PORT, 7000, "ingress"))
    for n in cluster.hosts:
        cluster.task(f"t{n}", n, "web", 10 + n, app=f"10.0.9.1{n}")
    cluster.task("c1", 1, "client", 21, app="10.0.9.21")
    cluster.apply()
    for task in cluster.tasks.values():
        cluster.start(task)


def names_of(cluster: Cluster, address: str = VIP, port: int = 7000) -> set[str]:
    answers = probe(cluster.inside("c1"), "tcp", address, port, 4)
    assert not [answer for answer in answers if "error" in answer], answers
    return {answer["name"] for answer in answers}


def resolved(cluster: Cluster, name: str) -> list[str]:
    client = cluster.tasks["c1"]
    return cluster.hosts[1].resolve(client.name, name)


def links(host: Host, netns: str) -> dict[str, int]:
    """Name -> index: a link made anew has another index."""
    lines = host.space.run("ip", "-n", netns, "-o", "link").splitlines()
    return {line.split()[1].rstrip(":").partition("@")[0]: int(line.split(":")[0]) for line in lines}


BOTH = {"web.t1", "web.t2"}


def test_netd_may_be_killed_and_started_again(two: Cluster) -> None:
    web(two)
    held = Held(two.inside("c1"), VIP, 7000, 4)
    try:
        two.hosts[1].kill_netd(signal.SIGKILL)
        assert not [answer for answer in held.again() if "error" in answer]
        assert names_of(two) == BOTH, "new connections need nobody either"
        two.hosts[1].start_netd()
        assert resolved(two, "web") == [VIP]
        late = two.task("late", 1, "web", 31, app="10.0.9.31")
        two.apply()
        two.start(late)
        assert names_of(two) == {*BOTH, "web.late"}
        assert not [answer for answer in held.again() if "error" in answer]
    finally:
        held.close()


def test_containers_start_stop_and_resolve_while_the_daemon_is_away(two: Cluster) -> None:
    web(two)
    host = two.hosts[1]
    late = two.task("late", 1, "web", 31, app="10.0.9.31")
    two.apply()
    two.start(late)
    host.docker("stop", "-t", "0", late.name)
    host.kill_daemon()
    host.docker("start", late.name)
    assert names_of(two) == {*BOTH, late.name}
    assert resolved(two, "tasks.web") != []
    host.kill_netd()
    host.start_netd()
    assert resolved(two, "web") == [VIP]
    host.docker("rm", "-f", late.name)
    assert not [name for name in links(host, "ov-app") if name.startswith("vp") and "late" in name]


def test_a_restarted_daemon_adopts_and_repairs(two: Cluster) -> None:
    web(two)
    host = two.hosts[1]
    held = Held(two.inside("c1"), VIP, 7000, 4)
    try:
        before = {netns: links(host, netns) for netns in ("ov-app", "ov-node")}
        host.kill_daemon()
        # What happens to a host while nobody looks.
        host.space.run("ip", "netns", "add", "ov-leftover")
        host.space.run("ip", "-n", "ov-app", "neigh", "del", "10.0.9.12", "dev", "vx0")
        host.space.run(
            "bridge",
            "-n",
            "ov-app",
            "fdb",
            "append",
            "02:42:0a:00:09:63",
            "dev",
            "vx0",
            "dst",
            "10.92.0.99",
            "self",
            "permanent",
        )
        host.space.run("ip", "-n", "ov-app", "addr", "add", "10.0.9.250/32", "dev", "br0")
        host.space.run("ip", "-n", "ov-node", "route", "del", "10.240.8.0/22")
        host.space.run("ip", "netns", "exec", "ov-app", "sysctl", "-qw", "net.ipv4.ip_forward=0")
        host.space.run("ip", "netns", "exec", "ov-node", "nft", "flush", "ruleset")
        host.space.run("nft", "delete", "table", "ip", "swarm")
        host.space.run("iptables", "-F", "DOCKER-USER")

        host.start_daemon()
        two.apply(1)
        assert {netns: links(host, netns) for netns in ("ov-app", "ov-node")} == before, (
            "nothing was made anew"
        )
        assert not [answer for answer in held.again() if "error" in answer]
        assert host.netns() == ["ov-app", "ov-node"]
        fdb = host.space.run("bridge", "-n", "ov-app", "fdb", "show", "dev", "vx0")
        assert "10.92.0.99" not in fdb
        assert "10.0.9.250" not in host.space.run("ip", "-n", "ov-app", "addr", "show", "br0")
        assert names_of(two) == BOTH
        for number in two.hosts:
            answers = probe(two.client.enter, "tcp", f"10.92.0.{number}", PORT, 4)
            assert {(answer.get("name"), answer.get("client")) for answer in answers} == {
                (name, CLIENT) for name in BOTH
            }
    finally:
        held.close()


def test_the_engine_may_restart(two: Cluster) -> None:
    web(two)
    host = two.hosts[1]
    held = Held(two.inside("c1"), VIP, 7000, 4)
    try:
        host.stop_engine()
        assert not [answer for answer in held.again() if "error" in answer]
        host.start_engine()
        host.call("recheck")
        two.apply(1)
        assert not [answer for answer in held.again() if "error" in answer]
        late = two.task("late", 1, "web", 31, app="10.0.9.31")
        two.apply()
        two.start(late)
        assert names_of(two) == {*BOTH, "web.late"}
        assert resolved(two, "web") == [VIP]
        answers = probe(two.client.enter, "tcp", "10.92.0.1", PORT, 6)
        assert {answer.get("client") for answer in answers} == {CLIENT}
    finally:
        held.close()


def test_a_network_that_is_not_needed_goes_alone(two: Cluster) -> None:
    web(two)
    host = two.hosts[1]
    two.overlay("back", 4097, "10.0.10.0/24")
    short = two.task("short", 1, "db", 41, back="10.0.10.11")
    two.apply()
    two.start(short)
    assert host.netns() == ["ov-app", "ov-back", "ov-node"]
    two.remove(short)
    del two.overlays["back"]
    two.apply()
    assert host.netns() == ["ov-app", "ov-node"]
    assert "swarm-back" not in host.docker("network", "ls")
    assert names_of(two) == BOTH
    two.overlay("again", 4097, "10.0.11.0/24")  # the id of the tunnel is free again
    two.apply()
    assert host.netns() == ["ov-again", "ov-app", "ov-node"]


def test_a_peer_that_left_and_one_that_came(two: Cluster) -> None:
    web(two)
    host = two.hosts[1]
    gone = two.hosts.pop(2)
    try:
        two.apply()
        assert names_of(two) == {"web.t1"}
        assert "10.240.8.0/22" not in host.space.run("ip", "-n", "ov-node", "route")
        assert "10.92.0.2" not in host.space.run("nft", "list", "set", "ip", "swarm", "peers")
    finally:
        two.hosts[2] = gone
    two.apply()
    assert names_of(two) == BOTH
    answers = probe(two.client.enter, "tcp", "10.92.0.1", PORT, 4)
    assert {(answer.get("name"), answer.get("client")) for answer in answers} == {
        (name, CLIENT) for name in BOTH
    }


def test_leaving_leaves_nothing(two: Cluster) -> None:
    host = two.hosts[1]
    ruleset = host.space.run("nft", "list", "ruleset")
    host_links = links_of_host(host)
    networks = host.docker("network", "ls")
    web(two)
    assert host.space.run("nft", "list", "ruleset") != ruleset
    for task in [task for task in two.tasks.values() if task.host == 1]:
        two.remove(task)
    host.call("leave")
    host.call("leave")
    assert host.netns() == []
    assert links_of_host(host) == host_links
    assert host.docker("network", "ls") == networks
    assert "swarm" not in host.space.run("nft", "list", "tables")
    assert "swarm" not in host.space.run("iptables-save")
    assert "10.240" not in host.space.run("ip", "route")
    kept = {"resolver.json", "ports.json", "holds.json"}
    assert [str(path) for path in host.state.rglob("*.json") if path.name not in kept] == []
    until(lambda: StateFiles(host.state).get_holds() == HoldsEntry(), "netd holds no port any more")
    two.apply(1)  # and it may come back
    two.start(two.task("t9", 1, "web", 19, app="10.0.9.19"))
    two.apply()
    assert node_gateway(1) in host.space.run("ip", "-n", "ov-node", "addr")
    answers = until(lambda: probe(two.client.enter, "tcp", "10.92.0.1", PORT, 4), "answers after coming back")
    assert {answer.get("name") for answer in answers} == {"web.t2", "web.t9"}
    inside = host.in_container("web.t9")
    until(
        lambda: probe(inside, "dns", node_gateway(1), "web", 1)[0]["answers"] == [VIP],
        "names after coming back",
    )


def links_of_host(host: Host) -> list[str]:
    return sorted(line.split()[1] for line in host.space.run("ip", "-o", "link").splitlines())
