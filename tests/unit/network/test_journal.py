from __future__ import annotations

import json
import logging
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_agent.network.state_files import (
    EndpointEntry,
    EngineNetworkEntry,
    NamesEntry,
    NetworkEntry,
    ResolverEntry,
    StateFiles,
    TaskEntry,
)


@pytest.fixture
def journal(tmp_path: Path) -> StateFiles:
    made = StateFiles(tmp_path / "net")
    made.prepare()
    return made


RECORDS = [
    NetworkEntry("app", "ov-app", 1450, default_gateway="10.240.4.1", hairpin=False, isolated=True),
    NamesEntry("app", "app", {"web": ("10.0.9.200",), "idle": ()}, {"10.0.9.200": "web.app"}),
    TaskEntry("t1", "10.240.4.11", ("app", "back")),
    EngineNetworkEntry("0123", "app"),
    EndpointEntry("4567", "app", "10.0.9.11", "02:42:0a:00:09:0b"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_record_is_read_as_it_was_written(journal: StateFiles, record: NetworkEntry) -> None:
    assert journal.put("key", record) is True
    assert journal.put("key", record) is False, "writing the same again must not wake netd"
    assert journal.get(type(record), "key") == record
    assert journal.keys(type(record)) == ["key"]
    journal.drop(type(record), "key")
    journal.drop(type(record), "key")
    assert journal.get(type(record), "key") is None


def test_the_resolver_record(journal: StateFiles) -> None:
    assert journal.get_resolver() == ResolverEntry()
    journal.put_resolver(ResolverEntry((("ov-node", "10.240.4.1"),)))
    assert journal.get_resolver() == ResolverEntry((("ov-node", "10.240.4.1"),))


@pytest.mark.parametrize("key", ["", "..", "../x", "a/b", "a.b", "x" * 129, "é", "a\n"])
def test_a_key_cannot_leave_the_folder(journal: StateFiles, key: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a record"):
        journal.put(key, RECORDS[0])


def test_a_newer_daemons_extra_fields_are_passed_over(journal: StateFiles) -> None:
    path = journal.path("tasks", "t1")
    path.write_text(json.dumps({"task": "t1", "address": "10.240.4.11", "colour": "red"}))
    assert journal.get(TaskEntry, "t1") == TaskEntry("t1", "10.240.4.11")


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    ).map(lambda d: json.dumps(d).encode())
)
@settings(deadline=None)
def test_whatever_a_file_holds_is_a_record_or_missing(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    logging.disable()
    try:
        journal = StateFiles(tmp_path_factory.getbasetemp() / "fuzz")
        journal.prepare()
        journal.path("tasks", "t1").write_bytes(data)
        got = journal.get(TaskEntry, "t1")
    finally:
        logging.disable(logging.NOTSET)
    assert got is None or {f.name for f in fields(got)} == {"task", "address", "networks"}


def test_nothing_half_written_is_listed(journal: StateFiles) -> None:
    journal.put("t1", TaskEntry("t1", "10.240.4.11"))
    (journal.folder / "tasks" / ".t2.json.99").write_text("{")
    assert journal.keys(TaskEntry) == ["t1"]
    assert [path.name for path in (journal.folder / "tasks").iterdir() if "t1" in path.name] == ["t1.json"]
