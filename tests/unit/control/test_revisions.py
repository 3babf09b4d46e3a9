"""A revision's id follows what the spec means, not how a client writes it."""

from __future__ import annotations

import pytest

from swarm_agent.control.revisions import revision_of
from swarm_agent.objects.normalise import normalise
from swarm_agent.objects.specs import ServiceSpec

SENT: dict[str, object] = {
    "Name": "web",
    "TaskTemplate": {"ContainerSpec": {"Image": "web:1", "Init": False, "DNSConfig": {}}, "ForceUpdate": 0},
    "Mode": {"Replicated": {"Replicas": 2}},
    "EndpointSpec": {"Ports": [{"TargetPort": 80, "PublishedPort": 8080}]},
}


def digest(raw: dict[str, object]) -> str:
    return revision_of("s", normalise(raw, ServiceSpec), ()).id


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("TaskTemplate.Runtime", "container"),
        ("TaskTemplate.ContainerSpec.Isolation", "default"),
        ("TaskTemplate.ContainerSpec.Env", []),
        ("TaskTemplate.ContainerSpec.ReadOnly", False),
        ("TaskTemplate.Resources", {"Limits": {}, "Reservations": {"NanoCPUs": 0}}),
        ("TaskTemplate.Placement", {}),
        ("EndpointSpec.Mode", "vip"),
        ("Labels", {"a": "b"}),
        ("Mode", {"Replicated": {"Replicas": 9}}),
        ("UpdateConfig", {"Parallelism": 3}),
    ],
)
def test_what_means_the_same_is_the_same_revision(path: str, value: object) -> None:
    assert digest(changed(path, value)) == digest(SENT)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("TaskTemplate.ContainerSpec.Image", "web:2"),
        ("TaskTemplate.ForceUpdate", 1),
        ("TaskTemplate.ContainerSpec.StopGracePeriod", 0),
        ("TaskTemplate.ContainerSpec.Init", True),
        ("TaskTemplate.RestartPolicy", {"Delay": 0}),
        ("EndpointSpec.Ports", [{"TargetPort": 80, "PublishedPort": 8081}]),
    ],
)
def test_what_means_something_else_is_another_revision(path: str, value: object) -> None:
    assert digest(changed(path, value)) != digest(SENT)


def changed(path: str, value: object) -> dict[str, object]:
    *parents, last = path.split(".")

    def put(node: dict[str, object], rest: list[str]) -> dict[str, object]:
        if not rest:
            return {**node, last: value}
        inner = node.get(rest[0])
        assert isinstance(inner, dict)
        return {**node, rest[0]: put(inner, rest[1:])}

    return put(SENT, parents)
