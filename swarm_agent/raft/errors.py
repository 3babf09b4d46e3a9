"""What can go wrong for those who use the raft room."""

from __future__ import annotations

from swarm_agent.objects.errors import FailedPrecondition, SwarmError, Unavailable, UserError
from swarm_agent.raft.core.conf import Member


class NotLeader(Unavailable):
    """Nothing was done: ask ``leader``, or wait for one when it is None."""

    def __init__(self, leader: Member | None) -> None:
        who = f"ask {leader.node_id} at {leader.addr}" if leader else "there is no leader now, try again"
        super().__init__(f"this manager does not lead; {who}")
        self.leader = leader


class OutcomeUnknown(Unavailable):
    """Leadership was lost with the entry in the log: the next leader may commit it or drop it."""

    def __init__(self) -> None:
        super().__init__(
            "leadership was lost before the outcome was known; look at the state before trying again"
        )


class Overloaded(Unavailable):
    """Too many bytes wait to be committed; nothing was done."""

    http_status = 503
    code = "ResourceExhausted"

    def __init__(self) -> None:
        super().__init__("too many uncommitted bytes; try again later")


class EntryTooLarge(UserError):
    def __init__(self, size: int, most: int) -> None:
        super().__init__(f"entry of {size} bytes is larger than the {most} bytes allowed; split the change")


class Stopped(Unavailable):
    def __init__(self, reason: str = "") -> None:
        super().__init__(f"this raft member is stopped{': ' + reason if reason else ''}")


class TransferFailed(Unavailable):
    """Leadership stayed where it is."""


class MembershipRefused(FailedPrecondition):
    """The change of membership cannot be or would cost the majority; nothing was done."""


class LogError(SwarmError):
    """The log on disk cannot be used. Starting anyway could forget a vote or an acknowledged write."""


class LogCorrupt(LogError):
    """Bytes that were once durable are gone or changed."""


class WrongOwner(LogError):
    """The files belong to another cluster or node."""
