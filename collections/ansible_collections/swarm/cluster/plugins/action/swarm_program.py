# SPDX-License-Identifier: Apache-2.0
"""Build swarm-agent and gather what it needs on the controller, for the Python and the processor of each host."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "swarm-agent" / "wheels"
# How long a package index may be silent, and how long all of pip's work may take.
SILENCE_S = 15
GATHER_TIMEOUT_S = 600
# What pip says beside its "No matching distribution": it takes an index that is dead for one that has nothing.
_NO_INDEX = ("connection broken by", "Could not fetch URL", "Max retries exceeded", "did not end within")
_VERSION = re.compile(r'^version\s*=\s*"([^"]+)"', re.MULTILINE)
_WHEEL = re.compile(r"swarm_agent-([^-]+)-")


class Source:
    """Where the program comes from: a checkout, or a built wheel with the lock file beside it."""

    def __init__(self, path):
        self.path = Path(path)
        wheels = [self.path] if self.path.suffix == ".whl" else sorted(self.path.glob("swarm_agent-*.whl"))
        if wheels:
            self.wheel, self.lock = wheels[-1], wheels[-1].parent / "requirements.lock"
            match = _WHEEL.match(self.wheel.name)
            self.version = match.group(1) if match else "0"
            files = [self.wheel]
        else:
            self.wheel, self.lock = None, self.path / "requirements.lock"
            project = self.path / "pyproject.toml"
            if not project.is_file():
                raise AnsibleActionFail(
                    "%s is neither a checkout of swarm-agent nor a folder with its wheel: set swarm_agent_source" % path
                )
            self.version = _VERSION.search(project.read_text()).group(1)
            package = self.path / "swarm_agent"
            files = [project, *sorted(p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts)]
        if not self.lock.is_file():
            raise AnsibleActionFail("%s is missing: it says which packages swarm-agent needs" % self.lock)
        digest = hashlib.sha256()
        for file in [*files, self.lock]:
            digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        self.name = "%s+%s" % (self.version, digest.hexdigest()[:12])


def platforms(machine, libc):
    """The wheel platforms that a host with this C library can use, newest first."""
    minor = int(libc.split(".")[1])
    found = ["manylinux_2_%d_%s" % (n, machine) for n in range(minor, 16, -1)]
    return found + ["manylinux2014_" + machine, "manylinux2010_" + machine, "manylinux1_" + machine, "linux_" + machine]


def _pip(*words, given=None):
    """Run pip, with an end to every wait for an index."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--timeout=%d" % SILENCE_S, "--retries=1", *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GATHER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise AnsibleActionFail(pip_problem(words[0], "it did not end within %d s" % GATHER_TIMEOUT_S, given)) from None
    if done.returncode != 0:
        raise AnsibleActionFail(pip_problem(words[0], done.stderr, given))


def pip_problem(word, said, given):
    """What pip's failure means, and what to do about it; ``given`` is the folder that was named instead of an index."""
    lines = [line.strip() for line in said.splitlines() if line.startswith("ERROR")] or [said.strip()[-500:]]
    words = " ".join(lines)[:600]
    if given:
        return (
            "the folder %s, named in swarm_agent_wheels, lacks something that swarm-agent needs for these hosts: %s. Fill it on a machine that "
            "reaches a package index: pip download --no-deps --require-hashes -r requirements.lock --dest FOLDER, with --python-version and "
            "--platform of the hosts" % (given, words)
        )
    if any(sign in said for sign in _NO_INDEX):
        return (
            "the controller reaches no Python package index, which swarm-agent's packages come from: %s. See that it does (pip config list shows "
            "which one is asked), or gather the packages on a machine that does and name their folder in swarm_agent_wheels: "
            "pip download --no-deps --require-hashes -r requirements.lock --dest FOLDER" % words
        )
    return (
        "on the controller, pip %s failed: %s. If no index can be asked for it, gather the packages elsewhere and name their folder in "
        "swarm_agent_wheels" % (word, words)
    )


def gather(source, python, machine, libc, given):
    """The archive for hosts of this kind, made once; forks of one run wait for each other here."""
    key = hashlib.sha256(" ".join((source.name, python, machine, libc, given or "")).encode()).hexdigest()[:16]
    archive = CACHE / ("%s-%s-%s-%s.tar" % (source.name, python, machine, key))
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock, contextlib.ExitStack() as stack:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if archive.is_file():
            return archive
        wheels = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=CACHE)))
        choice = ["--only-binary=:all:", "--implementation=cp", "--abi=" + python, "--abi=abi3", "--abi=none"]
        choice += ["--python-version=" + python[2:3] + "." + python[3:]]
        choice += ["--platform=" + name for name in platforms(machine, libc)]
        index = ["--no-index", "--find-links=" + given] if given else []
        download = ["download", "--quiet", "--no-deps", "--require-hashes", "--dest", str(wheels), *choice, *index]
        _pip(*download, "-r", str(source.lock), given=given)
        if source.wheel:
            (wheels / source.wheel.name).write_bytes(source.wheel.read_bytes())
        else:
            # With the controller's own setuptools, if it has one, nothing is fetched for the build.
            isolation = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
            with tempfile.TemporaryDirectory() as scratch:
                copy = Path(scratch) / "source"
                _copy_source(source.path, copy)
                _pip("wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", str(wheels), str(copy), given=given)
        partial = archive.with_suffix(".partial")
        with tarfile.open(partial, "w") as tar:
            for wheel in sorted(wheels.glob("*.whl")):
                tar.add(wheel, arcname=wheel.name)
        partial.rename(archive)
        for old in sorted(CACHE.glob("*.tar"), key=lambda p: p.stat().st_mtime)[:-8]:
            old.unlink()
    return archive


def _copy_source(path, copy):
    """A build leaves files beside the sources; a checkout must not see them."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (path / name).is_file():
            copy.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((path / name).read_bytes())
    for file in sorted((path / "swarm_agent").rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            target = copy / file.relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())


class ActionModule(ActionBase):
    """Asks the host what it has; builds, copies and installs only if that is not what is wanted."""

    # A place for files is made on the host only once there are some to send: what Ansible makes beforehand would be left there.
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if not arguments.get("source"):
            raise AnsibleActionFail("missing required arguments: source")
        source = Source(arguments["source"])
        arguments["wanted"] = source.name
        seen = self._execute_module(module_args=arguments, task_vars=task_vars)
        if seen.get("failed") or not seen["changed"] or self._task.check_mode:
            result.update(seen)
            return result
        archive = gather(source, seen["python"], seen["machine"], seen["libc"], arguments.get("wheels"))
        remote = self._make_tmp_path()
        try:
            arguments["archive"] = self._transfer_file(str(archive), self._connection._shell.join_path(remote, "wheels.tar"))
            result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        finally:
            self._remove_tmp_path(remote)
        return result
