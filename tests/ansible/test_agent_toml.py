"""The agent's configuration as the role writes it: what the agent reads is what the variables say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import yaml

from swarm_agent.config import AgentConfig, load_config
from swarm_agent.objects.records import Generic

ROLE = Path(__file__).parents[2] / "collections/ansible_collections/swarm/cluster/roles/swarm_agent"


def written(tmp_path: Path, **variables: Any) -> tuple[str, AgentConfig]:
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["to_json"] = json.dumps
    values = yaml.safe_load((ROLE / "defaults/main.yml").read_text()) | variables
    values["swarm_agent_keys"] = {"timing": values["swarm_agent_timing"], "rpc_port": 2378}
    text = environment.from_string((ROLE / "templates/agent.toml.j2").read_text()).render(values)
    file = tmp_path / "agent.toml"
    file.write_text(text)
    return text, load_config(file, must_exist=True)


def test_what_is_not_set_is_not_written(tmp_path: Path) -> None:
    text, config = written(tmp_path)
    assert config == AgentConfig()
    for key in ("advertise_addr", "feature_level", "generic_resources"):
        assert key not in text


def test_what_is_set_is_read_by_the_agent(tmp_path: Path) -> None:
    _, config = written(
        tmp_path,
        swarm_agent_advertise_addr="10.0.0.9",
        swarm_agent_feature_level=2,
        swarm_agent_generic_resources={"license": 3, "gpu": ["/dev/nvidia0", "/dev/nvidia1"]},
    )
    assert (config.advertise_addr, config.level) == ("10.0.0.9", 2)
    assert config.generic == (
        Generic(kind="gpu", name="/dev/nvidia0"),
        Generic(kind="gpu", name="/dev/nvidia1"),
        Generic(kind="license", count=3),
    )
