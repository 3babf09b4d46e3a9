"""The contract as docs/design/rooms.md has it is the one in the code: same calls with the same parameters, same fields."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import msgspec
import pytest

from swarm_agent.network import model
from swarm_agent.network.model import NodeNetwork

NOTE = Path(__file__).parents[3] / "docs/design/rooms.md"


def blocks() -> dict[str, str]:
    """By name the text of each class of the network's section, without comments."""
    section = NOTE.read_text().partition("## Network")[2].partition("\n## ")[0]
    text = re.sub(r"\s+#.*", "", re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0])
    return {
        found[0]: found[1]
        for found in re.findall(r"^class (\w+)\(\w+\):(.*?)(?=^class|\Z)", text, re.MULTILINE | re.DOTALL)
    }


def test_the_note_has_every_call_of_a_hosts_network() -> None:
    calls = re.findall(r"def .*?\) -> [^;\n]+", blocks()["NodeNetwork"])
    said = {}
    for call in calls:
        (function,) = ast.parse(f"{call}: ...").body
        assert isinstance(function, ast.FunctionDef)
        said[function.name] = [argument.arg for argument in function.args.args]
    real = {
        name: list(inspect.signature(call).parameters)
        for name, call in vars(NodeNetwork).items()
        if inspect.isfunction(call) and not name.startswith("_")
    }
    assert said == real
    waits = set(re.findall(r"async def (\w+)", blocks()["NodeNetwork"]))
    assert waits == {name for name in real if inspect.iscoroutinefunction(getattr(NodeNetwork, name))}


@pytest.mark.parametrize("name", sorted(blocks().keys() - {"NodeNetwork"}))
def test_and_every_field_of_what_it_is_told(name: str) -> None:
    parts = [part.strip() for line in blocks()[name].splitlines() for part in line.split(";")]
    said = [part.partition(":")[0].strip() for part in parts if part]
    assert said == [field.name for field in msgspec.structs.fields(getattr(model, name))]
