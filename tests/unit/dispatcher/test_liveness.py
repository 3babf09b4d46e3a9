"""Who is lost, and when it is rather the listener that is deaf."""

from __future__ import annotations

from swarm_agent.dispatcher.liveness import AGAIN, ASKING, SILENCE, Liveness

PERIOD = 5.0
NODES = ("own", "a", "b", "c", "d")


def pulse(nodes: tuple[str, ...] = NODES) -> Liveness:
    it = Liveness("own")
    for node in nodes:
        it.heard(node, 100.0, PERIOD)
    return it


def verdict(it: Liveness, now: float) -> tuple[list[str], bool]:
    lost = it.lost(now)
    return lost, it.in_doubt(lost, now, PERIOD)


def hear(it: Liveness, now: float, *nodes: str) -> None:
    for node in nodes:
        it.heard(node, now, PERIOD)


def test_one_that_is_silent_is_lost() -> None:
    it = pulse()
    hear(it, 103.0, "own", "a", "b", "c")
    assert verdict(it, 100 + PERIOD * SILENCE) == ([], False)
    assert verdict(it, 103.6) == (["d"], False)
    it.forget("d")
    assert verdict(it, 103.6) == ([], False)


def test_two_of_five_are_lost() -> None:
    it = pulse()
    hear(it, 103.0, "own", "a", "b")
    assert verdict(it, 103.6) == (["c", "d"], False)


def test_most_at_once_are_asked_first_and_lost_if_they_do_not_answer() -> None:
    it = pulse()
    hear(it, 103.0, "own", "a")
    hear(it, 100.4, "c", "d")  # their beats fall at other moments of a second
    lost, doubt = verdict(it, 103.6)
    assert (lost, doubt) == (["b"], True)
    it.ask(103.6, PERIOD)
    hear(it, 104.0, "own", "a")
    assert verdict(it, 104.0) == ([], False)
    hear(it, 107.0, "own", "a", "b")
    assert verdict(it, 103.6 + PERIOD * ASKING + 0.1) == (["c", "d"], False)


def test_after_an_answer_the_next_time_is_a_first_time() -> None:
    it = pulse()
    hear(it, 103.0, "own")
    assert verdict(it, 103.6)[1]
    it.ask(103.6, PERIOD)
    hear(it, 104.0, *NODES)
    assert verdict(it, 104.1) == ([], False)
    hear(it, 107.0, "own")
    assert verdict(it, 107.6)[1]


def test_one_that_does_not_hear_itself_takes_nobody_for_lost_for_a_while() -> None:
    it = pulse(("own", "a"))
    now = 103.6
    for _ in range(AGAIN):
        lost, doubt = verdict(it, now)
        assert lost
        assert doubt
        it.ask(now, PERIOD)
        now += PERIOD * ASKING + 0.1
    assert verdict(it, now) == (["own", "a"], False)


def test_of_two_nodes_the_other_is_lost_without_asking() -> None:
    it = pulse(("own", "a"))
    hear(it, 103.0, "own")
    assert verdict(it, 103.6) == (["a"], False)


def test_those_a_new_leader_waits_for_count_when_their_time_is_over() -> None:
    it = Liveness("own")
    for node in NODES:
        it.wait_for(node, 104.0)
    hear(it, 103.0, "own", "a")
    assert verdict(it, 104.1) == (["b", "c", "d"], True)


def test_time_we_did_not_run_is_nobodys_silence() -> None:
    it = pulse()
    it.paused(10.0)
    assert verdict(it, 111.0) == ([], False)
    assert it.silent(111.0, 2.0) == frozenset()


def test_whoever_says_it_will_be_silent_is_not_lost_and_makes_nobody_doubt() -> None:
    it = pulse()
    hear(it, 103.0, "own", "a", "b")
    it.excuse("c", 110.0)
    it.excuse("d", 110.0)
    hear(it, 109.0, "own", "a", "b")
    assert verdict(it, 109.9) == ([], False)
    assert verdict(it, 110.1) == (["c", "d"], False)
    it.heard("c", 110.2, PERIOD)
    assert sorted(verdict(it, 113.8)[0]) == ["a", "b", "c", "d", "own"]


def test_who_is_silent_is_told_sooner() -> None:
    it = pulse()
    it.wait_for("new", 104.0)
    hear(it, 101.5, "own", "a", "b", "c")
    assert it.silent(102.1, 2.0) == {"d", "new"}
