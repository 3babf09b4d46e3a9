"""What tasks and plain containers may not send to hosts: forged tunnels, and anything to the swarm's own ports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swarm_agent.network.model import host_identity
from tests.cluster.network.daemon_side import CONTROL_PORTS
from tests.cluster.network.lab import IMAGE, Cluster, Listener, lab, probe, probe_command, run, until

pytestmark = pytest.mark.engine

HERE, THERE = 1, 2  # where the container under attack runs, and another host
ATTACKED = "10.0.9.11"
OTHER_PORT = 9000  # stands for sshd and the like


@pytest.fixture(scope="module")
def cluster(engine_needed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Task t1 on overlay app; on each host a task of another overlay, one of none, and plain containers on the engine's bridges."""
    folder = tmp_path_factory.mktemp("guards")
    with lab(folder, (HERE, THERE)) as two:
        two.overlay("app", 4096, "10.0.9.0/24")
        two.overlay("back", 4097, "10.0.10.0/24")
        two.task("t1", HERE, "web", 11, app=ATTACKED)
        servers = []
        for n, host in two.hosts.items():
            two.task(f"other{n}", n, "other", 20 + n, back=f"10.0.10.1{n}")
            two.task(f"bare{n}", n, "bare", 30 + n)
            host.docker("network", "create", "custom")
            host.docker("network", "create", "-o", "com.docker.network.bridge.name=mybridge", "named")
            for network in ("bridge", "custom", "named"):
                host.docker("run", "-d", "--name", network, f"--network={network}", IMAGE, "/task", "idle")
            for port in (*CONTROL_PORTS, OTHER_PORT):
                command = (str(folder / "image/task"), "serve", "host", str(port))
                servers.append(host.spawn(*command, log="control.log"))
        two.apply()
        for task in two.tasks.values():
            two.start(task)
        for host in two.hosts.values():
            host.call("watch", False)  # what a test takes away must not be mended meanwhile
        yield two
        for server in servers:
            server.kill()
            server.wait()


def container(cluster: Cluster, host: int, sender: str) -> list[str]:
    if sender in {"other", "bare"}:
        return cluster.inside(f"{sender}{host}")
    return cluster.hosts[host].in_container(sender)


SENDERS = ("other", "bare", "bridge", "custom", "named")


class Attack:
    """Sends what must not arrive, and then what must, to a listener in the attacked task."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._listener = Listener(cluster.inside("t1"), "listen", "0.0.0.0", 7777)
        self._number = 0

    def close(self) -> None:
        self._listener.close()

    def arrives(self, enter: list[str], vni: int, target: str, gateway: str = "", sender: str = "") -> bool:
        self._number += 1
        forged = f"10.0.77.{self._number}"
        for _ in range(3):
            command = probe_command("vxlan", "10.92.0.1", vni, forged, target, gateway or target, sender)
            run(*enter, *command, check=False)  # a program of the host itself is told that it may not
        true = f"10.0.78.{self._number}"
        self._from_a_true_peer(true)
        seen = []
        while true not in seen:
            seen.append(self._listener.next())
        return forged in seen

    def _from_a_true_peer(self, source: str) -> None:
        """The same kind of datagram as a member's kernel sends it: with no program's socket to it."""
        host = self._cluster.hosts[THERE].space
        host.run("nft", "insert", "rule", "inet", "swarm_guard", "output", "accept")
        host.run(*probe_command("vxlan", "10.92.0.1", 4096, source, ATTACKED))
        handle = host.run("nft", "-a", "list", "chain", "inet", "swarm_guard", "output")
        first = next(line for line in handle.splitlines() if line.strip().startswith("accept"))
        host.run("nft", "delete", "rule", "inet", "swarm_guard", "output", "handle", first.split()[-1])


@pytest.fixture
def attack(cluster: Cluster) -> Iterator[Attack]:
    one = Attack(cluster)
    yield one
    one.close()


def unguarded(cluster: Cluster, *hosts: int) -> None:
    for number in hosts:
        for chain in ("input", "forward", "output"):
            cluster.hosts[number].space.run("nft", "flush", "chain", "inet", "swarm_guard", chain)


def guarded(cluster: Cluster) -> None:
    for number, host in cluster.hosts.items():
        host.call("recheck")
        cluster.apply(number)


@pytest.mark.parametrize("sender", SENDERS)
def test_no_container_writes_into_an_overlay_it_is_not_on(
    cluster: Cluster, attack: Attack, sender: str
) -> None:
    enter = container(cluster, THERE, sender)
    node_address = cluster.tasks["t1"].node_address
    ways = ((4096, ATTACKED, ""), (4095, node_address, host_identity(HERE)))
    try:
        unguarded(cluster, THERE)
        assert [attack.arrives(enter, *way) for way in ways] == [True, True], "the test means something"
    finally:
        guarded(cluster)
    assert [attack.arrives(enter, *way) for way in ways] == [False, False]


@pytest.mark.parametrize("sender", SENDERS)
def test_nor_by_its_own_host_with_a_members_address(cluster: Cluster, attack: Attack, sender: str) -> None:
    """A container has NET_RAW unless it is taken away: it may claim to be a member towards the host it is on."""
    enter = container(cluster, HERE, sender)
    cluster.hosts[HERE].space.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")
    for bridge in ("docker0", "mybridge"):
        cluster.hosts[HERE].space.run("sysctl", "-qw", f"net.ipv4.conf.{bridge}.rp_filter=0")
    ways = (4096, ATTACKED, "", "10.92.0.2")
    try:
        unguarded(cluster, HERE)
        assert attack.arrives(enter, *ways), "the test means something"
    finally:
        guarded(cluster)
    assert not attack.arrives(enter, *ways)


def test_nor_out_of_a_link_that_is_no_way_to_the_member(cluster: Cluster, attack: Attack) -> None:
    """As out of a tunnel or another program's bridge: of a kind a forged packet can come from."""
    host = cluster.hosts[HERE].space
    odd = cluster.client
    try:
        host.run("ip", "link", "add", "odd0", "type", "veth", "peer", "name", "odd1")
        host.run("ip", "link", "set", "odd1", "netns", str(odd.holder.pid))
        host.run("ip", "addr", "add", "10.94.0.1/24", "dev", "odd0")
        host.run("ip", "link", "set", "odd0", "up")
        host.run("sysctl", "-qw", "net.ipv4.conf.odd0.rp_filter=0")
        odd.run("ip", "addr", "add", "10.94.0.2/24", "dev", "odd1")
        odd.run("ip", "link", "set", "odd1", "up")
        odd.run("ip", "route", "add", "10.92.0.1/32", "via", "10.94.0.1")
        ways = (4096, ATTACKED, "", "10.92.0.2")
        try:
            unguarded(cluster, HERE)
            assert attack.arrives(odd.enter, *ways), "the test means something"
        finally:
            guarded(cluster)
        assert not attack.arrives(odd.enter, *ways)
    finally:
        host.run("ip", "link", "del", "odd0", check=False)


def test_nor_a_program_of_a_member_itself(cluster: Cluster, attack: Attack) -> None:
    enter = cluster.hosts[THERE].space.enter
    try:
        unguarded(cluster, THERE)
        assert attack.arrives(enter, 4096, ATTACKED)
    finally:
        guarded(cluster)
    assert not attack.arrives(enter, 4096, ATTACKED)


@pytest.mark.parametrize("sender", SENDERS)
def test_the_swarms_own_ports_refuse_containers_at_once(cluster: Cluster, sender: str) -> None:
    enter = container(cluster, HERE, sender)
    bridge = cluster.hosts[HERE].docker(
        "network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge"
    )
    places = ["10.92.0.1", host_identity(HERE), bridge.strip(), "10.92.0.2"]
    for place in places:
        for port in CONTROL_PORTS:
            (answer,) = probe(enter, "tcp", place, port, 1)
            assert answer.get("error") == "ConnectionRefusedError", (place, port, answer)
            assert answer["seconds"] < 0.9
        # Other services of hosts are reached as they are by anybody.
        (answer,) = probe(enter, "tcp", place, OTHER_PORT, 1)
        assert answer.get("name") == "host", (place, answer)


def test_members_and_people_reach_them(cluster: Cluster) -> None:
    for enter in (cluster.hosts[THERE].space.enter, cluster.client.enter, cluster.hosts[HERE].space.enter):
        for port in CONTROL_PORTS:
            assert probe(enter, "tcp", "10.92.0.1", port, 1)[0].get("name") == "host"
    assert (
        probe(cluster.hosts[HERE].space.enter, "tcp", "127.0.0.1", CONTROL_PORTS[0], 1)[0]["name"] == "host"
    )


def test_members_reach_a_host_whose_network_card_is_in_the_engines_bridge(
    cluster: Cluster, attack: Attack
) -> None:
    """As on hosts of virtual machines: the engine was told to use the bridge that is the host's own way to its LAN."""
    host = cluster.hosts[HERE]
    run_here = host.space.run
    enter = cluster.hosts[THERE].space.enter
    try:
        named = "com.docker.network.bridge.name=brlan"
        host.docker("network", "create", "--subnet", "10.95.0.0/24", "-o", named, "lan")
        run_here("ip", "link", "set", "eth0", "master", "brlan")
        run_here("ip", "addr", "del", "10.92.0.1/24", "dev", "eth0")
        run_here("ip", "addr", "add", "10.92.0.1/24", "dev", "brlan")
        run_here("ip", "route", "add", "default", "via", "10.92.0.254")
        guarded(cluster)
        for port in CONTROL_PORTS:
            answer = until(lambda: probe(enter, "tcp", "10.92.0.1", port, 1)[0], "an answer")  # noqa: B023
            assert answer.get("name") == "host", answer
        attack.arrives(enter, 4096, ATTACKED)  # waits for what comes from a true member to arrive
        for kept in ("bridge", "named"):  # containers on other bridges are guarded as before
            (answer,) = probe(container(cluster, HERE, kept), "tcp", "10.92.0.1", CONTROL_PORTS[0], 1)
            assert answer.get("error") == "ConnectionRefusedError"
    finally:
        run_here("ip", "link", "set", "eth0", "nomaster", check=False)
        run_here("ip", "addr", "del", "10.92.0.1/24", "dev", "brlan", check=False)
        host.docker("network", "rm", "lan", check=False)
        run_here("ip", "addr", "add", "10.92.0.1/24", "dev", "eth0", check=False)
        run_here("ip", "route", "add", "default", "via", "10.92.0.254", check=False)
        guarded(cluster)


def test_a_container_may_use_those_numbers_itself(cluster: Cluster) -> None:
    """On its own networks, and towards what is no member."""
    target = cluster.hosts[HERE]
    target.docker("run", "-d", "--name", "peer", IMAGE, "/task", "serve", "peer", str(CONTROL_PORTS[0]))
    try:
        address = target.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "peer").strip()
        enter = container(cluster, HERE, "bridge")
        answer = until(lambda: probe(enter, "tcp", address, CONTROL_PORTS[0], 1)[0].get("name"), "the peer")
        assert answer == "peer"
    finally:
        target.docker("rm", "-f", "peer")
