# SPDX-License-Identifier: Apache-2.0
"""PRIVATE to this collection: the options of C(swarm_service) and what they mean in Docker's ServiceSpec."""

from __future__ import annotations

import re

from ansible_collections.swarm.cluster.plugins.module_utils._compare import Assignment, as_set, plain
from ansible_collections.swarm.cluster.plugins.module_utils._units import (
    Invalid,
    nano_cpus,
    nanoseconds,
    size,
    text,
    text_map,
)

_UPDATE = {
    "parallelism": {"type": "int"},
    "delay": {"type": "str"},
    "failure_action": {"type": "str", "choices": ["pause", "continue", "rollback"]},
    "monitor": {"type": "str"},
    "max_failure_ratio": {"type": "float"},
    "order": {"type": "str", "choices": ["stop-first", "start-first"]},
}
_ROLLBACK = dict(_UPDATE, failure_action={"type": "str", "choices": ["pause", "continue"]})
_RESOURCES = {"cpus": {"type": "float"}, "memory": {"type": "str"}}

SPEC = {
    "image": {"type": "str"},
    "command": {"type": "list", "elements": "str"},
    "args": {"type": "list", "elements": "str"},
    "env": {"type": "dict"},
    "labels": {"type": "dict"},
    "container_labels": {"type": "dict"},
    "mode": {"type": "str", "choices": ["replicated", "global"]},
    "replicas": {"type": "int"},
    "publish": {
        "type": "list",
        "elements": "dict",
        "options": {
            "published": {"type": "int"},
            "target": {"type": "int", "required": True},
            "protocol": {"type": "str", "choices": ["tcp", "udp", "sctp"], "default": "tcp"},
            "mode": {"type": "str", "choices": ["ingress", "host"], "default": "ingress"},
        },
    },
    "endpoint_mode": {"type": "str", "choices": ["vip", "dnsrr"]},
    "networks": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "aliases": {"type": "list", "elements": "str", "default": []},
        },
    },
    "mounts": {
        "type": "list",
        "elements": "dict",
        "options": {
            "type": {"type": "str", "choices": ["bind", "volume", "tmpfs"], "default": "volume"},
            "source": {"type": "str"},
            "target": {"type": "path", "required": True},
            "read_only": {"type": "bool", "default": False},
            "propagation": {
                "type": "str",
                "choices": ["shared", "slave", "private", "rshared", "rslave", "rprivate"],
            },
            "tmpfs_size": {"type": "str"},
        },
    },
    "constraints": {"type": "list", "elements": "str"},
    "preferences": {"type": "list", "elements": "str"},
    "max_replicas_per_node": {"type": "int"},
    "limits": {"type": "dict", "options": dict(_RESOURCES, pids={"type": "int"})},
    "reservations": {"type": "dict", "options": _RESOURCES},
    "restart_policy": {
        "type": "dict",
        "options": {
            "condition": {"type": "str", "choices": ["none", "on-failure", "any"]},
            "delay": {"type": "str"},
            "max_attempts": {"type": "int"},
            "window": {"type": "str"},
        },
    },
    "update_config": {"type": "dict", "options": _UPDATE},
    "rollback_config": {"type": "dict", "options": _ROLLBACK},
    "healthcheck": {
        "type": "dict",
        "options": {
            "test": {"type": "list", "elements": "str"},
            "interval": {"type": "str"},
            "timeout": {"type": "str"},
            "start_period": {"type": "str"},
            "retries": {"type": "int"},
        },
    },
    "stop_grace_period": {"type": "str"},
    "stop_signal": {"type": "str"},
    "user": {"type": "str"},
    "working_dir": {"type": "path"},
    "hostname": {"type": "str"},
    "hosts": {"type": "dict"},
    "groups": {"type": "list", "elements": "str"},
    "dns": {"type": "list", "elements": "str"},
    "init": {"type": "bool"},
    "read_only": {"type": "bool"},
    "tty": {"type": "bool"},
    "cap_add": {"type": "list", "elements": "str"},
    "cap_drop": {"type": "list", "elements": "str"},
    "sysctls": {"type": "dict"},
    "log_driver": {
        "type": "dict",
        "options": {"name": {"type": "str", "required": True}, "options": {"type": "dict", "default": {}}},
    },
}

_TEMPLATE = ("TaskTemplate",)
_CONTAINER = ("TaskTemplate", "ContainerSpec")
_NAME = re.compile(r"[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*")


def check_name(name):
    if len(name) > 63 or not _NAME.fullmatch(name):
        raise Invalid(
            "name", "%r is no name for a service: use at most 63 letters, digits, - and _, beginning with a letter or digit" % name
        )


# -- normal forms


def _ports(value):
    return sorted(
        (
            p.get("PublishMode") or "ingress",
            p.get("Protocol") or "tcp",
            p.get("PublishedPort") or 0,
            p.get("TargetPort") or 0,
        )
        for p in value or ()
    )


def _networks(value):
    return sorted((n.get("Target"), sorted(n.get("Aliases") or ())) for n in value or ())


def _mounts(value):
    return sorted(
        (
            m.get("Target"),
            m.get("Type") or "volume",
            m.get("Source") or "",
            bool(m.get("ReadOnly")),
            (m.get("BindOptions") or {}).get("Propagation") or "",
            (m.get("TmpfsOptions") or {}).get("SizeBytes") or 0,
        )
        for m in value or ()
    )


def _preferences(value):
    return [(p.get("Spread") or {}).get("SpreadDescriptor") for p in value or ()]


def image_name(image):
    """Name and tag without the digest; no tag means latest."""
    name = (image or "").partition("@")[0]
    return name if ":" in name.rpartition("/")[2] else name + ":latest"


def _image(wanted):
    """Without a digest in what was stated, the digest that the image was resolved to says nothing."""
    return (lambda value: value) if "@" in wanted else image_name


# -- from options to assignments


def assignments(params, network_ids):
    """What the stated options want. ``network_ids`` maps a network's name to its id."""
    found = []

    def put(path, value, normal=None):
        found.append(Assignment(path, value, normal))

    def get(option):
        return params.get(option)

    if get("image") is not None:
        put(_CONTAINER + ("Image",), params["image"], _image(params["image"]))
    for option, key, normal in (
        ("command", "Command", plain),
        ("args", "Args", plain),
        ("groups", "Groups", plain),
        ("stop_signal", "StopSignal", plain),
        ("user", "User", plain),
        ("working_dir", "Dir", plain),
        ("hostname", "Hostname", plain),
        ("init", "Init", None),
        ("read_only", "ReadOnly", plain),
        ("tty", "TTY", plain),
        ("cap_add", "CapabilityAdd", _capabilities),
        ("cap_drop", "CapabilityDrop", _capabilities),
    ):
        if get(option) is not None:
            put(_CONTAINER + (key,), params[option], normal)
    if get("env") is not None:
        put(_CONTAINER + ("Env",), ["%s=%s" % pair for pair in sorted(text_map(params["env"], "env").items())], as_set)
    if get("labels") is not None:
        put(("Labels",), text_map(params["labels"], "labels"))
    if get("container_labels") is not None:
        put(_CONTAINER + ("Labels",), text_map(params["container_labels"], "container_labels"))
    if get("sysctls") is not None:
        put(_CONTAINER + ("Sysctls",), text_map(params["sysctls"], "sysctls"))
    if get("hosts") is not None:
        lines = ["%s %s" % (address, name) for name, address in sorted(text_map(params["hosts"], "hosts").items())]
        put(_CONTAINER + ("Hosts",), lines, as_set)
    if get("dns") is not None:
        put(_CONTAINER + ("DNSConfig", "Nameservers"), params["dns"])
    if get("stop_grace_period") is not None:
        put(_CONTAINER + ("StopGracePeriod",), nanoseconds(params["stop_grace_period"], "stop_grace_period"), _or(10 * 10**9))
    _mode(params, put)
    if get("publish") is not None:
        put(("EndpointSpec", "Ports"), [_port(p, "publish[%d]" % i) for i, p in enumerate(params["publish"])], _ports)
    if get("endpoint_mode") is not None:
        put(("EndpointSpec", "Mode"), params["endpoint_mode"], lambda value: value or "vip")
    if get("networks") is not None:
        wanted = [{"Target": network_ids[n["name"]], "Aliases": n["aliases"]} for n in params["networks"]]
        put(_TEMPLATE + ("Networks",), wanted, _networks)
    if get("mounts") is not None:
        put(_CONTAINER + ("Mounts",), [_mount(m, "mounts[%d]" % i) for i, m in enumerate(params["mounts"])], _mounts)
    if get("constraints") is not None:
        for i, constraint in enumerate(params["constraints"]):
            if not re.search(r"\S\s*(==|!=)\s*\S", constraint):
                raise Invalid("constraints[%d]" % i, "%r needs == or != between a key and a value" % constraint)
        put(_TEMPLATE + ("Placement", "Constraints"), params["constraints"], as_set)
    if get("preferences") is not None:
        wanted = [{"Spread": {"SpreadDescriptor": key}} for key in params["preferences"]]
        put(_TEMPLATE + ("Placement", "Preferences"), wanted, _preferences)
    if get("max_replicas_per_node") is not None:
        put(_TEMPLATE + ("Placement", "MaxReplicas"), _natural(params, "max_replicas_per_node"))
    _resources(params, put)
    _policies(params, put)
    if get("log_driver") is not None:
        driver = params["log_driver"]
        put(_TEMPLATE + ("LogDriver",), {"Name": driver["name"], "Options": text_map(driver["options"], "log_driver.options")}, _log)
    return found


def _log(value):
    return (value or {}).get("Name"), plain((value or {}).get("Options"))


def _capabilities(value):
    return sorted(c.upper() if c.upper().startswith(("CAP_", "ALL")) else "CAP_" + c.upper() for c in value or ())


def _natural(params, option, path=None):
    value = params[option]
    if value < 0:
        raise Invalid(path or option, "must not be negative")
    return value


def _mode(params, put):
    if params.get("mode") == "global":
        if params.get("replicas") is not None:
            raise Invalid("replicas", "a global service has one task on each node; leave replicas out")
        put(("Mode", "Global"), {}, lambda value: value is not None)
    elif params.get("replicas") is not None:
        put(("Mode", "Replicated", "Replicas"), _natural(params, "replicas"), None)


def mode_of(spec):
    mode = spec.get("Mode") or {}
    for key, name in (("Global", "global"), ("ReplicatedJob", "replicated-job"), ("GlobalJob", "global-job")):
        if mode.get(key) is not None:
            return name
    return "replicated"


def _port(port, path):
    result = {"TargetPort": _port_number(port["target"], path + ".target")}
    if port["published"] is not None:
        result["PublishedPort"] = _port_number(port["published"], path + ".published")
    return dict(result, Protocol=port["protocol"], PublishMode=port["mode"])


def _port_number(value, path):
    if not 1 <= value <= 65535:
        raise Invalid(path, "%d is no port; ports are 1 to 65535" % value)
    return value


def _mount(mount, path):
    if mount["type"] == "bind" and not (mount["source"] or "").startswith("/"):
        raise Invalid(path + ".source", "a bind mount needs the absolute path of a directory or file on the host")
    if mount["type"] == "tmpfs" and mount["source"]:
        raise Invalid(path + ".source", "a tmpfs has no source")
    result = {"Type": mount["type"], "Target": mount["target"]}
    if mount["source"]:
        result["Source"] = mount["source"]
    if mount["read_only"]:
        result["ReadOnly"] = True
    if mount["propagation"]:
        if mount["type"] != "bind":
            raise Invalid(path + ".propagation", "only bind mounts have it")
        result["BindOptions"] = {"Propagation": mount["propagation"]}
    if mount["tmpfs_size"]:
        if mount["type"] != "tmpfs":
            raise Invalid(path + ".tmpfs_size", "only tmpfs mounts have it")
        result["TmpfsOptions"] = {"SizeBytes": size(mount["tmpfs_size"], path + ".tmpfs_size")}
    return result


def _resources(params, put):
    """Zero takes a limit or a reservation away."""
    for option, kind in (("limits", "Limits"), ("reservations", "Reservations")):
        wanted = params.get(option) or {}
        base = _TEMPLATE + ("Resources", kind)
        if wanted.get("cpus") is not None:
            put(base + ("NanoCPUs",), nano_cpus(wanted["cpus"], option + ".cpus") if wanted["cpus"] else None)
        if wanted.get("memory") is not None:
            memory = size(wanted["memory"], option + ".memory")
            if 0 < memory < 4 * 2**20:
                raise Invalid(option + ".memory", "%s is less than 4M, the least a container can have" % wanted["memory"])
            put(base + ("MemoryBytes",), memory or None)
        if wanted.get("pids") is not None:
            put(base + ("Pids",), _natural(wanted, "pids", option + ".pids") or None)


_DEFAULT_POLICY = {
    "Parallelism": 1,
    "Delay": 0,
    "FailureAction": "pause",
    "Monitor": 5 * 10**9,
    "MaxFailureRatio": 0,
    "Order": "stop-first",
}


def _or(default):
    """The server's own default says the same as nothing."""
    return lambda value: default if value in (None, "") else value


def _policies(params, put):
    policy = params.get("restart_policy") or {}
    base = _TEMPLATE + ("RestartPolicy",)
    if policy.get("condition") is not None:
        put(base + ("Condition",), policy["condition"], _or("any"))
    if policy.get("delay") is not None:
        put(base + ("Delay",), nanoseconds(policy["delay"], "restart_policy.delay"), _or(5 * 10**9))
    if policy.get("max_attempts") is not None:
        put(base + ("MaxAttempts",), _natural(policy, "max_attempts", "restart_policy.max_attempts"))
    if policy.get("window") is not None:
        put(base + ("Window",), nanoseconds(policy["window"], "restart_policy.window"))
    for option, key in (("update_config", "UpdateConfig"), ("rollback_config", "RollbackConfig")):
        wanted = params.get(option) or {}
        values = {}
        if wanted.get("parallelism") is not None:
            values["Parallelism"] = _natural(wanted, "parallelism", option + ".parallelism")
        for name, field in (("delay", "Delay"), ("monitor", "Monitor")):
            if wanted.get(name) is not None:
                values[field] = nanoseconds(wanted[name], "%s.%s" % (option, name))
        if wanted.get("max_failure_ratio") is not None:
            if not 0 <= wanted["max_failure_ratio"] <= 1:
                raise Invalid(option + ".max_failure_ratio", "must lie between 0 and 1")
            values["MaxFailureRatio"] = wanted["max_failure_ratio"]
        for name, field in (("failure_action", "FailureAction"), ("order", "Order")):
            if wanted.get(name) is not None:
                values[field] = wanted[name]
        for field, value in values.items():
            put((key, field), value, _or(_DEFAULT_POLICY[field]))
    health = params.get("healthcheck") or {}
    base = _CONTAINER + ("Healthcheck",)
    if health.get("test") is not None:
        put(base + ("Test",), _health_test(health["test"]))
    for name, field in (("interval", "Interval"), ("timeout", "Timeout"), ("start_period", "StartPeriod")):
        if health.get(name) is not None:
            put(base + (field,), nanoseconds(health[name], "healthcheck." + name))
    if health.get("retries") is not None:
        put(base + ("Retries",), _natural(health, "retries", "healthcheck.retries"))


def _health_test(test):
    if test and test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise Invalid("healthcheck.test", "must begin with CMD, CMD-SHELL or NONE, not %r" % test[0])
    return [text(word, "healthcheck.test") for word in test]


def complete(before, after):
    """A policy that begins with a few keys begins with the defaults for the rest: to the API a missing number is zero."""
    for key in ("UpdateConfig", "RollbackConfig"):
        if not before.get(key) and after.get(key):
            after[key] = dict(_DEFAULT_POLICY, **after[key])
    return after


def new_spec(name, params):
    """What a service begins as, before its options are applied."""
    mode = {"Global": {}} if params.get("mode") == "global" else {"Replicated": {"Replicas": 1}}
    return {"Name": name, "Labels": {}, "TaskTemplate": {"ContainerSpec": {}}, "Mode": mode, "EndpointSpec": {}}
