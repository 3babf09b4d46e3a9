from __future__ import annotations

from swarm_agent.agent.held_ports import MOST, HeldPorts
from swarm_agent.objects.records import HeldPort

SSH, DNS = ("tcp", 22), ("udp", 53)


def test_what_comes_and_goes_between_two_looks_is_not_told() -> None:
    held = HeldPorts()
    assert held.look({SSH: "sshd (pid 1)"})
    assert held.ports == (HeldPort(protocol="tcp", number=22, holder="sshd"),), "the first look counts"
    assert not held.look({SSH: "sshd (pid 1)", DNS: "dig (pid 9)"})
    assert not held.look({SSH: "sshd (pid 1)"})
    assert not held.look({SSH: "sshd (pid 1)", DNS: "named (pid 2)"})
    assert held.look({SSH: "sshd (pid 1)", DNS: "named (pid 2)"})
    assert [p.number for p in held.ports] == [22, 53]
    assert held.look({DNS: "named (pid 2)"})
    assert [p.number for p in held.ports] == [53]


def test_a_host_of_many_listeners_tells_the_lowest_of_them() -> None:
    held = HeldPorts()
    held.look({("tcp", n): "x" for n in range(1000, 2000)})
    assert [p.number for p in held.ports] == list(range(1000, 1000 + MOST))


def test_a_program_that_is_started_anew_writes_nothing() -> None:
    held = HeldPorts()
    held.look({SSH: "sshd (pid 1)", DNS: "a name (pid 3) (pid 2)"})
    assert not held.look({SSH: "sshd (pid 700)", DNS: "a name (pid 3) (pid 20)"})
    assert [p.holder for p in held.ports] == ["sshd", "a name (pid 3)"]
    assert held.look({SSH: "dropbear (pid 701)", DNS: "a name (pid 3) (pid 20)"})
