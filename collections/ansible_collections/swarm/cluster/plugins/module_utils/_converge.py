# SPDX-License-Identifier: Apache-2.0
"""PRIVATE to this collection: has a service become what was asked for? A pure function of what the API shows."""

from __future__ import annotations

import calendar
import time

RUNNING_OR_BEFORE = frozenset(("ready", "running", "complete", ""))
OVER = frozenset(("complete", "shutdown", "failed", "rejected", "remove", "orphaned"))


class Verdict:
    """``state`` is done, waiting or failed; ``text`` says why in one sentence."""

    def __init__(self, state, text):
        self.state = state
        self.text = text

    def __repr__(self):
        return "Verdict(%s: %s)" % (self.state, self.text)


def judge(service, tasks, nodes, stale=None):
    """Judge a service by its up-to-date tasks. ``stale`` is an update status that was there before our change."""
    spec = service["Spec"]
    names = {n["ID"]: (n.get("Description") or {}).get("Hostname") or n["ID"] for n in nodes}
    down = {n["ID"] for n in nodes if (n.get("Status") or {}).get("State") == "down"}
    status = service.get("UpdateStatus") or {}
    if status == stale:
        status = {}
    state = status.get("State") or ""
    problems = describe(service, tasks, names)
    if state in ("paused", "rollback_paused"):
        return Verdict("failed", "%s: %s%s" % (state.replace("_", " "), status.get("Message"), problems))
    live = [t for t in tasks if t.get("DesiredState", "") not in OVER and t.get("NodeID") not in down]
    running = [t for t in live if t["Status"]["State"] == "running"]
    mode = spec.get("Mode") or {}
    if mode.get("Global") is not None:
        wanted = len(live)
        slots = len({t.get("NodeID") for t in running})
        if not live:
            return Verdict("waiting", "no node has a task yet")
    else:
        wanted = (mode.get("Replicated") or {}).get("Replicas", 1)
        slots = len({t.get("Slot") for t in running})
    if slots < wanted:
        return Verdict("waiting", "%d of %d tasks run%s" % (slots, wanted, problems))
    if slots > wanted:
        return Verdict("waiting", "%d tasks run, %d are wanted" % (slots, wanted))
    if state == "rollback_completed" and stale is not None:
        return Verdict("failed", "rolled back: %s%s" % (status.get("Message"), problems))
    if state in ("updating", "rollback_started"):
        return Verdict("waiting", "%d of %d tasks run, the update is still watched: %s" % (slots, wanted, status.get("Message")))
    return Verdict("done", "%d of %d tasks run" % (slots, wanted))


def describe(service, tasks, names, most=3):
    """The newest troubles, each with its task, node and error; empty if there are none."""
    name = service["Spec"]["Name"]
    found = []
    for task in sorted(tasks, key=lambda t: t["Status"].get("Timestamp") or "", reverse=True):
        status = task["Status"]
        if not status.get("Err"):
            continue
        where = names.get(task.get("NodeID"))
        code = (status.get("ContainerStatus") or {}).get("ExitCode")
        found.append(
            "%s.%s%s is %s: %s%s"
            % (
                name,
                task.get("Slot") or where or "?",
                " on %s" % where if where else "",
                status["State"],
                status["Err"],
                " (exit code %d)" % code if code and str(code) not in status["Err"] else "",
            )
        )
    if not found:
        return ""
    more = "" if len(found) <= most else "; and %d more" % (len(found) - most)
    return "; " + "; ".join(found[:most]) + more


def running_since(tasks):
    """The running tasks, each with the moment since when: as long as this stays the same, none of them fell."""
    return {t["ID"]: t["Status"].get("Timestamp") or "" for t in tasks if t["Status"]["State"] == "running"}


def old_enough(running, now, seconds):
    """Whether all of them had been running for so long at ``now``, by the clocks of the cluster."""
    try:
        latest = max((_seconds(moment) for moment in running.values()), default=0.0)
        return _seconds(now) - latest >= seconds
    except ValueError:
        return False


def _seconds(moment):
    """RFC 3339 with any number of digits, as seconds."""
    head, _dot, _digits = moment.rstrip("Z").partition(".")
    return float(calendar.timegm(time.strptime(head, "%Y-%m-%dT%H:%M:%S")))


def wait(client, service_id, timeout, stale=None, hold=0.0, clock=time.monotonic, sleep=time.sleep):
    """Ask until the verdict stands. "Done" has to last ``hold`` seconds with the same tasks: one may start and die.

    Returns (verdict, service); a verdict that is still "waiting" means that the time is over.
    """
    deadline = clock() + timeout
    since, seen = 0.0, None
    while True:
        service = client.get("/services/%s" % service_id)
        # The second filter is the one the docker command itself uses: only tasks of the present specification.
        filters = {"service": {service_id: True}, "_up-to-date": {"true": True}}
        tasks = client.get("/tasks", {"filters": filters}) or []
        nodes = client.get("/nodes")
        verdict = judge(service, tasks, nodes, stale)
        now = clock()
        names = {n["ID"]: (n.get("Description") or {}).get("Hostname") or n["ID"] for n in nodes}
        if verdict.state == "failed":
            if not describe(service, tasks, names):
                # After a rollback the tasks that failed are not those of the present specification.
                every = client.get("/tasks", {"filters": {"service": {service_id: True}}}) or []
                verdict.text += describe(service, every, names)
            return verdict, service
        if verdict.state == "done":
            running = running_since(tasks)
            if seen is None and stale is None and old_enough(running, client.get("/info").get("SystemTime") or "", hold):
                return verdict, service
            if running != seen:
                since, seen = now, running
            if now - since >= hold:
                return verdict, service
        else:
            seen = {}
        if now >= deadline:
            if verdict.state == "done":
                troubles = describe(service, tasks, names)
                verdict = Verdict("waiting", "%s, but not for %.0f s without a fall%s" % (verdict.text, hold, troubles))
            return verdict, service
        sleep(min(0.3, max(0.0, deadline - now)))


def monitor_seconds(spec):
    """How long an update's task has to live to count: the same time as the docker command waits."""
    nanoseconds = (spec.get("UpdateConfig") or {}).get("Monitor")
    return (nanoseconds if nanoseconds is not None else 5 * 10**9) / 1e9
