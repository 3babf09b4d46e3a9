"""The swarm's own calls: who may, what is found, what is written, and every answer field by field."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.records import (
    ContainerStatus,
    Network,
    NetworkAddress,
    NodeDescription,
    Revision,
    Service,
    ServiceEndpoint,
    Task,
    TaskStatus,
    UpdateStatus,
    VirtualAddress,
)
from swarm_agent.objects.specs import (
    ContainerSpec,
    EndpointSpec,
    NetworkCreate,
    NodeSpec,
    PortConfig,
    ServiceSpec,
    TaskTemplate,
)
from swarm_agent.rpc.messages import ForwardedAnswer, ForwardedCall, LogPiece
from tests.lib.optional import unwrap
from tests.unit.api.backend_double import NODE_ID, House, a_node, play, replace
from tests.unit.api.engine_double import Call

SPEC = {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "web:1"}}}
PORT = PortConfig(protocol="tcp", target_port=80, published_port=8080, publish_mode="host")


def filters(**wanted: Any) -> str:
    return "filters=" + quote(json.dumps({k.replace("_", "-").lstrip("-"): v for k, v in wanted.items()}))


async def create(home: House, **changes: Any) -> str:
    status, answer = await home.ask("POST", "/services/create", {**SPEC, **changes})
    assert status == 201, answer
    assert set(answer) == {"ID"}
    return str(answer["ID"])


def a_task(id_: str, service: Service, **more: Any) -> Task:
    fields: dict[str, Any] = {
        "service_name": service.spec.name or "",
        "service_labels": service.spec.labels,
        "revision_id": service.revision_id,
        "slot": 1,
        "node_id": NODE_ID,
        "status": TaskStatus(state=TaskState.RUNNING),
        **more,
    }
    return Task(id=id_, service_id=service.id, **fields)


# --- who may ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("state", "manager", "role", "text"),
    [
        ("inactive", False, "", 'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'),
        ("locked", False, "", 'Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.'),
        ("active", False, "worker", "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager."),
        ("active", False, "manager", "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster. (disk full)"),
    ],
)  # fmt: skip
def test_who_may_not(tmp_path: Path, state: str, manager: bool, role: str, text: str) -> None:
    async def story(home: House) -> None:
        home.backend.state, home.backend.is_manager, home.backend.role = state, manager, role
        home.backend.error = "disk full"
        for method, path in (
            ("GET", "/nodes"),
            ("POST", "/services/create"),
            ("GET", "/swarm"),
            ("GET", "/v1.41/tasks"),
            ("GET", "/secrets"),
        ):
            assert await home.refusal(method, path) == (503, text)
        status, answer = await home.refusal("POST", "/networks/create", {"Name": "n", "Driver": "overlay"})
        assert status == 500
        assert answer in text

    play(tmp_path, story)  # fmt: skip


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("1.99", "client version 1.99 is too new. Maximum supported API version is 1.41"),
        ("2.0", "client version 2.0 is too new. Maximum supported API version is 1.41"),
        ("1.11", "client version 1.11 is too old. Minimum supported API version is 1.12, please upgrade your client to a newer version"),
        ("1.41", ""),
        ("1.12", ""),
    ],
)  # fmt: skip
def test_versions(tmp_path: Path, version: str, text: str) -> None:
    async def story(home: House) -> None:
        status, answer = await home.ask("GET", f"/v{version}/nodes")
        assert status == (400 if text else 200)
        assert answer["message"] == text if text else len(answer) == 1

    play(tmp_path, story)


def test_a_follower_lets_the_leader_answer(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        calls = []

        async def leader(call: ForwardedCall) -> AsyncIterator[ForwardedAnswer]:
            calls.append(
                (call.method, call.path, call.query, dict(call.headers).get("x-registry-auth"), call.body)
            )
            yield ForwardedAnswer(
                201, (("Content-Type", "application/json"), ("Connection", "close")), b'{"ID":'
            )
            yield ForwardedAnswer(body=b'"x"}')

        async def host(call: Call) -> None:
            await call.whole(b'{"Id":"x","Name":"host"}')

        own = "f" * 64
        home.engine.answers[f"/networks/{own}"] = host
        home.backend.is_leader, home.backend.leader = False, leader
        status, answer = await home.ask(
            "POST", "/v1.41/services/create?a=b", SPEC, headers={"X-Registry-Auth": "cred"}
        )
        assert (status, answer) == (201, {"ID": "x"})
        assert calls.pop() == ("POST", "/services/create", "a=b", "cred", msgspec.json.encode(SPEC))
        for id_, sent in ((own, "host"), ("e" * 64, "e" * 64)):
            await home.ask("POST", "/services/create", {**SPEC, "Networks": [{"Target": id_}]})
            assert json.loads(calls.pop()[4])["Networks"] == [{"Target": sent}], (
                "ids of this host alone, by name"
            )
        assert await home.refusal("POST", "/services/create", b"[]") == (
            400,
            "json: cannot unmarshal array into Go value of type swarm.ServiceSpec",
        )
        assert calls == []

    play(tmp_path, story)  # fmt: skip


# --- finding ---------------------------------------------------------------------------------------------------------
def test_an_object_is_found_by_id_name_or_the_start_of_its_id(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        home.backend.put(a_node("b" * 25, "host2"), a_node("b" + "c" * 24, "a" * 25))
        for wanted, found in (
            (NODE_ID, NODE_ID),
            ("host2", "b" * 25),
            ("bb", "b" * 25),
            ("bc", "b" + "c" * 24),
        ):
            assert (await home.get(f"/nodes/{wanted}"))["ID"] == found
        assert await home.refusal("GET", "/nodes/b") == (400, "node b is ambiguous (2 matches found)")
        assert await home.refusal("GET", "/nodes/self") == (404, "node self not found")
        assert await home.refusal("GET", "/nodes/HOST2") == (404, "node HOST2 not found")
        for kind in ("services", "tasks", "secrets", "configs"):
            assert await home.refusal("GET", f"/{kind}/a%20b") == (404, f"{kind[:-1]} a b not found")
        home.backend.put(a_node("d" * 25, "host2"))
        assert await home.refusal("GET", "/nodes/host2") == (400, "node host2 is ambiguous (2 matches found)")

    play(tmp_path, story)


def test_filters(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        await create(home, Name="web", Labels={"a": "1", "b": "2"})
        await create(home, Name="web2", Labels={"a": "2"})

        async def names(**wanted: Any) -> list[str]:
            return [s["Spec"]["Name"] for s in await home.get("/services?" + filters(**wanted))]

        assert await names(name=["web"]) == ["web", "web2"]
        assert await names(name={"web2": True, "web": False}) == ["web2"]
        assert await names(name=["x", "web2"]) == ["web2"]
        assert await names(label=["a"]) == await names(label=["a="]) == ["web", "web2"]
        assert await names(label=["a", "b=2"]) == ["web"]
        assert await names(label=["a=2"], name=["web"]) == ["web2"]
        assert await names(mode=["replicated"]) == ["web", "web2"]
        assert await names(mode=["global"]) == []
        assert await names(runtime=["plugin"]) == []
        for path in ("nodes", "services", "tasks"):
            assert await home.refusal("GET", f"/{path}?" + filters(bogus=["a"])) == (
                400,
                "Invalid filter 'bogus'",
            )
            assert (await home.refusal("GET", f"/{path}?filters=zz"))[0] == 400
        assert await home.refusal("GET", "/nodes?" + filters(role=["zz"])) == (
            500,
            "Invalid role filter: 'zz'",
        )
        assert await home.refusal("GET", "/nodes?" + filters(membership=["zz"])) == (
            500,
            "Invalid membership filter: 'zz'",
        )
        assert await home.refusal("GET", "/tasks?" + filters(desired_state=["zz"])) == (
            500,
            "Invalid desired-state filter: 'zz'",
        )
        assert await home.refusal("GET", "/tasks?" + filters(service=["zz"])) == (404, "service zz not found")
        assert await home.refusal("GET", "/tasks?" + filters(node=["zz"])) == (404, "node zz not found")
        assert len(await home.get("/nodes?" + filters(role=["manager", "worker"], name=["host"]))) == 1
        assert await home.get("/nodes?" + filters(role=["worker"])) == []

    play(tmp_path, story)  # fmt: skip


def test_what_a_lost_node_said_last_does_not_count_as_running(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        await create(home)
        (service,) = home.backend.store.services.all()
        worker = a_node("w" * 25, "w")
        running = TaskStatus(state=TaskState.RUNNING)
        home.backend.put(
            worker,
            a_task("1" * 25, service, status=running),
            a_task("2" * 25, service, status=running, node_id="w" * 25, desired_state=TaskState.SHUTDOWN),
        )

        async def counted() -> int:
            (listed,) = await home.get("/services?status=true")
            return int(listed["ServiceStatus"]["RunningTasks"])

        assert await counted() == 2
        down = msgspec.structs.replace(worker.status, state=NodeState.DOWN)
        home.backend.put(msgspec.structs.replace(worker, status=down))
        assert await counted() == 1

    play(tmp_path, story)


def test_task_filters(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        await create(home, Labels={"ns": "x"})
        (service,) = home.backend.store.services.all()
        home.backend.put(
            a_task("1" * 25, service),
            a_task("2" * 25, service, slot=2, desired_state=TaskState.READY),
            a_task("3" * 25, service, desired_state=TaskState.SHUTDOWN, revision_id="old"),
        )  # fmt: skip

        async def ids(**wanted: Any) -> str:
            query = "filters=" + quote(json.dumps({k.replace("__", "-"): v for k, v in wanted.items()}))
            return "".join(t["ID"][0] for t in await home.get(f"/tasks?{query}"))

        assert await ids() == "123"
        assert await ids(service=["web"]) == await ids(node=["host1"]) == await ids(label=["ns=x"]) == "123"
        assert await ids(desired__state=["running"]) == "1"
        assert await ids(desired__state=["running", "READY"]) == "12"
        assert await ids(desired__state=["shutdown"], service=["web"]) == "3"
        assert await ids(name=["web.1."]) == "13"
        assert await ids(id=["2"]) == "2"
        assert await ids(**{"_up-to-date": {"true": True}}, service=["web"]) == "12"
        assert await ids(**{"_up-to-date": ["false"]}) == "3"
        assert (await home.get(f"/tasks/web.2.{'2' * 25}"))["ID"] == "2" * 25

    play(tmp_path, story)


# --- shapes ------------------------------------------------------------------------------------------------------------
META = {"ID", "Version", "CreatedAt", "UpdatedAt"}
TLS = {"TrustRoot", "CertIssuerSubject", "CertIssuerPublicKey"}


def test_the_shape_of_a_node(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        node = await home.get(f"/nodes/{NODE_ID}")
        assert set(node) == META | {"Spec", "Description", "Status", "ManagerStatus"}
        assert node["Spec"] == {"Labels": {}, "Role": "manager", "Availability": "active"}
        assert set(node["Description"]) == {"Hostname", "Platform", "Resources", "Engine", "TLSInfo"}
        assert node["Description"]["Platform"] == {"Architecture": "x86_64", "OS": "linux"}
        assert node["Description"]["Resources"] == {"NanoCPUs": 2 * 10**9, "MemoryBytes": 1 << 30}
        assert node["Description"]["Engine"] == {"EngineVersion": "20.10.24", "Plugins": []}
        assert set(node["Description"]["TLSInfo"]) == TLS
        assert node["Status"] == {"State": "ready", "Addr": "10.0.0.1"}
        assert node["ManagerStatus"] == {"Leader": True, "Reachability": "reachable", "Addr": "10.0.0.1:2377"}
        assert node["Version"] == {"Index": 2}
        assert node["CreatedAt"] == node["UpdatedAt"] == "2023-11-14T22:13:20.000000001Z"
        home.backend.put(a_node("b" * 25, "w"))
        assert "ManagerStatus" not in await home.get("/nodes/w")
        home.backend.put(a_node("c" * 25, "m", role="manager", manager_addr="10.0.0.3:2377"))
        assert (await home.get("/nodes/m"))["ManagerStatus"] == {
            "Reachability": "unreachable",
            "Addr": "10.0.0.3:2377",
        }
        sick = NodeDescription(hostname="s", manager_trouble="damaged log: segment 1, byte 7")
        home.backend.put(
            a_node("d" * 25, "s", role="manager", manager_addr="10.0.0.4:2377", description=sick)
        )
        shown = await home.get("/nodes/s")
        assert shown["ManagerStatus"]["Reachability"] == "unreachable (damaged log)"
        assert shown["Status"]["Message"] == "damaged log: segment 1, byte 7"

    play(tmp_path, story)  # fmt: skip


def test_the_shape_of_a_service(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        await create(home)
        service = await home.get("/services/web?insertDefaults=false")
        assert set(service) == META | {"Spec", "Endpoint"}
        assert service["Spec"] == {
            "Name": "web",
            "Labels": {},
            "TaskTemplate": {
                "ContainerSpec": {"Image": "web:1", "Isolation": "default"},
                "ForceUpdate": 0,
                "Runtime": "container",
            },
            "Mode": {"Replicated": {"Replicas": 1}},
        }
        assert service["Endpoint"] == {"Spec": {}}
        with_defaults = (await home.get("/services/web?insertDefaults=true"))["Spec"]
        assert with_defaults["EndpointSpec"] == {"Mode": "vip"}
        assert with_defaults["TaskTemplate"]["ContainerSpec"]["Isolation"] == "default"
        assert with_defaults["UpdateConfig"]["Monitor"] == 5 * 10**9
        (listed,) = await home.get("/services?status=true")
        assert listed["ServiceStatus"] == {"RunningTasks": 0, "DesiredTasks": 1, "CompletedTasks": 0}
        (listed,) = await home.get("/services")
        assert "ServiceStatus" not in listed
        (row,) = home.backend.store.services.all()
        update = UpdateStatus(
            state="completed", message="update completed", started_at=1, completed_at=1_000_000_000
        )
        endpoint = ServiceEndpoint(
            ports=(PORT,), virtual_ips=(VirtualAddress(network_id="n", address="10.0.1.2/24"),)
        )
        spec = replace(
            row.spec,
            endpoint_spec=EndpointSpec(
                ports=(PortConfig(target_port=80, published_port=8080, publish_mode="host"),)
            ),
        )
        home.backend.put(
            replace(row, spec=spec, previous_spec=row.spec, update_status=update, endpoint=endpoint)
        )
        service = await home.get("/services/web")
        assert set(service) == META | {"Spec", "PreviousSpec", "Endpoint", "UpdateStatus"}
        assert service["PreviousSpec"]["Mode"] == {"Replicated": {"Replicas": 1}}
        shown = {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}
        assert service["Endpoint"] == {
            "Spec": {"Mode": "vip", "Ports": [shown]},
            "Ports": [shown],
            "VirtualIPs": [{"NetworkID": "n", "Addr": "10.0.1.2/24"}],
        }
        assert service["UpdateStatus"] == {
            "State": "completed",
            "StartedAt": "1970-01-01T00:00:00.000000001Z",
            "CompletedAt": "1970-01-01T00:00:01Z",
            "Message": "update completed",
        }

    play(tmp_path, story)  # fmt: skip


def test_the_shape_of_a_task(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        template = TaskTemplate(container_spec=ContainerSpec(image="web:1"), runtime="container")
        service = Service(id="s" * 25, spec=ServiceSpec(name="web", labels={"l": "m"}), revision_id="r")
        network = Network(
            id="n" * 25, spec=NetworkCreate(name="net"), subnet="10.0.1.0/24", gateway="10.0.1.1", vni=4097
        )
        revision = Revision(
            id="r", service_id=service.id, template=template, endpoint=EndpointSpec(ports=(PORT,))
        )
        home.backend.put(
            service,
            network,
            revision,
            a_task("1" * 25, service, node_id="", status=TaskStatus(message="created")),
        )
        task = await home.get("/tasks/1")
        assert set(task) == META | {"Labels", "Spec", "ServiceID", "Slot", "Status", "DesiredState"}
        assert task["Labels"] == {}
        assert task["Spec"] == {"ContainerSpec": {"Image": "web:1", "Isolation": "default"}, "ForceUpdate": 0}
        assert task["Status"] == {
            "Timestamp": "0001-01-01T00:00:00Z",
            "State": "new",
            "Message": "created",
            "PortStatus": {},
        }
        status = TaskStatus(
            state=TaskState.RUNNING,
            message="started",
            err="e",
            timestamp=1,
            container=ContainerStatus(container_id="c", pid=4),
        )
        address = NetworkAddress(network_id=network.id, address="10.0.1.3/24")
        home.backend.put(a_task("1" * 25, service, status=status, networks=(address,)))
        task = await home.get("/tasks/1")
        assert set(task) == META | {
            "Labels",
            "Spec",
            "ServiceID",
            "Slot",
            "NodeID",
            "Status",
            "DesiredState",
            "NetworksAttachments",
        }
        assert task["Status"]["ContainerStatus"] == {"ContainerID": "c", "PID": 4, "ExitCode": 0}
        assert task["Status"]["Err"] == "e"
        (port,) = task["Status"]["PortStatus"]["Ports"]
        assert port == {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}
        (attached,) = task["NetworksAttachments"]
        assert attached["Addresses"] == ["10.0.1.3/24"]
        assert set(attached["Network"]) == META | {"Spec", "DriverState", "IPAMOptions"}
        assert attached["Network"]["IPAMOptions"]["Configs"] == [
            {"Subnet": "10.0.1.0/24", "Gateway": "10.0.1.1"}
        ]

    play(tmp_path, story)  # fmt: skip


def test_the_shape_of_the_swarm(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        async def info(call: Call) -> None:
            await call.whole(b'{"Name":"host1","Swarm":{"LocalNodeState":"inactive"}}')

        home.engine.answers["/info"] = info
        swarm = await home.get("/swarm")
        cluster = META | {
            "Spec",
            "TLSInfo",
            "RootRotationInProgress",
            "DefaultAddrPool",
            "SubnetSize",
            "DataPathPort",
        }
        assert set(swarm) == cluster | {"JoinTokens"}
        assert set(swarm["TLSInfo"]) == TLS
        assert set(swarm["JoinTokens"]) == {"Worker", "Manager"}
        assert swarm["Spec"]["CAConfig"] == {"NodeCertExpiry": 7776000000000000}
        assert (swarm["DefaultAddrPool"], swarm["SubnetSize"], swarm["DataPathPort"]) == (None, 24, 4789)
        shown = await home.get("/info")
        assert shown["Name"] == "host1"
        about = shown["Swarm"]
        assert set(about["Cluster"]) == cluster, "tokens are for GET /swarm alone"
        assert {k: v for k, v in about.items() if k != "Cluster"} == {
            "NodeID": NODE_ID,
            "NodeAddr": "10.0.0.1",
            "LocalNodeState": "active",
            "ControlAvailable": True,
            "FeatureLevel": 4,
            "Error": "",
            "RemoteManagers": [{"NodeID": NODE_ID, "Addr": "10.0.0.1:2377"}],
            "Nodes": 1,
            "Managers": 1,
        }
        assert "Warnings" not in shown
        home.backend.put(a_node("m" * 25, "m", role="manager"))
        (warning,) = (await home.get("/info"))["Warnings"]
        assert "two-manager configuration" in warning
        home.backend.state = "inactive"
        home.backend.node_id = home.backend.node_addr = ""
        assert (await home.get("/info"))["Swarm"] == {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        }

    play(tmp_path, story)


def test_answers_without_a_body(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        await create(home)
        version = (await home.get("/nodes/host1"))["Version"]["Index"]
        spec = {"Role": "manager", "Availability": "drain"}
        for method, path, body, status in (
            ("POST", f"/nodes/host1/update?version={version}", spec, 200),
            ("POST", f"/swarm/update?version={(await home.get('/swarm'))['Version']['Index']}", {}, 200),
            ("POST", "/swarm/leave?force=1", None, 200),
            ("DELETE", "/services/web", None, 200),
        ):
            answer = await home.client._exchange(method, path, body, {})
            assert (answer.status, answer.body) == (status, b"")
            assert b"content-type" not in {k.lower() for k, _ in answer.headers}
        assert ("leave", True) in home.backend.called
        status, made = await home.ask("POST", "/networks/create", {"Name": "n", "Driver": "overlay"})
        assert (status, set(made)) == (201, {"Id", "Warning"})
        assert (await home.ask("DELETE", "/networks/n"))[0] == 204

    play(tmp_path, story)


# --- writing -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["", "a", "-1", "1.0"])
@pytest.mark.parametrize(
    ("path", "word"), [("services/web", "service"), ("nodes/host1", "node"), ("swarm", "swarm")]
)
def test_a_version_that_is_none(tmp_path: Path, path: str, word: str, text: str) -> None:
    async def story(home: House) -> None:
        assert await home.refusal("POST", f"/{path}/update?version={text}", SPEC) == (
            400,
            f"invalid {word} version '{text}': strconv.ParseUint: parsing \"{text}\": invalid syntax",
        )

    play(tmp_path, story)


STALE = (500, "rpc error: code = Unknown desc = update out of sequence")


def test_an_update_is_based_on_the_spec_that_was_read(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        await create(home)
        read = (await home.get("/services/web"))["Version"]["Index"]
        update = f"/services/web/update?version={read}"
        (row,) = home.backend.store.services.all()
        home.backend.put(replace(row, update_status=UpdateStatus(state="updating", message="")))
        status, answer = await home.ask("POST", update, {**SPEC, "Labels": {"a": "b"}})
        assert (status, answer) == (200, {"Warnings": None}), "progress written meanwhile is nobody's edit"
        assert await home.refusal("POST", update, SPEC) == STALE
        service = await home.get("/services/web")
        assert service["Spec"]["Labels"] == {"a": "b"}
        assert service["PreviousSpec"]["Labels"] == {}
        assert await home.refusal("POST", "/services/web/update?version=99999", SPEC) == STALE

        def rival() -> None:
            (row,) = home.backend.store.services.all()
            home.backend.put(replace(row, spec=replace(row.spec, labels={"rival": ""})))

        home.backend.before_write = rival
        assert (
            await home.refusal("POST", f"/services/web/update?version={service['Version']['Index']}", SPEC)
            == STALE
        )
        assert (await home.get("/services/web"))["Spec"]["Labels"] == {"rival": ""}

    play(tmp_path, story)  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b'"x"', 400, "json: cannot unmarshal string into Go value of type swarm.ServiceSpec"),
        (b"[" * 5000, 400, "invalid JSON: exceeded max depth"),
        ({"Name": "a"}, 400, "mismatched Runtime and *Spec fields"),
        ({**SPEC, "Name": "a b"}, 400, "rpc error: code = InvalidArgument desc = name must be valid as a DNS name component"),
        (SPEC, 409, "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web already exists"),
        ({**SPEC, "Name": "WEB"}, 409, "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service WEB already exists"),
        ({**SPEC, "Name": "b", "Networks": [{"Target": "nowhere"}]}, 500, "network nowhere not found"),
        ({**SPEC, "Name": "b", "Networks": [{"Target": "local"}]}, 403, "The network local cannot be used with services. Only networks scoped to the swarm can be used, such as those created with the overlay driver."),
        ({**SPEC, "Name": "b", "Networks": [{"Target": "ingress"}]}, 400, 'rpc error: code = InvalidArgument desc = Service cannot be explicitly attached to the ingress network "ingress"'),
        ({**SPEC, "Name": "b", "EndpointSpec": {"Ports": [{"TargetPort": 1, "PublishedPort": 80}]}}, 400, "rpc error: code = InvalidArgument desc = port '80' is already in use by service 'web' (0000000000000000000000001) as an ingress port"),
        ({**SPEC, "Name": "b", "EndpointSpec": {"Mode": "dnsrr"}}, 501, "rpc error: code = Unimplemented desc = not supported by this version of swarm-agent: endpoint mode dnsrr (--endpoint-mode dnsrr)"),
    ],
)  # fmt: skip
def test_services_that_cannot_be_made(tmp_path: Path, body: Any, status: int, text: str) -> None:
    async def story(home: House) -> None:
        async def local(call: Call) -> None:
            await call.whole(b'{"Id":"x","Name":"local"}')

        home.engine.answers["/networks/local"] = local
        await create(home, EndpointSpec={"Ports": [{"TargetPort": 80, "PublishedPort": 80}]})
        assert await home.refusal("POST", "/services/create", body) == (status, text)
        assert len(home.backend.store.services) == 1

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("query", "changes", "status", "text"),
    [
        ("", {"Name": "other"}, 501, "rpc error: code = Unimplemented desc = renaming services is not supported"),
        ("&rollback=previous", {}, 400, "rpc error: code = FailedPrecondition desc = service ID does not have a previous spec"),
        ("&rollback=x", {}, 500, "unrecognized rollback option x"),
        ("&registryAuthFrom=x", {}, 400, "invalid registryAuthFrom 'x'"),
    ],
)  # fmt: skip
def test_updates_that_cannot_be(tmp_path: Path, query: str, changes: Any, status: int, text: str) -> None:
    async def story(home: House) -> None:
        await create(home)
        shown = await home.get("/services/web")
        path = f"/services/web/update?version={shown['Version']['Index']}{query}"
        expected = (status, text.replace(" ID ", f" {shown['ID']} "))
        assert await home.refusal("POST", path, {**SPEC, **changes}) == expected

    play(tmp_path, story)


def test_networks_by_name_and_registry_credentials(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        async def host(call: Call) -> None:
            await call.whole(b'{"Id":"64hex","Name":"host"}')

        home.engine.answers["/networks/64hex"] = host
        _, network = await home.ask("POST", "/networks/create", {"Name": "net", "Driver": "overlay"})
        headers = {"X-Registry-Auth": "cred"}
        document = {**SPEC, "Networks": [{"Target": "net"}, {"Target": "64hex"}]}
        await home.ask("POST", "/services/create", document, headers=headers)
        service = await home.get("/services/web")
        assert service["Spec"]["TaskTemplate"]["Networks"] == [{"Target": network["Id"]}, {"Target": "host"}]
        assert "Networks" not in service["Spec"]
        (row,) = home.backend.store.services.all()
        assert row.registry_auth == "cred"
        version = service["Version"]["Index"]
        await home.ask("POST", f"/services/web/update?version={version}", document)
        (after,) = home.backend.store.services.all()
        assert after.registry_auth == "cred", "kept until another is given"
        assert after.revision_id == row.revision_id, "the same document by name restarts nothing"
        status, text = await home.refusal("DELETE", "/networks/net")
        assert (status, text) == (
            400,
            f"rpc error: code = FailedPrecondition desc = network {network['Id']} is in use by service {row.id}",
        )

    play(tmp_path, story)  # fmt: skip


def test_nodes_are_demoted_and_removed_with_care(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        async def update(**spec: str) -> tuple[int, str]:
            version = (await home.get("/nodes/host1"))["Version"]["Index"]
            return await home.refusal("POST", f"/nodes/host1/update?version={version}", spec)

        worker = {"Role": "worker", "Availability": "active"}
        assert await update(Role="manager") == (400, 'invalid Availability: ""')
        assert await update(Availability="active") == (400, 'invalid Role: ""')
        assert await update(Role="boss", Availability="active") == (400, 'invalid Role: "boss"')
        assert await update(**worker) == (
            400,
            "rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the swarm",
        )
        home.backend.put(a_node("m" * 25, "m", role="manager"), a_node("w" * 25, "w"))
        home.backend.quorum = False
        status, text = await update(**worker)
        assert "loss of quorum" in text
        for force in ("", "?force=1"):
            status, text = await home.refusal("DELETE", f"/nodes/m{force}")
            assert (status, text) == (
                400,
                f"rpc error: code = FailedPrecondition desc = node {'m' * 25} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal",
            )
        status, text = await home.refusal("DELETE", "/nodes/w")
        assert text.endswith(f"node {'w' * 25} is not down and can't be removed")
        service = Service(id="s", spec=ServiceSpec(name="web"))
        home.backend.put(service, a_task("1" * 25, service, node_id="w" * 25))
        home.backend.put(
            a_node(
                "w" * 25,
                "w",
                spec=NodeSpec(),
                status=msgspec.structs.replace(a_node("w", "w").status, state=NodeState.DOWN),
            )
        )
        assert (await home.ask("DELETE", "/nodes/w"))[0] == 200
        assert (await home.get("/tasks/1"))["Status"]["State"] == "orphaned"
        assert set(unwrap(home.backend.store.cluster).removed_nodes) == {"w" * 25}

    play(tmp_path, story)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "state", "body", "status", "text"),
    [
        ("init", "active", {}, 503, "This node is already part of a swarm"),
        ("join", "active", {}, 503, "This node is already part of a swarm"),
        ("join", "inactive", {}, 400, "at least 1 RemoteAddr is required to join"),
        ("join", "inactive", {"RemoteAddrs": ["a"], "Availability": "x"}, 400, 'invalid Availability: "x"'),
        ("leave", "inactive", {}, 503, "This node is not part of a swarm"),
        ("unlock", "active", {"UnlockKey": "x"}, 409, "swarm is not locked"),
        ("unlock", "inactive", {"UnlockKey": "x"}, 503, "This node is not part of a swarm"),
        ("init", "inactive", {"SubnetSize": 30}, 400, "subnet size is out of range: 30"),
        ("init", "inactive", {"DataPathPort": 80}, 400, "Datapath port number is not in valid range (1024-49151) : 80"),
        ("init", "inactive", {"DefaultAddrPool": ["x"]}, 400, "invalid CIDR: "),
        ("init", "inactive", {"DefaultAddrPool": ["10.0.0.0/26"]}, 400, 'invalid CIDR: "10.0.0.0/26". Subnet size is too small for pool: 24'),
        ("unlock", "locked", {"UnlockKey": "SWMKEY-1-tooshort"}, 400, "not an unlock key: "),
        ("unlock", "locked", {}, 400, "not an unlock key: "),
        ("init", "locked", {}, 503, "This node is already part of a swarm"),
        ("join", "locked", {}, 503, "This node is already part of a swarm"),
    ],
)  # fmt: skip
def test_membership_that_cannot_change(
    tmp_path: Path, path: str, state: str, body: Any, status: int, text: str
) -> None:
    async def story(home: House) -> None:
        home.backend.state = state
        got, said = await home.refusal("POST", f"/swarm/{path}", body)
        assert (got, said[: len(text)]) == (status, text)
        assert not [c for c in home.backend.called if c != "barrier"]

    play(tmp_path, story)


async def engine_info(call: Call) -> None:
    await call.whole(b'{"Name":"host1"}', "200 OK", "Content-Type: application/json")


def test_unlocking(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        home.backend.state, home.backend.is_manager = "locked", False
        key = "SWMKEY-1-" + base64.b64encode(home.backend.unlock_key).decode().rstrip("=")
        wrong = "SWMKEY-1-" + base64.b64encode(b"w" * 32).decode().rstrip("=")
        refusal = (401, "swarm could not be unlocked: invalid key provided")
        assert await home.refusal("POST", "/swarm/unlock", {"UnlockKey": wrong}) == refusal
        assert await home.ask("POST", "/swarm/unlock", {"UnlockKey": key}) == (200, b"")
        assert home.backend.called == [("unlock", b"w" * 32), ("unlock", b"k" * 32)]
        home.engine.answers["/info"] = engine_info
        home.backend.error = "locked"
        swarm = (await home.get("/info"))["Swarm"]
        assert (swarm["LocalNodeState"], swarm["ControlAvailable"]) == ("locked", False)

    play(tmp_path, story)


def test_the_unlock_key_is_made_rotated_and_cleared(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        async def update(*, autolock: bool, query: str = "") -> str:
            shown = await home.get("/swarm")
            spec = {**shown["Spec"], "EncryptionConfig": {"AutoLockManagers": autolock}}
            path = f"/swarm/update?version={shown['Version']['Index']}{query}"
            assert await home.ask("POST", path, spec) == (200, b"")
            answer = await home.get("/swarm/unlockkey")
            assert set(answer) == {"UnlockKey"}
            return str(answer["UnlockKey"])

        home.engine.answers["/info"] = engine_info
        rotate = "&rotateManagerUnlockKey=true"
        assert (await home.get("/swarm/unlockkey")) == {"UnlockKey": ""}
        assert await update(autolock=False) == ""
        assert await update(autolock=False, query=rotate) == ""
        assert unwrap(home.backend.store.cluster).unlock.version == 0
        first = await update(autolock=True)
        assert re.fullmatch(r"SWMKEY-1-[A-Za-z0-9+/]{43}", first)
        assert await update(autolock=True) == first
        assert unwrap(home.backend.store.cluster).unlock.version == 1
        second = await update(autolock=True, query=rotate)
        assert second not in {first, ""}
        bare = second.removeprefix("SWMKEY-1-")
        raw = unwrap(home.backend.store.cluster).unlock.key
        for path in ("/swarm", "/info", "/nodes"):
            text = json.dumps(await home.get(path))
            assert bare not in text
            assert raw.hex() not in text
        assert (await home.get("/swarm"))["Spec"]["EncryptionConfig"] == {"AutoLockManagers": True}
        assert bare not in repr(home.backend.store.cluster)
        assert repr(raw)[2:-1] not in repr(home.backend.store.cluster)
        assert await update(autolock=False) == ""
        assert unwrap(home.backend.store.cluster).unlock.version == 3
        assert await update(autolock=True) not in {first, second, ""}

    play(tmp_path, story)


# --- networks, logs, events ----------------------------------------------------------------------------------------------
def test_networks_of_both_worlds(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        local = {"Id": "f" * 64, "Name": "bridge", "Driver": "bridge"}
        own = {"Id": "e" * 64, "Name": "swarm-1", "Driver": "swarm"}

        async def all_(call: Call) -> None:
            await call.whole(json.dumps([local, own]).encode(), "200 OK", "Content-Type: application/json")

        async def bridge(call: Call) -> None:
            await call.whole(json.dumps(local).encode(), "200 OK", "Content-Type: application/json")

        home.engine.answers.update({"/networks": all_, "/networks/bridge": bridge})
        _, made = await home.ask(
            "POST", "/networks/create", {"Name": "net", "Driver": "overlay", "Labels": {"a": "b"}}
        )
        assert [n["Name"] for n in await home.get("/networks")] == ["bridge", "net"]
        network = await home.get("/networks/net")
        assert set(network) == {
            "Name",
            "Id",
            "Created",
            "Scope",
            "Driver",
            "EnableIPv6",
            "IPAM",
            "Internal",
            "Attachable",
            "Ingress",
            "ConfigFrom",
            "ConfigOnly",
            "Containers",
            "Options",
            "Labels",
        }
        assert (network["Scope"], network["Driver"], network["Labels"], network["Containers"]) == (
            "swarm",
            "overlay",
            {"a": "b"},
            None,
        )
        assert await home.get(f"/networks/{made['Id']}") == network
        assert await home.get("/networks/net?scope=swarm") == network
        assert await home.get("/networks/bridge") == local
        assert (await home.get("/networks/bridge?scope=swarm"))["Scope"] == "swarm"
        assert (await home.refusal("GET", "/networks/net?scope=local"))[0] == 404
        for name in ("net", "bridge", "ingress"):
            assert await home.refusal("POST", "/networks/create", {"Name": name, "Driver": "overlay"}) == (
                409,
                f"network with name {name} already exists",
            )
        taken = {"Name": "x", "Driver": "overlay", "IPAM": {"Config": [{"Subnet": "10.240.0.0/24"}]}}
        assert "overlaps" in (await home.refusal("POST", "/networks/create", taken))[1]

    play(tmp_path, story)  # fmt: skip


def frame(stream: int, text: str) -> bytes:
    return bytes((stream, 0, 0, 0)) + len(text).to_bytes(4, "big") + text.encode()


def test_logs_are_framed_line_by_line(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        service_id = await create(home)
        (service,) = home.backend.store.services.all()
        one, two = "1" * 25, "2" * 25
        home.backend.put(
            a_task(one, service), a_task(two, service, slot=2), a_task("3" * 25, service, node_id="")
        )
        whole = frame(1, "2026-01-01T00:00:00Z out\n") + frame(2, "2026-01-01T00:00:01Z err\n")
        home.backend.pieces = [
            LogPiece("r", one, whole[:5]),
            LogPiece("r", two, frame(1, "2026-01-01T00:00:02Z b\n")),
            LogPiece("r", one, whole[5:], done=True),
            LogPiece("r", two, b"", done=True, error="node x is not available"),
        ]
        query = "stdout=1&stderr=1&timestamps=1&tail=5&since=3&follow=0"
        answer = await home.client._exchange("GET", f"/services/web/logs?{query}", None, {})
        assert dict(answer.headers)[b"Content-Type"] == b"application/vnd.docker.raw-stream"
        warning = "warning: incomplete log stream. some logs could not be retrieved for the following reasons: node x is not available\n"
        assert answer.body == frame(1, "2026-01-01T00:00:02Z b\n") + whole + frame(2, warning)
        assert home.backend.asked_logs == dict(part.split("=") for part in query.split("&"))
        about = f"com.docker.swarm.node.id={NODE_ID},com.docker.swarm.service.id={service_id},com.docker.swarm.task.id={two}"
        answer = await home.client._exchange(
            "GET", f"/tasks/{two}/logs?details=1&stdout=1&timestamps=1", None, {}
        )
        assert answer.body.startswith(frame(1, f"2026-01-01T00:00:02Z {about} b\n"))
        assert await home.refusal("GET", "/services/web/logs") == (
            500,
            "Bad parameters: you must choose at least one stream",
        )
        for query in ("tail=-1", "tail=" + "9" * 5000, "tail=²", "since=yesterday"):
            status, said = await home.refusal("GET", f"/services/web/logs?stdout=1&{quote(query, safe='=')}")
            assert (status, query.partition("=")[0] in said) == (400, True), said
        assert await home.refusal("GET", "/services/no/logs?stdout=1") == (404, "service no not found")

    play(tmp_path, story)  # fmt: skip


def test_a_terminals_logs_have_no_frames(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        await create(home, TaskTemplate={"ContainerSpec": {"Image": "a", "TTY": True}})
        (service,) = home.backend.store.services.all()
        home.backend.put(a_task("1" * 25, service))
        home.backend.pieces = [LogPiece("r", "1" * 25, b"line\r\n", done=True)]
        answer = await home.client._exchange("GET", "/services/web/logs?stdout=1", None, {})
        assert answer.body == b"line\r\n"

    play(tmp_path, story)


def test_events_of_both_worlds(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        async def engine_events(call: Call) -> None:
            assert "since=1" in call.target
            await call.whole(b'{"Type":"container","Action":"start","scope":"local"}\n')

        home.engine.answers["/events"] = engine_events
        service_id = await create(home, Labels={"a": "b"})
        version = (await home.get("/services/web"))["Version"]["Index"]
        changed = {
            **SPEC,
            "TaskTemplate": {"ContainerSpec": {"Image": "web:2"}},
            "Mode": {"Replicated": {"Replicas": 3}},
        }
        await home.ask("POST", f"/services/web/update?version={version}", changed)
        await home.ask("DELETE", "/services/web")

        async def past(**wanted: Any) -> list[Any]:
            answer = await home.client._exchange("GET", "/events?since=1&" + filters(**wanted), None, {})
            assert answer.status == 200
            return [json.loads(line) for line in answer.body.splitlines()]

        created, updated, removed, local = [e for e in await past() if e["Type"] != "node"]
        assert created["Actor"] == {"ID": service_id, "Attributes": {"name": "web"}}
        assert (created["Type"], created["Action"], created["scope"]) == ("service", "create", "swarm")
        assert created["timeNano"] // 10**9 == created["time"]
        assert updated["Actor"]["Attributes"] == {
            "name": "web",
            "image.old": "web:1",
            "image.new": "web:2",
            "replicas.old": "1",
            "replicas.new": "3",
        }
        assert removed["Action"] == "remove"
        assert local["scope"] == "local"

        async def actions(**wanted: Any) -> list[str]:
            return [e["Action"] for e in await past(**wanted) if e.get("scope") == "swarm"]

        assert await actions(type=["service"]) == ["create", "update", "remove"]
        assert await actions(event={"update": True}) == ["update"]
        assert (
            await actions(service=["we"])
            == await actions(service=[service_id])
            == ["create", "update", "remove"]
        )
        assert (
            await actions(scope=["local"])
            == await actions(service=["db"])
            == await actions(container=["web"])
            == []
        )
        assert await actions(label=["image.new=web:2"]) == ["update"]
        assert await actions(network=["web"]) == []
        for query, text in (
            ("since=x", "since"),
            ("until=-1", "until"),
            ("since=5&until=4", "cannot be after"),
            (filters(bogus=["a"]), "Invalid filter"),
        ):
            status, said = await home.refusal("GET", f"/events?{query}")
            assert status == 400
            assert text in said

    play(tmp_path, story)  # fmt: skip


def test_present_events_come_as_they_happen_and_end_with_their_reader(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        async def endless(call: Call) -> None:
            await call.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n")
            await call.reader.read()

        home.engine.answers["/events"] = endless
        async with home.client.stream("GET", "/events") as pieces:
            assert await anext(pieces) == b"{}\n"
            await create(home)
            assert json.loads(await anext(pieces))["Action"] == "create"
        await asyncio.wait_for(home.engine.ended.wait(), 5)

    play(tmp_path, story)
