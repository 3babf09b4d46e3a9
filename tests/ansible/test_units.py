"""Quantities as people write them."""

from __future__ import annotations

import pytest
from ansible_collections.swarm.cluster.plugins.module_utils import _units
from ansible_collections.swarm.cluster.plugins.module_utils._units import Invalid


@pytest.mark.parametrize(
    ("written", "nanoseconds"),
    [
        ("10s", 10_000_000_000),
        ("1m30s", 90_000_000_000),
        ("500ms", 500_000_000),
        ("1.5h", 5_400_000_000_000),
        ("0", 0),
        (7, 7_000_000_000),
    ],
)
def test_durations(written: object, nanoseconds: int) -> None:
    assert _units.nanoseconds(written, "delay") == nanoseconds


@pytest.mark.parametrize("written", ["", "soon", "5 x", "10s later", "-1s", "s"])
def test_what_is_no_duration_is_refused_with_its_path(written: str) -> None:
    with pytest.raises(Invalid, match=r"update_config\.delay") as caught:
        _units.nanoseconds(written, "update_config.delay")
    assert caught.value.path == "update_config.delay"


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("512M", 512 << 20),
        ("64MiB", 64 << 20),
        ("1g", 1 << 30),
        ("2 GB", 2 << 30),
        (1048576, 1 << 20),
        ("1.5k", 1536),
    ],
)
def test_sizes(written: object, size: int) -> None:
    assert _units.size(written, "memory") == size


@pytest.mark.parametrize("written", ["lots", "", "-5M", "5Q"])
def test_what_is_no_size_is_refused(written: str) -> None:
    with pytest.raises(Invalid):
        _units.size(written, "memory")


def test_the_smallest_share_of_a_cpu() -> None:
    assert _units.nano_cpus("0.001", "cpus") == 1_000_000
    with pytest.raises(Invalid, match=r"0\.001"):
        _units.nano_cpus("0.0001", "cpus")


@pytest.mark.parametrize(
    ("value", "said"), [(True, "true"), (False, "false"), (None, "nothing"), ({}, "mapping"), ([], "list")]
)
def test_what_yaml_read_as_something_else_must_be_quoted(value: object, said: str) -> None:
    with pytest.raises(Invalid, match=said) as caught:
        _units.text_map({"DEBUG": value}, "env")
    assert caught.value.path == "env.DEBUG"


def test_numbers_are_texts() -> None:
    assert _units.text_map({"A": 1, "B": "x", "C": 1.5}, "env") == {"A": "1", "B": "x", "C": "1.5"}
