"""The licence goes wherever the program and the collection go."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from ansible_collections.swarm.cluster.plugins.action import swarm_program

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = ROOT / "collections/ansible_collections/swarm/cluster"
LICENCE = (ROOT / "LICENSE").read_bytes()


def test_package_and_collection_declare_the_same_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    galaxy = yaml.safe_load((COLLECTION / "galaxy.yml").read_text())
    # Galaxy takes a list of SPDX identifiers, and not `license_file` beside it.
    assert galaxy["license"] == [project["license"]] == ["Apache-2.0"]
    assert "license_file" not in galaxy
    assert project["license-files"] == ["LICENSE"]
    assert LICENCE.lstrip().startswith(b"Apache License\n")


def test_sources_are_copied_for_the_build_with_the_licence(tmp_path: Path) -> None:
    swarm_program._copy_source(ROOT, tmp_path / "copy")
    assert (tmp_path / "copy" / "LICENSE").read_bytes() == LICENCE


@pytest.mark.slow
def test_wheel_and_tarball_hold_the_licence(tmp_path: Path) -> None:
    build = subprocess.run(
        [sys.executable, COLLECTION / "tools/build.py", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=False,
        timeout=120,
    )
    assert build.returncode == 0, build.stdout
    (built,) = tmp_path.glob("swarm-cluster-*.tar.gz")
    with tarfile.open(built) as tarball:
        files = {
            member.name: file.read()
            for member in tarball.getmembers()
            if (file := tarball.extractfile(member)) is not None
        }
    assert files["LICENSE"] == LICENCE
    (wheel,) = (data for name, data in files.items() if name.endswith(".whl"))
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/licenses/LICENSE"))
        assert archive.read(name) == LICENCE
