"""Has a service become what was asked for: every way it can go."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.swarm.cluster.plugins.module_utils import _converge

NODES: list[dict[str, Any]] = [
    {"ID": "n1", "Description": {"Hostname": "one"}, "Status": {"State": "ready"}},
    {"ID": "n2", "Description": {"Hostname": "two"}, "Status": {"State": "down"}},
]


def service(replicas: int | None = 2, **more: Any) -> dict[str, Any]:
    mode = {"Global": {}} if replicas is None else {"Replicated": {"Replicas": replicas}}
    return {"ID": "s", "Spec": {"Name": "web", "Mode": mode}, **more}


def task(
    slot: int, state: str = "running", node: str = "n1", desired: str = "running", **status: Any
) -> dict[str, Any]:
    return {
        "ID": f"t{slot}{state}{node}",
        "Slot": slot,
        "NodeID": node,
        "DesiredState": desired,
        "Status": {"State": state, "Timestamp": "2026-01-01T00:00:00.5Z", **status},
    }


def judge(what: dict[str, Any], *tasks: dict[str, Any], stale: Any = None) -> tuple[str, str]:
    verdict = _converge.judge(what, list(tasks), NODES, stale)
    return verdict.state, verdict.text


def test_all_run() -> None:
    assert judge(service(), task(1), task(2)) == ("done", "2 of 2 tasks run")


def test_none_wanted_none_there() -> None:
    assert judge(service(0)) == ("done", "0 of 0 tasks run")


def test_too_few() -> None:
    assert judge(service(), task(1), task(2, "starting")) == ("waiting", "1 of 2 tasks run")


def test_too_many_are_not_what_was_asked_for() -> None:
    assert judge(service(1), task(1), task(2))[0] == "waiting"


def test_a_task_on_a_node_that_is_down_does_not_count() -> None:
    assert judge(service(), task(1), task(2, node="n2"))[0] == "waiting"


def test_a_task_on_its_way_out_does_not_count() -> None:
    assert judge(service(), task(1), task(2, desired="shutdown"))[0] == "waiting"


def test_two_tasks_of_one_slot_are_one() -> None:
    assert judge(service(), task(1), task(1, node="n3"))[0] == "waiting"


def test_the_trouble_is_named_with_task_node_and_error() -> None:
    state, text = judge(service(1), task(1, "failed", desired="shutdown", Err="task: non-zero exit (3)"))
    assert state == "over"
    assert "web.1 on one is failed: task: non-zero exit (3)" in text


def test_a_task_that_fits_nowhere_says_why() -> None:
    pending = {**task(1, "pending", Err="no suitable node (insufficient resources on 1 node)"), "NodeID": ""}
    assert judge(service(1), pending)[1].endswith(
        "web.1 is pending: no suitable node (insufficient resources on 1 node)"
    )


def test_an_exit_code_is_told_once() -> None:
    broken = task(1, "failed", desired="shutdown", Err="started too late", ContainerStatus={"ExitCode": 7})
    assert "(exit code 7)" in judge(service(1), broken)[1]
    told = task(
        1, "failed", desired="shutdown", Err="task: non-zero exit (7)", ContainerStatus={"ExitCode": 7}
    )
    assert "(exit code 7)" not in judge(service(1), told)[1]


def test_paused_is_failed_even_if_all_run() -> None:
    paused = service(UpdateStatus={"State": "paused", "Message": "update paused due to failure of task x"})
    assert judge(paused, task(1), task(2)) == ("failed", "paused: update paused due to failure of task x")


def test_what_was_paused_before_our_change_is_over() -> None:
    status = {"State": "paused", "Message": "old"}
    assert judge(service(UpdateStatus=status), task(1), task(2), stale=dict(status))[0] == "done"


def test_an_update_that_is_still_watched_is_not_done() -> None:
    assert (
        judge(service(UpdateStatus={"State": "updating", "Message": "m"}), task(1), task(2))[0] == "waiting"
    )


def test_a_rollback_of_our_change_is_a_failure_once_it_is_over() -> None:
    rolling = service(UpdateStatus={"State": "rollback_started", "Message": "m"})
    over = service(UpdateStatus={"State": "rollback_completed", "Message": "rollback completed"})
    assert judge(rolling, task(1), task(2), stale={})[0] == "waiting"
    assert judge(over, task(1), stale={})[0] == "waiting"
    assert judge(over, task(1), task(2), stale={}) == ("failed", "rolled back: rollback completed")
    assert judge(over, task(1), task(2))[0] == "done", (
        "a rollback of long ago is no failure of a run that changes nothing"
    )


def test_global_services() -> None:
    assert judge(service(None))[0] == "waiting"
    assert judge(service(None), task(0), task(0, node="n2"))[0] == "done"
    assert judge(service(None), task(0), task(0, "starting", node="n3"))[0] == "waiting"


class Script:
    """An API whose tasks follow a script, one step a look, and a clock that moves when one sleeps."""

    def __init__(
        self, *steps: list[dict[str, Any]], status: Any = None, now: str = "2026-01-01T00:00:01Z"
    ) -> None:
        self.steps = list(steps)
        self.time = 0.0
        self.status = status
        self.now = now

    def get(self, path: str, query: Any = None) -> Any:
        if path.startswith("/services/"):
            return service(UpdateStatus=self.status) if self.status else service()
        if path == "/nodes":
            return NODES
        if path == "/info":
            return {"SystemTime": self.now}
        return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]

    def sleep(self, seconds: float) -> None:
        self.time += max(seconds, 0.01)

    def wait(self, timeout: float, hold: float, stale: Any = None) -> Any:
        return _converge.wait(self, "s", timeout, stale, hold, clock=lambda: self.time, sleep=self.sleep)[0]


def test_waiting_ends_when_all_run_and_have_lasted() -> None:
    script = Script([task(1)], [task(1), task(2)])
    assert script.wait(30, 5, stale={}).state == "done"
    assert 5 <= script.time < 7


def test_tasks_that_die_and_come_again_are_never_done() -> None:
    steps = [[{**task(1), "ID": f"a{n}"}, task(2)] for n in range(200)]
    verdict = Script(*steps).wait(10, 5, stale={})
    assert verdict.state == "waiting"
    assert "not for 5 s" in verdict.text


def test_what_has_lasted_already_is_not_waited_for_again() -> None:
    script = Script([task(1), task(2)], now="2026-01-01T00:01:00Z")
    assert script.wait(30, 5).state == "done"
    assert script.time == 0


def test_what_is_too_young_is_waited_for_even_if_nothing_changed() -> None:
    script = Script([task(1), task(2)], now="2026-01-01T00:00:03Z")
    assert script.wait(30, 5).state == "done"
    assert script.time >= 5


def test_time_runs_out() -> None:
    script = Script([task(1)])
    verdict = script.wait(3, 1, stale={})
    assert (verdict.state, verdict.text) == ("waiting", "1 of 2 tasks run")
    assert script.time == pytest.approx(3, abs=0.5)


def test_a_failure_ends_waiting_at_once() -> None:
    script = Script([task(1)], status={"State": "paused", "Message": "m"})
    assert script.wait(100, 5, stale={}).state == "failed"
    assert script.time == 0


def test_monitor_of_the_specification_or_the_docker_commands_own() -> None:
    assert _converge.monitor_seconds({}) == 5
    assert _converge.monitor_seconds({"UpdateConfig": {"Monitor": 10**9}}) == 1
    assert _converge.monitor_seconds({"UpdateConfig": {"Monitor": 0}}) == 0


def rejected(slot: int, turn: int, why: str = "No such image: nothing:v1") -> dict[str, Any]:
    one = task(slot, "rejected", desired="shutdown", Err=why)
    return {**one, "ID": f"r{slot}-{turn}", "CreatedAt": f"2026-01-01T00:00:{turn:02d}Z"}


def next_try(slot: int) -> dict[str, Any]:
    return {**task(slot, "ready", desired="ready"), "CreatedAt": "2026-01-01T00:01:00Z"}


def test_refused_again_and_again_with_the_same_words_ends_waiting() -> None:
    twice = [rejected(1, 1), rejected(1, 2), next_try(1)]
    assert judge(service(1), *twice)[0] == "waiting"
    state, text = judge(service(1), rejected(1, 3), *twice)
    assert state == "failed"
    assert (
        text
        == "0 of 1 tasks run, and the same would be refused again; web.1 on one is rejected: No such image: nothing:v1 (and so are 2 more)"
    )


def test_refused_for_different_reasons_may_still_come_true() -> None:
    tasks = [rejected(1, 1, "a"), rejected(1, 2, "b"), rejected(1, 3, "a"), next_try(1)]
    assert judge(service(1), *tasks)[0] == "waiting"


def test_refused_while_an_update_goes_on_is_the_update_s_to_judge() -> None:
    tasks = [rejected(1, 1), rejected(1, 2), rejected(1, 3), next_try(1)]
    assert judge(service(1, UpdateStatus={"State": "updating", "Message": "m"}), *tasks)[0] == "waiting"


def test_each_reason_is_told_once() -> None:
    _state, text = judge(service(4), *(rejected(slot, turn) for slot in (1, 2, 3) for turn in (1, 2)))
    assert text.count("No such image") == 1
    assert "(and so are 5 more)" in text


def test_a_task_that_none_follows_is_over() -> None:
    ended = task(1, "failed", desired="shutdown", Err="task: non-zero exit (3)")
    state, text = judge(service(), ended, task(2))
    assert (state, "by its restart policy no other follows" in text) == ("over", True)
    following = {**task(1, "ready", desired="ready"), "CreatedAt": "2026-01-01T00:01:00Z"}
    assert judge(service(), ended, following, task(2))[0] == "waiting"


def test_a_task_that_has_ended_before_it_was_to_run_is_not_decided_about() -> None:
    refused = task(1, "rejected", desired="ready", Err="No such image: nothing:v1")
    assert judge(service(1), rejected(1, 1), refused)[0] == "waiting"
    assert judge(service(1), rejected(1, 1), rejected(1, 2), refused)[0] == "failed"


def test_a_task_that_is_complete_is_what_was_asked_for() -> None:
    assert judge(service(), task(1, "complete", desired="shutdown"), task(2)) == (
        "done",
        "1 of 2 tasks run, 1 are complete",
    )


def test_global_tasks_that_none_follows_are_over_too() -> None:
    ended = task(0, "failed", desired="shutdown", node="n3", Err="task: non-zero exit (3)")
    assert judge(service(None), task(0), ended)[0] == "over"
    drained = task(0, "shutdown", desired="shutdown", node="n3")
    assert judge(service(None), task(0), drained)[0] == "done"


def test_waiting_ends_soon_when_none_follows() -> None:
    script = Script([task(1), task(2, "failed", desired="shutdown", Err="gone")])
    verdict = script.wait(300, 5, stale={})
    assert verdict.state == "failed"
    assert script.time < 5


def test_waiting_goes_on_when_one_follows_late() -> None:
    ended = task(2, "failed", desired="shutdown", Err="gone")
    script = Script([task(1), ended], [task(1), ended], [task(1), ended, {**task(2), "CreatedAt": "9"}])
    assert script.wait(300, 5, stale={}).state == "done"


def test_time_that_is_over_before_that_is_sure_is_told_as_such() -> None:
    script = Script([task(1), task(2, "failed", desired="shutdown", Err="gone")])
    assert script.wait(1, 5, stale={}).state == "waiting"
