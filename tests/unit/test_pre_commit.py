"""What runs before a commit is what ``./run lint`` runs, and needs no network."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools import lint

ROOT = Path(__file__).resolve().parents[2]
SLOW = {"ansible-lint"}


def hooks() -> list[dict[str, Any]]:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    found: list[dict[str, Any]] = config["repos"][0]["hooks"]
    return found


def test_every_quick_linter_is_a_hook() -> None:
    names = []
    for hook in hooks():
        python, script, name = shlex.split(hook["entry"])
        assert (python, script, name) == (".venv/bin/python", "tests/tools/lint.py", hook["name"])
        assert (hook["language"], hook["pass_filenames"]) == ("system", False)
        names.append(name)
    assert set(names) == set(lint.commands()) - SLOW


def test_an_unknown_linter_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert lint.main(["pylint"]) == 64
    assert "no linter is called pylint" in capsys.readouterr().err
