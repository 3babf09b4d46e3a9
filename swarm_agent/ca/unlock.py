"""The cluster's unlock key: ``SWMKEY-1-`` and 32 random bytes in unpadded base64 (behaviour.md 21.1). Pure but for its source."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

from swarm_agent.objects.errors import Unauthenticated, UserError

KEY_BYTES = 32
_PREFIX = "SWMKEY-1-"
_TEXT = re.compile(r"SWMKEY-1-([A-Za-z0-9+/]{43})")


class InvalidUnlockKey(Unauthenticated):
    """Well-formed, and not the one these keys are locked with."""

    code = ""

    def __init__(self) -> None:
        super().__init__("swarm could not be unlocked: invalid key provided")


class MalformedUnlockKey(UserError):
    """No unlock key at all. What was typed is not repeated: it may be most of one."""

    code = ""

    def __init__(self) -> None:
        super().__init__(f"not an unlock key: it begins with {_PREFIX} and has 43 characters after that")


def new_unlock_key(randbits: Callable[[int], int]) -> bytes:
    return randbits(KEY_BYTES * 8).to_bytes(KEY_BYTES, "big")


def shown(key: bytes) -> str:
    """As people see it; "" for none."""
    return _PREFIX + base64.b64encode(key).decode().rstrip("=") if key else ""


def parse_unlock_key(text: str) -> bytes:
    """
    Raises:
        MalformedUnlockKey: not the form of an unlock key.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise MalformedUnlockKey
    try:
        return base64.b64decode(match[1] + "=", validate=True)
    except binascii.Error as err:
        raise MalformedUnlockKey from err
