"""What must hold in a cluster at every moment, and what must hold once it has been left in peace."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

from swarm_agent.control.orchestrator import global_, jobs
from swarm_agent.control.orchestrator.rebalance import suggest
from swarm_agent.control.orchestrator.slot import given_up, moves_start_first
from swarm_agent.control.orchestrator.update import going
from swarm_agent.control.orchestrator.update_progress import PAUSED
from swarm_agent.control.revisions import revision_of
from swarm_agent.control.scheduler.usage import ClusterUsage, bare, reserved
from swarm_agent.manager.manager import Manager
from swarm_agent.objects import defaults
from swarm_agent.objects.constraints import node_matches
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.options import options
from swarm_agent.objects.ports import host_ports
from swarm_agent.objects.records import Revision, Service, Task
from swarm_agent.store import Store
from tests.lib.fake_engine import Container
from tests.lib.invariants import Decisions
from tests.lib.sim_cluster import PROGRAMS, SimCluster
from tests.lib.sim_host import Process, SimHost
from tests.lib.transitions import Watch

PATIENCE_NS = 60 * defaults.SECOND  # a new task waits this long for the one it replaces


class Violation(AssertionError):
    """Something that must never be."""


class ClusterChecks:
    """Call it after every step: cheap while nothing was committed."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self._index = 0
        self._terms: dict[int, str] = {}  # term -> host that had duties in it
        self._leadership: dict[str, object] = {}
        self._watch = Watch()
        self._states: dict[str, TaskState] = {}
        self._excused: dict[str, None] = {}  # tasks on a node that was out of reach in their life
        self._starts = 0
        self._declared: dict[str, int] = {}  # service id -> version that was looked at
        self._failed: dict[
            str, tuple[Process, float]
        ] = {}  # host -> the process whose raft member failed, and when
        self._decisions = Decisions()
        self._watched: dict[str, Store] = {}  # by host
        self.floors: dict[str, int] = {}
        """Service name -> how many of its tasks have to run and go on, whatever else happens. Only who knows that nothing is broken
        can say so: see ``sim_chaos``."""

    def __call__(self) -> None:
        self._singletons()
        for host in self._cluster.hosts.values():
            self._troubles(host)
            self._watch.member(host.name, _standing(host))
        newest: Manager | None = None
        for host, manager in self._cluster.managers():
            self._one_leader(host, manager)
            if self._watched.get(host.name) is not manager.store:
                self._watched[host.name] = manager.store
                self._decisions.watch(manager.store)
            if manager.store.index > self._index and (
                newest is None or manager.store.index > newest.store.index
            ):
                newest = manager
        if newest is not None:
            self._index = newest.store.index
            self._cluster.note("index", self._index)
            self._store(newest.store)
            if self._decisions.trouble:
                self._fail(self._decisions.trouble)

    def _fail(self, text: str) -> None:
        raise Violation(f"seed {self._cluster.seed}, at index {self._index}: {text}")

    def _singletons(self) -> None:
        """On the engines themselves: of a strict singleton no two containers run, whatever anybody believes."""
        wanted = self._cluster.singletons
        if not wanted:
            return
        starts = sum(host.engine.starts for host in self._cluster.hosts.values())
        if starts == self._starts:
            return
        self._starts = starts
        found: dict[str, list[str]] = {}
        for host in self._cluster.hosts.values():
            for container in host.engine.running():
                service = container.labels.get("com.docker.swarm.service.name", "")
                if service in wanted:
                    found.setdefault(service, []).append(f"{container.name} on {host.name}")
        for service, containers in found.items():
            if len(containers) > 1:
                self._fail(f"the strict singleton {service} runs twice: {', '.join(containers)}")

    def _troubles(self, host: SimHost) -> None:
        """From the moment a manager's raft member has failed until one leads or follows there, the daemon says what is wrong."""
        process = host.process
        member = process.daemon.member if process is not None else None
        if process is None or member is None or member.membership.role != "manager":
            self._failed.pop(host.name, None)
            return
        known = self._failed.get(host.name)
        if known is not None and known[0] is not process:
            del self._failed[host.name]
            known = None
        manager = member.manager
        if known is None:
            if manager is not None and manager.status.failure and not manager.status.removed:
                self._cluster.note("failed", host.name)
                self._failed[host.name] = (process, asyncio.get_running_loop().time())
        elif manager is not None and (manager.works or manager.status.removed):
            del self._failed[host.name]
        elif not process.daemon.error and asyncio.get_running_loop().time() > known[1]:
            self._fail(
                f"the raft member of {host.name} failed, it neither leads nor follows, and its daemon says nothing"
            )

    def _one_leader(self, host: SimHost, manager: Manager) -> None:
        duties = manager.leadership
        if duties is not None and duties.control.faults:
            left = duties.control.controllers.quarantined
            self._fail(f"controllers of {host.name} failed, and left aside {left}")
        if duties is None or self._leadership.get(host.name) is duties:
            return
        self._leadership[host.name] = duties
        status = manager.status
        if status.role != "leader":
            return
        self._cluster.note("leads", host.name, status.term)
        if self._terms.setdefault(status.term, host.name) != host.name:
            self._fail(f"{host.name} and {self._terms[status.term]} have duties in term {status.term}")

    def _store(self, store: Store) -> None:
        tasks = list(store.tasks.all())
        revisions = {r.id: r for r in store.revisions.all()}
        self._monotone(tasks)
        self._watch.tasks(tasks)
        self._resources(store, tasks, revisions)
        self._addresses(store, tasks)
        self._slots(store, tasks)
        self._jobs(store, tasks)
        self._declarations(store, revisions)
        for name, least in self.floors.items():
            well = sum(
                1
                for t in tasks
                if t.service_name == name
                and t.status.state == TaskState.RUNNING
                and t.desired_state <= TaskState.RUNNING
            )
            if well < least:
                self._fail(f"{name} has {well} healthy tasks, was promised {least}")

    def _declarations(self, store: Store, revisions: dict[str, Revision]) -> None:
        """What the tasks of a service are made from is what its spec says."""
        for service in store.services.all():
            if self._declared.get(service.id) == service.version:
                continue
            self._declared[service.id] = service.version
            revision = revisions.get(service.revision_id)
            if revision is None:
                self._fail(f"{service.spec.name} has no revision")
            elif (
                revision_of(service.id, service.spec, revision.networks, revision.contents).id != revision.id
            ):
                self._fail(f"{service.spec.name} has another revision than its spec says")

    def _jobs(self, store: Store, tasks: list[Task]) -> None:
        """Of the present run of a job a place has one live task, and no more places have any than may run at once."""
        found: dict[str, Counter[int | str]] = {}
        for task in tasks:
            service = store.services.get(task.service_id)
            if service is None or service.job is None or task.iteration != service.job.iteration:
                continue
            if task.desired_state <= TaskState.COMPLETE and not task.status.state.terminal:
                found.setdefault(service.id, Counter())[task.place] += 1
        for service_id, places in found.items():
            service = store.services.get(service_id)
            assert service is not None
            if max(places.values()) > 1:
                self._fail(f"a place of job {service.spec.name} has several live tasks: {places}")
            if (
                not defaults.is_global(service.spec)
                and len(places) > defaults.job(service.spec).max_concurrent
            ):
                self._fail(f"job {service.spec.name} has {len(places)} tasks at once")

    def _monotone(self, tasks: list[Task]) -> None:
        for task in tasks:
            before = self._states.get(task.id, TaskState.NEW)
            if task.status.state < before:
                self._fail(f"task {task.name} went from {before.word} back to {task.status.state.word}")
            if before != task.status.state:
                if before.terminal and task.status.state != TaskState.ORPHANED:
                    self._fail(f"task {task.name} was {before.word}, is {task.status.state.word}")
                self._cluster.note(task.id, int(task.status.state))
                self._states[task.id] = task.status.state
                self._watch.task(before, task.status.state)

    def _resources(self, store: Store, tasks: list[Task], revisions: dict[str, Revision]) -> None:
        ports: Counter[tuple[str, str, int]] = Counter()
        cpu: Counter[str] = Counter()
        memory: Counter[str] = Counter()
        generic: Counter[tuple[str, str]] = Counter()
        names: Counter[tuple[str, str, str]] = Counter()
        for task in tasks:
            revision = revisions.get(task.revision_id)
            if revision is None:
                self._fail(f"task {task.name} has no revision")
            if not task.node_id or task.status.state.terminal or revision is None:
                continue
            for protocol, port in host_ports(revision):
                ports[task.node_id, protocol, port] += 1
            wanted = reserved(revision)
            cpu[task.node_id] += wanted[0]
            memory[task.node_id] += wanted[1]
            for given in task.generic:
                if given.name:
                    names[task.node_id, given.kind, given.name] += 1
                else:
                    generic[task.node_id, given.kind] += given.count
        for where, count in ports.items():
            if count > 1:
                self._fail(f"host port {where} is given {count} times")
        for thing, count in names.items():
            if count > 1:
                self._fail(f"generic resource {thing} is given {count} times")
        for node in store.nodes.all():
            total = node.description
            for kind in {g.kind for g in total.generic if not g.name}:
                if generic[node.id, kind] > sum(g.count for g in total.generic if g.kind == kind):
                    self._fail(f"more {kind} is reserved on {total.hostname} than it has")
            if cpu[node.id] > total.nano_cpus or memory[node.id] > total.memory_bytes:
                self._fail(f"more is reserved on {total.hostname} than it has")

    def _addresses(self, store: Store, tasks: list[Task]) -> None:
        given: Counter[tuple[str, str]] = Counter()
        for task in tasks:
            if task.status.state.terminal:
                continue
            given.update((part.network_id, bare(part.address)) for part in task.networks)
            if task.node_address:
                given["node", task.node_address] += 1
        for service in store.services.all():
            for vip in (service.endpoint and service.endpoint.virtual_ips) or ():
                given[vip.network_id, bare(vip.address)] += 1
        for where, count in given.items():
            if count > 1:
                self._fail(f"address {where} is given {count} times")

    def _slots(self, store: Store, tasks: list[Task]) -> None:
        """Stop-first: nobody runs beside the one he replaces, but where the node cannot be reached."""
        reachable = {n.id for n in store.nodes.all() if n.status.state == NodeState.READY}
        busy: dict[tuple[str, int | str], list[Task]] = {}
        for task in tasks:
            if task.node_id and task.node_id not in reachable:
                self._excused[task.id] = None
            if (
                task.status.state in (TaskState.STARTING, TaskState.RUNNING)
                and task.desired_state != TaskState.REMOVE
            ):
                busy.setdefault((task.service_id, task.place), []).append(task)
        for (service_id, slot), together in busy.items():
            service = store.services.get(service_id)
            if len(together) < 2 or service is None or _starts_first(service):
                continue
            run = max(t.iteration for t in together)  # what is left of a job's earlier run holds up no other
            counted = [t for t in together if t.id not in self._excused and t.iteration == run]
            moved = {t.replaces for t in counted} if moves_start_first(service) else set()
            counted = [t for t in counted if t.id not in moved]
            newest = max(t.created_at for t in together)
            now = max(t.updated_at for t in together)
            if len(counted) > 1 and now - newest < PATIENCE_NS:
                names = ", ".join(f"{t.id} {t.status.state.word}/{t.desired_state.word}" for t in counted)
                self._fail(f"slot {slot} of {service.spec.name} has {len(counted)} tasks at once: {names}")


def _starts_first(service: Service) -> bool:
    spec = service.spec
    return "start-first" in (defaults.update(c).order for c in (spec.update_config, spec.rollback_config))


# --- after the storm -------------------------------------------------------------------------------------------------------
def _standing(host: SimHost) -> str:
    """What a host is as a member, in the words of ``transitions``."""
    process = host.process
    if process is None:
        return "gone"
    daemon = process.daemon
    if daemon.state == "inactive":
        return "inactive"
    if daemon.error:
        return "error"
    member = daemon.member
    if member is None or member.membership.role != "manager":
        return "worker"
    return "leader" if daemon.is_leader else "manager"


def unsettled(cluster: SimCluster, *, scheduled: bool = True) -> str:
    """What is still not as it was declared; "" when everything is. ``scheduled``: jobs with a timetable must be at rest, too."""
    return (
        cluster.nodes_trouble()
        or _managers_differ(cluster)
        or next(
            filter(
                None,
                (
                    _service(cluster, s)
                    for s in cluster.store.services.all()
                    if scheduled or not _by_the_clock(s)
                ),
            ),
            "",
        )
        or next(filter(None, (_task(cluster, t) for t in cluster.store.tasks.all())), "")
        or next(filter(None, (_engine(cluster, h) for h in cluster.hosts.values())), "")
        or _books(cluster)
    )


def _managers_differ(cluster: SimCluster) -> str:
    leader = cluster.store
    for host, manager in cluster.managers():
        if manager.store.index == leader.index and not _same_state(manager.store, leader):
            raise Violation(
                f"seed {cluster.seed}: {host.name} has another state than the leader at {leader.index}"
            )
        if manager.store.index < leader.index:
            return f"{host.name} has applied {manager.store.index} of {leader.index}"
    status = cluster.leader().manager
    assert status is not None
    members = {m.node_id for m in status.status.members if not m.learner}
    theirs = {h.node_id for h in cluster.hosts.values()}
    # A node that left before its promotion came through stays a manager in the table, and never was one of Raft's.
    wanted = {
        n.id
        for n in leader.nodes.all()
        if n.role == "manager" and (n.raft_id or n.id in theirs or n.id in members)
    }
    return "" if members == wanted else f"raft has members {members}, the managers are {wanted}"


def _same_state(one: Store, other: Store) -> bool:
    return b"".join(one.snapshot()) == b"".join(other.snapshot())


def _service(cluster: SimCluster, service: Service) -> str:
    update = service.update_status
    if going(service):
        return f"{service.spec.name} is updating"
    if defaults.is_job(service.spec):
        return _job(cluster, service)
    wanted = defaults.replicas(service.spec)
    if defaults.is_global(service.spec):
        wanted = len(list(global_.places(cluster.store, service)))
    live = [t for t in cluster.store.tasks.by("service", service.id) if t.desired_state <= TaskState.RUNNING]
    running = [t for t in live if t.status.state == TaskState.RUNNING]
    if len(running) != wanted or len(live) != wanted:
        return (
            f"{service.spec.name} has {len(running)} running and {len(live)} live tasks, is to have {wanted}"
        )
    if len({t.place for t in running}) != wanted:
        return f"{service.spec.name} has two tasks in one slot"
    if service.rebalancing:
        return f"{service.spec.name} is being evened out"
    if said := _left_behind(cluster, service):
        return f"{service.spec.name} {said}"
    old = [t for t in running if t.revision_id != service.revision_id]
    if old and (update is None or update.state not in PAUSED):
        return f"{service.spec.name} has {len(old)} tasks of an old revision"
    return ""


def _left_behind(cluster: SimCluster, service: Service) -> str:
    """Who is to be evened out has been, for each node that came."""
    manager = cluster.leader().manager
    assert manager is not None
    assert manager.leadership is not None
    policy = options(service.spec.labels).rebalance
    joined = max(n.active_since for n in manager.store.nodes.all())
    if policy == "on-join" and service.evened < joined and service.created_at <= joined:
        return "was not evened out for a node that joined"
    if policy != "continuous":
        return ""
    memory = manager.leadership.control.controllers.memory
    ids = (f"pretended-{n}" for n in itertools.count())
    found = suggest(manager.store, memory, cluster.leader().now(), lambda: next(ids), [service])
    return f"would better move {found[0].task_id}: {found[0].text}" if found else ""


def _by_the_clock(service: Service) -> bool:
    return options(service.spec.labels).schedule is not None


def _job(cluster: SimCluster, service: Service) -> str:
    """A job ends: each of its places is complete, or given up. One whose tasks do not end has as many running as may run at once."""
    if jobs.waits_for_its_time(service):
        return ""
    iteration = service.job.iteration if service.job is not None else 0
    mine: dict[int | str, list[Task]] = {}
    for task in cluster.store.tasks.by("service", service.id):
        if task.iteration == iteration:
            mine.setdefault(task.place, []).append(task)
    job = defaults.job(service.spec)
    everywhere_ = defaults.is_global(service.spec)
    wanted = set(global_.places(cluster.store, service)) if everywhere_ else set(range(job.total))
    over = {
        place
        for place, tasks in mine.items()
        if any(t.status.state == TaskState.COMPLETE for t in tasks) or given_up(service, tasks)
    }
    program = PROGRAMS.get(defaults.container(service.spec.task_template).image or "")
    ends = program is not None and program.runs_s is not None
    going_on = {
        place
        for place, tasks in mine.items()
        if any(t.status.state == TaskState.RUNNING and t.desired_state == TaskState.COMPLETE for t in tasks)
        and not ends
    }
    missing = wanted - over - going_on
    if not missing or (not everywhere_ and len(going_on) == job.max_concurrent):
        return ""
    return f"{service.spec.name} has nothing in {sorted(missing)} of run {iteration}, {sorted(over)} are over"


def _task(cluster: SimCluster, task: Task) -> str:
    node = cluster.store.nodes.get(task.node_id)
    if node is not None and node.status.state == NodeState.DOWN:
        return ""  # of a node that left: nobody will ever say more of it
    if task.node_id and task.desired_state > TaskState.COMPLETE and not task.status.state.terminal:
        return f"{task.name} is {task.status.state.word}, is to be {task.desired_state.word}"
    if cluster.store.services.get(task.service_id) is None:
        return f"{task.name} is of a service that is gone"
    if task.status.state != TaskState.RUNNING:
        return ""
    own = cluster.store.revisions.get(task.revision_id)
    if node is None or own is None or not node_matches(defaults.constraints(own.template), node):
        return f"{task.name} runs where it may not"
    host = next((h for h in cluster.hosts.values() if h.node_id == task.node_id), None)
    container = host.engine.containers.get(task.name) if host is not None else None
    if container is None or not container.running:
        return f"{task.name} is said to run and does not"
    return ""


def _engine(cluster: SimCluster, host: SimHost) -> str:
    """No strays, and every status as the engine has it."""
    for container in host.engine.containers.values():
        if said := _container(cluster, host, container):
            return f"on {host.name}, {container.name}: {said}"
    tasks = list(cluster.store.tasks.by("node", host.node_id)) if host.node_id else []
    known = {t.id for t in tasks}
    needed = {t.id for t in tasks if t.desired_state <= TaskState.COMPLETE and not t.status.state.terminal}
    if left := sorted(host.files.held.keys() - needed):
        return f"on {host.name}, files of secrets are left of {left}"
    stray = next((t for t in host.network.attached if t not in known), "")
    return f"on {host.name}, the network still has task {stray}" if stray else ""


def _container(cluster: SimCluster, host: SimHost, container: Container) -> str:
    task = cluster.store.tasks.get(container.task_id)
    if task is None or task.node_id != host.node_id:
        return "no manager knows its task"
    if container.running and task.status.state != TaskState.RUNNING:
        return f"runs, its task is {task.status.state.word}"
    known = task.status.container
    if container.running and known is not None and known.pid not in (0, container.pid):
        return "was started again outside the swarm, and its task is not replaced yet"
    return ""


def _books(cluster: SimCluster) -> str:
    """The leader's books are what the rows say."""
    manager = cluster.leader().manager
    assert manager is not None
    assert manager.leadership is not None
    kept, fresh = manager.leadership.control.controllers.usage, ClusterUsage(manager.store)
    for what in ("published", "subnets", "vnis", "numbers"):
        if getattr(kept, what) != getattr(fresh, what):
            raise Violation(f"seed {cluster.seed}: the usage's {what} are not what the rows say")
    for what in ("addresses", "node_addresses"):
        left, right = getattr(kept, what), getattr(fresh, what)
        if {k: v for k, v in left.items() if v} != {k: v for k, v in right.items() if v}:
            raise Violation(f"seed {cluster.seed}: the usage's {what} are not what the rows say")
    for node in manager.store.nodes.all():
        one, other = kept.nodes[node.id], fresh.nodes[node.id]
        for what in ("active", "cpu", "memory", "by_service", "ports", "generic", "names"):
            if getattr(one, what) != getattr(other, what):
                raise Violation(
                    f"seed {cluster.seed}: the usage's {what} of {node.description.hostname} are not what the rows say: "
                    f"{getattr(one, what)}, {getattr(other, what)}"
                )
    return ""
