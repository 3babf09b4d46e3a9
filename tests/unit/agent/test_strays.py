"""What of this swarm's containers is nobody's."""

from __future__ import annotations

from swarm_agent.agent.strays import LabelledContainer, strays

NAMES = {"t1": ("web.1.t1", "web.1.t1.pre-start"), "t2": ("web.2.t2",)}


def test_a_container_of_no_task_goes_and_those_of_tasks_stay() -> None:
    found = [
        LabelledContainer("a", ("web.1.t1",), "t1"),
        LabelledContainer("b", ("web.1.t1.pre-start",), "t1"),
        LabelledContainer("c", ("other/alias", "web.2.t2"), "t2"),
        LabelledContainer("d", ("web.9.t9",), "t9"),
        LabelledContainer("e", ("copy",), ""),
    ]
    assert [c.id for c in strays(found, NAMES, ())] == ["d", "e"]


def test_a_tasks_container_under_another_name_goes_and_what_is_being_removed_is_left_to_that() -> None:
    found = [LabelledContainer("a", ("mine",), "t1"), LabelledContainer("b", ("web.3.t3",), "t3")]
    assert [c.id for c in strays(found, NAMES, ["t3"])] == ["a"]
