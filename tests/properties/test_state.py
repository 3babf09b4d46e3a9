"""Overlays, ledgers and stores agree whatever is written in whatever order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_agent.control.scheduler.usage import ClusterUsage
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.records import (
    Generic,
    Network,
    NetworkAddress,
    Node,
    NodeDescription,
    Revision,
    Service,
    ServiceEndpoint,
    Task,
    TaskStatus,
    VirtualAddress,
)
from swarm_agent.objects.specs import (
    EndpointSpec,
    NetworkCreate,
    NodeSpec,
    PortConfig,
    Reservations,
    Resources,
    ServiceSpec,
    TaskTemplate,
)
from swarm_agent.store import Change, Delete, Group, PendingView, Put, Store, StoreEntry, encode_entry

replace = msgspec.structs.replace
SMALL = st.integers(0, 2)
HOST_PORT = PortConfig(protocol="tcp", target_port=80, published_port=8080, publish_mode="host")


def a_revision(number: int) -> Revision:
    reserved = Resources(reservations=Reservations(nano_cpus=10**9 * number, memory_bytes=number << 20))
    return Revision(
        id=f"r{number}",
        service_id=f"s{number}",
        template=TaskTemplate(resources=reserved),
        endpoint=EndpointSpec(ports=(HOST_PORT,)) if number else EndpointSpec(),
    )


TASKS = st.builds(
    lambda i, s, n, state, slot, address: Task(
        id=f"t{i}", service_id=f"s{s}", service_name=f"s{s}", revision_id=f"r{s}", slot=slot, node_id=f"n{n}" if n else "",
        status=TaskStatus(state=state), node_address=f"10.240.4.{address}" if n and address else "",
        networks=(NetworkAddress(network_id="net", address=f"10.0.0.{address}/24"),) if address else (),
        generic=((), (Generic(kind="gpu", name="a"),), (Generic(kind="fpga", count=2),))[address] if n else (),
    ),
    st.integers(0, 5), SMALL, SMALL, st.sampled_from((TaskState.PENDING, TaskState.RUNNING, TaskState.FAILED)), st.integers(1, 2), SMALL,
)  # fmt: skip
SERVICES = st.builds(
    lambda i, port, vip: Service(
        id=f"s{i}", spec=ServiceSpec(name=f"name{i}"), revision_id=f"r{i}",
        endpoint=ServiceEndpoint(
            ports=(PortConfig(protocol="tcp", target_port=1, published_port=30000 + i, publish_mode="ingress"),) if port else (),
            virtual_ips=(VirtualAddress(network_id="net", address=f"10.0.0.{100 + i}/24"),) if vip else (),
        ),
    ),
    SMALL, st.booleans(), st.booleans(),
)  # fmt: skip
NODES = st.builds(
    lambda i, number, host: Node(
        id=f"n{i}", spec=NodeSpec(), number=number, description=NodeDescription(hostname=f"Host{host}")
    ),
    SMALL, SMALL, SMALL,
)  # fmt: skip
NETWORKS = st.builds(
    lambda i, on: Network(
        id=f"net{i}", spec=NetworkCreate(name=f"Net{i}"), subnet=f"10.0.{i}.0/24" if on else "", vni=4097 + i if on else 0
    ),
    SMALL, st.booleans(),
)  # fmt: skip
ROWS = TASKS | SERVICES | NODES | NETWORKS | st.builds(a_revision, SMALL)
STEPS = st.lists(st.tuples(st.sampled_from(("put", "put", "delete")), ROWS, SMALL), max_size=12)


def commit(store: Store, *groups: Group) -> tuple[bool, ...]:
    return store.apply(store.index + 1, 1, encode_entry(StoreEntry(1, groups))).accepted


def based_on(store: Store, row: Any) -> int:
    stored = store.tables[type(row)].get(row.id)
    return 0 if stored is None else stored.version


def fill(store: Store, steps: list[tuple[str, Any, int]]) -> None:
    for what, row, _ in steps:
        expect = based_on(store, row)
        if what == "put":
            assert commit(store, Group("", (Put(row, expect),))) == (True,)
        elif expect:
            assert commit(store, Group("", (Delete(type(row).__name__.lower(), row.id, expect),))) == (True,)


def contents(view: Any) -> dict[str, dict[str, Any]]:
    """Rows as they are seen, stamps quarantined, and the same through each index."""
    plain = {"version": 0, "created_at": 0, "updated_at": 0}

    def bare(row: Any) -> Any:
        more = {"spec_version": 0} if hasattr(row, "spec_version") else {}
        return replace(row, **plain, **more)

    tables = {
        name: {r.id: bare(r) for r in getattr(view, name).all()}
        for name in ("tasks", "services", "nodes", "networks", "revisions")
    }
    tables["by"] = {
        **{f"service s{i}": sorted(t.id for t in view.tasks.by("service", f"s{i}")) for i in range(3)},
        **{f"node n{i}": sorted(t.id for t in view.tasks.by("node", f"n{i}" if i else "")) for i in range(3)},
        **{f"host {i}": sorted(n.id for n in view.nodes.by("hostname", f"host{i}")) for i in range(3)},
        **{f"name {i}": sorted(s.id for s in view.services.by("name", f"name{i}")) for i in range(3)},
    }
    tables["sizes"] = {name: len(getattr(view, name)) for name in ("tasks", "services", "nodes")}
    return tables


@settings(max_examples=60, deadline=None)
@given(STEPS, STEPS)
def test_an_overlay_committed_is_what_the_overlay_showed(before: Any, after: Any) -> None:
    store = Store()
    fill(store, before)
    view = PendingView(store)
    for what, row, key in after:
        view.group(f"g{key}")
        if what == "put":
            view.put(replace(row, version=based_on(store, row)))
        elif getattr(view, type(row).__name__.lower() + "s").get(row.id) is not None:
            view.delete(row)
    shown = contents(view)
    assert all(commit(store, *view.groups())), "nobody wrote in between"
    assert contents(store) == shown
    assert PendingView(store).groups() == ()


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_a_snapshot_restored_is_the_same_store(steps: Any) -> None:
    store, other = Store(), Store()
    fill(store, steps)
    fill(other, steps[:3])
    other.restore(store.index, store.snapshot())
    assert contents(other) == contents(store)
    again = Store()
    again.restore(store.index, other.snapshot())
    assert contents(again) == contents(store)


def books(usage: ClusterUsage) -> Any:
    """What is taken, without what is at zero."""

    def some(counter: Counter[Any]) -> dict[Any, int]:
        return {key: n for key, n in counter.items() if n}

    nodes = {
        i: (
            use.active,
            use.cpu,
            use.memory,
            some(use.by_service),
            some(use.ports),
            some(use.generic),
            some(use.names),
        )
        for i, use in usage.nodes.items()
    }
    return (
        {i: use for i, use in nodes.items() if any(use)},
        {n: some(c) for n, c in usage.addresses.items() if some(c)},
        {n: some(c) for n, c in usage.node_addresses.items() if some(c)},
        dict(usage.published),
        dict(usage.subnets),
        dict(usage.vnis),
        dict(usage.numbers),
        {s: sorted(nodes) for s, nodes in usage.hosting.items()},
    )


def with_revisions() -> Store:
    store = Store()
    assert commit(store, Group("", tuple(Put(a_revision(i), 0) for i in range(3)))) == (True,)
    return store


BOOKED = st.lists(st.tuples(st.sampled_from(("put", "put", "delete")), TASKS, SMALL), max_size=12)


@settings(max_examples=60, deadline=None)
@given(BOOKED, BOOKED)
def test_the_ledger_takes_back_what_it_booked(before: Any, after: Any) -> None:
    store = with_revisions()
    fill(store, before)
    usage = ClusterUsage(store)
    at_first = books(usage)
    rows: dict[str, Any] = {t.id: t for t in store.tasks.all()}
    done: list[Change] = []
    for what, row, _ in after:
        change = Change(rows.get(row.id), row if what == "put" else None)
        if change.old is None and change.new is None:
            continue
        rows[row.id] = change.new
        usage.apply(change)
        done.append(change)
    for change in reversed(done):
        usage.apply(Change(change.new, change.old))
    assert books(usage) == at_first


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_a_ledger_kept_up_to_date_is_one_made_afresh(steps: Any) -> None:
    store = with_revisions()
    usage = ClusterUsage(store)

    def book(_: int, changes: Sequence[Change]) -> None:
        for change in changes:
            usage.apply(change)

    store.watch(book)
    fill(store, [s for s in steps if not isinstance(s[1], Revision | Node)])
    assert books(usage) == books(ClusterUsage(store))
