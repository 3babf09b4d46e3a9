"""What is refused before it is stored, with Docker's words and status."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from swarm_agent.objects import validate
from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.normalise import normalise
from swarm_agent.objects.specs import ClusterSpec, NetworkCreate, NodeSpec, ServiceSpec

SERVICE: dict[str, Any] = {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "web:1"}}}


def changed(path: str, value: Any, document: dict[str, Any]) -> dict[str, Any]:
    out = copy.deepcopy(document)
    *folders, last = path.split(".")
    place = out
    for folder in folders:
        place = place.setdefault(folder, {})
    place[last] = value
    return out


def refusal(document: dict[str, Any]) -> SwarmError:
    with pytest.raises(SwarmError) as err:
        validate.service(normalise(document, ServiceSpec))
    return err.value


TASK = "TaskTemplate"
CONTAINER = f"{TASK}.ContainerSpec"


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("Name", "", "meta: name must be provided"),
        ("Name", "a b", "name must be valid as a DNS name component"),
        ("Name", "-a", "name must be valid as a DNS name component"),
        ("Name", "a_", "name must be valid as a DNS name component"),
        ("Name", "a.b", "name must be valid as a DNS name component"),
        ("Name", "a" * 64, "name must be 63 characters or fewer"),
        (f"{CONTAINER}.Image", "", "ContainerSpec: image reference must be provided"),
        (f"{CONTAINER}.Image", "a/UPPER", 'ContainerSpec: "a/UPPER" is not a valid repository/tag'),
        (f"{CONTAINER}.Image", "a b", 'ContainerSpec: "a b" is not a valid repository/tag'),
        (f"{CONTAINER}.Mounts", [{"Target": "/a"}, {"Target": "/a"}], "ContainerSpec: duplicate mount point: /a"),
        (f"{CONTAINER}.Healthcheck", {"Interval": 999_999}, "ContainerSpec: Interval in HealthConfig cannot be less than 1ms"),
        (f"{CONTAINER}.Healthcheck", {"Timeout": 1}, "ContainerSpec: Timeout in HealthConfig cannot be less than 1ms"),
        (f"{CONTAINER}.Healthcheck", {"StartPeriod": -1}, "ContainerSpec: StartPeriod in HealthConfig cannot be less than 1ms"),
        (f"{CONTAINER}.Healthcheck", {"StartInterval": 1}, "ContainerSpec: StartInterval in HealthConfig cannot be less than 1ms"),
        (f"{CONTAINER}.Healthcheck", {"Retries": -1}, "ContainerSpec: Retries in HealthConfig cannot be negative"),
        (f"{TASK}.Resources.Limits", {"NanoCPUs": 999_999}, "invalid cpu value 0.000999999: Must be at least 0.001"),
        (f"{TASK}.Resources.Reservations", {"NanoCPUs": -1}, "invalid cpu value -1e-09: Must be at least 0.001"),
        (f"{TASK}.Resources.Limits", {"MemoryBytes": 4194303}, "invalid memory value 4194303: Must be at least 4MiB"),
        (f"{TASK}.Resources.Reservations", {"MemoryBytes": 1}, "invalid memory value 1: Must be at least 4MiB"),
        (f"{TASK}.RestartPolicy", {"Delay": -1}, "TaskSpec: restart-delay cannot be negative"),
        (f"{TASK}.RestartPolicy", {"Window": -1}, "TaskSpec: restart-window cannot be negative"),
        ("UpdateConfig", {"Delay": -1}, "TaskSpec: update-delay cannot be negative"),
        ("RollbackConfig", {"Delay": -1}, "TaskSpec: update-delay cannot be negative"),
        ("UpdateConfig", {"Monitor": -1}, "TaskSpec: update-monitor cannot be negative"),
        ("UpdateConfig", {"MaxFailureRatio": 1.1}, "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"),
        ("RollbackConfig", {"MaxFailureRatio": -0.1}, "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"),
        (
            "EndpointSpec",
            {"Mode": "dnsrr", "Ports": [{"TargetPort": 1, "PublishedPort": 2}]},
            "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
        ),
        (
            "EndpointSpec",
            {"Ports": [{"TargetPort": 1, "PublishedPort": 2}, {"Protocol": "tcp", "TargetPort": 3, "PublishedPort": 2}]},
            "EndpointSpec: duplicate published ports provided",
        ),
        ("EndpointSpec", {"Ports": [{"PublishedPort": 2}]}, "EndpointSpec: a published port needs a target port"),
        ("EndpointSpec", {"Ports": [{"TargetPort": 70000}]}, "EndpointSpec: TargetPort 70000 is not in the range 0 to 65535"),
        ("Mode.Replicated", {"Replicas": -1}, "Number of replicas must be non-negative"),
    ],
)  # fmt: skip
def test_a_service_that_cannot_be(path: str, value: Any, text: str) -> None:
    err = refusal(changed(path, value, SERVICE))
    assert str(err) == text
    assert (err.http_status, err.code) == (400, "InvalidArgument")


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (CONTAINER, None, "mismatched Runtime and *Spec fields"),
        ("Mode", {"Replicated": {}, "Global": {}}, "must specify only one service mode"),
        (f"{TASK}.RestartPolicy", {"Condition": "sometimes"}, 'invalid RestartCondition: "sometimes"'),
        ("UpdateConfig", {"FailureAction": "panic"}, "unrecognized update failure action panic"),
        ("UpdateConfig", {"Order": "any"}, "unrecognized update order any"),
        ("EndpointSpec", {"Mode": "anycast"}, 'invalid resolution mode: "anycast"'),
        (f"{CONTAINER}.Mounts", [{"Type": "nfs", "Target": "/a"}], 'invalid MountType: "nfs"'),
    ],
)
def test_words_docker_does_not_know(path: str, value: Any, text: str) -> None:
    """Its HTTP layer refuses these itself: no gRPC prefix."""
    err = refusal(changed(path, value, SERVICE))
    assert (str(err), err.http_status, err.code) == (text, 400, "")


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"NamedResourceSpec": {"Kind": "gpu", "Value": "a"}}, "asks for a number of a kind"),
        ({"DiscreteResourceSpec": {"Value": 1}}, "needs a Kind"),
        ({"DiscreteResourceSpec": {"Kind": "gpu", "Value": 0}}, "ask for 1 gpu or more"),
        ({}, "needs a Kind"),
    ],
)
def test_generic_resources_are_asked_for_by_number(wanted: Any, text: str) -> None:
    err = refusal(changed(f"{TASK}.Resources.Reservations", {"GenericResources": [wanted]}, SERVICE))
    assert text in str(err)
    assert "Reservations.GenericResources[0]" in str(err)


def test_a_spread_over_nothing_a_node_has_is_refused() -> None:
    over = {"Preferences": [{"Spread": {"SpreadDescriptor": "node.zone"}}]}
    err = refusal(changed(f"{TASK}.Placement", over, SERVICE))
    assert "Placement.Preferences[0]" in str(err)
    assert "node.labels.KEY" in str(err)


def test_a_bad_constraint_is_dockers_500() -> None:
    err = refusal(changed(f"{TASK}.Placement", {"Constraints": ["node.role"]}, SERVICE))
    assert str(err) == "constraint expected one operator from ==, !="
    assert (err.http_status, err.code) == (500, "Unknown")


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (f"{TASK}.PluginSpec", {"Name": "p"}, "plugin services"),
        (f"{TASK}.NetworkAttachmentSpec", {"ContainerID": "c"}, "network attachment tasks"),
        (f"{CONTAINER}.Privileges", {"CredentialSpec": {"File": "f"}}, "credential specs"),
        (f"{CONTAINER}.Isolation", "hyperv", "isolation"),
        (f"{CONTAINER}.Mounts", [{"Type": "npipe", "Target": "/a"}], "named pipe mounts"),
        (f"{CONTAINER}.Mounts", [{"Type": "cluster", "Target": "/a"}], "cluster volumes"),
        ("EndpointSpec", {"Mode": "dnsrr"}, "endpoint mode dnsrr"),
        ("EndpointSpec", {"Ports": [{"Protocol": "sctp", "TargetPort": 1}]}, "SCTP ports"),
    ],
)  # fmt: skip
def test_what_docker_knows_and_we_do_not_is_refused_by_name(path: str, value: Any, what: str) -> None:
    err = refusal(changed(path, value, SERVICE))
    assert what in str(err)
    assert "not supported by this version of swarm-agent" in str(err)
    assert (err.http_status, err.code) == (501, "Unimplemented")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("Name", "a-b_c9"),
        ("Name", "a" * 63),
        ("Mode.Replicated", {"Replicas": 0}),
        (f"{CONTAINER}.Image", "registry.example:5000/a/b_c:tag@sha256:" + "0" * 64),
        (f"{CONTAINER}.Image", "sha256:" + "a" * 64),
        (f"{CONTAINER}.Healthcheck", {"Interval": 0, "Timeout": 1_000_000, "Retries": 0}),
        (f"{TASK}.Resources", {"Limits": {"NanoCPUs": 1_000_000, "MemoryBytes": 4194304}}),
        ("UpdateConfig", {"MaxFailureRatio": 1, "Parallelism": 0}),
        ("EndpointSpec", {"Ports": [{"TargetPort": 1}, {"TargetPort": 1}]}),
        ("EndpointSpec", {"Ports": [{"TargetPort": 1, "PublishedPort": 5}, {"Protocol": "udp", "TargetPort": 1, "PublishedPort": 5}]}),
        (f"{CONTAINER}.Isolation", "default"),
    ],
)  # fmt: skip
def test_what_may_be(path: str, value: Any) -> None:
    validate.service(normalise(changed(path, value, SERVICE), ServiceSpec))


@pytest.mark.parametrize(
    ("spec", "text", "code"),
    [
        ({"Role": "boss"}, 'invalid Role: "boss"', ""),
        ({"Availability": "off"}, 'invalid Availability: "off"', ""),
    ],
)
def test_nodes(spec: dict[str, Any], text: str, code: str) -> None:
    with pytest.raises(SwarmError) as err:
        validate.node(normalise(spec, NodeSpec))
    assert (str(err.value), err.value.http_status, err.value.code) == (text, 400, code)


@pytest.mark.parametrize(
    ("spec", "text", "status"),
    [
        ({"Name": "mine"}, 'swarm spec must be named "default"', 400),
        (
            {"CAConfig": {"NodeCertExpiry": 3600 * 10**9 - 1}},
            "minimum certificate expiry time is: 1h0m0s",
            400,
        ),
        ({"Dispatcher": {"HeartbeatPeriod": -1}}, "heartbeat time period cannot be a negative duration", 400),
        ({"CAConfig": {"ExternalCAs": [{"URL": "https://x"}]}}, "external CAs", 501),
        ({"CAConfig": {"ForceRotate": 1}}, "root CA rotation", 501),
        ({"CAConfig": {"SigningCACert": "x"}}, "root CA rotation", 501),
    ],
)
def test_the_cluster(spec: dict[str, Any], text: str, status: int) -> None:
    with pytest.raises(SwarmError, match=text) as err:
        validate.cluster(normalise(spec, ClusterSpec))
    assert err.value.http_status == status


@pytest.mark.parametrize(
    ("spec", "text", "status"),
    [
        ({}, "meta: name must be provided", 400),
        ({"Name": "a/b"}, "name must be valid as a DNS name component", 400),
        ({"Name": "a", "Driver": "weave"}, "plugin weave not supported", 400),
        ({"Name": "a", "Attachable": True}, "attachable", 501),
        ({"Name": "a", "EnableIPv6": True}, "IPv6", 501),
        ({"Name": "a", "Ingress": True}, "ingress", 501),
        ({"Name": "a", "ConfigOnly": True}, "config-only", 501),
        ({"Name": "a", "ConfigFrom": {"Network": "b"}}, "config-only", 501),
        ({"Name": "a", "Options": {"encrypted": ""}}, "encryption", 501),
        ({"Name": "a", "Options": {"x": ""}}, "network option x", 501),
        ({"Name": "a", "IPAM": {"Driver": "dhcp"}}, "plugin dhcp not supported", 400),
        ({"Name": "a", "IPAM": {"Config": [{"Subnet": "10.0.0.1/24"}]}}, "invalid subnet 10.0.0.1/24", 400),
        ({"Name": "a", "IPAM": {"Config": [{"Subnet": "x"}]}}, "invalid subnet x", 400),
        ({"Name": "a", "IPAM": {"Config": [{}]}}, "invalid subnet", 400),
        ({"Name": "a", "IPAM": {"Config": [{"Subnet": "10.0.0.0/30"}]}}, "smaller than /29", 400),
        ({"Name": "a", "IPAM": {"Config": [{"Subnet": "10.0.0.0/24", "Gateway": "10.0.1.1"}]}}, "does not contain gateway 10.0.1.1", 400),
        ({"Name": "a", "IPAM": {"Config": [{"Subnet": "10.0.0.0/24", "Gateway": "x"}]}}, "invalid gateway x", 400),
        ({"Name": "a", "IPAM": {"Config": [{"Subnet": "10.0.0.0/24", "IPRange": "10.0.0.0/25"}]}}, "--ip-range", 501),
        ({"Name": "a", "IPAM": {"Config": [{"Subnet": "10.0.0.0/24"}, {"Subnet": "10.0.1.0/24"}]}}, "more than one subnet", 501),
    ],
)  # fmt: skip
def test_networks(spec: dict[str, Any], text: str, status: int) -> None:
    with pytest.raises(SwarmError, match=text) as err:
        validate.network(normalise(spec, NetworkCreate))
    assert err.value.http_status == status


def test_networks_as_the_cli_sends_them() -> None:
    sent = {
        "Name": "n", "CheckDuplicate": True, "Driver": "overlay", "Scope": "", "Internal": False, "Attachable": False,
        "Ingress": False, "ConfigOnly": False, "ConfigFrom": {"Network": ""}, "EnableIPv6": False, "Options": {}, "Labels": {},
        "IPAM": {"Driver": "default", "Options": {}, "Config": []},
    }  # fmt: skip
    validate.network(normalise(sent, NetworkCreate))


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (f"{TASK}.Resources", {"SwapBytes": 5}, "a swap limit needs a memory limit beside it"),
        (f"{TASK}.Resources", {"SwapBytes": -2, "Limits": {"MemoryBytes": 10**9}}, "invalid swap value -2"),
        (f"{TASK}.Resources", {"MemorySwappiness": 101}, "invalid memory swappiness 101"),
        (f"{CONTAINER}.Privileges", {"Seccomp": {"Mode": "x"}}, 'invalid Seccomp mode: "x"'),
        (f"{CONTAINER}.Privileges", {"AppArmor": {"Mode": "custom"}}, 'invalid AppArmor mode: "custom"'),
        (f"{CONTAINER}.Privileges", {"Seccomp": {"Mode": "custom", "Profile": "%"}}, "illegal base64 data"),
        (f"{CONTAINER}.Env", ["A={{.Nope}}"], "can't evaluate field Nope"),
        (f"{CONTAINER}.Hostname", "{{", "unclosed action"),
        (f"{CONTAINER}.Configs", [{"ConfigID": "c", "ConfigName": "c", "Runtime": {}}], "--credential-spec"),
    ],
)  # fmt: skip
def test_what_containers_cannot_be_asked(path: str, value: Any, text: str) -> None:
    assert text in str(refusal(changed(path, value, SERVICE)))


@pytest.mark.parametrize(
    ("labels", "mode", "text"),
    [
        ({"schedule": "@daily"}, {"Replicated": {}}, "only jobs run by a timetable"),
        ({"schedule": "@dayly"}, {"ReplicatedJob": {}}, "has 1 fields, not 5"),
        ({"singleton": "strict"}, {"Replicated": {"Replicas": 2}}, "a replicated service of one replica"),
        ({"rebalance": "on-join"}, {"Global": {}}, "it means nothing in a global service: only replicated services are evened out"),
        ({"update.progress-deadline": "1m"}, {"GlobalJob": {}}, "a job is not updated"),
        ({"placement.strategy": "binpack"}, {"Global": {}}, "each node has its task"),
        ({"secret.db": "track"}, {"Replicated": {}}, "the service uses no secret db"),
        ({"depends-on": "web"}, {"Replicated": {}}, "a service cannot wait for itself"),
    ],
)  # fmt: skip
def test_labels_against_the_rest_of_the_spec(labels: dict[str, str], mode: dict[str, Any], text: str) -> None:
    spec = {
        **SERVICE,
        "Name": "web",
        "Mode": mode,
        "Labels": {f"swarm-agent.{k}": v for k, v in labels.items()},
    }
    for part in ("UpdateConfig", "RollbackConfig"):
        spec.pop(part, None)
    assert text in str(refusal(spec))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("TaskTemplate.RestartPolicy", {"Delay": (1 << 64) - 1}),
        ("TaskTemplate.RestartPolicy", {"Window": 1 << 63}),
        ("TaskTemplate.ContainerSpec.StopGracePeriod", 1 << 63),
        ("UpdateConfig", {"Monitor": 1 << 63}),
        ("RollbackConfig", {"Delay": 1 << 63}),
    ],
)
def test_durations_that_no_time_can_be_counted_on_by(path: str, value: Any) -> None:
    """A task's start would not fit into the log, and no leader could write it."""
    assert "ns is longer than 292 years" in str(refusal(changed(path, value, SERVICE)))
