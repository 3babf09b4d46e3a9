"""What leaders decide, judged entry by entry as it is written: promises that hold whatever hosts, links and tasks do meanwhile.

How many healthy tasks a service has says little while faults take some away. Who ended a task is written, though: a decision ends a
healthy task when it writes that a task that runs is to stop. So each promise is about those writes alone:

- an update or rollback never has more places between their old task and their new one than its policy lets go at once. A place is
  between from the write that ends its healthy task until another task of it runs, or ends by itself: a place where the new task has failed
  is waited for no more, and its next attempt is the restart policy's business, not the update's. Where nothing ran when the new task was
  made nothing is lost, whatever came to run meanwhile;
- start-first ends a healthy task only beside another that runs;
- what moves (a drain, a rebalance) is between in one place of a service at a time, but where there is no other place for it;
- ``volume-affinity: require``: no task is given to a node without the volume once somebody has been known for a while to hold it;
- ``depends-on``: nobody is started that waits for a job whose present run is not complete.

``Decisions.watch`` a store, of each manager; ``trouble`` says what was broken first.
"""

from __future__ import annotations

from collections.abc import Sequence

from swarm_agent.objects import defaults
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.options import options
from swarm_agent.objects.records import Node, Revision, Service, Task
from swarm_agent.store import Change, Store, slot_key

Place = int | str

KNOWN_NS = 5 * defaults.SECOND  # a decision may be this old when it is written: it waited for its majority
BY_ITSELF = (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED)


class Decisions:
    """See the module. Of an entry that several managers apply the first counts."""

    def __init__(self) -> None:
        self.trouble = ""
        self._index = 0
        self._between: dict[
            str, dict[Place, Task]
        ] = {}  # service id -> place -> the healthy task an update ended
        self._down: dict[str, None] = {}  # tasks that were made where nothing ran
        self._away: dict[str, int] = {}  # node id -> when it was last said to be down
        self._holders: dict[
            str, dict[str, int]
        ] = {}  # volume -> node id -> since when it is known to hold it

    def watch(self, store: Store) -> None:
        """Judge what is applied to it from here on. One that begins behind what was judged says nothing of what is known now."""
        if store.index >= self._index:
            self._index = store.index
            for node in store.nodes.all():
                self._volumes(node.id, node, store.now)
        store.watch(lambda index, changes: self._applied(store, index, changes))

    def _applied(self, store: Store, index: int, changes: Sequence[Change]) -> None:
        if index <= self._index:
            return
        self._index = index
        before = {c.row.id: c.old for c in changes if isinstance(c.row, Service)}
        touched: dict[str, list[Change]] = {}
        for change in changes:
            match change.row:
                case Node() as node:
                    self._volumes(node.id, change.new, store.now)
                    if any(
                        n is not None and n.status.state == NodeState.DOWN for n in (change.old, change.new)
                    ):
                        self._away[node.id] = store.now
                case Task() as task:
                    touched.setdefault(task.service_id, []).append(change)
                    if change.new is not None:
                        self._placed(store, change)
                        self._started(store, change)
                case _:
                    pass
        for service_id, of_it in touched.items():
            service = store.services.get(service_id)
            if service is None or defaults.is_job(service.spec):
                self._between.pop(service_id, None)
                continue
            old = before.get(service_id, service)
            self._updated(store, service, old or service, of_it)
            self._moved(store, service, of_it)

    def _fail(self, text: str) -> None:
        self.trouble = self.trouble or f"entry {self._index}: {text}"

    # --- updates -----------------------------------------------------------------------------------------------------------
    def _updated(self, store: Store, service: Service, before: Service, changes: list[Change]) -> None:
        between = self._between.setdefault(service.id, {})
        ended = []
        for change in changes:
            place: Place = change.row.place
            here = list(store.tasks.by("slot", slot_key(service.id, place)))
            if place in between and _over(between[place], here):
                del between[place]
            if change.old is None and not any(_runs(t) for t in here):
                self._down[change.row.id] = None
            if (
                _ends_a_healthy_one(change)
                and _for_an_update(store, service, change.new, here)
                and self._away.get(change.new.node_id, -KNOWN_NS)
                <= store.now - KNOWN_NS  # else it was ended as lost
            ):
                ended.append(change.new)
                policies = [_policy(service), _policy(before)]  # it may be taken back in the same entry
                if not any(_runs(t) for t in here):
                    if not _failed_there(service, here) and not any(
                        t.id in self._down and _live(t) for t in _present(service, here)
                    ):
                        between[place] = change.new
                    if all(p.order == "start-first" for p in policies) and not _moves_there(here):
                        self._fail(
                            f"an update ended {change.new.name}, which was healthy, and nothing runs in its place"
                        )
        if not ended:
            return
        for place, old in list(between.items()):
            here = list(store.tasks.by("slot", slot_key(service.id, place)))
            if _over(old, here) or (isinstance(place, str) and not _takes(store.nodes.get(place))):
                del between[place]
        most = max((p.parallelism or 1 << 30) for p in (_policy(service), _policy(before)))
        if len(between) > most:
            self._fail(
                f"an update of {service.spec.name} goes on in {most} places at a time, and ended healthy tasks in"
                f" {sorted(between, key=str)} before others ran there"
            )

    # --- moves -------------------------------------------------------------------------------------------------------------
    def _moved(self, store: Store, service: Service, changes: list[Change]) -> None:
        if options(service.spec.labels).min_healthy is not None or not any(
            _ends_a_healthy_one(c) and _mover_of(store, c.new) is not None for c in changes
        ):
            return
        tasks = {t.id: t for t in store.tasks.by("service", service.id)}
        between = [
            t.place
            for t in tasks.values()
            if t.replaces in tasks
            and _live(t)
            and t.node_id
            and t.status.state < TaskState.RUNNING
            and not _live(tasks[t.replaces])
            and tasks[t.replaces].status.started_at  # one that never ran costs nothing
        ]
        if len(between) > 1:
            self._fail(f"tasks of {service.spec.name} move in {between} at a time, none of which runs")

    # --- places ------------------------------------------------------------------------------------------------------------
    def _volumes(self, node_id: str, node: Node | None, now: int) -> None:
        held = node.description.volumes if node is not None else ()
        for name in held:
            self._holders.setdefault(name, {}).setdefault(node_id, now)
        for name, nodes in self._holders.items():
            if name not in held:
                nodes.pop(node_id, None)

    def _placed(self, store: Store, change: Change) -> None:
        task, before = change.new, change.old
        if not task.node_id or (before is not None and before.node_id) or task.preset:
            return
        service, revision = store.services.get(task.service_id), store.revisions.get(task.revision_id)
        if service is None or revision is None:
            return
        if options(service.spec.labels).volume_affinity != "require":
            return
        for name in _volumes_of(revision):
            holders = self._holders.get(name, {})
            if task.node_id not in holders and any(
                since < store.now - KNOWN_NS for since in holders.values()
            ):
                self._fail(
                    f"{task.name} requires volume {name} and was given to {task.node_id}, which has none"
                )

    # --- what waits for others -----------------------------------------------------------------------------------------------
    def _started(self, store: Store, change: Change) -> None:
        task, before = change.new, change.old
        if task.desired_state != TaskState.RUNNING or (
            before is not None and before.desired_state == TaskState.RUNNING
        ):
            return
        service = store.services.get(task.service_id)
        for wanted in options(service.spec.labels).depends_on if service is not None else ():
            other = next(iter(store.services.by("name", wanted.service.lower())), None)
            if other is None or other.updated_at > store.now - KNOWN_NS:
                continue  # it may have been begun anew while this was on its way
            if wanted.condition == "completed" and not _complete(store, other):
                self._fail(f"{task.name} was started, and {wanted.service} is not complete")


def _live(task: Task) -> bool:
    return task.desired_state <= TaskState.COMPLETE


def _runs(task: Task) -> bool:
    return _live(task) and task.status.state == TaskState.RUNNING


def _takes(node: Node | None) -> bool:
    return node is not None and node.spec.availability == "active" and node.status.state != NodeState.DOWN


def _ends_a_healthy_one(change: Change) -> bool:
    """Told to stop while it runs. One that has ended already, or is judged to have in the same write, costs nothing more."""
    old, new = change.old, change.new
    return (
        old is not None
        and new is not None
        and _runs(old)
        and new.desired_state == TaskState.SHUTDOWN
        and new.status.state == TaskState.RUNNING
    )


def _for_an_update(store: Store, service: Service, old: Task, here: list[Task]) -> bool:
    """Whether one of the present revision takes its place, and nothing else would have ended it."""
    if old.revision_id == service.revision_id:
        return False
    if not any(_live(t) and t.revision_id == service.revision_id for t in here):
        return False
    node = store.nodes.get(old.node_id)
    if node is None or node.status.state == NodeState.DOWN:
        return False
    own = store.revisions.get(old.revision_id)
    if isinstance(old.place, str) and node.spec.availability != "active":
        return False
    wanted = [service.spec.task_template, *([own.template] if own is not None else [])]
    return all(node_matches(defaults.constraints(w), node) for w in wanted)


def _over(ended: Task, here: list[Task]) -> bool:
    """Whether a place has another task that runs, has one that ended by itself since, or is to have none any more."""
    if any(_runs(t) for t in here) or not any(_live(t) for t in here):
        return True
    return any(
        t.id != ended.id and t.status.state in BY_ITSELF and t.updated_at >= ended.updated_at for t in here
    )


def _present(service: Service, here: list[Task]) -> list[Task]:
    return [t for t in here if t.revision_id == service.revision_id]


def _failed_there(service: Service, here: list[Task]) -> bool:
    return any(t.status.state in BY_ITSELF for t in _present(service, here))


def _moves_there(here: list[Task]) -> bool:
    return any(_live(t) and t.replaces for t in here)


def _policy(service: Service) -> defaults.Update:
    status = service.update_status
    back = status is not None and status.state.startswith("rollback")
    return defaults.update(service.spec.rollback_config if back else service.spec.update_config)


def _mover_of(store: Store, old: Task) -> Task | None:
    node = store.nodes.get(old.node_id)
    if node is None or node.status.state == NodeState.DOWN:
        return None  # it is lost, and not moved
    here = store.tasks.by("slot", slot_key(old.service_id, old.place))
    return next((t for t in here if t.replaces == old.id and _live(t) and t.node_id and not _runs(t)), None)


def _volumes_of(revision: Revision) -> list[str]:
    mounts = defaults.container(revision.template).mounts or ()
    return [m.source for m in mounts if m.type == "volume" and m.source]


def _complete(store: Store, job: Service) -> bool:
    """Whether every completion of its present run has been counted."""
    if job.job is None:
        return True
    tasks = store.tasks.by("service", job.id)
    done = {
        t.place for t in tasks if t.iteration == job.job.iteration and t.status.state == TaskState.COMPLETE
    }
    return len(done) >= (defaults.job(job.spec).total if job.spec.mode.replicated_job is not None else 1)
