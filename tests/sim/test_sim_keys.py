"""Autolock on whole simulated clusters: locks, restarts, unlocking, rotation, promotion and leaving."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from swarm_agent.ca.key_file import KeyFile, LockedKeys, load_keys, remove_keys
from swarm_agent.ca.unlock import parse_unlock_key
from swarm_agent.node.membership import load_membership
from swarm_agent.raft.log import DataKey, DataKeys, Log, Owner, SealedCodec
from tests.lib.optional import unwrap
from tests.lib.sim_checks import ClusterChecks, unsettled
from tests.lib.sim_cluster import SimCluster, simulation
from tests.lib.sim_host import ApiError, SimHost

Story = Callable[[SimCluster], Awaitable[None]]
LOCKED = "Swarm is encrypted and needs to be unlocked before it can be used"


def play(story: Story, *, managers: int = 3, workers: int = 1, seed: int = 1, start: bool = True) -> None:
    """Start a cluster, tell the story, and leave it in order."""

    async def main(cluster: SimCluster) -> None:
        if start:
            await cluster.start(managers, workers)
        await story(cluster)
        await cluster.until("everything is as declared", lambda: unsettled(cluster), 120)
        for host, manager in cluster.managers():
            check_files(host, manager.settings.raft_id)

    with simulation(seed) as sim:
        sim.loop.after_step = ClusterChecks(sim.cluster)
        sim.run(main(sim.cluster))


def key_file(host: SimHost) -> KeyFile | LockedKeys | None:
    return load_keys(host.directory)


def check_files(host: SimHost, raft_id: int) -> None:
    """The log opens with what the key file on disk holds; no other key is left in it."""
    manager = host.manager
    assert manager is not None
    found = key_file(host)
    if isinstance(found, LockedKeys):
        assert manager.store.cluster is not None
        found = found.unlock(manager.store.cluster.unlock.key)
    assert found is not None
    (data,) = found.keys.data
    assert not found.keys.plain_log
    disk = host.raft_disk().copy()
    settings = manager.settings
    codec = SealedCodec(DataKeys((DataKey(data.id, data.secret),)))
    Log.open(disk.open(), Owner(settings.cluster_id, settings.node_id, raft_id), codec=codec)


async def update(c: SimCluster, *, autolock: bool, rotate: bool = False) -> str:
    """The unlock key after it."""
    shown = await c.api("GET", "/swarm")
    spec = {**shown["Spec"], "EncryptionConfig": {"AutoLockManagers": autolock}}
    query = f"version={shown['Version']['Index']}&rotateManagerUnlockKey={str(rotate).lower()}"
    await c.api("POST", "/swarm/update", spec, query)
    return str((await c.api("GET", "/swarm/unlockkey"))["UnlockKey"])


def not_followed(c: SimCluster) -> str:
    """Which manager's keys are older than the cluster's lock; "" when none are."""
    cluster = c.store.cluster
    assert cluster is not None
    for host, manager in c.managers():
        file = manager.keys._file
        keys = file.keys
        if file.lock_version != cluster.unlock.version:
            return f"{host.name} has the lock of version {file.lock_version}"
        if len(keys.data) != 1 or keys.data[0].lock != cluster.unlock.version:
            return f"{host.name} has data keys {keys.data}"
        if keys.identity_lock != cluster.unlock.version:
            return f"{host.name} has a private key of version {keys.identity_lock}"
    return ""


async def followed(c: SimCluster) -> None:
    await c.until("all keys follow the lock", lambda: not_followed(c) if c.leading() else "nobody leads")


def pem(host: SimHost) -> bytes:
    return (host.directory / "certificates" / "swarm-node.pem").read_bytes()


async def restart(c: SimCluster, name: str) -> SimHost:
    await c[name].kill()
    c[name].start()
    return c[name]


async def unlock(host: SimHost, key: str) -> Any:
    return await host.api("POST", "/swarm/unlock", {"UnlockKey": key})


def test_without_autolock_a_restarted_manager_reads_its_encrypted_log() -> None:
    async def story(c: SimCluster) -> None:
        await c.create("web", 3)
        await c.until_running("web", 3)
        for name in ("m1", "m2", "m3"):
            await c[name].kill()
        for name in ("m1", "m2", "m3"):
            c[name].start()
        await c.any_leader()
        assert c.service("web").spec.name == "web"

    play(story)


def test_turning_autolock_on_locks_every_manager_and_no_worker() -> None:
    async def story(c: SimCluster) -> None:
        private = {name: unwrap(c[name].daemon.member).identity.key for name in c.hosts}
        key = await update(c, autolock=True)
        await followed(c)
        for name in ("m1", "m2", "m3"):
            found = key_file(c[name])
            assert isinstance(found, LockedKeys)
            assert found.unlock(parse_unlock_key(key)).lock_version == 1
            assert pem(c[name]).startswith(b"-----BEGIN SEALED PRIVATE KEY-----")
            member = c[name].daemon.member
            assert member is not None
            assert member.identity.key != private[name]
        assert key_file(c["w1"]) is None
        assert private["w1"] in pem(c["w1"])

    play(story)


def test_a_locked_manager_serves_nothing_and_its_containers_run_on_until_it_is_unlocked() -> None:
    async def story(c: SimCluster) -> None:
        await c.create("web", 4)
        await c.until_running("web", 4)
        key = await update(c, autolock=True)
        await followed(c)
        running = {x.name for x in c["m2"].engine.running()}
        host = await restart(c, "m2")
        assert host.daemon.state == "locked"
        assert host.manager is None
        assert (await host.api("GET", "/info"))["Swarm"]["LocalNodeState"] == "locked"
        assert host.daemon.observe._not_ready().startswith("locked: ")
        for method, path in (("GET", "/swarm"), ("GET", "/nodes"), ("GET", "/swarm/unlockkey")):
            with pytest.raises(ApiError, match=LOCKED):
                await host.api(method, path)
        other = ("X" if key[-20] != "X" else "Y").join((key[:-20], key[-19:]))
        for _ in range(3):
            with pytest.raises(
                ApiError, match="swarm could not be unlocked: invalid key provided"
            ) as refused:
                await unlock(host, other)
            assert refused.value.status == 401
        assert host.daemon.state == "locked"
        assert {x.name for x in host.engine.running()} == running
        with pytest.raises(ApiError, match=LOCKED):
            await host.api("POST", "/swarm/leave")
        await unlock(host, key)
        assert host.daemon.state == "active"
        with pytest.raises(ApiError, match="swarm is not locked") as refused:
            await unlock(host, key)
        assert refused.value.status == 409
        await c.until_running("web", 4)

    play(story)


def test_a_cluster_founded_with_autolock_never_has_its_keys_in_the_open() -> None:
    async def story(c: SimCluster) -> None:
        host = c.add_host("m1")
        request = {"AdvertiseAddr": host.addr, "AutoLockManagers": True}
        await host.api("POST", "/swarm/init", request)
        file = key_file(host)
        assert isinstance(file, LockedKeys)
        assert pem(host).startswith(b"-----BEGIN SEALED PRIVATE KEY-----")
        key = (await host.api("GET", "/swarm/unlockkey"))["UnlockKey"]
        assert (await host.api("GET", "/swarm"))["Spec"]["EncryptionConfig"] == {"AutoLockManagers": True}
        opened = file.unlock(parse_unlock_key(key))
        assert [k.id for k in opened.keys.data] == [1]
        await restart(c, "m1")
        assert host.daemon.state == "locked"
        await unlock(host, key)
        await c.any_leader()
        late = c.add_host("m2")
        await c.join(late, "Manager")
        await followed(c)
        assert isinstance(key_file(late), LockedKeys)

    play(story, start=False)


def test_all_managers_down_come_back_one_by_one() -> None:
    async def story(c: SimCluster) -> None:
        await c.create("web", 3)
        key = await update(c, autolock=True)
        await followed(c)
        for name in ("m1", "m2", "m3"):
            await c[name].kill()
        for name in ("m1", "m2", "m3"):
            c[name].start()
        assert {h.daemon.state for n, h in c.hosts.items() if n != "w1"} == {"locked"}
        for name in ("m1", "m2", "m3"):
            await unlock(c[name], key)
        await c.any_leader()
        await c.until_running("web", 3)

    play(story)


def test_a_rotated_key_replaces_the_old_one_and_a_manager_that_was_away_catches_up() -> None:
    async def story(c: SimCluster) -> None:
        old = await update(c, autolock=True)
        await followed(c)
        away = next(name for name in ("m1", "m2", "m3") if c[name] is not c.leading())
        await c[away].kill()
        new = await update(c, autolock=True, rotate=True)
        assert new != old
        await followed(c)
        host = await restart(c, away)
        with pytest.raises(ApiError, match="invalid key provided"):
            await unlock(host, new)
        await unlock(host, old)
        await c.until("it is back", c.nodes_trouble)
        await followed(c)
        host = await restart(c, away)
        with pytest.raises(ApiError, match="invalid key provided"):
            await unlock(host, old)
        await unlock(host, new)

    play(story)


def test_turning_autolock_off_opens_everything_again() -> None:
    async def story(c: SimCluster) -> None:
        await update(c, autolock=True)
        await followed(c)
        assert await update(c, autolock=False) == ""
        await followed(c)
        for name in ("m1", "m2", "m3"):
            assert isinstance(key_file(c[name]), KeyFile)
            assert b"BEGIN PRIVATE KEY" in pem(c[name])
        host = await restart(c, "m1")
        await c.until("it is back", c.nodes_trouble)
        assert host.daemon.state == "active"

    play(story)


def test_a_demoted_manager_has_no_lock_and_a_promoted_worker_gets_one() -> None:
    async def story(c: SimCluster) -> None:
        key = await update(c, autolock=True)
        await followed(c)
        name = next(name for name in ("m1", "m2", "m3") if c[name] is not c.leading())
        host = c[name]
        await c.set_node(name, Role="worker")
        await c.until("it is a worker", lambda: "" if key_file(host) is None else "it has keys")
        await c.until("all are ready", c.nodes_trouble)
        assert b"BEGIN PRIVATE KEY" in pem(host)
        await restart(c, name)
        await c.until("all are ready", c.nodes_trouble)
        await c.set_node("w1", Role="manager")
        await c.until("all are ready", c.nodes_trouble)
        await followed(c)
        found = key_file(c["w1"])
        assert isinstance(found, LockedKeys)
        found.unlock(parse_unlock_key(key))

    play(story)


def test_a_locked_manager_may_leave_by_force_and_takes_its_containers_along() -> None:
    async def story(c: SimCluster) -> None:
        await c.create("web", 4)
        await c.until_running("web", 4)
        await update(c, autolock=True)
        await followed(c)
        name = next(name for name in ("m1", "m2", "m3") if c[name] is not c.leading())
        host = await restart(c, name)
        assert host.engine.running()
        await host.api("POST", "/swarm/leave", query="force=1")
        assert host.daemon.state == "inactive"
        assert not host.engine.running()
        assert key_file(host) is None
        await host.kill()
        host.start()
        assert host.daemon.state == "inactive"
        left = next(n for n in c.store.nodes.all() if n.status.addr == host.addr)
        await c.until(
            "it is down",
            lambda: "" if c.store.nodes.rows[left.id].status.state.word == "down" else "it is up",
        )
        shown = await c.api("GET", f"/nodes/{left.id}")
        version = shown["Version"]["Index"]
        await c.api(
            "POST", f"/nodes/{left.id}/update", {**shown["Spec"], "Role": "worker"}, f"version={version}"
        )
        await c.until(
            "it counts no more",
            lambda: (
                ""
                if all(m.node_id != left.id for _, x in c.managers() for m in x.status.members)
                else "it counts"
            ),
        )
        await c.api("DELETE", f"/nodes/{left.id}", query="force=1")
        await c.join(host, "Manager")
        await c.until("all are ready", c.nodes_trouble)
        await followed(c)

    play(story, workers=0)


def test_a_log_from_before_encryption_is_taken_over_and_encrypted() -> None:
    async def story(c: SimCluster) -> None:
        await c.create("web", 2, Container={"Env": ["MARK=plain to see"]})
        await c.until_running("web", 2)
        for name in ("m1", "m2", "m3"):
            await c[name].kill()
            make_plain(c[name])
        assert all(b"plain to see" in raft_bytes(c[n]) for n in ("m1", "m2", "m3"))
        for name in ("m1", "m2", "m3"):
            c[name].start()
        await c.any_leader()
        await c.until("all are ready", c.nodes_trouble)
        await c.until(
            "all is encrypted",
            lambda: "".join(h.name for h, m in c.managers() if not m.keys.codec.keys.settled),
        )
        assert not any(b"plain to see" in raft_bytes(c[n]) for n in ("m1", "m2", "m3"))
        assert c.service("web").spec.name == "web"

    play(story)


def raft_bytes(host: SimHost) -> bytes:
    return b"".join(host.raft_disk().contents().values())


def make_plain(host: SimHost) -> None:
    """What a release that did not encrypt would have left on the disk of a killed host."""
    found, membership = key_file(host), load_membership(host.directory)
    assert isinstance(found, KeyFile)
    assert membership is not None
    owner = Owner(membership.cluster_id, membership.node_id, membership.raft_id)
    keys = DataKeys(tuple(DataKey(k.id, k.secret) for k in found.keys.data))
    disk = host.raft_disk()
    _, back = Log.open(disk.copy().open(), owner, codec=SealedCodec(keys))
    for name in disk.contents():
        disk.open().remove(name)
    log, _ = Log.open(disk.open(), owner)
    if back.snapshot is not None:
        for step in log.install_steps(back.snapshot, back.snapshot_pieces):
            step()
    covered = back.snapshot.index if back.snapshot is not None else 0
    log.append(back.hard_state, [e for e in back.entries if e.index > covered])
    disk.open().sync_dir()
    remove_keys(host.directory)
    (host.directory / "raft" / "00000001-0000000000000001.wal").touch()  # real disks keep them there


@pytest.mark.parametrize("seed", range(6))
def test_kills_at_any_moment_of_a_change_of_lock(seed: int) -> None:
    """Managers die while keys change; whoever comes back locked is unlocked with one of the keys there were."""

    async def story(c: SimCluster) -> None:
        keys = [await update(c, autolock=True)]
        await c.create("web", 3)
        for turn in range(8):
            await c.any_leader()
            keys.append(await update(c, autolock=turn % 4 != 3, rotate=True))
            name = c.rng.choice(["m1", "m2", "m3"])
            await c.until("some time passes", _some(c.rng.randrange(0, 12)))
            host = await restart(c, name)
            if host.daemon.state != "locked":
                continue
            opened = 0
            for key in filter(None, keys):
                try:
                    await unlock(host, key)
                    opened += 1
                    break
                except ApiError as err:
                    assert err.status == 401  # noqa: PT017
            assert opened == 1
        await c.until("all are ready", c.nodes_trouble, 60)
        await followed(c)
        await c.until_running("web", 3)

    play(story, seed=seed)


@pytest.mark.parametrize("after_ms", range(0, 60, 3))
def test_a_kill_at_any_moment_of_a_demotion_leaves_a_worker_without_a_lock(after_ms: int) -> None:
    async def story(c: SimCluster) -> None:
        key = await update(c, autolock=True)
        await followed(c)
        name = next(name for name in ("m1", "m2", "m3") if c[name] is not c.leading())
        await c.set_node(name, Role="worker")
        await asyncio.sleep(after_ms / 1000)
        host = await restart(c, name)
        if host.daemon.state == "locked":
            await unlock(host, key)
        await c.until("all are ready", c.nodes_trouble, 60)
        await c.until("it has no keys", lambda: "" if key_file(host) is None else "it has keys")
        assert b"BEGIN PRIVATE KEY" in pem(host)
        assert not (host.directory / "raft").exists()

    play(story, seed=after_ms)


def _some(looks: int) -> Callable[[], str]:
    """So many times 20 ms."""
    left = iter(range(looks))
    return lambda: "" if next(left, None) is None else "not yet"
