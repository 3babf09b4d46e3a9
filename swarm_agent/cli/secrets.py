"""``swarmctl secret`` and ``swarmctl config``: new versions of what is there."""

from __future__ import annotations

import argparse
import base64
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from swarm_agent.cli.client import Failed, call


def set_version(path: str, arguments: argparse.Namespace) -> None:
    """Make the content of FILE the newest version; services that track the name roll to it."""
    try:
        data = sys.stdin.buffer.read() if arguments.file == "-" else Path(arguments.file).read_bytes()
    except OSError as err:
        raise Failed(f"cannot read {arguments.file}: {err.strerror}") from err
    body = {"Data": base64.b64encode(data).decode()}
    answer = call(path, "POST", _versions(arguments), body)
    print(f"{arguments.name}: version {answer['Number']}")


def versions(path: str, arguments: argparse.Namespace) -> None:
    """The versions that are kept, newest last."""
    for version in call(path, "GET", _versions(arguments)):
        mark = "*" if version["Current"] else " "
        users = ", ".join(version["Services"]) or "-"
        print(
            f"{mark} {version['Number']:>4}  {version['CreatedAt']}  {version['Digest'][:19]}  {version['Size']:>7}  {users}"
        )


def _versions(arguments: argparse.Namespace) -> str:
    return f"/swarm-agent/{arguments.kind}s/{quote(arguments.name, safe='')}/versions"


def register(words: Any) -> None:
    for kind in ("secret", "config"):
        word = words.add_parser(kind, help=f"versions of a {kind}")
        verbs = word.add_subparsers(dest="verb", required=True, metavar="VERB")
        verb = verbs.add_parser("set", help="make a file, or what comes in, the newest version")
        verb.add_argument("name", metavar="NAME")
        verb.add_argument(
            "file", metavar="FILE", nargs="?", default="-", help="- (the default) is what comes in"
        )
        verb.set_defaults(run=set_version, kind=kind)
        verb = verbs.add_parser("versions", help="what is kept, and which services use it")
        verb.add_argument("name", metavar="NAME")
        verb.set_defaults(run=versions, kind=kind)
