"""Whose endpoints stay while a node is silent: what the network is told, out of a store."""

from __future__ import annotations

import msgspec
import pytest

from swarm_agent.dispatcher import assignments
from swarm_agent.dispatcher.assignments import SILENT
from swarm_agent.dispatcher.dispatcher import _network_sees_node
from swarm_agent.dispatcher.network_view import ClusterNetworkState
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import (
    AnyRecord,
    NetworkAddress,
    Node,
    NodeDescription,
    NodeStatus,
    Service,
    ServiceEndpoint,
    Task,
    TaskStatus,
)
from swarm_agent.objects.specs import NodeSpec, PortConfig, ServiceSpec
from swarm_agent.store import Change, Group, Put, Store, StoreEntry, encode_entry

PORT = PortConfig(protocol="tcp", target_port=8080, published_port=80, publish_mode="ingress")


def node(
    name: str, number: int, state: NodeState = NodeState.READY, message: str = "", *, fenced: bool = False
) -> Node:
    return Node(
        id=name,
        number=number,
        spec=NodeSpec(),
        description=NodeDescription(hostname=name),
        data_addr=f"192.0.2.{number}",
        status=NodeStatus(state=state, message=message, fenced=fenced),
    )


def task(
    name: str, node_id: str, last: int, desired: TaskState, state: TaskState = TaskState.RUNNING
) -> Task:
    return Task(
        id=name,
        service_id="s",
        service_name="web",
        slot=1,
        revision_id="r",
        node_id=node_id,
        node_address=f"10.240.4.{last}",
        networks=(NetworkAddress(network_id="net", address=f"10.0.0.{last}/24"),),
        desired_state=desired,
        status=TaskStatus(state=state),
    )


def told(*rows: AnyRecord) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
    """What the network is told of the service: backends, those that drain, tasks that are ready on the overlay."""
    store = Store()
    service = Service(id="s", spec=ServiceSpec(name="web"), endpoint=ServiceEndpoint(ports=(PORT,)))
    groups = tuple(Group(r.id, (Put(r, 0),)) for r in (service, *rows))
    assert all(store.apply(1, 1, encode_entry(StoreEntry(1, groups))).accepted)
    picture = ClusterNetworkState(store)
    (port,) = picture._ingress
    endpoints = picture._endpoints["net"]
    return port.backends, port.draining, [e.task_id for e in endpoints if e.ready]


GONE = node("n1", 1, NodeState.DOWN, SILENT)
OLD = task("old", "n1", 10, TaskState.SHUTDOWN)


@pytest.mark.parametrize("state", [TaskState.PENDING, TaskState.ASSIGNED, TaskState.STARTING])
def test_those_of_a_silent_node_stay_until_a_replacement_is_ready(state: TaskState) -> None:
    new = task("new", "n2", 11, TaskState.RUNNING, state)
    assert told(GONE, node("n2", 2), OLD, new) == (("10.240.4.10",), (), ["old"])


def test_and_go_once_it_is() -> None:
    new = task("new", "n2", 11, TaskState.RUNNING)
    assert told(GONE, node("n2", 2), OLD, new) == (("10.240.4.11",), ("10.240.4.10",), ["new"])


def test_without_any_replacement_they_stay() -> None:
    assert told(GONE, OLD) == (("10.240.4.10",), (), ["old"])


@pytest.mark.parametrize(
    "away",
    [
        node("n1", 1, NodeState.DOWN, "the node left the swarm"),  # its tasks stop
        node("n1", 1, NodeState.READY),  # it hears what is wanted
    ],
)
def test_a_node_that_is_not_silent_stops_them(away: Node) -> None:
    assert told(away, OLD) == ((), ("10.240.4.10",), [])


def test_what_is_scaled_away_goes_also_on_a_silent_node() -> None:
    assert told(GONE, task("old", "n1", 10, TaskState.REMOVE))[0] == ()


def test_a_singleton_whose_lease_is_over_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignments, "_singleton", lambda store, task: True)
    assert told(GONE, OLD)[0] == ("10.240.4.10",)
    assert told(node("n1", 1, NodeState.DOWN, SILENT, fenced=True), OLD)[0] == ()


def test_news_of_a_node_that_matter_to_the_network() -> None:
    ready, down = node("n1", 1), GONE
    fenced = node("n1", 1, NodeState.DOWN, SILENT, fenced=True)
    assert _network_sees_node(Change(ready, down))
    assert _network_sees_node(Change(down, ready))
    assert _network_sees_node(Change(down, fenced))
    assert not _network_sees_node(Change(ready, node("n1", 1, NodeState.UNKNOWN, "leadership change")))


# --- a node that is back before the replacement runs --------------------------------------------------------------------
BACK = node("n1", 1)


def following(
    state: TaskState, cause: str = "node down", where: str = "n2", desired: TaskState = TaskState.RUNNING
) -> Task:
    return msgspec.structs.replace(task("new", where, 11, desired, state), cause=cause)


def store_of(*rows: AnyRecord) -> Store:
    store = Store()
    service = Service(id="s", spec=ServiceSpec(name="web"), endpoint=ServiceEndpoint(ports=(PORT,)))
    groups = tuple(Group(r.id, (Put(r, 0),)) for r in (service, *rows))
    assert all(store.apply(1, 1, encode_entry(StoreEntry(1, groups))).accepted)
    return store


@pytest.mark.parametrize(
    ("rows", "runs_on"),
    [
        ((BACK, following(TaskState.PREPARING)), True),
        ((BACK, following(TaskState.RUNNING)), False),  # nobody needs the old one any more
        ((BACK, following(TaskState.REJECTED)), False),
        ((BACK, following(TaskState.PREPARING, "update")), False),  # which goes by its own order
        ((BACK, following(TaskState.PENDING, where="")), False),  # it may wait for what the old one holds
        ((BACK, following(TaskState.PREPARING, where="n1")), False),
        (
            (BACK, following(TaskState.READY, desired=TaskState.READY)),
            False,
        ),  # it waits for the old one's end
        ((BACK, following(TaskState.PREPARING, desired=TaskState.REMOVE)), False),
        ((BACK,), False),
        ((GONE, following(TaskState.PREPARING)), False),
    ],
)
def test_the_old_one_runs_on_until_the_new_one_does(rows: tuple[AnyRecord, ...], *, runs_on: bool) -> None:
    store = store_of(node("n2", 2), OLD, *rows)
    assert assignments.held(store, OLD) is runs_on
    assert assignments.told(store, OLD).desired_state == (
        TaskState.RUNNING if runs_on else TaskState.SHUTDOWN
    )
    if runs_on:
        assert told(node("n2", 2), OLD, *rows)[0] == ("10.240.4.10",)


def test_of_a_singleton_there_is_never_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(node("n2", 2), OLD, BACK, following(TaskState.PREPARING))
    monkeypatch.setattr(assignments, "_singleton", lambda store, task: True)
    assert not assignments.held(store, OLD)


def test_a_node_that_is_drained_stops_it() -> None:
    drained = msgspec.structs.replace(BACK, spec=NodeSpec(availability="drain"))
    assert not assignments.held(store_of(node("n2", 2), OLD, drained, following(TaskState.PREPARING)), OLD)
