"""The engine's settings: what is set, what is noted, and what is taken back and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.swarm.cluster.plugins.module_utils import _process
from ansible_collections.swarm.cluster.plugins.modules import swarm_engine_settings

OURS = {"live-restore": True, "log-driver": "local"}
Run = Callable[..., dict[str, Any]]


class _Module:
    def __init__(self, params: dict[str, Any], *, check: bool) -> None:
        self.params, self.check_mode = params, check


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def once(state: str = "present", *, check: bool = False, **params: Any) -> dict[str, Any]:
        given = {
            "state": state, "settings": {}, "certificates": [], "keep": [],
            "directory": str(tmp_path / "docker"), "record": str(tmp_path / "own" / "before.json"), **params,
        }  # fmt: skip
        found: dict[str, Any] = swarm_engine_settings.SettingsModule(_Module(given, check=check)).run()
        return found

    return once


def tree(tmp_path: Path) -> dict[str, str]:
    return {str(p.relative_to(tmp_path)): p.read_text() for p in sorted(tmp_path.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("text", [None, "{}\n", '{"bip": "172.30.0.1/24",\n "log-driver": "json-file"}\n'])
def test_there_and_back_is_as_it_was_to_the_letter(tmp_path: Path, run: Run, text: str | None) -> None:
    if text is not None:
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker/daemon.json").write_text(text)
    before = tree(tmp_path)
    certificates = [{"name": "registry:5000", "content": "PEM"}]
    foretold = run(check=True, settings=OURS, certificates=certificates)
    assert tree(tmp_path) == before
    first = run(settings=OURS, certificates=certificates)
    assert (first["paths"], first["settings"]) == (foretold["paths"], foretold["settings"])
    assert first["changed"]
    assert not run(settings=OURS, certificates=certificates)["changed"]
    settings = json.loads((tmp_path / "docker/daemon.json").read_text())
    assert settings == {**json.loads(text or "{}"), **OURS}
    assert run("absent")["changed"]
    assert tree(tmp_path) == before
    assert (tmp_path / "docker").exists() == (text is not None)
    assert not run("absent")["changed"]


def test_what_was_the_users_already_stays(tmp_path: Path, run: Run) -> None:
    (tmp_path / "docker").mkdir()
    file = tmp_path / "docker/daemon.json"
    file.write_text(json.dumps({"live-restore": True}))
    assert run(settings=OURS)["ours"] == ["log-driver"]
    run("absent")
    assert json.loads(file.read_text()) == {"live-restore": True}


def test_what_somebody_has_changed_since_stays(tmp_path: Path, run: Run) -> None:
    run(settings=OURS, certificates=[{"name": "r", "content": "PEM"}])
    file = tmp_path / "docker/daemon.json"
    file.write_text(json.dumps({**OURS, "log-driver": "syslog", "bip": "x"}))
    (tmp_path / "docker/certs.d/r/ca.crt").write_text("another")
    assert run("absent")["settings"] == ["live-restore"]
    assert json.loads(file.read_text()) == {"log-driver": "syslog", "bip": "x"}
    assert (tmp_path / "docker/certs.d/r/ca.crt").read_text() == "another"


def test_a_key_that_is_kept_for_now_is_taken_back_later(tmp_path: Path, run: Run) -> None:
    run(settings=OURS)
    kept = run("absent", keep=["live-restore"])
    assert (kept["settings"], kept["ours"]) == (["log-driver"], ["live-restore"])
    run(settings={"live-restore": False})
    run("absent")
    assert tree(tmp_path) == {}


def test_a_value_that_changes_later_does_not_hide_what_was_there_before(tmp_path: Path, run: Run) -> None:
    (tmp_path / "docker").mkdir()
    file = tmp_path / "docker/daemon.json"
    file.write_text(json.dumps({"log-driver": "syslog"}))
    for driver in ("local", "json-file"):
        run(settings={"log-driver": driver})
    run("absent")
    assert json.loads(file.read_text()) == {"log-driver": "syslog"}


# -- what the engine's process has taken up

SEEN = {"pid": 7, "started": 100}
FILE = {"settings": {"a": 1}, "identity": [1, 2], "changed": 1000.0}
RECORD = {"pid": 7, "started": 100, "identity": [1, 2], "settings": {"a": 1}}


@pytest.mark.parametrize(
    ("record", "file", "started_ago", "settings", "current"),
    [
        (RECORD, FILE, 1.0, {"a": 1}, True),
        # The file was touched since: by whom, and whether the engine was reloaded, nobody knows.
        ({**RECORD, "identity": [1, 1]}, {**FILE, "settings": {"a": 2}}, 1.0, {"a": 1}, False),
        # Another process than the record's: the file has to be older than that.
        ({**RECORD, "started": 99}, FILE, 500.0, {"a": 1}, True),
        ({**RECORD, "started": 99}, FILE, 1500.0, None, False),
        (None, FILE, 500.0, {"a": 1}, True),
        (None, FILE, 1500.0, None, False),
        (None, {"settings": {}, "identity": None, "changed": None}, 1500.0, {}, True),
    ],
)
def test_what_the_engine_has_taken_up(
    record: Any, file: Any, started_ago: float, settings: Any, current: bool
) -> None:
    """The file was changed a thousand seconds ago."""
    found = _process.taken_up(SEEN, file, record, started_ago, now=2000.0)
    assert found == {"settings": settings, "current": current}


def test_a_reload_takes_up_what_is_stated_and_reloadable_and_nothing_else() -> None:
    """A run that is cut between reload and restart has the restart still to do."""
    before = {"debug": True, "log-driver": "json-file", "labels": ["a"]}
    now = {"debug": False, "log-driver": "local", "bip": "x"}
    found = _process.reloaded(before, now, ["debug", "labels"])
    assert found == {"debug": False, "log-driver": "json-file", "labels": ["a"]}
    assert _process.reloaded(None, now, ["debug"]) is None


def test_what_systemctl_shows() -> None:
    shown = _process.parse_show("Id=a.service\nMainPID=7\n\nId=b.service\nStatusText=x=y\n")
    assert shown == {
        "a.service": {"Id": "a.service", "MainPID": "7"},
        "b.service": {"Id": "b.service", "StatusText": "x=y"},
    }
    absent = _process.unit({"LoadState": "not-found", "ActiveState": "inactive"})
    assert (absent["there"], absent["process"]) == (False, None)
