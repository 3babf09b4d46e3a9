"""The image that demo hosts boot from: built once from the machine's own package sources, then kept.

A host differs from a rented server in nothing that the roles can see: Debian with systemd, sshd and Python. Docker and
what else the roles install are in the image too, because installing them on each host would cost minutes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from tests.hosts.engine import Engine
from tests.hosts.shell import Failure, run, say

HERE = Path(__file__).parent
ROOTFS = HERE / "rootfs"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "swarm-agent"

_BASE = (
    "systemd,systemd-sysv,dbus,libpam-runtime,openssh-server,python3,python3-apt,sudo,ca-certificates,iproute2,iptables,"
    "nftables,procps,iputils-ping,curl,kmod,e2fsprogs"
)
_WARM = "docker.io,conntrack,tcpdump,docker-registry"
# Units that do nothing in a container but cost a second at each boot.
_MASKED = (
    "systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket getty.target console-getty.service "
    "apt-daily.timer apt-daily-upgrade.timer systemd-logind.service e2scrub_all.timer e2scrub_reap.service fstrim.timer "
    "systemd-update-utmp.service systemd-update-utmp-runlevel.service modprobe@.service sys-kernel-debug.mount "
    "sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount docker-registry.service"
)


def _packages(*, warm: bool) -> str:
    return f"{_BASE},{_WARM}" if warm else _BASE


def _options(packages: str) -> list[str]:
    """What mmdebstrap is told, but for where things lie on this machine."""
    chroot = 'chroot "$1"'
    emptied = '"$1"/etc/ssh/ssh_host_* "$1"/etc/machine-id "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap'
    return [
        "--variant=minbase",
        "--mode=root",
        f"--include={packages}",
        "--components=main",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=force-unsafe-io",
        f'--customize-hook=rm -f {emptied}; : > "$1"/etc/machine-id',
        f"--customize-hook={chroot} systemctl mask {_MASKED} >/dev/null 2>&1",
        f"--customize-hook={chroot} systemctl set-default multi-user.target >/dev/null 2>&1",
    ]


def _definition(suite: str, packages: str) -> str:
    digest = hashlib.sha256("\n".join([suite, *_options(packages)]).encode())
    for path in sorted(p for p in ROOTFS.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(ROOTFS)} {path.stat().st_mode:o}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(suite: str) -> list[str]:
    """The machine's own Debian sources for this release."""
    found: list[str] = []
    listed = Path("/etc/apt/sources.list.d/debian.sources")
    if listed.exists():
        found = [line.split()[1] for line in listed.read_text().splitlines() if line.startswith("URIs:")]
    else:
        for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.list"))]:
            if path.exists():
                words = [line.split() for line in path.read_text().splitlines() if line.startswith("deb ")]
                found += [next(w for w in w_ if "://" in w) for w_ in words if "main" in w_]
    main = next((uri for uri in found if "security" not in uri), None)
    if main is None:
        raise Failure("this machine's apt names no Debian mirror: the host image is made from its packages")
    security = next((uri for uri in found if "security" in uri), None)
    lines = [f"deb {main} {suite} main", f"deb {main} {suite}-updates main"]
    return lines + ([f"deb {security} {suite}-security main"] if security else [])


def tag(suite: str = "bookworm", *, warm: bool = True) -> str:
    return f"swarm-demo-host:{_definition(suite, _packages(warm=warm))}"


def tarball(suite: str = "bookworm", *, warm: bool = True) -> Path:
    """The host's file tree, built if this definition was not built before."""
    packages = _packages(warm=warm)
    path = CACHE / "hosts" / f"{suite}-{_definition(suite, packages)}.tar"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"building the host image from Debian {suite} packages, once")
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        out = Path(scratch) / "host.tar"
        tree = f"--customize-hook=sync-in {ROOTFS} /"
        run(["mmdebstrap", *_options(packages), tree, suite, str(out), *_sources(suite)], timeout=1200)
        out.rename(path)
    return path


def ensure(engine: Engine, suite: str = "bookworm", *, warm: bool = True) -> str:
    """The tag of the host image in this engine."""
    name = tag(suite, warm=warm)
    if not engine.docker("images", "--quiet", name):
        path = tarball(suite, warm=warm)
        say("importing the host image")
        engine.docker(
            "import",
            "--change=ENV container=docker",
            '--change=CMD ["/usr/local/sbin/host-init"]',
            "--change=LABEL org.swarm-agent.host-image=1",
            str(path),
            name,
            timeout=600,
        )
    return name
