#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Look at a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swarm_host_info
short_description: Look at what a host has and lacks
version_added: 0.1.0
description:
  - Reads in one go all that the roles of this collection need to know about a host, as the fact C(cluster_host).
  - With O(checks), everything that stands in the way is told at once, each with the way out, and the task fails.
extends_documentation_fragment:
  - swarm.cluster.connection
  - swarm.cluster.attributes
  - swarm.cluster.attributes.read_only
options:
  checks:
    description:
      - What the host is to be fit for.
      - V(engine) is a Docker Engine, V(agent) is C(swarm-agent), V(member) is membership of a swarm.
    type: list
    elements: str
    choices: [engine, agent, member]
    default: []
  engine_socket:
    description:
      - The Docker Engine's own socket. Found by itself, if left out.
    type: path
  commands:
    description:
      - Commands that are needed.
    type: list
    elements: str
    default: []
  tcp_ports:
    description:
      - TCP ports that C(swarm-agent) listens at.
    type: list
    elements: int
    default: [2377, 2378, 7946]
  udp_ports:
    description:
      - UDP ports that the overlay networks use.
    type: list
    elements: int
    default: [4789]
  max_clock_skew:
    description:
      - How many seconds the host's clock may differ from the controller's.
    type: int
    default: 60
  min_free_mb:
    description:
      - How many megabytes must be free for state and program.
    type: int
    default: 500
author:
  - The swarm-agent authors (@swarm-agent)
"""

EXAMPLES = r"""
- name: Refuse hosts that cannot run the agent
  swarm.cluster.swarm_host_info:
    checks: [engine, agent]
"""

RETURN = r"""
ansible_facts:
  description: The fact C(cluster_host).
  returned: success
  type: dict
  contains:
    cluster_host:
      description: What was seen.
      returned: success
      type: dict
"""

import glob
import os
import platform
import shutil
import socket
import subprocess
import sys
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.swarm.cluster.plugins.module_utils import _client, _process
from ansible_collections.swarm.cluster.plugins.module_utils._client import ApiError

# Each line is tried in a network namespace of its own, which vanishes with it.
KERNEL_PARTS = {
    "vxlan": ("ip", "ip link add probe0 type vxlan id 1 dstport 4789"),
    "veth": ("ip", "ip link add probe0 type veth peer name probe1"),
    "bridge": ("ip", "ip link add probe0 type bridge"),
    "nftables": ("nft", "nft add table inet probe"),
    "nftables nat": ("nft", "nft 'add table ip probe; add chain ip probe c { type nat hook prerouting priority -100; }'"),
    "wireguard": ("ip", "ip link add probe0 type wireguard"),
}


USUAL_SOCKET = "/var/run/docker.sock"
MOVED_SOCKET = "/run/docker-engine.sock"
# Which settings the engine's process has taken up.
RECORD = "/run/swarm-agent/engine.json"
UNITS = ("swarm-agent.service", "swarm-agent-net.service")
ENGINE_UNIT = "docker.service"


def kernel():
    """Which kernel parts are there: true, false, or null where the tool to find out is missing."""
    found = {}
    for part, (tool, line) in KERNEL_PARTS.items():
        if shutil.which(tool) is None or shutil.which("unshare") is None:
            found[part] = None
            continue
        tried = subprocess.run(["unshare", "--net", "sh", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        found[part] = tried.returncode == 0
    return found


def listeners(tcp, udp):
    """Who uses the ports, but for swarm-agent itself and the kernel's own VXLAN sockets."""
    wanted = {}
    for kind, ports in (("tcp", tcp), ("udp", udp)):
        for suffix in ("", "6"):
            try:
                with open("/proc/net/" + kind + suffix) as file:
                    lines = file.read().splitlines()[1:]
            except OSError:
                continue
            for line in lines:
                fields = line.split()
                port, state, inode = int(fields[1].rpartition(":")[2], 16), fields[3], fields[9]
                if port in ports and inode != "0" and (kind == "udp" or state == "0A"):
                    wanted["socket:[%s]" % inode] = (kind, port)
    found = []
    if wanted:
        for link in glob.glob("/proc/[0-9]*/fd/*"):
            try:
                at = wanted.get(os.readlink(link))
                if at is None:
                    continue
                pid = link.split("/")[2]
                with open("/proc/%s/cmdline" % pid, "rb") as file:
                    command = file.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
            except OSError:
                continue
            found.append({"protocol": at[0], "port": at[1], "pid": int(pid), "command": command})
    return [entry for entry in found if "swarm-agent" not in entry["command"]]


def engine(path):
    """What the engine says. Its socket is at its usual place, or aside, where the agent's has taken that place."""
    for path in [path] if path else [MOVED_SOCKET, USUAL_SOCKET]:
        found = ask_engine(path)
        if found["answers"] or (path == MOVED_SOCKET and os.path.islink(USUAL_SOCKET)):
            break
    found.update(socket=path, socket_unit=os.path.exists("/lib/systemd/system/docker.socket"), aside=os.path.lexists(MOVED_SOCKET))
    return found


def ask_engine(path):
    client = _client.Client(path, timeout=20, patience=0)
    try:
        version = client.get("/version")
        info = client.get("/info")
    except ApiError as error:
        return {"answers": False, "reason": str(error).replace("swarm-agent", "the Docker Engine")}
    return {
        "answers": True,
        "version": version["Version"],
        "swarm": (info.get("Swarm") or {}).get("LocalNodeState") or "inactive",
        "live_restore": bool(info.get("LiveRestoreEnabled")),
        "root": info.get("DockerRootDir"),
    }


def taken_up(seen, settings):
    """What the engine's process has read; null if none runs."""
    if seen is None:
        return None
    return _process.taken_up(seen, settings, _process.read_record(RECORD), _process.age(seen))


def free_mb(path):
    """Free space where ``path`` is, or will be."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    usage = os.statvfs(path)
    return usage.f_bavail * usage.f_frsize // 2**20


def default_address():
    """The address that this host shows to others; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return ""


def os_release():
    found = {}
    try:
        with open("/etc/os-release") as file:
            for line in file:
                key, _sep, value = line.strip().partition("=")
                found[key] = value.strip('"')
    except OSError:
        pass
    return {"id": found.get("ID", ""), "version": found.get("VERSION_ID", ""), "name": found.get("PRETTY_NAME", "")}


def membership(client, patience=0.0):
    """What the host's agent says; with patience, one that is just starting is awaited."""
    deadline = time.monotonic() + patience
    while True:
        try:
            swarm = client.get("/info").get("Swarm") or {}
            break
        except ApiError as error:
            if time.monotonic() >= deadline:
                said = _process.last_words(UNITS[0]) if patience else ""
                reason = str(error) + ("; its last words: " + said if said else "")
                return {"state": "absent", "reason": reason, "manager": False, "node_id": "", "managers": []}
        time.sleep(0.3)
    return {
        "state": swarm.get("LocalNodeState") or "inactive",
        "reason": swarm.get("Error") or "",
        "manager": bool(swarm.get("ControlAvailable")),
        "node_id": swarm.get("NodeID") or "",
        "cluster_id": (swarm.get("Cluster") or {}).get("ID") or "",
        "managers": [m["Addr"] for m in swarm.get("RemoteManagers") or ()],
    }


def python():
    version = list(sys.version_info[:3])
    return {"version": version, "tag": "cp%d%d" % tuple(version[:2]), "path": sys.executable}


def main():
    spec = dict(
        _client.ARGUMENTS,
        checks={"type": "list", "elements": "str", "choices": ["engine", "agent", "member"], "default": []},
        engine_socket={"type": "path"},
        commands={"type": "list", "elements": "str", "default": []},
        tcp_ports={"type": "list", "elements": "int", "default": [2377, 2378, 7946]},
        udp_ports={"type": "list", "elements": "int", "default": [4789]},
        max_clock_skew={"type": "int", "default": 60},
        min_free_mb={"type": "int", "default": 500},
    )
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    params = module.params
    # Where administration commands live, whatever this user's search path says.
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    # The engine's socket may start it, so that one is asked first.
    answering = engine(params["engine_socket"])
    units, settings = _process.units(UNITS + (ENGINE_UNIT,)), _process.settings_file()
    facts = {
        "hostname": socket.gethostname(),
        "address": default_address(),
        "python": python(),
        "machine": platform.machine(),
        "libc": list(platform.libc_ver()),
        "os": os_release(),
        "root": os.geteuid() == 0,
        "systemd": os.path.isdir("/run/systemd/system"),
        "free_mb": {path: free_mb(path) for path in ("/var/lib/swarm-agent", "/opt/swarm-agent", "/var/lib/docker")},
        "apt": shutil.which("apt-get") is not None,
        "missing": sorted(command for command in params["commands"] if shutil.which(command) is None),
        "kernel": kernel() if "agent" in params["checks"] else {},
        "units": {name: units[name] for name in UNITS},
        "ports": listeners(params["tcp_ports"], params["udp_ports"]),
        "engine": dict(answering, unit=units[ENGINE_UNIT], taken_up=taken_up(units[ENGINE_UNIT]["process"], settings)),
        "daemon_json": settings,
        "swarm": membership(_client.Client.of(module), 0.0 if module.check_mode or "member" not in params["checks"] else 20.0),
        "time": time.time(),
    }
    module.exit_json(changed=False, ansible_facts={"cluster_host": facts})


if __name__ == "__main__":
    main()
