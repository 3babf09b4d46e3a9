"""The one door from a client's JSON into the vocabulary.

Docker's clients write keys in any case, send ``null`` for absent and add keys we never heard of. :func:`normalise` turns
such a document into a struct: keys are matched case-insensitively (never inside free maps such as labels), ``null`` is
dropped, unknown keys are dropped, and a value of the wrong type is refused with the path to it.
"""

from __future__ import annotations

import functools
import types
import typing
from typing import Any, TypeVar

import msgspec

from swarm_agent.objects.base import Spec
from swarm_agent.objects.errors import InvalidSpec

S = TypeVar("S", bound=Spec)

_GO_WORDS: dict[type, str] = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "bool",
    int: "number",
    float: "number",
}
_GO_TYPES: dict[type, str] = {str: "string", bool: "bool", int: "int64", float: "float64"}
_INTEGERS = range(-(1 << 63), 1 << 64)


class Malformed(InvalidSpec):
    """A body that is no document of its kind. Docker's HTTP layer says so itself, without the gRPC prefix."""

    code = ""


def parse_json(body: bytes) -> Any:
    """Decode a request body; an empty one is an empty object."""
    if not body.strip():
        return {}
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise Malformed(f"invalid JSON: {err}") from err
    except RecursionError as err:
        raise Malformed("invalid JSON: exceeded max depth") from err


def normalise(raw: Any, into: type[S]) -> S:
    """Convert decoded JSON into ``into``.

    Raises:
        Malformed: with the path of the first field that cannot be.
    """
    if raw is None:
        raw = {}
    return typing.cast("S", _struct(raw, into, into.__name__))


@functools.cache
def _fields(cls: type[Spec]) -> dict[str, tuple[str, Any]]:
    hints = typing.get_type_hints(cls)
    return {f.encode_name.lower(): (f.name, hints[f.name]) for f in msgspec.structs.fields(cls)}


def _struct(raw: Any, cls: type[Spec], path: str) -> Spec:
    if not isinstance(raw, dict):
        raise _mismatch(raw, path, f"swarm.{cls.__name__}")
    fields = _fields(cls)
    out: dict[str, Any] = {}
    for key, value in raw.items():
        known = fields.get(key.lower())
        if known is None or value is None:
            continue
        name, hint = known
        out[name] = _value(value, hint, f"{path}.{key}")
    return cls(**out)


def _value(raw: Any, hint: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (a for a in typing.get_args(hint) if a is not type(None))
        return _value(raw, inner, path)
    if origin is tuple:
        if not isinstance(raw, list):
            raise _mismatch(raw, path, "array")
        inner = typing.get_args(hint)[0]
        return tuple(_value(v, inner, f"{path}[{i}]") for i, v in enumerate(raw) if v is not None)
    if origin is dict:
        return _map(raw, typing.get_args(hint)[1], path)
    if isinstance(hint, type) and issubclass(hint, Spec):
        return _struct(raw, hint, path)
    return _scalar(raw, hint, path)


def _map(raw: Any, inner: Any, path: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise _mismatch(raw, path, "map[string]string")
    if inner is Any:
        return _storable(raw, path)
    return {k: _scalar("" if v is None else v, inner, f"{path}[{k!r}]") for k, v in raw.items()}


def _scalar(raw: Any, hint: Any, path: str) -> Any:
    if hint is int and isinstance(raw, float) and raw.is_integer():
        raw = int(raw)
    if isinstance(raw, int) and not isinstance(raw, bool) and hint in (int, float):
        if raw not in _INTEGERS:
            raise _mismatch(raw, path, _GO_TYPES[hint], f"number {raw}")
        return hint(raw)
    if not isinstance(raw, hint) or (hint is int and isinstance(raw, bool)):
        raise _mismatch(raw, path, _GO_TYPES[hint])
    return raw


def _storable(raw: dict[str, Any], path: str) -> dict[str, Any]:
    """A part nobody looks into is kept as it is, if the log can hold it."""
    try:
        msgspec.msgpack.encode(raw)
    except (OverflowError, RecursionError) as err:
        raise Malformed(f"json: cannot unmarshal {path}: {err}", path) from err
    return raw


def _mismatch(raw: Any, path: str, want: str, word: str = "") -> Malformed:
    word = word or _GO_WORDS.get(type(raw), type(raw).__name__)
    if "." not in path:
        return Malformed(f"json: cannot unmarshal {word} into Go value of type {want}", path)
    return Malformed(f"json: cannot unmarshal {word} into Go struct field {path} of type {want}", path)
