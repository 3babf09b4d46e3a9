"""Identifiers of cluster objects: 25 characters of ``[0-9a-z]``, about 129 bits."""

from __future__ import annotations

import re
from typing import Protocol

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_TRIPLES = tuple(a + b + c for a in _DIGITS for b in _DIGITS for c in _DIGITS)
_ID = re.compile(r"[0-9a-z]{25}")


class RandomBits(Protocol):
    """What an id needs of a random source (``random.Random`` and ``random.SystemRandom`` both fit)."""

    def getrandbits(self, k: int, /) -> int: ...


def base36(number: int, width: int) -> str:
    """``number`` in base 36, left-padded with zeros to ``width`` characters."""
    text = ""
    while number:
        number, nine = divmod(number, 36**9)  # digits: these fit into a machine word
        six, last = divmod(nine, 36**3)
        first, middle = divmod(six, 36**3)
        text = _TRIPLES[first] + _TRIPLES[middle] + _TRIPLES[last] + text
    return text.lstrip("0").rjust(width, "0")


def new_id(rng: RandomBits) -> str:
    """A fresh id: 17 random bytes with the top bit set, in base 36, characters 1 to 25."""
    return base36(rng.getrandbits(136) | (1 << 135), 27)[1:26]


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None
