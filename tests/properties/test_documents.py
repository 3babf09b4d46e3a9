"""Whatever a client sends: refused in one way, or understood and stored the same on every manager."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_agent.api.filters import parse_filters
from swarm_agent.control.revisions import revision_of
from swarm_agent.http.server import HttpError
from swarm_agent.objects import specs, validate
from swarm_agent.objects.errors import SwarmError
from swarm_agent.objects.normalise import Malformed, normalise, parse_json

KINDS = [
    specs.ServiceSpec,
    specs.NodeSpec,
    specs.NetworkCreate,
    specs.ClusterSpec,
    specs.SecretSpec,
    specs.ConfigSpec,
    specs.InitRequest,
    specs.JoinRequest,
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)


T = TypeVar("T")


def outcome(call: Callable[[], T], kind: type[SwarmError]) -> tuple[T | None, SwarmError | None]:
    """What a call gives, or how it refuses; any other error is a failure."""
    try:
        return call(), None
    except kind as refusal:
        return None, refusal


def words_of(kind: Any) -> list[str]:
    """Every key that means something somewhere inside ``kind``."""
    info = msgspec.json.schema(kind)
    found: set[str] = set()

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            found.update(part.get("properties", {}))
            for value in part.values():
                walk(value)
        elif isinstance(part, list):
            for value in part:
                walk(value)

    walk(info)
    return sorted(found)


def in_case(pair: tuple[str, str]) -> str:
    key, case = pair
    return key.lower() if case == "lower" else key.upper() if case == "upper" else key


def shaped(kind: Any) -> st.SearchStrategy[Any]:
    """Documents with the right keys in some case and anything as values."""
    keys = st.sampled_from(words_of(kind)) | TEXT
    cased = st.tuples(keys, st.sampled_from(("", "lower", "upper"))).map(in_case)
    return st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(cased, inner, max_size=4),
        max_leaves=30,
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_body_is_understood_or_refused(kind: Any, data: st.DataObject) -> None:
    raw = data.draw(JSON | shaped(kind))
    spec, refusal = outcome(lambda: normalise(raw, kind), Malformed)
    if refusal is not None:
        assert (refusal.http_status, refusal.code) == (400, "")
        return
    stored = msgspec.msgpack.encode(spec)
    assert msgspec.msgpack.decode(stored, type=kind) == spec or "nan" in repr(spec)
    assert normalise(msgspec.json.decode(msgspec.json.encode(spec)), kind) == spec or "nan" in repr(spec)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | JSON.map(lambda v: json.dumps(v, allow_nan=True).encode()))
def test_any_bytes_are_json_or_refused(body: bytes) -> None:
    value, refusal = outcome(lambda: parse_json(body), Malformed)
    if refusal is not None:
        assert str(refusal).startswith("invalid JSON: ")
    elif body.strip():
        assert value == json.loads(body)


@settings(max_examples=100, deadline=None)
@given(shaped(specs.ServiceSpec))
def test_what_is_understood_is_judged(raw: Any) -> None:
    document = {"Name": "a", "TaskTemplate": raw}
    _, refusal = outcome(lambda: validate.service(normalise(document, specs.ServiceSpec)), SwarmError)
    assert refusal is None or refusal.http_status in (400, 500, 501)


# --- revisions: Go's clients read a spec and send it back in their own way --------------------------------------------
VALUE = st.integers(0, 3)
CONTAINERS = st.fixed_dictionaries(
    {"Image": st.sampled_from(("a:1", "b:2"))},
    optional={
        "Env": st.lists(TEXT, max_size=2),
        "ReadOnly": st.booleans(),
        "User": TEXT,
        "Labels": st.dictionaries(TEXT, TEXT, max_size=2),
        "Init": st.booleans(),
        "StopGracePeriod": VALUE,
        "Mounts": st.lists(st.fixed_dictionaries({"Target": TEXT}, optional={"ReadOnly": st.booleans(), "Source": TEXT}), max_size=2),
        "Healthcheck": st.fixed_dictionaries({}, optional={"Test": st.lists(TEXT, max_size=2), "Retries": VALUE}),
        "DNSConfig": st.fixed_dictionaries({}, optional={"Search": st.lists(TEXT, max_size=1)}),
    },
)  # fmt: skip
TEMPLATES = st.fixed_dictionaries(
    {"ContainerSpec": CONTAINERS},
    optional={
        "RestartPolicy": st.fixed_dictionaries({}, optional={"Delay": VALUE, "MaxAttempts": VALUE}),
        "Resources": st.fixed_dictionaries(
            {}, optional={"Limits": st.fixed_dictionaries({}, optional={"Pids": VALUE})}
        ),
        "Placement": st.fixed_dictionaries({}, optional={"MaxReplicas": VALUE}),
        "ForceUpdate": VALUE,
    },
)
POINTERS = ("Delay", "MaxAttempts", "Window", "StopGracePeriod", "Init")


def as_go_sends(value: Any, full: bool, key: str = "") -> Any:
    """``omitempty`` on every value but pointers; or, from another client, every empty value spelt out."""
    if isinstance(value, dict):
        kept = {k: as_go_sends(v, full, k) for k, v in value.items() if k != "Labels"}
        kept.update({k: v for k, v in value.items() if k == "Labels"})
        out = {k: v for k, v in kept.items() if full or k in POINTERS or v not in ("", 0, False, [], None)}
        if full and key == "TaskTemplate":
            out.setdefault("Placement", {})
            out.setdefault("Runtime", "container")
        if full and "Image" in out:
            out.setdefault("Isolation", "default")
            out.setdefault("Env", None)
        return out
    if isinstance(value, list):
        return [as_go_sends(v, full) for v in value]
    return value


def revision(document: Any) -> str:
    return revision_of("service", normalise(document, specs.ServiceSpec), ()).id


@settings(max_examples=60, deadline=None)
@given(TEMPLATES, TEMPLATES)
def test_a_spec_sent_back_is_the_same_revision(one: Any, other: Any) -> None:
    document = {"Name": "s", "TaskTemplate": one}
    digest = revision(document)
    assert revision(as_go_sends(document, full=False)) == digest
    assert revision(as_go_sends(document, full=True)) == digest
    shown = msgspec.json.decode(msgspec.json.encode(normalise(document, specs.ServiceSpec)))
    assert revision(shown) == digest
    if one["ContainerSpec"]["Image"] != other["ContainerSpec"]["Image"]:
        assert revision({"Name": "s", "TaskTemplate": other}) != digest


# --- filters ---------------------------------------------------------------------------------------------------------
@settings(max_examples=100, deadline=None)
@given(TEXT | JSON.map(lambda v: json.dumps(v, allow_nan=True)))
def test_any_text_is_filters_or_refused(text: str) -> None:
    filters, refusal = outcome(lambda: parse_filters(text, ("name", "label")), HttpError)
    if filters is None:
        assert refusal is not None
        assert refusal.http_status == 400
        return
    assert set(filters) <= {"name", "label"}
    assert all(isinstance(v, str) for values in filters.values() for v in values)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(("name", "label")), st.lists(TEXT, unique=True, max_size=3)))
def test_both_forms_of_filters_mean_the_same(filters: dict[str, list[str]]) -> None:
    known = ("name", "label")
    cli = {key: dict.fromkeys(values, True) for key, values in filters.items()}
    assert parse_filters(json.dumps(filters), known) == parse_filters(json.dumps(cli), known) == filters
