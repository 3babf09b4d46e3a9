"""Autolock on a real host: a daemon that is killed comes back locked, and its containers never notice. In order, one after the other."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import CLIENT, IMAGE, Lab, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

MARK = "marmalade-in-the-clear"
founded: dict[str, str] = {}  # the first unlock key: later nobody but us can know it
NEEDS_UNLOCKING = "Swarm is encrypted and needs to be unlocked before it can be used"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with swarm_lab(tmp_path_factory.mktemp("keys"), (1,)) as found:
        yield found


def cli(lab: Lab, *arguments: str, typed: str = "", on: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", "-H", f"unix://{lab[on].socket}", *arguments],
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def state(lab: Lab, on: int = 1) -> str:
    return str(lab[on].get("/info")["Swarm"]["LocalNodeState"])


def restart(lab: Lab) -> None:
    lab[1].kill_agent(signal.SIGKILL)
    lab[1].start_agent()


def key_of(lab: Lab) -> str:
    return lab[1].swarm("swarm", "unlock-key", "-q").strip()


def ready(lab: Lab) -> str:
    return lab[1].space.run("curl", "-s", "http://127.0.0.1:9323/readyz")


def holding(folder: Path, *texts: str) -> list[tuple[str, str]]:
    """Files under the folder in which one of these texts can be read."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            found += [(str(path), text) for text in texts if text.encode() in raw]
    return found


def state_folder(lab: Lab) -> Path:
    return lab[1].folder / "state"


def settled(lab: Lab, lock_version: int, on: int = 1) -> None:
    """Wait until the key file and all that depends on it follow the cluster's lock."""
    path = lab[on].folder / "state" / "keys.json"
    until(lambda: f'"lock_version":{lock_version}' in path.read_text(), "the new lock")
    said = f"(version {lock_version})"
    log = lab[on].folder / "agent.log"
    until(lambda: "certificate renewed" in log.read_text().partition(said)[2], "the new certificate")


def test_founding_with_autolock_prints_the_key(lab: Lab) -> None:
    out = lab[1].swarm("swarm", "init", "--autolock", "--advertise-addr", lab[1].address)
    assert "SWMKEY-1-" in out
    founded["key"] = key_of(lab)
    assert founded["key"] in out
    assert "Autolock Managers: true" in lab[1].swarm("info")
    command = ("--name", "web", "-p", "8080:7000", "--env", f"MARK={MARK}", f"{IMAGE}:1")
    lab[1].swarm("service", "create", "--no-resolve-image", "-d", *command, "/task", "serve", "web", "7000")
    lab.running(1, "web", 1)
    assert until(lambda: lab.greeting(1, 8080)[:2] == ["web", CLIENT], "an answer")


def test_nothing_secret_is_readable_under_the_state_directory_or_in_the_log(lab: Lab) -> None:
    folder = state_folder(lab)
    key = key_of(lab)
    secrets = (MARK, key, key.removeprefix("SWMKEY-1-"), "BEGIN PRIVATE KEY", "BEGIN EC PRIVATE KEY")
    assert (folder / "keys.json").stat().st_mode & 0o777 == 0o600
    assert list((folder / "raft").glob("*.wal"))
    assert holding(folder, *secrets) == []
    assert holding(lab[1].folder, *secrets[1:3]) == []  # agent.log, at debug level
    for path in ("/info", "/swarm", "/nodes"):
        assert secrets[2] not in str(lab[1].get(path))


def test_a_killed_daemon_comes_back_locked_and_its_container_answers(lab: Lab) -> None:
    (container,) = lab[1].docker("ps", "-q").split()
    restart(lab)
    assert state(lab) == "locked"
    assert "Swarm: locked" in lab[1].swarm("info")
    assert ready(lab).startswith("locked: ")
    status, answer = lab[1].call_api("GET", "/services")
    assert (status, NEEDS_UNLOCKING in answer["message"]) == (503, True)
    refused = cli(lab, "swarm", "unlock-key")
    assert refused.returncode != 0
    assert NEEDS_UNLOCKING in refused.stderr
    assert lab[1].swarm("ps", "-q").split() == [container]
    assert lab.greeting(1, 8080)[:2] == ["web", CLIENT]
    for port in (2377, 2378, 7946):
        done = lab[1].space.run(
            "bash", "-c", f"exec 3<>/dev/tcp/{lab[1].address}/{port} && echo open", check=False
        )
        assert "open" not in done


def test_a_wrong_key_is_refused_and_the_right_one_unlocks(lab: Lab) -> None:
    wrong = "SWMKEY-1-" + "A" * 43
    for _ in range(2):
        refused = cli(lab, "swarm", "unlock", typed=wrong + "\n")
        assert refused.returncode != 0
        assert "swarm could not be unlocked: invalid key provided" in refused.stderr
    assert state(lab) == "locked"
    key = founded["key"]
    done = cli(lab, "swarm", "unlock", typed=key + "\n")
    assert done.returncode == 0, done.stderr
    assert state(lab) == "active"
    assert key_of(lab) == key
    lab.running(1, "web", 1)
    again = lab[1].call_api("POST", "/swarm/unlock", {"UnlockKey": key})
    assert again == (409, {"message": "swarm is not locked"})


def test_a_rotated_key_replaces_the_old_one(lab: Lab) -> None:
    (container,) = lab[1].docker("ps", "-q").split()
    old = key_of(lab)
    out = lab[1].swarm("swarm", "unlock-key", "--rotate")
    new = key_of(lab)
    assert new in out
    assert new != old
    settled(lab, 2)
    restart(lab)
    refused = cli(lab, "swarm", "unlock", typed=old + "\n")
    assert "invalid key provided" in refused.stderr
    assert cli(lab, "swarm", "unlock", typed=new + "\n").returncode == 0
    assert state(lab) == "active"
    lab.running(1, "web", 1)
    assert lab[1].docker("ps", "-q").split() == [container]
    assert (
        holding(state_folder(lab), MARK, new.removeprefix("SWMKEY-1-"), old.removeprefix("SWMKEY-1-")) == []
    )


def test_without_autolock_a_restarted_daemon_serves_at_once(lab: Lab) -> None:
    lab[1].swarm("swarm", "update", "--autolock=false")
    settled(lab, 3)
    assert "no unlock key is set" in cli(lab, "swarm", "unlock-key").stderr
    restart(lab)
    until(lambda: state(lab) == "active", "the manager")
    assert len(lab.running(1, "web", 1)) == 1
    assert holding(state_folder(lab) / "raft", MARK) == []


def test_autolock_turned_on_later_prints_its_key_and_a_locked_manager_leaves_by_force(lab: Lab) -> None:
    out = lab[1].swarm("swarm", "update", "--autolock=true")
    assert key_of(lab) in out
    settled(lab, 4)
    restart(lab)
    assert state(lab) == "locked"
    assert NEEDS_UNLOCKING in cli(lab, "swarm", "leave").stderr
    lab[1].swarm("swarm", "leave", "--force")
    assert state(lab) == "inactive"
    lab.no_containers(1)
    left = [p.name for p in state_folder(lab).rglob("*") if p.is_file()]
    assert not {"keys.json", "swarm-node.pem", "membership.json"} & set(left)
    lab[1].swarm("swarm", "init", "--advertise-addr", lab[1].address)
    assert state(lab) == "active"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with swarm_lab(tmp_path_factory.mktemp("locked")) as found:
        yield found


def test_three_managers_lock_renew_and_catch_up(three: Lab) -> None:
    """The unlock key is rotated while one manager is down: the former key opens it, and then the new one does."""
    first = three[1]
    first.swarm("swarm", "init", "--autolock", "--advertise-addr", first.address)
    token = first.swarm("swarm", "join-token", "-q", "manager").strip()
    for number in (2, 3):
        three[number].swarm("swarm", "join", "--token", token, f"{first.address}:2377")
        settled(three, 1, on=number)
    old = key_of(three)
    command = ("--name", "web", "--replicas", "3", "--env", f"MARK={MARK}", f"{IMAGE}:1")
    first.swarm("service", "create", "--no-resolve-image", "-d", *command, "/task", "serve", "web", "7000")
    three.running(1, "web", 3)
    three[3].kill_agent(signal.SIGKILL)
    new = first.swarm("swarm", "unlock-key", "--rotate", "-q").strip()
    assert new not in {"", old}
    for number in (1, 2):
        settled(three, 2, on=number)
    three[3].start_agent()
    assert state(three, 3) == "locked"
    assert "invalid key provided" in cli(three, "swarm", "unlock", typed=new + "\n", on=3).stderr
    assert cli(three, "swarm", "unlock", typed=old + "\n", on=3).returncode == 0
    settled(three, 2, on=3)
    until(lambda: all(n["Status"]["State"] == "ready" for n in three.nodes(3).values()), "all nodes ready")
    for number in (1, 2, 3):  # all at once: nobody leads until two of them are unlocked
        three[number].kill_agent(signal.SIGKILL)
    for number in (1, 2, 3):
        three[number].start_agent()
        assert state(three, number) == "locked"
    for number in (1, 2, 3):
        assert cli(three, "swarm", "unlock", typed=new + "\n", on=number).returncode == 0
    three.running(2, "web", 3)
    assert three[3].swarm("swarm", "unlock-key", "-q").strip() == new
    for number in (1, 2, 3):
        bare = (new.removeprefix("SWMKEY-1-"), old.removeprefix("SWMKEY-1-"))
        assert holding(three[number].folder / "state", MARK, "BEGIN PRIVATE KEY", *bare) == []
