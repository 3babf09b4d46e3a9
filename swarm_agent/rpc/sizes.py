"""How large a message may be, by the caller's role, the call and the kind of message: looked at before anything is decoded. Pure.

A message of many megabytes takes the loop that decodes it most of a second, and what would be refused after that has cost it already. Whatever
becomes a row has to fit an entry of Raft's log (1.5 MiB), so nothing honest is near these limits.
"""

from __future__ import annotations

from swarm_agent.objects.errors import UserError

KIB, MIB = 1 << 10, 1 << 20

CHANNEL = {"manager": 16 * MIB, "worker": 4 * MIB}
"""What a message of a role may have at all: gRPC refuses more from the length in front of it."""

REPLY = 64 * MIB  # managers are believed: lists of everything there is travel as one answer

_CALLS = {
    "Logs": 2 * MIB,
    "Forward": 12 * MIB,  # the API's own limits of head and body, and some air
    "JoinRaft": 16 * KIB,
    "Renew": 64 * KIB,
    "Issue": 128 * KIB,  # the join server's limit, encoded once more
    "Leave": 1 * KIB,
}
_SESSION = {
    "hello": 1536 * KIB,
    "described": 1536 * KIB,
    "statuses": 4 * MIB,
    "beat": 1 * KIB,
    "leaving": 1 * KIB,
    "pausing": 1 * KIB,
}
UNKNOWN = 64 * KIB  # of a later release; it is refused or ignored once it is decoded


class TooLarge(UserError):
    """Nothing of it was decoded."""


def check(name: str, role: str, data: bytes) -> None:
    """Raise TooLarge for a message of ``name`` that no honest caller of this role sends."""
    kind = tag_of(data) if name == "Session" else ""
    most = _SESSION.get(kind, UNKNOWN) if name == "Session" else _CALLS.get(name, UNKNOWN)
    most = min(most, CHANNEL[role])
    if len(data) > most:
        what = f"{name} message ({kind or 'of no known kind'})" if name == "Session" else f"{name} message"
        raise TooLarge(f"a {what} of {len(data)} bytes is larger than the {most} bytes a {role} may send")


def tag_of(data: bytes) -> str:
    """The tag of a tagged message, from its first bytes alone; "" for anything else."""
    if not data or not (0x80 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF)):
        return ""
    at = {0xDE: 3, 0xDF: 5}.get(data[0], 1)
    if data[at : at + 5] != b"\xa4type":
        return ""
    head = data[at + 5 : at + 6]
    if not head or not 0xA0 <= head[0] <= 0xBF:
        return ""
    return data[at + 6 : at + 6 + (head[0] & 0x1F)].decode("ascii", "replace")
