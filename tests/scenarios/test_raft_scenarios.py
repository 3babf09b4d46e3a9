"""Every file in ``raft/`` is a story told in commands, with the trace that must come out. Read them: they say how the protocol works.

After a change that is meant: ``SWARM_REWRITE=1 python -m pytest tests/scenarios``, and read the difference line by line before it is committed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.scenarios.raft_script import Script

FILES = sorted((Path(__file__).parent / "raft").glob("*.txt"))
REWRITE = os.environ.get("SWARM_REWRITE", "") == "1"
MARK = "----"


def told(text: str) -> str:
    """The file as it should be: the same prose and commands, and what happens now."""
    script, out, lines = Script(), [], iter(text.splitlines())
    commands: list[str] = []
    for line in lines:
        out.append(line)
        if line == MARK:
            out += [line for command in commands for line in script.run(command)] or ["nothing happens"]
            commands = []
            for old in lines:
                if not old:
                    break
            out.append("")
        elif line and not line.startswith("#"):
            commands.append(line)
    if commands:
        raise ValueError(f"commands without a trace: {commands}")
    return "\n".join(out).rstrip("\n") + "\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    text = path.read_text()
    now = told(text)
    if REWRITE:
        path.write_text(now)
        return
    assert now == text


def test_there_are_scenarios_and_a_wrong_trace_is_noticed() -> None:
    assert len(FILES) >= 12
    text = next(path for path in FILES if path.stem == "election").read_text()
    trace = next(line for line in text.splitlines() if " -> " in line)
    wrong = text.replace(trace, trace + "!", 1)
    assert told(wrong) == text
    assert wrong != text
    with pytest.raises(ValueError, match="unknown command"):
        Script().run("jump 1")
