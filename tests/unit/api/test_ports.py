"""Published ports against what hosts use: refused where the swarm itself stands, told where a program holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swarm_agent.config import AgentConfig
from swarm_agent.objects.records import HeldPort, NodeDescription
from tests.unit.api.backend_double import NODE_ID, House, a_node, play, replace

SSH = HeldPort(protocol="tcp", number=22, holder="sshd")
SAID = "port 22/tcp is not taken on node host1, where sshd holds it"


def service(*ports: dict[str, Any], name: str = "web") -> dict[str, Any]:
    return {
        "Name": name,
        "TaskTemplate": {"ContainerSpec": {"Image": "web:1"}},
        "Mode": {"Replicated": {"Replicas": 1}},
        "EndpointSpec": {"Ports": list(ports)},
    }


def port(published: int, mode: str = "ingress") -> dict[str, Any]:
    return {"TargetPort": 80, "PublishedPort": published, "PublishMode": mode}


def with_hosts(home: House, *held: HeldPort, others: int = 0) -> None:
    about: dict[str, Any] = {
        "nano_cpus": 4_000_000_000,
        "memory_bytes": 1 << 33,
        "os": "linux",
        "architecture": "x86_64",
    }
    first = home.backend.store.nodes.get(NODE_ID)
    told = NodeDescription(hostname="host1", held_ports=held, **about)
    home.backend.put(replace(first, description=told))
    for n in range(others):
        name = f"host{n + 2}"
        home.backend.put(
            replace(a_node(str(n) * 25, name), description=NodeDescription(hostname=name, **about))
        )
    home.backend.settle()


def test_the_swarms_own_ports_are_refused_by_name(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        for mode in ("ingress", "host"):
            status, said = await home.refusal("POST", "/services/create", service(port(80), port(7946, mode)))
            assert status == 400
            assert "published port 7946/tcp is the swarm's own on every host (Raft between managers)" in said
        status, made = await home.ask("POST", "/services/create", service(port(80)))
        assert status == 201
        status, said = await home.refusal("POST", "/services/web/update?version=1", service(port(7946)))
        assert status == 400
        assert "the swarm's own" in said
        other = {**port(7946), "Protocol": "udp"}
        status, made = await home.ask("POST", "/services/create", service(other, name="udp"))
        assert status == 201, made

    play(tmp_path, story)


def test_what_the_swarm_uses_follows_the_configuration() -> None:
    assert AgentConfig().own_ports.keys() == {
        ("tcp", 2377),
        ("tcp", 2378),
        ("tcp", 7946),
        ("udp", 4789),
        ("tcp", 9323),
    }
    assert ("tcp", 7000) in AgentConfig(raft_port=7000).own_ports
    assert ("tcp", 9323) not in AgentConfig(metrics_addr="").own_ports


def test_a_port_a_program_holds_is_told_by_create_update_ps_why_and_ls(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        with_hosts(home, SSH, others=1)
        status, made = await home.ask("POST", "/services/create", service(port(22), port(80)))
        assert (status, made["Warnings"]) == (201, [SAID])
        home.backend.settle()
        (task,) = await home.get("/tasks")
        assert (task["Status"]["State"], task["Status"]["Err"]) == ("running", SAID)
        why = await home.get("/swarm-agent/services/web/why")
        assert why["Notes"] == [SAID]
        (shown,) = await home.get("/services")
        assert [p["PublishedPort"] for p in shown["Endpoint"]["Ports"]] == [22, 80], "the other host takes it"
        status, answer = await home.ask(
            "POST", f"/services/web/update?version={shown['Version']['Index']}", service(port(22))
        )
        assert (status, answer["Warnings"]) == (200, [SAID])

    play(tmp_path, story)


def test_a_port_that_no_node_takes_is_not_shown_as_published(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        with_hosts(home, SSH)
        await home.ask("POST", "/services/create", service(port(22), port(80)))
        home.backend.settle()
        for shown in (*(await home.get("/services")), await home.get("/services/web")):
            assert [p["PublishedPort"] for p in shown["Endpoint"]["Ports"]] == [80]
            assert [p["PublishedPort"] for p in shown["Endpoint"]["Spec"]["Ports"]] == [22, 80]

    play(tmp_path, story)


def test_a_host_mode_task_goes_where_the_port_is_free_and_waits_with_the_reason(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        with_hosts(home, SSH, others=1)
        await home.ask("POST", "/services/create", service(port(22, "host")))
        home.backend.settle()
        (task,) = await home.get("/tasks")
        assert task["NodeID"] == "0" * 25
        version = (await home.get("/services/web"))["Version"]["Index"]
        two = {**service(port(22, "host")), "Mode": {"Replicated": {"Replicas": 2}}}
        await home.ask("POST", f"/services/web/update?version={version}", two)
        home.backend.settle()
        (waits,) = [t for t in await home.get("/tasks") if not t.get("NodeID")]
        reasons = {r["Code"]: r for r in waits["Reasons"]}
        assert reasons["held-ports"]["Text"] == "host-mode port held by a program of the host on 1 node"
        assert reasons["held-ports"]["Best"] == SAID
        with_hosts(home, others=1)
        assert all(t.get("NodeID") for t in await home.get("/tasks")), "it is free by now"

    play(tmp_path, story)


def test_an_automatic_port_is_one_that_no_host_uses(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        taken = tuple(HeldPort(protocol="tcp", number=n, holder="x") for n in (30000, 30001))
        with_hosts(home, *taken)
        await home.ask("POST", "/services/create", service({"TargetPort": 80}))
        home.backend.settle()
        (shown,) = await home.get("/services")
        assert [p["PublishedPort"] for p in shown["Endpoint"]["Ports"]] == [30002]

    play(tmp_path, story)
