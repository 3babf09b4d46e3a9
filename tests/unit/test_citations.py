"""Code and tests cite docs/design/behaviour.md by number: each number cited is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_NUMBER = r"\d+(?:\.\d+)?"
_CITED = re.compile(rf"behaviour\.md ({_NUMBER}(?:(?:, | and | to ){_NUMBER})*)")
_DEFINED = re.compile(rf"^(?:## ({_NUMBER})\. |- \*\*({_NUMBER})\b)", re.MULTILINE)


def cited(text: str) -> set[str]:
    return {number for found in _CITED.findall(text) for number in re.findall(_NUMBER, found)}


def test_every_cited_section_exists() -> None:
    page = (ROOT / "docs/design/behaviour.md").read_text()
    defined = {section or rule for section, rule in _DEFINED.findall(page)}
    places = {
        number: path.relative_to(ROOT)
        for folder in ("swarm_agent", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".txt") and path != Path(__file__)
        for number in cited(path.read_text())
    }
    assert {"9.4", "13.1", "17.5"} <= places.keys()
    assert {number: path for number, path in places.items() if number not in defined} == {}


def test_how_citations_are_read() -> None:
    assert cited("(behaviour.md 9.5 to 9.8), behaviour.md 14: and behaviour.md 10, 11.") == {
        "9.5",
        "9.8",
        "14",
        "10",
        "11",
    }
    assert cited("behaviour.md 15.3 and 15.4: every filter") == {"15.3", "15.4"}
