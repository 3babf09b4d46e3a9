"""What a container's ``/etc/resolv.conf`` says, and what the engine is told so that names of ours are asked of us all the same.

The engine's resolver at 127.0.0.11 keeps names without a dot to itself as soon as it hears of any ``ndots`` option, be it the
host's or the user's, and the names of services have no dot. So it never hears of one: with ``ndots:0``, which it writes
itself, there is nothing more to do; any other number stands in a file of ours that is mounted over the engine's.
Owns: reading such files and putting them together. Pure but for ``of_host``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from msgspec import Struct

ENGINE_RESOLVER = "127.0.0.11"
TARGET = "/etc/resolv.conf"
_STUB = "127.0.0.53"  # systemd-resolved: the engine then reads the file behind it, and so do we
_HOST_FILE, _BEHIND_STUB = Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")
_ENGINE_FILE = Path("/etc/docker/daemon.json")
_NDOTS = re.compile(r"ndots:(\d+)")
_NEUTRAL = ("timeout:5",)
"""What every resolver does anyway. An empty list of options is no list to the engine: it would take the host's."""


class Resolv(Struct, frozen=True):
    """The parts of a resolv.conf that are taken over into containers."""

    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()


class ForContainer(Struct, frozen=True):
    """``options``: for the create call. ``text``: the file to mount over the container's; empty: the engine's own is right."""

    options: tuple[str, ...]
    text: str = ""


def parse(text: str) -> Resolv:
    search: tuple[str, ...] = ()
    options: list[str] = []
    servers = []
    for line in text.splitlines():
        word, *rest = re.split(r"[#;]", line, maxsplit=1)[0].split() or [""]
        if word in {"search", "domain"}:
            search = tuple(rest)
        elif word == "options":
            options += rest
        elif word == "nameserver" and rest:
            servers.append(rest[0])
    return Resolv(search, tuple(options), tuple(servers))


def of_host(host: Path = _HOST_FILE, behind_stub: Path = _BEHIND_STUB, engine: Path = _ENGINE_FILE) -> Resolv:
    """What the engine gives a container that states nothing itself: the host's, or what is configured for the engine.

    A file that is missing or makes no sense says nothing.
    """
    found = parse(_text(host))
    if found.servers == (_STUB,):
        found = parse(_text(behind_stub))
    try:
        configured = json.loads(_text(engine) or "{}")
    except ValueError:
        configured = {}
    if not isinstance(configured, dict):
        configured = {}
    return Resolv(
        _words(configured.get("dns-search")) or found.search,
        _words(configured.get("dns-opts")) or found.options,
        found.servers,
    )


def for_container(search: tuple[str, ...], options: tuple[str, ...], host: Resolv) -> ForContainer:
    """``search`` and ``options`` as the user stated them; what is not stated is the host's, as with any container.

    A malformed ``ndots`` of the user's goes to the engine, which says what is wrong with it; one of the host's is left out.
    """
    stated = options or tuple(o for o in host.options if not o.startswith("ndots") or _NDOTS.fullmatch(o))
    told = tuple(option for option in stated if not _NDOTS.fullmatch(option)) or _NEUTRAL
    numbers = [int(match[1]) for option in stated if (match := _NDOTS.fullmatch(option))]
    if not numbers or numbers[-1] == 0:
        return ForContainer(told)
    domains = [domain for domain in search or host.search if domain != "."]
    lines = ["# Made by swarm-agent for this task."]
    lines += [f"search {' '.join(domains)}"] if domains else []
    lines += [f"nameserver {ENGINE_RESOLVER}", f"options {' '.join(stated)}"]
    return ForContainer(told, "\n".join(lines) + "\n")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _words(value: object) -> tuple[str, ...]:
    return tuple(str(word) for word in value) if isinstance(value, list) else ()
