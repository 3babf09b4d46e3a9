#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Remove what is left of a swarm's tasks."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swarm_containers
short_description: Remove the containers of tasks that are left on a host
version_added: 0.1.0
description:
  - Asks the host's own Docker Engine, so that neither C(swarm-agent) nor the docker command has to be there.
  - For a host that is in no swarm any more, or that is about to be taken out.
extends_documentation_fragment:
  - swarm.cluster.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  action_group:
    support: none
    membership: []
options:
  engine_socket:
    description:
      - The Docker Engine's own socket.
    type: path
    default: /var/run/docker.sock
  label:
    description:
      - The label that the containers carry.
    type: str
    required: true
author:
  - The swarm-agent authors (@swarm-agent)
"""

EXAMPLES = r"""
- name: Remove what is left
  swarm.cluster.swarm_containers:
    label: swarm-agent.cluster.id
"""

RETURN = r"""
containers:
  description: Names of the containers that were removed, or would be.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.swarm.cluster.plugins.module_utils import _client
from ansible_collections.swarm.cluster.plugins.module_utils._client import ApiError


def main():
    module = AnsibleModule(
        argument_spec={
            "engine_socket": {"type": "path", "default": "/var/run/docker.sock"},
            "label": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    engine = _client.Client(module.params["engine_socket"], timeout=120, patience=0)
    removed = []
    try:
        filters = {"label": {module.params["label"]: True}}
        for container in engine.get("/containers/json", {"all": "1", "filters": filters}) or ():
            name = (container.get("Names") or [container["Id"][:12]])[0].lstrip("/")
            if not module.check_mode:
                try:
                    engine.call("DELETE", "/containers/" + container["Id"], {"force": "1", "v": "1"})
                except ApiError as error:
                    # Gone meanwhile, or about to be.
                    if error.status not in (404, 409):
                        raise
            removed.append(name)
    except ApiError as error:
        module.fail_json(msg="swarm_containers: %s" % str(error).replace("swarm-agent", "the Docker Engine"))
    removed.sort()
    diff = {"before": "".join("container %s\n" % name for name in removed), "after": ""}
    module.exit_json(changed=bool(removed), containers=removed, diff=diff)


if __name__ == "__main__":
    main()
