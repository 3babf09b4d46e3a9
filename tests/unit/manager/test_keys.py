"""The keeper of a manager's keys: what it follows, in which order, and what it tries again."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from swarm_agent.ca import ca
from swarm_agent.ca.key_file import KeyFile, LockedKeys, load_keys
from swarm_agent.ca.tokens import new_tokens
from swarm_agent.manager.key_manager import RETRY_S, KeyManager
from swarm_agent.objects.errors import Unavailable
from swarm_agent.objects.records import Cluster, UnlockKey
from swarm_agent.objects.specs import ClusterSpec
from swarm_agent.store import Group, Put, Store, StoreEntry, encode_entry
from tests.lib.fake_disk import FakeDisk
from tests.lib.raft_cluster import until
from tests.lib.virtual_loop import run

ROOT = ca.make_root()
FIRST, SECOND = b"1" * 32, b"2" * 32


class Bench:
    """A keeper between a store, a key file and a Raft member that rotates when told to."""

    def __init__(self, state: Path, *, lock_version: int = 0, unlock_key: bytes = b"") -> None:
        self.state = state
        self.store = Store()
        self.file = KeyFile.create(state, unlock_key=unlock_key, lock_version=lock_version)
        self.steps: list[str] = []
        self.may_rotate = asyncio.Event()
        self.may_rotate.set()
        self.refuses: list[Exception] = []
        self.keeper = KeyManager(self.store, self.file, self.renew, random.Random(1).randbytes)
        self.disk = FakeDisk(random.Random(1)).open()

    async def rotate_log(self) -> None:
        self.steps.append(f"rotate under {[k.id for k in self.on_disk()]}")
        await self.may_rotate.wait()

    async def renew(self) -> None:
        if self.refuses:
            raise self.refuses.pop(0)
        self.steps.append("renew")
        self.file.identity_saved(self.file.identity_key(), self.file.lock_version)

    def on_disk(self) -> tuple[Any, ...]:
        found = load_keys(self.state)
        if isinstance(found, LockedKeys):
            assert self.store.cluster is not None
            found = found.unlock(self.store.cluster.unlock.key)
        assert found is not None
        return found.keys.data

    def lock(self, unlock_key: bytes, version: int) -> None:
        before = self.store.cluster
        cluster = Cluster(
            id="c" * 25,
            spec=ClusterSpec(),
            root_ca=ROOT,
            join_tokens=new_tokens(ROOT.digest),
            unlock=UnlockKey(key=unlock_key, version=version),
        )
        put = Put(cluster, before.version if before is not None else 0)
        self.store.apply(self.store.index + 1, 1, encode_entry(StoreEntry(1, (Group("", (put,)),))))

    def start(self) -> None:
        raft: Any = self
        self.keeper.start(raft, self.disk)

    def locked_with(self, unlock_key: bytes) -> bool:
        found = load_keys(self.state)
        assert isinstance(found, LockedKeys)
        try:
            found.unlock(unlock_key)
        except Exception:  # noqa: BLE001
            return False
        return True


def test_a_newer_lock_is_taken_over_and_everything_made_before_it_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        (old,) = bench.file.keys.data
        bench.start()
        await asyncio.sleep(5)
        assert bench.steps == []
        bench.lock(FIRST, 1)
        await until(lambda: "renew" in bench.steps)
        assert bench.steps == ["rotate under [1, 2]", "renew"]
        assert bench.locked_with(FIRST)
        (new,) = bench.on_disk()
        assert new.secret != old.secret
        assert (new.lock, bench.file.keys.identity_lock) == (1, 1)
        await asyncio.sleep(60)
        assert len(bench.steps) == 2
        await bench.keeper.stop()

    run(main())


def test_an_older_lock_is_never_taken_over(tmp_path: Path) -> None:
    """The log is read again after a start, from before the last change of lock on."""

    async def main() -> None:
        bench = Bench(tmp_path, lock_version=2, unlock_key=SECOND)
        bench.start()
        bench.lock(FIRST, 1)
        await asyncio.sleep(10)
        assert bench.locked_with(SECOND)
        bench.lock(SECOND, 2)
        await asyncio.sleep(10)
        assert bench.steps == []
        bench.lock(b"", 3)
        await until(lambda: "renew" in bench.steps)
        assert isinstance(load_keys(tmp_path), KeyFile)
        await bench.keeper.stop()

    run(main())


def test_the_key_file_is_locked_anew_while_a_rotation_waits_for_a_majority(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        bench.may_rotate.clear()
        bench.start()
        bench.lock(FIRST, 1)
        await until(lambda: bool(bench.steps))
        bench.lock(SECOND, 2)
        await until(lambda: bench.locked_with(SECOND))
        assert [k.id for k in bench.on_disk()] == [1, 2]
        bench.may_rotate.set()
        await until(lambda: "renew" in bench.steps)
        assert bench.steps == ["rotate under [1, 2]", "rotate under [2, 3]", "renew"]
        (last,) = bench.on_disk()
        assert (last.id, last.lock) == (3, 2)
        await bench.keeper.stop()

    run(main())


def test_what_fails_is_said_once_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        bench.refuses = [
            Unavailable("no leader"),
            Unavailable("no leader"),
            OSError(28, "no space"),
            KeyError("bug"),
        ]
        bench.start()
        with caplog.at_level(logging.WARNING):
            bench.lock(FIRST, 1)
            await until(lambda: "renew" in bench.steps, 5 * RETRY_S)
        assert [r.getMessage() for r in caplog.records] == [
            "cannot change the keys of this manager yet: no leader",
            "cannot change the keys of this manager yet: [Errno 28] no space",
            "the keys of this manager could not be changed",
        ]
        await bench.keeper.stop()

    run(main())


def test_a_new_process_finishes_what_the_former_left_half_done(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        bench.may_rotate.clear()
        bench.start()
        bench.lock(FIRST, 1)
        await until(lambda: bool(bench.steps))
        await bench.keeper.stop()
        found = load_keys(tmp_path)
        assert isinstance(found, LockedKeys)
        again = Bench(tmp_path / "elsewhere")
        again.state, again.file = tmp_path, found.unlock(FIRST)
        again.keeper = KeyManager(again.store, again.file, again.renew, random.Random(2).randbytes)
        again.lock(FIRST, 1)
        again.start()
        await until(lambda: "renew" in again.steps)
        assert again.steps == ["rotate under [1, 2]", "renew"]
        assert [k.id for k in again.on_disk()] == [2]
        await again.keeper.stop()

    run(main())
