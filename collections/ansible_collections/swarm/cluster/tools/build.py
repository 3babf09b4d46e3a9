# SPDX-License-Identifier: Apache-2.0
"""Build the collection's tarball with swarm-agent's own wheel in it, so that it runs without a checkout.

usage: build.py DIRECTORY     (puts swarm-cluster-VERSION.tar.gz there)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COLLECTION = Path(__file__).resolve().parents[1]
PROJECT = COLLECTION.parents[3]
# Not of the collection's own: made here, ignored by git, left out of what is copied.
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", "dist")


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 64
    out = Path(sys.argv[1]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source, copy = Path(scratch) / "source", Path(scratch) / "collection"
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(PROJECT / name, source / name)
        shutil.copytree(PROJECT / "swarm_agent", source / "swarm_agent", ignore=IGNORED)
        shutil.copytree(COLLECTION, copy, ignore=IGNORED)
        dist = copy / "roles" / "swarm_agent" / "files" / "dist"
        dist.mkdir(parents=True)
        shutil.copy(PROJECT / "requirements.lock", dist)
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", dist, source],
            check=True,
        )
        subprocess.run(["ansible-galaxy", "collection", "build", "--force", "--output-path", out, copy], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
