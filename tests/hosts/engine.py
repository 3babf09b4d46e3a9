"""The machine's own Docker Engine: use the one that runs, start one by hand where none does.

There may be no systemd to start it. An engine that we start has its own data, socket and pid file, so that it is
known as ours and can be taken away without a trace.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.hosts import traces
from tests.hosts.shell import Failure, run, say, wait_for

RUN_DIR = Path("/run/swarm-demo-engine")
DATA_DIR = Path("/var/lib/swarm-demo-engine")
OWN_SOCKET = RUN_DIR / "docker.sock"
PID_FILE = RUN_DIR / "docker.pid"
LOG = RUN_DIR / "dockerd.log"
BEFORE = RUN_DIR / "network-before.json"  # what this machine's network was like without it
CONFIG = RUN_DIR / "daemon.json"  # empty: what the machine's own configuration says is not for this engine
DEFAULT_SOCKET = Path("/var/run/docker.sock")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(str(self._path))


def answers(path: Path) -> bool:
    """Whether a Docker Engine answers at this socket."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", "/_ping")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def find() -> Path | None:
    """The socket of an engine that runs on this machine."""
    for path in (DEFAULT_SOCKET, OWN_SOCKET):
        if answers(path):
            return path
    return None


def environment(path: Path) -> Mapping[str, str]:
    """What makes the docker CLI talk to this engine, whatever the caller's shell points it at."""
    kept = {k: v for k, v in os.environ.items() if k not in {"DOCKER_CONTEXT", "DOCKER_TLS_VERIFY"}}
    return {**kept, "DOCKER_HOST": f"unix://{path}"}


class Engine:
    """The docker CLI against one engine of this machine."""

    def __init__(self, path: Path) -> None:
        self.socket = path
        self._env = environment(path)

    def docker(self, *argv: str, check: bool = True, timeout: float = 300) -> str:
        return run(["docker", *argv], env=self._env, check=check, timeout=timeout).stdout.strip()

    def console(self, name: str, *, lines: int) -> str:
        """What a container said last, to whichever of its outputs."""
        done = run(["docker", "logs", "--tail", str(lines), name], env=self._env, check=False, timeout=30)
        return (done.stdout + done.stderr).strip()


def start() -> Engine:
    """An engine that answers: the running one, else one started here."""
    found = find()
    if found is not None:
        return Engine(found)
    if shutil.which("dockerd") is None:
        raise Failure("no Docker Engine runs and dockerd is not installed: apt-get install docker.io")
    if os.geteuid() != 0:
        raise Failure("no Docker Engine runs and only root can start one: run this as root")
    RUN_DIR.mkdir(mode=0o700, exist_ok=True)
    DATA_DIR.mkdir(mode=0o711, exist_ok=True)
    CONFIG.write_text("{}\n")
    if not BEFORE.exists():
        BEFORE.write_bytes(traces.encode(traces.look()))
    say(f"no Docker Engine runs on this machine: starting one at {OWN_SOCKET}")
    with LOG.open("ab") as log:
        process = subprocess.Popen(
            [
                "dockerd",
                f"--config-file={CONFIG}",
                f"--data-root={DATA_DIR}",
                f"--exec-root={RUN_DIR}/exec",
                f"--pidfile={PID_FILE}",
                f"--host=unix://{OWN_SOCKET}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def up() -> bool:
        if process.poll() is not None:
            raise Failure(f"dockerd ended with {process.returncode}: {LOG.read_text()[-1500:]}")
        return answers(OWN_SOCKET)

    wait_for("the Docker Engine to answer", up, timeout=60)
    return Engine(OWN_SOCKET)


def stop() -> str | None:
    """Stop the engine that ``start`` made, unless others use it; why it was left running, if it was."""
    if not answers(OWN_SOCKET):
        _remove_data()
        return None
    engine = Engine(OWN_SOCKET)
    used = engine.docker("ps", "--all", "--format", "{{.Names}}").split()
    if used:
        return f"the Docker Engine at {OWN_SOCKET} stays: it still holds {', '.join(sorted(used)[:5])}"
    pid = int(PID_FILE.read_text())
    os.kill(pid, signal.SIGTERM)
    wait_for(
        "the Docker Engine to stop", lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), timeout=60
    )
    _remove_data()
    return None


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _remove_data() -> None:
    # Another engine that runs by now uses the same bridge and the same chains.
    if BEFORE.exists() and not answers(DEFAULT_SOCKET):
        traces.take_away(traces.decode(BEFORE.read_bytes()))
    for directory in (RUN_DIR, DATA_DIR):
        if directory.exists():
            run(
                ["sh", "-c", f"umount -R {directory}/netns {directory}/exec 2>/dev/null; rm -rf {directory}"],
                timeout=120,
            )
