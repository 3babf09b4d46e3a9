"""No flag of the CLI's is forgotten: its help, the table the cluster tests run, and the page for people name the same ones."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster import flags

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(shutil.which("docker") is None, reason="needs the docker CLI")
@pytest.mark.parametrize("verb", ["create", "update"])
def test_every_flag_the_cli_lists_is_in_the_table(verb: str) -> None:
    out = subprocess.run(
        ["docker", "service", verb, "--help"], capture_output=True, text=True, check=True
    ).stdout
    listed = set(re.findall(r"^ +(?:-\w, )?(--[a-z][a-z-]+)", out, re.MULTILINE))
    assert "--name" in listed or "--image" in listed, "the help is not read as it was"
    assert listed - flags.known().keys() == set()


def test_the_page_is_the_table() -> None:
    assert (ROOT / "docs" / "flags.md").read_text() == flags.table()


def test_what_stands_apart_is_tested_apart() -> None:
    """Each of those flags is given in test_flags.py."""
    text = (ROOT / "tests" / "cluster" / "test_flags.py").read_text()
    assert [name for name in flags.APART if not re.search(rf'"{name}["=]', text)] == []
