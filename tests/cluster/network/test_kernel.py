"""The host's side against the real kernel, without an engine: each test in a host of its own."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from swarm_agent.network import guards, model, rules
from swarm_agent.network.model import (
    Endpoint,
    Guards,
    NetworkView,
    Overlay,
    Peer,
    PublishedPort,
    VirtualIP,
    changes,
    plan,
)
from tests.cluster.network.lab import ROOT, Host, Refused


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(1, tmp_path / "host1")
    made.space.run("ip", "addr", "add", "10.92.0.1/32", "dev", "lo")
    yield made
    made.close()


def view(rng: random.Random) -> NetworkView:
    """Some network of up to three hosts; any two of them are neighbours in time."""
    peers = (
        Peer("n1", 1, "10.92.0.1"),
        *(Peer(f"n{n}", n, f"10.92.0.{n + rng.choice([0, 100])}") for n in (2, 3) if rng.random() < 0.8),
    )
    overlays = tuple(
        Overlay(name, name, 4096 + number, f"10.0.{9 + number}.0/24", f"10.0.{9 + number}.1")
        for number, name in enumerate(("app", "back"))
        if rng.random() < 0.8
    )
    endpoints, vips, ports = [], [], []
    for number, name in enumerate(("app", "back")):
        for service in ("web", "db"):
            if rng.random() < 0.8:
                vips.append(VirtualIP(name, service, service, f"10.0.{9 + number}.20{len(service)}"))
            for task in range(rng.randrange(4)):
                node = rng.choice(["n1", "n2", "n3"])
                address = f"10.0.{9 + number}.{10 * len(service) + task}"
                endpoints.append(
                    Endpoint(
                        name,
                        f"{service}{task}",
                        f"{service}.{task}",
                        service,
                        service,
                        node,
                        address,
                        (),
                        rng.random() < 0.8,
                    )
                )
    for published in (80, 81, 82):
        if rng.random() < 0.8:
            backends = tuple(f"10.240.{4 * n}.{published}" for n in (1, 2, 3) if rng.random() < 0.6)
            ports.append(
                PublishedPort("web", rng.choice(["tcp", "udp"]), published, 7000, "ingress", backends)
            )
    return NetworkView("n1", 1, "10.92.0.1", peers, overlays, tuple(endpoints), tuple(vips), tuple(ports))


def everything(host: Host) -> dict[str, str]:
    """All that the kernel holds of ours, as text."""
    found = {
        f"host rules {table}": _rules(host.space.run("nft", "-j", "list", "table", family, table))
        for family, table in (("ip", "swarm"), ("inet", "swarm_guard"))
    }
    found["host routes"] = host.space.run("ip", "-4", "route", "show", "table", "all")
    for netns in host.netns():
        found[f"{netns} rules"] = _rules(
            host.space.run("ip", "netns", "exec", netns, "nft", "-j", "list", "ruleset")
        )
        for what in (
            ["-4", "addr"],
            ["-4", "route", "show", "table", "all"],
            ["-4", "rule"],
            ["-4", "neigh"],
        ):
            found[f"{netns} {what[1]}"] = _lines(host.space.run("ip", "-n", netns, "-o", *what))
        found[f"{netns} fdb"] = _lines(
            "\n".join(
                line for line in host.space.run("bridge", "-n", netns, "fdb").splitlines() if " dst " in line
            )
        )
    return found


def _lines(text: str) -> str:
    return "\n".join(
        sorted(
            " ".join(word for word in line.split() if not word.endswith(":")) for line in text.splitlines()
        )
    )


def _rules(text: str) -> str:
    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if key not in {"handle", "index"}}
        if isinstance(value, list):
            items = [plain(item) for item in value]
            return (
                sorted(items, key=json.dumps)
                if all(isinstance(item, list | str) for item in items)
                else items
            )
        return value

    listed = [plain(item) for item in json.loads(text)["nftables"] if "metainfo" not in item]
    return "\n".join(sorted(json.dumps(item, sort_keys=True) for item in listed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("library", [True, False], ids=["libnftables", "nft"])
def test_steps_and_leaps_end_in_the_same_place(tmp_path: Path, library: bool, seed: int) -> None:
    """Ten changes one after another leave what one look at everything makes of the last view."""
    rng = random.Random(seed)
    walker, leaper = (
        Host(1, tmp_path / "walker", library=library),
        Host(1, tmp_path / "leaper", library=library),
    )
    try:
        for one in (walker, leaper):
            one.space.run("ip", "addr", "add", "10.92.0.1/32", "dev", "lo")
            one.start_daemon()
        views = [view(rng) for _ in range(10)]
        assert any(changes(plan(a), plan(b)) for a, b in itertools.pairwise(views))
        for one_view in views:
            walker.call("apply", one_view)
        leaper.call("apply", views[-1])
        assert everything(walker) == everything(leaper)
    finally:
        walker.close()
        leaper.close()


@pytest.mark.parametrize("acts", [1, 2, 3, 5, 8, 13, 16, 21, 26, 34, 42, 48, 55])
def test_a_daemon_killed_anywhere_leaves_what_the_next_one_completes(tmp_path: Path, acts: int) -> None:
    rng = random.Random(5)
    killed, whole = Host(1, tmp_path / "killed"), Host(1, tmp_path / "whole")
    wanted = next(
        one for one in (view(rng) for _ in range(50)) if len(one.overlays) == 2 and len(one.peers) == 3
    )
    try:
        for one in (killed, whole):
            one.space.run("ip", "addr", "add", "10.92.0.1/32", "dev", "lo")
        killed.start_daemon(cut=acts)
        with pytest.raises(AssertionError, match="the daemon of host 1 ended"):
            killed.call("apply", wanted)
        killed.kill_daemon()
        for one in (killed, whole):
            one.start_daemon()
            one.call("apply", wanted)
        assert everything(killed) == everything(whole)
    finally:
        killed.close()
        whole.close()


def test_the_contract_holds_for_the_real_one(host: Host) -> None:
    out = host.space.run(
        sys.executable, "-W", "error", "-m", "tests.unit.network.contract", str(host.folder / "contract"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert len(out.split()) == 8
    assert host.netns() == []


def test_what_failed_is_told_and_tried_again(host: Host) -> None:
    """Somebody else holds a tunnel's id: that network fails, everything else is there, and later it is too."""
    host.start_daemon()
    host.space.run(
        "ip", "link", "add", "foreign", "type", "vxlan", "id", "4096", "dstport", "4789", "local", "10.92.0.1"
    )
    overlays = tuple(
        Overlay(n, n, 4096 + i, f"10.0.{i}.0/24", f"10.0.{i}.1") for i, n in enumerate(("app", "back"))
    )
    wanted = NetworkView("n1", 1, "10.92.0.1", overlays=overlays)
    with pytest.raises(Refused, match="vxlan id 4096 is in use on this host by something else"):
        host.call("apply", wanted)
    assert "vx0" in host.space.run("ip", "-n", "ov-back", "link")
    assert "swarm" in host.space.run("nft", "list", "tables")
    host.space.run("ip", "link", "del", "foreign")
    host.call("apply", wanted)
    assert "vx0" in host.space.run("ip", "-n", "ov-app", "link")


def test_user_rules_come_before_ours(host: Host) -> None:
    for rule in (
        ["-N", "DOCKER-USER"],
        ["-A", "DOCKER-USER", "-s", "192.0.2.1", "-j", "DROP"],
        ["-A", "DOCKER-USER", "-j", "RETURN"],
    ):
        host.space.run("iptables", *rule)
    host.start_daemon()
    for _ in range(2):
        host.call("apply", NetworkView("n1", 1, "10.92.0.1"))
        host.call("recheck")
    rules_there = host.space.run("iptables", "-S", "DOCKER-USER").splitlines()
    assert len(rules_there) == 5
    assert rules_there[1] == "-A DOCKER-USER -s 192.0.2.1/32 -j DROP"
    assert all("swarm0" in rule for rule in rules_there[2:4])
    assert rules_there[4] == "-A DOCKER-USER -j RETURN"


def test_without_dockers_chain_the_way_is_through_forward(host: Host) -> None:
    host.start_daemon()
    host.call("apply", NetworkView("n1", 1, "10.92.0.1"))
    assert host.space.run("iptables", "-S", "FORWARD").count("swarm0") == 2
    host.call("leave")
    assert "swarm0" not in host.space.run("iptables", "-S")


def test_links_left_behind_are_swept(host: Host) -> None:
    """One pair in use, one left by a container that is gone: only a container's end in the host tells them apart."""
    host.start_daemon()
    host.call(
        "apply",
        NetworkView("n1", 1, "10.92.0.1", overlays=(Overlay("app", "app", 4096, "10.0.9.0/24", "10.0.9.1"),)),
    )
    code = """
import sys, time
from pathlib import Path
from swarm_agent.network.state_files import *
from swarm_agent.network.plugin import Plugin
from swarm_agent.network.veth import Sweeper
import json, os, subprocess
journal = StateFiles(Path(sys.argv[1]))
journal.put("net", EngineNetworkEntry("net", "app"))
plugin = Plugin(journal)
for number, endpoint in enumerate(("inuse", "left", "young")):
    request = {"NetworkID": "net", "EndpointID": endpoint, "Interface": {"Address": f"10.0.9.{20 + number}/24"}}
    for call in ("CreateEndpoint", "Join", "Join"):
        answer = json.loads(plugin.handle("/NetworkDriver." + call, json.dumps(request).encode()))
        assert "Err" not in answer, answer
subprocess.run(["ip", "netns", "add", "sandbox"], check=True)
subprocess.run(["ip", "link", "set", "vcinuse", "netns", "sandbox", "name", "eth0"], check=True)
old = time.time() - 100
for endpoint in ("inuse", "left"):
    os.utime(journal.path("endpoints", endpoint), (old, old))
sweeper = Sweeper(journal)
print(json.dumps([sweeper.sweep(time.time(), 60) for _ in range(3)]))
print(json.dumps(journal.keys(EndpointEntry)))
for endpoint in ("inuse", "young"):
    plugin.handle("/NetworkDriver.Leave", json.dumps({"NetworkID": "net", "EndpointID": endpoint}).encode())
"""
    out = host.space.run(
        sys.executable, "-c", code, str(host.state), env={**os.environ, "PYTHONPATH": str(ROOT)}
    ).splitlines()
    assert json.loads(out[0]) == [[], ["vcleft"], []]
    assert json.loads(out[1]) == ["inuse", "young"]
    assert "vp" not in host.space.run("ip", "-n", "ov-app", "link")
    host.space.run("ip", "netns", "del", "sandbox")


def test_a_thousand_tasks_elsewhere_cost_little(host: Host) -> None:
    """The first look is bounded, one more task costs one entry, and nothing changed costs nothing in the kernel."""
    host.start_daemon()
    peers = tuple(Peer(f"n{n}", n, f"10.92.0.{n}") for n in range(1, 51))
    endpoints = tuple(
        Endpoint(
            "app",
            f"t{n}",
            f"web.{n}",
            f"s{n % 100}",
            f"s{n % 100}",
            f"n{2 + n % 49}",
            f"10.0.{8 + n // 250}.{n % 250 + 2}",
            (),
            True,
        )
        for n in range(1000)
    )
    vips = tuple(VirtualIP("app", f"s{n}", f"s{n}", f"10.0.15.{n + 1}") for n in range(100))
    big = NetworkView(
        "n1",
        1,
        "10.92.0.1",
        peers,
        (Overlay("app", "app", 4096, "10.0.8.0/21", "10.0.8.1"),),
        endpoints,
        vips,
    )
    more = Endpoint("app", "more", "web.more", "s1", "s1", "n2", "10.0.14.1", (), False)
    took = {}
    for what, one in (
        ("first", big),
        ("same", big),
        ("one more", msgspec.structs.replace(big, endpoints=(*endpoints, more))),
    ):
        host.call("apply", one)
        took[what] = host.seconds
    print(took)
    assert took["first"] < 5
    assert took["same"] < 0.5
    assert took["one more"] < 0.5
    assert len(host.space.run("bridge", "-n", "ov-app", "fdb").split(" dst ")) > 1000


def test_rules_text_is_what_the_kernel_takes(host: Host) -> None:
    """Every text for empty and full plans loads, and an update that changes nothing is empty."""
    empty = plan(
        NetworkView("n1", 1, "10.92.0.1", overlays=(Overlay("app", "app", 4096, "10.0.9.0/24", "10.0.9.1"),))
    )
    full = plan(view(random.Random(4)))
    assert full.node is not None
    for one in (empty, full):
        assert one.node is not None
        assert one.guards is not None
        texts = [
            rules.node_table(one.node),
            rules.host_table(one.node, one.ports),
            guards.table(one.guards),
            guards.table(Guards((), (), ())),
            *map(rules.overlay_table, one.overlays.values()),
        ]
        for text in texts:
            done = subprocess.run(
                [*host.space.enter, "nft", "-f", "-"], input=text, text=True, capture_output=True, check=False
            )
            assert done.returncode == 0, f"{done.stderr}\n{text}"
    assert (
        rules.update_ports(full.ports, {}, ())
        == rules.update_vips({}, {}, ())
        == rules.update_self((), ())
        == ""
    )
    assert model.changes(full, full) == []


def guarded_links(host: Host) -> set[str]:
    """The links behind which there are containers, as the host's rules have it."""
    table = json.loads(host.space.run("nft", "-j", "list", "set", "inet", "swarm_guard", "inner"))
    return {name for part in table["nftables"] for name in part.get("set", {}).get("elem", ())}


@pytest.mark.parametrize(
    "why", ["a port that is no container's", "the address members know", "the default route"]
)
def test_a_bridge_that_members_come_in_by_is_not_taken_for_a_containers(host: Host, why: str) -> None:
    """The engine's bridge may be the host's own way to its LAN: guarded as containers are, the host would be cut off."""
    host.start_daemon()  # no engine answers: its usual bridges are reckoned with
    run = host.space.run
    run("ip", "link", "add", "docker0", "type", "bridge")
    run("ip", "link", "set", "docker0", "up")
    run("ip", "link", "add", "inside", "type", "veth", "peer", "name", "task")
    run("ip", "link", "set", "inside", "master", "docker0")
    run("ip", "addr", "add", "10.94.0.1/24", "dev", "docker0")
    only_containers = {"swarm0", "docker0", "docker_gwbridge"}
    seen = NetworkView("n1", 1, "10.92.0.1")
    host.call("apply", seen)
    assert guarded_links(host) == only_containers

    make, take_away = {
        "a port that is no container's": (
            "ip link add card type vxlan id 7 dstport 4790 remote 10.94.0.9 dev task && ip link set card master docker0",
            "ip link del card",
        ),
        "the address members know": (
            "ip addr del 10.92.0.1/32 dev lo && ip addr add 10.92.0.1/24 dev docker0",
            "ip addr del 10.92.0.1/24 dev docker0 && ip addr add 10.92.0.1/32 dev lo",
        ),
        "the default route": ("ip route add default via 10.94.0.254", "ip route del default"),
    }[why]
    for command, expected in ((make, only_containers - {"docker0"}), (take_away, only_containers)):
        run("sh", "-ec", command)
        host.call("recheck")
        host.call("apply", seen)
        assert guarded_links(host) == expected
    assert (host.folder / "daemon.log").read_text().count("bridge docker0 of the engine") == 1


def test_a_router_with_thousands_of_routes_tells_few(host: Host) -> None:
    run = host.space.run
    run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    run("ip", "addr", "add", "10.94.0.1/24", "dev", "up0")
    run("ip", "link", "set", "up0", "up")
    run("ip", "link", "set", "up1", "up")
    half = [f"route add 10.{a}.{b}.0/25 via 10.94.0.2" for a in range(10) for b in range(200)]
    neighbours = [f"route add 172.20.{b}.0/24 via 10.94.0.2" for b in range(256)]
    run("ip", "-batch", "-", input="\n".join([*half, *neighbours]))
    more = [f"addr add 10.95.{n // 250}.{1 + n % 250}/32 dev up1" for n in range(400)]
    run("ip", "-batch", "-", input="\n".join(more))
    host.start_daemon()
    subnets, addresses = host.call("host_net")
    print(f"{host.seconds * 1000:.0f} ms")
    told = {(one["subnet"], one["device"], one.get("connected", False)) for one in subnets}
    assert {("10.94.0.0/24", "up0", True), ("172.20.0.0/16", "up0", False)} <= told
    assert len(subnets) == len(told) == 256
    assert len(addresses) == 256
