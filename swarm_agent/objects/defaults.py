"""Swarm's defaults (behaviour.md 4), and specs with every default filled in.

Controllers read a spec through these functions and never write ``or 1`` themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from swarm_agent.objects.specs import (
    ClusterSpec,
    ContainerSpec,
    DNSConfig,
    EndpointSpec,
    Limits,
    Placement,
    PortConfig,
    Reservations,
    Resources,
    RestartPolicy,
    ServiceSpec,
    TaskTemplate,
    UpdateConfig,
)

SECOND = 1_000_000_000
STOP_GRACE = 10 * SECOND
HEARTBEAT_PERIOD = 5 * SECOND
NODE_CERT_EXPIRY = 2160 * 3600 * SECOND
TASK_HISTORY_LIMIT = 5
SNAPSHOT_INTERVAL = 10_000
SLOW_FOLLOWER_ENTRIES = 500
ELECTION_TICK = 10
HEARTBEAT_TICK = 1


class RestartSettings(NamedTuple):
    condition: str
    delay: int
    max_attempts: int
    window: int


class Update(NamedTuple):
    parallelism: int  # 0: all at once
    delay: int
    failure_action: str
    monitor: int
    max_failure_ratio: float
    order: str


def replicas(spec: ServiceSpec) -> int:
    """How many tasks a replicated service should have."""
    mode = spec.mode.replicated
    return 1 if mode is None or mode.replicas is None else mode.replicas


def is_replicated(spec: ServiceSpec) -> bool:
    mode = spec.mode
    return mode.global_ is None and mode.replicated_job is None and mode.global_job is None


def mode(spec: ServiceSpec) -> str:
    """Docker's word: replicated, global, replicated-job or global-job."""
    given = spec.mode
    if given.global_ is not None:
        return "global"
    if given.replicated_job is not None:
        return "replicated-job"
    return "replicated" if given.global_job is None else "global-job"


def is_job(spec: ServiceSpec) -> bool:
    return spec.mode.replicated_job is not None or spec.mode.global_job is not None


def is_global(spec: ServiceSpec) -> bool:
    """Whether it runs once on every node, as a service or as a job."""
    return spec.mode.global_ is not None or spec.mode.global_job is not None


class Job(NamedTuple):
    max_concurrent: int
    total: int


def job(spec: ServiceSpec) -> Job:
    """Of a replicated job."""
    given = spec.mode.replicated_job
    concurrent = 1 if given is None or given.max_concurrent is None else given.max_concurrent
    return Job(
        concurrent,
        concurrent if given is None or given.total_completions is None else given.total_completions,
    )


def restart(template: TaskTemplate) -> RestartSettings:
    policy = template.restart_policy or RestartPolicy()
    return RestartSettings(
        policy.condition or "any",
        5 * SECOND if policy.delay is None else policy.delay,
        policy.max_attempts or 0,
        policy.window or 0,
    )


def update(config: UpdateConfig | None) -> Update:
    if config is None:
        return Update(1, 0, "pause", 5 * SECOND, 0.0, "stop-first")
    return Update(
        config.parallelism,
        config.delay or 0,
        config.failure_action or "pause",
        config.monitor or 5 * SECOND,
        config.max_failure_ratio,
        config.order or "stop-first",
    )


def stop_grace(container: ContainerSpec) -> int:
    return STOP_GRACE if container.stop_grace_period is None else container.stop_grace_period


def endpoint_mode(endpoint: EndpointSpec | None) -> str:
    return (endpoint and endpoint.mode) or "vip"


def protocol(port: PortConfig) -> str:
    return port.protocol or "tcp"


def publish_mode(port: PortConfig) -> str:
    return port.publish_mode or "ingress"


def container(template: TaskTemplate) -> ContainerSpec:
    return template.container_spec or ContainerSpec()


def name_servers(template: TaskTemplate) -> tuple[str, ...]:
    """Those a service states for its containers."""
    dns = container(template).dns_config
    return (dns and dns.nameservers) or ()


def constraints(template: TaskTemplate) -> tuple[str, ...]:
    return (template.placement and template.placement.constraints) or ()


def heartbeat_period(spec: ClusterSpec) -> int:
    return spec.dispatcher.heartbeat_period or HEARTBEAT_PERIOD


def history_limit(spec: ClusterSpec) -> int:
    limit = spec.orchestration.task_history_retention_limit
    return TASK_HISTORY_LIMIT if limit is None else limit


def node_cert_expiry(spec: ClusterSpec) -> int:
    return spec.ca_config.node_cert_expiry or NODE_CERT_EXPIRY


_UPDATE_SHOWN = UpdateConfig(
    parallelism=1, failure_action="pause", monitor=5 * SECOND, max_failure_ratio=0.0, order="stop-first"
)


def with_defaults(spec: ServiceSpec) -> ServiceSpec:
    """What ``insertDefaults=true`` shows."""
    replace = msgspec.structs.replace
    template = spec.task_template
    if template.container_spec is not None:
        shown = template.container_spec
        shown = replace(
            shown,
            stop_grace_period=stop_grace(shown),
            dns_config=shown.dns_config or DNSConfig(),
        )
        template = replace(template, container_spec=shown)
    resources = template.resources or Resources()
    policy = restart(template)
    template = replace(
        template,
        resources=replace(
            resources,
            limits=resources.limits or Limits(),
            reservations=resources.reservations or Reservations(),
        ),
        restart_policy=RestartPolicy(
            condition=policy.condition,
            delay=policy.delay,
            max_attempts=policy.max_attempts,
            window=template.restart_policy.window if template.restart_policy else None,
        ),
        placement=template.placement or Placement(),
    )
    endpoint = spec.endpoint_spec or EndpointSpec()
    return replace(
        spec,
        task_template=template,
        update_config=spec.update_config or _UPDATE_SHOWN,
        rollback_config=spec.rollback_config or _UPDATE_SHOWN,
        endpoint_spec=replace(endpoint, mode=endpoint_mode(endpoint)),
    )


def cluster_defaults(spec: ClusterSpec) -> ClusterSpec:
    """Fill a cluster spec as the server does on init and update: zero means default."""
    replace = msgspec.structs.replace
    raft = spec.raft
    return replace(
        spec,
        name=spec.name or "default",
        orchestration=replace(spec.orchestration, task_history_retention_limit=history_limit(spec)),
        raft=replace(
            raft,
            snapshot_interval=raft.snapshot_interval or SNAPSHOT_INTERVAL,
            keep_old_snapshots=raft.keep_old_snapshots or 0,
            log_entries_for_slow_followers=raft.log_entries_for_slow_followers or SLOW_FOLLOWER_ENTRIES,
            election_tick=raft.election_tick or ELECTION_TICK,
            heartbeat_tick=raft.heartbeat_tick or HEARTBEAT_TICK,
        ),
        dispatcher=replace(spec.dispatcher, heartbeat_period=heartbeat_period(spec)),
        ca_config=replace(spec.ca_config, node_cert_expiry=node_cert_expiry(spec)),
    )
