"""From a client's JSON into the vocabulary: what is forgiven, what is refused, and with which words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.objects.normalise import Malformed, normalise, parse_json
from swarm_agent.objects.specs import (
    ClusterSpec,
    ConfigSpec,
    InitRequest,
    JoinRequest,
    NetworkCreate,
    NodeSpec,
    SecretSpec,
    ServiceSpec,
)


def shown(spec: msgspec.Struct) -> Any:
    return msgspec.json.decode(msgspec.json.encode(spec))


def test_keys_in_any_case_nulls_and_unknown_keys() -> None:
    spec = normalise(
        {
            "nAmE": "web",
            "LABELS": {"KEY": "v", "key": "w", "null": None},
            "tasktemplate": {"containerspec": {"IMAGE": "a", "env": None, "tty": True, "Frobnicate": [1]}},
            "Bogus": {"a": 1},
            "endpointspec": None,
        },
        ServiceSpec,
    )
    assert spec.name == "web"
    assert spec.labels == {"KEY": "v", "key": "w", "null": ""}, "keys of free maps are values, and stay"
    container = spec.task_template.container_spec
    assert container is not None
    assert (container.image, container.env, container.tty) == ("a", None, True)
    assert spec.endpoint_spec is None


def test_names_that_are_no_pascal_case() -> None:
    """The health check's key is one word on the wire; acronyms stay upper case; Global is Python's keyword."""
    sent = {
        "TaskTemplate": {
            "ContainerSpec": {"Healthcheck": {"Test": ["NONE"]}, "DNSConfig": {"Search": ["x"]}, "TTY": True},
            "Resources": {"Limits": {"NanoCPUs": 10**9, "Pids": 5}},
        },
        "Mode": {"Global": {}},
    }
    assert shown(normalise(sent, ServiceSpec))["TaskTemplate"] == {
        **sent["TaskTemplate"],
        "ForceUpdate": 0,
    }
    assert normalise(sent, ServiceSpec).mode.global_ is not None


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("x", "json: cannot unmarshal string into Go value of type swarm.ServiceSpec"),
        ([], "json: cannot unmarshal array into Go value of type swarm.ServiceSpec"),
        (7, "json: cannot unmarshal number into Go value of type swarm.ServiceSpec"),
        ({"Name": 1}, "json: cannot unmarshal number into Go struct field ServiceSpec.Name of type string"),
        (
            {"TaskTemplate": {"ContainerSpec": {"TTY": "yes"}}},
            "json: cannot unmarshal string into Go struct field ServiceSpec.TaskTemplate.ContainerSpec.TTY of type bool",
        ),
        (
            {"TaskTemplate": {"ContainerSpec": {"Env": "A=1"}}},
            "json: cannot unmarshal string into Go struct field ServiceSpec.TaskTemplate.ContainerSpec.Env of type array",
        ),
        (
            {"TaskTemplate": {"ContainerSpec": {"Env": ["A", {}]}}},
            "json: cannot unmarshal object into Go struct field ServiceSpec.TaskTemplate.ContainerSpec.Env[1] of type string",
        ),
        (
            {"Mode": {"Replicated": {"Replicas": 1.5}}},
            "json: cannot unmarshal number into Go struct field ServiceSpec.Mode.Replicated.Replicas of type int64",
        ),
        (
            {"Mode": {"Replicated": {"Replicas": True}}},
            "json: cannot unmarshal bool into Go struct field ServiceSpec.Mode.Replicated.Replicas of type int64",
        ),
        (
            {"Mode": {"Replicated": {"Replicas": 1 << 64}}},
            f"json: cannot unmarshal number {1 << 64} into Go struct field ServiceSpec.Mode.Replicated.Replicas of type int64",
        ),
        (
            {"Labels": ["a"]},
            "json: cannot unmarshal array into Go struct field ServiceSpec.Labels of type map[string]string",
        ),
        (
            {"Labels": {"a": 1}},
            "json: cannot unmarshal number into Go struct field ServiceSpec.Labels['a'] of type string",
        ),
        (
            {"UpdateConfig": {"MaxFailureRatio": "half"}},
            "json: cannot unmarshal string into Go struct field ServiceSpec.UpdateConfig.MaxFailureRatio of type float64",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_named(raw: Any, text: str) -> None:
    with pytest.raises(Malformed) as err:
        normalise(raw, ServiceSpec)
    assert str(err.value) == text
    assert (err.value.http_status, err.value.code) == (400, ""), "Docker's HTTP layer says this itself"


def test_the_path_of_an_error() -> None:
    with pytest.raises(InvalidSpec) as err:
        normalise({"TaskTemplate": {"ContainerSpec": {"Mounts": [{}, {"Target": []}]}}}, ServiceSpec)
    assert err.value.path == "ServiceSpec.TaskTemplate.ContainerSpec.Mounts[1].Target"


def test_numbers() -> None:
    spec = normalise(
        {
            "Mode": {"Replicated": {"Replicas": 3.0}},
            "UpdateConfig": {"MaxFailureRatio": 1, "Delay": (1 << 63) - 1},
        },
        ServiceSpec,
    )
    assert spec.mode.replicated is not None
    assert spec.mode.replicated.replicas == 3
    assert spec.update_config is not None
    assert spec.update_config.max_failure_ratio == 1.0
    assert spec.update_config.delay == (1 << 63) - 1
    for huge in (1e300, 10**400):
        with pytest.raises(Malformed):
            normalise({"UpdateConfig": {"Delay": huge}}, ServiceSpec)
    with pytest.raises(Malformed):
        normalise({"UpdateConfig": {"MaxFailureRatio": 10**400}}, ServiceSpec)


def test_parts_nobody_looks_into_must_fit_the_log() -> None:
    kept = {"Deep": {"a": [1, {"B": None}]}}
    template = normalise({"TaskTemplate": {"PluginSpec": kept}}, ServiceSpec).task_template
    assert template.plugin_spec == kept
    with pytest.raises(Malformed):
        normalise({"TaskTemplate": {"PluginSpec": {"n": 10**30}}}, ServiceSpec)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{bad", "invalid JSON: "),
        (b'{"a":', "invalid JSON: "),
        (b"[" * 100_000, "invalid JSON: exceeded max depth"),
        (b'{"a":' * 100_000, "invalid JSON: exceeded max depth"),
        (b'"\xff\xfe"', "invalid JSON: "),
        (b"1e400", "invalid JSON: "),
    ],
)
def test_what_is_no_json(body: bytes, text: str) -> None:
    with pytest.raises(Malformed) as err:
        parse_json(body)
    assert str(err.value).startswith(text)


def test_an_empty_body_is_an_empty_object() -> None:
    assert parse_json(b"") == parse_json(b" \n") == {}
    assert normalise(None, ServiceSpec) == ServiceSpec()


# --- bodies as clients send them ----------------------------------------------------------------------------------------
CLI_INIT = b"""{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"127.0.0.1","DataPathAddr":"","DataPathPort":0,
"ForceNewCluster":false,"Spec":{"Labels":null,"Orchestration":{},"Raft":{"ElectionTick":0,"HeartbeatTick":0},
"Dispatcher":{},"CAConfig":{},"TaskDefaults":{},"EncryptionConfig":{"AutoLockManagers":false}},
"AutoLockManagers":false,"Availability":"","DefaultAddrPool":[],"SubnetSize":24}"""
CLI_JOIN = b"""{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"10.91.0.4","DataPathAddr":"",
"RemoteAddrs":["10.91.0.1:2377"],"JoinToken":"SWMTKN-1-x","Availability":""}"""


def test_the_clis_init_and_join() -> None:
    init = normalise(parse_json(CLI_INIT), InitRequest)
    assert (init.listen_addr, init.advertise_addr, init.subnet_size) == ("0.0.0.0:2377", "127.0.0.1", 24)
    assert init.default_addr_pool == ()
    assert init.spec is not None
    assert init.spec.raft.election_tick == 0
    assert init.spec.labels == {}
    join = normalise(parse_json(CLI_JOIN), JoinRequest)
    assert join.remote_addrs == ("10.91.0.1:2377",)
    assert join.join_token == "SWMTKN-1-x"


FULL_SERVICE: dict[str, Any] = {
    "Name": "web",
    "Labels": {"com.docker.stack.namespace": "app"},
    "TaskTemplate": {
        "ContainerSpec": {
            "Image": "web:1",
            "Labels": {"a": "b"},
            "Command": ["/bin/sh"],
            "Args": ["-c", "true"],
            "Hostname": "h",
            "Env": ["A=1", "B"],
            "Dir": "/w",
            "User": "1:2",
            "Groups": ["3"],
            "Privileges": {"SELinuxContext": {"Disable": True, "User": "u"}, "NoNewPrivileges": True},
            "Init": False,
            "StopSignal": "SIGINT",
            "TTY": True,
            "OpenStdin": True,
            "ReadOnly": True,
            "Mounts": [
                {"Type": "bind", "Source": "/s", "Target": "/t", "ReadOnly": True, "BindOptions": {"Propagation": "rslave"}},
                {
                    "Type": "volume",
                    "Source": "v",
                    "Target": "/v",
                    "VolumeOptions": {"NoCopy": True, "Labels": {"x": "y"}, "DriverConfig": {"Name": "local", "Options": {"o": "p"}}},
                },
                {"Type": "tmpfs", "Target": "/m", "TmpfsOptions": {"SizeBytes": 4096, "Mode": 448}},
            ],
            "StopGracePeriod": 0,
            "Healthcheck": {"Test": ["CMD", "x"], "Interval": 10**9, "Timeout": 10**9, "StartPeriod": 10**9, "Retries": 2},
            "Hosts": ["10.0.0.1 a b"],
            "DNSConfig": {"Nameservers": ["1.1.1.1"], "Search": ["s"], "Options": ["o"]},
            "Secrets": [{"File": {"Name": "f", "UID": "0", "GID": "0", "Mode": 292}, "SecretID": "i", "SecretName": "n"}],
            "Configs": [{"File": {"Name": "f", "UID": "0", "GID": "0", "Mode": 292}, "ConfigID": "i", "ConfigName": "n"}],
            "Isolation": "default",
            "Sysctls": {"k": "v"},
            "CapabilityAdd": ["CAP_A"],
            "CapabilityDrop": ["CAP_B"],
            "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
        },
        "Resources": {
            "Limits": {"NanoCPUs": 10**9, "MemoryBytes": 1 << 30, "Pids": 7},
            "Reservations": {
                "NanoCPUs": 10**8,
                "MemoryBytes": 1 << 20,
                "GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 1}}],
            },
        },
        "RestartPolicy": {"Condition": "any", "Delay": 0, "MaxAttempts": 0, "Window": 0},
        "Placement": {
            "Constraints": ["node.role==worker"],
            "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.z"}}],
            "MaxReplicas": 2,
            "Platforms": [{"Architecture": "amd64", "OS": "linux"}],
        },
        "Networks": [{"Target": "net", "Aliases": ["web"], "DriverOpts": {"a": "b"}}],
        "LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}},
        "ForceUpdate": 3,
        "Runtime": "container",
    },
    "Mode": {"Replicated": {"Replicas": 0}},
    "UpdateConfig": {"Parallelism": 2, "Delay": 5, "FailureAction": "pause", "Monitor": 6, "MaxFailureRatio": 0.5, "Order": "start-first"},
    "RollbackConfig": {"Parallelism": 0, "MaxFailureRatio": 0.0},
    "EndpointSpec": {"Mode": "vip", "Ports": [{"Name": "p", "Protocol": "udp", "TargetPort": 53, "PublishedPort": 53, "PublishMode": "host"}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        (ServiceSpec, FULL_SERVICE),
        (
            ServiceSpec,
            {
                "Labels": {},
                "TaskTemplate": {"ContainerSpec": {"Image": "a", "DNSConfig": {}}, "Resources": {"Limits": {}, "Reservations": {}}, "Placement": {}, "ForceUpdate": 0},
                "Mode": {"Replicated": {}},
                "EndpointSpec": {},
            },
        ),
        (ServiceSpec, {"Labels": {}, "TaskTemplate": {"ForceUpdate": 0}, "Mode": {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 2}}}),
        (NodeSpec, {"Labels": {"a": "b"}, "Role": "manager", "Availability": "drain"}),
        (NodeSpec, {"Name": "n", "Labels": {}, "Role": "worker", "Availability": "active"}),
        (
            NetworkCreate,
            {
                "Name": "n",
                "CheckDuplicate": True,
                "Driver": "overlay",
                "Scope": "",
                "IPAM": {"Driver": "default", "Options": {}, "Config": [{"Subnet": "10.1.0.0/24", "Gateway": "10.1.0.1", "IPRange": "10.1.0.0/25"}]},
                "Internal": False,
                "Attachable": False,
                "Ingress": False,
                "ConfigOnly": False,
                "ConfigFrom": {"Network": ""},
                "EnableIPv6": False,
                "Options": {},
                "Labels": {},
            },
        ),
        (SecretSpec, {"Name": "s", "Labels": {"l": "m"}, "Data": "YQ==", "Driver": {"Name": "d"}, "Templating": {"Name": "golang"}}),
        (ConfigSpec, {"Name": "c", "Labels": {}, "Data": "YQ=="}),
        (
            ClusterSpec,
            {
                "Name": "default",
                "Labels": {},
                "Orchestration": {"TaskHistoryRetentionLimit": 5},
                "Raft": {"SnapshotInterval": 10000, "KeepOldSnapshots": 0, "LogEntriesForSlowFollowers": 500, "ElectionTick": 10, "HeartbeatTick": 1},
                "Dispatcher": {"HeartbeatPeriod": 5 * 10**9},
                "CAConfig": {"NodeCertExpiry": 7776000000000000, "ExternalCAs": [{"Protocol": "cfssl", "URL": "https://x", "CACert": "y"}], "ForceRotate": 1},
                "TaskDefaults": {"LogDriver": {"Name": "none"}},
                "EncryptionConfig": {"AutoLockManagers": True},
            },
        ),
    ],
)  # fmt: skip
def test_what_is_sent_comes_back_as_it_was(kind: type, sent: dict[str, Any]) -> None:
    """Zeros where Go has pointers, empty objects and absent fields all stay what they are."""
    spec = normalise(sent, kind)
    assert shown(spec) == sent
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=kind)
    assert again == spec, "and the replicated log keeps it"


def test_fields_docker_always_shows() -> None:
    assert shown(ServiceSpec()) == {"Labels": {}, "TaskTemplate": {"ForceUpdate": 0}, "Mode": {}}
    assert shown(NodeSpec()) == {"Labels": {}, "Role": "worker", "Availability": "active"}
