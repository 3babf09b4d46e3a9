"""What we ask of the host itself: kernel settings, a way through its firewall, tracked connections to forget.

Owns: two ACCEPT rules marked ``swarm-agent`` in the host's iptables, a handful of sysctls in the host's namespace.
Refuses: any other rule of the user's; ours go behind what a user inserted in DOCKER-USER, so users keep the last word.
Runs in the worker thread.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

from swarm_agent.network import namespaces
from swarm_agent.network.model import HOST_LINK, Cut

log = logging.getLogger(__name__)

_MODULES = ("vxlan", "bridge", "veth", "br_netfilter", "nf_conntrack", "nf_tables")
_PROGRAMS = ("iptables", "iptables-nft", "iptables-legacy")
_COMMENT = "swarm-agent"


class MissingPart(Exception):
    """The host lacks something we cannot do without; the sentence says what to install or load."""


def prepare_kernel() -> None:
    """Load modules where the kernel has modules; say what is missing where that did not help."""
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-a", "-q", *_MODULES], capture_output=True, timeout=60, check=False)
    if not Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists():
        raise MissingPart("the kernel has no br_netfilter: load the module (modprobe br_netfilter)")
    namespaces.set_sysctl("net/ipv4/ip_forward", "1")


def open_host_link() -> bool:
    """Kernel settings of ``swarm0``: 127.0.0.1 may leave by it, and answers may come back any way. True when some were set."""
    settings = {"rp_filter": "0", "route_localnet": "1", "send_redirects": "0"}
    done = [
        namespaces.set_sysctl(f"net/ipv4/conf/{HOST_LINK}/{key}", value) for key, value in settings.items()
    ]
    return any(done)


def keep_host_sysctls() -> bool:
    """True when something had to be set, or cannot be because ``swarm0`` is not there."""
    try:
        return any([namespaces.set_sysctl("net/ipv4/ip_forward", "1"), open_host_link()])
    except FileNotFoundError:
        return True


# --- iptables


def _iptables(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, "-w", "10", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def _listing(program: str, chain: str) -> list[str] | None:
    if not shutil.which(program):
        return None
    if program == "iptables-legacy" and not _legacy_in_use():
        return None
    done = _iptables(program, "-S", chain)
    return done.stdout.splitlines()[1:] if done.returncode == 0 else None


def _legacy_in_use() -> bool:
    """Asking the old tables for a list would make them: only where they are there already."""
    try:
        return "filter" in Path("/proc/thread-self/net/ip_tables_names").read_text().split()
    except OSError:
        return False


def _rule(direction: str) -> list[str]:
    return [direction, HOST_LINK, "-m", "comment", "--comment", _COMMENT, "-j", "ACCEPT"]


def open_forwarding() -> None:
    """Let the node network's packets through the host's FORWARD chain, which Docker leaves with policy DROP.

    In DOCKER-USER, just before its closing RETURN; without that chain, on top of FORWARD. What may come in is decided
    by our own forward chain, which runs first.
    """
    for program in _PROGRAMS:
        present = _listing(program, "DOCKER-USER")
        if present is not None:
            _accept(program, "DOCKER-USER", present)
            return
    for program in _PROGRAMS:
        present = _listing(program, "FORWARD")
        if present is not None:
            _accept(program, "FORWARD", present)
            return
    log.warning(
        "no iptables here: if something drops forwarded packets, let those of the link swarm0 through"
    )


def _accept(program: str, chain: str, present: list[str]) -> None:
    missing = [
        _rule(d)
        for d in ("-i", "-o")
        if not any(_COMMENT in line and f"{d} {HOST_LINK} " in line for line in present)
    ]
    if not missing:
        return
    if chain == "FORWARD":
        position = 1
    else:
        closing = bool(present) and present[-1] == f"-A {chain} -j RETURN"
        position = len(present) if closing else len(present) + 1
    for rule in missing:
        done = _iptables(program, "-I", chain, str(position), *rule)
        if done.returncode != 0:
            raise MissingPart(f"{program} refused to let {HOST_LINK} through {chain}: {done.stderr.strip()}")


def close_forwarding() -> None:
    """Take our rules out of every table that has them."""
    for program in _PROGRAMS:
        for chain in ("DOCKER-USER", "FORWARD"):
            for line in _listing(program, chain) or []:
                if _COMMENT in line and HOST_LINK in line:
                    _iptables(program, "-D", chain, *_rule("-i" if f"-i {HOST_LINK}" in line else "-o"))


# --- tracked connections


def cut(netns: str | None, cuts: tuple[Cut, ...]) -> None:
    """Forget connections. None found is as good as some found."""
    if not cuts:
        return
    if not shutil.which("conntrack"):
        log.warning(
            "the conntrack program is not here (package conntrack): connections to stopped tasks linger"
        )
        return
    if netns is None:
        _cut(cuts)
        return
    with namespaces.entered(netns):
        _cut(cuts)


def _cut(cuts: tuple[Cut, ...]) -> None:
    for one in cuts:
        arguments = ["conntrack", "-D", "-f", "ipv4"]
        if one.protocol:
            arguments += ["-p", one.protocol]
        if one.vip:
            arguments += ["--orig-dst", one.vip]
        if one.port:
            arguments += ["--orig-port-dst", str(one.port)]
        if one.backend:
            arguments += ["--reply-src", one.backend]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode not in {0, 1} or (done.returncode == 1 and "0 flow entries" not in done.stderr):
            log.warning(f"conntrack could not forget {one}: {done.stderr.strip()}")
