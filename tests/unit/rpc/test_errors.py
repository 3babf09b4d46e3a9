"""Which of our errors comes out of a call: told by a code, never by the words of a sentence."""

from __future__ import annotations

import pytest

from swarm_agent.objects.errors import (
    FailedPrecondition,
    NodeRemoved,
    NoLeader,
    NotFound,
    PermissionDenied,
    ReleaseTooOld,
    SwarmError,
    Unavailable,
)
from swarm_agent.rpc.grpc import NotTaken, Redirect, WireError, error_of, refusal_of


@pytest.mark.parametrize(
    "error",
    [
        FailedPrecondition("no"),
        NodeRemoved("no"),
        NoLeader(),
        NotFound("no"),
        NotTaken("no"),
        PermissionDenied("no"),
        ReleaseTooOld("no"),
        SwarmError("no"),
        Unavailable("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_itself_at_the_other_end(error: SwarmError) -> None:
    refusal = refusal_of(error)
    back = error_of(
        WireError(refusal.status, "in other words", refusal.leader, refusal.kind), "10.0.0.1:2378"
    )
    assert type(back) is type(error)


def test_a_redirect_says_where_to() -> None:
    back = error_of(refusal_of(Redirect("10.0.0.2:2378")), "10.0.0.1:2378")
    assert isinstance(back, Redirect)
    assert back.addr == "10.0.0.2:2378"


def test_words_decide_nothing() -> None:
    said = (
        "node n1 was removed from swarm; The swarm does not have a leader; this manager knows no leader now"
    )
    assert type(error_of(WireError("PERMISSION_DENIED", said), "x")) is PermissionDenied
    assert type(error_of(WireError("UNAVAILABLE", said), "x")) is Unavailable
