#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Look at the swarm."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swarm_info
short_description: Look at the swarm from one of its hosts
version_added: 0.1.0
description:
  - Returns what the host knows about its swarm. On any host it tells the host's own membership, on a manager the nodes, too.
  - A host without a running C(swarm-agent) is not an error, it is told in RV(state).
extends_documentation_fragment:
  - swarm.cluster.connection
  - swarm.cluster.attributes
  - swarm.cluster.attributes.read_only
options:
  join_tokens:
    description:
      - Return the join tokens, too. Set C(no_log) on the task then.
    type: bool
    default: false
author:
  - The swarm-agent authors (@swarm-agent)
"""

EXAMPLES = r"""
- name: Look at the swarm
  swarm.cluster.swarm_info:
  register: swarm

- name: See that all nodes are there
  ansible.builtin.assert:
    that: swarm.nodes | rejectattr('Status.State', 'equalto', 'ready') | length == 0
"""

RETURN = r"""
state:
  description: The host's own state; C(absent) if no C(swarm-agent) answers.
  returned: success
  type: str
  sample: active
reason:
  description: Why nothing answers.
  returned: when RV(state=absent)
  type: str
manager:
  description: Whether the host is a manager.
  returned: success
  type: bool
node_id:
  description: The host's node id; empty outside a swarm.
  returned: success
  type: str
cluster_id:
  description: The swarm's id; empty on workers.
  returned: success
  type: str
managers:
  description: Addresses of the swarm's managers.
  returned: success
  type: list
  elements: str
nodes:
  description: The nodes as the API shows them; empty on workers.
  returned: success
  type: list
  elements: dict
tokens:
  description: The join tokens, by role.
  returned: when O(join_tokens=true), on a manager
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.swarm.cluster.plugins.module_utils import _client
from ansible_collections.swarm.cluster.plugins.module_utils._client import ApiError, Unreachable


def look(client, with_tokens):
    try:
        info = client.get("/info")
    except Unreachable as error:
        return {"state": "absent", "reason": str(error), "manager": False, "node_id": "", "cluster_id": "", "managers": [], "nodes": []}
    swarm = info.get("Swarm") or {}
    manager = _client.is_manager(info)
    result = {
        "state": swarm.get("LocalNodeState") or "inactive",
        "manager": manager,
        "node_id": swarm.get("NodeID") or "",
        "cluster_id": (swarm.get("Cluster") or {}).get("ID") or "",
        "managers": [m["Addr"] for m in swarm.get("RemoteManagers") or ()],
        "nodes": client.get("/nodes") if manager else [],
    }
    if with_tokens and manager:
        tokens = client.get("/swarm")["JoinTokens"]
        result["tokens"] = {"manager": tokens["Manager"], "worker": tokens["Worker"]}
    return result


def main():
    spec = dict(_client.ARGUMENTS, join_tokens={"type": "bool", "default": False, "no_log": False})
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    try:
        result = look(_client.Client.of(module), module.params["join_tokens"])
    except ApiError as error:
        module.fail_json(msg="swarm_info: %s" % error, status=error.status)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
