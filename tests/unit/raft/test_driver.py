"""``RaftNode`` on virtual time: what its users are promised."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import msgspec
import pytest

from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.raft import (
    EntryTooLarge,
    Member,
    MembershipRefused,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RaftConfig,
    RaftNode,
    RaftStatus,
    Retention,
    Stopped,
    TransferFailed,
    wire,
)
from swarm_agent.raft.core import Append, AppendReply
from tests.lib.fake_disk import DiskFaults
from tests.lib.raft_cluster import RaftCluster, until
from tests.lib.virtual_loop import VirtualLoop, run


def config(**changes: object) -> RaftConfig:
    base: dict[str, Any] = {"cluster_id": "c", "raft_id": 1, "node_id": "n", "addr": "a"}
    return RaftConfig(**(base | changes))


@pytest.mark.parametrize(
    "wrong",
    [
        {"cluster_id": ""},
        {"raft_id": 0},
        {"tick_s": 0},
        {"heartbeat_ticks": 12},
        {"election_ticks_max": 12},
        {"chunk_bytes": 0},
    ],
)
def test_nonsense_is_refused_at_start(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidSpec):
        config(**wrong)


def test_a_single_member_leads_at_once_and_remembers() -> None:
    async def main() -> None:
        cluster = RaftCluster(1, 1)
        node = await cluster.start()
        assert asyncio.get_running_loop().time() < 0.1
        assert await node.propose(b"x") == 3
        assert await node.read_barrier() == 3
        await cluster.hosts[0].stop()
        with pytest.raises(Stopped):
            await node.propose(b"y")
        assert node.status().role == "stopped"
        again = await cluster.hosts[0].start(bootstrap=True)
        assert again is not None
        await cluster.leader(0.1)
        assert await again.read_barrier() == 4
        assert cluster.hosts[0].fsm.values() == [b"x"]
        assert [m.raft_id for m in again.status().members] == [1]

    run(main())


def test_founding_must_be_by_oneself_as_a_voter() -> None:
    async def main() -> None:
        cluster = RaftCluster(1, 1)
        host = cluster.hosts[0]
        for wrong in (Member(2, "n", "a"), Member(1, "n", "a", learner=True)):
            with pytest.raises(InvalidSpec):
                await RaftNode.start(
                    host.config,
                    disk=host.disk.open(),
                    transport=cluster.net.transport("x"),
                    fsm=host.fsm,
                    rng=random.Random(1),
                    bootstrap=wrong,
                )

    run(main())


def test_three_members_replicate_and_all_can_read() -> None:
    async def main() -> None:
        cluster = RaftCluster(2, 3)
        leader = await cluster.start()
        results: list[Any] = await asyncio.gather(*(leader.propose(b"%d" % i) for i in range(500)))
        assert results == sorted(results)
        for host in cluster.hosts:
            assert host.node is not None
            assert await host.node.read_barrier() >= results[-1]
            assert host.fsm.values() == [b"%d" % i for i in range(500)]
        assert {p.flow for p in leader.status().peers} == {"replicate"}

    run(main())


def test_what_arrives_while_the_disk_works_is_one_batch() -> None:
    async def main() -> None:
        cluster = RaftCluster(2, 1)
        node = await cluster.start()
        before = cluster.hosts[0].disk.syncs
        await asyncio.gather(*(node.propose(b"x") for _ in range(300)))
        assert cluster.hosts[0].disk.syncs - before <= 2

    run(main())


def test_a_follower_names_the_leader() -> None:
    async def main() -> None:
        cluster = RaftCluster(3, 3)
        leader = await cluster.start()
        follower = cluster.hosts[2].node
        assert follower is not None
        for attempt in (follower.propose(b"x"), follower.transfer(), follower.remove_member(1)):
            with pytest.raises(NotLeader) as caught:
                await attempt
            assert caught.value.leader == cluster.hosts[0].member
        assert leader.is_leader

    run(main())


def test_a_joining_member_without_a_leader_serves_nobody() -> None:
    async def main() -> None:
        cluster = RaftCluster(3, 1)
        node = await cluster.hosts[0].start()
        assert node is not None
        await asyncio.sleep(10)
        assert node.status().role == "follower"
        for attempt in (node.propose(b"x"), node.read_barrier()):
            with pytest.raises(NotLeader) as caught:
                await attempt
            assert caught.value.leader is None

    run(main())


def test_large_entries_are_refused_and_too_many_bytes_too() -> None:
    async def main() -> None:
        cluster = RaftCluster(3, 3, max_uncommitted_bytes=1000)
        leader = await cluster.start()
        with pytest.raises(EntryTooLarge):
            await leader.propose(bytes(1536 * 1024 + 1))
        outcomes = await asyncio.gather(
            *(leader.propose(bytes(300)) for _ in range(5)), return_exceptions=True
        )
        assert [isinstance(o, Overloaded) for o in outcomes] == [False, False, False, True, True]
        assert isinstance(await leader.propose(b"x"), int)

    run(main())


def test_whoever_loses_leadership_does_not_know_the_outcome() -> None:
    async def main() -> None:
        cluster = RaftCluster(4, 3)
        leader = await cluster.start()
        cluster.net.isolate("host1", cluster.addresses)
        waiting = asyncio.ensure_future(leader.propose(b"lost?"))
        reading = asyncio.ensure_future(leader.read_barrier())
        with pytest.raises(OutcomeUnknown):
            await waiting
        with pytest.raises(NotLeader):
            await reading
        await (await cluster.leader()).propose(b"next")
        cluster.net.heal()
        await asyncio.sleep(2)
        await cluster.converged()
        assert cluster.hosts[0].fsm.values() == [b"next"]

    run(main())


def test_failover_takes_about_an_election_timeout_and_much_less_when_connections_break() -> None:
    async def failover(seed: int, *, reset: bool) -> float:
        loop = asyncio.get_running_loop()
        cluster = RaftCluster(seed, 3)
        await cluster.start()
        await asyncio.sleep(cluster.rng.random())
        cluster.hosts[0].crash()
        began = loop.time()
        for node in cluster.nodes if reset else []:
            node.peer_lost(1)
        await (await cluster.leader()).propose(b"x")
        for host in cluster.hosts:
            host.crash()
        return loop.time() - began

    async def main() -> None:
        slow = sorted([await failover(seed, reset=False) for seed in range(15)])
        quick = sorted([await failover(seed, reset=True) for seed in range(15)])
        assert 0.5 < slow[7] < 1.2
        assert quick[7] < 0.25
        assert quick[-1] < 2.5

    run(main())


def test_leadership_is_handed_over_on_request_and_at_the_end() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        cluster = RaftCluster(5, 3)
        leader = await cluster.start()
        await leader.transfer(3)
        assert (await cluster.leader()).core.raft_id == 3
        began = loop.time()
        await cluster.host(3).stop()
        second = await cluster.leader()
        await second.propose(b"x")
        assert loop.time() - began < 0.3, "no timeout had to pass"
        with pytest.raises(TransferFailed):
            await second.transfer(77)
        for host in cluster.hosts:
            if host.node is not None and host.node is not second:
                host.crash()
        with pytest.raises((TransferFailed, NotLeader)):
            await second.transfer()

    run(main())


def test_proposals_wait_out_a_transfer_that_fails() -> None:
    async def main() -> None:
        cluster = RaftCluster(5, 3)
        leader = await cluster.start()
        cluster.net.isolate("host3", cluster.addresses)
        moving = asyncio.ensure_future(leader.transfer(3))
        await asyncio.sleep(0.01)
        proposing = asyncio.ensure_future(leader.propose(b"x"))
        with pytest.raises(TransferFailed):
            await moving
        assert isinstance(await proposing, int)

    run(main())


def test_stopping_lets_accepted_proposals_finish() -> None:
    async def main() -> None:
        cluster = RaftCluster(6, 3)
        leader = await cluster.start()
        accepted = [asyncio.ensure_future(leader.propose(b"%d" % i)) for i in range(20)]
        await asyncio.sleep(0)
        await cluster.hosts[0].stop()
        assert all(isinstance(result, int) for result in await asyncio.gather(*accepted))

    run(main())


def test_members_join_as_learners_and_are_promoted_when_they_have_caught_up() -> None:
    async def main() -> None:
        cluster = RaftCluster(7, 1, snapshot_interval=50, keep_entries=5, chunk_bytes=100)
        leader = await cluster.start()
        await asyncio.gather(*(leader.propose(b"%04d" % i) for i in range(200)))
        await asyncio.sleep(1)
        assert leader.status().snapshot_index > 0
        host = cluster.new_host()
        joining = asyncio.ensure_future(leader.add_member(host.member))
        await asyncio.sleep(1)
        assert [m.learner for m in leader.status().members] == [False, True]
        assert leader.core.conf_voters == {1}, "a member that does not come must not cost the majority"
        await host.start()
        await joining
        assert leader.core.conf_voters == {1, 2}
        assert host.fsm.restored == 1
        await cluster.converged()
        assert host.fsm.values() == cluster.hosts[0].fsm.values()
        await leader.add_member(host.member)
        spectator = cluster.new_host()
        await spectator.start()
        await leader.add_member(msgspec.structs.replace(spectator.member, learner=True))
        assert leader.core.conf_voters == {1, 2}

    run(main())


def test_a_removed_member_learns_it_and_does_not_come_back() -> None:
    async def main() -> None:
        cluster = RaftCluster(8, 3)
        leader = await cluster.start()
        seen: list[RaftStatus] = []
        former = cluster.hosts[2].node
        assert former is not None
        former.on_change(seen.append)
        await leader.remove_member(3)
        await leader.remove_member(3)
        await until(lambda: former.status().removed)
        assert seen[-1].removed
        with pytest.raises(MembershipRefused):
            await leader.add_member(cluster.hosts[2].member)
        with pytest.raises(MembershipRefused):
            await leader.remove_member(99)

    run(main())


def test_a_member_that_was_away_when_it_was_removed_learns_it_later() -> None:
    async def main() -> None:
        cluster = RaftCluster(8, 3)
        leader = await cluster.start()
        cluster.hosts[2].crash()
        await leader.remove_member(3)
        former = await cluster.hosts[2].start()
        assert former is not None
        await until(lambda: former.status().removed, 5)

    run(main())


def test_a_leader_that_is_to_go_hands_over_first() -> None:
    async def main() -> None:
        cluster = RaftCluster(9, 3)
        leader = await cluster.start()
        with pytest.raises(NotLeader) as caught:
            await leader.remove_member(1)
        assert caught.value.leader is not None
        successor = cluster.host(caught.value.leader.raft_id).node
        assert successor is not None
        await successor.remove_member(1)
        assert len(successor.core.conf_voters) == 2
        with pytest.raises(NotLeader):
            await successor.update_member(
                msgspec.structs.replace(cluster.host(successor.core.raft_id).member, learner=True)
            )

    run(main())


def test_a_removal_that_would_cost_the_majority_is_refused() -> None:
    async def main() -> None:
        cluster = RaftCluster(10, 3)
        leader = await cluster.start()
        cluster.hosts[2].crash()
        await asyncio.sleep(1)
        with pytest.raises(MembershipRefused):
            await leader.remove_member(2)
        await leader.remove_member(3)
        await leader.remove_member(2)
        with pytest.raises(MembershipRefused):
            await leader.remove_member(1)

    run(main())


def test_nobody_goes_on_the_word_of_one_that_has_just_gone_away() -> None:
    """It was heard within an election timeout, so it counts as reachable; a removal begun now could never be committed."""

    async def main() -> None:
        cluster = RaftCluster(10, 3)
        leader = await cluster.start()
        cluster.hosts[1].crash()
        with pytest.raises(MembershipRefused):
            await leader.remove_member(3)
        with pytest.raises(MembershipRefused):
            await leader.update_member(msgspec.structs.replace(cluster.hosts[2].member, learner=True))
        assert await leader.propose(b"still there")
        await leader.remove_member(2)
        assert len(leader.core.conf_voters) == 2

    run(main())


def test_an_address_changes() -> None:
    async def main() -> None:
        cluster = RaftCluster(11, 3)
        leader = await cluster.start()
        moved = msgspec.structs.replace(cluster.hosts[1].member, addr="elsewhere")
        await leader.update_member(moved)
        assert moved in leader.status().members
        with pytest.raises(MembershipRefused):
            await leader.update_member(Member(50, "n", "a"))

    run(main())


def test_a_failure_while_applying_stops_the_member_loudly(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        cluster = RaftCluster(12, 3)
        leader = await cluster.start()
        cluster.hosts[1].fsm.fail_at = 1
        node = cluster.hosts[1].node
        assert node is not None
        seen: list[RaftStatus] = []
        node.on_change(seen.append)
        with caplog.at_level(logging.CRITICAL):
            await leader.propose(b"x")
            with pytest.raises(RuntimeError, match="planted"):
                await node.wait_closed()
        assert "planted failure" in node.status().failure
        assert seen[-1].role == "stopped"
        assert any(record.levelno == logging.CRITICAL for record in caplog.records)
        assert isinstance(await leader.propose(b"the others go on"), int)

    run(main())


@pytest.mark.parametrize("faults", [DiskFaults(fail_sync=True), DiskFaults(capacity=0)])
def test_a_disk_that_fails_stops_the_member(faults: DiskFaults) -> None:
    async def main() -> None:
        cluster = RaftCluster(13, 1)
        node = await cluster.start()
        cluster.hosts[0].disk.faults = faults
        with pytest.raises((OutcomeUnknown, Stopped)):
            await node.propose(b"x")
        with pytest.raises(OSError, match=r"no space|input/output"):
            await node.wait_closed()
        with pytest.raises(Stopped):
            await node.read_barrier()

    run(main())


def test_frames_that_are_not_ours_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        cluster = RaftCluster(14, 1)
        node = await cluster.start()
        stranger = wire.Frame("other", Member(2, "n", "a"), (Append(2, 1, 99, 0, 0, 0),))
        with caplog.at_level(logging.WARNING):
            for frame in (b"", b"garbage", wire.encode(stranger), wire.encode(stranger)[:-1]):
                node.receive(frame)
        assert len(caplog.records) == 4
        assert node.status().term < 99

    run(main())


def test_nobody_speaks_for_another_member(caplog: pytest.LogCaptureFixture) -> None:
    """A certificate proves one node; its frames may be in that node's name alone."""

    async def main() -> None:
        cluster = RaftCluster(14, 1)
        node = await cluster.start()
        me = node.status().members[0]
        ours = node._config.cluster_id
        message = Append(2, 1, 99, 0, 0, 0)
        with caplog.at_level(logging.WARNING):
            node.receive(wire.encode(wire.Frame(ours, Member(2, "n", "a"), (message,))), "somebody else")
            node.receive(wire.encode(wire.Frame(ours, Member(me.raft_id, "n", "a"), ())), "n")
            node.receive(wire.encode(wire.Frame(ours, Member(3, "n", "a"), (message,))), "n")
        assert [r.getMessage() for r in caplog.records] == [
            f"dropped a frame from {who} in the name of another member" for who in ("somebody else", "n", "n")
        ]
        assert node.status().term < 99

    run(main())


def test_many_messages_share_a_frame() -> None:
    async def main() -> None:
        cluster = RaftCluster(15, 3)
        leader = await cluster.start()
        await asyncio.sleep(0.5)
        before = cluster.net.sent
        await asyncio.gather(*(leader.propose(b"%d" % i) for i in range(400)))
        assert cluster.net.sent - before < 40

    run(main())


def test_late_ticks_are_counted_and_never_an_election() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        cluster = RaftCluster(16, 3)
        leader = await cluster.start()
        await asyncio.sleep(1)
        term = leader.core.term
        loop._now += 5.0  # the host slept
        await asyncio.sleep(1)
        assert all(node.status().missed_ticks >= 90 for node in cluster.nodes)
        assert (await cluster.leader()).core.term <= term + 1

    run(main())


def test_changes_are_told_and_a_listener_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        cluster = RaftCluster(17, 3)
        first = await cluster.hosts[0].start(bootstrap=True)
        assert first is not None
        seen: list[RaftStatus] = []

        def listener(status: RaftStatus) -> None:
            seen.append(status)
            raise RuntimeError("listener")

        first.on_change(listener)
        await cluster.leader()
        await cluster.hosts[1].start()
        await first.add_member(cluster.hosts[1].member)
        assert [len(s.members) for s in seen][-1] == 2
        assert "leader" in {s.role for s in seen}

    with caplog.at_level(logging.ERROR):
        run(main())
    assert caplog.records


def test_a_snapshot_whose_receiver_vanishes_is_reported_and_sent_again() -> None:
    async def main() -> None:
        cluster = RaftCluster(
            18, 3, snapshot_interval=30, keep_entries=3, chunk_bytes=200, chunk_timeout_s=0.2
        )
        leader = await cluster.start()
        cluster.hosts[2].crash()
        await asyncio.gather(*(leader.propose(b"%05d" % i) for i in range(200)))
        await asyncio.sleep(1)
        await cluster.hosts[2].start()
        await until(lambda: any(p.flow == "snapshot" for p in leader.status().peers))
        cluster.hosts[2].crash()
        await asyncio.sleep(5)
        assert all(p.flow != "snapshot" for p in leader.status().peers), "the failure was reported"
        await cluster.hosts[2].start()
        await cluster.converged()
        assert cluster.hosts[2].fsm.restored == 1
        assert cluster.hosts[2].fsm.values() == cluster.hosts[0].fsm.values()

    run(main())


def test_what_is_kept_may_be_changed_while_it_runs() -> None:
    async def main() -> None:
        cluster = RaftCluster(21, 1, snapshot_interval=1000)
        node = await cluster.start()
        host = cluster.hosts[0]

        def snapshots() -> list[str]:
            return [name for name in host.disk.contents() if name.endswith(".snap")]

        async def write(count: int) -> None:
            for i in range(count):
                await node.propose(b"%05d" % i)

        await write(60)
        assert snapshots() == []
        node.retain(Retention(snapshot_interval=20, keep_entries=5, old_snapshots=2))
        for _ in range(5):
            await write(25)
            await asyncio.sleep(1)
        assert len(snapshots()) == 3, "the newest and two old ones"
        await node.rotate_log()
        await until(lambda: len(snapshots()) == 1)
        await host.stop()
        again = await host.start(bootstrap=True)
        assert again is not None
        await cluster.leader(0.1)
        assert len(host.fsm.values()) == 60 + 5 * 25

    run(main())


def test_acknowledgements_wait_for_the_followers_disk() -> None:
    async def main() -> None:
        cluster = RaftCluster(19, 3)
        leader = await cluster.start()
        await asyncio.sleep(0.5)
        for host in cluster.hosts[1:]:
            host.disk.faults.latency_min = host.disk.faults.latency_max = 0.5
        loop = asyncio.get_running_loop()
        replies: list[float] = []

        def watch(source: str, _target: str, frame: bytes) -> bool:
            if source != "host1":
                items = wire.decode(frame).items
                replies.extend(loop.time() for m in items if isinstance(m, AppendReply))
            return True

        cluster.net.on_frame = watch
        began = loop.time()
        await leader.propose(b"x")
        assert min(replies) - began >= 0.5

    run(main())
