"""swarmctl: what the docker CLI has no verb for. Talks to the local agent's socket."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import sys
from typing import Any
from urllib.parse import quote

from swarm_agent import __version__
from swarm_agent.config import AgentConfig
from swarm_agent.observe.logs import LOG_LEVELS

EXIT_FAILED = 2


class _Failed(Exception):
    """A sentence for the user."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("agent", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def call(path: str, method: str, target: str, body: Any = None) -> Any:
    """One request; the decoded answer.

    Raises:
        _Failed: no agent, or its refusal.
    """
    connection = _Connection(path)
    try:
        connection.request(method, target, json.dumps(body) if body is not None else None)
        answer = connection.getresponse()
        data = answer.read()
    except OSError as err:
        raise _Failed(
            f"cannot reach swarm-agent at {path}: {err}. Is it running (systemctl status swarm-agent)?"
        ) from err
    finally:
        connection.close()
    decoded = json.loads(data) if data.strip() else None
    if answer.status >= 400:
        raise _Failed(decoded["message"] if isinstance(decoded, dict) else str(data))
    return decoded


def status(path: str, arguments: argparse.Namespace) -> None:  # noqa: ARG001
    """What this node is."""
    swarm = call(path, "GET", "/info")["Swarm"]
    role = "manager" if swarm["ControlAvailable"] else "worker" if swarm["NodeID"] else "-"
    print(f"state     {swarm['LocalNodeState']}")
    print(f"role      {role}")
    print(f"node      {swarm['NodeID'] or '-'}  {swarm['NodeAddr']}")
    print(f"managers  {', '.join(m['Addr'] for m in swarm['RemoteManagers'] or ()) or '-'}")
    if "FeatureLevel" in swarm:
        print(f"level     {swarm['FeatureLevel']}")
    if swarm["Error"]:
        print(f"error     {swarm['Error']}")


def why(path: str, arguments: argparse.Namespace) -> None:
    """Why tasks of a service are not running."""
    filters = quote(json.dumps({"service": [arguments.service]}))
    tasks = call(path, "GET", f"/tasks?filters={filters}")
    waiting = [
        t for t in tasks if t["DesiredState"] in ("running", "ready") and t["Status"]["State"] != "running"
    ]
    if not waiting:
        print(f"every task of {arguments.service} that should run is running")
    for task in sorted(waiting, key=lambda t: t.get("Slot", 0)):
        print(
            f".{task.get('Slot', task.get('NodeID'))}  {task['Status']['State']}  {task['Status'].get('Err', '')}".rstrip()
        )
        for reason in task.get("Reasons", ()):
            print(f"    {reason['Code']}: {reason['Text']}")


def log_level(path: str, arguments: argparse.Namespace) -> None:
    """Change the agent's log level until it restarts."""
    call(path, "POST", "/swarm-agent/log-level", {"Level": arguments.level})


def main(argv: list[str] | None = None) -> None:
    default = os.environ.get("SWARM_AGENT_SOCKET", AgentConfig().socket)
    parser = argparse.ArgumentParser(
        prog="swarmctl", description="What the docker CLI has no verb for.", allow_abbrev=False
    )
    parser.add_argument("--socket", default=default, help="the agent's socket (default %(default)s)")
    parser.add_argument("--version", action="version", version=f"swarmctl {__version__}")
    words = parser.add_subparsers(dest="word", required=True, metavar="WORD")
    words.add_parser("status", help="what this node is").set_defaults(run=status)
    word = words.add_parser("why", help="why tasks of a service are not running")
    word.add_argument("service")
    word.set_defaults(run=why)
    word = words.add_parser("log-level", help="change the agent's log level until it restarts")
    word.add_argument("level", choices=LOG_LEVELS)
    word.set_defaults(run=log_level)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments.socket, arguments)
    except _Failed as err:
        print(f"swarmctl: {err}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
