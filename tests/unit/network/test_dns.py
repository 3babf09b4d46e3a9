from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_agent.network import dnswire
from swarm_agent.network.dnswire import NotAQuestion, Question
from swarm_agent.network.resolver import TTL, Zone, upstreams
from swarm_agent.network.state_files import NamesEntry, StateFiles, TaskEntry

labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=63)
hostnames = st.lists(labels, min_size=1, max_size=3).map(".".join).filter(lambda name: len(name) < 250)
addresses = st.integers(0, 2**32 - 1).map(lambda n: ".".join(str(n >> s & 255) for s in (24, 16, 8, 0)))


@given(
    st.integers(0, 65535),
    hostnames,
    st.sampled_from([1, 12, 28, 255, 16]),
    st.sampled_from([0, 512, 1232, 4096]),
)
@settings(deadline=None)
def test_a_question_is_read_as_it_was_packed(identifier: int, name: str, kind: int, size: int) -> None:
    question = dnswire.read_question(dnswire.query(identifier, name.upper(), kind, size=size))
    assert (question.id, question.name, question.kind, question.klass) == (identifier, name, kind, 1)
    assert question.size == max(512, min(1232, size))


@given(st.integers(0, 65535), hostnames, st.lists(addresses, max_size=40), st.integers(0, 3600))
@settings(deadline=None)
def test_an_answer_is_read_as_it_was_packed(identifier: int, name: str, found: list[str], ttl: int) -> None:
    question = dnswire.read_question(dnswire.query(identifier, name, 1))
    records = [(dnswire.A, dnswire.pack_address(address)) for address in found]
    reply = dnswire.read_reply(dnswire.answer(question, records, ttl=ttl, limit=dnswire.LARGEST_TCP))
    assert reply.id == identifier
    assert reply.answers == tuple((name, 1, ttl, address) for address in found)
    assert not reply.truncated


def test_what_does_not_fit_is_left_out_and_said() -> None:
    question = dnswire.read_question(dnswire.query(7, "tasks.web", 1))
    records = [(dnswire.A, bytes([10, 0, 0, n])) for n in range(100)]
    packed = dnswire.answer(question, records, limit=question.size)
    reply = dnswire.read_reply(packed)
    assert len(packed) <= 512
    assert reply.truncated
    assert 25 < len(reply.answers) < 100


def test_the_question_comes_back_as_it_was_spelled() -> None:
    data = dnswire.query(7, "WeB", 1)
    assert dnswire.answer(dnswire.read_question(data), [], limit=512)[12:] == data[12:]


@given(st.binary(max_size=600))
@settings(max_examples=1000, deadline=None)
def test_any_bytes_are_a_question_or_refused(data: bytes) -> None:
    try:
        question = dnswire.read_question(data)
        answer, codes = dnswire.failure(question, dnswire.SERVFAIL), {dnswire.SERVFAIL}
    except NotAQuestion as error:
        answer, codes = error.reply, {dnswire.FORMERR, dnswire.NOTIMP}
    if answer:
        assert answer[:2] == data[:2]
        assert dnswire.read_reply(answer).code in codes


@given(st.binary(max_size=300), st.integers(0, 40), st.binary(min_size=1, max_size=4))
@settings(max_examples=1000, deadline=None)
def test_a_broken_question_harms_nobody(tail: bytes, at: int, noise: bytes) -> None:
    data = bytearray(dnswire.query(1, "web.app", 1, size=1232) + tail)
    data[at : at + len(noise)] = noise
    try:
        question = dnswire.read_question(bytes(data))
    except NotAQuestion:
        return
    dnswire.read_reply(dnswire.answer(question, [(1, b"\1\2\3\4")], limit=512))


@given(st.binary(max_size=300))
@settings(max_examples=1000, deadline=None)
def test_any_bytes_are_a_reply_or_refused(data: bytes) -> None:
    try:
        dnswire.read_reply(data)
    except ValueError:
        return


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("11.9.0.10.in-addr.arpa", "10.0.9.11"),
        ("9.0.10.in-addr.arpa", ""),
        ("x.9.0.10.in-addr.arpa", ""),
        ("web", ""),
    ],
)
def test_reversed_addresses(name: str, address: str) -> None:
    assert dnswire.reversed_address(name) == address


# --- who sees what


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    journal = StateFiles(tmp_path)
    journal.prepare()
    many = tuple(f"10.0.9.{n}" for n in range(10, 60))
    journal.put(
        "app",
        NamesEntry(
            "app", "App", {"web": ("10.0.9.200",), "tasks.web": many, "idle": ()}, {"10.0.9.200": "web.App"}
        ),
    )
    journal.put(
        "back",
        NamesEntry(
            "back", "back", {"db": ("10.0.10.200",), "web": ("10.0.10.201",)}, {"10.0.10.9": "db.1.back"}
        ),
    )
    journal.put("t1", TaskEntry("t1", "10.240.4.11", ("app",)))
    journal.put("t2", TaskEntry("t2", "10.240.4.12", ("back", "app")))
    zone = Zone(journal, random.Random(1))
    zone.reload()
    return zone


APP_ONLY, BOTH, STRANGER = "10.240.4.11", "10.240.4.12", "10.240.4.99"


def ask(zone: Zone, name: str, asker: str, kind: int = dnswire.A, limit: int = 512) -> dnswire.Reply | None:
    data = zone.answer(dnswire.read_question(dnswire.query(1, name, kind)), asker, limit)
    return dnswire.read_reply(data) if data is not None else None


def texts(reply: dnswire.Reply | None) -> list[str]:
    assert reply is not None
    assert reply.code == dnswire.NOERROR
    assert reply.authoritative
    return [text for _, _, _, text in reply.answers]


@pytest.mark.parametrize(
    ("name", "asker", "found"),
    [
        ("web", APP_ONLY, ["10.0.9.200"]),
        ("WEB", APP_ONLY, ["10.0.9.200"]),
        ("web.app", APP_ONLY, ["10.0.9.200"]),
        ("web", BOTH, ["10.0.10.201"]),
        ("web.app", BOTH, ["10.0.9.200"]),
        ("db", BOTH, ["10.0.10.200"]),
        ("idle", APP_ONLY, []),
    ],
)
def test_names_by_asker(zone: Zone, name: str, asker: str, found: list[str]) -> None:
    assert texts(ask(zone, name, asker)) == found


@pytest.mark.parametrize(
    ("name", "asker"),
    [
        ("db", APP_ONLY),
        ("db.back", APP_ONLY),
        ("web", STRANGER),
        ("example.org", BOTH),
        ("app", APP_ONLY),
        ("9.10.0.10.in-addr.arpa", APP_ONLY),
    ],
)
def test_names_of_other_networks_are_unknown(zone: Zone, name: str, asker: str) -> None:
    assert ask(zone, name, asker) is None


def test_a_known_name_has_no_ipv6_and_says_so(zone: Zone) -> None:
    assert texts(ask(zone, "web", APP_ONLY, dnswire.AAAA)) == []


def test_pointers(zone: Zone) -> None:
    assert texts(ask(zone, "9.10.0.10.in-addr.arpa", BOTH, dnswire.PTR)) == ["db.1.back"]


def test_tasks_come_in_changing_order_with_a_short_life(zone: Zone) -> None:
    orders = {tuple(texts(ask(zone, "tasks.web", APP_ONLY, limit=65535))) for _ in range(5)}
    assert len(orders) > 1
    assert len({frozenset(order) for order in orders}) == 1
    reply = ask(zone, "tasks.web", APP_ONLY)
    assert reply is not None
    assert reply.truncated
    assert {ttl for _, _, ttl, _ in reply.answers} == {TTL}


def test_changed_added_and_removed_records_are_seen(zone: Zone, tmp_path: Path) -> None:
    journal = StateFiles(tmp_path)
    journal.put("app", NamesEntry("app", "App", {"web": ("10.0.9.201",)}))
    journal.put("t9", TaskEntry("t9", STRANGER, ("app",)))
    journal.drop(NamesEntry, "back")
    journal.drop(TaskEntry, "t1")
    zone.reload()
    assert texts(ask(zone, "web", STRANGER)) == ["10.0.9.201"]
    assert ask(zone, "web", APP_ONLY) is None
    assert texts(ask(zone, "web", BOTH)) == ["10.0.9.201"]


def test_other_classes_are_refused(zone: Zone) -> None:
    question = dnswire.read_question(dnswire.query(1, "web", 1))
    chaos = Question(question.id, question.flags, question.name, 16, 3, question.section)
    answer = zone.answer(chaos, APP_ONLY, 512)
    assert answer is not None
    assert dnswire.read_reply(answer).code == dnswire.REFUSED


def test_upstreams(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# x\nsearch a b\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\noptions ndots:0\nnameserver\n"
    )
    assert upstreams(path) == ["192.0.2.1", "fe80::1"]
