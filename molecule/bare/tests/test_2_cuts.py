"""A run that is cut short loses nothing: run again to its end, what runs is what is installed and configured."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts.hosts import ROOT
from tests.hosts.shell import wait_for
from tests.hosts.swarm import Swarm, cut, play, tasks

MANAGER, WORKER = 1, 2
AGENT = "swarm-agent.service"
_OTHER = "the other source"  # a path that is not known yet
_USUAL_METRICS, _OTHER_METRICS = "127.0.0.1:9323", "127.0.0.1:9324"


@pytest.fixture(scope="module")
def other_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of another version."""
    copy = tmp_path_factory.mktemp("other")
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.lock"):
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(ROOT / "swarm_agent", copy / "swarm_agent", ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "swarm_agent" / "py.typed").open("a") as file:
        file.write("another version\n")
    return copy


@dataclasses.dataclass(frozen=True)
class World:
    swarm: Swarm
    inventory: Path
    source: Path

    def ssh(self, line: str, *, check: bool = True) -> str:
        return self.swarm.hosts.ssh(WORKER, line, check=check).strip()

    def pid(self) -> str:
        return self.ssh(f"systemctl show --property MainPID --value {AGENT}")

    # What runs, asked of what runs; none of it is what the roles look at.

    def metrics(self) -> str:
        for address in (_USUAL_METRICS, _OTHER_METRICS):
            if self.ssh(f"curl --silent --fail --max-time 5 http://{address}/healthz", check=False):
                return address
        return "none"

    def log_driver(self) -> str:
        return self.ssh("docker --context engine info --format '{{.LoggingDriver}}'")

    def is_experimental(self) -> bool:
        return self.ssh("docker --context engine info --format '{{.ExperimentalBuild}}'") == "true"

    def is_of_old_unit(self) -> bool:
        return "OLD_UNIT=yes" in self.ssh(f"tr '\\0' '\\n' </proc/{self.pid()}/environ")

    def is_new_version(self) -> bool:
        """The file is opened by the program that runs, wherever the link points by now."""
        python = self.ssh(f"tr '\\0' '\\n' </proc/{self.pid()}/cmdline").split()[0]
        folder = python.removesuffix("/bin/python3")
        return "another version" in self.ssh(f"cat {folder}/lib/python3*/site-packages/swarm_agent/py.typed")

    def is_member(self) -> bool:
        name = self.swarm.hosts.name(WORKER)
        nodes = [n for n in self.swarm.get(MANAGER, "/nodes") if n["Description"]["Hostname"] == name]
        return [n["Status"]["State"] for n in nodes] == ["ready"]


@pytest.fixture(scope="module")
def world(swarm: Swarm, inventory: Path, other_source: Path) -> World:
    return World(swarm, inventory, other_source)


def _nothing(_world: World) -> None:
    """All that differs is in the variables."""


def _old_unit(world: World) -> None:
    """A unit as another release may have written it, and a process that was started from it."""
    world.ssh(
        f"sed -i 's/^ExecStart=/Environment=OLD_UNIT=yes\\n&/' /etc/systemd/system/{AGENT}"
        f" && systemctl daemon-reload && systemctl restart {AGENT}"
    )
    assert world.is_of_old_unit()


def _out(world: World) -> None:
    world.swarm.docker(WORKER, "swarm", "leave")
    world.swarm.docker(MANAGER, "node", "rm", "--force", world.swarm.hosts.name(WORKER))
    assert not world.is_member()


def _variables(world: World, stated: dict[str, object]) -> str:
    return json.dumps({key: str(world.source) if value == _OTHER else value for key, value in stated.items()})


@dataclasses.dataclass(frozen=True)
class Case:
    """What differs, where the run is cut, and whether what runs is still as before, and then as wanted."""

    at: str
    spoil: Callable[[World], None]
    variables: dict[str, object]
    done: Callable[[World], bool]


CASES = {
    "agent.toml": Case(
        "Point the docker command at the swarm",
        _nothing,
        {"swarm_agent_metrics_addr": _OTHER_METRICS},
        lambda world: world.metrics() == _OTHER_METRICS,
    ),
    "daemon.json": Case(
        "Reload the engine",
        _nothing,
        {"swarm_engine_settings": {"log-driver": "local"}},
        lambda world: world.log_driver() == "local",
    ),
    # A reload takes up only some of them, and the file is as it should be by then.
    "daemon.json, after the reload": Case(
        "Restart the engine",
        _nothing,
        {"swarm_engine_settings": {"log-driver": "local", "experimental": True}},
        lambda world: world.is_experimental(),
    ),
    "a unit": Case(
        "Point the docker command at the swarm", _old_unit, {}, lambda world: not world.is_of_old_unit()
    ),
    "a new version": Case(
        "Have its configuration and units",
        _nothing,
        {"swarm_agent_source": _OTHER},
        lambda world: world.is_new_version(),
    ),
    "during a join": Case("Join", _out, {}, lambda world: world.is_member()),
}


@pytest.mark.parametrize("name", CASES)
def test_a_cut(world: World, name: str) -> None:
    case = CASES[name]
    case.spoil(world)
    assert not case.done(world)
    words = ("--limit", world.swarm.hosts.name(WORKER), "--extra-vars", _variables(world, case.variables))
    stopped = cut(world.inventory, *words, at=case.at)
    assert f"[{case.at}]" in stopped.said.replace(" : ", "["), stopped.said
    assert stopped.code != 0, stopped.said
    if name != "during a join":
        assert not case.done(world), "the cut came too late to show anything"
    finished = play(world.inventory, *words)
    assert finished.code == 0, finished.said
    assert case.done(world), finished.said
    again = play(world.inventory, *words)
    assert (again.code, again.changed) == (0, set()), again.said
    # As it was, for the next.
    back = play(world.inventory)
    assert back.code == 0, back.said


@pytest.mark.skipif(
    "SWARM_CUT_ALL" not in os.environ, reason="a cut after every task takes half an hour: SWARM_CUT_ALL=1"
)
def test_a_cut_after_every_task(world: World) -> None:
    """Everything differs at once: settings, configuration, unit, version, membership."""
    limit = ("--limit", world.swarm.hosts.name(WORKER))
    variables = {key: value for case in CASES.values() for key, value in case.variables.items()}
    words = (*limit, "--extra-vars", _variables(world, variables))

    def spoil() -> None:
        back = play(world.inventory, *limit)
        assert back.code == 0, back.said
        settings = json.loads(world.ssh("cat /etc/docker/daemon.json"))
        for key in ("log-driver", "experimental"):
            settings.pop(key, None)
        world.ssh(
            f"echo '{json.dumps(settings)}' >/etc/docker/daemon.json; systemctl reset-failed docker; systemctl restart docker"
        )
        _old_unit(world)
        wait_for("the worker to be back", world.is_member, timeout=60)
        _out(world)

    def wrong() -> list[str]:
        return [name for name, case in CASES.items() if not case.done(world)]

    spoil()
    assert set(wrong()) == set(CASES)
    whole = play(world.inventory, *words)
    assert whole.code == 0, whole.said
    assert wrong() == []
    for number, name in enumerate(names := tasks(whole.said), 1):
        spoil()
        stopped = cut(world.inventory, *words, at=name)
        finished = play(world.inventory, *words)
        assert finished.code == 0, f"cut at {name}:\n{stopped.said}\n{finished.said}"
        assert wrong() == [], f"cut at {name}:\n{stopped.said}\n{finished.said}"
        again = play(world.inventory, *words)
        assert (again.code, again.changed) == (0, set()), f"cut at {name}:\n{again.said}"
        print(f"cut at {name} ({number} of {len(names)}): all is as wanted", flush=True)
