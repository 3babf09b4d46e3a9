# SPDX-License-Identifier: Apache-2.0
"""PRIVATE to this collection: what runs, told by looking at the process, not at what a run of a playbook has changed.

A playbook may be cut short between writing a file and restarting who reads it. So nothing here relies on a memory of that:

- which program a process runs: its command line names the version's own directory;
- which text of its unit it was started from: the unit puts a digest of itself into the process's environment;
- which configuration it has read: the agent tells systemd a digest, which ``systemctl status`` shows;
- which settings the Docker Engine has taken up: it does not tell all of them, so a record that is bound to the process
  and to the very file says so; without one the file must be older than the process.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time

SETTINGS = "/etc/docker/daemon.json"
# Which text of its unit a process was started from.
MARK = "SWARM_AGENT_UNIT"
_PROPERTIES = "Id,LoadState,ActiveState,MainPID,NeedDaemonReload,StatusText,UnitFileState"
_CONFIGURATION = "configuration "


def _systemctl(*words):
    try:
        return subprocess.run(
            ["systemctl"] + list(words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def parse_show(text):
    """Blocks of ``systemctl show``, by their Id."""
    found = {}
    for block in text.split("\n\n"):
        properties = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in properties:
            found[properties["Id"]] = properties
    return found


def units(names):
    """What systemd and the processes say, by name of the unit; a unit that is not installed is there, too."""
    shown = parse_show(_systemctl("show", "--property=" + _PROPERTIES, *names))
    return {name: unit(shown.get(name) or {}) for name in names}


def unit(shown):
    pid = int(shown.get("MainPID") or 0)
    said = shown.get("StatusText") or ""
    seen = process(pid) if pid else None
    if seen is not None and said.startswith(_CONFIGURATION):
        seen["configuration"] = said[len(_CONFIGURATION) :]
    return {
        "there": shown.get("LoadState") not in (None, "not-found"),
        "state": shown.get("ActiveState") or "inactive",
        "enabled": shown.get("UnitFileState") == "enabled",
        "reload": shown.get("NeedDaemonReload") == "yes",
        "process": seen,
    }


def process(pid):
    """A process by its number, which together with the moment of its start names it; None if it is gone."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            started = int(file.read().rpartition(")")[2].split()[19])
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            command = file.read().split(b"\0")[0].decode("utf-8", "replace")
        with open("/proc/%d/environ" % pid, "rb") as file:
            environment = dict(pair.split(b"=", 1) for pair in file.read().split(b"\0") if b"=" in pair)
    except (OSError, ValueError, IndexError):
        return None
    return {
        "pid": pid,
        "started": started,
        # /opt/swarm-agent/VERSION/bin/python3
        "version": os.path.basename(os.path.dirname(os.path.dirname(command))),
        "unit": environment.get(MARK.encode(), b"").decode("utf-8", "replace"),
        "configuration": "",
    }


def age(seen):
    """How many seconds ago a process was started."""
    with open("/proc/uptime") as file:
        return float(file.read().split()[0]) - seen["started"] / os.sysconf("SC_CLK_TCK")


def last_words(name, lines=5):
    command = ["journalctl", "--unit", name, "--lines", str(lines), "--no-pager", "--output", "cat"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


# -- the Docker Engine's settings


def settings_file(path=SETTINGS):
    """The settings as they stand there, with what tells this file from any that stood there before; ``error`` if unreadable."""
    try:
        with open(path) as file:
            text = file.read()
            state = os.fstat(file.fileno())
    except OSError:
        return {"settings": {}, "error": None, "identity": None, "changed": None}
    found = {"settings": {}, "error": None, "identity": [state.st_ino, state.st_ctime_ns], "changed": state.st_ctime}
    try:
        settings = json.loads(text) if text.strip() else {}
    except ValueError as error:
        return dict(found, error="%s is not JSON: %s" % (path, error))
    if not isinstance(settings, dict):
        return dict(found, error="%s holds no JSON object" % path)
    return dict(found, settings=settings)


def reloaded(before, now, reloadable):
    """The settings in force after a reload: of those stated now the reloadable ones, and all others as before. None stays unknown."""
    if before is None:
        return None
    taken = {key: value for key, value in now.items() if key in reloadable}
    return dict(before, **taken)


def write_record(path, seen, file, settings):
    """Note that this process has taken up these settings, the file being what it is now; None for "nobody knows"."""
    record = {"pid": seen["pid"], "started": seen["started"], "identity": file["identity"], "settings": settings}
    handle, new = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".swarm-")
    with os.fdopen(handle, "w") as out:
        json.dump(record, out)
    os.rename(new, path)


def read_record(path):
    try:
        with open(path) as file:
            record = json.load(file)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def taken_up(seen, file, record, started_ago, now=None):
    """Which settings the engine's process has taken up, as far as that can be known.

    ``settings`` are those at its start or at our last reload, null if nobody can say; ``current`` is whether nobody has
    touched the file since, so that whoever reloaded the engine in between has taken up no others.
    """
    if record is not None and (record.get("pid"), record.get("started")) == (seen["pid"], seen["started"]):
        return {"settings": record.get("settings"), "current": record.get("identity") == file["identity"]}
    now = time.time() if now is None else now
    if file["changed"] is None or now - file["changed"] > started_ago:
        return {"settings": file["settings"], "current": True}
    return {"settings": None, "current": False}
