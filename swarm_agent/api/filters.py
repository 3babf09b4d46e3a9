"""The ``filters`` query parameter, in both forms clients send, and how Docker matches with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import msgspec

from swarm_agent.http.server import HttpError

T = TypeVar("T")
Filters = dict[str, list[str]]


def parse_filters(text: str, known: Iterable[str]) -> Filters:
    """``{"name":["a"]}`` or ``{"name":{"a":true}}``; 400 for what is neither or not known."""
    if not text:
        return {}
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as err:
        raise HttpError(400, f"invalid filter: {err}") from err
    if not isinstance(raw, dict):
        raise HttpError(400, "invalid filter: not an object")
    out: Filters = {}
    for key, values in raw.items():
        if key not in known:
            raise HttpError(400, f"Invalid filter '{key}'")
        if isinstance(values, dict):
            out[key] = [v for v, wanted in values.items() if wanted]
        elif isinstance(values, list):
            out[key] = [str(v) for v in values]
        else:
            raise HttpError(400, f"invalid filter '{key}': not a list")
    return out


def keep(rows: Iterable[T], filters: Filters, tests: Mapping[str, Callable[[T, str], bool]]) -> list[T]:
    """Rows that pass: values of one key are OR-ed, except labels, which are AND-ed; keys are AND-ed."""
    out = []
    for row in rows:
        for key, values in filters.items():
            test = tests[key]
            every = key in ("label", "node.label")
            passed = [test(row, v) for v in values]
            if values and not (all(passed) if every else any(passed)):
                break
        else:
            out.append(row)
    return out


def label_matches(labels: Mapping[str, str], wanted: str) -> bool:
    """``key`` asks for presence, ``key=value`` for equality, ``key=`` for presence too."""
    key, _, value = wanted.partition("=")
    return key in labels and (not value or labels[key] == value)


def one_of(value: str, allowed: Iterable[str], word: str) -> None:
    """Docker answers 500 to a bad value of a filter."""
    if value not in allowed:
        raise HttpError(500, f"Invalid {word} filter: '{value}'")
