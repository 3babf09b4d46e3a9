# SPDX-License-Identifier: Apache-2.0
"""PRIVATE to this collection: has a service become what was asked for? A pure function of what the API shows."""

from __future__ import annotations

import calendar
import time

RUNNING_OR_BEFORE = frozenset(("ready", "running", "complete", ""))
OVER = frozenset(("complete", "shutdown", "failed", "rejected", "remove", "orphaned"))


# A task that was refused so often with the same words will be so the next time.
REFUSED_TIMES = 3
# Longer than a manager takes to follow an ended task with the next one.
FOLLOWED_WITHIN_S = 3.0


class Verdict:
    """``state`` is done, waiting, over or failed; ``text`` says why in one sentence.

    "Over" is "failed" unless another task comes.
    """

    def __init__(self, state, text):
        self.state = state
        self.text = text

    def __repr__(self):
        return "Verdict(%s: %s)" % (self.state, self.text)


class Place:
    """A slot, or a global service's node, with its up-to-date tasks, the newest first."""

    def __init__(self, tasks):
        self.tasks = sorted(tasks, key=lambda t: (t.get("CreatedAt") or "", t["Status"].get("Timestamp") or ""), reverse=True)
        # A task that has ended and is wanted still is one that the manager has not decided about: another may follow after a delay.
        live = [t for t in self.tasks if t.get("DesiredState", "") not in OVER]
        self.live = bool(live)
        self.running = any(t["Status"]["State"] == "running" for t in live)
        newest = self.tasks[0]["Status"]["State"]
        self.complete = not self.live and newest == "complete"
        self.ended = not self.live and newest in ("failed", "rejected")
        refused = [t["Status"].get("Err") for t in self.tasks if t["Status"]["State"] == "rejected"]
        self.refused = not self.running and len(refused) >= REFUSED_TIMES and len(set(refused)) == 1


def places(service, tasks, down):
    """By slot, or by node for a global service; tasks on nodes that are down, and those to be removed, do not count."""
    found = {}
    everywhere = (service["Spec"].get("Mode") or {}).get("Global") is not None
    for task in tasks:
        if task.get("NodeID") not in down and task.get("DesiredState") != "remove":
            found.setdefault(task.get("NodeID") if everywhere else task.get("Slot"), []).append(task)
    return [Place(of) for of in found.values()]


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
    found = places(service, tasks, down)
    running, complete = sum(p.running for p in found), sum(p.complete for p in found)
    mode = spec.get("Mode") or {}
    if mode.get("Global") is not None:
        wanted = sum(p.live or p.complete or p.ended for p in found)
        if not wanted:
            return Verdict("waiting", "no node has a task yet")
    else:
        wanted = (mode.get("Replicated") or {}).get("Replicas", 1)
    count = "%d of %d tasks run" % (running, wanted) + (", %d are complete" % complete if complete else "")
    moving = state in ("updating", "rollback_started")
    if running + complete < wanted:
        # While an update goes on, its own rule says what a failure means.
        if not moving and any(p.refused for p in found):
            return Verdict("failed", "%s, and the same would be refused again%s" % (count, problems))
        if not moving and any(p.ended for p in found):
            return Verdict("over", "%s, and by its restart policy no other follows%s" % (count, problems))
        return Verdict("waiting", count + problems)
    if running > wanted:
        return Verdict("waiting", "%d tasks run, %d are wanted" % (running, wanted))
    if state == "rollback_completed" and stale is not None:
        return Verdict("failed", "rolled back: %s%s" % (status.get("Message"), problems))
    if moving:
        return Verdict("waiting", "%s, the update is still watched: %s" % (count, status.get("Message")))
    return Verdict("done", count)


def describe(service, tasks, names, most=3):
    """The newest troubles, each with its task, node and error; tasks with the same trouble are told as one. Empty if there are none."""
    name = service["Spec"]["Name"]
    alike = {}
    for task in sorted(tasks, key=lambda t: t["Status"].get("Timestamp") or "", reverse=True):
        status = task["Status"]
        if not status.get("Err"):
            continue
        code = (status.get("ContainerStatus") or {}).get("ExitCode")
        trouble = "%s: %s" % (status["State"], status["Err"])
        if code and str(code) not in status["Err"]:
            trouble += " (exit code %d)" % code
        where = names.get(task.get("NodeID"))
        who = "%s.%s%s" % (name, task.get("Slot") or where or "?", " on %s" % where if where else "")
        alike.setdefault(trouble, []).append(who)
    if not alike:
        return ""
    found = []
    for trouble, who in alike.items():
        found.append("%s is %s%s" % (who[0], trouble, " (and so are %d more)" % (len(who) - 1) if len(who) > 1 else ""))
    more = "" if len(found) <= most else "; and %d other troubles" % (len(found) - most)
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
    ended_since, ended = 0.0, None
    while True:
        service = client.get("/services/%s" % service_id)
        # The second filter is the one the docker command itself uses: only tasks of the present specification.
        filters = {"service": {service_id: True}, "_up-to-date": {"true": True}}
        tasks = client.get("/tasks", {"filters": filters}) or []
        nodes = client.get("/nodes")
        verdict = judge(service, tasks, nodes, stale)
        now = clock()
        names = {n["ID"]: (n.get("Description") or {}).get("Hostname") or n["ID"] for n in nodes}
        if verdict.state == "over":
            newest = sorted(t["ID"] for t in tasks)
            if newest != ended:
                ended_since, ended = now, newest
            elif now - ended_since >= FOLLOWED_WITHIN_S:
                verdict.state = "failed"
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
            elif verdict.state == "over":
                verdict.state = "waiting"
            return verdict, service
        sleep(min(0.3, max(0.0, deadline - now)))


def monitor_seconds(spec):
    """How long an update's task has to live to count: the same time as the docker command waits."""
    nanoseconds = (spec.get("UpdateConfig") or {}).get("Monitor")
    return (nanoseconds if nanoseconds is not None else 5 * 10**9) / 1e9
