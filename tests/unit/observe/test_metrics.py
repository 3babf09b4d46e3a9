"""``/metrics``: what is served is Prometheus' text format 0.0.4, read by a parser that lets nothing pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from swarm_agent.control.loop import ControlLoop
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.observe.metrics import METRICS, Metric
from swarm_agent.observe.server import ObserveServer
from swarm_agent.raft import Member, RaftStatus
from swarm_agent.store import ApplyResult, Group
from tests.lib.prometheus import Family, Malformed, parse
from tests.lib.scheduler_fixture import SchedulerFixture


async def _refused(groups: tuple[Group, ...]) -> ApplyResult:
    raise AssertionError(groups)


def _manager(*, leads: bool) -> Any:
    cluster = SchedulerFixture()
    cluster.node("one")
    cluster.node("two", state=NodeState.DOWN)
    cluster.service("web")
    first, *_ = cluster.place("web", 3)
    cluster.end(first, TaskState.FAILED)
    status = RaftStatus(
        raft_id=1,
        role="leader" if leads else "follower",
        term=7,
        leader=Member(raft_id=1, node_id="one", addr="192.0.2.1:7946"),
        commit=40,
        applied=39,
        last_index=41,
        snapshot_index=0,
        members=(Member(raft_id=1, node_id="one", addr="192.0.2.1:7946"),),
        peers=(),
        removed=False,
        missed_ticks=3,
        failure="",
    )
    duties = SimpleNamespace(
        control=ControlLoop(cluster.store, _refused, lambda: "id"),
        dispatcher=SimpleNamespace(sessions={"one": object(), "two": object()}),
    )
    return SimpleNamespace(
        raft=object(), store=cluster.store, status=status, leadership=duties if leads else None
    )


def _member(manager: Any = None, *, node_id: str = "n1", swarm_id: str = "s1") -> Any:
    runners = {
        str(number): SimpleNamespace(status=SimpleNamespace(state=state))
        for number, state in enumerate((TaskState.RUNNING, TaskState.RUNNING, TaskState.PREPARING))
    }
    return SimpleNamespace(
        membership=SimpleNamespace(node_id=node_id, cluster_id=swarm_id),
        session=SimpleNamespace(connected=SimpleNamespace(is_set=lambda: True)),
        worker=SimpleNamespace(runners=runners),
        manager=manager,
    )


def page(member: Any) -> str:
    """What a scrape gets from a node with this membership; ``None``: outside any swarm."""
    manager = getattr(member, "manager", None)
    observed: Any = SimpleNamespace(
        member=member,
        is_manager=manager is not None,
        is_leader=manager is not None and manager.leadership is not None,
    )
    status, kind, text = ObserveServer(observed)._answer("/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return text


def value(found: dict[str, Family], name: str, **labels: str) -> float:
    return found[name].samples[tuple(sorted(labels.items()))]


def test_a_leader_serves_every_declared_metric() -> None:
    found = parse(page(_member(_manager(leads=True))))
    assert {name: (family.kind, family.help) for name, family in found.items()} == {
        name: (metric.kind, metric.help) for name, metric in METRICS.items()
    }
    assert value(found, "swarm_manager_leader") == 1
    assert value(found, "swarm_raft_term") == 7
    assert value(found, "swarm_raft_missed_ticks_total") == 3
    assert found["swarm_manager_nodes"].samples == {(("state", "ready"),): 1, (("state", "down"),): 1}
    assert found["swarm_manager_tasks_total"].samples == {
        (("state", "assigned"),): 2,
        (("state", "failed"),): 1,
    }
    assert found["swarm_agent_tasks"].samples == {(("state", "running"),): 2, (("state", "preparing"),): 1}
    assert value(found, "swarm_manager_sessions") == 2


def test_every_role_serves_its_share() -> None:
    outside = set(parse(page(None)))
    worker = set(parse(page(_member())))
    follower = set(parse(page(_member(_manager(leads=False)))))
    leader = set(parse(page(_member(_manager(leads=True)))))
    assert outside < worker < follower < leader
    assert "swarm_agent_info" in outside
    assert "swarm_node_info" in worker - outside
    assert "swarm_raft_term" in follower - worker
    assert "swarm_control_passes_total" in leader - follower


def test_a_metric_without_samples_is_left_out() -> None:
    member = _member()
    member.worker.runners = {}
    assert "swarm_agent_tasks" not in parse(page(member))


@pytest.mark.parametrize("odd", ['a"b', "a\\b", "a\nb", 'a\\"\n', "\\n", 'x",state="y', "ü"])
def test_values_of_labels_come_back_as_they_were(odd: str) -> None:
    found = parse(page(_member(node_id=odd, swarm_id="s")))
    assert list(found["swarm_node_info"].samples) == [(("node_id", odd), ("swarm_id", "s"))]


def test_values_of_a_label_that_is_counted_by_are_escaped_and_sorted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swarm_agent.observe.metrics.METRICS", {})
    text = Metric("things", "gauge", 'a \\ in a\nhelp with "quotes"').text_by("kind", {'b"': 2, "a\\": 0.5})
    assert text.splitlines()[2:] == ['things{kind="a\\\\"} 0.5', 'things{kind="b\\""} 2']
    assert parse(text)["things"].help == 'a \\ in a\nhelp with "quotes"'


@pytest.mark.parametrize(
    ("name", "kind"),
    [("things", "counter"), ("Things", "gauge"), ("", "gauge"), ("swarm_agent_info", "gauge")],
)
def test_a_bad_declaration_is_refused(name: str, kind: str) -> None:
    with pytest.raises(ValueError, match=r"_total|already"):
        Metric(name, kind, "text")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("a 1\n", "without HELP and TYPE"),
        ("# TYPE a gauge\na 1\n", "neither HELP"),
        ("# HELP a text\na 1\n", "no TYPE of a"),
        ("# HELP a text\n# TYPE b gauge\na 1\n", "no TYPE of a"),
        ("# HELP a text\n# TYPE a gauge\nb 1\n", "without HELP and TYPE"),
        ("# HELP a text\n# TYPE a gauge\n", "no samples of a"),
        ("# HELP a text\n", "no samples of a"),
        ("# HELP a text\n# TYPE a gauge\n# HELP b text\n# TYPE b gauge\nb 1\n", "no samples of a"),
        ("# HELP a text\n# TYPE a gauge\na 1\na 2\n", "a series twice"),
        ('# HELP a text\n# TYPE a gauge\na{x="1",y="2"} 1\na{y="2",x="1"} 2\n', "a series twice"),
        (
            '# HELP a text\n# TYPE a gauge\na{x="1"} 1\n# HELP a text\n# TYPE a gauge\na{x="2"} 1\n',
            "two places",
        ),
        ('# HELP a text\n# TYPE a gauge\na{x="b"c"} 1\n', "labels"),
        ('# HELP a text\n# TYPE a gauge\na{x="b\\c"} 1\n', "labels"),
        ('# HELP a text\n# TYPE a gauge\na{x="b\nc"} 1\n', "neither HELP"),
        ('# HELP a text\n# TYPE a gauge\na{x="1",x="2"} 1\n', "labels"),
        ('# HELP a text\n# TYPE a gauge\na{x="1",} 1\n', "labels"),
        ("# HELP a text\n# TYPE a gauge\na one\n", "neither HELP"),
        ("# HELP a text\n# TYPE a gauge\na 1", "does not end"),
        ("# HELP a te\\xt\n# TYPE a gauge\na 1\n", "neither HELP"),
        ("# HELP a text\n# TYPE a counter\na 1\n", "not in _total"),
    ],
)
def test_the_parser_lets_nothing_pass(bad: str, said: str) -> None:
    with pytest.raises(Malformed, match=said):
        parse(bad)
