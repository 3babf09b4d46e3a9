"""The replicated tables: checked groups, stamps, indexes, watches, snapshots, overlays."""

from __future__ import annotations

import msgspec
import pytest

from swarm_agent.objects.records import Network, Node, NodeDescription, Service, Task, TaskStatus
from swarm_agent.objects.specs import NetworkCreate, NodeSpec, ServiceSpec
from swarm_agent.store import (
    Change,
    Delete,
    Group,
    PendingView,
    Put,
    Store,
    StoreEntry,
    decode_entry,
    encode_entry,
)
from tests.lib.optional import unwrap

replace = msgspec.structs.replace


def service(id_: str, name: str) -> Service:
    return Service(id=id_, spec=ServiceSpec(name=name))


def task(id_: str, service_id: str, node_id: str = "", slot: int = 1) -> Task:
    return Task(id=id_, service_id=service_id, service_name="s", revision_id="r", node_id=node_id, slot=slot)


class Log:
    """A store, and what its watchers saw."""

    def __init__(self) -> None:
        self.store = Store()
        self.seen: list[tuple[int, list[Change]]] = []
        self.end = self.store.watch(lambda index, changes: self.seen.append((index, list(changes))))

    def do(self, *writes: Put | Delete, now: int = 100) -> bool:
        return self.apply(Group("k", writes), now=now)[0]

    def apply(self, *groups: Group, now: int = 100) -> tuple[bool, ...]:
        result = self.store.apply(self.store.index + 1, 1, encode_entry(StoreEntry(now, groups)))
        assert result.index == self.store.index
        return result.accepted


def test_a_group_is_done_whole_or_not_at_all() -> None:
    log = Log()
    assert log.do(Put(service("a", "one"), 0), Put(task("t", "a"), 0))
    assert not log.do(Put(service("b", "two"), 0), Put(service("a", "again"), 0))
    assert log.store.services.get("b") is None
    assert unwrap(log.store.services.get("a")).spec.name == "one"
    assert log.seen[-1] == (2, []), "a refused group changes nothing and is told so"


def test_one_groups_failure_is_not_its_neighbours() -> None:
    log = Log()
    good, bad = Put(service("a", "one"), 0), Put(service("b", "two"), 7)
    assert log.apply(Group("x", (good,)), Group("y", (bad,)), Group("z", (Put(task("t", "a"), 0),))) == (
        True,
        False,
        True,
    )
    assert len(log.store.services) == len(log.store.tasks) == 1


def test_writes_are_checked_against_the_version_they_were_based_on() -> None:
    log = Log()
    log.do(Put(service("a", "one"), 0))
    stored = log.store.services.get("a")
    assert stored is not None
    assert stored.version == 1
    assert log.do(Put(replace(stored, registry_auth="x"), 1))
    assert not log.do(Put(replace(stored, registry_auth="y"), 1))
    assert not log.do(Delete("service", "a", 1))
    assert log.do(Delete("service", "a", 2))
    assert not log.do(Delete("service", "a", 2))


def test_stamps() -> None:
    log = Log()
    log.do(Put(service("a", "one"), 0), now=100)
    first = log.store.services.get("a")
    assert first is not None
    assert (first.version, first.spec_version, first.created_at, first.updated_at) == (1, 1, 100, 100)
    log.do(Put(replace(first, registry_auth="x", created_at=5), 1), now=200)
    second = log.store.services.get("a")
    assert second is not None
    assert (second.version, second.spec_version, second.created_at, second.updated_at) == (2, 1, 100, 200)
    log.do(Put(replace(second, spec=ServiceSpec(name="one", labels={"a": "b"})), 2), now=300)
    third = log.store.services.get("a")
    assert third is not None
    assert (third.version, third.spec_version, third.updated_at) == (3, 3, 300)


def test_indexes_follow_their_rows() -> None:
    log = Log()
    log.do(Put(task("t", "a"), 0), Put(task("u", "a", slot=2), 0))
    tasks = log.store.tasks
    assert [t.id for t in tasks.by("service", "a")] == ["t", "u"]
    assert [t.id for t in tasks.by("slot", ("a", 2, ""))] == ["u"]
    log.do(Put(replace(unwrap(tasks.get("t")), node_id="n"), 1))
    assert [t.id for t in tasks.by("node", "n")] == ["t"]
    assert [t.id for t in tasks.by("node", "")] == ["u"]
    log.do(Delete("task", "t", 2))
    assert list(tasks.by("node", "n")) == []
    assert [t.id for t in tasks.by("service", "a")] == ["u"]
    log.do(Put(Node(id="n", spec=NodeSpec(), description=NodeDescription(hostname="HOST")), 0))
    assert [n.id for n in log.store.nodes.by("hostname", "host")] == ["n"]


def test_watchers_see_every_change_in_order_until_they_end() -> None:
    log = Log()
    log.do(Put(service("a", "one"), 0))
    changed = replace(unwrap(log.store.services.get("a")), registry_auth="x")
    log.do(Put(changed, 1), Put(task("t", "a"), 0))
    log.do(Delete("service", "a", 2))
    assert [index for index, _ in log.seen] == [1, 2, 3]
    created, updated, removed = (changes[0] for _, changes in log.seen)
    assert created.old is None
    assert updated.old == created.new
    assert removed.new is None
    assert removed.row == removed.old == updated.new
    log.end()
    log.end()
    log.do(Delete("task", "t", 2))
    assert len(log.seen) == 3


def test_a_snapshot_is_the_store() -> None:
    log = Log()
    log.do(Put(service("a", "one"), 0), Put(task("t", "a"), 0))
    log.do(Put(Network(id="n", spec=NetworkCreate(name="net")), 0))
    data = log.store.snapshot()
    other = Log()
    other.do(Put(service("old", "gone"), 0), Put(service("a", "different"), 0))
    other.store.restore(2, data)
    assert other.store.index == 2
    assert b"".join(other.store.snapshot()) == b"".join(data)
    assert [t.id for t in other.store.tasks.by("service", "a")] == ["t"]
    assert list(other.store.services.by("name", "gone")) == []
    index, changes = other.seen[-1]
    assert index == 2
    kinds = {(type(c.row).__name__, c.row.id, c.old is None, c.new is None) for c in changes}
    assert kinds == {
        ("Service", "a", False, False),
        ("Task", "t", True, False),
        ("Network", "n", True, False),
        ("Service", "old", False, True),
    }
    before = len(changes)
    other.store.restore(2, data)
    assert other.seen[-1] == (2, []), f"restoring what is there changes nothing ({before} changes at first)"


def test_entries_are_the_same_bytes_on_every_manager() -> None:
    entry = StoreEntry(5, (Group("k", (Put(task("t", "a"), 3), Delete("task", "u", 4))),))
    assert decode_entry(encode_entry(entry)) == entry
    assert encode_entry(decode_entry(encode_entry(entry))) == encode_entry(entry)


# --- overlays ----------------------------------------------------------------------------------------------------------
def test_an_overlay_is_read_like_the_store() -> None:
    log = Log()
    log.do(Put(task("t", "a", "n"), 0), Put(task("u", "a"), 0), Put(service("a", "one"), 0))
    view = PendingView(log.store)
    stored = log.store.tasks.get("t")
    assert stored is not None
    view.group("g")
    view.put(replace(stored, node_id="m"))
    view.put(task("v", "a", "n"))
    view.delete(unwrap(log.store.tasks.get("u")))
    assert {t.id for t in view.tasks.by("service", "a")} == {"t", "v"}
    assert {t.id for t in view.tasks.by("node", "n")} == {"v"}
    assert {t.id for t in view.tasks.all()} == {"t", "v"}
    assert len(view.tasks) == 2
    assert view.tasks.get("u") is None
    assert view.services.get("a") is log.store.services.get("a")
    assert log.store.tasks.get("t") is stored, "the store knows nothing yet"
    (group,) = view.groups()
    assert group.key == "g"
    assert [(type(w).__name__, w.expect) for w in group.writes] == [("Put", 1), ("Put", 0), ("Delete", 1)]


def test_what_ends_as_it_began_is_not_written() -> None:
    log = Log()
    log.do(Put(task("t", "a"), 0))
    stored = log.store.tasks.get("t")
    assert stored is not None
    view = PendingView(log.store)
    view.put(replace(stored, node_id="m"))
    view.put(stored)
    view.put(task("new", "a"))
    view.delete(task("new", "a"))
    assert view.groups() == ()


def test_a_row_of_two_decisions_stays_with_the_first() -> None:
    view = PendingView(Store())
    view.group("one")
    view.put(task("t", "a"))
    view.group("two")
    view.put(task("t", "a", "n"))
    view.put(task("u", "a"))
    assert [(g.key, [w.record.id for w in g.writes if isinstance(w, Put)]) for g in view.groups()] == [
        ("one", ["t"]),
        ("two", ["u"]),
    ]


@pytest.mark.parametrize("version", [0, 3])
def test_a_task_keeps_its_name(version: int) -> None:
    status = TaskStatus()
    assert replace(task("t", "a", slot=4), version=version, status=status).name == "s.4.t"
    assert replace(task("t", "a", "node", slot=0), version=version).name == "s.node.t"
