"""What the replicated store holds. Only ``api/views.py`` turns records into Docker's JSON.

Who may write a field: ``spec`` and every Revision the API; ``desired_state``, ``node_id`` and addresses the leader's control
loop (which also deletes what is to be forgotten, and writes ``Node.number`` and ``active_since``); ``Task.status`` the node the task is assigned to (and the control loop while a task has no node); ``Node.status``
the leader's session room; ``Node.role`` the leader's role manager.
"""

from __future__ import annotations

import msgspec

from swarm_agent.objects.base import Record
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.options import PreStart
from swarm_agent.objects.specs import (
    ClusterSpec,
    ConfigSpec,
    EndpointSpec,
    Labels,
    NetworkCreate,
    NodeSpec,
    PortConfig,
    SecretSpec,
    ServiceSpec,
    TaskTemplate,
)


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A piece of a record."""


# --- cluster -----------------------------------------------------------------------------------------------------
class RootCA(Part, frozen=True, kw_only=True):
    cert: bytes  # PEM
    key: bytes  # PEM, PKCS#8; never leaves the managers
    digest: str  # base 36 of the SHA-256 of ``cert``, the second part of every join token


class JoinTokens(Part, frozen=True, kw_only=True):
    worker: str
    manager: str


class UnlockKey(Part, frozen=True, kw_only=True):
    """What the key files of managers are locked with; no key: autolock is off. Shown to whoever asks for it by name, and to nobody else."""

    key: bytes = b""
    version: int = 0  # grows with every change, to none too

    def __repr__(self) -> str:
        return f"UnlockKey(version={self.version})"


class Cluster(Record, frozen=True, kw_only=True, tag="cluster"):
    """The one cluster object."""

    spec: ClusterSpec
    root_ca: RootCA
    join_tokens: JoinTokens
    unlock: UnlockKey = UnlockKey()
    spec_version: int = 0
    default_addr_pool: tuple[str, ...] = ("10.0.0.0/8",)
    pool_given: bool = False  # Docker shows no pool that nobody asked for
    subnet_size: int = 24
    data_path_port: int = 4789
    feature_level: int = 1
    removed_nodes: dict[str, int] = {}  # node id -> end of its last certificate's life


# --- nodes -------------------------------------------------------------------------------------------------------
class EnginePlugin(Part, frozen=True, kw_only=True):
    type: str
    name: str


class Generic(Part, frozen=True, kw_only=True):
    """A generic resource: so many of a kind (``count``), or one of its kind by name. A name that is a path is a device."""

    kind: str
    count: int = 0
    name: str = ""


class HeldPort(Part, frozen=True, kw_only=True):
    """A port that a program of the host holds, so that the swarm does not take it there."""

    protocol: str  # "tcp" | "udp"
    number: int
    holder: str = ""  # for people: "sshd"


class HostSubnet(Part, frozen=True, kw_only=True):
    """A part of IPv4's space that a host uses itself: by an address of its own, or by a route."""

    subnet: str
    device: str = ""
    connected: bool = False  # it has an address in it


class NodeDescription(Part, frozen=True, kw_only=True):
    hostname: str = ""
    architecture: str = ""
    os: str = ""
    nano_cpus: int = 0
    memory_bytes: int = 0
    engine_version: str = ""
    engine_labels: Labels = {}
    plugins: tuple[EnginePlugin, ...] = ()
    generic: tuple[Generic, ...] = ()  # what else can be reserved, devices among it
    volumes: tuple[str, ...] = ()  # names of the local volumes it holds, sorted
    cert_issuer_subject: bytes = b""  # DER
    cert_issuer_public_key: bytes = b""  # DER
    agent_version: str = ""
    held_ports: tuple[HeldPort, ...] = ()  # sorted by protocol and number; level 4
    trouble: str = ""  # why the node takes no new tasks, in words; "" while it does; level 4
    manager_trouble: str = ""  # why its manager side does not work, "<what>: <detail>"; level 4
    subnets: tuple[HostSubnet, ...] = ()  # what the host itself uses, sorted; level 4
    addresses: tuple[str, ...] = ()  # IPv4 addresses by which others reach the host, sorted; level 4


class NodeStatus(Part, frozen=True, kw_only=True):
    state: NodeState = NodeState.UNKNOWN
    message: str = ""
    addr: str = ""
    since: int = 0  # when it was found down, nanoseconds; 0 while it is not
    fenced: bool = (
        False  # it is down, and whatever ran on it under a lease (strict singletons) has ended by now
    )


class Node(Record, frozen=True, kw_only=True, tag="node"):
    spec: NodeSpec
    spec_version: int = 0  # version the present spec was written at, set by the store
    role: str = "worker"  # observed; ``spec.role`` is desired
    number: int = 0  # 1.., unique in the cluster: the host's place on the node network
    description: NodeDescription = NodeDescription()
    status: NodeStatus = NodeStatus()
    data_addr: str = ""  # where other hosts send overlay packets
    manager_addr: str = ""  # ip:port people join at (the join server); managers only
    rpc_addr: str = ""  # ip:port of the RPC server; managers only
    raft_id: int = 0
    cert_not_after: int = 0
    feature_level: int = 0  # the highest its daemon writes; 0: not told (objects/features.py)
    active_since: int = (
        0  # when it came to take tasks, nanoseconds; 0 while it is down or not active; level 3
    )


# --- services ----------------------------------------------------------------------------------------------------
class ContentRef(Part, frozen=True, kw_only=True):
    """One version of a secret's or config's content; its row is ``<owner>.<number>``."""

    owner: str  # id of the secret or config
    number: int


class Revision(Record, frozen=True, kw_only=True, tag="revision"):
    """The immutable part of a service that tasks are made from. ``id`` is ``<service id>.<content digest>``."""

    service_id: str
    template: TaskTemplate
    endpoint: EndpointSpec = EndpointSpec()
    networks: tuple[str, ...] = ()  # resolved ids, in order
    number: int = 0  # 1.. in the order a service got them; 0 where level 3 was not reached yet
    contents: tuple[
        ContentRef, ...
    ] = ()  # the versions of secrets, then of configs, in the order of the references
    pre_start: PreStart | None = None
    singleton: bool = False  # never twice, not even through a partition: its tasks run under a lease


class VirtualAddress(Part, frozen=True, kw_only=True):
    network_id: str
    address: str  # "10.0.1.2/24"


class ServiceEndpoint(Part, frozen=True, kw_only=True):
    ports: tuple[PortConfig, ...] = ()
    virtual_ips: tuple[VirtualAddress, ...] = ()


class UpdateStatus(Part, frozen=True, kw_only=True):
    state: str
    message: str
    started_at: int = 0
    completed_at: int = 0


class JobStatus(Part, frozen=True, kw_only=True):
    """How far a job is: tasks of other iterations are history."""

    iteration: int = 0  # grows with every run
    last_execution: int = 0  # when this iteration began, nanoseconds
    due: int = 0  # scheduled jobs: the time in the timetable that was dealt with last
    skipped: int = 0  # runs that were due while the last one went on


class Service(Record, frozen=True, kw_only=True, tag="service"):
    spec: ServiceSpec
    previous_spec: ServiceSpec | None = None
    revision_id: str = ""
    previous_revision_id: str = ""  # of ``previous_spec``
    job: JobStatus | None = None
    spec_version: int = 0
    endpoint: ServiceEndpoint | None = None
    update_status: UpdateStatus | None = None
    registry_auth: str = ""  # X-Registry-Auth of the last create or update
    rebalancing: int = 0  # so many of its tasks may move at a time to even it out; 0: none do
    evened: int = 0  # ``active_since`` of the last node it was evened out for by its policy on-join; level 3
    tracked: tuple[
        ContentRef, ...
    ] = ()  # of each secret and config it tracks, the newest version it has dealt with


# --- tasks -------------------------------------------------------------------------------------------------------
class ContainerStatus(Part, frozen=True, kw_only=True):
    container_id: str = ""
    pid: int = 0
    exit_code: int = 0


ENFORCED = "task rejected by constraint enforcer"
"""The status message of a task whose node changed under it: it ended, and tells nothing of its revision or of the node."""


class TaskStatus(Part, frozen=True, kw_only=True):
    state: TaskState = TaskState.NEW
    message: str = ""
    err: str = ""
    timestamp: int = 0
    container: ContainerStatus | None = None
    ports: tuple[PortConfig, ...] = ()
    started_at: int = 0  # when it was first RUNNING
    finished_at: int = 0  # when it became terminal


class Reason(Part, frozen=True, kw_only=True):
    """Why a task is not placed: a filter, how many nodes it refused, and the nearest miss.

    Of a placed task: "volume-moved", when it went where its volume is not.
    """

    code: str
    nodes: int
    text: str
    best: str = ""  # the nearest miss when the other three last changed; level 3


class NetworkAddress(Part, frozen=True, kw_only=True):
    network_id: str
    address: str  # "10.0.1.3/24"


class Task(Record, frozen=True, kw_only=True, tag="task"):
    service_id: str
    service_name: str
    revision_id: str
    service_labels: Labels = {}
    slot: int = 0
    node_id: str = ""
    desired_state: TaskState = TaskState.RUNNING
    status: TaskStatus = TaskStatus()
    reasons: tuple[Reason, ...] = ()
    networks: tuple[NetworkAddress, ...] = ()
    node_address: str = ""  # on the node network; "" when the task needs none
    start_after: int = 0  # not to be started before this time (restart delay)
    attempt: int = 0  # how many tasks of this slot and revision came before it
    cause: str = ""  # why it was made: "create", "scale", "update", "restart", "node down", "drain", "rebalance", "run"
    preset: str = ""  # global modes: the node it is for, from the beginning
    iteration: int = 0  # jobs
    failures: int = 0  # how often in a row this slot failed soon after its start; decides the restart delay
    replaces: str = ""  # the running task it is to take over from (drain, rebalance)
    generic: tuple[Generic, ...] = ()  # what of its node's generic resources it was given

    @property
    def place(self) -> int | str:
        """What is one of its service: a slot, or in global modes a node."""
        return self.preset or self.slot

    @property
    def name(self) -> str:
        return f"{self.service_name}.{self.slot or self.preset or self.node_id}.{self.id}"


# --- networks, secrets, configs ------------------------------------------------------------------------------------
class Network(Record, frozen=True, kw_only=True, tag="network"):
    spec: NetworkCreate
    subnet: str = ""  # "10.0.1.0/24"; "" until allocated
    gateway: str = ""  # "10.0.1.1"
    vni: int = 0


class Attachment(Record, frozen=True, kw_only=True, tag="attachment"):
    """A plain container on an attachable network."""

    network_id: str
    node_id: str
    container_id: str
    address: str


class Secret(Record, frozen=True, kw_only=True, tag="secret"):
    """``spec`` without data: each version of it is a Content."""

    spec: SecretSpec
    number: int = 1  # of the present version
    spec_version: int = 0  # version the present spec was written at, set by the store; level 4


class Config(Record, frozen=True, kw_only=True, tag="config"):
    """As a secret."""

    spec: ConfigSpec
    number: int = 1
    spec_version: int = 0


class Content(Record, frozen=True, kw_only=True, tag="content"):
    """One version of a secret's or config's data, never changed; ``id`` is ``<owner>.<number>``. Feature level 3."""

    owner: str
    number: int
    data: bytes

    def __repr__(self) -> str:
        return f"Content(id={self.id})"


AnyRecord = Cluster | Node | Service | Revision | Task | Network | Attachment | Secret | Config | Content
