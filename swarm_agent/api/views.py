"""Records as Docker's JSON. The only place where they become visible: joins, redaction, Go's zero values."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Container
from typing import Any

import msgspec

from swarm_agent.api.backend import ManagerHealth
from swarm_agent.ca.ca import issuer_of
from swarm_agent.control.subnets import NODE_NETWORK
from swarm_agent.control.tasks import lost_node
from swarm_agent.objects import defaults
from swarm_agent.objects.enums import NodeState, TaskState
from swarm_agent.objects.ports import PortKey
from swarm_agent.objects.records import (
    Cluster,
    Config,
    Generic,
    HeldPort,
    Network,
    Node,
    Reason,
    Revision,
    Secret,
    Service,
    Task,
)
from swarm_agent.objects.specs import EndpointSpec, ServiceSpec
from swarm_agent.store import Store

Json = dict[str, Any]
VNI_OPTION = "com.docker.network.driver.overlay.vxlanid_list"


def time_text(ns: int) -> str:
    """RFC 3339 with nanoseconds, Go's zero time for 0."""
    if not ns:
        return "0001-01-01T00:00:00Z"
    seconds, rest = divmod(ns, 1_000_000_000)
    text = dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{text}{fraction}Z"


def builtins(value: Any) -> Any:
    return msgspec.to_builtins(value)


def _meta(row: Any) -> Json:
    return {
        "ID": row.id,
        "Version": {"Index": row.version},
        "CreatedAt": time_text(row.created_at),
        "UpdatedAt": time_text(row.updated_at),
    }


def _base64(data: bytes) -> str:
    import base64  # noqa: PLC0415

    return base64.b64encode(data).decode()


# --- swarm -----------------------------------------------------------------------------------------------------------
def cluster(record: Cluster) -> Json:
    """Without join tokens, as /info shows it."""
    spec = builtins(defaults.cluster_defaults(record.spec))
    spec["CAConfig"].pop("SigningCAKey", None)
    return {
        **_meta(record),
        "Spec": spec,
        "TLSInfo": tls_info(record.root_ca.cert),
        "RootRotationInProgress": False,
        "DefaultAddrPool": list(record.default_addr_pool) if record.pool_given else None,
        "SubnetSize": record.subnet_size,
        "DataPathPort": record.data_path_port,
    }


def swarm(record: Cluster) -> Json:
    return {
        **cluster(record),
        "JoinTokens": {"Worker": record.join_tokens.worker, "Manager": record.join_tokens.manager},
    }


def tls_info(root_pem: bytes) -> Json:
    subject, public_key = issuer_of(root_pem)
    return {
        "TrustRoot": root_pem.decode(),
        "CertIssuerSubject": _base64(subject),
        "CertIssuerPublicKey": _base64(public_key),
    }


# --- nodes -----------------------------------------------------------------------------------------------------------
def node(record: Node, tls: Json, health: ManagerHealth | None) -> Json:
    about = record.description
    engine: Json = {"EngineVersion": about.engine_version}
    if about.engine_labels:
        engine["Labels"] = about.engine_labels
    engine["Plugins"] = [{"Type": p.type, "Name": p.name} for p in about.plugins]
    out = {
        **_meta(record),
        "Spec": builtins(record.spec),
        "Description": {
            "Hostname": about.hostname,
            "Platform": {"Architecture": about.architecture, "OS": about.os},
            "Resources": {
                "NanoCPUs": about.nano_cpus,
                "MemoryBytes": about.memory_bytes,
                **_generic(about.generic),
            },
            "Engine": engine,
            "TLSInfo": tls,
            **_held_ports(about.held_ports),
        },
        "Status": {"State": record.status.state.word, "Addr": record.status.addr},
    }
    message = record.status.message or about.trouble or about.manager_trouble
    if message:
        out["Status"]["Message"] = message
    if record.role == "manager" and record.manager_addr:
        reachability = "reachable" if health is not None and health.reachable else "unreachable"
        if about.manager_trouble and record.status.state == NodeState.READY:
            reachability = (
                f"unreachable ({about.manager_trouble.partition(':')[0]})"  # what ``node ls`` has room for
            )
        status: Json = {"Reachability": reachability, "Addr": record.manager_addr}
        if health is not None and health.leader:
            status["Leader"] = True
        out["ManagerStatus"] = status
    return out


def _held_ports(held: tuple[HeldPort, ...]) -> Json:
    """Ours: the ports of its host that programs hold, which the swarm does not take there."""
    found = [{"Protocol": p.protocol, "Port": p.number, "Holder": p.holder} for p in held]
    return {"HeldPorts": found} if found else {}


def _generic(resources: tuple[Generic, ...]) -> Json:
    """``GenericResources``, where there are any."""
    found = [
        {"NamedResourceSpec": {"Kind": g.kind, "Value": g.name}}
        if g.name
        else {"DiscreteResourceSpec": {"Kind": g.kind, "Value": g.count}}
        for g in resources
    ]
    return {"GenericResources": found} if found else {}


# --- services --------------------------------------------------------------------------------------------------------
def service(record: Service, *, nowhere: Container[PortKey] = (), insert_defaults: bool = False) -> Json:
    """``nowhere``: ports that no node takes; it is not published at them, whatever its spec says."""
    out = {**_meta(record), "Spec": service_spec(record.spec, insert_defaults=insert_defaults)}
    if record.previous_spec is not None:
        out["PreviousSpec"] = service_spec(record.previous_spec)
    out["Endpoint"] = _endpoint(record, nowhere)
    if record.update_status is not None:
        status = record.update_status
        shown: Json = {
            "State": status.state,
            "StartedAt": time_text(status.started_at),
            "Message": status.message,
        }
        if status.completed_at:
            shown["CompletedAt"] = time_text(status.completed_at)
        out["UpdateStatus"] = shown
    if record.job is not None:
        out["JobStatus"] = {
            "JobIteration": _iteration(record.job.iteration),
            "LastExecution": time_text(record.job.last_execution),
        }
    return out


def _iteration(number: int) -> Json:
    """Go leaves the index of the first run out."""
    return {"Index": number} if number else {}


def service_spec(spec: ServiceSpec, *, insert_defaults: bool = False) -> Json:
    shown: Json = builtins(defaults.with_defaults(spec) if insert_defaults else spec)
    shown["TaskTemplate"].setdefault("Runtime", "container")
    if defaults.is_replicated(spec):
        shown["Mode"] = {"Replicated": {"Replicas": defaults.replicas(spec)}}
    elif spec.mode.replicated_job is not None:  # the docker CLI falls over a number that is left out
        job = defaults.job(spec)
        shown["Mode"] = {
            "ReplicatedJob": {"MaxConcurrent": job.max_concurrent, "TotalCompletions": job.total}
        }
    container = shown["TaskTemplate"].get("ContainerSpec")
    if container is not None:
        container.setdefault("Isolation", "default")
    return shown


def _endpoint(record: Service, nowhere: Container[PortKey]) -> Json:
    spec = record.spec.endpoint_spec or EndpointSpec()
    if record.endpoint is None:
        return {"Spec": {}}
    shown: Json = {"Mode": defaults.endpoint_mode(spec)}
    if spec.ports:
        shown["Ports"] = [_port(p) for p in spec.ports]
    out: Json = {"Spec": shown}
    if record.endpoint.ports:
        out["Ports"] = [
            _port(p) for p in record.endpoint.ports if (defaults.protocol(p), p.published_port) not in nowhere
        ]
    if record.endpoint.virtual_ips:
        out["VirtualIPs"] = [
            {"NetworkID": v.network_id, "Addr": v.address} for v in record.endpoint.virtual_ips
        ]
    return out


def _port(port: Any) -> Json:
    shown: Json = builtins(port)
    shown.setdefault("Protocol", "tcp")
    shown.setdefault("PublishMode", "ingress")
    return shown


def service_status(record: Service, store: Store) -> Json:
    """Docker's counts (behaviour.md 5.19), but for what a lost node said last: that is not running as far as anybody knows."""
    tasks = list(store.tasks.by("service", record.id))
    mode, complete = defaults.mode(record.spec), 0
    if record.job is not None:
        tasks = [t for t in tasks if t.iteration == record.job.iteration]
        complete = sum(1 for t in tasks if t.status.state == TaskState.COMPLETE)
    running = sum(
        1 for t in tasks if t.status.state == TaskState.RUNNING and not lost_node(store.nodes.get(t.node_id))
    )
    wanted = defaults.replicas(record.spec)
    if mode == "global":
        wanted = sum(1 for t in tasks if t.desired_state == TaskState.RUNNING)
    elif mode == "replicated-job":
        wanted = defaults.job(record.spec).max_concurrent
    elif mode == "global-job":
        wanted = sum(1 for t in tasks if t.desired_state <= TaskState.COMPLETE) - complete
    return {"RunningTasks": running, "DesiredTasks": wanted, "CompletedTasks": complete}


# --- tasks -----------------------------------------------------------------------------------------------------------
def task(record: Task, store: Store, not_taken: str = "") -> Json:
    """``not_taken``: what is to be said of its service's ports while it runs well."""
    revision = store.revisions.get(record.revision_id)
    spec: Json = builtins(revision.template) if revision is not None else {}
    spec.pop("Runtime", None)
    if spec.get("ContainerSpec") is not None:
        spec["ContainerSpec"].setdefault("Isolation", "default")
    out = {**_meta(record), "Labels": {}, "Spec": spec, "ServiceID": record.service_id}
    if record.slot:
        out["Slot"] = record.slot
    if record.node_id or record.preset:
        out["NodeID"] = record.node_id or record.preset
    if record.iteration or record.desired_state == TaskState.COMPLETE:
        out["JobIteration"] = _iteration(record.iteration)
    out["Status"] = _task_status(record, revision)
    if not_taken and record.status.state == TaskState.RUNNING and not record.status.err:
        out["Status"]["Err"] = not_taken
    out["DesiredState"] = record.desired_state.word
    if record.reasons:  # ours: Docker's clients pass over it
        out["Reasons"] = reasons(record.reasons)
    out.update(_generic(record.generic))
    attachments = [_attachment(a.network_id, a.address, store) for a in record.networks]
    if attachments:
        out["NetworksAttachments"] = [a for a in attachments if a]
    if revision is not None and revision.endpoint.ports and record.node_address:
        out.setdefault("NetworksAttachments", []).insert(0, _ingress_attachment(record.node_address))
    return out


def reasons(found: tuple[Reason, ...]) -> list[Json]:
    return [
        {"Code": r.code, "Nodes": r.nodes, "Text": r.text, **({"Best": r.best} if r.best else {})}
        for r in found
    ]


def host_name(store: Store, node_id: str) -> str:
    """How people call a node; its id while it has no name, or is gone."""
    found = store.nodes.get(node_id)
    return node_id if found is None else found.description.hostname or node_id


def _task_status(record: Task, revision: Revision | None) -> Json:
    status = record.status
    out: Json = {
        "Timestamp": time_text(status.timestamp),
        "State": status.state.word,
        "Message": status.message,
    }
    if status.err:
        out["Err"] = status.err
    if status.container is not None:
        out["ContainerStatus"] = {
            "ContainerID": status.container.container_id,
            "PID": status.container.pid,
            "ExitCode": status.container.exit_code,
        }
    running = status.state == TaskState.RUNNING and revision is not None
    ports = [*_host_ports(revision), *map(_port, status.ports)] if running and revision is not None else []
    out["PortStatus"] = {"Ports": ports} if ports else {}
    return out


def _host_ports(revision: Revision) -> list[Json]:
    """What every running task answers on at its own host."""
    return [
        _port(p)
        for p in revision.endpoint.ports or ()
        if defaults.publish_mode(p) == "host" and p.published_port
    ]


def _attachment(network_id: str, address: str, store: Store) -> Json | None:
    found = store.networks.get(network_id)
    if found is None:
        return None
    return {
        "Network": {
            **_meta(found),
            "Spec": {
                "Name": found.spec.name,
                "Labels": found.spec.labels or {},
                "DriverConfiguration": {"Name": "overlay"},
                "IPAMOptions": {"Driver": {"Name": "default"}},
                "Scope": "swarm",
            },
            "DriverState": {"Name": "overlay", "Options": {VNI_OPTION: str(found.vni)}},
            "IPAMOptions": {
                "Driver": {"Name": "default"},
                "Configs": [{"Subnet": found.subnet, "Gateway": found.gateway}],
            },
        },
        "Addresses": [address],
    }


def _ingress_attachment(address: str) -> Json:
    return {
        "Network": {
            "ID": "ingress",
            "Version": {},
            "Spec": {
                "Name": "ingress",
                "Labels": {},
                "DriverConfiguration": {},
                "Ingress": True,
                "Scope": "swarm",
            },
            "DriverState": {"Name": "routed"},
            "IPAMOptions": {"Driver": {"Name": "default"}, "Configs": [{"Subnet": str(NODE_NETWORK)}]},
        },
        "Addresses": [f"{address}/22"],
    }


# --- networks --------------------------------------------------------------------------------------------------------
def network(record: Network) -> Json:
    spec = record.spec
    config = [{"Subnet": record.subnet, "Gateway": record.gateway}] if record.subnet else []
    return {
        "Name": spec.name,
        "Id": record.id,
        "Created": time_text(record.created_at),
        "Scope": "swarm",
        "Driver": "overlay",
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": config},
        "Internal": bool(spec.internal),
        "Attachable": bool(spec.attachable),
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": None,
        "Options": {VNI_OPTION: str(record.vni), **(spec.options or {})},
        "Labels": spec.labels or {},
    }


# --- secrets and configs ---------------------------------------------------------------------------------------------
def content_owner(record: Secret | Config, data: bytes | None) -> Json:
    """``data``: of a config, which is shown; None for a secret, which never is."""
    spec = builtins(record.spec)
    if data is not None:
        spec["Data"] = _base64(data)
    return {**_meta(record), "Spec": spec}


def digest(data: bytes) -> str:
    """By which people can tell versions apart."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
