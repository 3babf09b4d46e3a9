"""Who may see which name: answers questions from the journal's records, or says that others must.

Owns: the views. An asker is a source address on the node network; its task's networks decide what it sees, so the
same name can mean different things to two tasks. Refuses: sockets (``dnsserver``), making names up (``model``).
Standard library only.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from swarm_agent.network import dnswire
from swarm_agent.network.dnswire import Question
from swarm_agent.network.state_files import NamesEntry, StateFiles, TaskEntry

log = logging.getLogger(__name__)

TTL = 2
"""Seconds. Virtual addresses hardly change, tasks' addresses do; clients that cache longer than asked are on their own."""

_T = TypeVar("_T", NamesEntry, TaskEntry)
_Signature = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a known name has: no addresses is an answer too."""

    addresses: tuple[str, ...]


class Zone:
    """The records in memory, read again where a file changed."""

    def __init__(self, journal: StateFiles, rng: random.Random) -> None:
        self._journal = journal
        self._rng = rng
        self._names: dict[str, NamesEntry] = {}
        self._tasks: dict[str, TaskEntry] = {}
        self._askers: dict[str, tuple[str, ...]] = {}
        self._servers: dict[str, tuple[str, ...]] = {}
        self._seen: dict[type, dict[str, _Signature]] = {NamesEntry: {}, TaskEntry: {}}

    def reload(self) -> None:
        """Cost: one look at each folder, reading only files that changed."""
        self._refresh(NamesEntry, self._names)
        if self._refresh(TaskEntry, self._tasks):
            self._askers = {task.address: task.networks for task in self._tasks.values()}
            self._servers = {task.address: task.servers for task in self._tasks.values() if task.servers}

    def _refresh(self, kind: type[_T], into: dict[str, _T]) -> bool:
        seen = self._seen[kind]
        present: dict[str, _Signature] = {}
        try:
            with os.scandir(self._journal.folder / kind.folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".json") and not entry.name.startswith("."):
                        status = entry.stat()
                        present[entry.name[:-5]] = (status.st_mtime_ns, status.st_ino, status.st_size)
        except FileNotFoundError:
            pass
        changed = False
        for key in seen.keys() - present.keys():
            into.pop(key, None)
            changed = True
        for key, signature in present.items():
            if seen.get(key) == signature:
                continue
            changed = True
            record = self._journal.get(kind, key)
            if record is None:
                into.pop(key, None)
            else:
                into[key] = record
        self._seen[kind] = present
        return changed

    def servers(self, asker: str) -> tuple[str, ...]:
        """Whom this asker wants asked for names that are none of ours; none: the host's servers."""
        return self._servers.get(asker, ())

    # --- answering

    def answer(self, question: Question, asker: str, limit: int) -> bytes | None:
        """Bytes to send, or ``None``: the name is none of ours, ask the host's own servers."""
        if question.klass not in {dnswire.IN, dnswire.ANY}:
            return dnswire.failure(question, dnswire.REFUSED)
        networks = self._askers.get(asker, ())
        if question.name.endswith(".in-addr.arpa"):
            pointer = self._pointer(question.name, networks)
            if pointer is None:
                return None
            wanted = question.kind in {dnswire.PTR, dnswire.ANY}
            records = [(dnswire.PTR, dnswire.pack_name(pointer))] if wanted else []
            return dnswire.answer(question, records, ttl=TTL, limit=limit)
        found = self.find(question.name, networks)
        if found is None:
            return None
        addresses = list(found.addresses) if question.kind in {dnswire.A, dnswire.ANY} else []
        self._rng.shuffle(addresses)
        records = [(dnswire.A, dnswire.pack_address(address)) for address in addresses]
        return dnswire.answer(question, records, ttl=TTL, limit=limit)

    def find(self, name: str, networks: Sequence[str]) -> Resolved | None:
        """``name`` or ``name.<network>``; the first of the asker's networks that knows it answers."""
        for network in networks:
            records = self._names.get(network)
            if records is None:
                continue
            short = name.removesuffix("." + records.name.lower())
            for spelling in (name, short):
                if spelling in records.names:
                    return Resolved(tuple(records.names[spelling]))
        return None

    def _pointer(self, name: str, networks: Sequence[str]) -> str | None:
        address = dnswire.reversed_address(name)
        for network in networks:
            records = self._names.get(network)
            if records is not None and address in records.pointers:
                return records.pointers[address]
        return None


def upstreams(path: Path) -> list[str]:
    """Name servers of the host, in order. One that cannot be read is a host without any."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        log.warning(f"{path} cannot be read, names outside the swarm are not resolved: {error}")
        return []
    words = [line.split() for line in text.splitlines()]
    return [word[1].partition("%")[0] for word in words if len(word) >= 2 and word[0] == "nameserver"][:3]
