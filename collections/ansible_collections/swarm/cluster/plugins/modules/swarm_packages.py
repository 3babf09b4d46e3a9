#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Have commands, from Debian packages."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swarm_packages
short_description: Have the commands that are needed, from Debian packages
version_added: 0.1.0
description:
  - Installs packages for the commands that a host lacks. A host that has them all is not touched, whatever its packages are called.
  - The host's package lists are read anew only if they do not know a package, or no longer know where it lies.
  - No wait for a mirror is without an end, and one that does not answer is named.
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
  commands:
    description:
      - Each command with the packages that may have it. The first that the distribution knows is installed.
    type: dict
    required: true
  folder:
    description:
      - On the controller, a folder of .deb files to install, for a host that reaches no mirror.
    type: path
  archives:
    description:
      - Set by the action plugin.
    type: list
    elements: path
    default: []
  patience:
    description:
      - How many seconds a mirror may be silent.
    type: int
    default: 15
  timeout:
    description:
      - How many seconds fetching may take in all, and installing once more.
    type: int
    default: 900
author:
  - The swarm-agent authors (@swarm-agent)
"""

EXAMPLES = r"""
- name: Have the docker command
  swarm.cluster.swarm_packages:
    commands:
      docker: [docker-cli, docker.io]
"""

RETURN = r"""
packages:
  description: What was installed, or would be.
  returned: success
  type: list
  elements: str
  sample: [docker.io]
"""

import os
import shutil
import subprocess

from ansible.module_utils.basic import AnsibleModule

# Lists come in pieces, so even a slow line shows life within this time.
LISTS_TIMEOUT_S = 180


class Failed(Exception):
    """Packages could not be had; the text says why and what to do."""


def parse_policy(text):
    """The packages that ``apt-cache policy`` has a candidate for."""
    found, name = set(), ""
    for line in text.splitlines():
        if line and not line.startswith(" "):
            name = line.rstrip(":")
        elif line.strip().startswith("Candidate:") and line.partition(":")[2].strip() != "(none)":
            found.add(name)
    return found


def choose(missing, commands, known):
    """(packages to install, commands that none of the known packages has)."""
    chosen, lacking = [], []
    for command in missing:
        package = next((p for p in commands[command] if p in known), None)
        if package is None:
            lacking.append(command)
        elif package not in chosen:
            chosen.append(package)
    return sorted(chosen), lacking


def complaint(text):
    """What apt or dpkg says is wrong, each reason once, without their many other lines."""
    found = []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith(("W: Failed to fetch", "E: Failed to fetch")):
            # Two spaces part the place from the reason.
            line = line.partition("  ")[2].strip()
        elif line.startswith(("E: ", "dpkg: ")):
            line = line.partition(": ")[2]
        else:
            continue
        if line not in found:
            found.append(line)
    return "; ".join(found[:3])[:600] or text.strip()[-300:] or "no reason was given"


def mirrors(text):
    """The sites that ``apt-get update --print-uris`` names."""
    found = []
    for line in text.splitlines():
        uri = line.split("'")[1] if line.startswith("'") else ""
        site = "/".join(uri.split("/")[:3])
        if site and site not in found:
            found.append(site)
    return found


class Packages:
    """apt, with an end to every wait."""

    def __init__(self, module):
        self.module = module
        self.params = module.params
        seconds = str(module.params["patience"])
        self.options = []
        for option in (
            "Acquire::http::Timeout=" + seconds,
            "Acquire::https::Timeout=" + seconds,
            "Acquire::http::ConnectionAttemptDelayMsec=250",
            "Acquire::Retries=0",
            "DPkg::Lock::Timeout=300",
        ):
            self.options += ["-o", option]

    def call(self, *words, timeout=60):
        """(exit code, all that it said); a command that takes too long is ended, with its children."""
        done = subprocess.run(
            ["timeout", "--kill-after=10", str(timeout)] + list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C"),
            check=False,
        )
        if done.returncode in (124, 137):
            return done.returncode, "E: it did not end within %d s\n%s" % (timeout, done.stdout)
        return done.returncode, done.stdout

    def known(self, names):
        return parse_policy(self.call("apt-cache", "policy", *names)[1])

    def unreached(self, said):
        where = ", ".join(mirrors(self.call("apt-get", "update", "--print-uris")[1])) or "none is configured"
        return Failed(
            "packages could not be fetched from this host's mirror (%s): %s. See that the host reaches it (addresses in /etc/apt/sources.list.d, "
            "a proxy in /etc/apt/apt.conf.d), or name a folder of .deb files on the controller in swarm_engine_packages_dir" % (where, complaint(said))
        )

    def refresh(self):
        return self.call("apt-get", "update", *self.options, timeout=LISTS_TIMEOUT_S)

    def install(self, missing):
        commands = self.params["commands"]
        names = sorted({name for command in missing for name in commands[command]})
        fresh = False
        chosen, lacking = choose(missing, commands, self.known(names))
        said = ""
        if lacking:
            said = self.refresh()[1]
            fresh = True
            chosen, lacking = choose(missing, commands, self.known(names))
        if lacking:
            if any(line.startswith(("E:", "W:", "Err:")) for line in said.splitlines()):
                raise self.unreached(said)
            raise Failed(
                "this host's mirrors know no package for the command %s (asked for %s): install it by hand, or name a folder of .deb files "
                "in swarm_engine_packages_dir" % (lacking[0], ", ".join(commands[lacking[0]]))
            )
        self.mend()
        words = ["apt-get", "install", "--yes", "--no-install-recommends"] + self.options
        code, said = self.call(*(words + ["--download-only"] + chosen), timeout=self.params["timeout"])
        if code != 0 and not fresh:
            # The lists may be older than what the mirror holds.
            refused, told = self.refresh()
            if refused != 0:
                raise self.unreached(told)
            code, said = self.call(*(words + ["--download-only"] + chosen), timeout=self.params["timeout"])
        if code != 0:
            raise self.unreached(said)
        code, said = self.call(*(words + chosen), timeout=self.params["timeout"])
        if code != 0:
            raise Failed("%s could not be installed: %s" % (", ".join(chosen), complaint(said)))
        return chosen

    def install_archives(self):
        self.mend()
        words = ["dpkg", "--install", "--skip-same-version", "--refuse-downgrade"]
        code, said = self.call(*(words + self.params["archives"]), timeout=self.params["timeout"])
        if code != 0:
            raise Failed("the packages in %s could not be installed: %s" % (self.params["folder"], complaint(said)))
        return sorted(os.path.basename(path) for path in self.params["archives"])

    def mend(self):
        """An installation that was cut short has to be finished first."""
        if self.call("dpkg", "--audit")[1].strip():
            self.call("dpkg", "--configure", "-a", timeout=self.params["timeout"])

    def run(self):
        commands = self.params["commands"]
        missing = [command for command in sorted(commands) if shutil.which(command) is None]
        result = {"changed": bool(missing), "missing": missing, "packages": []}
        if not missing:
            return result
        if shutil.which("apt-get") is None:
            raise Failed("this host has no apt: install the commands %s by hand" % ", ".join(missing))
        if self.module.check_mode or (self.params["folder"] and not self.params["archives"]):
            names = sorted({name for command in missing for name in commands[command]})
            chosen, lacking = choose(missing, commands, self.known(names))
            # What the lists do not know yet is shown as it is called in most releases.
            result["packages"] = sorted(set(chosen) | {commands[command][-1] for command in lacking})
        else:
            result["packages"] = self.install_archives() if self.params["folder"] else self.install(missing)
            left = [command for command in missing if shutil.which(command) is None]
            if left:
                raise Failed("%s installed, but the command %s is still missing" % (", ".join(result["packages"]), left[0]))
        result["diff"] = {"before": "", "after": "".join("install %s\n" % name for name in result["packages"])}
        return result


def main():
    module = AnsibleModule(
        argument_spec={
            "commands": {"type": "dict", "required": True},
            "folder": {"type": "path"},
            "archives": {"type": "list", "elements": "path", "default": []},
            "patience": {"type": "int", "default": 15},
            "timeout": {"type": "int", "default": 900},
        },
        supports_check_mode=True,
    )
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    try:
        module.exit_json(**Packages(module).run())
    except Failed as error:
        module.fail_json(msg="swarm_packages: %s" % error)


if __name__ == "__main__":
    main()
