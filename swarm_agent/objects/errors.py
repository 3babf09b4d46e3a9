"""The one error tree.

``http_status`` and ``code`` tell the API edge what a client should see; the sentence says what failed and what to do next.
"""

from __future__ import annotations


class SwarmError(Exception):
    """Base of every error this project raises on purpose."""

    http_status = 500
    code = "Unknown"  # the gRPC status name Docker's clients match on


class UserError(SwarmError):
    """The caller asked for something that cannot be; nothing was changed."""

    http_status = 400
    code = "InvalidArgument"


class InvalidSpec(UserError):
    """A field of a submitted document is wrong. ``path`` names it, Docker's text is the message."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class FailedPrecondition(UserError):
    """Valid in itself, not possible in the present state."""

    code = "FailedPrecondition"


class ReleaseTooOld(FailedPrecondition):
    """This manager's release, or the level it is held at, is below what its cluster writes. Its data is untouched."""


class NotFound(UserError):
    http_status = 404
    code = "NotFound"


class AlreadyExists(UserError):
    http_status = 409
    code = "AlreadyExists"


class PermissionDenied(UserError):
    http_status = 403
    code = "PermissionDenied"


class NodeRemoved(PermissionDenied):
    """The caller was removed from the swarm: its certificate is good for nothing any more, whomever it asks."""


class Unauthenticated(UserError):
    http_status = 401
    code = "Unauthenticated"


class Unimplemented(UserError):
    """Docker knows it, we refuse it by name."""

    http_status = 501
    code = "Unimplemented"


class Unavailable(SwarmError):
    """Not now; trying again later may work."""

    http_status = 503
    code = "Unavailable"


class OutOfSequence(SwarmError):
    """The version a write was based on is not the stored one (Docker's text and status)."""

    http_status = 500

    def __init__(self) -> None:
        super().__init__("update out of sequence")


class NoLeader(Unavailable):
    """No manager leads: too few managers are up, or an election is running."""

    http_status = 500
    code = "Unknown"

    def __init__(self) -> None:
        super().__init__(
            "The swarm does not have a leader. It's possible that too few managers are online. "
            "Make sure more than half of the managers are online."
        )


class NotLeading(NoLeader):
    """This manager led a moment ago and does not any more. Nothing was done: another may be asked."""
