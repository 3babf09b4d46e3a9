"""From a task to the body of the engine's ``POST /containers/create``. Pure."""

from __future__ import annotations

from typing import Any

from swarm_agent.agent.content_store import FileMount
from swarm_agent.agent.resources import devices, environment
from swarm_agent.network import resolvconf
from swarm_agent.network.model import ContainerNetwork
from swarm_agent.objects import defaults
from swarm_agent.objects.contents import decoded
from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.records import Revision, Task
from swarm_agent.objects.specs import ContainerSpec, Healthcheck, Mount, Resources

LABEL_NODE = "com.docker.swarm.node.id"
LABEL_TASK = "com.docker.swarm.task.id"
LABEL_CLUSTER = "swarm-agent.cluster.id"
"""Ours alone: by it a container is known as this swarm's, whatever node id this host had when it was made."""


class BadMount(SwarmError):
    """A mount only the host can judge; Docker's text."""


def container_name(task: Task) -> str:
    return task.name


def create_body(
    task: Task,
    revision: Revision,
    network: ContainerNetwork,
    files: tuple[FileMount, ...] = (),
    cluster_id: str = "",
) -> dict[str, Any]:
    """The create call of a task's container: Docker's names and labels, engine restarts off. ``files``: its secrets and configs.

    Raises:
        BadMount: a mount that cannot be.
    """
    spec = defaults.container(revision.template)
    body: dict[str, Any] = {
        "Image": spec.image,
        "Labels": {**(spec.labels or {}), **_swarm_labels(task, cluster_id)},
        "HostConfig": _host_config(task, spec, revision, network),
        "Tty": bool(spec.tty),
        "OpenStdin": bool(spec.open_stdin),
    }
    optional = {
        "Cmd": spec.args,
        "Entrypoint": spec.command,
        "Env": spec.env,
        "Hostname": spec.hostname,
        "WorkingDir": spec.dir,
        "User": spec.user,
        "StopSignal": spec.stop_signal,
        "Healthcheck": _healthcheck(spec.healthcheck),
    }
    body.update({key: value for key, value in optional.items() if value})
    body["HostConfig"]["Mounts"] += [
        {"Type": "bind", "Source": f.source, "Target": f.target, "ReadOnly": True} for f in files
    ]
    if network.resolv_conf and resolvconf.TARGET not in {m["Target"] for m in body["HostConfig"]["Mounts"]}:
        mount = {"Type": "bind", "Source": network.resolv_conf, "Target": resolvconf.TARGET}
        body["HostConfig"]["Mounts"].append({**mount, "ReadOnly": bool(spec.read_only)})
    _give(body, task)
    if network.first is not None:
        body["NetworkingConfig"] = {"EndpointsConfig": network.first}
    return body


def _give(body: dict[str, Any], task: Task) -> None:
    """What the task got of its node's generic resources."""
    if task.generic:
        body["Env"] = [*body.get("Env", ()), *environment(task.generic)]
        if paths := devices(task.generic):
            body["HostConfig"]["Devices"] = paths


def _swarm_labels(task: Task, cluster_id: str) -> dict[str, str]:
    return {
        "com.docker.swarm.task": "",
        LABEL_TASK: task.id,
        "com.docker.swarm.task.name": task.name,
        LABEL_NODE: task.node_id,
        "com.docker.swarm.service.id": task.service_id,
        "com.docker.swarm.service.name": task.service_name,
        LABEL_CLUSTER: cluster_id,
    }


def _host_config(
    task: Task, spec: ContainerSpec, revision: Revision, network: ContainerNetwork
) -> dict[str, Any]:
    dns = spec.dns_config
    log = revision.template.log_driver
    privileges = spec.privileges
    config: dict[str, Any] = {
        "NetworkMode": network.network_mode,
        "RestartPolicy": {"Name": "no"},
        "ReadonlyRootfs": bool(spec.read_only),
        "Mounts": [_mount(m) for m in spec.mounts or ()],
        "ExtraHosts": _extra_hosts(spec.hosts or ()),
        **_resources(revision.template.resources),
    }
    optional = {
        # on an overlay ours is asked, or the names of other services would be lost; it asks those that are wanted
        "Dns": (network.dns if task.networks else ())
        or defaults.name_servers(revision.template)
        or network.dns,
        "DnsSearch": dns and dns.search,
        "DnsOptions": network.dns_options or (dns and dns.options),
        "Sysctls": spec.sysctls,
        "CapAdd": spec.capability_add,
        "CapDrop": spec.capability_drop,
        "GroupAdd": spec.groups,
        "Ulimits": [{"Name": u.name, "Soft": u.soft or 0, "Hard": u.hard or 0} for u in spec.ulimits or ()],
        "OomScoreAdj": spec.oom_score_adj,
        "LogConfig": {"Type": log.name or "", "Config": log.options or {}} if log is not None else None,
        "SecurityOpt": _security(spec) if privileges is not None else None,
    }
    config.update({key: value for key, value in optional.items() if value})
    if spec.init is not None:  # a no is not an absent yes: the engine's own default may be yes
        config["Init"] = spec.init
    return config


def _resources(wanted: Resources | None) -> dict[str, Any]:
    if wanted is None:
        return {}
    out: dict[str, Any] = {}
    if wanted.limits is not None:
        out["NanoCpus"] = wanted.limits.nano_cpus or 0
        out["Memory"] = wanted.limits.memory_bytes or 0
        if wanted.limits.pids:
            out["PidsLimit"] = wanted.limits.pids
        if wanted.swap_bytes is not None and out["Memory"]:
            out["MemorySwap"] = -1 if wanted.swap_bytes < 0 else out["Memory"] + wanted.swap_bytes
    if wanted.memory_swappiness is not None and wanted.memory_swappiness >= 0:
        out["MemorySwappiness"] = wanted.memory_swappiness
    if wanted.reservations is not None and wanted.reservations.memory_bytes:
        out["MemoryReservation"] = wanted.reservations.memory_bytes
    return out


def _healthcheck(check: Healthcheck | None) -> dict[str, Any] | None:
    if check is None:
        return None
    out = {
        "Test": check.test,
        "Interval": check.interval,
        "Timeout": check.timeout,
        "StartPeriod": check.start_period,
        "StartInterval": check.start_interval,
        "Retries": check.retries,
    }
    return {key: value for key, value in out.items() if value is not None}


def _extra_hosts(hosts: tuple[str, ...]) -> list[str]:
    """``IP name alias..`` becomes the engine's ``name:IP``, one each."""
    out = []
    for line in hosts:
        address, *names = line.split()
        out += [f"{name}:{address}" for name in names]
    return out


def _security(spec: ContainerSpec) -> list[str]:
    out: list[str] = []
    privileges = spec.privileges
    if privileges is None:
        return out
    selinux = privileges.selinux_context
    if selinux is not None:
        if selinux.disable:
            out.append("label=disable")
        for word in ("user", "role", "type", "level"):
            value = getattr(selinux, word)
            if value:
                out.append(f"label={word}:{value}")
    if privileges.no_new_privileges:
        out.append("no-new-privileges")
    if (privileges.app_armor or {}).get("Mode") == "disabled":
        out.append("apparmor=unconfined")
    seccomp = privileges.seccomp or {}
    if seccomp.get("Mode") == "unconfined":
        out.append("seccomp=unconfined")
    elif seccomp.get("Mode") == "custom":
        profile = decoded(str(seccomp.get("Profile") or "")).decode(errors="replace")
        out.append(f"seccomp={profile}")
    return out


def needed_api(revision: Revision) -> tuple[tuple[int, int], str]:
    """The oldest API of an engine that does all a container asks for, and what asks for it; (0, 0) when any does."""
    ctr = defaults.container(revision.template)
    wants: list[tuple[tuple[int, int], str]] = [((0, 0), "")]
    if ctr.healthcheck is not None and ctr.healthcheck.start_interval:
        wants.append(((1, 44), "a health check's start interval (--health-start-interval)"))
    for mount in ctr.mounts or ():
        bind = mount.bind_options
        if bind is not None and bind.create_mountpoint:
            wants.append(((1, 42), f"making the source of mount {mount.target}"))
        if bind is not None and (bind.read_only_non_recursive or bind.read_only_force_recursive):
            wants.append(((1, 44), f"read-only mounts below mount {mount.target} (bind-recursive)"))
        if mount.volume_options is not None and mount.volume_options.subpath:
            wants.append(((1, 45), f"the subpath of mount {mount.target} (volume-subpath)"))
        if mount.tmpfs_options is not None and mount.tmpfs_options.options:
            wants.append(((1, 46), f"the options of tmpfs {mount.target}"))
    return max(wants)


def _mount(mount: Mount) -> dict[str, Any]:
    kind = mount.type or "bind"
    source, target = mount.source or "", mount.target or ""
    if not target.startswith("/"):
        raise BadMount(f"invalid mount target, must be an absolute path: {target}")
    if kind == "bind" and not source.startswith("/"):
        raise BadMount(f"invalid bind mount source, must be an absolute path: {source}")
    if kind == "volume" and source.startswith("/"):
        raise BadMount(f"invalid volume mount source, must not be an absolute path: {source}")
    if kind == "tmpfs" and source:
        raise BadMount("invalid tmpfs source, source must be empty")
    out: dict[str, Any] = {
        "Type": kind,
        "Source": source,
        "Target": target,
        "ReadOnly": bool(mount.read_only),
    }
    if mount.consistency:
        out["Consistency"] = mount.consistency
    if mount.bind_options is not None:
        bind = mount.bind_options
        out["BindOptions"] = {
            "Propagation": bind.propagation or "",
            "NonRecursive": bool(bind.non_recursive),
        }
        later = {
            "CreateMountpoint": bind.create_mountpoint,
            "ReadOnlyNonRecursive": bind.read_only_non_recursive,
            "ReadOnlyForceRecursive": bind.read_only_force_recursive,
        }
        out["BindOptions"].update({key: value for key, value in later.items() if value})
    if mount.volume_options is not None:
        driver = mount.volume_options.driver_config
        out["VolumeOptions"] = {
            "NoCopy": bool(mount.volume_options.no_copy),
            "Labels": mount.volume_options.labels or {},
        }
        if driver is not None:
            out["VolumeOptions"]["DriverConfig"] = {
                "Name": driver.name or "",
                "Options": driver.options or {},
            }
        if mount.volume_options.subpath:
            out["VolumeOptions"]["Subpath"] = mount.volume_options.subpath
    if mount.tmpfs_options is not None:
        out["TmpfsOptions"] = {
            "SizeBytes": mount.tmpfs_options.size_bytes or 0,
            "Mode": mount.tmpfs_options.mode or 0,
        }
        if mount.tmpfs_options.options:
            out["TmpfsOptions"]["Options"] = mount.tmpfs_options.options
    return out
