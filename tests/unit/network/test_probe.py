"""Peers that answer neither the managers nor this node."""

from __future__ import annotations

import asyncio

import msgspec

from swarm_agent.network.model import Endpoint, NetworkView, Peer, PublishedPort, node_gateway
from swarm_agent.network.probe import EVERY_S, MISSES, RARELY, EchoSocket, Prober, Suspects, avoiding
from tests.lib.virtual_loop import VirtualLoop, run

PEERS = tuple(Peer(f"n{n}", n, f"192.0.2.{n}") for n in (1, 2, 3))


def address(number: int, last: int = 7) -> str:
    return node_gateway(number).removesuffix(".1") + f".{last}"


def endpoint(node: int, *, ready: bool = True, service: str = "web") -> Endpoint:
    return Endpoint(
        "net", f"t{node}", f"web.{node}", service, service, f"n{node}", f"10.0.0.{node}", ready=ready
    )


def view(*nodes: int) -> NetworkView:
    """As node 1 sees a service with a task on each of these."""
    port = PublishedPort("web", "tcp", 80, 8080, "ingress", tuple(address(n) for n in nodes))
    return NetworkView("n1", 1, "192.0.2.1", PEERS, endpoints=tuple(map(endpoint, nodes)), ports=(port,))


def shown(seen: NetworkView) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
    (port,) = seen.ports
    return port.backends, port.draining, [e.node_id for e in seen.endpoints if e.ready]


def test_nobody_is_avoided_without_a_reason() -> None:
    assert avoiding(view(1, 2, 3), frozenset()) == view(1, 2, 3)


def test_who_is_gone_gets_nothing_new_and_keeps_what_it_has() -> None:
    seen = avoiding(view(1, 2, 3), frozenset({"n2"}))
    assert shown(seen) == ((address(1), address(3)), (address(2),), ["n1", "n3"])
    assert {e.node_id for e in seen.endpoints} == {"n1", "n2", "n3"}


def test_the_last_one_stays() -> None:
    assert avoiding(view(2), frozenset({"n2"})) == view(2)
    assert avoiding(view(2, 3), frozenset({"n2", "n3"})) == view(2, 3)


def test_each_service_is_judged_by_itself() -> None:
    both = msgspec.structs.replace(
        view(2, 3), endpoints=(endpoint(2), endpoint(3), endpoint(2, service="only"))
    )
    seen = avoiding(both, frozenset({"n2"}))
    assert [(e.service_name, e.node_id, e.ready) for e in seen.endpoints] == [
        ("web", "n2", False),
        ("web", "n3", True),
        ("only", "n2", True),
    ]


def test_our_own_tasks_are_never_avoided() -> None:
    assert avoiding(view(1, 2), frozenset({"n1"})) == view(1, 2)


def test_misses_are_counted_not_timed() -> None:
    suspects = Suspects()
    suspects.are(PEERS[1:])
    for _ in range(MISSES):
        assert suspects.round(set()) == [node_gateway(2), node_gateway(3)]
        assert not suspects.gone()
    suspects.round({node_gateway(3)})
    assert suspects.gone() == {"n2"}
    suspects.round({node_gateway(2)})
    assert not suspects.gone()
    suspects.are(())
    assert suspects.round(set()) == []


def test_who_is_gone_is_asked_rarely() -> None:
    suspects = Suspects()
    suspects.are(PEERS[1:2])
    here = node_gateway(2)
    asked = [suspects.round(set()) for _ in range(MISSES + 10 * RARELY)]
    assert [number for number, those in enumerate(asked, 1) if those] == [
        *range(1, MISSES + 1),
        *range(MISSES + RARELY, MISSES + 10 * RARELY + 1, RARELY),
    ]
    assert suspects.gone() == {"n2"}
    assert suspects.round({here}) == [here]  # it answered: as often as others from here on
    assert not suspects.gone()
    assert [suspects.round(set()) for _ in range(MISSES)] == [[here]] * MISSES
    assert not suspects.gone()


class Echoes:
    """Hosts that answer, or do not."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.asked: list[str] = []
        self._answers: set[str] = set()

    def ask(self, to: str) -> None:
        self.asked.append(to)
        if to not in self.dead:
            self._answers.add(to)

    def answered(self) -> set[str]:
        found, self._answers = self._answers, set()
        return found

    def close(self) -> None: ...


def test_only_those_the_managers_do_not_hear_are_asked() -> None:
    async def main() -> None:
        echoes = Echoes()
        seen: list[frozenset[str]] = []
        prober = Prober(lambda: echoes, seen.append)
        task = asyncio.create_task(prober.run())
        prober.peers("n1", PEERS)
        await asyncio.sleep(10)
        assert not echoes.asked
        prober.silent(("n2", "n1"))
        await asyncio.sleep(10)
        assert set(echoes.asked) == {node_gateway(2)}
        assert not seen  # it answers us
        echoes.dead.add(node_gateway(2))
        await asyncio.sleep((MISSES + 2) * EVERY_S)
        assert seen == [frozenset({"n2"})]
        echoes.asked.clear()
        await asyncio.sleep(60)
        assert 10 <= len(echoes.asked) <= 13  # down for good, perhaps: not four times a second for ever
        echoes.dead.clear()
        await asyncio.sleep((RARELY + 3) * EVERY_S)
        assert seen[1:] == [frozenset()]
        echoes.dead.add(node_gateway(2))
        await asyncio.sleep(10)
        prober.silent(())
        await asyncio.sleep(1)
        assert seen[2:] == [frozenset({"n2"}), frozenset()]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_a_dead_peer_is_avoided_after_four_requests_in_a_second() -> None:
    """As docs/design/network.md says."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        echoes = Echoes()
        echoes.dead.add(node_gateway(2))
        found: asyncio.Future[tuple[float, int]] = loop.create_future()
        prober = Prober(lambda: echoes, lambda _gone: found.set_result((loop.time(), len(echoes.asked))))
        task = asyncio.create_task(prober.run())
        prober.peers("n1", PEERS)
        await asyncio.sleep(10)
        prober.silent(("n2",))
        assert await found == (11.0, 4)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main())


def test_without_the_right_to_ask_nobody_is_avoided() -> None:
    def refused() -> Echoes:
        raise PermissionError(1, "Operation not permitted")

    asyncio.run(Prober(refused, lambda gone: None).run())


def test_real_echoes() -> None:
    echoes = EchoSocket()
    try:
        for _ in range(2):
            echoes.ask("127.0.0.1")
        assert echoes.answered() == {"127.0.0.1"}
        assert echoes.answered() == set()
    finally:
        echoes.close()
