#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Have systemd's units run."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swarm_unit
short_description: Have systemd's units run
version_added: 0.1.0
description:
  - Starts, restarts, reloads or stops units, in the given order, in one trip to the host. A failure tells what the unit itself said.
  - Unlike M(ansible.builtin.systemd_service) it can tell in check mode what it would do with a unit that is yet to be installed.
  - Before anything is done, systemd reads its units anew, and forgets how often it has started them lately.
extends_documentation_fragment:
  - swarm.cluster.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - V(restarted) and V(reloaded) are done each time.
  action_group:
    support: none
    membership: []
options:
  units:
    description:
      - Names of the units.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(restarted) and V(reloaded) leave a unit alone that does not run. In check mode one that is yet to be installed is taken to run.
    type: str
    choices: [started, restarted, reloaded, stopped]
    required: true
  enabled:
    description:
      - Whether they are started when the host boots. Left as it is, if not stated.
    type: bool
  engine_record:
    description:
      - With the Docker Engine's unit, where to note which settings its process has taken up.
    type: path
  engine_before:
    description:
      - What M(swarm.cluster.swarm_host_info) saw that the engine had taken up, before its settings were written.
    type: dict
    default: {}
  engine_reloadable:
    description:
      - The settings that the engine takes up at a reload.
    type: list
    elements: str
    default: []
  timeout:
    description:
      - How many seconds one unit may take.
    type: int
    default: 180
author:
  - The swarm-agent authors (@swarm-agent)
"""

EXAMPLES = r"""
- name: Have the agent run
  swarm.cluster.swarm_unit:
    units: [swarm-agent-net.service, swarm-agent.service]
    state: started
    enabled: true
"""

RETURN = r"""
done:
  description: What was done, or would be.
  returned: success
  type: list
  elements: str
  sample: [start swarm-agent.service]
"""

import os
import subprocess

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.swarm.cluster.plugins.module_utils import _process

VERBS = {"started": "start", "restarted": "restart", "reloaded": "reload", "stopped": "stop"}
RUNNING = ("active", "activating", "reloading")


def steps(seen, state, enabled):
    """What has to be done with a unit that was seen as ``seen``: words for systemctl."""
    found = []
    runs = seen["state"] in RUNNING
    if enabled is not None and (seen["enabled"] != enabled):
        found.append("enable" if enabled else "disable")
    if state == "started":
        wanted = not runs
    elif state == "stopped":
        # Between two attempts of systemd to start it, it is not there and yet would come.
        wanted = runs or seen["state"] == "deactivating"
    else:
        wanted = runs
    if wanted:
        found.append(VERBS[state])
    return found


class UnitModule:
    """Looks at all units, then does what is missing."""

    def __init__(self, module):
        self.module = module
        self.params = module.params

    def systemctl(self, *words):
        try:
            done = subprocess.run(
                ["systemctl"] + list(words),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=self.params["timeout"],
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "it did not end within %d s" % self.params["timeout"]
        return "" if done.returncode == 0 else done.stderr.strip() or "systemctl ended with %d" % done.returncode

    def run(self):
        names = self.params["units"]
        seen = _process.units(names)
        if self.module.check_mode and self.params["state"] in ("restarted", "reloaded"):
            seen = {name: unit if unit["there"] else dict(unit, state="active") for name, unit in seen.items()}
        plan = [(name, step) for name in names for step in steps(seen[name], self.params["state"], self.params["enabled"])]
        if self.params["state"] == "stopped":
            # What is not installed need not be stopped.
            plan = [(name, step) for name, step in plan if seen[name]["there"]]
        result = {"changed": bool(plan), "done": ["%s %s" % (step, name) for name, step in plan]}
        result["diff"] = {"before": "", "after": "".join(line + "\n" for line in result["done"])}
        if self.module.check_mode:
            return result
        if plan:
            said = self.systemctl("daemon-reload")
            if said:
                self.module.fail_json(msg="swarm_unit: systemd does not read its units anew: %s" % said)
        for name, step in plan:
            if step in ("start", "restart"):
                # systemd counts starts and refuses the fourth within a minute or so. Those before this one were meant, too.
                self.systemctl("reset-failed", name, name.replace(".socket", ".service"))
            said = self.systemctl(step, name)
            if said:
                self.module.fail_json(
                    msg="swarm_unit: %s does not %s: %s. Its last words:\n%s" % (name, step, said, _process.last_words(name, 15) or "(none)")
                )
        record = self.params["engine_record"]
        if plan and record:
            self.note(names[0], record)
        return result

    def note(self, name, path):
        """Started anew, the engine has taken up its settings as they are now; reloaded, those among them that it takes up then."""
        process, file = _process.units([name])[name]["process"], _process.settings_file()
        if process is None:
            return
        settings = file["settings"]
        if self.params["state"] == "reloaded":
            settings = _process.reloaded(self.params["engine_before"].get("settings"), settings, self.params["engine_reloadable"])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _process.write_record(path, process, file, settings)


def main():
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["started", "restarted", "reloaded", "stopped"], "required": True},
            "enabled": {"type": "bool"},
            "engine_record": {"type": "path"},
            "engine_before": {"type": "dict", "default": {}},
            "engine_reloadable": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 180},
        },
        supports_check_mode=True,
    )
    module.exit_json(**UnitModule(module).run())


if __name__ == "__main__":
    main()
