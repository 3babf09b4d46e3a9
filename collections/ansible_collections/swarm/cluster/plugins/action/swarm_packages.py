# SPDX-License-Identifier: Apache-2.0
"""Hand a host the packages of a folder on the controller, if it lacks a command and reaches no mirror."""

from __future__ import annotations

from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Asks the host what it lacks; copies packages only if there is something."""

    # A place for files is made on the host only once there are some to send: what Ansible makes beforehand would be left there.
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        folder = arguments.get("folder")
        seen = self._execute_module(module_args=arguments, task_vars=task_vars)
        if seen.get("failed") or not folder or not seen["changed"] or self._task.check_mode:
            result.update(seen)
            return result
        packages = sorted(Path(folder).glob("*.deb"))
        if not packages:
            raise AnsibleActionFail("there is no .deb file in %s on the controller (swarm_engine_packages_dir)" % folder)
        remote = self._make_tmp_path()
        try:
            arguments["archives"] = [
                self._transfer_file(str(path), self._connection._shell.join_path(remote, path.name)) for path in packages
            ]
            result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        finally:
            self._remove_tmp_path(remote)
        return result
