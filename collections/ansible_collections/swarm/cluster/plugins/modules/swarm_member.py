#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Make a host a member of a swarm, or not."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swarm_member
short_description: Make a host a member of a swarm
version_added: 0.1.0
description:
  - Has the host that it runs on begin a swarm, join one, or leave.
  - A host that is a member already stays as it is. Whether it is a manager or a worker is changed from a manager,
    with M(swarm.cluster.swarm_node).
extends_documentation_fragment:
  - swarm.cluster.connection
  - swarm.cluster.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  state:
    description:
      - V(present) makes the host a member, V(absent) has it leave.
    type: str
    choices: [present, absent]
    default: present
  remote_addrs:
    description:
      - Addresses of managers to join through, such as V(10.0.0.11:2377). Without them and without membership, a new swarm begins here.
    type: list
    elements: str
  join_token:
    description:
      - The token to join with. It decides whether the host becomes a manager or a worker.
    type: str
  advertise_addr:
    description:
      - The address at which the other hosts reach this one.
    type: str
  listen_addr:
    description:
      - Address and port to listen at.
    type: str
    default: 0.0.0.0:2377
  data_path_addr:
    description:
      - The address for the traffic between containers, if it is not O(advertise_addr).
    type: str
  default_addr_pool:
    description:
      - Where a new swarm takes the subnets of its networks from.
    type: list
    elements: str
  subnet_size:
    description:
      - Prefix length of these subnets.
    type: int
  force:
    description:
      - Leave even if the host is a manager, and even if it is the last one.
    type: bool
    default: false
  state_dir:
    description:
      - Where C(swarm-agent) keeps its state. In check mode it tells whether a host is a member while the agent is stopped.
    type: path
    default: /var/lib/swarm-agent
  wait_timeout:
    description:
      - How many seconds to wait until the host takes part.
    type: int
    default: 60
author:
  - The swarm-agent authors (@swarm-agent)
"""

EXAMPLES = r"""
- name: Begin a swarm
  swarm.cluster.swarm_member:
    advertise_addr: 10.0.0.11

- name: Join it
  swarm.cluster.swarm_member:
    remote_addrs: ["10.0.0.11:2377"]
    join_token: "{{ token }}"

- name: Leave it
  swarm.cluster.swarm_member:
    state: absent
    force: true
"""

RETURN = r"""
action:
  description: What was done, or would be.
  returned: success
  type: str
  sample: join
node_id:
  description: The host's node id; empty if it is in no swarm.
  returned: success
  type: str
manager:
  description: Whether it is a manager.
  returned: success
  type: bool
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.swarm.cluster.plugins.module_utils import _client
from ansible_collections.swarm.cluster.plugins.module_utils._client import ApiError, Unreachable

# A member has a certificate.
TRACE = os.path.join("certificates", "swarm-node.pem")


class MemberModule:
    """From the module's options to the host's membership."""

    def __init__(self, module):
        self.module = module
        self.params = module.params
        self.client = _client.Client.of(module)

    def look(self):
        """The Swarm part of /info; in check mode an agent or an engine that is stopped is not an error: the run would start it."""
        try:
            return self.client.get("/info")["Swarm"]
        except ApiError as error:
            stopped = isinstance(error, Unreachable) or error.status == 503
            if not self.module.check_mode or not stopped:
                raise
            member = os.path.exists(os.path.join(self.params["state_dir"], TRACE))
            return {"LocalNodeState": "active" if member else "inactive"}

    def result(self, action, swarm):
        before, after = {"state": "member"}, {"state": "member"}
        if action in ("init", "join"):
            before = {"state": "no member"}
        elif action == "leave":
            after = {"state": "no member"}
        return {
            "changed": action != "none",
            "action": action,
            "node_id": swarm.get("NodeID") or "",
            "manager": bool(swarm.get("ControlAvailable")),
            "diff": {"before": before, "after": after},
        }

    def run(self):
        swarm = self.look()
        state = swarm.get("LocalNodeState") or "inactive"
        if self.params["state"] == "absent":
            return self.leave(swarm, state)
        if state == "locked":
            raise ApiError("this manager is locked: unlock it first (docker swarm unlock)")
        if state == "error":
            raise ApiError(
                "this host cannot take part in its swarm: %s. %s" % (swarm.get("Error") or "no reason given", _client.BROKEN)
            )
        if state != "inactive":
            return self.result("none", self.settle() if not self.module.check_mode else swarm)
        action = "join" if self.params["remote_addrs"] else "init"
        if self.module.check_mode:
            return self.result(action, swarm)
        if action == "join" and not self.params["join_token"]:
            raise ApiError("joining needs a join_token (docker swarm join-token worker, on a manager)")
        try:
            self.join() if action == "join" else self.init()
        except ApiError as error:
            # A join that takes longer than the API waits goes on by itself.
            if "will continue in the background" not in str(error):
                raise
        return self.result(action, self.settle())

    def common(self):
        return {
            "ListenAddr": self.params["listen_addr"],
            "AdvertiseAddr": self.params["advertise_addr"] or "",
            "DataPathAddr": self.params["data_path_addr"] or "",
            "Availability": "",
        }

    def init(self):
        body = dict(self.common(), ForceNewCluster=False, Spec={}, AutoLockManagers=False)
        body["DefaultAddrPool"] = self.params["default_addr_pool"] or []
        body["SubnetSize"] = self.params["subnet_size"] or 0
        self.client.call("POST", "/swarm/init", body=body)

    def join(self):
        addresses = [a if ":" in a else a + ":2377" for a in self.params["remote_addrs"]]
        body = dict(self.common(), RemoteAddrs=addresses, JoinToken=self.params["join_token"])
        try:
            self.client.call("POST", "/swarm/join", body=body)
        except ApiError as error:
            raise ApiError("could not join through %s: %s" % (", ".join(addresses), error), error.status) from error

    def settle(self):
        """Wait until the host takes part and, on a manager, knows itself."""
        deadline = time.monotonic() + self.params["wait_timeout"]
        while True:
            swarm = self.client.get("/info")["Swarm"]
            state = swarm.get("LocalNodeState")
            if state == "active" and (not swarm.get("ControlAvailable") or self.known(swarm["NodeID"])):
                return swarm
            if state == "error" or time.monotonic() > deadline:
                raise ApiError(
                    "the host does not take part after %d s, its state is %s%s"
                    % (self.params["wait_timeout"], state, ": " + swarm["Error"] if swarm.get("Error") else "")
                )
            time.sleep(0.2)

    def known(self, node_id):
        try:
            return self.client.get("/nodes/" + node_id)["Status"]["State"] == "ready"
        except ApiError:
            return False

    def leave(self, swarm, state):
        if state == "inactive":
            return self.result("none", swarm)
        if not self.module.check_mode:
            self.client.call("POST", "/swarm/leave", {"force": "1"} if self.params["force"] else None)
        return self.result("leave", swarm)


def main():
    spec = dict(
        _client.ARGUMENTS,
        state={"type": "str", "choices": ["present", "absent"], "default": "present"},
        remote_addrs={"type": "list", "elements": "str"},
        join_token={"type": "str", "no_log": True},
        advertise_addr={"type": "str"},
        listen_addr={"type": "str", "default": "0.0.0.0:2377"},
        data_path_addr={"type": "str"},
        default_addr_pool={"type": "list", "elements": "str"},
        subnet_size={"type": "int"},
        force={"type": "bool", "default": False},
        state_dir={"type": "path", "default": "/var/lib/swarm-agent"},
        wait_timeout={"type": "int", "default": 60},
    )
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    try:
        module.exit_json(**MemberModule(module).run())
    except ApiError as error:
        module.fail_json(msg="swarm_member: %s" % error, status=error.status)


if __name__ == "__main__":
    main()
