#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Have a set of files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swarm_files
short_description: Have a set of small files on a host, or not
version_added: 0.1.0
description:
  - Makes files and links be what they should, with the directories they need, in one trip to the host.
  - Unlike M(ansible.builtin.copy) it can tell in check mode what it would do on a host where the directories are missing, too.
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
  files:
    description:
      - The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      state:
        description:
          - V(absent) removes a directory with all that is in it, too.
          - V(not_empty) removes a directory that is there for nothing.
        type: str
        choices: [file, link, absent, not_empty]
        default: file
      content:
        description: What the file holds.
        type: str
      target:
        description: What the link points to.
        type: path
      mode:
        description: Permissions, as an octal number in quotes.
        type: str
        default: "0644"
author:
  - The swarm-agent authors (@swarm-agent)
"""

EXAMPLES = r"""
- name: Have a configuration file
  swarm.cluster.swarm_files:
    files:
      - path: /etc/swarm-agent/agent.toml
        content: |
          log_level = "info"
"""

RETURN = r"""
paths:
  description: What changed, or would change.
  returned: success
  type: list
  elements: str
"""

import os
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule


def read(path):
    """What a plain file holds; None for anything else."""
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def difference(item):
    """(before, after) as text, or None if all is as it should be."""
    path, state = item["path"], item["state"]
    link = os.readlink(path) if os.path.islink(path) else None
    if state == "not_empty":
        empty = link is None and os.path.isdir(path) and not os.listdir(path)
        return ("%s is there, empty\n" % path, "") if empty else None
    if state == "absent":
        return ("%s is there\n" % path, "") if os.path.lexists(path) else None
    if state == "link":
        now = "link to %s\n" % link if link is not None else (read(path) or "")
        return None if link == item["target"] else (now, "link to %s\n" % item["target"])
    now = None if link is not None else read(path)
    mode = os.stat(path).st_mode & 0o7777 if now is not None else None
    wanted = int(item["mode"], 8)
    if now == item["content"] and mode == wanted:
        return None
    if now == item["content"]:
        return ("mode %04o\n" % mode, "mode %04o\n" % wanted)
    return (now or "", item["content"])


def put(item):
    path, state = item["path"], item["state"]
    if state == "not_empty":
        os.rmdir(path)
        return
    if state == "absent":
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
        return
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    if os.path.isdir(path) and not os.path.islink(path):
        raise OSError("%s is a directory" % path)
    # Beside its place and then renamed: a reader sees the old file or the new one.
    if state == "link":
        new = path + ".swarm-new"
        if os.path.lexists(new):
            os.unlink(new)
        os.symlink(item["target"], new)
    else:
        handle, new = tempfile.mkstemp(dir=directory, prefix=".swarm-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(item["content"])
        os.chmod(new, int(item["mode"], 8))
    os.rename(new, path)


def main():
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "state": {"type": "str", "choices": ["file", "link", "absent", "not_empty"], "default": "file"},
                    "content": {"type": "str"},
                    "target": {"type": "path"},
                    "mode": {"type": "str", "default": "0644"},
                },
                "required_if": [("state", "file", ("content",)), ("state", "link", ("target",))],
            }
        },
        supports_check_mode=True,
    )
    changed, diffs = [], []
    try:
        for item in module.params["files"]:
            found = difference(item)
            if found is None:
                continue
            changed.append(item["path"])
            diffs.append({"before_header": item["path"], "after_header": item["path"], "before": found[0], "after": found[1]})
            if not module.check_mode:
                put(item)
    except (OSError, ValueError) as error:
        module.fail_json(msg="swarm_files: %s" % error, paths=changed)
    module.exit_json(changed=bool(changed), paths=changed, diff=diffs)


if __name__ == "__main__":
    main()
