"""A set of hosts on one machine: made, found again, stopped and removed as one."""

from __future__ import annotations

import ipaddress
import json
import os
import shlex
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tests.hosts import image, images, limits, pki, registry
from tests.hosts.engine import Engine
from tests.hosts.shell import Failure, run, say, wait_for

ROOT = Path(__file__).resolve().parents[2]
LABEL = "org.swarm-agent.hosts"
LABEL_BY = "org.swarm-agent.made-by"
REGISTRY_NAME = "registry.swarm-demo"
# Hosts for tests are others than the demo's, so that both can be there at once.
TEST_PREFIX = os.environ.get("SWARM_TEST_PREFIX", "swarm-test")
TEST_SUBNET = os.environ.get("SWARM_TEST_SUBNET", "172.30.78.0/24")

NO_KINDS: Mapping[int, image.Kind] = MappingProxyType({})

# Not --privileged: a machine whose own bounding set lacks CAP_SYS_RESOURCE refuses that.
_HOST_OPTIONS = (
    "--cgroupns=private --cap-add=ALL --cap-drop=SYS_RESOURCE --security-opt=seccomp=unconfined "
    "--security-opt=apparmor=unconfined --device-cgroup-rule=a_*:*_rwm --device=/dev/net/tun --device=/dev/fuse "
    "--stop-signal=SIGRTMIN+3 --tmpfs=/run --tmpfs=/run/lock --tmpfs=/tmp:exec,mode=1777 --volume=/var/lib/docker"
)


@dataclass(frozen=True)
class HostSet:
    """Hosts called PREFIX-1, PREFIX-2, ... at .11, .12, ... of a subnet, and a registry at .2 of it."""

    engine: Engine
    prefix: str
    subnet: ipaddress.IPv4Network
    directory: Path  # keys and configuration of this set

    # -- names

    def name(self, number: int) -> str:
        return f"{self.prefix}-{number}"

    def address(self, number: int) -> str:
        return str(self.subnet.network_address + 10 + number)

    @property
    def registry_address(self) -> str:
        return str(self.subnet.network_address + 2)

    @property
    def key(self) -> Path:
        return self.directory / "ssh" / "id_ed25519"

    @property
    def ca(self) -> Path:
        return self.directory / "registry" / "ca.pem"

    # -- making

    def up(
        self,
        numbers: Sequence[int],
        *,
        kinds: Mapping[int, image.Kind] = NO_KINDS,
        with_registry: bool = True,
    ) -> bool:
        """Have these hosts answer, of the usual kind if ``kinds`` says nothing; whether anything had to be made or started."""
        self._refuse_strangers()
        tags = {number: image.ensure(self.engine, kinds.get(number, image.USUAL)) for number in numbers}
        self._make_key()
        changed = self._make_network()
        if with_registry:
            # The registry program is in the image that has Docker, too.
            changed |= self._start_registry(image.ensure(self.engine))
        for number in numbers:
            changed |= self._start_host(number, tags[number])
        for number in numbers:
            self._await(number)
        self._write_ssh_files()
        if with_registry:
            own = registry.Registry(self.registry_address, registry.OPEN_PORT, self.ca)
            locked = registry.Registry(self.registry_address, registry.LOCKED_PORT, self.ca)
            self._described(
                f"{self.prefix}-registry",
                lambda: wait_for(
                    "the image registry", lambda: own.answers() and locked.answers(), timeout=30
                ),
            )
            sent = registry.fill(self.registry_address, self.ca, images.build())
            if sent:
                say(f"filled the registry with {', '.join(sent)}")
                changed = True
        return changed

    def _make_key(self) -> None:
        self.key.parent.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        if not self.key.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.prefix, "-f", str(self.key)])

    def _make_network(self) -> bool:
        if self.engine.docker("network", "ls", "--quiet", "--filter", f"name=^{self.prefix}$"):
            return False
        self.engine.docker(
            "network", "create", f"--subnet={self.subnet}", f"--gateway={self.subnet.network_address + 1}", f"--ip-range={self.subnet.network_address + 128}/25",
            *self._labels(), self.prefix,
        )  # fmt: skip
        return True

    def _labels(self) -> list[str]:
        return [f"--label={LABEL}={self.prefix}", f"--label={LABEL_BY}={ROOT}"]

    def _start(self, name: str, tag: str, options: Sequence[str], command: Sequence[str] = ()) -> bool:
        found = self.engine.docker("inspect", "--format", "{{.State.Running}}", name, check=False)
        if found == "true":
            return False
        if found == "false":
            say(f"starting {name} again")
            self.engine.docker("start", name)
            return True
        self.engine.docker(
            "run",
            "--detach",
            f"--name={name}",
            f"--network={self.prefix}",
            *self._labels(),
            *options,
            tag,
            *command,
        )
        return True

    def _start_host(self, number: int, tag: str) -> bool:
        name = self.name(number)
        options = [
            option.replace("_", " ") if "a_*" in option else option for option in _HOST_OPTIONS.split()
        ]
        return self._start(
            name,
            tag,
            [
                f"--hostname={name}",
                f"--ip={self.address(number)}",
                f"--add-host={REGISTRY_NAME}:{self.registry_address}",
                f"--volume={self.key}.pub:/root/.ssh/authorized_keys:ro",
                *options,
            ],
        )

    def _start_registry(self, tag: str) -> bool:
        directory = self.directory / "registry"
        directory.mkdir(parents=True, exist_ok=True)
        pki.make(directory, REGISTRY_NAME, self.registry_address)
        registry.write_config(directory)
        return self._start(
            f"{self.prefix}-registry",
            tag,
            [f"--ip={self.registry_address}", "--init", f"--volume={directory}:/etc/registry:ro"],
            ["sh", "-c", registry.COMMAND],
        )

    def _write_ssh_files(self) -> None:
        """A configuration and an ``ssh`` in front of the system's, so that the docker CLI's ssh:// finds the hosts."""
        known, hosts = [], []
        for name in self.running():
            if name == f"{self.prefix}-registry":
                continue
            number = int(name.rpartition("-")[2])
            key = self.engine.docker("exec", name, "cat", "/etc/ssh/ssh_host_ed25519_key.pub")
            known.append(f"{name},{self.address(number)} {' '.join(key.split()[:2])}\n")
            hosts.append(f"Host {name} {self.address(number)}\n  HostName {self.address(number)}\n")
        (self.directory / "ssh" / "known_hosts").write_text("".join(known))
        (self.directory / "ssh" / "config").write_text(
            "".join(hosts)
            + f"Host {self.prefix}-* {'.'.join(str(self.subnet.network_address).split('.')[:3])}.*\n  User root\n"
            f"  IdentityFile {self.key}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.directory}/ssh/known_hosts\n  StrictHostKeyChecking yes\n"
        )
        tools = self.directory / "bin"
        tools.mkdir(exist_ok=True)
        system_ssh = shutil.which("ssh", path=os.defpath) or "/usr/bin/ssh"
        config = shlex.quote(str(self.directory / "ssh" / "config"))
        (tools / "ssh").write_text(f'#!/bin/sh\nexec {system_ssh} -F {config} "$@"\n')
        (tools / "ssh").chmod(0o755)

    def write_inventory(self, managers: Sequence[int], workers: Sequence[int]) -> Path:
        """An Ansible inventory of these hosts, for where the checked-in one does not fit."""
        registries = [{"name": f"{REGISTRY_NAME}:{port}", "ca": str(self.ca)} for port in registry.PORTS]
        known = self.directory / "ssh" / "known_hosts"
        variables = {
            "ansible_user": "root",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={known} -o IdentitiesOnly=yes",
            "swarm_engine_registries": registries,
        }
        groups = {
            group: {"hosts": {self.name(n): self._variables(n) for n in numbers}}
            for group, numbers in (("managers", managers), ("workers", workers))
        }
        inventory = {"all": {"children": {"swarm": {"children": groups, "vars": variables}}}}
        path = self.directory / "inventory" / "hosts.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(inventory, indent=2) + "\n")
        return path

    def _variables(self, number: int) -> dict[str, object]:
        return {"ansible_host": self.address(number), "swarm_node_labels": {"zone": f"zone-{number}"}}

    def _await(self, number: int) -> None:
        """Until a host answers at its SSH port. One that does not is described: its state, its console, this machine's limits."""
        name = self.name(number)

        def up() -> bool:
            if _open(self.address(number), 22):
                return True
            state = self.engine.docker("inspect", "--format", "{{.State.Status}}", name, check=False)
            if state != "running":
                raise Failure(f"{name} does not run any more")
            return False

        self._described(name, lambda: wait_for(f"ssh at {name}", up, timeout=90, every=0.3))

    def _described(self, name: str, wait: Callable[[], None]) -> None:
        try:
            wait()
        except Failure as failure:
            raise Failure(f"{failure}. {self._trouble(name)}") from failure

    def _trouble(self, name: str) -> str:
        """What can be said about a host that does not come up."""
        template = "{{.State.Status}}, exit code {{.State.ExitCode}}{{if .State.OOMKilled}}, out of memory{{end}} {{.State.Error}}"
        state = self.engine.docker("inspect", "--format", template, name, check=False) or "it does not exist"
        console = self.engine.console(name, lines=12) or "(nothing)"
        root = Path(self.engine.docker("info", "--format", "{{.DockerRootDir}}", check=False) or "/var/lib")
        spent = limits.used_up(limits.measure(root)) or "None of this machine's limits is used up."
        return f"Its container: {state.strip()}. {spent} The last lines of its console:\n{console}"

    # -- looking

    def running(self) -> list[str]:
        return sorted(self._names("--filter", "status=running"))

    def all(self) -> list[str]:
        return sorted(self._names("--all"))

    def _names(self, *options: str) -> list[str]:
        listed = self.engine.docker(
            "ps", *options, "--filter", f"label={LABEL}={self.prefix}", "--format", "{{.Names}}"
        )
        return listed.split()

    def ssh(self, number: int, command: str, *, check: bool = True, timeout: float = 60) -> str:
        ssh = str(self.directory / "bin" / "ssh")
        return run([ssh, self.name(number), command], check=check, timeout=timeout).stdout

    def _refuse_strangers(self) -> None:
        """Names and addresses that are taken by something else are left alone, and the way out is said."""
        kind = "TEST" if self.prefix == TEST_PREFIX else "DEMO"
        way_out = f"choose others with SWARM_{kind}_PREFIX=NAME and SWARM_{kind}_SUBNET=A.B.C.0/24"
        listed = self.engine.docker(
            "ps", "--all", "--filter", f"name=^{self.prefix}-", "--format", "{{.Names}}"
        ).split()
        strangers = sorted(set(listed) - set(self.all()))
        if strangers:
            raise Failure(
                f"containers named {', '.join(strangers)} exist that these hosts are not; remove them or {way_out}"
            )
        for name in self.all():
            maker = self.engine.docker(
                "inspect", "--format", f'{{{{index .Config.Labels "{LABEL_BY}"}}}}', name
            )
            if maker != str(ROOT):
                raise Failure(
                    f"{name} was made from {maker}: remove it with `{maker}/run demo-down`, or {way_out}"
                )
        networks = self.engine.docker("network", "ls", "--quiet").split()
        ours = False
        for network in json.loads(self.engine.docker("network", "inspect", *networks)):
            for pool in network["IPAM"]["Config"] or ():
                taken = ipaddress.ip_network(pool["Subnet"])
                if taken.version == 4 and taken.overlaps(self.subnet):
                    if network["Labels"].get(LABEL) != self.prefix:
                        raise Failure(
                            f"{self.subnet} is taken by the Docker network {network['Name']} ({taken}): {way_out}"
                        )
                    ours = True
        if ours:
            return
        for route in json.loads(run(["ip", "-json", "-4", "route"]).stdout):
            if route["dst"] != "default" and ipaddress.ip_network(route["dst"]).overlaps(self.subnet):
                raise Failure(
                    f"{self.subnet} is taken by a route of this machine ({route['dst']} dev {route['dev']}): {way_out}"
                )

    # -- taking away

    def kill(self, number: int) -> None:
        """As pulling the plug."""
        self.engine.docker("kill", self.name(number))

    def start(self, number: int) -> None:
        self.engine.docker("start", self.name(number))
        self._await(number)

    def down(self) -> list[str]:
        """Remove all of it; what was removed."""
        removed = self.all()
        if removed:
            self.engine.docker("rm", "--force", "--volumes", *removed, timeout=120)
        if self.engine.docker("network", "ls", "--quiet", "--filter", f"label={LABEL}={self.prefix}"):
            self.engine.docker("network", "rm", self.prefix)
            removed.append(f"network {self.prefix}")
        if self.directory.exists():
            shutil.rmtree(self.directory)
            removed.append(str(self.directory))
        return removed


def _open(address: str, port: int) -> bool:
    """Whether an SSH server greets there."""
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
