"""``ansible-test sanity`` for the collection, where the site of its pip installer may be out of reach.

ansible-test makes its virtual environments with a ``get-pip.py`` that it fetches from a site of its own; what lies in its cache
already is not fetched. The stand-in below takes Python's own pip, which then asks the package index alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = Path("collections/ansible_collections/swarm/cluster")
HOME = ROOT / ".cache" / "ansible-test"
STAND_IN = """\
import os, subprocess, sys
asked = [a for a in sys.argv[1:] if a not in ("--no-setuptools", "--no-wheel")]
environment = {k: v for k, v in os.environ.items() if k != "GET_PIP"}
subprocess.run([sys.executable, "-m", "ensurepip", "--default-pip"], check=True, env=environment, stdout=subprocess.DEVNULL)
sys.exit(subprocess.run([sys.executable, "-m", "pip", "install", *asked], env=environment).returncode)
"""
# PowerShell, of which there is none.
SKIPPED = ("pslint",)


def main() -> int:
    cache = HOME / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "get_pip_24_2.py").write_text(STAND_IN)
    listed = subprocess.run(
        ["git", "ls-files", "-z", str(COLLECTION)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    # ansible-test takes what git does not ignore; a copy outside of the project's git holds just the collection.
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "ansible_collections" / "swarm" / "cluster"
        for name in filter(None, listed.split("\0")):
            source, target = ROOT / name, copy / Path(name).relative_to(COLLECTION)
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        words = ["--venv", "--python", f"{sys.version_info[0]}.{sys.version_info[1]}", "--color", "no"]
        for name in SKIPPED:
            words += ["--skip-test", name]
        done = subprocess.run(
            ["ansible-test", "sanity", *words, *sys.argv[1:]],
            cwd=copy,
            env={
                **os.environ,
                "HOME": str(HOME),
                # also where no environment is activated
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            stdin=subprocess.DEVNULL,
            check=False,
        )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
