"""Managers held at the first feature level, upgraded one by one, and one taken back: real daemons, told by ``docker info``. In order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial

import pytest

from swarm_agent.objects import features
from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import IMAGE, Lab, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

FIRST = "feature_level = 1\n"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with swarm_lab(tmp_path_factory.mktemp("levels")) as found:
        yield found


def restart(lab: Lab, number: int, more: str = "") -> None:
    lab[number].kill_agent(signal.SIGTERM)
    lab[number].start_agent(more=more)


def serves(lab: Lab, number: int) -> bool:
    return lab[number].call_api("GET", "/services")[0] == 200


def level(lab: Lab, on: int) -> int:
    return int(lab[on].get("/info")["Swarm"]["FeatureLevel"])


def has_web(lab: Lab, on: int) -> bool:
    status, services = lab[on].call_api("GET", "/services")
    return status == 200 and [s["Spec"]["Name"] for s in services] == ["web"]


def test_a_swarm_at_the_first_level(lab: Lab) -> None:
    for number in (1, 2, 3):
        restart(lab, number, FIRST)
    lab[1].swarm("swarm", "init", "--advertise-addr", lab[1].address)
    token = lab[1].swarm("swarm", "join-token", "-q", "manager").strip()
    for number in (2, 3):
        lab[number].swarm("swarm", "join", "--token", token, f"{lab[1].address}:2377")
    lab[1].swarm("service", "create", "-d", "--name", "web", "--replicas", "3", f"{IMAGE}:1", "/task", "serve", "web", "7000")  # fmt: skip
    lab.running(1, "web", 3)
    assert level(lab, 1) == 1
    status, said = lab[1].call_api(
        "POST", "/swarm/update?version=1", {"EncryptionConfig": {"AutoLockManagers": True}}
    )
    assert (status, f"feature level {features.AUTOLOCK}" in str(said)) == (400, True)


def test_one_that_is_upgraded_and_taken_back_keeps_its_data(lab: Lab) -> None:
    restart(lab, 3)
    until(lambda: has_web(lab, 3), "the upgraded manager to serve", 30)
    assert level(lab, 3) == 1
    wide = {
        "Name": "wide",
        "TaskTemplate": {"ContainerSpec": {"Image": f"{IMAGE}:1"}},
        "Mode": {"Global": {}},
    }
    status, said = lab[3].call_api("POST", "/services/create", wide)
    assert (status, f"a global service needs feature level {features.ORCHESTRATION}" in str(said)) == (
        501,
        True,
    )
    restart(lab, 3, FIRST)
    until(lambda: has_web(lab, 3), "the manager that went back to serve", 30)
    lab.running(3, "web", 3)


def test_the_level_rises_with_the_last_and_then_nobody_goes_back(lab: Lab) -> None:
    for number in (1, 2, 3):
        restart(lab, number)
        until(partial(has_web, lab, number), "it to serve", 30)
    until(lambda: level(lab, 1) == features.LEVEL, "the level to rise", 30)
    restart(lab, 3, FIRST)
    said = until(lambda: lab[3].get("/info")["Swarm"]["Error"], "it to say why it does not work", 30)
    assert "feature level 1" in said
    assert f"level {features.LEVEL}" in said
    assert not serves(lab, 3)
    assert has_web(lab, 1)
    restart(lab, 3)
    until(lambda: has_web(lab, 3), "it to work again", 30)
    lab.running(3, "web", 3)
