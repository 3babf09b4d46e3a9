"""Every file in ``raft/`` and ``control/`` is a story told in commands, with the trace that must come out. Read them: they say how
the protocol works, and what a leader decides.

After a change that is meant: ``SWARM_REWRITE=1 python -m pytest tests/scenarios``, and read the difference line by line before it is committed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.scenarios import control_script, raft_script

SCRIPTS: dict[str, type[raft_script.Script | control_script.Script]] = {
    "raft": raft_script.Script,
    "control": control_script.Script,
}
FILES = sorted(path for kind in SCRIPTS for path in (Path(__file__).parent / kind).glob("*.txt"))
REWRITE = os.environ.get("SWARM_REWRITE", "") == "1"
MARK = "----"


def told(text: str, kind: str) -> str:
    """The file as it should be: the same prose and commands, and what happens now."""
    script, out, lines = SCRIPTS[kind](), [], iter(text.splitlines())
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_scenario(path: Path) -> None:
    text = path.read_text()
    now = told(text, path.parent.name)
    if REWRITE:
        path.write_text(now)
        return
    assert now == text


@pytest.mark.parametrize(("kind", "stem", "least"), [("raft", "election", 12), ("control", "replicated", 16)])
def test_there_are_scenarios_and_a_wrong_trace_is_noticed(kind: str, stem: str, least: int) -> None:
    assert sum(path.parent.name == kind for path in FILES) >= least
    text = next(path for path in FILES if path.parent.name == kind and path.stem == stem).read_text()
    trace = text.splitlines()[text.splitlines().index(MARK) + 1]
    wrong = text.replace(trace, trace + "!", 1)
    assert told(wrong, kind) == text
    assert wrong != text
    with pytest.raises(ValueError, match="unknown command"):
        SCRIPTS[kind]().run("jump 1")
