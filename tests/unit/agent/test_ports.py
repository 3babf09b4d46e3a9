"""Which host-mode ports a node picks, and for how long they are a task's."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from swarm_agent.agent.host_ports import FIRST, LAST, HostPorts, nobody_listens
from swarm_agent.objects.errors import Unavailable
from swarm_agent.objects.records import Revision
from swarm_agent.objects.specs import EndpointSpec, PortConfig, TaskTemplate


def open_(target: int = 80, protocol: str = "tcp", **more: Any) -> PortConfig:
    return PortConfig(protocol=protocol, target_port=target, publish_mode="host", **more)


def revision(*ports: PortConfig) -> Revision:
    return Revision(id="r", service_id="s", template=TaskTemplate(), endpoint=EndpointSpec(ports=ports))


def test_each_open_port_gets_one_of_its_own() -> None:
    ports = HostPorts(lambda protocol, port: True)
    wanted = revision(
        open_(), open_(published_port=8080), open_(81), open_(80, "udp"), PortConfig(target_port=9)
    )
    picked = ports.pick("t", wanted, ())
    assert [(p.target_port, p.protocol) for p in picked] == [(80, "tcp"), (81, "tcp"), (80, "udp")]
    assert all(FIRST <= (p.published_port or 0) <= LAST for p in picked)
    others = ports.pick("u", wanted, ())
    keys = {(p.protocol, p.published_port) for p in (*picked, *others)}
    assert len(keys) == 6


def test_what_was_said_stays_through_a_restart_of_the_daemon() -> None:
    picked = HostPorts(lambda protocol, port: True).pick("t", revision(open_()), ())
    after = HostPorts(lambda protocol, port: False)
    after.remember("t", picked)
    assert after.pick("t", revision(open_()), picked) == picked
    later = HostPorts(lambda protocol, port: True)
    later.remember("other", picked)
    assert later.pick("t", revision(open_()), ()) != picked


def test_released_ones_are_free_again_and_busy_ones_are_passed_over() -> None:
    seen: list[int] = []

    def is_free(protocol: str, port: int) -> bool:
        seen.append(port)
        return len(seen) > 2

    ports = HostPorts(is_free)
    (picked,) = ports.pick("t", revision(open_()), ())
    assert picked.published_port == seen[2]
    ports.release("t")
    assert ports.pick("t", revision(open_()), ())[0].published_port == seen[0]


def test_none_left_is_said() -> None:
    with pytest.raises(Unavailable, match="no tcp port of this host between 49153 and 65535 is free"):
        HostPorts(lambda protocol, port: False).pick("t", revision(open_()), ())


@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
def test_whether_somebody_listens(protocol: str, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        assert not nobody_listens(protocol, port)
    assert nobody_listens(protocol, port)
