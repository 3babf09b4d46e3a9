"""Every flag of ``docker service create|update``, given to the real CLI, seen in real containers. The tests run in order."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.flags import CONTAINER, POLICY, Flag, Seen
from tests.cluster.network.lab import until
from tests.cluster.swarm_lab import IMAGE, SHELL, Lab, swarm_lab

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.slow]

BRIEF = ("--no-resolve-image", "--stop-grace-period=0s")
OTHER_DNS = "10.92.0.1"
REGISTRY = "127.0.0.1:5999"

RESPONDER = """
import socket, struct
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("10.92.0.1", 53))
print("up", flush=True)
while True:
    data, who = udp.recvfrom(4096)
    end = data.index(b"\\0", 12) + 5
    found = data[end - 4 : end - 2] == b"\\0\\1"
    head = data[:2] + b"\\x81\\x80" + struct.pack("!4H", 1, int(found), 0, 0)
    answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\1\\0\\4" + bytes([192, 0, 2, 7]) if found else b""
    udp.sendto(head + data[12:end] + answer, who)
"""

REGISTRY_PROGRAM = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        word = self.headers.get("Authorization", "")
        open(sys.argv[1], "a").write(word + "\\n")
        self.send_response(404 if word else 401)
        self.send_header("WWW-Authenticate", 'Basic realm="x"')
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_HEAD = do_GET
    def log_message(self, *a): pass
server = http.server.HTTPServer(("127.0.0.1", 5999), Handler)
print("up", flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder: Path = tmp_path_factory.mktemp("flags")
    with swarm_lab(folder, (1,)) as found:
        host = found[1]
        host.swarm("swarm", "init", "--advertise-addr", host.address)
        host.swarm("secret", "create", "fkey", "-", input="hush")
        host.swarm("config", "create", "fconf", "-", input="conf")
        host.swarm("network", "create", "-d", "overlay", "fnet")
        yield found


def create(
    lab: Lab, name: str, *arguments: str, image: str = SHELL, command: tuple[str, ...] = ("sleep", "10000")
) -> Seen:
    lab[1].swarm("service", "create", "-d", *BRIEF, f"--name={name}", *arguments, image, *command)
    return look(lab, name)


def look(lab: Lab, name: str) -> Seen:
    """The one task that runs the service's present spec."""

    def now() -> Seen | None:
        version = lab[1].get(f"/services/{name}")["Spec"]["TaskTemplate"].get("ForceUpdate", 0)
        live = [t for t in lab.tasks(1, name) if t["Spec"].get("ForceUpdate", 0) == version]
        if len(live) != 1 or len(lab.tasks(1, name)) != 1:
            return None
        return Seen(lab[1], name, live[0]["Status"]["ContainerStatus"]["ContainerID"])

    found: Seen = until(now, f"one running task of {name}", 60)
    return found


def update(lab: Lab, name: str, *arguments: str) -> Seen:
    """Change it in a way that makes a new task, and wait for that."""
    before = look(lab, name).container
    lab[1].swarm("service", "update", "-d", "--no-resolve-image", "--force", *arguments, name)
    until(lambda: look(lab, name).container != before, f"a new task of {name}", 60)
    return look(lab, name)


def refused(lab: Lab, *arguments: str) -> str:
    with pytest.raises(AssertionError) as caught:
        lab[1].swarm(*arguments)
    return str(caught.value)


def gone(lab: Lab, *names: str) -> None:
    lab[1].swarm("service", "rm", *names)

    def left() -> list[str]:
        found = lab[1].docker("ps", "-a", "--format", "{{.Names}}").split()
        return [name for name in found if name.partition(".")[0] in names]

    until(lambda: not left(), f"no containers of {', '.join(names)}", 40)


@pytest.fixture(scope="module")
def made(lab: Lab) -> Iterator[Seen]:
    """All flags of a container at once, at its creation."""
    seen = create(lab, "made", *[a for f in CONTAINER if f.name not in ("--entrypoint", "--stop-grace-period") for a in f.arguments(f.name)],
                  "--stop-grace-period=1s", "--entrypoint=busybox sleep", command=("10000",))  # fmt: skip
    yield seen
    gone(lab, "made")


@pytest.mark.parametrize("flag", CONTAINER, ids=lambda f: f.name)
def test_at_creation(made: Seen, flag: Flag) -> None:
    found, wanted = flag.seen(made)
    assert found == wanted


@pytest.fixture(scope="module")
def changed(lab: Lab) -> Seen:
    """A plain service that was given all of them by an update."""
    create(lab, "changed")
    return update(lab, "changed", "--args=10000", *[a for f in CONTAINER for a in f.arguments(f.on_update)])


@pytest.mark.parametrize("flag", CONTAINER, ids=lambda f: f.on_update)
def test_by_an_update(changed: Seen, flag: Flag) -> None:
    found, wanted = flag.seen(changed)
    assert found == wanted


def test_args(changed: Seen) -> None:
    flag = "--args"
    assert (flag, changed.config["Cmd"]) == ("--args", ["10000"])


def test_taken_away_again(lab: Lab, changed: Seen) -> None:
    after = update(
        lab, "changed",
        "--config-rm=fconf", "--secret-rm=fkey", "--constraint-rm=node.role==manager", "--container-label-rm=cl",
        "--env-rm=FA", "--group-rm=1234", "--host-rm=other:192.0.2.9", "--label-rm=sl", "--sysctl-rm=net.core.somaxconn", "--ulimit-rm=core",
    )  # fmt: skip
    assert "No such file" in after.run("cat /etc/fconf 2>&1 || true")
    assert "No such file" in after.run("cat /run/secrets/k 2>&1 || true")
    assert after.template["Placement"].get("Constraints", []) == []
    assert "cl" not in after.config["Labels"]
    assert after.run("echo $FA") == ""
    assert "1234" not in after.run("busybox id -G").split()
    assert "192.0.2.9" not in after.run("cat /etc/hosts")
    assert after.spec["Labels"] == {}
    assert after.run("cat /proc/sys/net/core/somaxconn") != "1234"
    assert "1024" not in after.run("busybox grep core /proc/self/limits").split()
    gone(lab, "changed")


@pytest.fixture(scope="module")
def kept(lab: Lab) -> Iterator[tuple[Seen, Seen]]:
    """What decides how tasks are handled: given at creation, and by an update."""
    first = create(lab, "kept", *[a for f in POLICY for a in f.arguments(f.name)])
    create(lab, "kept-too")
    second = update(lab, "kept-too", *[a for f in POLICY for a in f.arguments(f.on_update)])
    yield first, second
    gone(lab, "kept", "kept-too")


@pytest.mark.parametrize("flag", POLICY, ids=lambda f: f.name)
def test_how_tasks_are_handled(kept: tuple[Seen, Seen], flag: Flag) -> None:
    for seen in kept:
        found, wanted = flag.seen(seen)
        assert found == wanted


def test_placement_pref_rm(lab: Lab, kept: tuple[Seen, Seen]) -> None:
    lab[1].swarm(
        "service", "update", "-d", "--no-resolve-image", "--placement-pref-rm=spread=node.labels.zone", "kept"
    )
    assert lab[1].get("/services/kept")["Spec"]["TaskTemplate"]["Placement"].get("Preferences", []) == []


def test_name_image_force_and_rollback(lab: Lab) -> None:
    seen = create(lab, "named", "--name=named")
    assert seen.spec["Name"] == "named"
    assert seen.inspect["Name"].startswith("/named.1.")
    again = update(lab, "named", "--force")
    assert again.container != seen.container
    lab[1].docker("tag", SHELL, "swarm-test-shell:2")
    newer = update(lab, "named", "--image=swarm-test-shell:2")
    assert newer.config["Image"] == "swarm-test-shell:2"
    lab[1].swarm("service", "update", "-d", "--rollback", "named")
    until(lambda: look(lab, "named").config["Image"] == SHELL, "the image of before", 60)
    gone(lab, "named")


def test_what_the_cli_says(lab: Lab) -> None:
    quick = lab[1].swarm(
        "service", "create", "--detach", *BRIEF, "--name=quick", "--reserve-memory=900g", SHELL
    )
    assert "converged" not in quick
    out = lab[1].swarm("service", "create", "--quiet", *BRIEF, "--name=quiet", SHELL, "sleep", "100").split()
    assert out == [lab[1].get("/services/quiet")["ID"]]
    gone(lab, "quick", "quiet")


def test_env_file(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# none\nEA=1\nEB=two words\n")
    seen = create(lab, "env", f"--env-file={tmp_path}/env")
    assert seen.run("echo $EA $EB") == "1 two words"
    gone(lab, "env")


@contextlib.contextmanager
def helper(lab: Lab, program: str, *arguments: str) -> Iterator[None]:
    """A small server beside the engine, until the block ends."""
    process = lab[1].spawn(
        sys.executable, "-c", program, *arguments, log="helper.log", stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "up\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# --- network -----------------------------------------------------------------------------------------------------------
def test_network_and_names(lab: Lab) -> None:
    with helper(lab, RESPONDER):
        serve = ("/task", "serve", "me", "7000")
        net = ("--network=name=fnet,alias=nick", "--endpoint-mode=vip")
        create(lab, "peer", *net, image=f"{IMAGE}:1", command=serve)
        dns = (
            f"--dns={OTHER_DNS}",
            "--dns-search=example.org",
            "--dns-option=timeout:3",
            "--dns-option=ndots:2",
        )
        seen = create(lab, "net", *net, *dns)
        (vip,) = lab[1].get("/services/peer")["Endpoint"]["VirtualIPs"]
        address = vip["Addr"].partition("/")[0]
        assert address in seen.run("busybox nslookup peer.")
        assert "192.0.2.7" in seen.run("busybox nslookup elsewhere.example.")
        resolv = seen.run("cat /etc/resolv.conf")
        assert "search example.org" in resolv
        assert resolv.splitlines()[-1] == "options timeout:3 ndots:2"
        assert seen.template["Networks"][0]["Aliases"] == ["nick"]
        after = update(
            lab, "net", f"--dns-rm={OTHER_DNS}", "--dns-search-rm=example.org", "--dns-option-rm=timeout:3"
        )
        assert address in after.run("busybox nslookup peer.")
        assert "192.0.2.7" not in after.run("busybox nslookup elsewhere.example. 2>&1 || true")
        resolv = after.run("cat /etc/resolv.conf")
        assert "example.org" not in resolv
        assert "timeout:3" not in resolv
        after = update(lab, "net", f"--dns-add={OTHER_DNS}", "--dns-search-add=example.org", "--dns-option-add=timeout:3")  # fmt: skip
        assert "192.0.2.7" in after.run("busybox nslookup elsewhere.example.")
        assert "timeout:3" in after.run("cat /etc/resolv.conf")
        after = update(lab, "net", "--network-rm=fnet")
        assert address not in after.run("busybox nslookup peer. 2>&1 || true")
        after = update(lab, "net", "--network-add=fnet")
        assert address in after.run("busybox nslookup peer.")
    gone(lab, "net", "peer")


def test_ports(lab: Lab) -> None:
    serve = ("/task", "serve", "me", "7000")
    fixed = ("--publish=8081:7000", "--publish=mode=host,published=8082,target=7000")
    create(lab, "ports", *fixed, "--publish=mode=host,target=7000", image=f"{IMAGE}:1", command=serve)
    said = until(lambda: lab.tasks(1, "ports")[0]["Status"]["PortStatus"].get("Ports"), "what the task says")
    assert [p["PublishedPort"] for p in said if p["PublishedPort"] == 8082] == [8082]
    (picked,) = [p["PublishedPort"] for p in said if p["PublishedPort"] != 8082]
    for port in (8081, 8082, picked):
        assert until(partial(lab.greeting, 1, port), f"port {port}")[0] == "me"
    update(lab, "ports", "--publish-rm=7000", "--publish-rm=mode=host,target=7000")

    def is_closed(port: int) -> bool:
        return not lab.greeting(1, port)

    for port in (8081, 8082, picked):
        until(partial(is_closed, port), f"no port {port}")
    update(lab, "ports", "--publish-add=8083:7000")
    assert until(lambda: lab.greeting(1, 8083), "port 8083")[0] == "me"
    gone(lab, "ports")


# --- mounts ------------------------------------------------------------------------------------------------------------
def test_mounts(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host")
    lab[1].space.run("mount", "--bind", str(tmp_path), str(tmp_path))
    lab[1].space.run("mount", "--make-shared", str(tmp_path))
    options = "volume-opt=type=tmpfs,volume-opt=device=tmpfs,volume-opt=o=size=2m"
    mounts = (
        f"--mount=type=bind,source={tmp_path},target=/b,readonly,bind-propagation=rslave",
        "--mount=type=volume,source=fvol,target=/v,volume-driver=local,volume-label=l=1,volume-nocopy,"
        + options,
        "--mount=type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770",
    )
    seen = create(lab, "mounts", *mounts)
    bind, volume = seen.mount("/b"), seen.mount("/v")
    assert (bind["Propagation"], bind["RW"]) == ("rslave", False)
    assert seen.run("cat /b/file") == "of the host"
    assert (volume["Name"], volume["Driver"]) == ("fvol", "local")
    told = json.loads(lab[1].docker("volume", "inspect", "fvol"))[0]
    assert (told["Labels"], told["Options"]) == (
        {"l": "1"},
        {"type": "tmpfs", "device": "tmpfs", "o": "size=2m"},
    )
    assert next(m for m in seen.engine["Mounts"] if m["Target"] == "/v")["VolumeOptions"]["NoCopy"] is True
    assert (
        seen.run("busybox stat -c %a /t; busybox df -k /t | busybox tail -1 | busybox awk '{print $2}'")
        == "1770\n1024"
    )
    assert "2048" in seen.run("busybox df -k /v")
    after = update(lab, "mounts", "--mount-rm=/b", "--mount-rm=/t")
    assert [m["Destination"] for m in after.inspect["Mounts"]] == ["/v"]
    after = update(lab, "mounts", "--mount-add=type=tmpfs,target=/t2")
    assert after.run("busybox stat -f -c %T /t2") == "tmpfs"
    gone(lab, "mounts")


def rejection(lab: Lab, name: str, container: dict[str, Any]) -> str:
    """Why tasks of a service made through the API itself end."""
    spec = {
        "Name": name,
        "TaskTemplate": {"ContainerSpec": {"Image": SHELL, "Args": ["sleep", "100"], **container}, "RestartPolicy": {"Condition": "none"}},
    }  # fmt: skip
    status, answer = lab[1].call_api("POST", "/services/create", spec)
    assert status == 201, answer

    def ended() -> str:
        tasks = lab[1].get(f"/tasks?filters=%7B%22service%22:%5B%22{name}%22%5D%7D")
        return next((t["Status"]["Err"] for t in tasks if t["Status"]["State"] == "rejected"), "")

    why = str(until(ended, f"{name} to be rejected"))
    gone(lab, name)
    return why


def test_what_this_engine_is_too_old_for(lab: Lab) -> None:
    """Debian's engine speaks 1.41: nothing of what it would leave out is accepted and forgotten."""
    if tuple(map(int, lab[1].get("/version")["ApiVersion"].split("."))) >= (1, 44):
        pytest.skip("this engine knows it all")
    for flag, given in (("--health-start-interval", "1s"), ("--oom-score-adj", "100")):
        text = refused(lab, "service", "create", "-d", *BRIEF, f"{flag}={given}", SHELL)
        assert f'"{flag}" requires API version' in text
    check = {"Healthcheck": {"Test": ["CMD", "true"], "StartInterval": SECOND}}
    assert "needs an engine of API 1.44 or newer" in rejection(lab, "old1", check)
    volume = {"Type": "volume", "Source": "v", "Target": "/v", "VolumeOptions": {"Subpath": "a"}}
    assert "(volume-subpath) needs an engine of API 1.45 or newer" in rejection(
        lab, "old2", {"Mounts": [volume]}
    )


SECOND = 10**9


def test_oom_score_adj(lab: Lab) -> None:
    """The engine knows it longer than the CLI gives it to services."""
    spec = {"Name": "oom", "TaskTemplate": {"ContainerSpec": {"Image": SHELL, "Args": ["sleep", "1000"], "OomScoreAdj": 100}}}  # fmt: skip
    assert lab[1].call_api("POST", "/services/create", spec)[0] == 201
    seen = look(lab, "oom")
    assert ("--oom-score-adj", seen.run("cat /proc/1/oom_score_adj")) == ("--oom-score-adj", "100")
    gone(lab, "oom")


# --- modes, resources, registries --------------------------------------------------------------------------------------
def states(lab: Lab, name: str) -> list[str]:
    found = lab[1].get(f"/tasks?filters=%7B%22service%22:%5B%22{name}%22%5D%7D")
    return [t["Status"]["State"] for t in found]


def test_modes(lab: Lab) -> None:
    host = lab[1]
    host.swarm(
        "service", "create", "-d", *BRIEF, "--mode=global", "--name=everywhere", SHELL, "sleep", "1000"
    )
    (task,) = lab.running(1, "everywhere", 1)
    assert ("Slot" in task, task["NodeID"]) == (False, lab.node_id(1))
    host.swarm("service", "create", "-d", *BRIEF, "--mode=replicated-job", "--replicas=3", "--max-concurrent=2", "--name=job", SHELL, "sleep", "0")  # fmt: skip
    until(lambda: states(lab, "job") == ["complete"] * 3, "three tasks to end", 60)
    assert host.get("/services/job")["Spec"]["Mode"] == {
        "ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 3}
    }
    host.swarm("service", "create", "-d", *BRIEF, "--mode=global-job", "--name=once", SHELL, "sleep", "0")
    until(lambda: states(lab, "once") == ["complete"], "one task to end", 60)
    gone(lab, "everywhere", "job", "once")


def test_generic_resources(lab: Lab) -> None:
    host = lab[1]
    host.swarm(
        "service", "create", "-d", *BRIEF, "--generic-resource=tape=2", "--name=drive", SHELL, "sleep", "1000"
    )
    until(
        lambda: (
            "insufficient resources"
            in host.swarm("service", "ps", "--no-trunc", "--format", "{{.Error}}", "drive")
        ),
        "why it waits",
    )
    kinds = host.get("/services/drive")["Spec"]["TaskTemplate"]["Resources"]["Reservations"][
        "GenericResources"
    ]
    assert kinds == [{"DiscreteResourceSpec": {"Kind": "tape", "Value": 2}}]
    host.swarm("service", "update", "-d", "--no-resolve-image", "--generic-resource-rm=tape", "drive")
    lab.running(1, "drive", 1)
    host.swarm("service", "update", "-d", "--no-resolve-image", "--generic-resource-add=tape=1", "drive")
    kinds = host.get("/services/drive")["Spec"]["TaskTemplate"]["Resources"]["Reservations"][
        "GenericResources"
    ]
    assert kinds == [{"DiscreteResourceSpec": {"Kind": "tape", "Value": 1}}]
    gone(lab, "drive")


def test_with_registry_auth(lab: Lab, tmp_path: Path) -> None:
    host = lab[1]
    seen = tmp_path / "seen"
    with helper(lab, REGISTRY_PROGRAM, str(seen)):
        word = base64.b64encode(b"somebody:secret").decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {REGISTRY: {"auth": word}}}))
        host.docker("tag", SHELL, f"{REGISTRY}/shell:1")
        host.swarm(
            "service", "create", "-d", *BRIEF, "--with-registry-auth", "--name=auth", f"{REGISTRY}/shell:1", "sleep", "1000",
            env={**os.environ, "DOCKER_CONFIG": str(tmp_path)},
        )  # fmt: skip
        lab.running(1, "auth", 1)
        assert f"Basic {word}" in seen.read_text().splitlines()
    gone(lab, "auth")


def test_the_clusters_log_driver_is_the_services_without_one(lab: Lab) -> None:
    host = lab[1]
    cluster = host.get("/swarm")
    spec = {**cluster["Spec"], "TaskDefaults": {"LogDriver": {"Name": "none"}}}
    assert host.call_api("POST", f"/swarm/update?version={cluster['Version']['Index']}", spec)[0] == 200
    plain, own = create(lab, "plain"), create(lab, "own", "--log-driver=json-file")
    assert (plain.engine["LogConfig"]["Type"], own.engine["LogConfig"]["Type"]) == ("none", "json-file")
    gone(lab, "plain", "own")


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--credential-spec=file://x.json", "credential specs (--credential-spec)"),
        ("--isolation=hyperv", "isolation (--isolation)"),
        ("--endpoint-mode=dnsrr", "endpoint mode dnsrr"),
        ("--mount=type=cluster,source=v,target=/v", "cluster volumes"),
    ],
)
def test_refused_by_name(lab: Lab, flag: str, text: str) -> None:
    started = time.monotonic()
    assert text in refused(lab, "service", "create", "-d", *BRIEF, flag, SHELL)
    assert time.monotonic() - started < 10
