"""What others break on a host while its tasks run: mended within five seconds, or told, and the task is to be replaced."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from swarm_agent.network.model import VirtualIP
from tests.cluster.network.lab import CLIENT, Cluster, Held, Host, Listener, lab, probe, until
from tests.cluster.network.test_kernel import everything

pytestmark = pytest.mark.engine

VIP, PORT = "10.0.9.200", 8080
BOTH = {"web.t1", "web.t2"}
WITHIN = 5.0  # seconds
HASTY = ["env", "PROBE_TIMEOUT=0.7"]


@pytest.fixture(scope="module")
def cluster(engine_needed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with lab(tmp_path_factory.mktemp("mend"), (1, 2)) as two:
        web(two)
        yield two


def web(two: Cluster) -> None:
    two.overlay("app", 4096, "10.0.9.0/24")
    two.vips.append(VirtualIP("app", "web", "web", VIP))
    two.ports.append(("web", "tcp", PORT, 7000, "ingress"))
    for n in two.hosts:
        two.task(f"t{n}", n, "web", 10 + n, app=f"10.0.9.1{n}")
    two.task("c1", 1, "client", 21, app="10.0.9.21")
    two.apply()
    for task in two.tasks.values():
        two.start(task)


def made(host: Host) -> dict[str, str]:
    """All of ours in the kernel but what comes and goes by itself."""
    found = {what: text for what, text in everything(host).items() if not what.endswith(" neigh")}
    for what in [
        what for what in found if "route" in what
    ]:  # what the kernel adds by itself is not ours to keep
        found[what] = "\n".join(line for line in found[what].splitlines() if "proto kernel" not in line)
    settings = ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables", "net.ipv4.conf.br0.rp_filter")
    for netns in host.netns():
        found[f"{netns} settings"] = host.space.run("ip", "netns", "exec", netns, "sysctl", *settings)
        ports = host.space.run("bridge", "-n", netns, "link").splitlines()
        found[f"{netns} ports"] = "\n".join(sorted(re.sub(r"^\d+: (\w+)\S*", r"\1", line) for line in ports))
    found["settings"] = host.space.run("sysctl", "net.ipv4.ip_forward", "net.ipv4.conf.swarm0.route_localnet")
    user = host.space.run("iptables", "-S")
    found["firewall"] = f"{user.count('swarm0')} rules"
    return found


def as_before(host: Host, before: dict[str, str]) -> bool:
    try:
        return made(host) == before
    except AssertionError:  # there is no such table, link or namespace now
        return False


def serves(two: Cluster) -> bool:
    inside = probe([*two.inside("c1"), *HASTY], "tcp", VIP, 7000, 4)
    outside = probe([*two.client.enter, *HASTY], "tcp", "10.92.0.1", PORT, 4)
    return {answer.get("name") for answer in inside} == {answer.get("name") for answer in outside} == BOTH


INSIDE = ("ip", "netns", "exec", "ov-app")
BREAKS: dict[str, tuple[tuple[str, ...], ...]] = {
    "table deleted": (("nft", "delete", "table", "ip", "swarm"),),
    "guards deleted": (("nft", "delete", "table", "inet", "swarm_guard"),),
    "one chain emptied": (("nft", "flush", "chain", "ip", "swarm", "prerouting"),),
    "an overlay's ruleset flushed": ((*INSIDE, "nft", "flush", "ruleset"),),
    "an element deleted": ((*INSIDE, "nft", "flush", "map", "ip", "swarm", "vips"),),
    "the node network's ruleset flushed": (("ip", "netns", "exec", "ov-node", "nft", "flush", "ruleset"),),
    "the way through the firewall taken": (("iptables", "-F", "DOCKER-USER"),),
    "vxlan device deleted": (("ip", "-n", "ov-app", "link", "del", "vx0"),),
    "vxlan device down": (("ip", "-n", "ov-app", "link", "set", "vx0", "down"),),
    "the node network's vxlan deleted": (("ip", "-n", "ov-node", "link", "del", "swing"),),
    "bridge deleted": (("ip", "-n", "ov-app", "link", "del", "br0"),),
    "bridge down": (("ip", "-n", "ov-app", "link", "set", "br0", "down"),),
    "a forwarding entry deleted": (
        ("bridge", "-n", "ov-app", "fdb", "del", "02:42:0a:00:09:0c", "dev", "vx0", "dst", "10.92.0.2", "self"),
    ),
    "routes deleted": (("ip", "-n", "ov-node", "route", "flush", "table", "main"),),
    "a rule of routing deleted": (("ip", "-n", "ov-node", "rule", "del", "pref", "100"),),
    "the host's route deleted": (("ip", "route", "del", "10.240.0.0/12"),),
    "an address deleted": (("ip", "-n", "ov-app", "addr", "del", f"{VIP}/32", "dev", "br0"),),
    "node link deleted": (("ip", "link", "del", "swarm0"),),
    "node link down": (("ip", "link", "set", "swarm0", "down"),),
    "an overlay's namespace deleted": (("ip", "netns", "del", "ov-app"),),
    "the node network's namespace deleted": (("ip", "netns", "del", "ov-node"),),
    "another namespace under the name": (("ip", "netns", "del", "ov-app"), ("ip", "netns", "add", "ov-app")),
    "a setting inside": ((*INSIDE, "sysctl", "-qw", "net.ipv4.ip_forward=0"),),
    "another setting inside": ((*INSIDE, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0"),),
    "a setting of the host": (("sysctl", "-qw", "net.ipv4.ip_forward=0"),),
    "ruleset flushed": (("nft", "flush", "ruleset"),),  # the last one: the engine's own are gone with it
    "a setting of the node link": (("sysctl", "-qw", "net.ipv4.conf.swarm0.route_localnet=0"),),
}  # fmt: skip


@pytest.mark.parametrize("broken", BREAKS)
def test_what_is_broken_is_mended(cluster: Cluster, broken: str) -> None:
    host = cluster.hosts[1]
    before = until(lambda: made(host), "what is there")
    assert serves(cluster)
    begun = time.monotonic()
    for command in BREAKS[broken]:  # a name may be given back before ``ip`` is through with taking it
        host.space.run(*command, check=command[:3] != ("ip", "netns", "del"))
    try:
        until(lambda: as_before(host, before), f"everything as before: {broken}", WITHIN)
    except AssertionError:
        now = made(host)
        assert {k: v for k, v in now.items() if v != before.get(k)} == {
            k: v for k, v in before.items() if v != now.get(k)
        }
        raise
    print(f"{broken}: {time.monotonic() - begun:.2f} s")
    until(lambda: serves(cluster), "service as before", 3)
    assert host.call("trouble") == ""


def test_looking_after_a_host_costs_nothing_while_nobody_breaks_anything(cluster: Cluster) -> None:
    """Our own changes are news, too: what they bring about must come to rest."""
    host = cluster.hosts[1]

    def generations() -> tuple[str, ...]:
        spaces = ([], *(["ip", "netns", "exec", netns] for netns in host.netns()))
        return tuple(
            host.space.run(*space, "nft", "list", "ruleset", "-a").splitlines()[-1] for space in spaces
        )

    def handles() -> str:
        return host.space.run("nft", "-a", "list", "table", "ip", "swarm")

    cluster.apply(1)
    before = handles()
    late = cluster.task("late", 1, "web", 31, app="10.0.9.31")
    cluster.apply(1)
    cluster.start(late)
    cluster.remove(late)
    cluster.apply(1)
    log = (host.folder / "daemon.log").read_text()
    begun = time.monotonic()
    until(lambda: time.monotonic() - begun > 3, "three seconds")
    assert handles().splitlines()[0] == before.splitlines()[0], "the table was not loaded again"
    assert "mended" not in (host.folder / "daemon.log").read_text()[len(log) :]


def test_connections_live_through_a_lost_name(cluster: Cluster) -> None:
    held = Held(cluster.inside("c1"), VIP, 7000, 4)
    try:
        cluster.hosts[1].space.run("ip", "netns", "del", "ov-app", check=False)
        until(lambda: "ov-app" in cluster.hosts[1].netns(), "the name", WITHIN)
        assert not [answer for answer in held.again() if "error" in answer]
    finally:
        held.close()


def test_what_cannot_be_mended_is_told(cluster: Cluster) -> None:
    host = cluster.hosts[1]
    host.space.run("ip", "-n", "ov-app", "link", "del", "vx0")
    taken = (
        "ip",
        "link",
        "add",
        "foreign",
        "type",
        "vxlan",
        "id",
        "4096",
        "dstport",
        "4789",
        "local",
        "10.92.0.1",
    )
    until(lambda: host.space.run(*taken) == "", "the id, before it is made again", WITHIN)
    try:
        until(lambda: "vxlan id 4096 is in use" in host.call("trouble"), "word of it", WITHIN)
    finally:
        host.space.run("ip", "link", "del", "foreign")
    until(lambda: host.call("trouble") == "" and serves(cluster), "that it is well again", WITHIN)


# --- a container's own link


def endpoint(host: Host, container: str, network: str) -> str:
    return host.docker(
        "inspect", "-f", f'{{{{(index .NetworkSettings.Networks "{network}").EndpointID}}}}', container
    ).strip()


def test_a_containers_link_that_is_gone_is_found_missing_and_nothing_leaks(cluster: Cluster) -> None:
    host = cluster.hosts[1]
    victim = cluster.task("victim", 1, "client", 41, app="10.0.9.41")
    cluster.apply()
    cluster.start(victim)
    ends = {
        "app": endpoint(host, victim.name, "swarm-app"),
        "node": endpoint(host, victim.name, "swarm_node"),
    }
    assert host.call("missing", ends) == []
    outside = Listener(cluster.client.enter, "listen", CLIENT, 7777)
    cluster.client.run("ip", "addr", "add", "10.0.9.77/32", "dev", "lo")
    cluster.router.run("ip", "route", "add", "10.0.9.0/24", "via", CLIENT)
    leaked = Listener(cluster.client.enter, "listen", "10.0.9.77", 7777)
    try:
        host.space.run("ip", "-n", "ov-app", "link", "del", f"vp{ends['app'][:11]}")
        until(lambda: host.call("missing", ends) == ["app"], "the loss", WITHIN)
        (answer,) = probe([*cluster.inside("victim"), *HASTY], "udp", "10.0.9.77", 7777, 1)
        assert "error" in answer
        (answer,) = probe(cluster.inside("victim"), "tcp", "10.0.9.11", 7000, 1)
        assert answer.get("error") == "OSError", "unreachable at once"
        assert answer["seconds"] < 0.9
        # The way out is open: what came first came by it, and nothing came to the overlay's address.
        probe([*cluster.inside("victim"), *HASTY], "udp", CLIENT, 7777, 1)
        assert outside.next() == "10.92.0.1"
        cluster.client.run("sh", "-c", "true")
        probe([*cluster.client.enter, *HASTY], "udp", "10.0.9.77", 7777, 1)
        assert leaked.next() == "10.0.9.77", "the first to arrive is the client's own"
    finally:
        for listener in (outside, leaked):
            listener.close()
        cluster.client.run("ip", "addr", "del", "10.0.9.77/32", "dev", "lo")
        cluster.router.run("ip", "route", "del", "10.0.9.0/24", "via", CLIENT)
        cluster.remove(victim)
        cluster.apply()


def test_a_link_taken_off_its_bridge_is_put_back(cluster: Cluster) -> None:
    host = cluster.hosts[1]
    port = "vp" + endpoint(host, "client.c1", "swarm-app")[:11]
    for command in (("nomaster",), ("down",)):
        host.space.run("ip", "-n", "ov-app", "link", "set", port, *command)
        until(lambda: serves(cluster), f"the link back after {command}", WITHIN)


# --- a namespace that is gone while nobody held it


def test_a_namespace_lost_while_the_daemon_was_away_is_made_anew(two: Cluster) -> None:
    """Also where a process sits in the old one, with a tunnel of the same number."""
    web(two)
    host = two.hosts[1]
    ends = {"app": endpoint(host, "client.c1", "swarm-app")}
    host.kill_daemon()
    sitting = host.spawn("ip", "netns", "exec", "ov-app", "sleep", "600", log="sitting.log")
    try:
        until(
            lambda: "sleep" in host.space.run("ip", "netns", "pids", "ov-app") or sitting.poll() is None,
            "it sits",
        )
        host.space.run("ip", "netns", "del", "ov-app")
        host.start_daemon()
        two.apply(1)
        assert "vx0" in host.space.run("ip", "-n", "ov-app", "link")
        assert host.call("missing", ends) == ["app"], "its tasks are to be replaced"
    finally:
        sitting.kill()
        sitting.wait()
