"""The language of ``control/*.txt``: a cluster on paper, told to in lines, that says what its leader decides.

=======================  ==========================================================================================
``node N [k=v..]``       a node joins; ``cpus=``, ``memory=`` (GiB), ``labels=a:b,c:d``, ``gpu=x,y``, ``volumes=a,b``
``set N word..``         ``active``, ``pause``, ``drain``, ``down``, ``up``, ``label=a:b``, ``volumes=..``, ``fenced``
``leave N``              a node that is down is removed
``service S {spec}``     make a service, or update it: a ServiceSpec as JSON without its name, image ``app:1`` unless given
``remove S``             remove it
``rollback S``           as ``docker service rollback``
``rebalance S n``        have it evened out, n tasks at a time
``image I word``         what an image is worth: ``runs``, ``missing``, ``crashes``
``end T [code]``         the container of a running task ends: ``web.1``, ``web.n2``; the code is 0 if none is given
``freeze N..``/``thaw``  nodes report nothing any more, or again
``wait D``               let time pass; decisions and reports happen when they are due
``leader``               another manager leads
``gap D``                for so long nobody leads; then another manager does
``tasks S``              the tasks that are meant to run, and where; ``all`` shows those that ended too
``status S``             update status, job status
=======================  ==========================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from swarm_agent.objects import defaults, validate
from swarm_agent.objects.durations import duration_text, parse_duration
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.normalise import normalise
from swarm_agent.objects.records import Generic, Node, Service, Task
from swarm_agent.objects.specs import ServiceSpec
from swarm_agent.store import Change, Delete, Group
from tests.lib.model_cluster import GiB, ModelCluster


class Script:
    """Runs commands one by one; :meth:`run` returns what happened meanwhile, in words."""

    def __init__(self) -> None:
        self.cluster = ModelCluster()
        self._ids: dict[str, str] = {}  # service name -> id
        self._worth: dict[str, str] = {}
        self._said: list[str] = []
        self._start = self.cluster.now
        self.cluster.prepares = lambda task: self._worth_of(task) != "missing"
        self.cluster.outcome = lambda task: (
            TaskState.FAILED if self._worth_of(task) == "crashes" else TaskState.RUNNING
        )
        self.cluster.store.watch(self._on_commit)

    def run(self, command: str) -> list[str]:
        word, _, rest = command.partition(" ")
        method = getattr(self, f"_do_{word}", None)
        if method is None:
            raise ValueError(f"unknown command: {command}")
        self._said = []
        method(rest)
        if word not in ("wait", "tasks", "status", "freeze", "thaw", "image"):
            self.cluster.settle()
        return self._said

    # --- nodes -----------------------------------------------------------------------------------------------------
    def _do_node(self, rest: str) -> None:
        name, *more = rest.split()
        given = dict(pair.split("=", 1) for pair in more)
        labels = dict(pair.split(":", 1) for pair in given.get("labels", "").split(",") if pair)
        node = self.cluster.add_node(
            name, cpus=int(given.get("cpus", 4)), memory=int(given.get("memory", 8)) * GiB, labels=labels
        )
        generic = tuple(Generic(kind="gpu", name=n) for n in given.get("gpu", "").split(",") if n)
        volumes = tuple(v for v in given.get("volumes", "").split(",") if v)
        if generic or volumes:
            self._describe(node, generic=generic, volumes=volumes)

    def _describe(self, node: Node, **changes: Any) -> None:
        node = self.cluster.node(node.id)
        self.cluster.write(
            msgspec.structs.replace(node, description=msgspec.structs.replace(node.description, **changes))
        )

    def _do_set(self, rest: str) -> None:
        name, *words = rest.split()
        for word in words:
            node = self.cluster.node(name)
            if word in ("active", "pause", "drain"):
                self.cluster.set_node(name, availability=word)
            elif word in ("down", "up"):
                state = NodeState.DOWN if word == "down" else NodeState.READY
                since = self.cluster.now if word == "down" else 0
                status = msgspec.structs.replace(node.status, state=state, fenced=False, since=since)
                self.cluster.write(msgspec.structs.replace(node, status=status))
            elif word == "fenced":
                status = msgspec.structs.replace(node.status, fenced=True)
                self.cluster.write(msgspec.structs.replace(node, status=status))
            elif word.startswith("label="):
                key, _, value = word[6:].partition(":")
                spec = msgspec.structs.replace(node.spec, labels={**node.spec.labels, key: value})
                self.cluster.write(msgspec.structs.replace(node, spec=spec))
            elif word.startswith("volumes="):
                self._describe(node, volumes=tuple(v for v in word[8:].split(",") if v))
            elif word.startswith("memory="):
                self._describe(node, memory_bytes=int(word[7:]) * GiB)
            else:
                raise ValueError(f"unknown word: {word}")

    def _do_leave(self, name: str) -> None:
        node = self.cluster.node(name)
        assert self.cluster.commit((Group(f"node/{name}", (Delete("node", name, node.version),)),)) == (True,)

    def _do_freeze(self, rest: str) -> None:
        self.cluster.frozen |= set(rest.split())

    def _do_thaw(self, rest: str) -> None:
        self.cluster.frozen.clear()

    # --- services ----------------------------------------------------------------------------------------------------
    def _do_service(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        raw = {"Name": name, **json.loads(text or "{}")}
        template = raw.setdefault("TaskTemplate", {})
        template.setdefault("ContainerSpec", {}).setdefault("Image", "app:1")
        spec = normalise(raw, ServiceSpec)
        validate.service(spec)
        if name in self._ids and self.cluster.store.services.get(self._ids[name]) is not None:
            self.cluster.update(self._ids[name], spec)
        else:
            self._ids[name] = self.cluster.create(spec)

    def _do_remove(self, name: str) -> None:
        self.cluster.remove(self._ids[name])

    def _do_rollback(self, name: str) -> None:
        self.cluster.roll_back(self._ids[name])

    def _do_rebalance(self, rest: str) -> None:
        name, count = rest.split()
        service = self.cluster.service(self._ids[name])
        self.cluster.write(msgspec.structs.replace(service, rebalancing=int(count)))

    # --- containers ----------------------------------------------------------------------------------------------------
    def _do_image(self, rest: str) -> None:
        image, word = rest.split()
        if word not in ("runs", "missing", "crashes"):
            raise ValueError(f"unknown word: {word}")
        self._worth[image] = word

    def _worth_of(self, task: Task) -> str:
        return self._worth.get(self._image(task), "runs")

    def _image(self, task: Task) -> str:
        revision = self.cluster.store.revisions.get(task.revision_id)
        return "" if revision is None else defaults.container(revision.template).image or ""

    def _do_end(self, rest: str) -> None:
        where, _, code = rest.partition(" ")
        (task,) = [
            t
            for t in self.cluster.store.tasks.all()
            if _short(t) == where and t.status.state == TaskState.RUNNING
        ]
        self.cluster.fail(task, TaskState.FAILED if code not in ("", "0") else TaskState.COMPLETE)

    # --- time ------------------------------------------------------------------------------------------------------------
    def _do_wait(self, rest: str) -> None:
        self.cluster.advance(parse_duration(rest) / 1e9)

    def _do_leader(self, rest: str) -> None:
        self.cluster.new_leader()

    def _do_gap(self, rest: str) -> None:
        self.cluster.now += parse_duration(rest)
        self.cluster.new_leader()

    # --- what there is -----------------------------------------------------------------------------------------------------
    def _do_tasks(self, rest: str) -> None:
        name, _, every = rest.partition(" ")
        tasks = self.cluster.tasks(self._ids[name], live=every != "all")
        for task in tasks:
            wanted = "" if task.desired_state == task.status.state else f", to be {task.desired_state.word}"
            self._said.append(
                f"{_short(task)}: {task.status.state.word}{wanted} on {task.node_id or 'no node'}, {self._image(task)}"
            )
            if task.status.state == TaskState.PENDING:
                self._said.append(f"  {task.status.err}")
            for reason in task.reasons:
                nearest = f" (nearest: {reason.best})" if reason.best else ""
                self._said.append(f"  {reason.code}: {reason.text}{nearest}")
        if not tasks:
            self._said.append("none")

    def _do_status(self, name: str) -> None:
        service = self.cluster.service(self._ids[name])
        status = service.update_status
        if status is not None:
            self._said.append(f"{status.state}: {self._without_ids(status.message, name)}")
        if service.job is not None:
            self._said.append(f"run {service.job.iteration}, {service.job.skipped} skipped")
        if not (status or service.job):
            self._said.append("nothing")

    def _without_ids(self, text: str, name: str) -> str:
        for task in self.cluster.tasks(self._ids[name], live=False):
            text = text.replace(task.id, _short(task))
        for service, id_ in self._ids.items():
            text = text.replace(id_, f"id of {service}")
        return text

    # --- what happens ----------------------------------------------------------------------------------------------------
    def _on_commit(self, index: int, changes: Sequence[Change]) -> None:
        for change in changes:
            match change.row:
                case Task():
                    self._say_task(change.old, change.new)
                case Service():
                    self._say_service(change.old, change.new)
                case _:
                    pass

    def _say(self, text: str) -> None:
        past = self.cluster.now - self._start
        self._said.append(f"{duration_text(past // 1_000_000 * 1_000_000)}  {text}")

    def _say_task(self, old: Task | None, new: Task | None) -> None:
        if new is None:
            assert old is not None
            self._say(f"{_short(old)} is forgotten")
            return
        here = f" on {new.node_id}" if new.node_id else ""
        if old is None:
            wait = " ready" if new.desired_state == TaskState.READY else ""
            rest = (
                f", not before {duration_text((new.start_after - self._start) // 1_000_000 * 1_000_000)}"
                if new.start_after > self.cluster.now
                else ""
            )
            err = f": {new.status.err}" if new.status.err else ""
            self._say(f"{_short(new)} is made{wait} for {new.cause}{here}{rest}{err}")
            return
        if old.node_id != new.node_id:
            self._say(f"{_short(new)} is placed on {new.node_id}")
        elif old.status.err != new.status.err and new.status.state == TaskState.PENDING:
            self._say(f"{_short(new)} waits: {new.status.err}")
        if old.desired_state != new.desired_state:
            self._say(f"{_short(new)} is to be {new.desired_state.word}{here}")
        if old.status.state != new.status.state and new.status.state not in (
            TaskState.ASSIGNED,
            TaskState.PENDING,
        ):
            self._say(f"{_short(new)} is {new.status.state.word}{here}")

    def _say_service(self, old: Service | None, new: Service | None) -> None:
        before, now = (s.update_status if s is not None else None for s in (old, new))
        if now is not None and new is not None and now != before:
            self._say(f"{new.spec.name}: {now.state}")
        runs = [s.job.iteration if s is not None and s.job is not None else 0 for s in (old, new)]
        if new is not None and runs[1] != runs[0]:
            self._say(f"{new.spec.name}: run {runs[1]} begins")


def _short(task: Task) -> str:
    return f"{task.service_name}.{task.preset or task.slot}"
