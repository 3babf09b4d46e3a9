"""The files through which the daemon tells netd what it may need to know while the daemon is away.

Owns: the format and the atomic writing of everything under the state folder (default ``/var/lib/swarm-agent/net``):

====================== ========= ==================================================================
``networks/<id>``      daemon    where a network's ports go: namespace, bridge, MTU, port settings
``records/<id>``       daemon    the names of one network and the addresses behind them
``tasks/<id>``         daemon    one local task: the address it asks from, the networks it may see
``resolver``           daemon    where to listen for questions
``ports``              daemon    published ports to hold, and those that are left to programs of the host
``holds``              netd      the sockets that hold them
``engine/<id>``        netd      which network an engine's network id stands for
``endpoints/<id>``     netd      an endpoint of the engine: network, address, MAC
``resolv/<id>``        daemon    a task's resolv.conf, where the engine's own would not do; mounted into its container
====================== ========= ==================================================================

Invariants: a file is replaced whole (temporary file, rename), so a reader sees the old or the new text; its name is an
id of ours or the engine's, letters and digits only; an unreadable file is one record missing, never a crash.
Refuses: policy. Standard library only, both processes use it. Unknown keys are ignored: an older netd reads a newer
daemon's files.
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Self, TypeVar

log = logging.getLogger(__name__)

DEFAULT_FOLDER: Final = Path("/var/lib/swarm-agent/net")
FOLDERS: Final = ("networks", "records", "tasks", "engine", "endpoints")
_RESOLV: Final = "resolv"
_SAFE: Final = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")


@dataclass(frozen=True, slots=True)
class _Record:
    """A record lives in ``<folder>/<key>.json``."""

    folder: ClassVar[str] = ""

    @classmethod
    def load(cls, document: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        return cls(**{key: _frozen(value) for key, value in document.items() if key in known})


@dataclass(frozen=True, slots=True)
class NetworkEntry(_Record):
    """What Join needs: nothing here is decided by netd."""

    folder: ClassVar[str] = "networks"
    network: str
    netns: str
    mtu: int
    bridge: str = "br0"
    default_gateway: str = ""  # set: a container's default route goes here
    hairpin: bool = True
    isolated: bool = False


@dataclass(frozen=True, slots=True)
class NamesEntry(_Record):
    """Names of one network, lower case without trailing dot. An empty list is a known name with no address now."""

    folder: ClassVar[str] = "records"
    network: str
    name: str
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pointers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskEntry(_Record):
    """Who asks from ``address``, which networks' names it may see, in order, and who is asked for other names (none: the host's servers)."""

    folder: ClassVar[str] = "tasks"
    task: str
    address: str
    networks: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineNetworkEntry(_Record):
    folder: ClassVar[str] = "engine"
    engine_id: str
    network: str


@dataclass(frozen=True, slots=True)
class EndpointEntry(_Record):
    folder: ClassVar[str] = "endpoints"
    endpoint: str
    network: str
    address: str
    mac: str


@dataclass(frozen=True, slots=True)
class ResolverEntry(_Record):
    """Where netd answers questions: pairs of namespace and address. As the two below it is not in a folder."""

    listen: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class PortsEntry(_Record):
    """Pairs of protocol and number. ``yielded`` is for the daemon itself, which must know after a reboot what was not its own."""

    hold: tuple[tuple[str, int], ...] = ()
    yielded: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class HoldsEntry(_Record):
    """Inodes of the sockets that hold published ports."""

    inodes: tuple[int, ...] = ()


_T = TypeVar("_T", bound=_Record)


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return value


class StateFiles:
    """Reads and writes the state folder. Holds nothing in memory, so both processes may have one."""

    def __init__(self, folder: Path = DEFAULT_FOLDER) -> None:
        self.folder = folder

    def prepare(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in FOLDERS:
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)

    def path(self, folder: str, key: str) -> Path:
        if not _SAFE.match(key):
            raise ValueError(f"{key!r} cannot be the name of a record: only letters, digits, - and _")
        return self.folder / folder / f"{key}.json"

    def put(self, key: str, record: _Record) -> bool:
        """Write unless the file already says so; True when written."""
        return self._write(self.path(record.folder, key), record)

    def get(self, kind: type[_T], key: str) -> _T | None:
        return self._read(kind, self.path(kind.folder, key))

    def drop(self, kind: type[_Record], key: str) -> None:
        self.path(kind.folder, key).unlink(missing_ok=True)

    def keys(self, kind: type[_Record]) -> list[str]:
        try:
            files = [path.name for path in (self.folder / kind.folder).iterdir()]
        except FileNotFoundError:
            return []
        return sorted(name[:-5] for name in files if name.endswith(".json") and not name.startswith("."))

    def age(self, kind: type[_Record], key: str, now: float) -> float:
        """Seconds since the record was written; 0 when there is none."""
        try:
            return now - self.path(kind.folder, key).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def put_resolver(self, record: ResolverEntry) -> bool:
        return self._write(self.folder / "resolver.json", record)

    def get_resolver(self) -> ResolverEntry:
        return self._read(ResolverEntry, self.folder / "resolver.json") or ResolverEntry()

    def put_ports(self, record: PortsEntry) -> bool:
        return self._write(self.folder / "ports.json", record)

    def get_ports(self) -> PortsEntry:
        return self._read(PortsEntry, self.folder / "ports.json") or PortsEntry()

    def put_holds(self, record: HoldsEntry) -> bool:
        return self._write(self.folder / "holds.json", record)

    def get_holds(self) -> HoldsEntry:
        return self._read(HoldsEntry, self.folder / "holds.json") or HoldsEntry()

    def put_resolv_conf(self, task_id: str, text: str) -> Path:
        """The file lies there, readable for every user of the container it is mounted into, when this returns."""
        path = self._resolv_conf(task_id)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        # In place: a container that has it mounted keeps the file it was started with.
        path.write_text(text)
        path.chmod(0o644)
        return path

    def drop_resolv_conf(self, task_id: str) -> None:
        self._resolv_conf(task_id).unlink(missing_ok=True)

    def resolv_confs(self) -> list[str]:
        """Ids of the tasks that have one."""
        try:
            return sorted(path.name for path in (self.folder / _RESOLV).iterdir())
        except FileNotFoundError:
            return []

    def _resolv_conf(self, task_id: str) -> Path:
        if not _SAFE.match(task_id):
            raise ValueError(f"{task_id!r} cannot be the name of a file: only letters, digits, - and _")
        return self.folder / _RESOLV / task_id

    def _write(self, path: Path, record: _Record) -> bool:
        text = json.dumps(asdict(record), sort_keys=True, separators=(",", ":")).encode()
        try:
            if path.read_bytes() == text:
                return False
        except FileNotFoundError:
            pass
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(text)
        temporary.rename(path)
        return True

    def _read(self, kind: type[_T], path: Path) -> _T | None:
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.error(f"record {path} cannot be read and counts as missing: {error}")
            return None
        try:
            return kind.load(document)
        except (TypeError, AttributeError) as error:
            log.error(f"record {path} is not a {kind.__name__} and counts as missing: {error}")
            return None
