#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Check the inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swarm_inventory
short_description: Check the inventory before anything is touched
version_added: 0.1.0
description:
  - Refuses variables beginning with C(swarm_) that no role of this collection knows, and groups that make no swarm.
  - Runs on the controller.
extends_documentation_fragment:
  - swarm.cluster.attributes
  - swarm.cluster.attributes.read_only
attributes:
  action_group:
    support: none
    membership: []
options:
  managers:
    description:
      - Name of the group of managers.
    type: str
    default: managers
  workers:
    description:
      - Name of the group of workers.
    type: str
    default: workers
  nodes:
    description:
      - Nodes of the swarm, as M(swarm.cluster.swarm_info) returns them. Those that the inventory does not name are warned of, and
        nothing else is checked.
    type: list
    elements: dict
    default: []
author:
  - The swarm-agent authors (@swarm-agent)
"""

EXAMPLES = r"""
- name: Check the inventory
  swarm.cluster.swarm_inventory:
"""

RETURN = r"""
problems:
  description: What is wrong, each with the way out.
  returned: failure
  type: list
  elements: str
strangers:
  description: Nodes that the inventory does not name.
  returned: when O(nodes) is not empty
  type: list
  elements: str
"""
# Everything happens on the controller, in the action plugin of the same name.
