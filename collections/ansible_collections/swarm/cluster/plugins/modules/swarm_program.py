#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Install swarm-agent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swarm_program
short_description: Install swarm-agent on a host that reaches no package index
version_added: 0.1.0
description:
  - The controller builds C(swarm-agent) and gathers the packages it needs, for the host's Python and processor, checks their
    digests and hands the host one archive. The host unpacks it into a virtual environment with what Python itself has.
  - Versions lie side by side; a link named C(current) says which one runs.
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
  source:
    description:
      - On the controller, the project's directory, or the wheel of C(swarm-agent) with C(requirements.lock) beside it.
    type: path
    required: true
  wheels:
    description:
      - On the controller, a folder of wheels gathered earlier. No package index is asked then.
    type: path
  directory:
    description:
      - Where the versions lie on the host.
    type: path
    default: /opt/swarm-agent
  keep:
    description:
      - How many versions to keep, the new one included.
    type: int
    default: 2
  archive:
    description:
      - Set by the action plugin.
    type: path
  wanted:
    description:
      - Set by the action plugin.
    type: str
author:
  - The swarm-agent authors (@swarm-agent)
"""

EXAMPLES = r"""
- name: Install the agent from a checkout
  swarm.cluster.swarm_program:
    source: /srv/swarm-agent
"""

RETURN = r"""
version:
  description: The version that C(current) points to, with the digest of what it was made from.
  returned: success
  type: str
  sample: 0.1.0+3f2a91c07be4
wanted:
  description: The version that it points to, or would point to.
  returned: success
  type: str
  sample: 0.1.0+3f2a91c07be4
"""

import configparser
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile

from ansible.module_utils.basic import AnsibleModule

LAUNCHER = """#!{python}
from {module} import {attribute}
if __name__ == "__main__":
    raise SystemExit({attribute}())
"""


def unpack(wheel, environment, site):
    """What an installer does with a wheel, without an installer: bare hosts have none."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for name in names:
            parts = name.split("/")
            target = site
            if parts[0].endswith(".data") and len(parts) > 2:
                kind = parts[1]
                parts = parts[2:]
                if kind == "scripts":
                    target = os.path.join(environment, "bin")
                elif kind == "data":
                    target = environment
                elif kind not in ("purelib", "platlib"):
                    continue
            path = os.path.normpath(os.path.join(target, *parts))
            if not path.startswith(target + os.sep):
                raise ValueError("%s holds a path that leads out of it: %s" % (wheel, name))
            if name.endswith("/"):
                os.makedirs(path, exist_ok=True)
                continue
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with archive.open(name) as source, open(path, "wb") as out:
                shutil.copyfileobj(source, out)
            if (archive.getinfo(name).external_attr >> 16) & 0o111 or target.endswith("/bin"):
                os.chmod(path, 0o755)
        for name in names:
            if name.endswith(".dist-info/entry_points.txt"):
                launchers(archive.read(name).decode(), environment)


def launchers(entry_points, environment):
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str
    parser.read_string(entry_points)
    if not parser.has_section("console_scripts"):
        return
    for name, target in parser.items("console_scripts"):
        module, _colon, attribute = target.partition(":")
        path = os.path.join(environment, "bin", name)
        python = os.path.join(environment, "bin", "python3")
        with open(path, "w") as file:
            file.write(LAUNCHER.format(python=python, module=module.strip(), attribute=attribute.strip()))
        os.chmod(path, 0o755)


def install(archive, directory, wanted):
    final = os.path.join(directory, wanted)
    shutil.rmtree(final, ignore_errors=True)
    os.makedirs(final, mode=0o755)
    wheels = os.path.join(final, "wheels")
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if not member.isfile() or os.path.basename(member.name) != member.name:
                raise ValueError("the archive holds something else than wheels: %s" % member.name)
        tar.extractall(wheels)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", final], check=True, capture_output=True)
    site = os.path.join(final, "lib", "python%d.%d" % sys.version_info[:2], "site-packages")
    for wheel in sorted(os.listdir(wheels)):
        unpack(os.path.join(wheels, wheel), final, site)
    shutil.rmtree(wheels)
    python = os.path.join(final, "bin", "python3")
    subprocess.run([python, "-m", "compileall", "-q", "-j0", site], check=False, capture_output=True)
    tried = subprocess.run([python, "-c", "import swarm_agent"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        raise ValueError("the unpacked program does not load: %s" % tried.stderr.strip()[-500:])
    with open(os.path.join(final, ".complete"), "w") as file:
        file.write(wanted + "\n")
    return final


def switch(directory, wanted):
    link = os.path.join(directory, "current")
    new = link + ".new"
    if os.path.lexists(new):
        os.unlink(new)
    os.symlink(wanted, new)
    os.rename(new, link)


def prune(directory, current, keep):
    versions = [v for v in os.listdir(directory) if os.path.isfile(os.path.join(directory, v, ".complete"))]
    old = sorted((v for v in versions if v != current and v != "current"), key=lambda v: os.stat(os.path.join(directory, v)).st_mtime)
    for version in old[: max(0, len(old) - (keep - 1))]:
        shutil.rmtree(os.path.join(directory, version))


def present(directory):
    try:
        current = os.readlink(os.path.join(directory, "current"))
    except OSError:
        return ""
    return current if os.path.isfile(os.path.join(directory, current, ".complete")) else ""


def main():
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "wheels": {"type": "path"},
            "directory": {"type": "path", "default": "/opt/swarm-agent"},
            "keep": {"type": "int", "default": 2},
            "archive": {"type": "path"},
            "wanted": {"type": "str"},
        },
        supports_check_mode=True,
    )
    directory, wanted, archive = module.params["directory"], module.params["wanted"], module.params["archive"]
    before = present(directory)
    result = {
        "changed": bool(wanted) and before != wanted,
        "version": before,
        "wanted": wanted or before,
        "python": "cp%d%d" % sys.version_info[:2],
        "machine": platform.machine(),
        "libc": platform.libc_ver()[1],
        "diff": {"before": before + "\n", "after": (wanted or before) + "\n"},
    }
    if archive and result["changed"] and not module.check_mode:
        try:
            if not os.path.isfile(os.path.join(directory, wanted, ".complete")):
                install(archive, directory, wanted)
            switch(directory, wanted)
            prune(directory, wanted, module.params["keep"])
        except (OSError, ValueError, subprocess.CalledProcessError, tarfile.TarError, zipfile.BadZipFile) as error:
            shutil.rmtree(os.path.join(directory, wanted), ignore_errors=True)
            module.fail_json(msg="swarm-agent %s could not be installed in %s: %s" % (wanted, directory, error))
        result["version"] = wanted
    module.exit_json(**result)


if __name__ == "__main__":
    main()
