"""What makes the store small and quick, and must not be seen: compact writes, shared values, tallies, quiet watchers."""

from __future__ import annotations

import gc
from collections import Counter
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.errors import ReleaseTooOld
from swarm_agent.objects.records import (
    Cluster,
    ContainerStatus,
    JoinTokens,
    Network,
    NetworkAddress,
    Node,
    NodeStatus,
    Revision,
    RootCA,
    Service,
    Task,
    TaskStatus,
)
from swarm_agent.objects.specs import ClusterSpec, NetworkCreate, NodeSpec, ServiceSpec, TaskTemplate
from swarm_agent.store import (
    Delete,
    Group,
    PendingView,
    Put,
    SetStatus,
    Store,
    StoreEntry,
    UnknownEntry,
    Write,
    decode_entry,
    encode_entry,
)
from tests.lib.optional import unwrap

replace = msgspec.structs.replace


def apply(store: Store, *writes: Write, now: int = 5) -> bool:
    return store.apply(store.index + 1, 1, encode_entry(StoreEntry(now, (Group("k", writes),)))).accepted[0]


def cluster(level: int) -> Cluster:
    return Cluster(
        id="c",
        spec=ClusterSpec(),
        root_ca=RootCA(cert=b"", key=b"", digest=""),
        join_tokens=JoinTokens(worker="", manager=""),
        feature_level=level,
    )


def task(number: int = 0, **more: Any) -> Task:
    return Task(id=f"t{number}", service_id="s", service_name="s", revision_id="r", **more)


def state(store: Store) -> bytes:
    return b"".join(store.snapshot())


# --- a status by itself --------------------------------------------------------------------------------------------------
STATUSES = st.builds(
    TaskStatus,
    state=st.sampled_from(TaskState),
    message=st.sampled_from(("", "started", "x" * 100)),
    timestamp=st.integers(0, 9),
    container=st.none() | st.builds(ContainerStatus, container_id=st.sampled_from(("", "abc")), exit_code=st.integers(0, 2)),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), STATUSES, st.integers(-1, 1)), max_size=8))
def test_a_status_by_itself_does_what_the_whole_task_does(steps: Any) -> None:
    """Checks, stamps, changes and the state: the same, the right version or not, the task there or not."""
    small, whole = Store(), Store()
    seen: tuple[list[Any], list[Any]] = ([], [])

    def note(log: list[Any], index: int, changes: Any) -> None:
        log.append((index, list(changes)))

    for store, log in zip((small, whole), seen, strict=True):
        apply(store, *(Put(task(n, slot=n), 0) for n in range(3)))
        store.watch(partial(note, log))
    for at, (number, status, off) in enumerate(steps):
        stored = whole.tasks.get(f"t{number}")
        expect = stored.version + off if stored is not None else 7
        one = apply(small, SetStatus(f"t{number}", status, expect), now=at)
        other = apply(whole, Put(replace(stored or task(number), status=status), expect), now=at)
        assert one == other
        assert state(small) == state(whole)
        assert small.tasks.tallies == whole.tasks.tallies
    assert seen[0] == seen[1]


def test_a_status_never_makes_a_task() -> None:
    store = Store()
    assert not apply(store, SetStatus("t0", TaskStatus(), 0))
    apply(store, Put(task(), 0))
    assert apply(store, Delete("task", "t0", 2), SetStatus("t0", TaskStatus(), 2)), (
        "the later write finds nothing"
    )
    assert len(store.tasks) == 0


@pytest.mark.parametrize("level", [1, 2])
def test_a_pass_writes_a_status_by_itself_when_the_cluster_may(level: int) -> None:
    store = Store()
    apply(store, Put(cluster(level), 0), *(Put(task(n), 0) for n in range(3)))
    view = PendingView(store)
    one, two = store.tasks.get("t0"), store.tasks.get("t1")
    assert one is not None
    assert two is not None
    failed = TaskStatus(state=TaskState.FAILED)
    view.put(replace(one, status=failed))
    view.put(replace(two, status=failed, desired_state=TaskState.SHUTDOWN))
    view.put(task(9))
    kinds = [type(w) for w in view.groups()[0].writes]
    assert kinds == [SetStatus if level == 2 else Put, Put, Put]
    other = Store()
    other.restore(store.index, store.snapshot())
    assert apply(store, *view.groups()[0].writes)
    assert unwrap(store.tasks.get("t0")).status == failed


def test_what_a_later_release_writes_is_told_from_rubbish() -> None:
    entry = msgspec.msgpack.encode(
        {"now": 1, "groups": [{"key": "", "writes": [{"type": "transmute", "x": 1}]}]}
    )
    row = msgspec.msgpack.encode(
        {
            "now": 1,
            "groups": [{"key": "", "writes": [{"type": "put", "record": {"kind": "dragon"}, "expect": 0}]}],
        }
    )
    for data in (entry, row):
        store = Store()
        with pytest.raises(UnknownEntry):
            decode_entry(data)
        with pytest.raises(
            ReleaseTooOld, match=r"entry 1 of the log holds what this release does not know.*Install"
        ):
            store.apply(1, 1, data)
        assert store.refused
        assert store.index == 0
    with pytest.raises(msgspec.DecodeError):
        Store().apply(1, 1, b"\x81")


# --- one object for one value --------------------------------------------------------------------------------------------
def a_world() -> Store:
    store = Store()
    apply(
        store,
        Put(Node(id="n", spec=NodeSpec()), 0),
        Put(Network(id="net", spec=NetworkCreate(name="net")), 0),
    )
    spec = ServiceSpec(name="web", labels={"a": "b"})
    apply(
        store,
        Put(Service(id="s", spec=spec), 0),
        Put(Revision(id="r", service_id="s", template=TaskTemplate()), 0),
    )
    rows = [
        Task(
            id=f"t{n}",
            service_id="s",
            service_name="web",
            service_labels={"a": "b"},
            revision_id="r",
            node_id="n",
            cause="create",
            networks=(NetworkAddress(network_id="net", address="10.0.0.1/24"),),
            status=TaskStatus(message="created"),
        )
        for n in range(2)
    ]
    apply(store, *(Put(row, 0) for row in rows))
    return store


def shared(store: Store) -> None:
    one, two = store.tasks.get("t0"), store.tasks.get("t1")
    service, node = store.services.get("s"), store.nodes.get("n")
    assert one is not None
    assert two is not None
    assert service is not None
    assert node is not None
    assert one.service_id is service.id
    assert one.service_name is service.spec.name
    assert one.service_labels is service.spec.labels
    assert one.node_id is node.id
    assert one.networks[0].network_id is unwrap(store.networks.get("net")).id
    assert one.revision_id is two.revision_id
    assert one.status.message is two.status.message
    assert one.cause is two.cause


def test_rows_share_what_they_name() -> None:
    store = a_world()
    shared(store)
    other = Store()
    other.restore(store.index, store.snapshot())
    shared(other)


def test_a_row_that_is_written_again_shares_what_did_not_change() -> None:
    store = a_world()
    before = store.tasks.get("t0")
    assert before is not None
    apply(store, Put(Node(id="m", spec=NodeSpec()), 0))
    assert apply(store, Put(replace(before, desired_state=TaskState.SHUTDOWN, node_id="m"), before.version))
    after = store.tasks.get("t0")
    assert after is not None
    assert after.id is before.id
    assert after.networks is before.networks
    assert after.service_labels is before.service_labels
    assert after.node_id is unwrap(store.nodes.get("m")).id
    assert before.node_id == "n", "the row it replaced is what it was"


def test_rows_are_no_business_of_the_garbage_collector() -> None:
    store = a_world()
    row = store.tasks.get("t0")
    assert row is not None
    assert not gc.is_tracked(row)
    assert not gc.is_tracked(row.status)


# --- tallies and watchers ------------------------------------------------------------------------------------------------
CHANGES = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(TaskState), st.integers(0, 2)), max_size=20)


@settings(max_examples=60, deadline=None)
@given(CHANGES)
def test_tallies_and_indexes_are_what_counting_gives(changes: Any) -> None:
    store = Store()
    for number, wanted, slot in changes:
        old = store.tasks.get(f"t{number}")
        if wanted == TaskState.REMOVE and old is not None:
            apply(store, Delete("task", old.id, old.version))
        else:
            row = task(number, slot=slot, status=TaskStatus(state=wanted))
            apply(store, Put(row, old.version if old is not None else 0))
        rows = list(store.tasks.all())
        assert store.tasks.tallies["state"] == Counter(t.status.state for t in rows)
        for slot_ in range(3):
            expected = {t.id for t in rows if t.slot == slot_}
            assert {t.id for t in store.tasks.by("slot", ("s", slot_, ""))} == expected


def test_nodes_are_tallied_by_state() -> None:
    store = Store()
    apply(
        store,
        *(
            Put(Node(id=f"n{n}", spec=NodeSpec(), status=NodeStatus(state=NodeState.READY)), 0)
            for n in range(2)
        ),
    )
    assert store.nodes.tallies["state"] == {NodeState.READY: 2}


def test_a_watcher_of_kinds_hears_only_of_them() -> None:
    store = Store()
    heard: list[tuple[int, int]] = []
    end = store.watch(lambda index, changes: heard.append((index, len(changes))), Node, Service)
    apply(store, Put(task(), 0))
    apply(store, Put(Node(id="n", spec=NodeSpec()), 0), Put(task(1), 0))
    apply(store)
    apply(store, Put(Service(id="s", spec=ServiceSpec()), 0))
    assert heard == [(2, 2), (4, 1)]
    end()
    apply(store, Put(Service(id="z", spec=ServiceSpec()), 0))
    assert len(heard) == 2


def test_a_watcher_that_ends_another_does_not_make_a_third_miss_anything() -> None:
    store = Store()
    heard: list[str] = []
    end_second = [lambda: None]

    def first(index: int, changes: Any) -> None:
        heard.append("first")
        end_second[0]()

    store.watch(first)
    end_second[0] = store.watch(lambda index, changes: heard.append("second"))
    store.watch(lambda index, changes: heard.append("third"))
    apply(store)
    apply(store)
    assert heard.count("third") == 2
    assert heard.count("second") <= 1
