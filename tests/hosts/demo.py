"""``./run demo`` and ``./run demo-down``: three hosts, the playbook, a sample service, and what to try next."""

from __future__ import annotations

import http.client
import ipaddress
import os
import subprocess
import sys
import time
from functools import partial

from tests.hosts import engine
from tests.hosts.hosts import REGISTRY_NAME, ROOT, HostSet
from tests.hosts.registry import OPEN_PORT
from tests.hosts.shell import Failure, run, say, wait_for

# What inventories/local names; with other names the demo writes an inventory of its own.
DEFAULT_PREFIX, DEFAULT_SUBNET = "swarm-demo", "172.30.77.0/24"
PREFIX = os.environ.get("SWARM_DEMO_PREFIX", DEFAULT_PREFIX)
SUBNET = os.environ.get("SWARM_DEMO_SUBNET", DEFAULT_SUBNET)
COUNT = 3
PUBLISHED = 8080
SERVICE = "hello"


def _hosts(machine: engine.Engine) -> HostSet:
    try:
        subnet = ipaddress.IPv4Network(SUBNET)
    except ValueError as error:
        raise Failure(f"SWARM_DEMO_SUBNET: {error}; write it as 172.30.77.0/24") from error
    if subnet.prefixlen != 24:
        raise Failure(f"SWARM_DEMO_SUBNET must be a /24, not {subnet}")
    return HostSet(machine, PREFIX, subnet, ROOT / ".cache" / PREFIX)


def up() -> None:
    started = time.monotonic()
    machine = engine.start()
    hosts = _hosts(machine)
    numbers = range(1, COUNT + 1)
    changed = hosts.up(numbers)
    say(
        f"{COUNT} hosts and a registry {'are up' if changed else 'were up already'} ({time.monotonic() - started:.0f} s)"
    )
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    inventory = "inventories/local"
    if (PREFIX, SUBNET) != (DEFAULT_PREFIX, DEFAULT_SUBNET):
        inventory = str(hosts.write_inventory(numbers, []))
    argv = ["ansible-playbook", "site.yml", "--inventory", inventory]
    say(f"$ {' '.join(argv)}")
    played = subprocess.run(argv, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=False)
    if played.returncode != 0:
        raise Failure(f"ansible-playbook ended with {played.returncode}; its own words are above")
    tools = hosts.directory / "bin"
    swarm = {
        **{k: v for k, v in os.environ.items() if k != "DOCKER_CONTEXT"},
        "DOCKER_HOST": f"ssh://root@{hosts.name(1)}",
        "PATH": f"{tools}:{os.environ['PATH']}",
    }

    def docker(*words: str) -> str:
        return run(["docker", *words], env=swarm, timeout=120).stdout.rstrip()

    if SERVICE not in docker("service", "ls", "--format", "{{.Name}}").split():
        say(f"creating the service {SERVICE}")
        docker(
            "service", "create", "--quiet", "--name", SERVICE, "--replicas", "6",
            "--publish", f"{PUBLISHED}:8080", f"{REGISTRY_NAME}:{OPEN_PORT}/echo:latest",
        )  # fmt: skip
    urls = [f"http://{hosts.address(number)}:{PUBLISHED}/" for number in numbers]
    for number, url in zip(numbers, urls, strict=True):
        wait_for(f"an answer at {url}", partial(_fetch, hosts.address(number)), timeout=60)
    for words in (("node", "ls"), ("service", "ls"), ("service", "ps", SERVICE)):
        print(f"\n$ docker {' '.join(words)}\n{docker(*words)}")
    print(f"\nThe service answers through every host: curl {urls[0]}\n  {_fetch(hosts.address(1))}")
    print(
        f"\nPaste this to point the docker command at the swarm:\n  export DOCKER_HOST=ssh://root@{hosts.name(1)} PATH={tools}:$PATH"
    )
    print(f"Paste this to pull the plug of a host, then watch `docker service ps {SERVICE}`:")
    print(f"  docker --host unix://{machine.socket} kill {hosts.name(COUNT)}", flush=True)


def _fetch(address: str) -> str | None:
    connection = http.client.HTTPConnection(address, PUBLISHED, timeout=3)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode().strip()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def down() -> None:
    found = engine.find()
    if found is None:
        kept = engine.stop()
        say("no Docker Engine runs on this machine, so no demo host does")
        return
    for name in _hosts(engine.Engine(found)).down():
        say(f"removed {name}")
    machine = engine.Engine(found)
    tags = machine.docker("images", "--quiet", "swarm-demo-host").split()
    if tags and not machine.docker(
        "ps", "--all", "--quiet", "--filter", "label=org.swarm-agent.host-image=1"
    ):
        machine.docker("rmi", "--force", *tags)
        say("removed the host image from the engine")
    kept = engine.stop()
    say(
        kept or "the Docker Engine that the demo started is stopped"
        if found == engine.OWN_SOCKET
        else "the machine's Docker Engine stays"
    )
    say("left as caches: .venv and .cache here, ~/.cache/swarm-agent; and the Debian packages")


def main() -> int:
    try:
        {"up": up, "down": down}[sys.argv[1]]()
    except Failure as failure:
        say(f"error: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
