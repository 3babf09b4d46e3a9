"""The image that demo hosts boot from: built once from the machine's own package sources, then kept.

A host differs from a rented server in nothing that the roles can see: Debian with systemd, sshd and Python. Docker and
what else the roles install are in the image too, because installing them on each host would cost minutes; a bare kind
of host is for seeing that the roles do install them.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
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
_ENGINE = "docker.io,conntrack,tcpdump,docker-registry"
# Debian 13 has the docker command in a package of its own, which docker.io only recommends.
_COMMAND = {"bookworm": "", "trixie": ",docker-cli"}
# Units that do nothing in a container but cost a second at each boot.
_MASKED = (
    "systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket getty.target console-getty.service "
    "apt-daily.timer apt-daily-upgrade.timer systemd-logind.service e2scrub_all.timer e2scrub_reap.service fstrim.timer "
    "systemd-update-utmp.service systemd-update-utmp-runlevel.service modprobe@.service sys-kernel-debug.mount "
    "sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount docker-registry.service"
)


@dataclass(frozen=True)
class Kind:
    """A kind of host: a release of Debian, with a Docker Engine in it or bare."""

    suite: str = "bookworm"
    bare: bool = False

    @classmethod
    def parse(cls, words: str) -> Kind:
        """``trixie`` or ``trixie-bare``."""
        suite, _dash, rest = words.partition("-")
        if suite not in _COMMAND or rest not in ("", "bare"):
            raise Failure(
                f"there is no kind of host {words!r}: say one of {', '.join(_COMMAND)}, or SUITE-bare"
            )
        return cls(suite, rest == "bare")

    @property
    def packages(self) -> str:
        return _BASE if self.bare else f"{_BASE},{_ENGINE}{_COMMAND[self.suite]}"

    @property
    def tag(self) -> str:
        return f"swarm-demo-host:{_definition(self.suite, self.packages)}"


USUAL = Kind()


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


def tarball(kind: Kind) -> Path:
    """The host's file tree, built if this definition was not built before."""
    path = CACHE / "hosts" / f"{kind.suite}-{_definition(kind.suite, kind.packages)}.tar"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"building the {'bare ' if kind.bare else ''}host image from Debian {kind.suite} packages, once")
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        out = Path(scratch) / "host.tar"
        tree = f"--customize-hook=sync-in {ROOTFS} /"
        run(
            ["mmdebstrap", *_options(kind.packages), tree, kind.suite, str(out), *_sources(kind.suite)],
            timeout=1200,
        )
        out.rename(path)
    return path


def ensure(engine: Engine, kind: Kind = USUAL) -> str:
    """The tag of the host image in this engine."""
    if not engine.docker("images", "--quiet", kind.tag):
        path = tarball(kind)
        say("importing the host image")
        engine.docker(
            "import",
            "--change=ENV container=docker",
            '--change=CMD ["/usr/local/sbin/host-init"]',
            "--change=LABEL org.swarm-agent.host-image=1",
            str(path),
            kind.tag,
            timeout=600,
        )
    return kind.tag
