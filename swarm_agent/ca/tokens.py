"""Join tokens: ``SWMTKN-1-<digest of the root certificate>-<secret>`` (behaviour.md 20.1). Pure but for the secret's source."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from typing import NamedTuple

from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.ids import base36
from swarm_agent.objects.records import JoinTokens

_TOKEN = re.compile(r"SWMTKN-1-([0-9a-z]{50})-([0-9a-z]{25})")


class InvalidJoinToken(SwarmError):
    """Not a join token at all; said before anybody is asked."""

    code = ""

    def __init__(self) -> None:
        super().__init__("invalid join token")


class Token(NamedTuple):
    digest: str
    secret: str


def root_digest(root_pem: bytes) -> str:
    """The part of a token that pins the root certificate: SHA-256 of its PEM in base 36, 50 characters."""
    return base36(int.from_bytes(hashlib.sha256(root_pem).digest(), "big"), 50)


def new_token(digest: str, randbits: Callable[[int], int] = secrets.randbits) -> str:
    return f"SWMTKN-1-{digest}-{base36(randbits(128), 25)}"


def new_tokens(digest: str, randbits: Callable[[int], int] = secrets.randbits) -> JoinTokens:
    return JoinTokens(worker=new_token(digest, randbits), manager=new_token(digest, randbits))


def parse_token(text: str) -> Token:
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise InvalidJoinToken
    return Token(match[1], match[2])


def role_of(text: str, tokens: JoinTokens) -> str | None:
    """ "worker", "manager", or ``None`` for a token that is not ours; compared in constant time."""
    worker = hmac.compare_digest(text.encode(), tokens.worker.encode())
    manager = hmac.compare_digest(text.encode(), tokens.manager.encode())
    return "worker" if worker else "manager" if manager else None
