"""What templates compute with, and how Go prints it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from swarm_agent.objects.errors import InvalidSpec


class TemplateError(InvalidSpec):
    """A template that cannot be read or done; the text is as Go's."""


class BadCall(Exception):
    """What is wrong with the arguments of a function; whoever called it says where."""


class Fields:
    """A Go struct: asking for a field it has not is an error that names its type."""

    def __init__(self, type_: str, fields: Mapping[str, Any]) -> None:
        self.type = type_
        self.fields = fields


def truth(value: Any) -> bool:
    """Whether Go's ``if`` takes it for true."""
    return isinstance(value, Fields) or bool(value)


def type_name(value: Any) -> str:
    match value:
        case None:
            return "nil"
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float64"
        case str():
            return "string"
        case Mapping():
            return "map[string]string"
        case list() | tuple():
            return "[]string"
        case Fields():
            return value.type
    return type(value).__name__


def shown(value: Any) -> str:
    """As Go's ``%v``."""
    match value:
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case float():
            return general(value)
        case Mapping():
            return "map[" + " ".join(f"{shown(k)}:{shown(value[k])}" for k in sorted(value)) + "]"
        case list() | tuple():
            return "[" + " ".join(map(shown, value)) + "]"
        case Fields():
            return "{" + " ".join(map(shown, value.fields.values())) + "}"
    return str(value)


def general(value: float) -> str:
    """The shortest text that reads back, as Go prints floats: exponents below -4 and from 21 on."""
    if not math.isfinite(value):
        return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}[str(value)]
    digits, _, exponent = f"{value!r}".partition("e")
    if not exponent and "." in digits and abs(value) < 1e16:
        return digits.removesuffix(".0")
    if -4 <= int(exponent or 0) < 21:
        return f"{value:.0f}" if value == int(value) else repr(value)
    return f"{digits.removesuffix('.0')}e{int(exponent):+03d}"


_ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    '"': '"',
    "'": "'",
}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))", re.DOTALL)


def unquoted(text: str) -> str:
    """What a quoted Go string or character stands for; ValueError for an escape Go does not know."""

    def one(match: re.Match[str]) -> str:
        for group, base in ((1, 16), (2, 16), (3, 16), (4, 8)):
            if match[group]:
                return chr(int(match[group], base))
        if match[5] not in _ESCAPES:
            raise ValueError(f"invalid syntax: {match[0]}")
        return _ESCAPES[match[5]]

    return _ESCAPE.sub(one, text[1:-1])


def quoted(text: str) -> str:
    """As Go's ``%q``."""
    back = {v: k for k, v in _ESCAPES.items() if k != "'"}
    out = []
    for char in text:
        if char in back:
            out.append("\\" + back[char])
        elif char.isprintable():
            out.append(char)
        else:
            point = ord(char)
            out.append(
                f"\\x{point:02x}"
                if point < 0x80
                else f"\\u{point:04x}"
                if point < 1 << 16
                else f"\\U{point:08x}"
            )
    return '"' + "".join(out) + '"'
