#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Look at services."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swarm_service_info
short_description: Look at services of the swarm and their tasks
version_added: 0.1.0
description:
  - Returns services as the swarm's API shows them, each with its tasks and one sentence on how far it is.
  - Has to run on a manager.
extends_documentation_fragment:
  - swarm.cluster.connection
  - swarm.cluster.attributes
  - swarm.cluster.attributes.read_only
options:
  name:
    description:
      - Only this service. All of them, if left out.
    type: str
author:
  - The swarm-agent authors (@swarm-agent)
"""

EXAMPLES = r"""
- name: Look at one service
  swarm.cluster.swarm_service_info:
    name: web
  register: web

- name: See that it runs
  ansible.builtin.assert:
    that: web.services[0].converged
    fail_msg: "{{ web.services[0].state_text }}"
"""

RETURN = r"""
exists:
  description: Whether any service was found.
  returned: success
  type: bool
services:
  description: The services, ordered by name. C(tasks) are those of the present specification.
  returned: success
  type: list
  elements: dict
  sample: [{"service": {"ID": "k55byvyv9qp3vxxh3m1tlyhdz"}, "tasks": [], "converged": true, "state_text": "3 of 3 tasks run"}]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.swarm.cluster.plugins.module_utils import _client, _converge
from ansible_collections.swarm.cluster.plugins.module_utils._client import ApiError


def look(client, name):
    filters = {"filters": {"name": {name: True}}} if name else None
    nodes = client.get("/nodes")
    names = {n["ID"]: n["Description"]["Hostname"] for n in nodes}
    found = []
    for service in sorted(client.get("/services", filters) or (), key=lambda s: s["Spec"]["Name"]):
        if name and service["Spec"]["Name"] != name:
            continue
        wanted = {"service": {service["ID"]: True}, "_up-to-date": {"true": True}}
        tasks = client.get("/tasks", {"filters": wanted}) or []
        verdict = _converge.judge(service, tasks, nodes)
        found.append(
            {
                "service": service,
                "tasks": [dict(task, NodeName=names.get(task.get("NodeID"))) for task in tasks],
                "converged": verdict.state == "done",
                "state_text": verdict.text,
            }
        )
    return found


def main():
    spec = dict(_client.ARGUMENTS, name={"type": "str"})
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    client = _client.Client.of(module)
    try:
        _client.require_manager(client)
        found = look(client, module.params["name"])
    except ApiError as error:
        module.fail_json(msg="swarm_service_info: %s" % error, status=error.status)
    module.exit_json(changed=False, exists=bool(found), services=found)


if __name__ == "__main__":
    main()
