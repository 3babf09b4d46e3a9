"""The agent's configuration file: TOML, every key optional, an unknown one an error that names it."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from swarm_agent.log_format import LOG_LEVELS
from swarm_agent.network.model import VXLAN_PORT
from swarm_agent.objects import features
from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.objects.records import Generic

_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
DEFAULT_PATH = Path("/etc/swarm-agent/agent.toml")


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set about a daemon."""

    state_dir: str = "/var/lib/swarm-agent"
    """Certificates, Raft log, network journal. Root only; losing it is leaving the swarm."""

    socket: str = "/run/swarm-agent/docker.sock"
    """Where the Docker API is served."""

    engine_socket: str = "/var/run/docker.sock"
    """Where the local engine is. With the agent standing at that path, the engine's new one."""

    join_port: int = 2377
    """TCP, managers only: where nodes join."""

    rpc_port: int = 2378
    """TCP, managers only: node sessions and calls between managers."""

    raft_port: int = 7946
    """TCP, managers only: Raft. The same on all managers of a cluster. Docker Swarm's port for its gossip, so that a firewall made for
    that lets it through."""

    timing: Literal["lan", "wan"] = "lan"
    """How patient Raft is, on all managers alike. lan: a dead leader is replaced within about a second. wan: for managers that are tens
    of milliseconds apart, a few seconds."""

    advertise_addr: str = ""
    """Where others reach this host, when that is no longer what it joined with: set it and restart. The node stays who it is. One manager
    at a time; a majority has to find each other at the old addresses. "" for no change."""

    metrics_addr: str = "127.0.0.1:9323"
    """``/metrics``, ``/healthz``, ``/readyz``; "" for none."""

    log_level: str = "info"
    """debug, info, warning or error; ``swarmctl log-level`` changes it until the next start."""

    log_format: str = "text"
    """journal: one JSON object a line with node, task and cause; text: for people."""

    feature_level: int | None = None
    """Managers only: go along no further than this level, so that a downgrade remains possible until an upgrade is judged good.
    None: as far as this release knows."""

    generic_resources: dict[str, int | tuple[str, ...]] = {}
    """What this host has to reserve beyond processors and memory, by kind: how many, or the names of each one. A name that is a path
    is a device of this host, which a task that is given it finds in its container."""

    @property
    def generic(self) -> tuple[Generic, ...]:
        """The generic resources, as a node describes them."""
        out: list[Generic] = []
        for kind, given in sorted(self.generic_resources.items()):
            if isinstance(given, int):
                out.append(Generic(kind=kind, count=given))
            else:
                out += [Generic(kind=kind, name=name) for name in given]
        return tuple(out)

    @property
    def own_ports(self) -> dict[tuple[str, int], str]:
        """What the swarm itself uses on its hosts, by (protocol, port), and what for. Hosts of a swarm are set up alike."""
        own = {
            ("tcp", self.join_port): "where nodes join",
            ("tcp", self.rpc_port): "sessions of nodes with their managers",
            ("tcp", self.raft_port): "Raft between managers",
            ("udp", VXLAN_PORT): "overlay networks between hosts",
        }
        metrics = self.metrics_addr.rpartition(":")[2]
        if metrics.isdigit() and int(metrics):
            own["tcp", int(metrics)] = "metrics of the agent"
        return own

    @property
    def level(self) -> int:
        """The feature level this daemon works at."""
        return features.LEVEL if self.feature_level is None else self.feature_level

    def __post_init__(self) -> None:
        for name in ("join_port", "rpc_port", "raft_port"):
            port = getattr(self, name)
            if not 1 <= port <= 65535:
                raise ValueError(f"{name} {port} is not in the range 1 to 65535")
        if len({self.join_port, self.rpc_port, self.raft_port}) < 3:
            raise ValueError("join_port, rpc_port and raft_port must differ")
        if self.advertise_addr:
            try:
                ipaddress.IPv4Address(self.advertise_addr)
            except ValueError as err:
                raise ValueError(f"advertise_addr {self.advertise_addr!r} is no IPv4 address") from err
        if self.log_level not in LOG_LEVELS:
            raise ValueError(f"log_level {self.log_level!r} is none of {', '.join(LOG_LEVELS)}")
        if self.log_format not in ("journal", "text"):
            raise ValueError(f"log_format {self.log_format!r} is neither journal nor text")
        if self.feature_level is not None and not features.FIRST <= self.feature_level <= features.LEVEL:
            raise ValueError(
                f"feature_level {self.feature_level} is not in the range {features.FIRST} to {features.LEVEL}, "
                "the highest this release knows"
            )
        for kind, given in self.generic_resources.items():
            _check_generic(f"generic_resources.{kind}", kind, given)
        if self.socket == self.engine_socket:
            raise ValueError("socket and engine_socket must differ: the agent passes calls on to the engine")


def _check_generic(path: str, kind: str, given: int | tuple[str, ...]) -> None:
    if not _KIND.fullmatch(kind):
        raise ValueError(f"{path}: a kind is made of letters, digits, hyphens, dots and underscores")
    if isinstance(given, int):
        if given < 1:
            raise ValueError(f"{path}: {given} is no number above 0; leave out what there is none of")
        return
    if not given:
        raise ValueError(f"{path}: an empty list; leave out what there is none of")
    if len(set(given)) != len(given):
        raise ValueError(f"{path}: a name is there twice")
    for name in given:
        if not name or "," in name or name != name.strip():
            raise ValueError(
                f"{path}: {name!r} is no name: it is not empty, has no comma and no space around it"
            )


def check_devices(config: AgentConfig) -> None:
    """Raises InvalidSpec for a generic resource whose name is a path that this host does not have."""
    for resource in config.generic:
        if resource.name.startswith("/") and not Path(resource.name).exists():
            raise InvalidSpec(
                f"generic_resources.{resource.kind}: this host has no {resource.name}. Load its driver, or take it out of the list"
            )


def load_config(path: Path, *, must_exist: bool) -> AgentConfig:
    """Read the file; absent means defaults unless it was asked for by name.

    Raises:
        InvalidSpec: names the file, the key and what is wrong with it.
    """
    return parse_config(path, read_config(path, must_exist=must_exist))


def read_config(path: Path, *, must_exist: bool) -> str:
    """The file's text; "" for one that is absent and was not asked for by name."""
    try:
        return path.read_text()
    except FileNotFoundError as err:
        if must_exist:
            raise InvalidSpec(f"{path}: no such file") from err
        return ""
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidSpec(f"{path}: {err}") from err


def parse_config(path: Path, text: str) -> AgentConfig:
    """What the text of the file at ``path`` says."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise InvalidSpec(f"{path}: {err}") from err
    try:
        return msgspec.convert(raw, AgentConfig)
    except (msgspec.ValidationError, ValueError) as err:
        known = ", ".join(f.name for f in msgspec.structs.fields(AgentConfig))
        raise InvalidSpec(f"{path}: {err}. Known keys: {known}") from err
