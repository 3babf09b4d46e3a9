"""A task as the engine's create call: every field of a container spec, and what only a host can refuse."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from swarm_agent.agent.container import BadMount, create_body, needed_api
from swarm_agent.agent.content_store import FileMount
from swarm_agent.network.model import ContainerNetwork
from swarm_agent.objects.normalise import normalise
from swarm_agent.objects.records import NetworkAddress, Revision, Task
from swarm_agent.objects.specs import ServiceSpec, TaskTemplate

TASK = Task(
    id="taskid", service_id="serviceid", service_name="web", revision_id="r", slot=2, node_id="nodeid"
)
PLAIN = ContainerNetwork(network_mode="default", first=None)


def body(template: dict[str, Any], network: ContainerNetwork = PLAIN) -> dict[str, Any]:
    spec = normalise({"TaskTemplate": template}, ServiceSpec)
    return create_body(TASK, Revision(id="r", service_id="serviceid", template=spec.task_template), network)


def container(**fields: Any) -> dict[str, Any]:
    return body({"ContainerSpec": {"Image": "web:1", **fields}})


def test_the_least_a_container_gets() -> None:
    assert container() == {
        "Image": "web:1",
        "Labels": {
            "com.docker.swarm.task": "",
            "com.docker.swarm.task.id": "taskid",
            "com.docker.swarm.task.name": "web.2.taskid",
            "com.docker.swarm.node.id": "nodeid",
            "com.docker.swarm.service.id": "serviceid",
            "com.docker.swarm.service.name": "web",
            "swarm-agent.cluster.id": "",
        },
        "HostConfig": {
            "NetworkMode": "default",
            "RestartPolicy": {"Name": "no"},
            "ReadonlyRootfs": False,
            "Mounts": [],
            "ExtraHosts": [],
        },
        "Tty": False,
        "OpenStdin": False,
    }


@pytest.mark.parametrize(
    ("field", "value", "key", "seen"),
    [
        ("Command", ["/bin/sh"], "Entrypoint", ["/bin/sh"]),
        ("Args", ["-c", "x"], "Cmd", ["-c", "x"]),
        ("Hostname", "h", "Hostname", "h"),
        ("Env", ["A=1"], "Env", ["A=1"]),
        ("Dir", "/w", "WorkingDir", "/w"),
        ("User", "1:2", "User", "1:2"),
        ("StopSignal", "SIGINT", "StopSignal", "SIGINT"),
        ("TTY", True, "Tty", True),
        ("OpenStdin", True, "OpenStdin", True),
        (
            "Healthcheck",
            {"Test": ["CMD", "x"], "Interval": 1, "Timeout": 2, "StartPeriod": 3, "StartInterval": 4, "Retries": 0},
            "Healthcheck",
            {"Test": ("CMD", "x"), "Interval": 1, "Timeout": 2, "StartPeriod": 3, "StartInterval": 4, "Retries": 0},
        ),
        ("Groups", ["5"], "HostConfig.GroupAdd", ["5"]),
        ("Init", True, "HostConfig.Init", True),
        ("ReadOnly", True, "HostConfig.ReadonlyRootfs", True),
        ("Hosts", ["10.0.0.1 a b", "::1 c"], "HostConfig.ExtraHosts", ["a:10.0.0.1", "b:10.0.0.1", "c:::1"]),
        ("DNSConfig", {"Nameservers": ["1.1.1.1"]}, "HostConfig.Dns", ["1.1.1.1"]),
        ("DNSConfig", {"Search": ["s"]}, "HostConfig.DnsSearch", ["s"]),
        ("DNSConfig", {"Options": ["o"]}, "HostConfig.DnsOptions", ["o"]),
        ("Sysctls", {"a": "b"}, "HostConfig.Sysctls", {"a": "b"}),
        ("CapabilityAdd", ["CAP_A"], "HostConfig.CapAdd", ["CAP_A"]),
        ("CapabilityDrop", ["CAP_B"], "HostConfig.CapDrop", ["CAP_B"]),
        ("Ulimits", [{"Name": "nofile", "Soft": 1, "Hard": 2}], "HostConfig.Ulimits", [{"Name": "nofile", "Soft": 1, "Hard": 2}]),
        ("OomScoreAdj", 100, "HostConfig.OomScoreAdj", 100),
        ("Privileges", {"SELinuxContext": {"Disable": True, "Type": "t"}}, "HostConfig.SecurityOpt", ["label=disable", "label=type:t"]),
        ("Privileges", {"NoNewPrivileges": True}, "HostConfig.SecurityOpt", ["no-new-privileges"]),
        ("Privileges", {"AppArmor": {"Mode": "disabled"}}, "HostConfig.SecurityOpt", ["apparmor=unconfined"]),
        ("Privileges", {"Seccomp": {"Mode": "unconfined"}}, "HostConfig.SecurityOpt", ["seccomp=unconfined"]),
        ("Labels", {"x": "y"}, "Labels.x", "y"),
        ("Labels", {"com.docker.swarm.task.id": "forged"}, "Labels.com.docker.swarm.task.id", "taskid"),
    ],
)  # fmt: skip
def test_a_field_of_the_container_spec(field: str, value: Any, key: str, seen: Any) -> None:
    found = container(**{field: value})
    folder, _, rest = key.partition(".")
    got = found[folder][rest] if rest else found[folder]
    assert (list(got) if isinstance(got, tuple) else got) == seen


def test_an_init_that_is_refused_is_not_an_absent_one() -> None:
    """``Init: false`` is the engine's default; it must not be turned into true by an engine that has init on."""
    assert container(Init=False)["HostConfig"]["Init"] is False
    assert "Init" not in container()["HostConfig"]


def test_resources_and_the_log_driver() -> None:
    host = body(
        {
            "ContainerSpec": {"Image": "a"},
            "Resources": {
                "Limits": {"NanoCPUs": 5, "MemoryBytes": 6, "Pids": 7},
                "Reservations": {"NanoCPUs": 8, "MemoryBytes": 9},
            },
            "LogDriver": {"Name": "local", "Options": {"a": "b"}},
        }
    )["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["PidsLimit"], host["MemoryReservation"]) == (5, 6, 7, 9)
    assert host["LogConfig"] == {"Type": "local", "Config": {"a": "b"}}


def test_the_networks_part() -> None:
    network = ContainerNetwork(
        network_mode="swarm-x", first={"swarm-x": {"IPAMConfig": {}}}, dns=("10.240.4.1",), dns_options=("ndots:0",)
    )  # fmt: skip
    made = body({"ContainerSpec": {"Image": "a"}}, network)
    assert made["HostConfig"]["NetworkMode"] == "swarm-x"
    assert made["NetworkingConfig"] == {"EndpointsConfig": {"swarm-x": {"IPAMConfig": {}}}}
    assert made["HostConfig"]["Dns"] == ("10.240.4.1",)
    assert made["HostConfig"]["DnsOptions"] == ("ndots:0",)


def mounts(*given: dict[str, Any]) -> Any:
    return container(Mounts=list(given))["HostConfig"]["Mounts"]


def test_mounts() -> None:
    base = {"Source": "", "ReadOnly": False}
    assert mounts(
        {"Type": "bind", "Source": "/s", "Target": "/t", "ReadOnly": True, "Consistency": "cached", "BindOptions": {"Propagation": "rslave", "NonRecursive": True}},
        {"Source": "/s", "Target": "/u"},
        {"Type": "volume", "Target": "/anonymous"},
        {"Type": "volume", "Source": "v", "Target": "/v", "VolumeOptions": {"NoCopy": True, "Labels": {"l": "m"}, "Subpath": "p", "DriverConfig": {"Name": "d", "Options": {"o": "p"}}}},
        {"Type": "tmpfs", "Target": "/m", "TmpfsOptions": {"SizeBytes": 1, "Mode": 448}},
    ) == [
        {"Type": "bind", "Source": "/s", "Target": "/t", "ReadOnly": True, "Consistency": "cached", "BindOptions": {"Propagation": "rslave", "NonRecursive": True}},
        {**base, "Type": "bind", "Source": "/s", "Target": "/u"},
        {**base, "Type": "volume", "Target": "/anonymous"},
        {**base, "Type": "volume", "Source": "v", "Target": "/v", "VolumeOptions": {"NoCopy": True, "Labels": {"l": "m"}, "Subpath": "p", "DriverConfig": {"Name": "d", "Options": {"o": "p"}}}},
        {**base, "Type": "tmpfs", "Target": "/m", "TmpfsOptions": {"SizeBytes": 1, "Mode": 448}},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("mount", "text"),
    [
        ({"Type": "bind", "Source": "/a", "Target": "b"}, "invalid mount target, must be an absolute path: b"),
        ({"Type": "bind", "Source": "a", "Target": "/b"}, "invalid bind mount source, must be an absolute path: a"),
        ({"Type": "volume", "Source": "/a", "Target": "/b"}, "invalid volume mount source, must not be an absolute path: /a"),
        ({"Type": "tmpfs", "Source": "a", "Target": "/b"}, "invalid tmpfs source, source must be empty"),
    ],
)  # fmt: skip
def test_mounts_that_cannot_be(mount: dict[str, Any], text: str) -> None:
    with pytest.raises(BadMount) as err:
        mounts(mount)
    assert str(err.value) == text


# --- what depends on the network and the engine -----------------------------------------------------------------------
def test_on_an_overlay_our_name_server_is_asked_whoever_else_was_wanted() -> None:
    ours = ContainerNetwork(network_mode="n", first=None, dns=("10.240.4.1",), dns_options=("timeout:5",))
    spec = normalise(
        {"TaskTemplate": {"ContainerSpec": {"Image": "a", "DNSConfig": {"Nameservers": ["192.0.2.1"], "Options": ["ndots:2"]}}}},
        ServiceSpec,
    )  # fmt: skip
    revision = Revision(id="r", service_id="s", template=spec.task_template)
    on_overlay = msgspec.structs.replace(
        TASK, networks=(NetworkAddress(network_id="x", address="10.0.1.2/24"),)
    )
    host = create_body(on_overlay, revision, ours)["HostConfig"]
    assert (host["Dns"], host["DnsOptions"]) == (("10.240.4.1",), ("timeout:5",))
    assert create_body(TASK, revision, ours)["HostConfig"]["Dns"] == ("192.0.2.1",)


def test_our_resolv_conf_is_mounted_unless_the_user_mounts_one() -> None:
    ours = ContainerNetwork(network_mode="n", first=None, resolv_conf="/ours")
    made = body({"ContainerSpec": {"Image": "a", "ReadOnly": True}}, ours)["HostConfig"]["Mounts"]
    assert made == [{"Type": "bind", "Source": "/ours", "Target": "/etc/resolv.conf", "ReadOnly": True}]
    own = {"Type": "bind", "Source": "/theirs", "Target": "/etc/resolv.conf"}
    made = body({"ContainerSpec": {"Image": "a", "Mounts": [own]}}, ours)["HostConfig"]["Mounts"]
    assert [mount["Source"] for mount in made] == ["/theirs"]


def test_secrets_and_configs_are_mounted_read_only() -> None:
    revision = Revision(
        id="r", service_id="s", template=normalise({"ContainerSpec": {"Image": "a"}}, TaskTemplate)
    )
    files = (FileMount("/run/x/secret-0", "/run/secrets/key"),)
    assert create_body(TASK, revision, PLAIN, files)["HostConfig"]["Mounts"] == [
        {"Type": "bind", "Source": "/run/x/secret-0", "Target": "/run/secrets/key", "ReadOnly": True}
    ]


@pytest.mark.parametrize(
    ("fields", "version", "what"),
    [
        ({}, (0, 0), ""),
        ({"Healthcheck": {"StartInterval": 10**9}}, (1, 44), "--health-start-interval"),
        ({"Mounts": [{"Type": "bind", "Source": "/a", "Target": "/b", "BindOptions": {"CreateMountpoint": True}}]}, (1, 42), "mount /b"),
        ({"Mounts": [{"Type": "bind", "Source": "/a", "Target": "/b", "BindOptions": {"ReadOnlyForceRecursive": True}}]}, (1, 44), "bind-recursive"),
        ({"Mounts": [{"Type": "volume", "Source": "a", "Target": "/b", "VolumeOptions": {"Subpath": "c"}}]}, (1, 45), "volume-subpath"),
        ({"Mounts": [{"Type": "tmpfs", "Target": "/b", "TmpfsOptions": {"Options": [["noexec"]]}}]}, (1, 46), "options of tmpfs /b"),
    ],
)  # fmt: skip
def test_what_older_engines_would_leave_out(
    fields: dict[str, Any], version: tuple[int, int], what: str
) -> None:
    template = normalise({"ContainerSpec": {"Image": "a", **fields}}, TaskTemplate)
    revision = Revision(id="r", service_id="s", template=template)
    needed, why = needed_api(revision)
    assert needed == version
    assert what in why
    for mount in create_body(TASK, revision, PLAIN)["HostConfig"]["Mounts"]:
        given = fields["Mounts"][0]
        key = next(k for k in given if k.endswith("Options"))
        assert given[key].items() <= {k: [list(o) for o in v] if k == "Options" else v for k, v in mount[key].items()}.items()  # fmt: skip


@pytest.mark.parametrize(
    ("resources", "seen"),
    [
        ({"Limits": {"MemoryBytes": 100}, "SwapBytes": 50}, {"MemorySwap": 150}),
        ({"Limits": {"MemoryBytes": 100}, "SwapBytes": 0}, {"MemorySwap": 100}),
        ({"Limits": {"MemoryBytes": 100}, "SwapBytes": -1}, {"MemorySwap": -1}),
        ({"Limits": {"MemoryBytes": 100}, "MemorySwappiness": 0}, {"MemorySwappiness": 0}),
        ({"Limits": {"MemoryBytes": 100}, "MemorySwappiness": -1}, {}),
    ],
)
def test_swap(resources: dict[str, Any], seen: dict[str, int]) -> None:
    host = body({"ContainerSpec": {"Image": "a"}, "Resources": resources})["HostConfig"]
    assert {k: v for k, v in host.items() if k.startswith("MemorySwap")} == seen


def test_a_seccomp_profile_of_ones_own() -> None:
    privileges = {"Seccomp": {"Mode": "custom", "Profile": "e30="}}
    assert container(Privileges=privileges)["HostConfig"]["SecurityOpt"] == ["seccomp={}"]
