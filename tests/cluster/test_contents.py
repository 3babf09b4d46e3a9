"""Secrets, configs and templates inside real containers, through the real docker CLI. The tests run in order."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.network.lab import ROOT, run, until
from tests.cluster.swarm_lab import SHELL, Lab, SwarmHost, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

CREATE = ("service", "create", "--no-resolve-image", "-d", "--stop-grace-period", "0s")
FOLDER = "/run/swarm-agent/contents"
HUSH = "hush-3141592653"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder: Path = tmp_path_factory.mktemp("contents")
    with swarm_lab(folder, (1,)) as found:
        found[1].swarm("swarm", "init", "--advertise-addr", found[1].address)
        yield found


def start(lab: Lab, name: str, *arguments: str) -> str:
    """A service of one sleeping task; the name of its container."""
    lab[1].swarm(*CREATE, "--name", name, *arguments, SHELL, "sleep", "10000")
    return container(lab, name)


def container(lab: Lab, service: str) -> str:
    (task,) = lab.running(1, service, 1)
    return str(task["Status"]["ContainerStatus"]["ContainerID"])


def inside(lab: Lab, container: str, *command: str) -> str:
    return lab[1].docker("exec", container, *command)


def stat(lab: Lab, container: str, path: str) -> str:
    return inside(lab, container, "busybox", "stat", "-c", "%u %g %a %s", path).strip()


def kept(host: SwarmHost) -> list[str]:
    return host.space.run("find", FOLDER, "-type", "f", check=False).split()


def ctl(lab: Lab, *arguments: str, **more: Any) -> str:
    return run(
        sys.executable, "-m", "swarm_agent.cli", "--socket", lab[1].socket, *arguments, cwd=ROOT, **more
    )


def test_files_are_as_asked_and_cannot_be_written(lab: Lab) -> None:
    lab[1].swarm("secret", "create", "key", "-", input=HUSH)
    lab[1].swarm("config", "create", "--label", "a=b", "conf", "-", input="setting = 1\n")
    assert lab[1].swarm("secret", "ls", "--format", "{{.Name}}").split() == ["key"]
    assert HUSH not in lab[1].swarm("secret", "inspect", "key")
    assert "setting = 1" in lab[1].swarm("config", "inspect", "--pretty", "conf")
    name = start(
        lab, "files", "--read-only", "--secret", "key", "--secret", "source=key,target=/abs/key,uid=1000,gid=1001,mode=0400",
        "--config", "source=conf,target=/etc/app/app.conf", "--config", "conf",
    )  # fmt: skip
    assert inside(lab, name, "cat", "/run/secrets/key") == HUSH
    assert inside(lab, name, "cat", "/abs/key") == HUSH
    assert inside(lab, name, "cat", "/etc/app/app.conf", "/conf") == "setting = 1\n" * 2
    assert stat(lab, name, "/run/secrets/key") == f"0 0 444 {len(HUSH)}"
    assert stat(lab, name, "/abs/key") == f"1000 1001 400 {len(HUSH)}"
    assert stat(lab, name, "/conf") == "0 0 444 12"
    for path in ("/run/secrets/key", "/conf"):
        with pytest.raises(AssertionError, match="Read-only file system"):
            inside(lab, name, "sh", "-c", f"echo x > {path}")
    other = subprocess.run(
        [*lab[1].space.enter, "docker", "-H", f"unix://{lab[1].engine_socket}", "exec", "-u", "1234", name, "cat", "/abs/key"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert other.returncode != 0
    assert "Permission denied" in other.stderr


def test_nothing_of_it_is_on_disk(lab: Lab) -> None:
    host = lab[1]
    assert host.space.run("stat", "-c", "%u %a", FOLDER).strip() == "0 700"
    assert host.space.run("stat", "-f", "-c", "%T", FOLDER).strip() == "tmpfs"
    assert len(kept(host)) == 4
    assert run("grep", "-rlF", HUSH, str(host.folder), check=False) == ""


def test_they_are_gone_with_the_task(lab: Lab) -> None:
    with pytest.raises(AssertionError, match="secret 'key' is in use by the following service: files"):
        lab[1].swarm("secret", "rm", "key")
    lab[1].swarm("service", "rm", "files")
    lab.no_containers(1)
    until(lambda: kept(lab[1]) == [], "no file of the task")


def test_they_are_there_again_when_memory_was_emptied_before_the_start(lab: Lab) -> None:
    """As after a reboot: the container was made, its files are gone."""
    host = lab[1]
    name = start(lab, "again", "--restart-delay", "8s", "--secret", "key")
    host.docker("kill", name)
    until(lambda: host.docker("ps", "-aq", "--filter", "status=created").split(), "the next container")
    assert kept(host) != []
    host.space.run("sh", "-c", f"rm -r {FOLDER}")
    assert inside(lab, container(lab, "again"), "cat", "/run/secrets/key") == HUSH
    assert len(kept(host)) == 1, "those of the container that ended are wiped"


def test_a_daemon_that_was_away_wipes_what_was_removed_meanwhile(lab: Lab) -> None:
    host = lab[1]
    host.kill_agent()
    host.space.run("mkdir", f"{FOLDER}/{'z' * 25}")
    host.space.run("sh", "-c", f"echo old > {FOLDER}/{'z' * 25}/secret-0")
    host.start_agent()
    until(lambda: len(kept(host)) == 1, "the stray to be wiped", 40)
    host.swarm("service", "rm", "again")
    lab.no_containers(1)


def test_who_tracks_rolls_and_who_pins_does_not(lab: Lab) -> None:
    follow = ("--label", "swarm-agent.secret.key=track", "--update-monitor", "500ms")
    tracking = start(lab, "tracking", *follow, "--secret", "key")
    pinned = start(lab, "pinned", "--secret", "key")
    assert ctl(lab, "secret", "set", "key", input="second") == "key: version 2\n"
    until(lambda: container(lab, "tracking") != tracking, "the tracking service to roll", 60)
    assert inside(lab, container(lab, "tracking"), "cat", "/run/secrets/key") == "second"
    until(
        lambda: lab[1].get("/services/tracking")["UpdateStatus"]["State"] == "completed", "the roll's end", 60
    )
    assert container(lab, "pinned") == pinned
    assert inside(lab, pinned, "cat", "/run/secrets/key") == HUSH
    lines = ctl(lab, "secret", "versions", "key").splitlines()
    assert [(line.split()[0], line.split()[-1]) for line in lines] == [("1", "pinned"), ("*", "tracking")]
    lab[1].swarm(
        "service", "update", "-d", "--no-resolve-image", "--label-add", "swarm-agent.secret.key=2", "pinned"
    )
    until(lambda: container(lab, "pinned") != pinned, "the pinned service to roll", 60)
    assert inside(lab, container(lab, "pinned"), "cat", "/run/secrets/key") == "second"
    lab[1].swarm("service", "rm", "tracking", "pinned")


def test_templates_are_done_on_the_node(lab: Lab) -> None:
    host = lab[1]
    host.swarm("node", "update", "--label-add", "zone=z1", lab.node_id(1))
    text = 'slot {{.Task.Slot}} of {{.Service.Name}}: {{env "WHERE"}}, {{secret "pw"}}'
    host.swarm("config", "create", "--template-driver", "golang", "made", "-", input=text)
    name = start(
        lab, "tpl", "--env", "WHERE={{.Node.Labels.zone}}", "--hostname", "{{.Service.Name}}-{{.Task.Slot}}",
        "--mount", "type=volume,source={{.Service.Name}}-{{.Task.Slot}},target=/data-{{.Task.Slot}}",
        "--secret", "source=key,target=pw", "--config", "source=made,target=/made",
    )  # fmt: skip
    assert inside(lab, name, "cat", "/made") == "slot 1 of tpl: z1, second"
    assert inside(lab, name, "sh", "-c", "echo $WHERE; busybox hostname; busybox ls -d /data-1").split() == [
        "z1", "tpl-1", "/data-1",
    ]  # fmt: skip
    assert "tpl-1" in host.docker("volume", "ls", "-q").split()
    with pytest.raises(AssertionError, match="can't evaluate field Nope"):
        host.swarm(*CREATE, "--env", "A={{.Nope}}", SHELL)
    host.swarm("service", "rm", "tpl")
    lab.no_containers(1)
    host.swarm("secret", "rm", "key")
    host.swarm("config", "rm", "conf", "made")
    assert host.swarm("config", "ls", "-q") == ""
