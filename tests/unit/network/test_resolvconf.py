from __future__ import annotations

from pathlib import Path

import pytest

from swarm_agent.network.resolvconf import ForContainer, Resolv, for_container, of_host, parse


def test_reading() -> None:
    text = "# search no\nnameserver 192.0.2.1 # first\nnameserver 192.0.2.2\nsearch a b\noptions x\ndomain c\noptions ndots:3\n;\n"
    assert parse(text) == Resolv(("c",), ("x", "ndots:3"), ("192.0.2.1", "192.0.2.2"))
    assert parse("nameserver\noptions\nsearch\n\xa0") == Resolv()


@pytest.mark.parametrize("host", [("ndots:0",), ("ndots:5", "ndots:0"), ("edns0", "ndots:x"), ()])
def test_the_engine_never_hears_of_the_hosts_ndots(host: tuple[str, ...]) -> None:
    found = for_container((), (), Resolv((), host))
    assert found.text == ""
    assert found.options, "none at all would make the engine take the host's"
    assert not [option for option in found.options if "ndots" in option]


@pytest.mark.parametrize("stated", [True, False])
def test_a_number_of_dots_stands_in_a_file_of_ours(stated: bool) -> None:
    options = ("timeout:2", "ndots:5")
    host = Resolv(("corp.example",), ("ndots:1",) if stated else options)
    found = for_container((), options if stated else (), host)
    assert found.options == ("timeout:2",)
    assert found.text.splitlines()[1:] == [
        "search corp.example",
        "nameserver 127.0.0.11",
        "options timeout:2 ndots:5",
    ]


def test_no_search_is_stated_with_a_dot() -> None:
    found = for_container((".",), ("ndots:2",), Resolv(("corp.example",)))
    assert "search" not in found.text


def test_what_the_engine_would_refuse_is_left_to_it() -> None:
    assert for_container((), ("ndots:x",), Resolv()) == ForContainer(("ndots:x",))


def test_the_file_behind_the_stub_and_the_engines_own_settings(tmp_path: Path) -> None:
    host, behind, engine = tmp_path / "resolv.conf", tmp_path / "behind", tmp_path / "daemon.json"
    assert of_host(host, behind, engine) == Resolv()
    host.write_text("nameserver 127.0.0.53\noptions edns0\n")
    behind.write_text("nameserver 192.0.2.1\nsearch a\noptions ndots:2\n")
    assert of_host(host, behind, engine) == Resolv(("a",), ("ndots:2",), ("192.0.2.1",))
    engine.write_text('{"dns-opts": ["ndots:4"], "dns-search": ["b"]}')
    assert of_host(host, behind, engine) == Resolv(("b",), ("ndots:4",), ("192.0.2.1",))
    for nonsense in ("{", "[]", '{"dns-opts": 3}'):
        engine.write_text(nonsense)
        assert of_host(host, behind, engine) == Resolv(("a",), ("ndots:2",), ("192.0.2.1",))
