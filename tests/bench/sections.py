"""docs/benchmarks.md is written by several benches; each owns what follows its mark, up to the next mark."""

from __future__ import annotations

import re
from pathlib import Path

_MARK = re.compile(r"^(?=<!-- from here on: written by )", re.MULTILINE)


def write_section(page: Path, begin: str, text: str) -> None:
    """Put ``text`` behind the mark ``begin`` in place of what stood there, or at the page's end."""
    head, *sections = _MARK.split(page.read_text() if page.exists() else "# Benchmarks\n")
    new = f"{begin}\n\n{text.strip()}\n"
    kept = [new if s.startswith(begin) else s.strip("\n") + "\n" for s in sections]
    if new not in kept:
        kept.append(new)
    page.write_text("\n".join([head.strip("\n") + "\n", *kept]))


def sections(page: Path) -> str:
    """All marked sections, for whoever writes what stands before them."""
    found = _MARK.split(page.read_text())[1:] if page.exists() else []
    return "".join(f"\n{s}" if i == 0 else s for i, s in enumerate(found))
