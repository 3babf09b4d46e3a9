"""Durations as people and Go write them: ``1h30m``, ``90s``, ``1.5s``, ``250ms``. In the model they are integer nanoseconds."""

from __future__ import annotations

import re

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_MOST = (1 << 63) - 1  # what Go, the log and Docker's API hold
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")


def parse_duration(text: str) -> int:
    """Nanoseconds. ValueError for what is no duration; ``0`` needs no unit, as in Go."""
    text = text.strip()
    if text == "0":
        return 0
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text!r} is no duration: write it like 90s, 5m or 1h30m")
    try:
        total = sum(round(float(number) * _UNITS[unit]) for number, unit in _PART.findall(text))
    except OverflowError:
        total = _MOST + 1
    if total > _MOST:
        raise ValueError(f"{text[:40]!r} is longer than 292 years")
    return total


def duration_text(ns: int) -> str:
    """The shortest exact writing in hours, minutes and seconds."""
    if ns % _UNITS["ms"]:
        return f"{ns}ns"
    if ns % _UNITS["s"]:
        return f"{ns // _UNITS['ms']}ms"
    out = []
    for unit in ("h", "m", "s"):
        count, ns = divmod(ns, _UNITS[unit])
        if count:
            out.append(f"{count}{unit}")
    return "".join(out) or "0s"
