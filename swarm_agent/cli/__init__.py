"""swarmctl: what the docker command cannot do. Talks to the local agent's socket."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
from pathlib import Path
from urllib.parse import urlencode

from swarm_agent import __version__
from swarm_agent.cli import secrets, services
from swarm_agent.cli.client import ApiConnection, Failed, add_command, call
from swarm_agent.config import AgentConfig
from swarm_agent.log_format import LOG_LEVELS
from swarm_agent.manager.backup import new_backup_key, shown

EXIT_FAILED = 2


def status(path: str, arguments: argparse.Namespace) -> None:  # noqa: ARG001
    """Show the state, role and managers of this node."""
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


def backup(path: str, arguments: argparse.Namespace) -> None:
    """Write an encrypted backup of the whole swarm to a file, which is complete or not there."""
    key = _backup_key(arguments.key_file, make=True)
    target = Path(arguments.file)
    connection = ApiConnection(path)
    partial = target.with_name(target.name + ".partial")
    try:
        connection.request("POST", "/swarm-agent/backup", json.dumps({"Key": key}))
        answer = connection.getresponse()
        if answer.status >= 400:
            raise Failed(json.loads(answer.read())["message"])
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            while piece := answer.read(1 << 20):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except (OSError, http.client.HTTPException) as err:
        raise Failed(f"no backup was made: {err}") from err
    finally:
        connection.close()
        partial.unlink(missing_ok=True)
    print(
        f"{target}: {target.stat().st_size} bytes. It opens with the key in {arguments.key_file} only: keep both, apart"
    )


def recover(path: str, arguments: argparse.Namespace) -> None:
    """Restore a swarm from a backup, on this host."""
    key = _backup_key(arguments.key_file, make=False)
    query = urlencode(
        {
            "AdvertiseAddr": arguments.advertise_addr,
            "ListenAddr": arguments.listen_addr,
            "DataPathAddr": arguments.data_path_addr,
        }
    )
    connection = ApiConnection(path)
    connection.timeout = 120
    try:
        data = Path(arguments.file).read_bytes()
        connection.request("POST", f"/swarm-agent/recover?{query}", data, {"X-Backup-Key": key})
        answer = connection.getresponse()
        told = json.loads(answer.read())
    except (OSError, http.client.HTTPException) as err:
        raise Failed(f"cannot recover {arguments.file}: {err}") from err
    finally:
        connection.close()
    if answer.status >= 400:
        raise Failed(told["message"])
    print(f"recovered: this is node {told}, the only manager.")
    print(
        'Former nodes are shown as down: remove them with "docker node rm", and join hosts with "docker swarm join-token".'
    )


def _backup_key(path: str, *, make: bool) -> str:
    """The key in a file; with ``make`` a new one if the file does not exist."""
    try:
        return Path(path).read_text().strip()
    except FileNotFoundError as err:
        if not make:
            raise Failed(f"{path}: no such file. It was made together with the backup") from err
    except OSError as err:
        raise Failed(str(err)) from err
    key = shown(new_backup_key(os.urandom))
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(key + "\n")
            file.flush()
            os.fsync(file.fileno())  # before the archive, which is worth nothing without it
        directory = os.open(Path(path).absolute().parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as err:
        raise Failed(str(err)) from err
    print(f"made a new key in {path}")
    return key


def log_level(path: str, arguments: argparse.Namespace) -> None:
    """Change the agent's log level until it restarts."""
    call(path, "POST", "/swarm-agent/log-level", {"Level": arguments.level})


def arguments_parser() -> argparse.ArgumentParser:
    """All commands and their options; ``run`` of what it parses carries the command out."""
    parser = argparse.ArgumentParser(
        prog="swarmctl",
        description="Do with a swarm what the docker command cannot.",
        epilog="swarmctl COMMAND --help tells more about a command.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=os.environ.get("SWARM_AGENT_SOCKET", AgentConfig().socket),
        help="the agent's socket (default %(default)s, or SWARM_AGENT_SOCKET if set)",
    )
    parser.add_argument(
        "--version", action="version", version=f"swarmctl {__version__}", help="show the version and exit"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    add_command(commands, "status", "show the state, role and managers of this node", status)
    services.register(commands)
    command = add_command(
        commands, "backup", "write an encrypted backup of the whole swarm, from any manager", backup
    )
    command.add_argument("file", metavar="FILE", help="the backup to write")
    command.add_argument(
        "--key-file",
        required=True,
        metavar="FILE",
        help="the backup's key; created if the file does not exist",
    )
    command = add_command(
        commands, "recover", "restore a swarm from a backup, on this host and at any address", recover
    )
    command.add_argument("file", metavar="FILE", help="the backup to read")
    command.add_argument("--key-file", required=True, metavar="FILE", help="the backup's key")
    for option, text in (
        ("advertise", "the address that other nodes reach this one at"),
        ("listen", "the address to listen at"),
        ("data-path", "the address for the traffic of containers"),
    ):
        command.add_argument(
            f"--{option}-addr", default="", metavar="ADDRESS", help=f"{text}, as in docker swarm init"
        )
    secrets.register(commands)
    command = add_command(
        commands, "log-level", "change the agent's log level until the agent restarts", log_level
    )
    command.add_argument("level", choices=LOG_LEVELS, help="the least severe messages to log")
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = arguments_parser().parse_args(argv)
    try:
        arguments.run(arguments.socket, arguments)
    except Failed as err:
        print(f"swarmctl: {err}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
