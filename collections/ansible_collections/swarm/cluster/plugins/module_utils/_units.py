# SPDX-License-Identifier: Apache-2.0
"""PRIVATE to this collection: quantities as people write them, and as the API wants them."""

from __future__ import annotations

import re

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)")
_NANOSECONDS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])i?)?b?", re.IGNORECASE)
_FACTOR = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class Invalid(Exception):
    """An option's value makes no sense; ``path`` names the option as the user wrote it."""

    def __init__(self, path, message):
        super().__init__("%s: %s" % (path, message))
        self.path = path


def nanoseconds(value, path):
    """``1m30s``, ``500ms`` or a bare number of seconds."""
    text = str(value).strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return round(float(text) * 10**9)
    pieces = _DURATION.findall(text)
    if not pieces or "".join(n + unit for n, unit in pieces) != text:
        raise Invalid(path, "%r is not a duration; write it like 500ms, 10s or 1m30s" % value)
    return sum(round(float(number) * _NANOSECONDS[unit]) for number, unit in pieces)


def size(value, path):
    """``512M``, ``64MiB`` or a bare number of bytes; K, M and G are powers of 1024, as Docker reads them."""
    match = _BYTES.fullmatch(str(value).strip())
    if not match:
        raise Invalid(path, "%r is not a size; write it like 512M or 2G" % value)
    return round(float(match.group(1)) * _FACTOR[(match.group(2) or "").lower()])


def nano_cpus(value, path):
    try:
        nano = round(float(value) * 10**9)
    except ValueError:
        raise Invalid(path, "%r is not a number of CPUs; write it like 0.5" % value) from None
    if nano < 10**6:
        raise Invalid(path, "%s CPUs is less than the smallest share, 0.001" % value)
    return nano


def text(value, path):
    """A string; YAML's own booleans and empties are refused, since nobody can tell how they should be spelt."""
    if isinstance(value, bool) or value is None:
        raise Invalid(path, "put the value in quotes: YAML reads it as %s" % {None: "nothing"}.get(value, str(value).lower()))
    if isinstance(value, (dict, list)):
        raise Invalid(path, "must be a single value, not a %s" % ("mapping" if isinstance(value, dict) else "list"))
    return str(value)


def text_map(value, path):
    return {str(k): text(v, "%s.%s" % (path, k)) for k, v in value.items()}
