"""Tasks whose network is taken away under them, and a node that cannot have the network it is to have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import IMAGE, Lab, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

WITHIN = 10.0  # seconds: five to find out and to end the task, and a start of another one


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with swarm_lab(tmp_path_factory.mktemp("cut-off"), (1,)) as found:
        host = found[1]
        host.swarm("swarm", "init", "--advertise-addr", host.address)
        host.swarm("network", "create", "-d", "overlay", "net")
        host.swarm(
            *("service", "create", "--no-resolve-image", "-d", "--name", "web", "--network", "net"),
            *("--restart-delay", "0s", f"{IMAGE}:1", "/task", "serve", "web", "7000"),
        )
        found.running(1, "web", 1)
        yield found


def network(lab: Lab) -> str:
    """The engine's name of the overlay."""
    return "swarm-" + str(lab[1].get("/networks/net")["Id"])


def ready(lab: Lab) -> str:
    return lab[1].space.run("curl", "-s", "http://127.0.0.1:9323/readyz")


def test_a_disconnected_container_and_one_that_lost_its_link_are_replaced(lab: Lab) -> None:
    host = lab[1]

    def disconnected(container: str) -> str:
        host.docker("network", "disconnect", "-f", network(lab), container)
        return f"disconnected from {network(lab)}"

    def unlinked(container: str) -> str:
        name = network(lab)
        (found,) = [c for _, c in lab.inspected("web")]
        port = "vp" + found["NetworkSettings"]["Networks"][name]["EndpointID"][:11]
        host.space.run("ip", "-n", f"ov-{name.removeprefix('swarm-')[:12]}", "link", "del", port)
        return f"link to {name} is gone"

    for cut in (disconnected, unlinked):
        ((before,),) = lab.containers("web").values()
        said = cut(before)

        def replaced(before: str = before) -> bool:
            found = [c for ids in lab.containers("web").values() for c in ids]
            return len(found) == 1 and before not in found

        until(replaced, f"another container after: {said}", WITHIN)
        assert said in host.swarm("service", "ps", "--no-trunc", "web")
        lab.running(1, "web", 1)
        assert ready(lab) == "ok\n"


def test_a_lost_namespace_costs_no_task(lab: Lab) -> None:
    host = lab[1]
    before = lab.containers("web")
    netns = f"ov-{network(lab).removeprefix('swarm-')[:12]}"
    host.space.run("ip", "netns", "del", netns, check=False)  # it may be given back before ``ip`` is through
    until(lambda: netns in host.netns(), "the name again", 5)
    assert lab.containers("web") == before
    assert ready(lab) == "ok\n"


def test_what_cannot_be_mended_is_said_while_it_lasts(lab: Lab) -> None:
    host = lab[1]
    netns = f"ov-{network(lab).removeprefix('swarm-')[:12]}"
    shown: Any = host.space.run("ip", "-n", netns, "-d", "link", "show", "vx0")
    vni = shown.split("vxlan id ")[1].split()[0]
    foreign = (
        "ip",
        "link",
        "add",
        "foreign",
        "type",
        "vxlan",
        "id",
        vni,
        "dstport",
        "4789",
        "local",
        host.address,
    )

    def taken() -> bool:
        host.space.run("ip", "-n", netns, "link", "del", "vx0", check=False)
        host.space.run(*foreign, check=False)
        return "foreign" in host.space.run("ip", "link")

    until(taken, "the tunnel's id in foreign hands", 5)
    words = f"vxlan id {vni} is in use on this host by something else"
    try:
        until(lambda: words in ready(lab), "word of it at /readyz", 5)
        until(lambda: words in host.ctl("why", "web"), "word of it in why", 5)
    finally:
        host.space.run("ip", "link", "del", "foreign")
    until(lambda: ready(lab) == "ok\n", "that it is well again", 5)
    until(lambda: words not in host.ctl("why", "web"), "that nothing is said any more", 5)


def test_a_bridge_made_later_is_guarded_like_the_others(lab: Lab) -> None:
    host = lab[1]
    bridge = "br-" + host.docker("network", "create", "late").strip()[:12]

    def guarded() -> bool:
        return bridge in host.space.run("nft", "list", "set", "inet", "swarm_guard", "inner")

    until(guarded, "its containers kept off the swarm's ports", 5)
    host.docker("network", "rm", "late")
    until(lambda: not guarded(), "that it is forgotten", 5)
