from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swarm_agent.network.plugin import Plugin
from swarm_agent.network.state_files import EndpointEntry, EngineNetworkEntry, NetworkEntry, StateFiles

GENERIC = "com.docker.network.generic"


@pytest.fixture
def journal(tmp_path: Path) -> StateFiles:
    made = StateFiles(tmp_path)
    made.prepare()
    made.put("app", NetworkEntry("app", "ov-none-such", 1450))
    return made


def call(journal: StateFiles, path: str, request: Any = None) -> Any:
    """Every call meets a plugin that was just started: it may remember nothing."""
    return json.loads(
        Plugin(journal).handle(path, json.dumps(request).encode() if request is not None else b"")
    )


def test_what_it_implements(journal: StateFiles) -> None:
    assert call(journal, "/Plugin.Activate") == {"Implements": ["NetworkDriver", "IpamDriver"]}
    assert call(journal, "/NetworkDriver.GetCapabilities")["Scope"] == "local"


def test_a_network_is_known_by_its_option(journal: StateFiles) -> None:
    assert (
        call(
            journal,
            "/NetworkDriver.CreateNetwork",
            {"NetworkID": "abc", "Options": {GENERIC: {"swarm.network": "app"}}},
        )
        == {}
    )
    assert journal.get(EngineNetworkEntry, "abc") == EngineNetworkEntry("abc", "app")
    assert call(journal, "/NetworkDriver.DeleteNetwork", {"NetworkID": "abc"}) == {}
    assert journal.get(EngineNetworkEntry, "abc") is None


def test_a_network_made_by_hand_is_refused(journal: StateFiles) -> None:
    assert (
        "docker network create -d overlay"
        in call(journal, "/NetworkDriver.CreateNetwork", {"NetworkID": "abc", "Options": {}})["Err"]
    )


def endpoint(**interface: str) -> dict[str, Any]:
    return {"NetworkID": "abc", "EndpointID": "ep1", "Interface": interface}


def test_an_endpoint_gets_the_mac_of_its_address(journal: StateFiles) -> None:
    journal.put("abc", EngineNetworkEntry("abc", "app"))
    answer = call(journal, "/NetworkDriver.CreateEndpoint", endpoint(Address="10.0.9.11/24"))
    assert answer == {"Interface": {"MacAddress": "02:42:0a:00:09:0b"}}
    assert journal.get(EndpointEntry, "ep1") == EndpointEntry("ep1", "app", "10.0.9.11", "02:42:0a:00:09:0b")
    assert (
        "leave it out"
        in call(
            journal,
            "/NetworkDriver.CreateEndpoint",
            endpoint(Address="10.0.9.11/24", MacAddress="02:42:0a:00:09:0c"),
        )["Err"]
    )


def test_a_network_that_is_not_here_is_named(journal: StateFiles) -> None:
    assert (
        "not one of swarm-agent's"
        in call(journal, "/NetworkDriver.CreateEndpoint", endpoint(Address="10.0.9.11/24"))["Err"]
    )
    journal.put("abc", EngineNetworkEntry("abc", "app"))
    call(journal, "/NetworkDriver.CreateEndpoint", endpoint(Address="10.0.9.11/24"))
    assert (
        "is swarm-agent running?"
        in call(journal, "/NetworkDriver.Join", {"NetworkID": "abc", "EndpointID": "ep1"})["Err"]
    )
    journal.drop(NetworkEntry, "app")
    assert (
        "is swarm-agent running?"
        in call(journal, "/NetworkDriver.Join", {"NetworkID": "abc", "EndpointID": "ep1"})["Err"]
    )


def test_addresses_are_the_managers(journal: StateFiles) -> None:
    pool = call(
        journal,
        "/IpamDriver.RequestPool",
        {"Pool": "10.0.9.0/24", "Options": {"swarm.network": "app"}, "V6": False},
    )
    assert pool["Pool"] == "10.0.9.0/24"

    def ask(address: str, **options: str) -> Any:
        return call(
            journal,
            "/IpamDriver.RequestAddress",
            {"PoolID": pool["PoolID"], "Address": address, "Options": options},
        )

    assert ask("10.0.9.11")["Address"] == "10.0.9.11/24"
    assert ask("10.0.9.11")["Address"] == "10.0.9.11/24", "a release that was lost must not matter"
    assert ask("10.0.9.1", RequestAddressType="com.docker.network.gateway")["Address"] == "10.0.9.1/24"
    assert "asked for none" in ask("")["Err"]
    assert "not in 10.0.9.0/24" in ask("10.0.10.1")["Err"]


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff", b'{"PoolID": 3}', b"null"])
def test_nonsense_is_answered_not_raised(journal: StateFiles, body: bytes) -> None:
    assert "Err" in json.loads(Plugin(journal).handle("/IpamDriver.RequestAddress", body))
    assert "Err" in json.loads(Plugin(journal).handle("/Nothing.Known", body))


def _foreign(before: str) -> set[str]:
    """Top-level modules beyond the standard library that a Python holds after ``before``."""
    code = f"""{before}
import sys
loaded = {{m.split(".")[0] for m, module in list(sys.modules.items()) if getattr(module, "__file__", None)}}
print(*(loaded - sys.stdlib_module_names))"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    return set(done.stdout.split())


def test_netd_needs_the_standard_library_only() -> None:
    loaded = _foreign("import swarm_agent.network.netd")
    # an interpreter may load something of its own in any case: a distribution's, a virtual environment's
    assert loaded - _foreign("") == {"swarm_agent"}
