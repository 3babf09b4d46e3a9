"""The functions every template has."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote_plus

from swarm_agent.objects.gotemplate.values import BadCall, Fields, general, quoted, shown, truth, type_name

Function = Callable[..., Any]
"""Raises BadCall with what is wrong."""

MAX_WIDTH = 1_000_000  # of one verb, as in Go
MAX_TEXT = 8 << 20  # characters of one text


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool | str):
        return type(value).__name__
    return "number" if isinstance(value, int | float) else ""


def _comparable(left: Any, right: Any) -> None:
    for value in (left, right):
        if not _kind(value):
            raise BadCall(f"non-comparable type {shown(value)}: {type_name(value)}")
    if _kind(left) != _kind(right) and left is not None and right is not None:
        raise BadCall("incompatible types for comparison")


def _equal(left: Any, *others: Any) -> bool:
    if not others:
        raise BadCall("missing argument for comparison")
    for other in others:
        _comparable(left, other)
        if left == other:
            return True
    return False


def _less(left: Any, right: Any) -> bool:
    _comparable(left, right)
    if _kind(left) in ("bool", "NoneType"):
        raise BadCall("invalid type for comparison")
    return bool(left < right)


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, Mapping | list | tuple):
        return len(value)
    raise BadCall(f"len of type {type_name(value)}")


def _at(value: Any, index: Any) -> int:
    if isinstance(index, bool) or not isinstance(index, int):
        raise BadCall(f"cannot index slice/array with type {type_name(index)}")
    if not 0 <= index < _length(value):
        raise BadCall(f"index out of range: {index}")
    return index


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            if not isinstance(key, str):
                raise BadCall(f"value has type {type_name(key)}; should be string")
            value = value.get(key, "")
        elif isinstance(value, str):
            value = value.encode()[_at(value, key)]
        elif isinstance(value, list | tuple):
            value = value[_at(value, key)]
        else:
            raise BadCall(
                "index of untyped nil" if value is None else f"can't index item of type {type_name(value)}"
            )
    return value


def _slice(value: Any, *bounds: Any) -> Any:
    if not isinstance(value, str | list | tuple):
        raise BadCall(f"can't slice item of type {type_name(value)}")
    if len(bounds) > 2:
        raise BadCall("too many slice indexes: " + str(len(bounds)))
    whole = value.encode() if isinstance(value, str) else value
    both: list[Any] = [*bounds, *(0, len(whole))[len(bounds) :]]
    begin, end = both
    for bound in (begin, end):
        if isinstance(bound, bool) or not isinstance(bound, int):
            raise BadCall(f"cannot index slice/array with type {type_name(bound)}")
        if not 0 <= bound <= len(whole):
            raise BadCall(f"index out of range: {bound}")
    if begin > end:
        raise BadCall(f"invalid slice index: {begin} > {end}")
    part = whole[begin:end]
    return part.decode(errors="replace") if isinstance(part, bytes) else part


def _print(*values: Any) -> str:
    """Spaces between two neighbours that are no text."""
    out = ""
    for i, value in enumerate(values):
        if i and not isinstance(value, str) and not isinstance(values[i - 1], str):
            out += " "
        out += shown(value)
    return out


_VERB = re.compile(r"%([-+# 0]*)(\d+)?(?:\.(\d*))?(.)", re.DOTALL)


def _printf(form: Any, *values: Any) -> str:
    if not isinstance(form, str):
        raise BadCall(f"wrong type for value; expected string; got {type_name(form)}")
    left = list(values)

    def one(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        room = _size(width)
        if room > MAX_WIDTH:
            return "%!(BADWIDTH)"
        if not left:
            return f"%!{verb}(MISSING)"
        value = left.pop(0)
        text = _verb(verb, value, flags, None if precision is None else _size(precision))
        if text is None:
            return f"%!{verb}({type_name(value)}={shown(value)})"
        if "-" in flags:
            return text.ljust(room)
        if "0" in flags:
            sign = text[:1] if text[:1] in ("-", "+") and _kind(value) == "number" else ""
            return sign + text[len(sign) :].rjust(room - len(sign), "0")
        return text.rjust(room)

    if sum(_size(m[2]) + _size(m[3]) for m in _VERB.finditer(form)) > MAX_TEXT:
        raise BadCall("the widths add up to too much")
    out = _VERB.sub(one, form)
    if form.count("%") and re.search(r"%[-+# 0]*\d*(?:\.\d*)?\Z", _VERB.sub("", form)):
        out += "!(NOVERB)"
    if left:
        out += "%!(EXTRA " + ", ".join(f"{type_name(v)}={shown(v)}" for v in left) + ")"
    return out


def _size(digits: str | None) -> int:
    """A width or precision; what nobody can mean counts as too much."""
    return int(digits or 0) if len(digits or "") < 10 else MAX_WIDTH + 1


def _verb(verb: str, value: Any, flags: str, precision: int | None) -> str | None:
    """A value as a verb prints it; None when it does not."""
    plus = "+" if "+" in flags else " " if " " in flags else ""
    whole = isinstance(value, int) and not isinstance(value, bool)
    sign = plus if whole and value >= 0 else ""
    match verb:
        case "v":
            return sign + shown(value)
        case "T":
            return type_name(value)
        case "t":
            return shown(value) if isinstance(value, bool) else None
        case "s" if isinstance(value, str | Mapping | list | tuple | Fields):
            return shown(value)[:precision]
        case "q" if isinstance(value, str):
            return quoted(value[:precision])
        case "q" if whole:
            return "'" + quoted(chr(value))[1:-1] + "'"
        case "x" | "X" if isinstance(value, str):
            text = value.encode()[:precision].hex()
            return text.upper() if verb == "X" else text
        case "d" | "b" | "o" | "x" | "X" if whole:
            prefix = {"x": "0x", "X": "0X", "o": "0", "b": "0b"}.get(verb, "") if "#" in flags else ""
            digits = format(abs(value), verb).rjust(precision or 0, "0")
            return ("-" if value < 0 else sign) + prefix + digits
        case "c" if whole:
            return chr(value)
        case "U" if whole:
            return f"U+{value:04X}"
        case "e" | "E" | "f" | "F" | "g" | "G" if isinstance(value, float):
            front = plus if value >= 0 else ""
            if verb in "gG" and precision is None:
                return front + general(value)
            return front + format(value, f".{6 if precision is None else precision}{verb}")
    return None


_JS = {
    "\\": "\\\\", "'": "\\'", '"': '\\"', "<": "\\u003C", ">": "\\u003E", "&": "\\u0026", "=": "\\u003D",
}  # fmt: skip


def _js(*values: Any) -> str:
    return "".join(_JS.get(c) or (c if c.isprintable() else f"\\u{ord(c):04X}") for c in _print(*values))


def _html(*values: Any) -> str:
    return (
        html.escape(_print(*values), quote=False)
        .replace('"', "&#34;")
        .replace("'", "&#39;")
        .replace("\0", "\ufffd")
    )


BUILTINS: dict[str, Function] = {
    "eq": _equal,
    "ge": lambda a, b: not _less(a, b),
    "gt": lambda a, b: not _less(a, b) and a != b,
    "html": _html,
    "index": _index,
    "js": _js,
    "le": lambda a, b: _less(a, b) or a == b,
    "len": _length,
    "lt": _less,
    "ne": lambda a, b: not _equal(a, b),
    "not": lambda a: not truth(a),
    "print": _print,
    "printf": _printf,
    "println": lambda *values: " ".join(map(shown, values)) + "\n",
    "slice": _slice,
    "urlquery": lambda *values: quote_plus(_print(*values), safe="-_.~"),
    "and": lambda *values: next((v for v in values if not truth(v)), values[-1]),
    "or": lambda *values: next((v for v in values if truth(v)), values[-1]),
}
