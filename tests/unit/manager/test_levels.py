"""Feature levels: what holds one down, what the configuration may say, what people are told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from swarm_agent.config import load_config
from swarm_agent.manager.feature_level import Outlook, outlook
from swarm_agent.objects import features
from swarm_agent.objects.errors import InvalidSpec, ReleaseTooOld
from swarm_agent.rpc.grpc import error_of, refusal_of
from swarm_agent.rpc.messages import Hello, JoinRaft


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ({"a": 2, "b": 2}, Outlook(2, ("a", "b"))),
        ({"a": 2, "b": 1, "c": 3}, Outlook(1, ("b",))),
        ({"a": 2, "b": None, "c": 1}, Outlook(0, ("b",))),
        ({}, Outlook(0, ())),
    ],
)
def test_the_lowest_manager_decides_and_one_that_is_away_forbids(
    levels: Mapping[str, int | None], expected: Outlook
) -> None:
    assert outlook(levels) == expected


def test_every_level_says_what_it_brings() -> None:
    assert sorted(features.BRINGS) == list(range(features.FIRST, features.LEVEL + 1))
    assert all(features.BRINGS.values())


def test_what_is_told_depends_on_what_helps() -> None:
    assert features.too_low(2, 2) == ""
    assert features.too_low(3, 2) == ""
    held = features.too_low(features.FIRST, features.LEVEL)
    assert "feature_level in its agent.toml" in held
    beyond = features.too_low(features.LEVEL, features.LEVEL + 1, "host7")
    assert beyond.startswith("host7 knows")
    assert f"install a release that knows level {features.LEVEL + 1}" in beyond


def test_whoever_does_not_say_a_level_is_of_the_first_release() -> None:
    assert JoinRaft(1, "a", "b").feature_level == 1
    assert Hello.__struct_defaults__[-1] == 1


def test_the_refusal_crosses_the_wire() -> None:
    back = error_of(refusal_of(ReleaseTooOld("too old")), "10.0.0.1:2378")
    assert type(back) is ReleaseTooOld
    assert str(back) == "too old"


def load(path: Path, text: str) -> int:
    file = path / "agent.toml"
    file.write_text(text)
    return load_config(file, must_exist=True).level


def test_a_manager_is_held_by_its_configuration(tmp_path: Path) -> None:
    assert load(tmp_path, "") == features.LEVEL
    assert load(tmp_path, "feature_level = 1") == 1
    for wrong in (0, features.LEVEL + 1, -1):
        with pytest.raises(
            InvalidSpec, match=rf"feature_level {wrong} is not in the range 1 to {features.LEVEL}"
        ):
            load(tmp_path, f"feature_level = {wrong}")
    with pytest.raises(InvalidSpec):
        load(tmp_path, 'feature_level = "2"')
