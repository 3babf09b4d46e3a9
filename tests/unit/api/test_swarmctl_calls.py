"""What ``docker service`` has no verb for: plans, reasons, histories, revisions, runs, rebalancing; through the socket and swarmctl."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from swarm_agent import cli
from swarm_agent.objects.records import NodeDescription, UpdateStatus
from tests.unit.api.backend_double import NODE_ID, House, a_node, play, replace

SPEC: dict[str, Any] = {
    "Name": "web",
    "TaskTemplate": {"ContainerSpec": {"Image": "web:1"}},
    "Mode": {"Replicated": {"Replicas": 3}},
}
JOB: dict[str, Any] = {
    **SPEC,
    "Name": "job",
    "Mode": {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 2}},
}


def with_nodes(home: House, *names: str, memory: int = 1 << 33) -> None:
    about: dict[str, Any] = {
        "nano_cpus": 4_000_000_000,
        "memory_bytes": memory,
        "os": "linux",
        "architecture": "x86_64",
    }
    first = home.backend.store.nodes.get(NODE_ID)
    home.backend.put(replace(first, description=NodeDescription(hostname="host1", **about)))
    for n, name in enumerate(names):
        home.backend.put(
            replace(a_node(str(n) * 25, name), description=NodeDescription(hostname=name, **about))
        )
    home.backend.settle()


async def create(home: House, spec: dict[str, Any] = SPEC) -> str:
    status, answer = await home.ask("POST", "/services/create", spec)
    assert status == 201, answer
    home.backend.settle()
    return str(answer["ID"])


async def update(home: House, spec: dict[str, Any]) -> None:
    version = (await home.get(f"/services/{spec['Name']}"))["Version"]["Index"]
    status, answer = await home.ask("POST", f"/services/{spec['Name']}/update?version={version}", spec)
    assert status == 200, answer
    home.backend.settle()


def image(name: str) -> dict[str, Any]:
    return {
        **SPEC,
        "TaskTemplate": {"ContainerSpec": {"Image": name}},
        "UpdateConfig": {"Parallelism": 0, "Monitor": 1},
    }


async def swarmctl(home: House, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    await asyncio.to_thread(cli.main, ["--socket", home.path, *words])
    return capsys.readouterr().out


def test_a_plan_is_what_then_happens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story(home: House) -> None:
        with_nodes(home, "host2", "host3")
        status, planned = await home.ask("POST", "/swarm-agent/plan", SPEC)
        assert (status, planned["Action"], planned["Tasks"], planned["Index"]) == (
            200,
            "create",
            {"create": 3},
            0,
        )
        assert not list(home.backend.store.services.all())
        assert not list(home.backend.store.tasks.all())
        await create(home)
        hosts = {n.id: n.description.hostname for n in home.backend.store.nodes.all()}
        assert Counter(hosts[t.node_id] for t in home.backend.store.tasks.all()) == Counter(
            s["To"] for s in planned["Placement"]
        )
        said = await swarmctl(home, capsys, "plan", "web", "--image", "web:2", "--replicas", "4")
        assert said.splitlines()[0].startswith("web would be updated: 1 create, 3 ")
        assert "TaskTemplate.ContainerSpec.Image: web:1 -> web:2" in said
        assert "Mode.Replicated.Replicas: 3 -> 4" in said
        version = (await home.get("/services/web"))["Version"]["Index"]
        assert said.splitlines()[-1] == f"made against version {version} of the service"
        assert (
            await swarmctl(home, capsys, "plan", "web")
            == f"web would not change: 3 keep\nmade against version {version} of the service\n"
        )

    play(tmp_path, story)


def test_a_plan_is_checked_like_the_call_itself(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        with_nodes(home)
        port = {"EndpointSpec": {"Ports": [{"TargetPort": 80, "PublishedPort": 80}]}}
        await create(home, {**SPEC, **port})
        refused = await home.refusal("POST", "/swarm-agent/plan", {**SPEC, **port, "Name": "other"})
        assert refused[0] == 400
        assert "port '80' is already in use by service 'web'" in refused[1]
        many = {**SPEC, "Mode": {"Replicated": {"Replicas": 5001}}}
        assert (await home.refusal("POST", "/swarm-agent/plan", many))[0] == 400

    play(tmp_path, story)


def test_why_names_the_missing_memory_and_the_missing_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(home: House) -> None:
        with_nodes(home, "host2", memory=1 << 30)
        needs = {"Resources": {"Reservations": {"MemoryBytes": 4 << 30}}}
        await create(home, {**SPEC, "Name": "big", "TaskTemplate": {**SPEC["TaskTemplate"], **needs}})
        said = await swarmctl(home, capsys, "why", "big")
        assert "no suitable node (insufficient resources on 2 nodes)" in said
        assert "memory" in said.lower()
        labelled = {"Placement": {"Constraints": ["node.labels.disk == ssd"]}}
        await create(home, {**SPEC, "Name": "fast", "TaskTemplate": {**SPEC["TaskTemplate"], **labelled}})
        said = await swarmctl(home, capsys, "why", "fast")
        assert "scheduling constraints not satisfied on 2 nodes" in said
        assert "node.labels.disk" in said
        everywhere = {"Mode": {"Global": {}}, "TaskTemplate": {**SPEC["TaskTemplate"], **labelled}}
        await create(home, {**SPEC, "Name": "fastest", **everywhere})
        said = await swarmctl(home, capsys, "why", "fastest")
        assert said == "no node is to have a task of it: none is active and meets its constraints\n"
        await create(home)
        assert await swarmctl(home, capsys, "why", "web") == "every task of web that should run is running\n"

    play(tmp_path, story)


def test_back_to_any_kept_revision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story(home: House) -> None:
        with_nodes(home)
        await create(home)
        for n in (2, 3, 4):
            await update(home, image(f"web:{n}"))
        listed = await home.get("/swarm-agent/services/web/revisions")
        assert [(r["Number"], r["Image"], r["Current"], r["Previous"]) for r in listed] == [
            (4, "web:4", True, False),
            (3, "web:3", False, True),
            (2, "web:2", False, False),
            (1, "web:1", False, False),
        ]
        await swarmctl(home, capsys, "rollback", "web", "--to", "2")
        home.backend.settle()
        shown = await home.get("/services/web")
        assert shown["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == "web:2"
        assert shown["UpdateStatus"]["Message"] in (
            "manually requested rollback to revision 2",
            "rollback completed",
        )
        status, text = await home.refusal("POST", "/swarm-agent/services/web/rollback?to=9")
        assert (status, text) == (404, "service web has no revision 9: 1, 2, 3, 4 are kept")
        assert (await home.refusal("POST", "/swarm-agent/services/web/rollback?to=2"))[0] == 400
        await update(home, {**image("web:2"), "Labels": {"swarm-agent.pre-start": "migrate"}})
        refused = await home.refusal("POST", "/swarm-agent/services/web/rollback?to=1")
        assert "revision 1 was made when label swarm-agent.pre-start said something else" in refused[1]

    play(tmp_path, story)


def test_a_job_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story(home: House) -> None:
        with_nodes(home)
        await create(home, JOB)
        await create(home, {**JOB, "Name": "one", "Mode": {"ReplicatedJob": {}}})
        mode = (await home.get("/services/one"))["Spec"]["Mode"]
        assert mode == {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 1}}
        shown = await home.get("/services/job?status=1")
        assert shown["JobStatus"]["JobIteration"] == {}
        await swarmctl(home, capsys, "run", "job")
        home.backend.settle()
        assert (await home.get("/services/job"))["JobStatus"]["JobIteration"] == {"Index": 1}
        await create(home)
        status, text = await home.refusal("POST", "/swarm-agent/services/web/run")
        assert (status, text) == (
            400,
            "rpc error: code = InvalidArgument desc = service web is no job: it is running all the time",
        )

    play(tmp_path, story)


def test_advice_and_a_drain_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story(home: House) -> None:
        with_nodes(home)
        await create(home)
        with_nodes(home, "host2")
        said = await swarmctl(home, capsys, "rebalance")
        assert said.splitlines()[0] == "would move 1 of 3"
        assert "host1 -> host2  3 tasks of the service on its node, 0 there" in said
        said = await swarmctl(home, capsys, "drain", "host1")
        assert said.splitlines()[0] == "host1 is active, 3 tasks left"
        refused = await home.refusal("POST", "/swarm-agent/rebalance", {"Now": True})
        assert refused == (400, "unknown field Now: known are Services, Parallel, Apply")
        for body, text in (
            ([], "the body is not an object"),
            ({"Services": "web"}, "Services is not a list of names or ids"),
            ({"Services": [5]}, "Services is not a list of names or ids"),
            ({"Parallel": True}, "Parallel: True is not a number from 1 to 1000"),
            ({"Parallel": 1 << 70}, "is not a number from 1 to 1000"),
            ({"Apply": "no"}, "Apply: 'no' is neither true nor false"),
        ):
            status, said = await home.refusal("POST", "/swarm-agent/rebalance", body)
            assert (status, text in said) == (400, True), said
        assert (await home.refusal("POST", "/swarm-agent/services/web/rollback?to=%C2%B2"))[0] == 404

    play(tmp_path, story)


def test_the_history_of_a_slot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story(home: House) -> None:
        with_nodes(home)
        await create(home, {**SPEC, "Mode": {"Replicated": {"Replicas": 1}}})
        await update(home, {**image("web:2"), "Mode": {"Replicated": {"Replicas": 1}}})
        newest = max(home.backend.store.tasks.all(), key=lambda t: t.created_at)
        told = await home.get(f"/swarm-agent/tasks/{newest.id}/history")
        assert [(c["Revision"], c["Image"], c["Cause"]) for c in told] == [
            (1, "web:1", "create"),
            (2, "web:2", "update"),
        ]
        said = await swarmctl(home, capsys, "history", newest.id)
        assert "made by an update" in said.splitlines()[-1]

    play(tmp_path, story)


def test_a_task_that_goes_where_its_volume_is_not_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the plan, in why and in the events."""

    async def story(home: House) -> None:
        with_nodes(home, "host2")
        holder = home.backend.store.nodes.get("0" * 25)
        assert holder is not None
        about = replace(holder.description, volumes=("data",))
        home.backend.put(replace(holder, description=about, spec=replace(holder.spec, availability="pause")))
        mount = {"Mounts": [{"Type": "volume", "Source": "data", "Target": "/data"}]}
        spec = {
            **SPEC,
            "Mode": {"Replicated": {"Replicas": 1}},
            "TaskTemplate": {"ContainerSpec": {"Image": "db:1", **mount}},
        }
        _, planned = await home.ask("POST", "/swarm-agent/plan", spec)
        assert [r["Code"] for r in planned["Placement"][0]["Reasons"]] == ["volume-moved"]
        await create(home, spec)
        said = await swarmctl(home, capsys, "why", "web")
        assert said.startswith(".1  running, but on host1")
        assert 'volume "data" is on node host2' in said
        (event,) = [e for e in home.backend.events.past if e["Action"] == "volume-moved"]
        assert event["Type"] == "service"
        assert 'volume "data" is on node host2' in event["Actor"]["Attributes"]["reason"]

    play(tmp_path, story)


def test_a_new_timetable_counts_from_now(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        with_nodes(home)
        await create(home, JOB)
        made = home.backend.store.services.get((await home.get("/services/job"))["ID"])
        assert made is not None
        home.backend.put(replace(made, created_at=made.created_at - 7 * 86400 * 10**9))
        await update(home, {**JOB, "Labels": {"swarm-agent.schedule": "@daily"}})
        now = home.backend.store.services.get(made.id)
        assert now is not None
        assert now.job is not None
        assert (now.job.iteration, home.backend.now() - now.job.due < 10**9) == (0, True)

    play(tmp_path, story)


def test_a_scale_leaves_no_finished_update_in_view_and_keeps_the_way_back_of_one_that_goes_on(
    tmp_path: Path,
) -> None:
    async def story(home: House) -> None:
        with_nodes(home)
        await create(home)
        service_id = (await home.get("/services/web"))["ID"]

        def stored() -> Any:
            return home.backend.store.services.get(service_id)

        await update(home, image("web:2"))
        going = UpdateStatus(state="updating", message="update in progress", started_at=home.backend.now())
        home.backend.put(replace(stored(), update_status=going))
        version = (await home.get("/services/web"))["Version"]["Index"]
        scaled = {**image("web:2"), "Mode": {"Replicated": {"Replicas": 5}}}
        assert (await home.ask("POST", f"/services/web/update?version={version}", scaled))[0] == 200
        before = stored().previous_spec
        assert before.task_template.container_spec.image == "web:1"
        assert before.mode.replicated.replicas == 5
        assert stored().update_status == going
        home.backend.put(replace(stored(), update_status=replace(going, state="completed")))
        version = (await home.get("/services/web"))["Version"]["Index"]
        assert (await home.ask("POST", f"/services/web/update?version={version}", image("web:2")))[0] == 200
        assert "UpdateStatus" not in await home.get("/services/web")

    play(tmp_path, story)
