"""A strict reader of Prometheus' text format 0.0.4: what a lenient one passes over is an error here."""

from __future__ import annotations

import dataclasses
import re

_HELP = re.compile(r"# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) ((?:[^\\\n]|\\\\|\\n)+)")
_TYPE = re.compile(r"# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge)")
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.+)\})? (-?[0-9]+(?:\.[0-9]+)?(?:e[+-][0-9]+)?)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^\\"\n]|\\\\|\\"|\\n)*)"(?:,(?=.)|$)')
_ESCAPE = re.compile(r"\\(.)")

Labels = tuple[tuple[str, str], ...]


class Malformed(Exception):
    """The page breaks the format; the text says which line and how."""


@dataclasses.dataclass
class Family:
    """A metric: all samples of one name, each by its sorted labels."""

    help: str
    kind: str
    samples: dict[Labels, float]


def parse(page: str) -> dict[str, Family]:
    """The page's metrics by name.

    Raises:
        Malformed: a sample without HELP and TYPE right before its metric's samples, a metric in two places or without samples, a
            series twice, a value of a label with a character that is not escaped, a counter not in ``_total``, a line of no kind.
    """
    if page and not page.endswith("\n"):
        raise Malformed("the last line does not end")
    found: dict[str, Family] = {}
    current, about = "", ""  # the metric whose samples may come, and the one whose HELP was the line before
    for number, line in enumerate(page.split("\n")[:-1], 1):
        where = f"line {number}: {line!r}"
        if about:
            declared = _TYPE.fullmatch(line)
            if declared is None or declared[1] != about:
                raise Malformed(f"no TYPE of {about} after its HELP, {where}")
            found[about].kind, current, about = declared[2], about, ""
            if found[current].kind == "counter" and not current.endswith("_total"):
                raise Malformed(f"a counter not in _total, {where}")
        elif said := _HELP.fullmatch(line):
            if current and not found[current].samples:
                raise Malformed(f"no samples of {current}, {where}")
            if said[1] in found:
                raise Malformed(f"{said[1]} is in two places, {where}")
            about = said[1]
            found[about] = Family(_unescaped(said[2]), "", {})
        elif sample := _SAMPLE.fullmatch(line):
            if sample[1] != current:
                raise Malformed(f"a sample without HELP and TYPE before it, {where}")
            labels = _labels(sample[2] or "", where)
            if labels in found[current].samples:
                raise Malformed(f"a series twice, {where}")
            found[current].samples[labels] = float(sample[3])
        else:
            raise Malformed(f"neither HELP, TYPE nor a sample, {where}")
    if about or (current and not found[current].samples):
        raise Malformed(f"no samples of {about or current}")
    return found


def _labels(text: str, where: str) -> Labels:
    labels, at = {}, 0
    while at < len(text):
        label = _LABEL.match(text, at)
        if label is None or label[1] in labels:
            raise Malformed(f"labels, {where}")
        labels[label[1]] = _unescaped(label[2])
        at = label.end()
    return tuple(sorted(labels.items()))


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: "\n" if found[1] == "n" else found[1], text)
