"""Who holds which port of a host: read from the kernel, named, and left to whoever had it first."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from swarm_agent.network.holds import Holds
from swarm_agent.network.model import Left, NetworkView, PublishedPort, plan
from swarm_agent.network.rules import host_table, update_ports
from swarm_agent.network.sockets import (
    NOBODY_SEEN,
    PATIENCE_S,
    HostSockets,
    Listener,
    Programs,
    Yielded,
    listeners,
    parse,
)
from swarm_agent.network.state_files import PortsEntry, StateFiles

TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7001 1 0 100 0 0 10 0
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7002 1 0 100 0 0 10 0
   2: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 7003 1 0 20 4 30 10 -1
"""
UDP = """   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  803: 0100007F:EB8B 0100007F:0035 01 00000000:00000000 00:00000000 00000000     0        0 7004 2 0 0
14139: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7005 2 0 0
"""


def test_listeners_and_bound_datagram_sockets_count_and_outgoing_connections_do_not() -> None:
    assert list(parse("tcp", TCP.splitlines())) == [
        Listener("tcp", 22, 7001),
        Listener("tcp", 8080, 7002, True),
    ]
    assert list(parse("udp", UDP.splitlines())) == [Listener("udp", 53, 7005)]
    assert list(parse("tcp", [])) == []


@pytest.mark.parametrize(
    ("address", "inward"),
    [
        ("00000000", False),
        ("0100007F", True),
        ("3500007F", True),
        ("0B4D1EAC", False),
        ("00000000000000000000000000000000", False),
        ("00000000000000000000000001000000", True),
        ("0000000000000000FFFF00000100007F", True),
        ("0000000000000000FFFF00000B4D1EAC", False),
        ("B80D012000000000000000000000007F", False),
    ],
)
def test_who_listens_for_the_host_itself_alone(address: str, *, inward: bool) -> None:
    rows = ["", f"0: {address}:0019 0:0 0A 0:0 0:0 0 0 0 9"]
    assert [one.loopback for one in parse("tcp", rows)] == [inward]


def test_a_port_with_a_program_at_loopback_is_taken_for_everybody_else(tmp_path: Path) -> None:
    found = [Listener("tcp", 25, 1, True), Listener("tcp", 53, 2, True), Listener("tcp", 53, 3)]
    seen = HostSockets(lambda: found, Programs(tmp_path)).seen(list)
    assert (set(seen.holders), seen.inward) == ({("tcp", 53)}, frozenset({("tcp", 25)}))
    ports = tuple(PublishedPort("web", "tcp", n, 80, "ingress", ("10.240.4.2",)) for n in (25, 80))
    view = NetworkView("n1", 1, "192.0.2.1", ports=ports)
    before, after = plan(view), plan(view, left=Left(spared=seen.inward))
    assert [key for key, port in after.ports.items() if port.spared] == [("tcp", 25)]
    assert after.node is not None
    assert "set spared { type inet_proto . inet_service; elements = { tcp . 25 }; }" in host_table(
        after.node, after.ports
    )
    put = {("tcp", 25): after.ports["tcp", 25]}
    assert "add element ip swarm spared { tcp . 25 }" in update_ports(before.ports, put, ())
    assert "delete element ip swarm spared { tcp . 25 }" in update_ports(after.ports, {}, (("tcp", 25),))


def test_a_host_without_ipv6_has_fewer_tables(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(TCP)
    (tmp_path / "udp").write_text(UDP)
    assert [one.number for one in listeners(tmp_path)] == [22, 8080, 53]


def test_the_program_that_listens_is_named_with_its_process_id() -> None:
    with closing(socket.socket()) as one, closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other:
        one.bind(("", 0))
        one.listen()
        other.bind(("", 0))
        holders = HostSockets().seen(list).holders
        own = Path("/proc/self/comm").read_text().strip()
        assert holders["tcp", one.getsockname()[1]] == f"{own} (pid {os.getpid()})"
        assert holders["udp", other.getsockname()[1]] == f"{own} (pid {os.getpid()})"
        ours = {os.fstat(one.fileno()).st_ino}
        assert ("tcp", one.getsockname()[1]) not in HostSockets().seen(lambda: ours).holders


def test_a_socket_whose_program_cannot_be_seen_is_held_all_the_same(tmp_path: Path) -> None:
    looks = []

    class Counted(Programs):
        def _look(self, unknown: set[int]) -> None:
            looks.append(set(unknown))
            super()._look(unknown)

    found = [Listener("udp", 4789, 7001)]
    sockets = HostSockets(lambda: found, Counted(tmp_path))
    for _ in range(3):
        assert sockets.seen(list).holders == {("udp", 4789): NOBODY_SEEN}
    assert looks == [{7001}], "all processes are looked through once"
    found.append(Listener("tcp", 22, 7002))
    sockets.seen(list)
    assert looks == [{7001}, {7002}]


def test_a_port_is_given_up_at_once_and_taken_only_after_it_was_free_for_a_while() -> None:
    ssh, web = ("tcp", 22), ("tcp", 80)
    yielded = Yielded()
    assert yielded.look({ssh, web}, {ssh: "sshd (pid 1)", ("udp", 53): "x"}, 100.0) == {ssh}
    assert yielded.look({ssh, web}, {}, 101.0) == {ssh}, "it restarts"
    assert yielded.look({ssh, web}, {ssh: "sshd (pid 2)"}, 110.0) == {ssh}
    assert yielded.look({ssh, web}, {}, 110.0 + PATIENCE_S - 0.1) == {ssh}
    assert yielded.look({ssh, web}, {}, 110.0 + PATIENCE_S) == frozenset()


def test_what_was_given_up_before_a_reboot_is_remembered_while_it_is_published() -> None:
    ssh = ("tcp", 22)
    yielded = Yielded()
    yielded.remember([ssh], 5.0)
    assert yielded.look({ssh}, {}, 6.0) == {ssh}
    assert yielded.look(set(), {}, 7.0) == frozenset()
    assert yielded.look({ssh}, {}, 8.0) == frozenset(), "it was published again while nobody was there"


def test_a_port_that_is_not_taken_is_neither_live_nor_closed() -> None:
    ports = tuple(
        PublishedPort("web", "tcp", n, 80, "ingress", backends)
        for n, backends in ((22, ()), (80, ("10.240.4.2",)))
    )
    view = NetworkView("n1", 1, "192.0.2.1", ports=ports)
    assert set(plan(view).ports) == {("tcp", 22), ("tcp", 80)}
    assert set(plan(view, left=Left(frozenset({("tcp", 22)}))).ports) == {("tcp", 80)}


def test_a_held_port_is_in_use_for_others_and_refuses_connections(tmp_path: Path) -> None:
    journal = StateFiles(tmp_path)
    journal.prepare()
    with ExitStack() as stack:
        probe = socket.socket()
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        holds = Holds(journal)
        stack.callback(holds.close)
        journal.put_ports(PortsEntry(hold=(("tcp", port),)))
        holds.keep()
        inodes = journal.get_holds().inodes
        assert len(inodes) in (1, 2)
        for family in (socket.AF_INET, socket.AF_INET6)[: len(inodes)]:
            with closing(socket.socket(family)) as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                assert _refused(other.bind, ("", port))
        assert _refused(socket.create_connection, ("127.0.0.1", port), 5)
        assert ("tcp", port) not in HostSockets().seen(lambda: set(inodes)).holders
        journal.put_ports(PortsEntry())
        holds.keep()
        assert journal.get_holds().inodes == ()
        with closing(socket.socket()) as other:
            other.bind(("", port))
            other.listen()
            journal.put_ports(PortsEntry(hold=(("tcp", port),)))
            holds.keep()
            assert journal.get_holds().inodes == (), "somebody has it: the next look tries again"
        holds.keep()
        assert len(journal.get_holds().inodes) == len(inodes)


def _refused(call: Callable[..., object], *arguments: object) -> bool:
    try:
        call(*arguments)
    except OSError:
        return True
    return False
