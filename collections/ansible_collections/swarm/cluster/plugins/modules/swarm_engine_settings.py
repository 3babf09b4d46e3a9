#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Have the Docker Engine's settings, and take them back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swarm_engine_settings
short_description: Have the Docker Engine's settings, and take them back
version_added: 0.1.0
description:
  - Sets keys of C(/etc/docker/daemon.json) and certificate authorities of registries. Keys that are not named stay as they are.
  - What was there before is noted on the host, so that V(absent) takes back what this module made and nothing else. What somebody
    has changed since stays.
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
  state:
    description:
      - V(present) sets, V(absent) takes back.
    type: str
    choices: [present, absent]
    default: present
  settings:
    description:
      - Keys with their values.
    type: dict
    default: {}
  certificates:
    description:
      - Certificate authorities.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Host and port of the registry.
        type: str
        required: true
      content:
        description: The certificate, in PEM.
        type: str
        required: true
  keep:
    description:
      - With V(absent), keys that stay for now.
    type: list
    elements: str
    default: []
  directory:
    description:
      - Where the engine's files are.
    type: path
    default: /etc/docker
  record:
    description:
      - Where to note what was there before.
    type: path
    default: /etc/swarm-agent/engine-before.json
author:
  - The swarm-agent authors (@swarm-agent)
"""

EXAMPLES = r"""
- name: Have containers outlive a restart of the engine
  swarm.cluster.swarm_engine_settings:
    settings:
      live-restore: true

- name: Take back what was set
  swarm.cluster.swarm_engine_settings:
    state: absent
"""

RETURN = r"""
paths:
  description: What changed, or would change.
  returned: success
  type: list
  elements: str
ours:
  description: The keys that stand there because this module has set them.
  returned: success
  type: list
  elements: str
settings:
  description: The keys that changed, or would change.
  returned: success
  type: list
  elements: str
"""

import json
import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.swarm.cluster.plugins.module_utils import _process


def nothing():
    """A record of a host on which nothing was made yet."""
    return {"settings": {}, "files": {}, "directories": []}


def put(settings, wanted, record):
    """(the settings with what is wanted, the record that knows what was there before)."""
    result, noted = dict(settings), dict(record["settings"])
    for key, value in wanted.items():
        if key in settings and settings[key] == value:
            # Ours already, or the user wants the same.
            if key in noted:
                noted[key] = dict(noted[key], set=value)
            continue
        if key not in noted:
            noted[key] = {"was": settings[key]} if key in settings else {}
        noted[key] = dict(noted[key], set=value)
        result[key] = value
    return result, dict(record, settings=noted)


def take_back(settings, record, keep=()):
    """(the settings without what was made, the record of what is still to be taken back)."""
    result, left = dict(settings), {}
    for key, note in record["settings"].items():
        if key in keep:
            left[key] = note
        elif key in result and result[key] == note["set"]:
            if "was" in note:
                result[key] = note["was"]
            else:
                del result[key]
    return result, dict(record, settings=left)


def text_of(settings):
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def read(path):
    """What the file holds; None if there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(path, content, mode=0o644):
    """Beside its place and then renamed: a reader sees the old file or the new one."""
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    handle, new = tempfile.mkstemp(dir=directory, prefix=".swarm-")
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        mode = os.stat(path).st_mode & 0o7777
    except FileNotFoundError:
        pass
    os.chmod(new, mode)
    os.rename(new, path)


class SettingsModule:
    """Works out the files as they should be; writes the record first, so that a run that is cut short knows what it made."""

    def __init__(self, module):
        self.module = module
        self.params = module.params
        self.settings_path = os.path.join(self.params["directory"], "daemon.json")
        self.changes, self.made = [], []

    def record(self):
        text = read(self.params["record"])
        return dict(nothing(), **(json.loads(text) if text else {}))

    def run(self):
        record = self.record()
        file = _process.settings_file(self.settings_path)
        if file["error"]:
            raise ValueError("%s: repair or remove it" % file["error"])
        before = file["settings"]
        step = self.present if self.params["state"] == "present" else self.absent
        after, noted = step(before, record)
        if before != after:
            self.change(self.settings_path, self.text(after, record))
        if not self.module.check_mode:
            self.apply(record, noted)
        keys = sorted(key for key in set(before) | set(after) if before.get(key) != after.get(key))
        return {
            "changed": bool(self.changes),
            "paths": [path for path, _was, _content in self.changes],
            "settings": keys,
            "ours": sorted(key for key, note in noted["settings"].items() if key in after and after[key] == note["set"]),
            "diff": [
                {"before_header": path, "after_header": path, "before": was or "", "after": content or ""} for path, was, content in self.changes
            ],
        }

    def text(self, settings, record):
        """The file's text; what it was to the letter if the settings are as they were, None if there was none."""
        note = record["files"].get(self.settings_path)
        if self.params["state"] == "present" or note is None:
            return text_of(settings)
        if note["was"] is None:
            return text_of(settings) if settings else None
        same = note["was"].strip() and json.loads(note["was"]) == settings
        return note["was"] if same or not settings else text_of(settings)

    def change(self, path, content):
        was = read(path)
        if was != content:
            self.changes.append((path, was, content))

    def present(self, before, record):
        after, noted = put(before, self.params["settings"], record)
        noted = dict(noted, files=dict(noted["files"]), directories=list(noted["directories"]))
        if before != after:
            noted["files"].setdefault(self.settings_path, {"was": read(self.settings_path)})
        for certificate in self.params["certificates"]:
            path = os.path.join(self.params["directory"], "certs.d", certificate["name"], "ca.crt")
            if read(path) != certificate["content"]:
                note = noted["files"].get(path) or {"was": read(path)}
                noted["files"][path] = dict(note, set=certificate["content"])
                self.change(path, certificate["content"])
        for path in [self.settings_path] * (before != after) + [path for path, _was, _content in self.changes]:
            directory = os.path.dirname(path)
            while not os.path.isdir(directory):
                if directory not in noted["directories"]:
                    noted["directories"].append(directory)
                directory = os.path.dirname(directory)
        return after, noted

    def absent(self, before, record):
        after, noted = take_back(before, record, self.params["keep"])
        if self.params["keep"]:
            return after, noted
        for path, note in sorted(record["files"].items()):
            if path != self.settings_path and read(path) == note["set"]:
                self.change(path, note["was"])
        return after, nothing()

    def apply(self, record, noted):
        if self.params["state"] == "present" and noted != record:
            write(self.params["record"], json.dumps(noted, indent=2) + "\n", 0o600)
        for path, _was, content in self.changes:
            if content is None:
                os.unlink(path)
            else:
                write(path, content)
        if self.params["state"] == "absent" and not self.params["keep"]:
            for directory in sorted(record["directories"], key=len, reverse=True):
                if os.path.isdir(directory) and not os.listdir(directory):
                    os.rmdir(directory)
            if read(self.params["record"]) is not None:
                os.unlink(self.params["record"])


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "settings": {"type": "dict", "default": {}},
            "certificates": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": {"type": "str", "required": True}, "content": {"type": "str", "required": True}},
            },
            "keep": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "directory": {"type": "path", "default": "/etc/docker"},
            "record": {"type": "path", "default": "/etc/swarm-agent/engine-before.json"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**SettingsModule(module).run())
    except (OSError, ValueError) as error:
        module.fail_json(msg="swarm_engine_settings: %s" % error)


if __name__ == "__main__":
    main()
