"""What every command of swarmctl needs: a request to the local agent, and a command with its help."""

from __future__ import annotations

import argparse
import http.client
import json
import socket
from collections.abc import Callable
from typing import Any

Run = Callable[[str, argparse.Namespace], None]  # the socket's path, and what was typed


class Failed(Exception):
    """A sentence for the user."""


class ApiConnection(http.client.HTTPConnection):
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
        Failed: no agent, or its refusal.
    """
    connection = ApiConnection(path)
    try:
        connection.request(method, target, json.dumps(body) if body is not None else None)
        answer = connection.getresponse()
        data = answer.read()
    except OSError as err:
        raise Failed(
            f"cannot reach swarm-agent at {path}: {err}. Is it running (systemctl status swarm-agent)?"
        ) from err
    finally:
        connection.close()
    decoded = json.loads(data) if data.strip() else None
    if answer.status >= 400:
        raise Failed(decoded["message"] if isinstance(decoded, dict) else str(data))
    return decoded


def add_command(commands: Any, name: str, text: str, run: Run | None = None) -> argparse.ArgumentParser:
    """A command with its line in the list of commands and at the head of its own help; no ``run``: it has commands of its own.

    ``text``: what it does, in the imperative, lower case and without a full stop.
    """
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    if run is not None:
        command.set_defaults(run=run)
    return command
