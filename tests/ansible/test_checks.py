"""What stands in the way of a host or an inventory is told at once, each with the way out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible_collections.swarm.cluster.plugins.action import swarm_host_info, swarm_inventory, swarm_program

COLLECTION = Path(__file__).resolve().parents[2] / "collections/ansible_collections/swarm/cluster"

FIT: dict[str, Any] = {
    "root": True,
    "systemd": True,
    "python": {"version": [3, 11, 2]},
    "libc": ["glibc", "2.36"],
    "kernel": dict.fromkeys(("vxlan", "veth", "bridge", "nftables", "nftables nat"), True),
    "free_mb": {"/var/lib/swarm-agent": 10_000},
    "ports": [],
    "daemon_json": {"settings": {}, "error": None},
    "engine": {
        "answers": True,
        "version": "20.10.24+dfsg1",
        "swarm": "inactive",
        "socket": "/var/run/docker.sock",
    },
    "swarm": {"state": "inactive", "reason": ""},
}
ALL = ["engine", "agent", "member"]


def problems(skew: float = 0.0, **changes: Any) -> list[str]:
    host = {**copy.deepcopy(FIT), **changes}
    found: list[str] = swarm_host_info.problems(host, ALL, skew, 60, 500)
    return found


def test_a_fit_host_has_none() -> None:
    assert problems() == []
    assert problems(skew=30) == []
    assert problems(engine={"answers": False, "reason": "not installed"}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"root": False}, "ansible_become"),
        ({"skew": 7200}, "2.0 hours ahead of"),
        ({"skew": -7200}, "2.0 hours behind"),
        ({"systemd": False}, "systemd does not run"),
        ({"python": {"version": [3, 9, 2]}}, "Python 3.9.2 is too old: 3.11"),
        ({"libc": ["", ""]}, "glibc"),
        ({"kernel": {**FIT["kernel"], "vxlan": False}}, "the kernel lacks vxlan"),
        ({"free_mb": {"/opt/swarm-agent": 12}}, "only 12 MB are free for /opt/swarm-agent"),
        (
            {"ports": [{"port": 2377, "protocol": "tcp", "pid": 7, "command": "dockerd"}]},
            "port 2377/tcp is used by process 7 (dockerd)",
        ),
        ({"daemon_json": {"settings": {}, "error": "x is not JSON"}}, "x is not JSON: repair or remove it"),
        ({"engine": {**FIT["engine"], "version": "19.03.15"}}, "Docker Engine 19.03.15 is too old: 20.10"),
        ({"engine": {**FIT["engine"], "swarm": "active"}}, "swarm leave --force"),
        ({"engine": {**FIT["engine"], "swarm": "locked"}}, "swarm leave --force"),
        ({"swarm": {"state": "error", "reason": "no key"}}, "no key. Mend what that names"),
        ({"swarm": {"state": "locked", "reason": ""}}, "docker swarm unlock"),
    ],
)
def test_each_problem_is_named(changes: dict[str, Any], said: str) -> None:
    found = problems(**changes)
    assert len(found) == 1
    assert said in found[0]


def test_a_kernel_part_that_nobody_could_look_for_is_no_problem_yet() -> None:
    assert problems(kernel=dict.fromkeys(FIT["kernel"])) == []


def test_all_problems_are_told_at_once() -> None:
    assert len(problems(skew=7200, root=False, systemd=False)) == 3


def test_groups() -> None:
    addresses = {"a": "10.0.0.1 port 22", "b": "10.0.0.1 port 22", "c": "c port 22"}
    check = swarm_inventory.group_problems
    assert check({"managers": ["c"], "workers": ["a"]}, "managers", "workers", addresses) == []
    assert "managers is missing or empty" in check({"workers": ["a"]}, "managers", "workers", addresses)[0]
    assert "c in both" in check({"managers": ["c"], "workers": ["c"]}, "managers", "workers", addresses)[0]
    assert (
        "a and b have the same address"
        in check({"managers": ["a"], "workers": ["b"]}, "managers", "workers", addresses)[0]
    )


def test_unknown_variables_are_named_with_what_was_meant() -> None:
    found = swarm_inventory.variable_problems(
        {"a": ["swarm_node_label", "other"], "b": ["swarm_node_label"]}, {"swarm_node_labels"}
    )
    assert found == ["unknown variable swarm_node_label (of a, b): did you mean swarm_node_labels?"]


def test_known_variables_come_from_the_roles() -> None:
    known = swarm_inventory.known_variables()
    assert {
        "swarm_agent_socket",
        "swarm_engine_settings",
        "swarm_advertise_addr",
        "swarm_node_labels",
    } <= known


@pytest.mark.parametrize("count", [1, 3, 5])
def test_odd_numbers_of_managers_are_fine(count: int) -> None:
    assert swarm_inventory.even_managers(count) is None
    assert "odd number" in swarm_inventory.even_managers(count + 1)


@pytest.mark.parametrize("role", sorted(p.name for p in (COLLECTION / "roles").iterdir()))
def test_defaults_and_argument_specifications_agree(role: str) -> None:
    options = yaml.safe_load((COLLECTION / "roles" / role / "meta/argument_specs.yml").read_text())[
        "argument_specs"
    ]["main"]["options"]
    defaults = COLLECTION / "roles" / role / "defaults/main.yml"
    values = yaml.safe_load(defaults.read_text()) if defaults.exists() else {}
    assert {name: option["default"] for name, option in options.items() if "default" in option} == values


def test_the_action_group_holds_every_module_that_speaks_to_a_swarm() -> None:
    listed = yaml.safe_load((COLLECTION / "meta/runtime.yml").read_text())["action_groups"]["cluster"]
    speaking = [
        p.stem
        for p in (COLLECTION / "plugins/modules").glob("*.py")
        if "swarm.cluster.connection" in p.read_text()
    ]
    assert sorted(listed) == sorted(speaking)


def test_wheel_platforms_go_down_from_the_hosts_c_library() -> None:
    found = swarm_program.platforms("x86_64", "2.36")
    assert found[0] == "manylinux_2_36_x86_64"
    assert "manylinux_2_17_x86_64" in found
    assert "manylinux_2_37_x86_64" not in found


def test_the_programs_name_follows_its_sources(tmp_path: Path) -> None:
    (tmp_path / "swarm_agent").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "requirements.lock").write_text("h11==1\n")
    code = tmp_path / "swarm_agent" / "__init__.py"
    code.write_text("a = 1\n")
    first = swarm_program.Source(tmp_path).name
    assert first.startswith("1.2.3+")
    assert swarm_program.Source(tmp_path).name == first
    code.write_text("a = 2\n")
    assert swarm_program.Source(tmp_path).name != first


def test_nodes_that_the_inventory_does_not_name_are_strangers() -> None:
    def node(number: int, hostname: str, address: str) -> dict[str, Any]:
        return {
            "ID": f"id{number}",
            "Description": {"Hostname": hostname},
            "Status": {"Addr": address, "State": "down"},
        }

    hosts = {"one.example.org": "10.0.0.1", "two": "10.0.0.2", "alias": "10.0.0.3", "four": "four"}
    nodes = [
        node(1, "one", "10.9.0.1"),  # a host name without its domain
        node(2, "two.example.org", ""),
        node(3, "three", "10.0.0.3"),  # known by its address
        node(4, "old-name", "10.9.0.4"),  # known by its id
        node(5, "stray", "10.0.0.5"),
    ]
    assert swarm_inventory.strangers(nodes, {"id4", ""}, hosts) == ["stray (10.0.0.5, down)"]


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was gathered before, and the only index is one that nobody runs."""
    monkeypatch.setattr(swarm_program, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(swarm_program, "SILENCE_S", 2)
    for name, value in (
        ("CONFIG_FILE", "/dev/null"),
        ("INDEX_URL", "http://127.0.0.1:9/simple"),
        ("NO_CACHE_DIR", "1"),
    ):
        monkeypatch.setenv(f"PIP_{name}", value)
    for name in ("FIND_LINKS", "EXTRA_INDEX_URL", "NO_INDEX"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)


@pytest.mark.usefixtures("no_cache")
def test_without_an_index_the_way_out_is_named() -> None:
    source = swarm_program.Source(COLLECTION.parents[3])
    with pytest.raises(AnsibleActionFail) as caught:
        swarm_program.gather(source, "cp311", "x86_64", "2.36", None)
    said = str(caught.value)
    assert said.startswith("the controller reaches no Python package index")
    assert "name their folder in swarm_agent_wheels" in said


@pytest.mark.usefixtures("no_cache")
def test_a_folder_of_wheels_that_lacks_some_is_named(tmp_path: Path) -> None:
    source = swarm_program.Source(COLLECTION.parents[3])
    with pytest.raises(AnsibleActionFail) as caught:
        swarm_program.gather(source, "cp311", "x86_64", "2.36", str(tmp_path))
    assert f"the folder {tmp_path}, named in swarm_agent_wheels, lacks something" in str(caught.value)


def test_a_key_that_does_not_exist_is_named_once_with_the_hint() -> None:
    keys = {"a": "/nowhere/key", "b": "/nowhere/key", "c": str(Path(__file__)), "d": ""}
    assert swarm_inventory.key_problems(keys, "make it") == [
        "the SSH key /nowhere/key (of a, b) does not exist on this controller: make it"
    ]
    assert swarm_inventory.key_problems({"a": ""}, "") == []


def test_advice_that_costs_something_names_the_cost() -> None:
    """Whatever tells to leave a swarm says what is lost by it, and says first what else can be done."""
    for change in (
        {"swarm": {"state": "error", "reason": "no key"}},
        {"engine": {**FIT["engine"], "swarm": "active"}},
    ):
        (said,) = problems(**change)
        before, found, after = said.partition("leave --force")
        assert found
        assert "Mend" in before or "first" in before
        assert "end" in after
        assert "los" in after
    for path in sorted(COLLECTION.rglob("*.yml")):
        for advice in ("reset.yml --limit", "force-new-cluster", "node rm --force"):
            if advice in path.read_text():
                assert "ends all its tasks" in path.read_text(), path
