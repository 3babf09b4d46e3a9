"""Without a leader: first who does not answer and where; what costs something only where it may be needed, and beside its cost."""

from __future__ import annotations

from swarm_agent.manager.leaderless import Other, say

FORCE = "--force-new-cluster"


def others(*answer: bool) -> list[Other]:
    return [Other(f"m{n}", f"10.0.0.{n}", answers) for n, answers in enumerate(answer, 2)]


def test_those_that_do_not_answer_are_named_first_with_the_port() -> None:
    said = say(others(False, False), 7946)
    assert said.startswith(
        "this manager hears no leader: 2 of 3 managers have to run and reach each other. "
        "m2 at 10.0.0.2 and m3 at 10.0.0.3 do not answer on TCP port 7946: see that swarm-agent runs there"
    )
    before, _found, after = said.partition(FORCE)
    assert "Only if they are gone for good" in before
    assert "is lost" in after


def test_while_enough_of_them_answer_nothing_that_costs_is_advised() -> None:
    for answers in ((True, True), (False, True), (False, False, True, True), (False, True, True, True)):
        said = say(others(*answers), 7946)
        assert FORCE not in said
        assert "7946" in said


def test_who_answers_is_told_from_who_does_not() -> None:
    said = say(others(False, True), 2000)
    assert "m2 at 10.0.0.2 does not answer on TCP port 2000, m3 at 10.0.0.3 does: see" in said


def test_all_answer() -> None:
    said = say(others(True, True), 7946)
    assert (
        "m2 at 10.0.0.2 and m3 at 10.0.0.3 can be reached on TCP port 7946: an election is going on" in said
    )


def test_five_managers() -> None:
    assert FORCE in say(others(False, False, False, True), 7946)
    assert "m2 at 10.0.0.2, m3 at 10.0.0.3 and m4 at 10.0.0.4 do not answer" in say(
        others(False, False, False, True), 7946
    )


def test_the_only_manager_is_sent_to_its_own_log_and_disk() -> None:
    said = say([], 7946)
    assert said.startswith("this manager is the only one and does not lead: its log says why")
    assert "disk" in said
    assert "7946" not in said  # nobody is to be reached
    assert FORCE not in said  # it would change nothing
