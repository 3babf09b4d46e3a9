"""What is said when no manager leads: who does not answer, where, and what that calls for.

A pure function of what this manager sees. Advice that costs something stands beside its cost, and only where bringing managers back
would not do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Other(NamedTuple):
    """Another manager, as seen from here."""

    name: str
    host: str
    answers: bool  # a connection to its Raft port is open


def say(others: Sequence[Other], port: int) -> str:
    """``others``: the other voting managers; ``port``: the TCP port at which managers speak Raft."""
    if not others:
        return (
            "this manager is the only one and does not lead: its log says why (journalctl -u swarm-agent). See also that its disk is not "
            "full, can be written and answers in time"
        )
    voters = len(others) + 1
    needed = voters // 2 + 1
    head = f"this manager hears no leader: {needed} of {voters} managers have to run and reach each other. "
    silent = [other for other in others if not other.answers]
    if not silent:
        return (
            f"{head}{_list(others)} can be reached on TCP port {port}: an election is going on, or they do not reach this one on that port. "
            f"See what docker info says there"
        )
    answering = [other for other in others if other.answers]
    text = f"{head}{_list(silent)} {_do(silent)} not answer on TCP port {port}"
    if answering:
        text += f", {_list(answering)} {_do(answering, 'does', 'do')}"
    text += ": see that swarm-agent runs there (systemctl status swarm-agent) and that no firewall is between"
    if len(answering) + 1 < needed:
        text += (
            ". Only if they are gone for good: docker swarm init --force-new-cluster makes this manager the only one; what the others "
            "had written without it is lost, and one that comes back discards its log and becomes a manager again"
        )
    return text


def _list(others: Sequence[Other]) -> str:
    named = [f"{other.name} at {other.host}" for other in others]
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)


def _do(others: Sequence[Other], one: str = "does", many: str = "do") -> str:
    return one if len(others) == 1 else many
