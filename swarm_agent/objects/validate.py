"""Checks a submitted document must pass before it becomes a write, with Docker's texts (behaviour.md 5).

Only what can be said of a document alone is said here. Whether a name is free or a port taken is asked of the store by
the API. What Docker knows and this version cannot honour is refused by name in :func:`refuse_unsupported`.
"""

from __future__ import annotations

import ipaddress
import re

from swarm_agent.objects import contents, defaults, templates
from swarm_agent.objects.constraints import parse_constraint
from swarm_agent.objects.enums import (
    AVAILABILITIES,
    ENDPOINT_MODES,
    FAILURE_ACTIONS,
    MOUNT_TYPES,
    PROTOCOLS,
    PUBLISH_MODES,
    RESTART_CONDITIONS,
    ROLES,
    UPDATE_ORDERS,
)
from swarm_agent.objects.errors import InvalidSpec, Unimplemented, UserError
from swarm_agent.objects.images import is_image_id, parse_image
from swarm_agent.objects.options import PREFIX, options
from swarm_agent.objects.specs import (
    ClusterSpec,
    ContainerSpec,
    EndpointSpec,
    GenericResource,
    Healthcheck,
    NetworkCreate,
    NodeSpec,
    PortConfig,
    RestartPolicy,
    ServiceSpec,
    TaskTemplate,
    UpdateConfig,
)
from swarm_agent.objects.timetable import Timetable

_NAME = re.compile(r"[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*")
_SPREAD = re.compile(r"(?i:(node|engine)\.labels\.).+|(?i:node\.(id|hostname|platform\.os|platform\.arch))")
_MIN_MEMORY = 4 * 1024 * 1024
_MIN_NANO_CPUS = 1_000_000
_MILLISECOND = 1_000_000
_LONGEST = (1 << 63) - 1  # nanoseconds
_HOUR = 3600 * defaults.SECOND
_DRIVERS = ("overlay", "")
PREDEFINED_NETWORKS = ("host", "bridge", "none")  # of every engine; a service may name one


class BadWord(UserError):
    """A plain-text refusal Docker's HTTP layer makes, without the gRPC prefix."""

    code = ""


def dns_name(name: str | None) -> None:
    if not name:
        raise InvalidSpec("meta: name must be provided", "Name")
    if not _NAME.fullmatch(name):
        raise InvalidSpec("name must be valid as a DNS name component", "Name")
    if len(name) > 63:
        raise InvalidSpec("name must be 63 characters or fewer", "Name")


def service(spec: ServiceSpec) -> None:
    """Raises InvalidSpec, BadWord or Unimplemented; returns when the spec may be stored."""
    modes = [
        m
        for m in (spec.mode.replicated, spec.mode.global_, spec.mode.replicated_job, spec.mode.global_job)
        if m
    ]
    if len(modes) > 1:
        raise BadWord("must specify only one service mode")
    dns_name(spec.name)
    durations(spec)
    task(spec.task_template)
    templates.check(defaults.container(spec.task_template), spec.name or "", spec.labels)
    for config in (spec.update_config, spec.rollback_config):
        update_config(config)
    endpoint(spec.endpoint_spec)
    mode(spec)
    asked(spec)
    refuse_unsupported(spec)


def durations(spec: ServiceSpec) -> None:
    """None is longer than Go's: times are counted on from now, and have to fit into the log."""
    ctr = defaults.container(spec.task_template)
    policy = spec.task_template.restart_policy or RestartPolicy()
    update, rollback = (c or UpdateConfig() for c in (spec.update_config, spec.rollback_config))
    given = (
        ("TaskTemplate.RestartPolicy.Delay", policy.delay),
        ("TaskTemplate.RestartPolicy.Window", policy.window),
        ("TaskTemplate.ContainerSpec.StopGracePeriod", ctr.stop_grace_period),
        ("UpdateConfig.Delay", update.delay),
        ("UpdateConfig.Monitor", update.monitor),
        ("RollbackConfig.Delay", rollback.delay),
        ("RollbackConfig.Monitor", rollback.monitor),
    )
    for path, value in given:
        if value is not None and value > _LONGEST:
            raise InvalidSpec(f"{path}: {value} ns is longer than 292 years", path)


def mode(spec: ServiceSpec) -> None:
    if defaults.replicas(spec) < 0:
        raise InvalidSpec("Number of replicas must be non-negative", "Mode.Replicated.Replicas")
    if not defaults.is_job(spec):
        return
    wanted = defaults.job(spec)
    if wanted.max_concurrent < 0:
        raise InvalidSpec("Maximum concurrent jobs must not be negative", "Mode.ReplicatedJob.MaxConcurrent")
    if wanted.total < 0:
        raise InvalidSpec(
            "Number of total completions must not be negative", "Mode.ReplicatedJob.TotalCompletions"
        )
    if spec.update_config is not None:
        raise InvalidSpec("Jobs may not have an update config", "UpdateConfig")


def asked(spec: ServiceSpec) -> None:
    """What labels of our prefix ask for, against the rest of the spec."""
    wanted = options(spec.labels)
    if wanted.schedule is not None:
        if not defaults.is_job(spec):
            raise _at_odds("schedule", "only jobs run by a timetable (--mode replicated-job or global-job)")
        Timetable.parse(wanted.schedule.cron, wanted.schedule.timezone)
    if wanted.singleton and (defaults.mode(spec) != "replicated" or defaults.replicas(spec) > 1):
        raise _at_odds("singleton", "a strict singleton is a replicated service of one replica")
    orders = {c.order for c in (spec.update_config, spec.rollback_config) if c is not None}
    if wanted.singleton and "start-first" in orders:
        raise _at_odds("singleton", "a strict singleton cannot be updated start-first: two tasks would run")
    for dependency in wanted.depends_on:
        if dependency.service == spec.name:
            raise _at_odds("depends-on", "a service cannot wait for itself")
    replicated, job, wide = (
        defaults.mode(spec) == "replicated",
        defaults.is_job(spec),
        defaults.is_global(spec),
    )
    means_nothing: tuple[tuple[str, bool, str], ...] = (
        ("update.progress-deadline", job, "a job is not updated, it runs again"),
        ("rebalance", not replicated, "only replicated services are evened out"),
        ("min-healthy", not replicated, "only tasks of replicated services are moved"),
        ("placement.strategy", wide, "each node has its task"),
        ("placement.affinity", wide, "each node has its task; use a constraint"),
        ("volume-affinity", wide, "each node has its task"),
    )
    for key, present, why in means_nothing:
        if present and f"{PREFIX}{key}" in spec.labels:
            raise _at_odds(key, f"it means nothing in a {defaults.mode(spec)} service: {why}")
    ctr = defaults.container(spec.task_template)
    named = {f"secret/{r.secret_name}" for r in ctr.secrets or ()}
    named |= {f"config/{r.config_name}" for r in ctr.configs or ()}
    for name, _ in wanted.versions:
        if name not in named:
            raise _at_odds(name.replace("/", "."), f"the service uses no {name.replace('/', ' ')}")


def _at_odds(key: str, why: str) -> InvalidSpec:
    return InvalidSpec(f"label {PREFIX}{key}: {why}", f"Labels['{PREFIX}{key}']")


def needs(spec: ServiceSpec) -> str:
    """What of a spec only a cluster of level ``features.ORCHESTRATION`` can hold; "" when nothing."""
    template = spec.task_template
    ctr = defaults.container(template)
    placement = template.placement
    reservations = template.resources and template.resources.reservations
    wants: tuple[tuple[str, object], ...] = (
        ("a global service", spec.mode.global_),
        ("a job", defaults.is_job(spec)),
        ("an automatic rollback", spec.update_config and spec.update_config.failure_action == "rollback"),
        ("a spread preference", placement and placement.preferences),
        ("a generic resource", reservations and reservations.generic_resources),
        ("a secret", ctr.secrets),
        ("a config", ctr.configs),
        ("a template", templates.has_template(ctr)),
        (f"a label {PREFIX}...", any(k.startswith(PREFIX) for k in spec.labels)),
    )
    return next((what for what, present in wants if present), "")


def task(template: TaskTemplate) -> None:
    if template.container_spec is None:
        raise BadWord("mismatched Runtime and *Spec fields")
    resources(template)
    policy = template.restart_policy
    if policy is not None:
        if policy.condition and policy.condition not in RESTART_CONDITIONS:
            raise BadWord(f'invalid RestartCondition: "{policy.condition}"')
        for field, value in (("restart-delay", policy.delay), ("restart-window", policy.window)):
            if value is not None and value < 0:
                raise InvalidSpec(f"TaskSpec: {field} cannot be negative", "TaskTemplate.RestartPolicy")
    container(template.container_spec)
    for text in defaults.constraints(template):
        parse_constraint(text)
    placement(template)


def placement(template: TaskTemplate) -> None:
    wanted = template.placement
    if wanted is None:
        return
    for i, preference in enumerate(wanted.preferences or ()):
        over = (preference.spread and preference.spread.spread_descriptor) or ""
        if not _SPREAD.fullmatch(over):
            raise InvalidSpec(
                f"TaskTemplate.Placement.Preferences[{i}]: cannot spread over {over!r}: name node.labels.KEY, engine.labels.KEY, "
                "node.id, node.hostname, node.platform.os or node.platform.arch",
                f"TaskTemplate.Placement.Preferences[{i}]",
            )
    if (wanted.max_replicas or 0) < 0:
        raise InvalidSpec(
            "TaskTemplate.Placement.MaxReplicas cannot be negative: leave it out, or 0, for no limit",
            "TaskTemplate.Placement.MaxReplicas",
        )


def resources(template: TaskTemplate) -> None:
    wanted = template.resources
    if wanted is None:
        return
    if wanted.swap_bytes is not None and not (wanted.limits and wanted.limits.memory_bytes):
        raise InvalidSpec(
            "a swap limit needs a memory limit beside it (--limit-memory)", "TaskTemplate.Resources.SwapBytes"
        )
    if (wanted.swap_bytes or 0) < -1:
        raise InvalidSpec(
            f"invalid swap value {wanted.swap_bytes}: -1 is without limit", "TaskTemplate.Resources.SwapBytes"
        )
    if wanted.memory_swappiness is not None and not -1 <= wanted.memory_swappiness <= 100:
        raise InvalidSpec(
            f"invalid memory swappiness {wanted.memory_swappiness}: 0 to 100, or -1 for the engine's own",
            "TaskTemplate.Resources.MemorySwappiness",
        )
    for part in (wanted.limits, wanted.reservations):
        if part is None:
            continue
        if part.nano_cpus and part.nano_cpus < _MIN_NANO_CPUS:
            cores = part.nano_cpus / 1e9
            raise InvalidSpec(
                f"invalid cpu value {cores:g}: Must be at least 0.001", "TaskTemplate.Resources"
            )
        if part.memory_bytes and part.memory_bytes < _MIN_MEMORY:
            raise InvalidSpec(
                f"invalid memory value {part.memory_bytes}: Must be at least 4MiB", "TaskTemplate.Resources"
            )
    for i, asked_for in enumerate((wanted.reservations and wanted.reservations.generic_resources) or ()):
        _generic(asked_for, f"TaskTemplate.Resources.Reservations.GenericResources[{i}]")


def _generic(resource: GenericResource, path: str) -> None:
    """A request says how many of a kind; which ones a task gets is the scheduler's choice (behaviour.md 29)."""
    if resource.named_resource_spec:
        raise InvalidSpec(
            f"{path}.NamedResourceSpec: a service asks for a number of a kind (kind=2), not for one by its name",
            path,
        )
    wanted = resource.discrete_resource_spec
    if wanted is None or not wanted.kind:
        raise InvalidSpec(f"{path}.DiscreteResourceSpec: a generic resource needs a Kind", path)
    if (wanted.value or 0) < 1:
        raise InvalidSpec(f"{path}.DiscreteResourceSpec.Value: ask for 1 {wanted.kind} or more", path)


def container(spec: ContainerSpec) -> None:
    path = "TaskTemplate.ContainerSpec"
    if not spec.image:
        raise InvalidSpec("ContainerSpec: image reference must be provided", f"{path}.Image")
    if parse_image(spec.image) is None and not is_image_id(spec.image):
        raise InvalidSpec(f'ContainerSpec: "{spec.image}" is not a valid repository/tag', f"{path}.Image")
    targets: set[str] = set()
    for i, mount in enumerate(spec.mounts or ()):
        if mount.type and mount.type not in MOUNT_TYPES:
            raise BadWord(f'invalid MountType: "{mount.type}"')
        if mount.target in targets:
            raise InvalidSpec(f"ContainerSpec: duplicate mount point: {mount.target}", f"{path}.Mounts[{i}]")
        targets.add(mount.target or "")
    contents.check_references(spec)
    _privileges(spec, path)
    if spec.healthcheck is not None:
        healthcheck(spec.healthcheck)


def _privileges(spec: ContainerSpec, path: str) -> None:
    given = spec.privileges
    if given is None:
        return
    for word, asked_for, modes in (
        ("Seccomp", given.seccomp, ("default", "unconfined", "custom")),
        ("AppArmor", given.app_armor, ("default", "disabled")),
    ):
        mode = (asked_for or {}).get("Mode") or "default"
        if mode not in modes:
            raise BadWord(
                f'invalid {word} mode: "{mode}" ({path}.Privileges.{word}.Mode: {", ".join(modes)})'
            )
        if mode == "custom":
            contents.decoded(str((asked_for or {}).get("Profile") or ""))


def healthcheck(check: Healthcheck) -> None:
    for word, value in (
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ):
        if value and value < _MILLISECOND:
            raise InvalidSpec(f"ContainerSpec: {word} in HealthConfig cannot be less than 1ms")
    if check.retries is not None and check.retries < 0:
        raise InvalidSpec("ContainerSpec: Retries in HealthConfig cannot be negative")


def update_config(config: UpdateConfig | None) -> None:
    if config is None:
        return
    if config.failure_action and config.failure_action not in FAILURE_ACTIONS:
        raise BadWord(f"unrecognized update failure action {config.failure_action}")
    if config.order and config.order not in UPDATE_ORDERS:
        raise BadWord(f"unrecognized update order {config.order}")
    for field, value in (("update-delay", config.delay), ("update-monitor", config.monitor)):
        if value is not None and value < 0:
            raise InvalidSpec(f"TaskSpec: {field} cannot be negative")
    if config.parallelism < 0:
        raise InvalidSpec("TaskSpec: update-parallelism cannot be negative")
    if not 0 <= config.max_failure_ratio <= 1:
        raise InvalidSpec("TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1")


def endpoint(spec: EndpointSpec | None) -> None:
    if spec is None:
        return
    if spec.mode and spec.mode not in ENDPOINT_MODES:
        raise BadWord(f'invalid resolution mode: "{spec.mode}"')
    seen: set[tuple[str, int]] = set()
    for i, port in enumerate(spec.ports or ()):
        _port(port, f"EndpointSpec.Ports[{i}]")
        key = (defaults.protocol(port), port.published_port or 0)
        if key[1] and key in seen:
            raise InvalidSpec("EndpointSpec: duplicate published ports provided", f"EndpointSpec.Ports[{i}]")
        seen.add(key)
        if spec.mode == "dnsrr" and defaults.publish_mode(port) == "ingress":
            raise InvalidSpec("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")


def _port(port: PortConfig, path: str) -> None:
    if port.protocol and port.protocol not in PROTOCOLS:
        raise BadWord(f'invalid protocol: "{port.protocol}" ({path}.Protocol: tcp, udp or sctp)')
    if port.publish_mode and port.publish_mode not in PUBLISH_MODES:
        raise BadWord(f'invalid publish mode: "{port.publish_mode}" ({path}.PublishMode: ingress or host)')
    for word, value in (("TargetPort", port.target_port), ("PublishedPort", port.published_port)):
        if value is not None and not 0 <= value <= 65535:
            raise InvalidSpec(
                f"EndpointSpec: {word} {value} is not in the range 0 to 65535", f"{path}.{word}"
            )
    if not port.target_port:
        raise InvalidSpec("EndpointSpec: a published port needs a target port", f"{path}.TargetPort")


def refuse_unsupported(spec: ServiceSpec) -> None:
    """Refuse by name what Docker knows and this version would otherwise ignore."""
    template = spec.task_template
    ctr = defaults.container(template)
    endpoint_spec = spec.endpoint_spec
    ports = (endpoint_spec and endpoint_spec.ports) or ()
    privileges = ctr.privileges
    refused: tuple[tuple[str, object], ...] = (
        ("endpoint mode dnsrr (--endpoint-mode dnsrr)", defaults.endpoint_mode(endpoint_spec) == "dnsrr"),
        ("SCTP ports", any(p.protocol == "sctp" for p in ports)),
        ("credential specs (--credential-spec)", privileges and privileges.credential_spec),
        ("isolation (--isolation)", ctr.isolation not in (None, "", "default")),
        ("named pipe mounts", any(m.type == "npipe" for m in ctr.mounts or ())),
        ("cluster volumes", any(m.type == "cluster" for m in ctr.mounts or ())),
        ("plugin services", template.plugin_spec),
        ("network attachment tasks", template.network_attachment_spec),
    )
    for what, present in refused:
        if present:
            raise Unimplemented(f"not supported by this version of swarm-agent: {what}")


def node(spec: NodeSpec) -> None:
    if spec.role not in ROLES:
        raise BadWord(f'invalid Role: "{spec.role}"')
    if spec.availability not in AVAILABILITIES:
        raise BadWord(f'invalid Availability: "{spec.availability}"')


def cluster(spec: ClusterSpec) -> None:
    if spec.name not in (None, "", "default"):
        raise BadWord('swarm spec must be named "default"')
    if spec.ca_config.node_cert_expiry and spec.ca_config.node_cert_expiry < _HOUR:
        raise InvalidSpec("minimum certificate expiry time is: 1h0m0s")
    if spec.dispatcher.heartbeat_period is not None and spec.dispatcher.heartbeat_period < 0:
        raise InvalidSpec("heartbeat time period cannot be a negative duration")
    if 0 < (spec.dispatcher.heartbeat_period or 0) < defaults.SECOND:
        raise InvalidSpec("heartbeat time period cannot be below 1s: nodes could not keep up and would flap")
    raft = spec.raft
    for name, wanted, usual in (
        ("ElectionTick", raft.election_tick, defaults.ELECTION_TICK),
        ("HeartbeatTick", raft.heartbeat_tick, defaults.HEARTBEAT_TICK),
    ):
        if wanted not in (None, 0, usual):
            raise Unimplemented(
                f"Raft.{name} {wanted} is not supported by this version of swarm-agent: `timing` in each manager's agent.toml "
                f"(lan or wan) says how patient managers are; leave it at {usual}"
            )
    for name, count in (
        ("SnapshotInterval", raft.snapshot_interval),
        ("KeepOldSnapshots", raft.keep_old_snapshots),
        ("LogEntriesForSlowFollowers", raft.log_entries_for_slow_followers),
    ):
        if (count or 0) < 0:
            raise InvalidSpec(f"Raft.{name} {count} is negative", f"Raft.{name}")
    ca = spec.ca_config
    if ca.external_cas:
        raise Unimplemented("external CAs (--external-ca) are not supported by this version of swarm-agent")
    if ca.force_rotate or ca.signing_ca_cert or ca.signing_ca_key:
        raise Unimplemented(
            "root CA rotation (docker swarm ca --rotate) is not supported by this version of swarm-agent"
        )


def network(spec: NetworkCreate) -> None:
    dns_name(spec.name)
    if spec.driver not in (None, *_DRIVERS):
        raise InvalidSpec(f"plugin {spec.driver} not supported", "Driver")
    if spec.attachable:
        raise Unimplemented(
            "attachable networks (--attachable) are not supported by this version of swarm-agent"
        )
    if spec.internal:
        raise Unimplemented("internal networks (--internal) are not supported by this version of swarm-agent")
    if spec.enable_ipv6:
        raise Unimplemented("IPv6 (--ipv6) is not supported by this version of swarm-agent")
    if spec.ingress:
        raise Unimplemented(
            "a custom ingress network (--ingress) is not supported: ingress is routed between hosts"
        )
    if spec.config_only or (spec.config_from or {}).get("Network"):
        raise Unimplemented("config-only networks are not supported for the overlay driver")
    for key in spec.options or {}:
        if key == "encrypted":
            raise Unimplemented(
                "overlay encryption (--opt encrypted) is not supported by this version of swarm-agent"
            )
        if key != "com.docker.network.driver.mtu":
            raise Unimplemented(f"network option {key} is not supported by this version of swarm-agent")
    ipam(spec)


def ipam(spec: NetworkCreate) -> None:
    if spec.ipam is None:
        return
    if spec.ipam.driver not in (None, "", "default"):
        raise InvalidSpec(f"plugin {spec.ipam.driver} not supported", "IPAM.Driver")
    configs = spec.ipam.config or ()
    if len(configs) > 1:
        raise Unimplemented(
            "more than one subnet in a network is not supported by this version of swarm-agent"
        )
    for config in configs:
        try:
            subnet = ipaddress.IPv4Network(config.subnet or "")
        except ValueError as err:
            raise InvalidSpec(
                f"ipam configuration: invalid subnet {config.subnet}", "IPAM.Config[0].Subnet"
            ) from err
        if subnet.prefixlen > 29:
            raise InvalidSpec(
                f"ipam configuration: subnet {subnet} is smaller than /29", "IPAM.Config[0].Subnet"
            )
        if config.ip_range or config.auxiliary_addresses:
            raise Unimplemented(
                "--ip-range and --aux-address are not supported by this version of swarm-agent"
            )
        if config.gateway:
            try:
                inside = ipaddress.IPv4Address(config.gateway) in subnet
            except ValueError as err:
                raise InvalidSpec(f"ipam configuration: invalid gateway {config.gateway}") from err
            if not inside:
                raise InvalidSpec(
                    f"ipam configuration: subnet {subnet} does not contain gateway {config.gateway}"
                )
