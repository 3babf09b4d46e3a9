"""Every flag of ``docker service create`` and ``docker service update``: how it is given, and what must be seen of it.

``docs/flags.md`` is this table for people; ``tests/unit/api/test_flags_table.py`` holds the two together, and both to the CLI's own help.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.cluster.swarm_lab import SwarmHost

MIB = 1 << 20
SECOND = 10**9


class Seen:
    """A service of one running task, as the store, the engine and its own processes show it."""

    def __init__(self, host: SwarmHost, name: str, container: str) -> None:
        self.host = host
        self.name = name
        self.container = container

    @cached_property
    def service(self) -> dict[str, Any]:
        found: dict[str, Any] = self.host.get(f"/services/{self.name}")
        return found

    @property
    def spec(self) -> dict[str, Any]:
        found: dict[str, Any] = self.service["Spec"]
        return found

    @property
    def template(self) -> dict[str, Any]:
        found: dict[str, Any] = self.spec["TaskTemplate"]
        return found

    @cached_property
    def inspect(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.host.docker("inspect", self.container))[0]
        return found

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = self.inspect["Config"]
        return found

    @property
    def engine(self) -> dict[str, Any]:
        """What the engine was told of the container's surroundings."""
        found: dict[str, Any] = self.inspect["HostConfig"]
        return found

    def run(self, line: str) -> str:
        """What a shell inside says."""
        return self.host.docker("exec", self.container, "sh", "-c", line).strip()

    def mount(self, target: str) -> dict[str, Any]:
        """As the engine shows it; a tmpfs it shows only as it was asked for."""
        found: list[dict[str, Any]] = [m for m in self.inspect["Mounts"] if m["Destination"] == target]
        return found[0]


@dataclass(frozen=True)
class Flag:
    """One flag. ``given``: its values when a service is created ("" for a switch); ``seen``: (what is, what must be)."""

    name: str
    given: tuple[str, ...]
    effect: str
    seen: Callable[[Seen], tuple[Any, Any]]
    update: str = "same"  # the flag of ``update`` that sets it; "same" is the same name, "" none
    more: tuple[str, ...] = ()  # what has to stand beside it

    @property
    def on_update(self) -> str:
        return self.name if self.update == "same" else self.update

    def arguments(self, flag: str) -> list[str]:
        out = []
        for value in self.given:
            out += [flag] if value == "" else [f"{flag}={value}"]
        return [*out, *self.more]


def engine(key: str, wanted: Any) -> Callable[[Seen], tuple[Any, Any]]:
    return lambda s: (s.engine[key], wanted)


def config(key: str, wanted: Any) -> Callable[[Seen], tuple[Any, Any]]:
    return lambda s: (s.config[key], wanted)


def inside(line: str, wanted: str) -> Callable[[Seen], tuple[Any, Any]]:
    return lambda s: (s.run(line), wanted)


def stored(path: str, wanted: Any) -> Callable[[Seen], tuple[Any, Any]]:
    def look(s: Seen) -> tuple[Any, Any]:
        found: Any = s.spec
        for key in path.split("."):
            found = found[key]
        return found, wanted

    return look


def health(key: str, wanted: Any) -> Callable[[Seen], tuple[Any, Any]]:
    return lambda s: (s.config["Healthcheck"][key], wanted)


def _add(name: str) -> str:
    return f"{name}-add"


CONTAINER: tuple[Flag, ...] = (
    Flag("--cap-add", ("NET_ADMIN",), "engine: capability added", engine("CapAdd", ["CAP_NET_ADMIN"])),
    Flag("--cap-drop", ("MKNOD",), "engine: capability dropped", engine("CapDrop", ["CAP_MKNOD"])),
    Flag("--config", ("source=fconf,target=/etc/fconf,uid=1000,gid=1001,mode=0440",), "inside: the file, its owner and mode",
         inside("cat /etc/fconf; busybox stat -c ' %u %g %a' /etc/fconf", "conf 1000 1001 440"), _add("--config")),
    Flag("--constraint", ("node.role==manager",), "engine: on which hosts it runs containers, also when a label changes", stored("TaskTemplate.Placement.Constraints", ["node.role==manager"]), _add("--constraint")),
    Flag("--container-label", ("cl=1",), "container: label", lambda s: (s.config["Labels"]["cl"], "1"), _add("--container-label")),
    Flag("--entrypoint", ("busybox sleep",), "container: its first process", lambda s: (s.config["Entrypoint"], ["busybox", "sleep"])),
    Flag("--env", ("FA=1",), "inside: the variable", inside("echo $FA", "1"), _add("--env")),
    Flag("--group", ("1234",), "inside: the process is in the group", lambda s: ("1234" in s.run("busybox id -G").split(), True), _add("--group")),
    Flag("--health-cmd", ("test -d /bin",), "container: the check; it is healthy", lambda s: ((s.config["Healthcheck"]["Test"], s.inspect["State"]["Health"]["Status"]), (["CMD-SHELL", "test -d /bin"], "healthy"))),
    Flag("--health-interval", ("300ms",), "container: the check's interval", health("Interval", 300_000_000)),
    Flag("--health-retries", ("7",), "container: the check's retries", health("Retries", 7)),
    Flag("--health-start-period", ("2s",), "container: the check's start period", health("StartPeriod", 2 * SECOND)),
    Flag("--health-timeout", ("5s",), "container: the check's timeout", health("Timeout", 5 * SECOND)),
    Flag("--host", ("other:192.0.2.9",), "inside: the line in /etc/hosts", lambda s: ("192.0.2.9\tother" in s.run("cat /etc/hosts"), True), _add("--host")),
    Flag("--hostname", ("fhost",), "inside: the host's name", inside("busybox hostname", "fhost")),
    Flag("--init", ("",), "inside: the first process is the engine's init", inside("cat /proc/1/comm", "docker-init")),
    Flag("--label", ("sl=1",), "store: the service's label", lambda s: (s.spec["Labels"]["sl"], "1"), _add("--label")),
    Flag("--limit-cpu", ("0.5",), "engine: the limit", engine("NanoCpus", SECOND // 2)),
    Flag("--limit-memory", ("64m",), "engine: the limit", engine("Memory", 64 * MIB)),
    Flag("--limit-pids", ("50",), "engine: the limit", engine("PidsLimit", 50)),
    Flag("--log-driver", ("json-file",), "engine: the driver", lambda s: (s.engine["LogConfig"]["Type"], "json-file")),
    Flag("--log-opt", ("max-size=1m",), "engine: the driver's option", lambda s: (s.engine["LogConfig"]["Config"], {"max-size": "1m"})),
    Flag("--read-only", ("",), "inside: the root file system cannot be written", lambda s: ("Read-only file system" in s.run("touch /x 2>&1 || true"), True)),
    Flag("--replicas-max-per-node", ("1",), "engine: so many on each host, also during an update", stored("TaskTemplate.Placement.MaxReplicas", 1)),
    Flag("--reserve-cpu", ("0.01",), "engine: how many containers fit on each host; the next waits and says why", stored("TaskTemplate.Resources.Reservations.NanoCPUs", SECOND // 100)),
    Flag("--reserve-memory", ("8m",), "engine: the reservation", engine("MemoryReservation", 8 * MIB)),
    Flag("--secret", ("source=fkey,target=k,uid=1000,gid=1001,mode=0400",), "inside: the file, its owner and mode",
         inside("cat /run/secrets/k; busybox stat -c ' %u %g %a' /run/secrets/k", "hush 1000 1001 400"), _add("--secret")),
    Flag("--stop-grace-period", ("1s",), "store: kept; it is the time the engine is told at the stop", stored("TaskTemplate.ContainerSpec.StopGracePeriod", SECOND)),
    Flag("--stop-signal", ("SIGUSR1",), "container: the signal", config("StopSignal", "SIGUSR1")),
    Flag("--sysctl", ("net.core.somaxconn=1234",), "inside: the setting", inside("cat /proc/sys/net/core/somaxconn", "1234"), _add("--sysctl")),
    Flag("--tty", ("",), "inside: the first process has a terminal", lambda s: ((s.config["Tty"], "pts" in s.run("busybox readlink /proc/1/fd/0 || echo pts")), (True, True))),
    # not of open files: the program that runs a command in a container may raise that one for itself up to the hard limit
    Flag("--ulimit", ("core=1024:2048",), "inside: the limit", inside("set -- $(busybox grep core /proc/self/limits); echo $5 $6", "1024 2048"), _add("--ulimit")),
    Flag("--user", ("1000:1001",), "inside: who the process is", inside("busybox id -u; busybox id -g", "1000\n1001")),
    Flag("--workdir", ("/bin",), "inside: where it stands", inside("pwd", "/bin")),
)  # fmt: skip
"""Together in one service; then all of them again, by an update of a service that has none."""

POLICY: tuple[Flag, ...] = (
    Flag("--restart-condition", ("on-failure",), "engine: how often it starts a container that ends", stored("TaskTemplate.RestartPolicy.Condition", "on-failure")),
    Flag("--restart-delay", ("3s",), "engine: the rest before it starts the next container", stored("TaskTemplate.RestartPolicy.Delay", 3 * SECOND)),
    Flag("--restart-max-attempts", ("4",), "engine: so many starts, then the place is given up", stored("TaskTemplate.RestartPolicy.MaxAttempts", 4)),
    Flag("--restart-window", ("50s",), "engine: starts further apart than it do not count", stored("TaskTemplate.RestartPolicy.Window", 50 * SECOND)),
    *(
        Flag(f"--{word}-{name}", (given,), effect, stored(f"{part}.{key}", wanted))
        for word, part, action, after in (
            ("update", "UpdateConfig", "rollback", "which containers are new in the end, and which were not touched"),
            ("rollback", "RollbackConfig", "continue", "how it ends when it fails too"),
        )
        for name, given, key, wanted, effect in (
            ("delay", "1s", "Delay", SECOND, "engine: the rest between the starts"),
            ("failure-action", action, "FailureAction", action, after),
            ("max-failure-ratio", "0.25", "MaxFailureRatio", 0.25, "so many may fail and it goes on, more and it does not"),
            ("monitor", "700ms", "Monitor", 700_000_000, "not complete any sooner after the last start"),
            ("order", "start-first", "Order", "start-first", "engine: the new container starts before the old one ends, or after it"),
            ("parallelism", "3", "Parallelism", 3, "engine: so many start, then there is a rest"),
        )
    ),
    Flag("--placement-pref", ("spread=node.labels.zone",), "engine: how many containers each host runs",
         stored("TaskTemplate.Placement.Preferences", [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}]), _add("--placement-pref")),
    Flag("--replicas", ("1",), "store: kept; so many tasks run", stored("Mode.Replicated.Replicas", 1)),
    Flag("--no-healthcheck", ("",), "container: the image's check is off", lambda s: (s.config["Healthcheck"]["Test"], ["NONE"])),
    Flag("--no-resolve-image", ("",), "store: the image stays as it was written", stored("TaskTemplate.ContainerSpec.Image", "swarm-test-shell:1")),
)  # fmt: skip

APART: dict[str, str] = {
    "--args": "container: its arguments",
    "--config-rm": "inside: the file is gone",
    "--constraint-rm": "store: gone",
    "--container-label-rm": "container: label gone",
    "--credential-spec": "refused by name",
    "--detach": "the CLI returns at once",
    "--dns": "inside: other names are asked of it; names of services stay",
    "--dns-add": "as --dns",
    "--dns-option": "inside: the line in /etc/resolv.conf",
    "--dns-option-add": "as --dns-option",
    "--dns-option-rm": "inside: gone from /etc/resolv.conf",
    "--dns-rm": "inside: the host's servers are asked again",
    "--dns-search": "inside: the line in /etc/resolv.conf",
    "--dns-search-add": "as --dns-search",
    "--dns-search-rm": "inside: gone from /etc/resolv.conf",
    "--endpoint-mode": "vip: a virtual address; dnsrr: refused by name",
    "--env-file": "inside: the variables of the file",
    "--env-rm": "inside: the variable is gone",
    "--force": "a new container of the same spec",
    "--generic-resource": "store: kept; the task waits and says which resource is missing",
    "--generic-resource-add": "as --generic-resource",
    "--generic-resource-rm": "store: gone; the task runs",
    "--group-rm": "inside: the process is not in the group",
    "--health-start-interval": "engines from API 1.44 on; the CLI, and this program for other clients, refuse by name below",
    "--host-rm": "inside: gone from /etc/hosts",
    "--image": "container: the image",
    "--isolation": "refused by name, but for default",
    "--label-rm": "store: label gone",
    "--max-concurrent": "engine: so many run at once (on an update the CLI sends the number of before)",
    "--mode": "replicated, global, replicated-job, global-job: so many tasks, and how they end",
    "--mount": "bind, volume, tmpfs with their options: engine and inside",
    "--mount-add": "as --mount",
    "--mount-rm": "inside: the mount is gone",
    "--name": "store: the name; the container's begins with it",
    "--network": "inside: names of services on it; store: aliases",
    "--network-add": "as --network",
    "--network-rm": "inside: names of it are unknown",
    "--oom-score-adj": "engine: the score; the CLI asks for it from API 1.46 on",
    "--placement-pref-rm": "store: gone",
    "--publish": "a client outside is answered; ports of nobody's choice are said in the task",
    "--publish-add": "as --publish",
    "--publish-rm": "a client outside is not answered",
    "--quiet": "the CLI says the id alone",
    "--rollback": "store: the previous spec",
    "--secret-rm": "inside: the file is gone",
    "--sysctl-rm": "inside: the engine's own setting",
    "--ulimit-rm": "inside: the engine's own limit",
    "--with-registry-auth": "the registry is shown the credentials",
}
"""Flags with tests of their own in ``test_flags.py``."""


def known() -> dict[str, str]:
    """Every flag with the effect that is asserted."""
    out = dict(APART)
    for flag in (*CONTAINER, *POLICY):
        out[flag.name] = flag.effect
        if flag.on_update:
            out[flag.on_update] = flag.effect if flag.update == "same" else f"as {flag.name}"
    return dict(sorted(out.items()))


def table() -> str:
    """``docs/flags.md``."""
    rows = "\n".join(f"| `{name}` | {effect} |" for name, effect in known().items())
    return (
        "# Flags of `docker service create` and `docker service update`\n\n"
        "What the tests assert about each flag with real engines and the real CLI (`tests/cluster/test_flags.py`; for placement, updates and\n"
        "restarts, `test_placement.py` and `test_updates.py` next to it). `python -m tests.cluster.flags` generates this page; a test compares it\n"
        "with the table in that module and with the CLI's own help.\n\n"
        f"| flag | effect asserted |\n|---|---|\n{rows}\n"
    )


if __name__ == "__main__":
    from pathlib import Path

    (Path(__file__).parents[2] / "docs" / "flags.md").write_text(table())
