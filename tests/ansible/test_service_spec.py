"""Options of swarm_service and the specification: for every option, stated once, again, changed, changed back."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import yaml
from ansible_collections.swarm.cluster.plugins.module_utils import _compare, _service
from ansible_collections.swarm.cluster.plugins.module_utils._units import Invalid

NETWORKS = {"front": "n1", "back": "n2"}

# For every option, a value and another one. A new option without a line here fails the test below.
VALUES: dict[str, tuple[Any, Any]] = {
    "image": ("web:v1", "web:v2"),
    "command": (["/server"], ["/server", "-v"]),
    "args": (["web", "v1"], ["web", "v2"]),
    "env": ({"A": "1", "B": "x y"}, {"A": "2"}),
    "labels": ({"team": "a"}, {"team": "b"}),
    "container_labels": ({"tier": "front"}, {}),
    "replicas": (3, 0),
    "publish": (
        [{"published": 80, "target": 8080, "protocol": "tcp", "mode": "ingress"}],
        [{"published": None, "target": 8080, "protocol": "udp", "mode": "host"}],
    ),
    "endpoint_mode": ("dnsrr", "vip"),
    "networks": ([{"name": "front", "aliases": ["w"]}], [{"name": "back", "aliases": []}]),
    "mounts": (
        [
            {
                "type": "bind",
                "source": "/srv",
                "target": "/data",
                "read_only": True,
                "propagation": "rslave",
                "tmpfs_size": None,
            }
        ],
        [
            {
                "type": "tmpfs",
                "source": None,
                "target": "/data",
                "read_only": False,
                "propagation": None,
                "tmpfs_size": "64M",
            }
        ],
    ),
    "constraints": (["node.role==manager", "node.labels.a != b"], []),
    "preferences": (["node.labels.zone"], ["node.labels.rack"]),
    "max_replicas_per_node": (2, 0),
    "limits": ({"cpus": 0.5, "memory": "64M", "pids": 50}, {"cpus": 1.0, "memory": "128M", "pids": 60}),
    "reservations": ({"cpus": 0.25, "memory": "32M"}, {"cpus": 0.5, "memory": "16M"}),
    "restart_policy": (
        {"condition": "on-failure", "delay": "1s", "max_attempts": 3, "window": "1m"},
        {"condition": "any", "delay": "5s", "max_attempts": 0, "window": "0s"},
    ),
    "update_config": (
        {
            "parallelism": 2,
            "delay": "1s",
            "failure_action": "rollback",
            "monitor": "2s",
            "max_failure_ratio": 0.1,
            "order": "start-first",
        },
        {
            "parallelism": 0,
            "delay": "0s",
            "failure_action": "pause",
            "monitor": "5s",
            "max_failure_ratio": 0.0,
            "order": "stop-first",
        },
    ),
    "rollback_config": (
        {"parallelism": 2, "failure_action": "continue"},
        {"parallelism": 1, "failure_action": "pause"},
    ),
    "healthcheck": (
        {"test": ["CMD", "/probe"], "interval": "5s", "timeout": "2s", "start_period": "1s", "retries": 2},
        {"test": ["NONE"], "interval": "6s", "timeout": "3s", "start_period": "2s", "retries": 3},
    ),
    "stop_grace_period": ("30s", "10s"),
    "stop_signal": ("SIGINT", "SIGTERM"),
    "user": ("1000:1000", "root"),
    "working_dir": ("/srv", "/"),
    "hostname": ("{{.Task.Name}}", "web"),
    "hosts": ({"db": "10.0.0.5"}, {}),
    "groups": (["adm"], []),
    "dns": (["9.9.9.9"], []),
    "init": (True, False),
    "read_only": (True, False),
    "tty": (True, False),
    "cap_add": (["NET_ADMIN"], ["CAP_SYS_TIME"]),
    "cap_drop": (["ALL"], []),
    "sysctls": ({"net.core.somaxconn": "1024"}, {}),
    "log_driver": ({"name": "json-file", "options": {"max-size": "1m"}}, {"name": "local", "options": {}}),
}
LEFT_OUT = {"mode"}  # cannot change; has tests of its own


def wanted(**params: Any) -> list[_compare.Assignment]:
    found: list[_compare.Assignment] = _service.assignments(params, NETWORKS)
    return found


def test_every_option_has_values_here() -> None:
    assert set(_service.SPEC) == set(VALUES) | LEFT_OUT


@pytest.mark.parametrize("option", sorted(VALUES))
def test_stating_an_option_twice_changes_once_and_touches_nothing_else(option: str) -> None:
    one, other = VALUES[option]
    base = _service.new_spec("web", {})
    first = _compare.apply(base, wanted(**{option: one}))
    assert _compare.difference(base, wanted(**{option: one})), "a stated value has to be seen as a change"
    assert not _compare.difference(first, wanted(**{option: one}))
    changed = _compare.difference(first, wanted(**{option: other}))
    assert changed
    second = _compare.apply(first, changed)
    assert not _compare.difference(second, wanted(**{option: other}))
    assert not _compare.difference(_compare.apply(second, wanted(**{option: one})), wanted(**{option: one}))
    for neighbour in VALUES.keys() - {option}:
        before = _compare.apply(base, wanted(**{neighbour: VALUES[neighbour][0]}))
        after = _compare.apply(before, wanted(**{option: one}))
        assert not _compare.difference(after, wanted(**{neighbour: VALUES[neighbour][0]})), neighbour


def test_nothing_stated_is_nothing_to_do() -> None:
    assert wanted() == []
    assert wanted(**dict.fromkeys(_service.SPEC)) == []


def test_documentation_and_specification_name_the_same_options() -> None:
    module = importlib.import_module("ansible_collections.swarm.cluster.plugins.modules.swarm_service")
    documented = yaml.safe_load(module.DOCUMENTATION)["options"]
    own = {"name", "state", "resolve_image", "registry_auth", "force_update", "wait", "wait_timeout"}
    assert set(documented) == set(_service.SPEC) | own
    for option, spec in _service.SPEC.items():
        assert documented[option]["type"] == spec["type"], option
        assert documented[option].get("choices") == spec.get("choices"), option
        assert set(documented[option].get("suboptions", {})) == set(spec.get("options", {})), option


def test_a_digest_that_the_swarm_found_out_is_not_a_change() -> None:
    spec = {"TaskTemplate": {"ContainerSpec": {"Image": "registry:5000/web:latest@sha256:abc"}}}
    assert not _compare.difference(spec, wanted(image="registry:5000/web"))
    assert not _compare.difference(spec, wanted(image="registry:5000/web:latest"))
    assert _compare.difference(spec, wanted(image="registry:5000/web:2"))
    assert _compare.difference(spec, wanted(image="registry:5000/web:latest@sha256:def"))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("web", "web:latest"),
        ("registry:5000/web", "registry:5000/web:latest"),
        ("registry:5000/web:2@sha256:a", "registry:5000/web:2"),
    ],
)
def test_image_names(given: str, name: str) -> None:
    assert _service.image_name(given) == name


def test_defaults_of_the_server_say_the_same_as_nothing() -> None:
    params = {
        "update_config": {"parallelism": 1, "order": "stop-first", "monitor": "5s"},
        "restart_policy": {"condition": "any"},
    }
    assert not _compare.difference({}, wanted(**params))


def test_a_policy_that_begins_with_one_key_does_not_become_all_at_once() -> None:
    before: dict[str, Any] = {}
    after = _service.complete(before, _compare.apply(before, wanted(update_config={"monitor": "1s"})))
    assert after["UpdateConfig"]["Parallelism"] == 1
    assert after["UpdateConfig"]["Monitor"] == 10**9
    kept = _service.complete(
        {"UpdateConfig": {"Parallelism": 0}}, {"UpdateConfig": {"Parallelism": 0, "Monitor": 1}}
    )
    assert kept["UpdateConfig"] == {"Parallelism": 0, "Monitor": 1}


def test_order_of_sets_says_nothing_and_order_of_arguments_does() -> None:
    spec = _compare.apply({}, wanted(env={"B": "2", "A": "1"}, constraints=["a==b", "c==d"], args=["x", "y"]))
    assert not _compare.difference(spec, wanted(env={"A": "1", "B": "2"}, constraints=["c==d", "a==b"]))
    assert _compare.difference(spec, wanted(args=["y", "x"]))


def test_a_diff_shows_the_changed_places_alone() -> None:
    before = {"Labels": {"a": "1"}, "Mode": {"Replicated": {"Replicas": 2}}}
    changed = _compare.difference(before, wanted(replicas=3, labels={"a": "1"}))
    after = _compare.apply(before, changed)
    assert _compare.diff(before, after, changed) == {
        "before": {"Mode": {"Replicated": {"Replicas": 2}}},
        "after": {"Mode": {"Replicated": {"Replicas": 3}}},
    }
    assert before["Mode"] == {"Replicated": {"Replicas": 2}}, (
        "the specification that was read must stay as it was"
    )


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("replicas", {"mode": "global", "replicas": 2}),
        ("replicas", {"replicas": -1}),
        (
            "publish[0].published",
            {"publish": [{"published": 70000, "target": 80, "protocol": "tcp", "mode": "ingress"}]},
        ),
        (
            "publish[0].target",
            {"publish": [{"published": 80, "target": 0, "protocol": "tcp", "mode": "ingress"}]},
        ),
        ("constraints[1]", {"constraints": ["a==b", "a=b"]}),
        ("limits.memory", {"limits": {"memory": "1M"}}),
        ("limits.cpus", {"limits": {"cpus": 0.0001}}),
        ("limits.cpus", {"limits": {"cpus": -1}}),
        ("limits.pids", {"limits": {"pids": -1}}),
        ("healthcheck.test", {"healthcheck": {"test": ["/probe"]}}),
        ("update_config.max_failure_ratio", {"update_config": {"max_failure_ratio": 2}}),
        ("stop_grace_period", {"stop_grace_period": "soon"}),
        ("mounts[0].source", {"mounts": [{"type": "bind", "source": "data", "target": "/d"}]}),
        ("mounts[0].source", {"mounts": [{"type": "tmpfs", "source": "x", "target": "/d"}]}),
    ],
)
def test_senseless_values_are_refused_with_their_path(path: str, params: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as caught:
        wanted(**params)
    assert caught.value.path == path


@pytest.mark.parametrize("name", ["web", "web-1", "Web_2", "a" * 63])
def test_names(name: str) -> None:
    _service.check_name(name)


@pytest.mark.parametrize("name", ["", "a b", "-web", "web-", "a" * 64, "wéb", "web.1"])
def test_bad_names(name: str) -> None:
    with pytest.raises(Invalid):
        _service.check_name(name)


def test_a_global_service_begins_global() -> None:
    assert _service.mode_of(_service.new_spec("web", {"mode": "global"})) == "global"
    assert _service.mode_of(_service.new_spec("web", {})) == "replicated"


@pytest.mark.parametrize("kind", ["limits", "reservations"])
@pytest.mark.parametrize(
    ("zero", "key"),
    [({"memory": "0"}, "MemoryBytes"), ({"memory": "0M"}, "MemoryBytes"), ({"cpus": 0}, "NanoCPUs"), ({"cpus": 0.0}, "NanoCPUs")],
)  # fmt: skip
def test_zero_takes_a_limit_or_a_reservation_away_and_leaves_the_other(
    kind: str, zero: dict[str, Any], key: str
) -> None:
    stated = {"cpus": 0.5, "memory": "64M"}
    base = _compare.apply(_service.new_spec("web", {}), wanted(**{kind: stated}))
    after = _compare.apply(base, wanted(**{kind: zero}))
    left = after["TaskTemplate"]["Resources"][kind.capitalize()]
    assert set(left) == {"MemoryBytes", "NanoCPUs"} - {key}
    assert _compare.difference(base, wanted(**{kind: zero})), "it has to be seen as a change"
    assert not _compare.difference(after, wanted(**{kind: zero})), "and once only"
    assert not _compare.difference(_service.new_spec("web", {}), wanted(**{kind: zero})), (
        "none is there to begin with"
    )
