"""``swarmctl secret`` and ``swarmctl config``: versions of secrets and configs."""

from __future__ import annotations

import argparse
import base64
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from swarm_agent.cli.client import Failed, add_command, call


def set_version(path: str, arguments: argparse.Namespace) -> None:
    """Add a version; services that track the secret or config are updated to it."""
    try:
        data = sys.stdin.buffer.read() if arguments.file == "-" else Path(arguments.file).read_bytes()
    except OSError as err:
        raise Failed(f"cannot read {arguments.file}: {err.strerror}") from err
    body = {"Data": base64.b64encode(data).decode()}
    answer = call(path, "POST", _versions(arguments), body)
    print(f"{arguments.name}: version {answer['Number']}")


def versions(path: str, arguments: argparse.Namespace) -> None:
    """List the kept versions, newest last, and the services that use each."""
    for version in call(path, "GET", _versions(arguments)):
        mark = "*" if version["Current"] else " "
        users = ", ".join(version["Services"]) or "-"
        print(
            f"{mark} {version['Number']:>4}  {version['CreatedAt']}  {version['Digest'][:19]}  {version['Size']:>7}  {users}"
        )


def _versions(arguments: argparse.Namespace) -> str:
    return f"/swarm-agent/{arguments.kind}s/{quote(arguments.name, safe='')}/versions"


def register(commands: Any) -> None:
    for kind in ("secret", "config"):
        command = add_command(commands, kind, f"manage the versions of a {kind}")
        verbs = command.add_subparsers(dest="verb", required=True, metavar="COMMAND", title="commands")
        verb = add_command(
            verbs, "set", f"add a version of a {kind}; services that track it are updated", set_version
        )
        verb.add_argument("name", metavar="NAME", help=f"name or id of the {kind}")
        verb.add_argument(
            "file",
            metavar="FILE",
            nargs="?",
            default="-",
            help="the content; - (the default) reads standard input",
        )
        verb.set_defaults(kind=kind)
        verb = add_command(
            verbs, "versions", "list the kept versions and the services that use them", versions
        )
        verb.add_argument("name", metavar="NAME", help=f"name or id of the {kind}")
        verb.set_defaults(kind=kind)
