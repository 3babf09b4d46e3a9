# SPDX-License-Identifier: Apache-2.0
"""Look at a host and judge from the controller whether it is fit: all that is wrong is told at once."""

from __future__ import annotations

import time

from ansible.plugins.action import ActionBase
from ansible_collections.swarm.cluster.plugins.module_utils._client import BROKEN

ENGINE_AT_LEAST = (20, 10)
PYTHON_AT_LEAST = (3, 11)
KERNEL_NEEDED = ("vxlan", "veth", "bridge", "nftables", "nftables nat")


def problems(host, checks, skew, max_skew, min_free_mb):
    """Sentences that say what stands in the way and what to do; a pure function of what was seen."""
    found = []
    if not host["root"]:
        found.append("root is needed: connect as root or set ansible_become to true")
    if abs(skew) > max_skew:
        found.append(
            "the clock is %s %s the controller's: set it (timedatectl set-ntp true), certificates and leases depend on it"
            % (_duration(abs(skew)), "ahead of" if skew > 0 else "behind")
        )
    if "engine" in checks or "agent" in checks:
        if not host["systemd"]:
            found.append("systemd does not run here: the roles need it to run services")
    if "engine" in checks:
        found += engine_problems(host)
    if "agent" in checks:
        found += agent_problems(host, min_free_mb)
    if "member" in checks:
        found += member_problems(host)
    return found


def engine_problems(host):
    found = []
    if host["daemon_json"]["error"]:
        found.append("%s: repair or remove it" % host["daemon_json"]["error"])
    engine = host["engine"]
    if not engine["answers"]:
        return found
    numbers = [int("".join(c for c in part if c.isdigit()) or 0) for part in engine["version"].split(".")[:2]]
    if tuple(numbers) < ENGINE_AT_LEAST:
        found.append("Docker Engine %s is too old: %d.%02d or newer is needed" % ((engine["version"],) + ENGINE_AT_LEAST))
    if engine["swarm"] not in ("inactive", ""):
        found.append(
            "the Docker Engine's own swarm mode is %s, and both cannot be: move its services elsewhere first. Then "
            "`docker --host unix://%s swarm leave --force` takes the host out, which ends the tasks that are left and, on the last "
            "manager, loses that swarm" % (engine["swarm"], engine["socket"])
        )
    return found


def agent_problems(host, min_free_mb):
    found = []
    version = tuple(host["python"]["version"])
    if version < PYTHON_AT_LEAST:
        found.append(
            "Python %s is too old: %d.%d or newer is needed; install one and name it in ansible_python_interpreter"
            % ((".".join(map(str, version)),) + PYTHON_AT_LEAST)
        )
    if not host["libc"][0]:
        found.append("the C library is not glibc: there are no packages for it")
    lacking = [part for part in KERNEL_NEEDED if host["kernel"].get(part) is False]
    if lacking:
        found.append("the kernel lacks %s: boot a kernel that has it, or install the kernel's extra modules" % ", ".join(lacking))
    for directory, free in sorted(host["free_mb"].items()):
        if free < min_free_mb:
            found.append("only %d MB are free for %s, %d are needed: make room" % (free, directory, min_free_mb))
    for user in host["ports"]:
        found.append(
            "port %d/%s is used by process %d (%s): stop it or choose another port"
            % (user["port"], user["protocol"], user["pid"], user["command"][:60])
        )
    return found


def member_problems(host):
    swarm = host["swarm"]
    if swarm["state"] == "error":
        return ["it cannot take part in its swarm: %s. %s" % (swarm["reason"], BROKEN)]
    if swarm["state"] == "locked":
        return ["it is locked: unlock it first (docker swarm unlock)"]
    return []


def _duration(seconds):
    if seconds >= 3600:
        return "%.1f hours" % (seconds / 3600)
    return "%.0f seconds" % seconds


class ActionModule(ActionBase):
    """Runs the module of the same name and adds what only the controller can tell."""

    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        before = time.time()
        result.update(self._execute_module(task_vars=task_vars))
        after = time.time()
        if result.get("failed"):
            return result
        host = result["ansible_facts"]["cluster_host"]
        # The module read its clock somewhere between these two moments.
        skew = host["time"] - after if host["time"] > after else min(0.0, host["time"] - before)
        host["clock_skew"] = round(skew, 3)
        arguments = self._task.args
        found = problems(
            host,
            arguments.get("checks") or [],
            skew,
            int(arguments.get("max_clock_skew") or 60),
            int(arguments.get("min_free_mb") or 500),
        )
        if found:
            result.pop("ansible_facts")  # what was seen would bury what is wrong
            result["failed"] = True
            result["problems"] = found
            result["msg"] = "%s is not fit: %s" % (task_vars["inventory_hostname"], "; ".join(found))
        return result
