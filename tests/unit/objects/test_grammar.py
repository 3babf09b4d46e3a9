"""Small grammars: image references, constraints, ids; and the defaults."""

from __future__ import annotations

import random

import msgspec
import pytest

from swarm_agent.objects import defaults
from swarm_agent.objects.constraints import BadConstraint, node_matches, parse_constraint
from swarm_agent.objects.ids import base36, is_id, new_id
from swarm_agent.objects.images import ImageReference, is_image_id, parse_image
from swarm_agent.objects.normalise import normalise
from swarm_agent.objects.records import Node, NodeDescription, NodeStatus
from swarm_agent.objects.specs import ClusterSpec, NodeSpec, ServiceSpec, UpdateConfig

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("nginx", ("nginx", "", "")),
        ("nginx:1.25-alpine", ("nginx", "1.25-alpine", "")),
        ("a/b/c", ("a/b/c", "", "")),
        ("localhost:5000/a:b", ("localhost:5000/a", "b", "")),
        ("Registry.Example.com/a", ("Registry.Example.com/a", "", "")),
        ("a__b/c--d.e", ("a__b/c--d.e", "", "")),
        (f"a@{DIGEST}", ("a", "", DIGEST)),
        (f"host/a:t@{DIGEST}", ("host/a", "t", DIGEST)),
        ("a:" + "t" * 128, ("a", "t" * 128, "")),
    ],
)
def test_image_references(text: str, parts: tuple[str, str, str]) -> None:
    assert parse_image(text) == ImageReference(*parts)


@pytest.mark.parametrize(
    "text",
    ["", "A", "a b", "a:", "a:" + "t" * 129, "a/", "/a", "a//b", "a@sha256:12", "a:t:u/", "-a", "a-", "a___b", "a" * 256, "host/A", "a\n"],
)  # fmt: skip
def test_what_is_no_image_reference(text: str) -> None:
    assert parse_image(text) is None


def test_image_ids() -> None:
    assert is_image_id("f" * 64)
    assert is_image_id("sha256:" + "f" * 64)
    assert not is_image_id("f" * 63)


NODE = Node(
    id="n0de",
    spec=NodeSpec(labels={"zone": "East", "Case": "x"}),
    role="manager",
    description=NodeDescription(hostname="Host1", os="linux", architecture="x86_64", engine_labels={"disk": "ssd"}),
    status=NodeStatus(addr="10.1.2.3"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("node.id==n0de", True),
        ("node.id == N0DE", True),
        ("node.id!=n0de", False),
        ("node.hostname==host1", True),
        ("node.hostname!=host2", True),
        ("NODE.ROLE==Manager", True),
        ("node.role==worker", False),
        ("node.platform.os==linux", True),
        ("node.platform.arch==x86_64", True),
        ("node.platform.arch==amd64", False),
        ("node.ip==10.1.2.3", True),
        ("node.ip==10.1.0.0/16", True),
        ("node.ip!=10.1.0.0/16", False),
        ("node.ip==10.2.0.0/16", False),
        ("node.ip==nonsense", False),
        ("node.ip!=nonsense", False),
        ("node.labels.zone==east", True),
        ("Node.Labels.zone==EAST", True),
        ("node.labels.case==x", False),
        ("node.labels.none!=x", True),
        ("node.labels.none==x", False),
        ("engine.labels.disk==ssd", True),
        ("engine.labels.disk==s*", False),
        ("node.colour==red", False),
        ("node.colour!=red", False),
        ("node.id==a!=b", None),
    ],
)
def test_constraints(text: str, *, matches: bool | None) -> None:
    if matches is None:
        with pytest.raises(BadConstraint):
            parse_constraint(text)
    else:
        assert node_matches((text,), NODE) is matches


def test_constraints_are_anded() -> None:
    assert node_matches((), NODE)
    assert not node_matches(("node.role==manager", "node.id==other"), NODE)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("node.role", "constraint expected one operator from ==, !="),
        ("node.role=manager", "constraint expected one operator from ==, !="),
        ("", "constraint expected one operator from ==, !="),
        ("==x", "key '' is invalid"),
        ("9key==x", "key '9key' is invalid"),
        ("no de==x", "key 'no de' is invalid"),
        ("node.id==", "value '' is invalid"),
        ("node.id==a;b", "value 'a;b' is invalid"),
        ("node.id===a", "value '=a' is invalid"),
    ],
)
def test_bad_constraints(text: str, error: str) -> None:
    with pytest.raises(BadConstraint) as err:
        parse_constraint(text)
    assert str(err.value) == error


def test_ids() -> None:
    rng = random.Random(1)
    ids = {new_id(rng) for _ in range(500)}
    assert len(ids) == 500
    assert all(is_id(i) for i in ids)
    assert not is_id("A" * 25)
    assert not is_id("a" * 24)
    assert base36(0, 3) == "000"
    assert base36(35 * 36 + 10, 4) == "00za"


# --- defaults ------------------------------------------------------------------------------------------------------------
SENT = {
    "Name": "w",
    "TaskTemplate": {"ContainerSpec": {"Image": "a"}},
    "Mode": {"Replicated": {"Replicas": 1}},
}
ALL_AT_DEFAULT = {"Parallelism": 1, "FailureAction": "pause", "Monitor": 5 * 10**9, "MaxFailureRatio": 0.0, "Order": "stop-first"}  # fmt: skip


def test_insert_defaults_adds_what_docker_adds() -> None:
    shown = msgspec.to_builtins(defaults.with_defaults(normalise(SENT, ServiceSpec)))
    assert shown == {
        "Name": "w",
        "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {"Image": "a", "StopGracePeriod": 10 * 10**9, "DNSConfig": {}},
            "Resources": {"Limits": {}, "Reservations": {}},
            "RestartPolicy": {"Condition": "any", "Delay": 5 * 10**9, "MaxAttempts": 0},
            "Placement": {},
            "ForceUpdate": 0,
        },
        "Mode": {"Replicated": {"Replicas": 1}},
        "UpdateConfig": ALL_AT_DEFAULT,
        "RollbackConfig": ALL_AT_DEFAULT,
        "EndpointSpec": {"Mode": "vip"},
    }


def test_insert_defaults_changes_nothing_that_is_there() -> None:
    given = {
        **SENT,
        "TaskTemplate": {
            "ContainerSpec": {"Image": "a", "StopGracePeriod": 0},
            "RestartPolicy": {"Condition": "none", "Delay": 0, "MaxAttempts": 3, "Window": 9},
            "Resources": {"Limits": {"Pids": 1}},
        },
        "UpdateConfig": {"Parallelism": 0, "MaxFailureRatio": 0.5},
        "EndpointSpec": {"Mode": "vip", "Ports": [{"TargetPort": 80}]},
    }
    spec = normalise(given, ServiceSpec)
    shown = defaults.with_defaults(spec)
    assert shown.update_config == spec.update_config
    assert shown.task_template.restart_policy == spec.task_template.restart_policy
    assert shown.endpoint_spec == spec.endpoint_spec
    assert defaults.with_defaults(shown) == shown


def test_zero_and_absent_differ_where_go_has_pointers() -> None:
    template = normalise({"TaskTemplate": {"RestartPolicy": {"Delay": 0}}}, ServiceSpec).task_template
    assert defaults.restart(template).delay == 0
    assert defaults.restart(ServiceSpec().task_template) == ("any", 5 * 10**9, 0, 0)
    assert defaults.update(UpdateConfig(parallelism=0)).parallelism == 0
    assert defaults.update(None).parallelism == 1
    assert defaults.update(UpdateConfig(monitor=0)).monitor == 5 * 10**9


def test_the_clusters_defaults() -> None:
    spec = defaults.cluster_defaults(
        normalise({"Raft": {"ElectionTick": 0}, "Dispatcher": {}, "Labels": None}, ClusterSpec)
    )
    assert msgspec.to_builtins(spec) == {
        "Name": "default",
        "Labels": {},
        "Orchestration": {"TaskHistoryRetentionLimit": 5},
        "Raft": {"SnapshotInterval": 10000, "KeepOldSnapshots": 0, "LogEntriesForSlowFollowers": 500, "ElectionTick": 10, "HeartbeatTick": 1},
        "Dispatcher": {"HeartbeatPeriod": 5 * 10**9},
        "CAConfig": {"NodeCertExpiry": 7776000000000000},
        "TaskDefaults": {},
        "EncryptionConfig": {"AutoLockManagers": False},
    }  # fmt: skip
    kept = normalise({"Orchestration": {"TaskHistoryRetentionLimit": 0}}, ClusterSpec)
    assert defaults.history_limit(kept) == 0, "no history is a choice, not a missing value"
