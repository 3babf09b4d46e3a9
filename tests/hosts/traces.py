"""What a Docker Engine leaves in a machine's network when it ends: its bridge, its chains, rules and tables, a policy, a sysctl.

Looked at before it starts and compared afterwards, so that only what came with it is taken away. What others have put there since stays.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import msgspec

from tests.hosts.shell import run

FAMILIES = {"ip": "iptables", "ip6": "ip6tables"}
BRIDGE = "docker0"
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


class Table(msgspec.Struct, frozen=True):
    """One table of one family, as ``iptables-save`` shows it."""

    chains: dict[str, str] = {}
    """Each with its policy; "-" for a chain that is not the kernel's own."""
    rules: tuple[str, ...] = ()


class Traces(msgspec.Struct, frozen=True):
    bridge: bool
    forwarding: str
    tables: dict[str, Table]
    """By family and name: ``ip filter``."""
    hooks: tuple[str, ...] = ()
    """Chains that are really there, as ``ip filter FORWARD``: iptables shows the kernel's own ones even where they are not."""


def parse(family: str, text: str) -> dict[str, Table]:
    """The output of ``iptables-save``."""
    found: dict[str, Table] = {}
    name = ""
    chains: dict[str, str] = {}
    rules: list[str] = []
    for line in text.splitlines():
        if line.startswith("*"):
            name, chains, rules = line[1:], {}, []
        elif line.startswith(":"):
            chain, policy = line[1:].split()[:2]
            chains[chain] = policy
        elif line.startswith("-A "):
            rules.append(line)
        elif line == "COMMIT":
            found[f"{family} {name}"] = Table(chains, tuple(rules))
    return found


def look() -> Traces:
    tables: dict[str, Table] = {}
    for family, command in FAMILIES.items():
        if shutil.which(f"{command}-save"):
            tables |= parse(family, run([f"{command}-save"], check=False).stdout)
    listed = json.loads(run(["nft", "--json", "list", "chains"], check=False).stdout or "{}")
    chains = [entry["chain"] for entry in listed.get("nftables", ()) if "chain" in entry]
    hooks = tuple(f"{chain['family']} {chain['table']} {chain['name']}" for chain in chains)
    bridge = run(["ip", "-brief", "link", "show", BRIDGE], check=False).stdout.startswith(BRIDGE)
    return Traces(bridge, _FORWARDING.read_text().strip(), tables, hooks)


def plan(before: Traces, after: Traces) -> list[list[str]]:
    """Commands that take away what the engine left."""
    commands = []
    for key, table in after.tables.items():
        commands += _of_table(
            key, before.tables.get(key), table, [h for h in after.hooks if h not in before.hooks]
        )
    if after.bridge and not before.bridge:
        commands.append(["ip", "link", "delete", BRIDGE])
    if before.forwarding != after.forwarding:
        commands.append(["sysctl", "--quiet", f"net.ipv4.ip_forward={before.forwarding}"])
    return commands


def _of_table(key: str, before: Table | None, after: Table, new: list[str]) -> list[list[str]]:
    family, name = key.split()
    command = [FAMILIES[family], "--wait", "--table", name]
    known = before or Table()
    ours = [rule for rule in after.rules if rule not in known.rules and ("DOCKER" in rule or BRIDGE in rule)]
    chains = [chain for chain in after.chains if chain.startswith("DOCKER") and chain not in known.chains]
    others = [rule for rule in after.rules if rule not in ours]
    if before is None and not others and all(p != "-" for c, p in after.chains.items() if c not in chains):
        return [["nft", "delete", "table", family, name]]
    commands = [
        [*command, "--delete", *shlex.split(rule)[1:]] for rule in ours if rule.split()[1] not in chains
    ]
    commands += [[*command, "--flush", chain] for chain in chains]
    commands += [[*command, "--delete-chain", chain] for chain in chains]
    for chain, policy in after.chains.items():
        was = known.chains.get(chain, "ACCEPT")
        if f"{key} {chain}" in new and policy != "-" and not any(r.split()[1] == chain for r in others):
            commands.append(["nft", "delete", "chain", family, name, chain])
        elif policy not in ("-", was):
            commands.append([*command, "--policy", chain, was])
    return commands


def take_away(before: Traces) -> None:
    """Each for itself: one that somebody has taken away meanwhile does not keep the next."""
    for command in plan(before, look()):
        run(command, check=False)


def encode(traces: Traces) -> bytes:
    return msgspec.json.encode(traces)


def decode(text: bytes) -> Traces:
    return msgspec.json.decode(text, type=Traces)
