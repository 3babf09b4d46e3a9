from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_agent.network import model
from swarm_agent.network.model import (
    Cut,
    DropOverlay,
    Endpoint,
    Guards,
    MakeNode,
    MakeOverlay,
    NetworkView,
    Overlay,
    Peer,
    Plan,
    PublishedPort,
    SetGuards,
    SetLocals,
    SetNames,
    SetPeers,
    SetPorts,
    SetRemotes,
    SetTasks,
    SetVips,
    TaskAddress,
    VirtualIP,
    changes,
    plan,
)

APP = Overlay("app", "App", 4096, "10.0.9.0/24", "10.0.9.1")
PEERS = (Peer("n1", 1, "192.0.2.1"), Peer("n2", 2, "192.0.2.2"), Peer("n3", 3, "192.0.2.3"))


def endpoint(
    number: int,
    *,
    ready: bool = True,
    service: str = "web",
    aliases: tuple[str, ...] = (),
    network: str = "app",
) -> Endpoint:
    """Task ``number`` on node ``n<number>``."""
    name = f"{service}.{number}.x" if service else "lonely"
    return Endpoint(
        network, f"t{number}", name, service, service, f"n{number}", f"10.0.9.1{number}", aliases, ready
    )


def view(number: int = 1, **changed: object) -> NetworkView:
    base = NetworkView(
        f"n{number}", number, f"192.0.2.{number}", PEERS, (APP,), tuple(endpoint(n) for n in (1, 2, 3)),
        (VirtualIP("app", "web", "web", "10.0.9.200", ("www",)),),
        (PublishedPort("web", "tcp", 8080, 80, "ingress", ("10.240.4.11", "10.240.8.12")),),
        (TaskAddress("t1", "10.240.4.11", ("app",)),),
    )  # fmt: skip
    return msgspec.structs.replace(base, **changed)


def kinds(found: list[model.Change]) -> list[type]:
    return [type(change) for change in found]


# --- addresses


def test_a_hosts_subnet_gateway_and_identity() -> None:
    assert str(model.node_subnet(1)) == "10.240.4.0/22"
    assert model.node_gateway(1) == "10.240.4.1"
    assert model.host_identity(1) == "10.240.0.1"
    assert str(model.node_subnet(1023)) == "10.255.252.0/22"
    assert model.host_identity(1023) == "10.240.3.255"


@pytest.mark.parametrize("number", [0, -1, 1024])
def test_a_number_out_of_range_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        plan(view(number=number) if number > 0 else NetworkView("n", number, "192.0.2.1"))


def test_no_identity_lies_in_any_hosts_subnet() -> None:
    assert not any(
        model.NODE_POOL.network_address + n in model.node_subnet(m)
        for n in (1, 512, 1023)
        for m in (1, 2, 512, 1023)
    )


# --- plans


def test_each_endpoint_is_local_remote_or_unreachable() -> None:
    overlay = plan(view(peers=PEERS[:2])).overlays["app"]
    assert overlay.locals == ("10.0.9.11",)
    assert overlay.remotes == {"10.0.9.12": "192.0.2.2"}
    assert set(overlay.vips["10.0.9.200"]) == {"10.0.9.11", "10.0.9.12"}, "a backend nobody can reach is none"


def test_only_ready_tasks_are_backends_but_all_are_reachable() -> None:
    overlay = plan(view(endpoints=(endpoint(1), endpoint(2, ready=False)))).overlays["app"]
    assert overlay.vips == {"10.0.9.200": ("10.0.9.11",)}
    assert overlay.remotes == {"10.0.9.12": "192.0.2.2"}


def test_every_host_begins_at_another_backend() -> None:
    firsts = {plan(view(number)).overlays["app"].vips["10.0.9.200"][0] for number in (1, 2, 3)}
    assert firsts == {"10.0.9.11", "10.0.9.12", "10.0.9.13"}


def test_a_host_port_leads_to_local_tasks_only() -> None:
    port = PublishedPort("web", "udp", 53, 53, "host", ("10.240.4.11", "10.240.8.12"))
    assert plan(view(ports=(port,))).ports["udp", 53].backends == ("10.240.4.11",)


def test_two_services_on_one_port_resolve_alike_on_all_hosts() -> None:
    a = PublishedPort("a", "tcp", 80, 1, "ingress", ("10.240.4.11",))
    b = PublishedPort("b", "tcp", 80, 2, "ingress", ("10.240.4.12",))
    assert plan(view(ports=(a, b))).ports == plan(view(ports=(b, a))).ports
    assert plan(view(ports=(a, b))).ports["tcp", 80].target == 1


def test_networks_whose_ids_begin_alike_are_refused() -> None:
    twins = tuple(Overlay("abcdefghijkl" + tail, tail, 4096, "10.0.9.0/24", "10.0.9.1") for tail in "xy")
    with pytest.raises(ValueError, match="share a namespace"):
        plan(view(overlays=twins, endpoints=(), vips=()))


def test_names() -> None:
    endpoints = tuple(endpoint(n, ready=n != 2, aliases=("www",)) for n in (1, 2, 3))
    names = plan(view(endpoints=endpoints)).names["app"]
    assert names.name == "App"
    assert names.names == {
        "web": ("10.0.9.200",),
        "www": ("10.0.9.200",),
        "tasks.web": ("10.0.9.11", "10.0.9.13"),
        "tasks.www": ("10.0.9.11", "10.0.9.13"),
        "web.1.x": ("10.0.9.11",),
        "web.2.x": ("10.0.9.12",),
        "web.3.x": ("10.0.9.13",),
    }
    assert names.pointers["10.0.9.200"] == "web.App"
    assert names.pointers["10.0.9.12"] == "web.2.x.App"


def test_a_service_without_virtual_address_is_named_by_its_ready_tasks() -> None:
    names = (
        plan(view(vips=(), endpoints=(endpoint(1, aliases=("W",)), endpoint(2, ready=False))))
        .names["app"]
        .names
    )
    assert names["web"] == names["w"] == names["tasks.web"] == names["tasks.w"] == ("10.0.9.11",)


def test_a_service_without_tasks_is_still_a_known_name() -> None:
    names = plan(view(endpoints=())).names["app"].names
    assert names == {"web": ("10.0.9.200",), "www": ("10.0.9.200",), "tasks.web": (), "tasks.www": ()}


# --- differences


def test_no_difference_no_change() -> None:
    assert changes(plan(view()), plan(view())) == []


def test_from_nothing_everything_is_made() -> None:
    assert kinds(changes(Plan(), plan(view()))) == [
        MakeNode,
        SetGuards,
        MakeOverlay,
        SetNames,
        SetTasks,
    ]


def test_containers_are_kept_off_every_member_whatever_is_told() -> None:
    found = plan(view(peers=PEERS[:2]), ("docker0",), (2377,)).guards
    assert found == Guards(("docker0", "swarm0"), ("192.0.2.1", "192.0.2.2"), (2377,), ("10.0.9.0/24",))
    told = msgspec.structs.replace(
        view(peers=PEERS[:2]),
        members=("198.51.100.7", "192.0.2.2", "2001:db8::1", "node.example"),
        control_ports=(2378, 2377),
    )
    more = plan(told, ("docker0",), (2377,)).guards
    assert more == Guards(
        ("docker0", "swarm0"), ("192.0.2.1", "192.0.2.2", "198.51.100.7"), (2377, 2378), ("10.0.9.0/24",)
    )
    assert kinds(changes(plan(view(peers=PEERS[:2])), plan(told))) == [SetGuards]


def test_a_new_remote_task_costs_one_entry() -> None:
    old, new = (
        plan(view(endpoints=(endpoint(1), endpoint(2)))),
        plan(view(endpoints=(endpoint(1), endpoint(2), endpoint(3, ready=False)))),
    )
    found = changes(old, new)
    assert found[0] == SetRemotes("app", {"10.0.9.13": "192.0.2.3"}, {})
    assert kinds(found) == [SetRemotes, SetNames]


def test_a_way_comes_before_its_use_and_goes_after_it() -> None:
    with_it, without = plan(view()), plan(view(endpoints=(endpoint(1), endpoint(2))))
    assert kinds(changes(without, with_it)) == [SetRemotes, SetVips, SetNames]
    assert kinds(changes(with_it, without)) == [SetVips, SetNames, SetRemotes]


def test_a_stopping_task_keeps_tcp_and_loses_udp() -> None:
    found = changes(plan(view()), plan(view(endpoints=(endpoint(1), endpoint(2, ready=False), endpoint(3)))))
    (vips,) = [change for change in found if isinstance(change, SetVips)]
    assert vips.cut == (Cut("udp", vip="10.0.9.200", backend="10.0.9.12"),)


def test_a_vanished_task_loses_all_connections() -> None:
    stopping = plan(view(endpoints=(endpoint(1), endpoint(2, ready=False), endpoint(3))))
    gone = plan(view(endpoints=(endpoint(1), endpoint(3))))
    cut = Cut("tcp", vip="10.0.9.200", backend="10.0.9.12")
    assert [c.cut for c in changes(stopping, gone) if isinstance(c, SetVips)] == [(cut,)]
    (at_once,) = [c for c in changes(plan(view()), gone) if isinstance(c, SetVips)]
    assert set(at_once.cut) == {cut, Cut("udp", vip="10.0.9.200", backend="10.0.9.12")}


def test_a_first_backend_frees_flows_that_met_nobody() -> None:
    (vips,) = [c for c in changes(plan(view(endpoints=())), plan(view())) if isinstance(c, SetVips)]
    assert vips.cut == (Cut("udp", vip="10.0.9.200"),)


def test_a_moved_task_replaces_its_entry() -> None:
    moved = msgspec.structs.replace(endpoint(2), node_id="n3")
    (remotes,) = [
        c
        for c in changes(plan(view()), plan(view(endpoints=(endpoint(1), moved, endpoint(3)))))
        if isinstance(c, SetRemotes)
    ]
    assert remotes == SetRemotes("app", {"10.0.9.12": "192.0.2.3"}, {"10.0.9.12": "192.0.2.2"})


def test_a_task_that_moved_here_becomes_local() -> None:
    moved = msgspec.structs.replace(endpoint(2), node_id="n1")
    found = changes(plan(view()), plan(view(endpoints=(endpoint(1), moved, endpoint(3)))))
    assert SetLocals("app", ("10.0.9.12",), ()) in found
    assert SetRemotes("app", {}, {"10.0.9.12": "192.0.2.2"}) in found


def port(
    *backends: str, draining: tuple[str, ...] = (), protocol: str = "tcp", target: int = 80
) -> tuple[PublishedPort, ...]:
    return (PublishedPort("web", protocol, 8080, target, "ingress", backends, draining),)


A, B = "10.240.4.11", "10.240.8.12"


@pytest.mark.parametrize(
    ("before", "after", "cuts"),
    [
        (port(A, B), port(A), (Cut("tcp", port=8080, backend=B),)),
        (port(A, B), port(A, draining=(B,)), ()),
        (port(A, draining=(B,)), port(A), (Cut("tcp", port=8080, backend=B),)),
        (
            port(A, B, protocol="udp"),
            port(A, draining=(B,), protocol="udp"),
            (Cut("udp", port=8080, backend=B),),
        ),
        (port(protocol="udp"), port(A, protocol="udp"), (Cut("udp", port=8080),)),
        (port(A), port(A, B), ()),
        (port(A), port(A, target=81), (Cut("tcp", port=8080, backend=A),)),
        (port(A), (), (Cut("tcp", port=8080, backend=A),)),
    ],
)
def test_connections_to_a_port_are_cut_exactly_when_they_must(
    before: object, after: object, cuts: object
) -> None:
    (found,) = changes(plan(view(ports=before)), plan(view(ports=after)))
    assert isinstance(found, SetPorts)
    assert found.cut == cuts


def test_a_peer_that_left_and_one_that_moved() -> None:
    moved = (PEERS[0], Peer("n2", 2, "192.0.2.22"))
    (peers,) = [c for c in changes(plan(view()), plan(view(peers=moved))) if isinstance(c, SetPeers)]
    assert peers == SetPeers({2: "192.0.2.22"}, {2: "192.0.2.2", 3: "192.0.2.3"})


def test_a_changed_shape_is_made_sure_of_as_a_whole() -> None:
    larger = msgspec.structs.replace(APP, mtu=1300)
    assert kinds(changes(plan(view()), plan(view(overlays=(larger,))))) == [MakeOverlay]
    assert MakeNode in kinds(changes(plan(view()), plan(view(data_addr="192.0.2.99"))))


def test_a_network_that_is_not_needed_any_more_goes_last() -> None:
    found = changes(plan(view()), plan(view(overlays=(), endpoints=(), vips=())))
    assert found[1:] == [SetNames("app", None), DropOverlay("app")]
    assert kinds(found[:1]) == [SetGuards]


def test_what_failed_is_made_anew_next_time() -> None:
    wanted = plan(view())
    for failed in [
        *changes(Plan(), wanted),
        *changes(plan(view(endpoints=())), wanted),
        SetPeers({}, {}),
        SetPorts({}, (), ()),
    ]:
        again = changes(model.without(wanted, failed), wanted)
        assert again, f"{failed} would be forgotten"
        assert not {type(c) for c in again} & {SetRemotes, SetLocals, SetVips, SetPorts, SetPeers}, (
            "half-known is unknown"
        )


# --- any views


def endpoints_strategy() -> st.SearchStrategy[tuple[Endpoint, ...]]:
    one = st.builds(
        endpoint,
        st.integers(1, 4),
        ready=st.booleans(),
        service=st.sampled_from(["web", "db", ""]),
        network=st.sampled_from(["app", "elsewhere"]),
    )
    return st.lists(one, max_size=6, unique_by=lambda e: e.task_id).map(tuple)


views = st.builds(
    lambda endpoints, peers, number, backends, vips, networks: view(
        number, endpoints=endpoints, peers=peers, ports=port(*backends), vips=vips, overlays=networks
    ),
    endpoints_strategy(),
    st.sampled_from([PEERS, PEERS[:1], PEERS[1:]]),
    st.just(1),
    st.sets(st.sampled_from([A, B, "10.240.12.9"])),
    st.sampled_from(
        [(), (VirtualIP("app", "web", "web", "10.0.9.200"),), (VirtualIP("app", "db", "db", "10.0.9.201"),)]
    ),
    st.sampled_from([(), (APP,)]),
)


@given(views, views)
@settings(max_examples=300, deadline=None)
def test_the_changes_lead_from_any_plan_to_any_other(first: NetworkView, second: NetworkView) -> None:
    old, new = plan(first), plan(second)
    found = changes(old, new)
    assert (found == []) == (old == new)
    assert played(old, found) == new


def played(old: Plan, found: list[model.Change]) -> Plan:
    """What a host that does exactly these changes has in the end."""
    guards = old.guards
    node, overlays, ports, names, tasks = (
        old.node,
        dict(old.overlays),
        dict(old.ports),
        dict(old.names),
        dict(old.tasks),
    )
    replace = msgspec.structs.replace
    for change in found:
        match change:
            case MakeNode(made, made_ports):
                node, ports = made, dict(made_ports)
            case SetPeers(add, remove):
                assert node is not None
                assert all(node.peers[number] == end for number, end in remove.items()), (
                    "removes what is there"
                )
                node = replace(node, peers={k: v for k, v in node.peers.items() if k not in remove} | add)
            case SetPorts(put, gone, _):
                ports = {k: v for k, v in ports.items() if k not in gone} | put
            case MakeOverlay(overlay):
                overlays[overlay.network_id] = overlay
            case DropOverlay(network_id):
                del overlays[network_id]
            case SetRemotes(network_id, add_remotes, gone_remotes):
                have = overlays[network_id].remotes
                assert all(have[address] == end for address, end in gone_remotes.items()), (
                    "removes what is there"
                )
                kept = {k: v for k, v in have.items() if k not in gone_remotes}
                overlays[network_id] = replace(overlays[network_id], remotes=kept | add_remotes)
            case SetLocals(network_id, more, less):
                here = (set(overlays[network_id].locals) - set(less)) | set(more)
                ordered = tuple(sorted(here, key=lambda a: int(a.rpartition(".")[2])))
                overlays[network_id] = replace(overlays[network_id], locals=ordered)
            case SetVips(network_id, put_vips, gone_vips, _):
                vips = {k: v for k, v in overlays[network_id].vips.items() if k not in gone_vips} | put_vips
                overlays[network_id] = replace(overlays[network_id], vips=vips)
            case SetNames(network_id, new_names):
                names.pop(network_id, None)
                if new_names is not None:
                    names[network_id] = new_names
            case SetTasks(put_tasks, gone_tasks):
                tasks = {k: v for k, v in tasks.items() if k not in gone_tasks} | {
                    t.task_id: t for t in put_tasks
                }
            case SetGuards(new_guards):
                guards = new_guards
    return Plan(node, overlays, ports, names, tasks, guards)
