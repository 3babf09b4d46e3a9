"""Every command of docs/recovery.md works when it is pasted: it names the agent's socket, and swarmctl knows its words."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from swarm_agent.cli import arguments_parser
from swarm_agent.config import AgentConfig

PAGE = (Path(__file__).resolve().parents[3] / "docs/recovery.md").read_text()
COMMANDS = sorted(
    {
        line
        for block in re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    }
)
SOCKET = AgentConfig().socket


def test_the_page_has_commands_of_both_kinds() -> None:
    assert {line.split()[0] for line in COMMANDS} == {"docker", "swarmctl", "systemctl", "advertise_addr"}


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("docker ")])
def test_docker_is_told_the_agents_socket(line: str) -> None:
    assert shlex.split(line)[1:3] == ["-H", f"unix://{SOCKET}"]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("swarmctl ")])
def test_swarmctl_is_told_the_agents_socket_and_knows_the_command(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_AGENT_SOCKET", "/nowhere")  # what the page does not say would be this
    assert arguments_parser().parse_args(shlex.split(line)[1:]).socket == SOCKET
