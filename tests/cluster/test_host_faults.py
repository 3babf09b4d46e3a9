"""What goes wrong on hosts: a full disk, an engine that is away, a foreign swarm, bad configuration."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.network.lab import ROOT, until
from tests.cluster.swarm_lab import IMAGE, SHELL, Lab, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with swarm_lab(tmp_path_factory.mktemp("trouble"), (1,)) as found:
        yield found


def test_an_engine_in_its_own_swarm_mode_is_refused(lab: Lab) -> None:
    host = lab[1]
    host.stop_engine()
    host.start_engine(live_restore=False)
    host.docker("swarm", "init", "--advertise-addr", host.address)
    status, answer = host.call_api(
        "POST", "/swarm/init", {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": host.address}
    )
    assert status == 400
    assert "swarm leave" in answer["message"]
    assert host.get("/info")["Swarm"]["LocalNodeState"] == "inactive"
    host.docker("swarm", "leave", "--force")
    host.stop_engine()
    status, answer = host.call_api(
        "POST", "/swarm/init", {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": host.address}
    )
    assert status == 503
    assert "cannot reach the Docker Engine" in answer["message"]
    host.start_engine()


def test_what_dockers_own_swarm_runs_on_the_same_engine_is_left_alone(lab: Lab) -> None:
    host = lab[1]
    host.stop_engine()
    host.start_engine(live_restore=False)
    host.swarm("swarm", "init", "--advertise-addr", host.address, "--listen-addr", f"{host.address}:2377")
    host.docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:12377")
    command = ("-d", "--no-resolve-image", "--stop-grace-period=1s", SHELL, "sleep", "10000")
    host.docker("service", "create", "--name", "theirs", *command)
    host.swarm("service", "create", "--name", "ours", *command)

    def running(name: str) -> list[str]:
        return host.docker("ps", "-q", "--filter", f"label=com.docker.swarm.service.name={name}").split()

    until(lambda: running("theirs") and running("ours"), "a container of each", 60)
    theirs, ours = running("theirs"), running("ours")
    host.kill_agent()
    host.start_agent()  # which looks at everything the engine has
    host.docker("restart", "-t", "0", *ours)
    until(
        lambda: running("ours") and set(ours).isdisjoint(running("ours")),
        "what was restarted by hand ends, its successor runs",
        30,
    )
    assert running("theirs") == theirs
    host.swarm("swarm", "leave", "--force")
    assert running("theirs") == theirs
    assert not running("ours")
    host.docker("swarm", "leave", "--force")
    host.stop_engine()
    host.start_engine()


def test_a_full_disk_stops_writes_with_a_reason_and_loses_nothing(lab: Lab) -> None:
    host = lab[1]
    host.kill_agent()
    host.start_agent(small_state="6m")
    host.swarm("swarm", "init", "--advertise-addr", host.address)
    host.swarm(
        "service",
        "create",
        "--no-resolve-image",
        "-d",
        "--name",
        "kept",
        f"{IMAGE}:1",
        "/task",
        "serve",
        "k",
        "7000",
    )
    lab.running(1, "kept", 1)
    filler = host.folder / "state" / "filler"
    host.space.run("sh", "-c", f"cat /dev/zero > {filler} 2>/dev/null; true")
    written: list[str] = []

    def refused() -> str | None:
        status, answer = host.call_api(
            "POST", "/networks/create", {"Name": f"n{len(written)}", "Driver": "overlay"}
        )
        if status == 201:
            written.append(f"n{len(written)}")
            return None
        return str(answer)

    text = until(refused, "a refused write")
    assert text
    until(lambda: "No space left" in str(host.call_api("GET", "/services")), "the reason")
    ready = host.space.run("curl", "-s", "-w", "%{http_code}", "http://127.0.0.1:9323/readyz")
    assert ready.endswith("503")
    assert "No space left" in ready
    host.space.run("rm", str(filler))
    names = until(
        lambda: host.call_api("GET", "/networks")[1] if host.call_api("GET", "/services")[0] == 200 else None,
        "recovery",
        40,
    )
    assert set(written) <= {n["Name"] for n in names}
    assert len(lab.running(1, "kept", 1)) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('sokcet = "/x"', "sokcet"),
        ("rpc_port = 99999", "rpc_port"),
        ("rpc_port = 2377", "must differ"),
        ("raft_port = 2378", "must differ"),
        ('advertise_addr = "10.0.0.1:2377"', "no IPv4 address"),
        ('timing = "moon"', "timing"),
        ('log_level = "loud"', "loud"),
        ("state_dir = ", "Invalid value"),
    ],
)
def test_a_bad_configuration_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "swarm_agent.daemon", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode != 0
    assert str(path) in done.stderr
    assert says in done.stderr
