#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Declare a node's role, availability and labels."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swarm_node
short_description: Declare a node's role, availability and labels
version_added: 0.1.0
description:
  - Changes what a manager knows about a node, promotes and demotes it, or removes it, and waits until that is so.
  - An option that is not stated is not touched.
  - Has to run on a manager.
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
  node:
    description:
      - Id or host name of the node. The node that the task runs on, if left out.
    type: str
  state:
    description:
      - V(absent) removes a node from the swarm. It must be down, unless O(force=true).
    type: str
    choices: [present, absent]
    default: present
  role:
    description:
      - V(manager) promotes, V(worker) demotes.
    type: str
    choices: [manager, worker]
  availability:
    description:
      - V(active) takes tasks, V(pause) takes no new ones, V(drain) has its tasks moved elsewhere.
    type: str
    choices: [active, pause, drain]
  labels:
    description:
      - Labels of the node.
    type: dict
  labels_mode:
    description:
      - V(merge) leaves labels alone that are not named in O(labels), V(replace) removes them.
    type: str
    choices: [merge, replace]
    default: merge
  force:
    description:
      - Remove a node that is not down, too.
    type: bool
    default: false
  wait:
    description:
      - Wait until a new role is taken up and a drained node has no task left.
    type: bool
    default: true
  wait_timeout:
    description:
      - How many seconds to wait.
    type: int
    default: 120
author:
  - The swarm-agent authors (@swarm-agent)
"""

EXAMPLES = r"""
- name: Mark a node and make it take tasks
  swarm.cluster.swarm_node:
    node: node-3
    availability: active
    labels:
      disk: ssd

- name: Empty a node before maintenance
  swarm.cluster.swarm_node:
    node: node-3
    availability: drain
"""

RETURN = r"""
node:
  description: The node as the API shows it, after the change; empty when it is absent.
  returned: success
  type: dict
changes:
  description: What changed, or would change.
  returned: success
  type: list
  elements: str
  sample: ["Availability", "Labels.disk"]
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.swarm.cluster.plugins.module_utils import _client, _compare
from ansible_collections.swarm.cluster.plugins.module_utils._client import ApiError
from ansible_collections.swarm.cluster.plugins.module_utils._units import Invalid, text_map

LIVE = ("running", "starting", "preparing", "ready")


class NodeModule:
    """From the module's options to the node's record."""

    def __init__(self, module):
        self.module = module
        self.params = module.params
        self.client = _client.Client.of(module)

    def run(self):
        labels = text_map(self.params["labels"], "labels") if self.params["labels"] is not None else None
        info = _client.require_manager(self.client)
        who = self.params["node"] or info["Swarm"]["NodeID"]
        if self.params["state"] == "absent":
            return _client.undisturbed(lambda: self.absent(who))
        return _client.undisturbed(lambda: self.present(who, labels))

    def find(self, who):
        """A node by id or host name. A name that several nodes carry means the one that is not down."""
        nodes = self.client.get("/nodes")
        found = [n for n in nodes if n["ID"] == who] or [n for n in nodes if n["Description"]["Hostname"] == who]
        if len(found) > 1:
            found = [n for n in found if n["Status"]["State"] != "down"] or found
        if len(found) > 1:
            raise Invalid("node", "%d nodes are called %s: name one by its id (%s)" % (len(found), who, ", ".join(n["ID"] for n in found)))
        return found[0] if found else None

    def absent(self, who):
        node = self.find(who)
        result = {"changed": node is not None, "changes": [], "node": {}}
        if node is not None:
            result["diff"] = {"before": {"node": node["Description"]["Hostname"]}, "after": {}}
            if not self.module.check_mode:
                self.client.call("DELETE", "/nodes/" + node["ID"], {"force": "1"} if self.params["force"] else None)
        return result

    def wanted(self, spec, labels):
        found = [
            _compare.Assignment((key,), self.params[option])
            for option, key in (("role", "Role"), ("availability", "Availability"))
            if self.params[option] is not None
        ]
        if labels is not None:
            gone = set(spec.get("Labels") or ()) - set(labels) if self.params["labels_mode"] == "replace" else ()
            # A label may be there with an empty value, which is not the same as no label.
            found += [_compare.Assignment(("Labels", key), value, lambda v: v) for key, value in sorted(labels.items())]
            found += [_compare.Assignment(("Labels", key), None, lambda v: v) for key in sorted(gone)]
        return found

    def present(self, who, labels):
        node = self.find(who)
        if node is None:
            raise Invalid("node", "the swarm has no node %s" % who)
        before = node["Spec"]
        changed = _compare.difference(before, self.wanted(before, labels))
        after = _compare.apply(before, changed)
        result = {
            "changed": bool(changed),
            "changes": [".".join(a.path) for a in changed],
            "diff": _compare.diff(before, after, changed),
            "node": dict(node, Spec=after),
        }
        if changed and not self.module.check_mode:
            self.client.call("POST", "/nodes/%s/update" % node["ID"], {"version": node["Version"]["Index"]}, after)
        if self.params["wait"] and not self.module.check_mode:
            result["node"] = self.settle(node["ID"], changed)
        return result

    def settle(self, node_id, changed):
        deadline = time.monotonic() + self.params["wait_timeout"]
        keys = {a.path[0] for a in changed}
        while True:
            node = self.client.get("/nodes/" + node_id)
            waiting = self.role_pending(node, keys) or self.drain_pending(node, keys)
            if waiting is None:
                return node
            if time.monotonic() > deadline:
                raise ApiError(
                    "node %s: waited %d s in vain until %s" % (node["Description"]["Hostname"], self.params["wait_timeout"], waiting)
                )
            time.sleep(0.3)

    def role_pending(self, node, keys):
        if "Role" not in keys:
            return None
        status = node.get("ManagerStatus")
        if node["Spec"]["Role"] == "manager":
            return None if status and status.get("Reachability") == "reachable" else "it takes part as a manager"
        return "it has given up its part as a manager" if status else None

    def drain_pending(self, node, keys):
        if "Availability" not in keys or node["Spec"]["Availability"] != "drain" or node["Status"]["State"] != "ready":
            return None
        tasks = self.client.get("/tasks", {"filters": {"node": {node["ID"]: True}}}) or ()
        left = [t for t in tasks if t["Status"]["State"] in LIVE]
        return "its last %d tasks have left" % len(left) if left else None


def main():
    spec = dict(
        _client.ARGUMENTS,
        node={"type": "str"},
        state={"type": "str", "choices": ["present", "absent"], "default": "present"},
        role={"type": "str", "choices": ["manager", "worker"]},
        availability={"type": "str", "choices": ["active", "pause", "drain"]},
        labels={"type": "dict"},
        labels_mode={"type": "str", "choices": ["merge", "replace"], "default": "merge"},
        force={"type": "bool", "default": False},
        wait={"type": "bool", "default": True},
        wait_timeout={"type": "int", "default": 120},
    )
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True, required_if=[("state", "absent", ("node",))])
    try:
        module.exit_json(**NodeModule(module).run())
    except Invalid as error:
        module.fail_json(msg="swarm_node: %s" % error, path=error.path)
    except ApiError as error:
        module.fail_json(msg="swarm_node: %s" % error, status=error.status)


if __name__ == "__main__":
    main()
