"""What users declare, shaped and named as in Docker's Engine API (1.41 first).

``None`` means absent. Durations are integer nanoseconds. Defaults are not filled in here: ``objects.defaults`` knows
them, so that what was sent comes back as it was sent.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from swarm_agent.objects.base import Spec, always, always_map

Labels = dict[str, str]
S = TypeVar("S", bound=Spec)


# --- containers ------------------------------------------------------------------------------------------------
class SELinuxContext(Spec, frozen=True, kw_only=True):
    disable: bool = always(False)
    user: str | None = None
    role: str | None = None
    type: str | None = None
    level: str | None = None


class CredentialSpec(Spec, frozen=True, kw_only=True):
    config: str | None = None
    file: str | None = None
    registry: str | None = None


class Privileges(Spec, frozen=True, kw_only=True):
    credential_spec: CredentialSpec | None = None
    selinux_context: SELinuxContext | None = msgspec.field(default=None, name="SELinuxContext")
    seccomp: dict[str, Any] | None = None
    app_armor: dict[str, Any] | None = None
    no_new_privileges: bool | None = None


class BindOptions(Spec, frozen=True, kw_only=True):
    propagation: str | None = None
    non_recursive: bool | None = None
    create_mountpoint: bool | None = None
    read_only_non_recursive: bool | None = None
    read_only_force_recursive: bool | None = None


class DriverSpec(Spec, frozen=True, kw_only=True):
    name: str | None = None
    options: Labels | None = None


class VolumeOptions(Spec, frozen=True, kw_only=True):
    no_copy: bool | None = None
    labels: Labels | None = None
    driver_config: DriverSpec | None = None
    subpath: str | None = None


class TmpfsOptions(Spec, frozen=True, kw_only=True):
    size_bytes: int | None = None
    mode: int | None = None
    options: tuple[tuple[str, ...], ...] | None = None


class Mount(Spec, frozen=True, kw_only=True):
    type: str | None = None
    source: str | None = None
    target: str | None = None
    read_only: bool | None = None
    consistency: str | None = None
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    cluster_options: dict[str, Any] | None = None


class Healthcheck(Spec, frozen=True, kw_only=True):
    test: tuple[str, ...] | None = None
    interval: int | None = None
    timeout: int | None = None
    start_period: int | None = None
    start_interval: int | None = None
    retries: int | None = None


class DNSConfig(Spec, frozen=True, kw_only=True):
    nameservers: tuple[str, ...] | None = None
    search: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None


class FileTarget(Spec, frozen=True, kw_only=True):
    name: str | None = None
    uid: str | None = msgspec.field(default=None, name="UID")
    gid: str | None = msgspec.field(default=None, name="GID")
    mode: int | None = None


class SecretReference(Spec, frozen=True, kw_only=True):
    file: FileTarget | None = None
    secret_id: str | None = msgspec.field(default=None, name="SecretID")
    secret_name: str | None = None


class ConfigReference(Spec, frozen=True, kw_only=True):
    file: FileTarget | None = None
    runtime: dict[str, Any] | None = None
    config_id: str | None = msgspec.field(default=None, name="ConfigID")
    config_name: str | None = None


class Ulimit(Spec, frozen=True, kw_only=True):
    name: str | None = None
    soft: int | None = None
    hard: int | None = None


class ContainerSpec(Spec, frozen=True, kw_only=True):
    image: str | None = None
    labels: Labels | None = None
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    hostname: str | None = None
    env: tuple[str, ...] | None = None
    dir: str | None = None
    user: str | None = None
    groups: tuple[str, ...] | None = None
    privileges: Privileges | None = None
    init: bool | None = None
    stop_signal: str | None = None
    tty: bool | None = msgspec.field(default=None, name="TTY")
    open_stdin: bool | None = None
    read_only: bool | None = None
    mounts: tuple[Mount, ...] | None = None
    stop_grace_period: int | None = None
    healthcheck: Healthcheck | None = None
    hosts: tuple[str, ...] | None = None
    dns_config: DNSConfig | None = msgspec.field(default=None, name="DNSConfig")
    secrets: tuple[SecretReference, ...] | None = None
    configs: tuple[ConfigReference, ...] | None = None
    isolation: str | None = None
    sysctls: Labels | None = None
    capability_add: tuple[str, ...] | None = None
    capability_drop: tuple[str, ...] | None = None
    ulimits: tuple[Ulimit, ...] | None = None
    oom_score_adj: int | None = None


# --- tasks -----------------------------------------------------------------------------------------------------
class GenericDiscrete(Spec, frozen=True, kw_only=True):
    kind: str | None = None
    value: int | None = None


class GenericResource(Spec, frozen=True, kw_only=True):
    discrete_resource_spec: GenericDiscrete | None = None
    named_resource_spec: dict[str, str] | None = None


class Limits(Spec, frozen=True, kw_only=True):
    nano_cpus: int | None = msgspec.field(default=None, name="NanoCPUs")
    memory_bytes: int | None = None
    pids: int | None = None


class Reservations(Spec, frozen=True, kw_only=True):
    nano_cpus: int | None = msgspec.field(default=None, name="NanoCPUs")
    memory_bytes: int | None = None
    generic_resources: tuple[GenericResource, ...] | None = None


class Resources(Spec, frozen=True, kw_only=True):
    limits: Limits | None = None
    reservations: Reservations | None = None
    swap_bytes: int | None = None
    memory_swappiness: int | None = None


class RestartPolicy(Spec, frozen=True, kw_only=True):
    condition: str | None = None
    delay: int | None = None
    max_attempts: int | None = None
    window: int | None = None


class SpreadOver(Spec, frozen=True, kw_only=True):
    spread_descriptor: str | None = None


class Preference(Spec, frozen=True, kw_only=True):
    spread: SpreadOver | None = None


class Platform(Spec, frozen=True, kw_only=True):
    architecture: str | None = None
    os: str | None = msgspec.field(default=None, name="OS")


class Placement(Spec, frozen=True, kw_only=True):
    constraints: tuple[str, ...] | None = None
    preferences: tuple[Preference, ...] | None = None
    max_replicas: int | None = None
    platforms: tuple[Platform, ...] | None = None


class NetworkAttachmentConfig(Spec, frozen=True, kw_only=True):
    target: str | None = None
    aliases: tuple[str, ...] | None = None
    driver_opts: Labels | None = None


class TaskTemplate(Spec, frozen=True, kw_only=True):
    container_spec: ContainerSpec | None = None
    plugin_spec: dict[str, Any] | None = None
    network_attachment_spec: dict[str, Any] | None = None
    resources: Resources | None = None
    restart_policy: RestartPolicy | None = None
    placement: Placement | None = None
    networks: tuple[NetworkAttachmentConfig, ...] | None = None
    log_driver: DriverSpec | None = None
    force_update: int = always(0)
    runtime: str | None = None


# --- services --------------------------------------------------------------------------------------------------
class Replicated(Spec, frozen=True, kw_only=True):
    replicas: int | None = None


class ReplicatedJob(Spec, frozen=True, kw_only=True):
    max_concurrent: int | None = None
    total_completions: int | None = None


class Empty(Spec, frozen=True, kw_only=True):
    pass


class ServiceMode(Spec, frozen=True, kw_only=True):
    replicated: Replicated | None = None
    global_: Empty | None = msgspec.field(default=None, name="Global")
    replicated_job: ReplicatedJob | None = None
    global_job: Empty | None = None


class UpdateConfig(Spec, frozen=True, kw_only=True):
    parallelism: int = always(0)
    delay: int | None = None
    failure_action: str | None = None
    monitor: int | None = None
    max_failure_ratio: float = always(0.0)
    order: str | None = None


class PortConfig(Spec, frozen=True, kw_only=True):
    name: str | None = None
    protocol: str | None = None
    target_port: int | None = None
    published_port: int | None = None
    publish_mode: str | None = None


class EndpointSpec(Spec, frozen=True, kw_only=True):
    mode: str | None = None
    ports: tuple[PortConfig, ...] | None = None


class ServiceSpec(Spec, frozen=True, kw_only=True):
    name: str | None = None
    labels: Labels = always_map()
    task_template: TaskTemplate = always(TaskTemplate())
    mode: ServiceMode = always(ServiceMode())
    update_config: UpdateConfig | None = None
    rollback_config: UpdateConfig | None = None
    networks: tuple[NetworkAttachmentConfig, ...] | None = None
    endpoint_spec: EndpointSpec | None = None


# --- nodes, networks, secrets, configs -----------------------------------------------------------------------------
class NodeSpec(Spec, frozen=True, kw_only=True):
    name: str | None = None
    labels: Labels = always_map()
    role: str = always("worker")
    availability: str = always("active")


class IPAMConfig(Spec, frozen=True, kw_only=True):
    subnet: str | None = None
    ip_range: str | None = msgspec.field(default=None, name="IPRange")
    gateway: str | None = None
    auxiliary_addresses: Labels | None = None


class IPAM(Spec, frozen=True, kw_only=True):
    driver: str | None = None
    options: Labels | None = None
    config: tuple[IPAMConfig, ...] | None = None


class NetworkCreate(Spec, frozen=True, kw_only=True):
    """Body of ``POST /networks/create``."""

    name: str | None = None
    check_duplicate: bool | None = None
    driver: str | None = None
    scope: str | None = None
    ipam: IPAM | None = msgspec.field(default=None, name="IPAM")
    internal: bool | None = None
    attachable: bool | None = None
    ingress: bool | None = None
    config_only: bool | None = None
    config_from: dict[str, Any] | None = None
    enable_ipv6: bool | None = msgspec.field(default=None, name="EnableIPv6")
    options: Labels | None = None
    labels: Labels | None = None


class SecretSpec(Spec, frozen=True, kw_only=True):
    name: str | None = None
    labels: Labels = always_map()
    data: str | None = None
    driver: DriverSpec | None = None
    templating: DriverSpec | None = None


class ConfigSpec(Spec, frozen=True, kw_only=True):
    name: str | None = None
    labels: Labels = always_map()
    data: str | None = None
    templating: DriverSpec | None = None


# --- the swarm -------------------------------------------------------------------------------------------------
class OrchestrationConfig(Spec, frozen=True, kw_only=True):
    task_history_retention_limit: int | None = None


class RaftSettings(Spec, frozen=True, kw_only=True):
    snapshot_interval: int | None = None
    keep_old_snapshots: int | None = None
    log_entries_for_slow_followers: int | None = None
    election_tick: int | None = None
    heartbeat_tick: int | None = None


class DispatcherConfig(Spec, frozen=True, kw_only=True):
    heartbeat_period: int | None = None


class ExternalCA(Spec, frozen=True, kw_only=True):
    protocol: str | None = None
    url: str | None = msgspec.field(default=None, name="URL")
    options: Labels | None = None
    ca_cert: str | None = msgspec.field(default=None, name="CACert")


class CAConfig(Spec, frozen=True, kw_only=True):
    node_cert_expiry: int | None = None
    external_cas: tuple[ExternalCA, ...] | None = msgspec.field(default=None, name="ExternalCAs")
    signing_ca_cert: str | None = msgspec.field(default=None, name="SigningCACert")
    signing_ca_key: str | None = msgspec.field(default=None, name="SigningCAKey")
    force_rotate: int | None = None


class TaskDefaults(Spec, frozen=True, kw_only=True):
    log_driver: DriverSpec | None = None


class EncryptionConfig(Spec, frozen=True, kw_only=True):
    auto_lock_managers: bool = always(False)


class ClusterSpec(Spec, frozen=True, kw_only=True):
    name: str | None = None
    labels: Labels = always_map()
    orchestration: OrchestrationConfig = always(OrchestrationConfig())
    raft: RaftSettings = always(RaftSettings())
    dispatcher: DispatcherConfig = always(DispatcherConfig())
    ca_config: CAConfig = always(CAConfig(), name="CAConfig")
    task_defaults: TaskDefaults = always(TaskDefaults())
    encryption_config: EncryptionConfig = always(EncryptionConfig())


def merged(base: S, over: S) -> S:
    """``base`` with everything that ``over`` states: what it leaves out, in whatever depth, stays. Empty maps and false state nothing, as
    Docker's clients always send them."""
    changes: dict[str, Any] = {}
    for field in msgspec.structs.fields(type(base)):
        stated, present = getattr(over, field.name), getattr(base, field.name)
        if isinstance(stated, Spec) and isinstance(present, Spec):
            changes[field.name] = merged(present, stated)
        elif stated is not None and stated is not False and stated not in ({}, (), ""):
            changes[field.name] = stated
    return msgspec.structs.replace(base, **changes)


class InitRequest(Spec, frozen=True, kw_only=True):
    listen_addr: str | None = None
    advertise_addr: str | None = None
    data_path_addr: str | None = None
    data_path_port: int | None = None
    default_addr_pool: tuple[str, ...] | None = None
    subnet_size: int | None = None
    force_new_cluster: bool | None = None
    spec: ClusterSpec | None = None
    auto_lock_managers: bool | None = None
    availability: str | None = None


class RecoverOptions(Spec, frozen=True, kw_only=True):
    """Where a swarm that is recovered from a backup stands."""

    advertise_addr: str | None = None
    listen_addr: str | None = None
    data_path_addr: str | None = None


class JoinRequest(Spec, frozen=True, kw_only=True):
    listen_addr: str | None = None
    advertise_addr: str | None = None
    data_path_addr: str | None = None
    remote_addrs: tuple[str, ...] | None = None
    join_token: str | None = None
    availability: str | None = None


class UnlockRequest(Spec, frozen=True, kw_only=True):
    unlock_key: str | None = None
