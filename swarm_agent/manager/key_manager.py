"""This manager's keys follow the cluster's unlock key.

When the cluster record has a newer unlock key than the key file is locked with (or none any more), the key file is locked anew at
once. Whatever was made under the older lock is then replaced, for whoever held that may have read it: the data key of the Raft log, and
the node's private key with its certificate. What a former process left half done is finished, the encryption of a log from
before it included.

Owns when this manager's keys change. Refuses to know how files are written (``ca.key_file``) and in which order the log
changes its key (``raft.rotation``). All it needs to go on after a restart is in the key file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from swarm_agent.ca.key_file import Entropy, KeyFile, KeySet, StoredKey
from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.records import Cluster
from swarm_agent.raft import Disk, RaftNode
from swarm_agent.raft.log import DataKey, DataKeys, SealedCodec, new_data_key
from swarm_agent.raft.rotation import finish, rotate
from swarm_agent.store import Change, Store

log = logging.getLogger(__name__)

RETRY_S = 2.0


class KeyManager:
    """``start`` it with the running Raft member; ``codec`` is for that one's log."""

    def __init__(
        self, store: Store, file: KeyFile, renew: Callable[[], Awaitable[None]], entropy: Entropy
    ) -> None:
        self._store = store
        self._file = file
        self._renew = renew
        self._entropy = entropy
        self.codec = SealedCodec(_data_keys(file.keys), entropy)
        self._lock_news = asyncio.Event()
        self._age_news = asyncio.Event()
        self._end_watch: Callable[[], None] | None = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    def start(self, raft: RaftNode, disk: Disk) -> None:
        self._end_watch = self._store.watch(self._on_entry)
        self._tasks = (
            asyncio.create_task(
                self._keep(lambda: self._follow_lock(disk), self._lock_news), name="key file"
            ),
            asyncio.create_task(
                self._keep(lambda: self._follow_age(raft, disk), self._age_news), name="keys"
            ),
        )

    async def stop(self) -> None:
        """What is half done stays so until the next start."""
        if self._end_watch is not None:
            self._end_watch()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = ()

    def _on_entry(self, index: int, changes: Sequence[Change]) -> None:  # noqa: ARG002
        if any(isinstance(change.new, Cluster) for change in changes):
            self._lock_news.set()

    async def _keep(self, follow: Callable[[], Awaitable[None]], news: asyncio.Event) -> None:
        """``follow`` now and at each news, again after a failure: a full disk or a missing leader must not end it."""
        said = ""
        while True:
            news.clear()
            try:
                await follow()
            except (SwarmError, OSError) as err:
                if str(err) != said:
                    log.warning("cannot change the keys of this manager yet: %s", err)
                said = str(err)
                await asyncio.sleep(RETRY_S)
            except Exception:  # it must not end for ever, and silently
                log.exception("the keys of this manager could not be changed")
                await asyncio.sleep(RETRY_S)
            else:
                said = ""
                await news.wait()

    async def _follow_lock(self, disk: Disk) -> None:
        """Lock the key file with the cluster's unlock key. Never with an older one: a log that is read again brings it back."""
        cluster = self._store.cluster
        if cluster is not None and cluster.unlock.version > self._file.lock_version:
            unlock = cluster.unlock
            await disk.run(lambda: self._file.relock(unlock.key, unlock.version))
            how = "locked with the cluster's unlock key" if unlock.key else "not locked any more"
            log.info("the keys of this manager are %s (version %d)", how, unlock.version)
            self._age_news.set()

    async def _follow_age(self, raft: RaftNode, disk: Disk) -> None:
        """Replace what is older than the lock."""

        async def save(keys: DataKeys) -> None:
            await disk.run(lambda: self._file.change(lambda now: _with(now, keys, self._file.lock_version)))

        while True:
            held, lock_version = self._file.keys, self._file.lock_version
            if held.data[-1].lock < lock_version:
                await rotate(raft, self.codec, save, new_data_key(self.codec.keys, self._entropy))
                log.info("the Raft log has a new data key")
            elif not self.codec.keys.settled:
                await finish(raft, self.codec, save)
                log.info("all of the Raft log is encrypted with its present data key")
            elif held.identity_lock < lock_version:
                await self._renew()
            else:
                return


def _data_keys(held: KeySet) -> DataKeys:
    return DataKeys(tuple(DataKey(k.id, k.secret) for k in held.data), held.plain_log)


def _with(held: KeySet, keys: DataKeys, lock_version: int) -> KeySet:
    """``keys`` in place of those held; new ones were made just now, and were on no disk before."""
    known = {(k.id, k.secret): k for k in held.data}
    data = tuple(known.get((k.id, k.secret)) or StoredKey(k.id, k.secret, lock_version) for k in keys.keys)
    return msgspec.structs.replace(held, data=data, plain_log=keys.plain)
