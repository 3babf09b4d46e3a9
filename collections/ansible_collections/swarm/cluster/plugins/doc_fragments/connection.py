# SPDX-License-Identifier: Apache-2.0
"""What every module that speaks to a swarm shares."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  socket:
    description:
      - Path of the Unix socket at which the host's C(swarm-agent) serves Docker's HTTP API.
      - If E(SWARM_AGENT_SOCKET) is set on the host, it is the default.
    type: path
    default: /run/swarm-agent/docker.sock
  timeout:
    description:
      - How many seconds one request may take.
    type: int
    default: 60
requirements:
  - Python 3.8 or newer on the host, and nothing else
"""
