"""Generic resources and volumes: configured, described, given to a container; written when the cluster's level allows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from swarm_agent.agent.container import create_body
from swarm_agent.agent.describe import describe, volume_events
from swarm_agent.agent.resources import environment, reported
from swarm_agent.config import AgentConfig, check_devices, load_config
from swarm_agent.network.model import ContainerNetwork
from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.objects.records import Generic, Revision, Task
from swarm_agent.objects.specs import ContainerSpec, TaskTemplate
from tests.lib.fake_engine import FakeEngine, Program
from tests.lib.virtual_loop import run

GPUS = (Generic(kind="gpu", name="/dev/nvidia0"), Generic(kind="gpu", name="/dev/nvidia1"))
LICENSES = Generic(kind="license", count=3)


def config(tmp_path: Path, text: str) -> AgentConfig:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    return load_config(file, must_exist=True)


def test_the_configuration_names_them(tmp_path: Path) -> None:
    found = config(
        tmp_path, '[generic_resources]\nlicense = 3\ngpu = ["/dev/nvidia0", "/dev/nvidia1"]\n'
    ).generic
    assert found == (*GPUS, LICENSES)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("gpu = 0", "generic_resources.gpu: 0 is no number above 0"),
        ("gpu = []", "generic_resources.gpu: an empty list"),
        ('gpu = ["a", "a"]', "generic_resources.gpu: a name is there twice"),
        ('gpu = ["a,b"]', "generic_resources.gpu: 'a,b' is no name"),
        ('gpu = [" "]', "generic_resources.gpu: ' ' is no name"),
        ('"g=u" = 1', "generic_resources.g=u: a kind is made of"),
        ("gpu = 1.5", "generic_resources"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        config(tmp_path, f"[generic_resources]\n{line}\n")
    assert said in str(caught.value)


def test_a_device_must_be_there(tmp_path: Path) -> None:
    device = tmp_path / "card"
    found = config(tmp_path, f'[generic_resources]\ngpu = ["{device}", "by-name"]\n')
    with pytest.raises(InvalidSpec, match=rf"generic_resources.gpu: this host has no {device}"):
        check_devices(found)
    device.touch()
    check_devices(found)


def test_of_a_kind_both_name_the_agents_counts() -> None:
    info = {
        "GenericResources": [
            {"NamedResourceSpec": {"Kind": "gpu", "Value": "old"}},
            {"DiscreteResourceSpec": {"Kind": "disk", "Value": 2}},
            {"DiscreteResourceSpec": {"Kind": "license", "Value": 9}},
        ]
    }
    assert reported(info, (*GPUS, LICENSES)) == (Generic(kind="disk", count=2), *GPUS, LICENSES)


def test_a_task_finds_what_it_was_given() -> None:
    template = TaskTemplate(container_spec=ContainerSpec(image="web:1", env=("A=1",)))
    task = Task(
        id="t", service_id="s", service_name="web", revision_id="r", slot=1, generic=(*GPUS, LICENSES)
    )
    plain = ContainerNetwork(network_mode="default", first=None)
    body = create_body(task, Revision(id="r", service_id="s", template=template), plain)
    assert body["Env"] == [
        "A=1",
        "DOCKER_RESOURCE_GPU=/dev/nvidia0,/dev/nvidia1",
        "DOCKER_RESOURCE_LICENSE=3",
    ]
    assert body["HostConfig"]["Devices"] == [
        {"PathOnHost": g.name, "PathInContainer": g.name, "CgroupPermissions": "rwm"} for g in GPUS
    ]


def test_a_name_that_is_no_path_is_no_device() -> None:
    assert environment([Generic(kind="gpu", name="one")]) == ["DOCKER_RESOURCE_GPU=one"]


def test_a_node_tells_of_its_named_volumes() -> None:
    async def main() -> None:
        engine = FakeEngine("host", random.Random(1))
        engine.images["web:1"] = Program()
        client = engine.client()
        news = volume_events(client)
        assert isinstance(news, AsyncGenerator)
        await anext(news)
        waiting = asyncio.create_task(anext(news))
        mounts: list[dict[str, Any]] = [
            {"Type": "volume", "Source": "data", "Target": "/data"},
            {"Type": "volume", "Source": "", "Target": "/cache"},
        ]
        body = {"Image": "web:1", "HostConfig": {"Mounts": mounts}}
        await client.call("POST", "/containers/create", query={"name": "c"}, body=body)
        async with asyncio.timeout(1):
            await waiting
        engine.volumes["elsewhere"] = {"Name": "elsewhere", "Driver": "nfs"}
        assert (await describe(client, (b"", b""), GPUS)).volumes == ("data",)
        assert (await describe(client, (b"", b""), GPUS)).generic == GPUS

    run(main())
