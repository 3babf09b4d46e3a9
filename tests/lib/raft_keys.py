"""The key file of a simulated Raft host: on its fake disk, so that power cuts hit it as they hit the log.

Owns the file's form (which no real daemon has: see ``ca.key_file``). Refuses to know when keys change: ``raft.rotation`` does.
"""

from __future__ import annotations

import random

import msgspec

from swarm_agent.raft import RaftNode
from swarm_agent.raft.disk import Disk
from swarm_agent.raft.log import DataKeys, SealedCodec, new_data_key
from swarm_agent.raft.rotation import finish, rotate

NAME = "keys"


def save_keys(disk: Disk, keys: DataKeys) -> None:
    """Durable on return; a cut leaves the former file or this one."""
    temporary = NAME + ".tmp"
    if temporary in disk.names():
        disk.remove(temporary)
    disk.append(temporary, msgspec.msgpack.encode(keys))
    disk.sync(temporary)
    disk.rename(temporary, NAME)
    disk.sync_dir()


def load_keys(disk: Disk, rng: random.Random) -> DataKeys:
    """What is there; a first start makes a first key. Files that are older than that one are plain."""
    names = disk.names()
    if NAME in names:
        return msgspec.msgpack.decode(disk.read(NAME), type=DataKeys)
    keys = DataKeys((new_data_key(None, rng.randbytes),), plain=any(n.endswith(".wal") for n in names))
    save_keys(disk, keys)
    return keys


class HostKeys:
    """A host's keys while one process runs on it."""

    def __init__(self, disk: Disk, rng: random.Random) -> None:
        self._disk = disk
        self._rng = rng
        self.codec = SealedCodec(load_keys(disk, rng), rng.randbytes)

    async def _save(self, keys: DataKeys) -> None:
        await self._disk.run(lambda: save_keys(self._disk, keys))

    async def rotate(self, node: RaftNode) -> None:
        await rotate(node, self.codec, self._save, new_data_key(self.codec.keys, self._rng.randbytes))

    async def finish(self, node: RaftNode) -> None:
        await finish(node, self.codec, self._save)
