# SPDX-License-Identifier: Apache-2.0
"""Check groups and variables of the inventory: a misspelt option must not be lost without a word."""

from __future__ import annotations

import difflib
import ipaddress
from pathlib import Path

import yaml
from ansible.plugins.action import ActionBase

ROLES = Path(__file__).resolve().parents[2] / "roles"


def known_variables(roles=ROLES):
    """Every option of every role, from their argument specifications."""
    found = set()
    for path in sorted(roles.glob("*/meta/argument_specs.yml")):
        for entry in yaml.safe_load(path.read_text())["argument_specs"].values():
            found.update(entry.get("options") or ())
    return found


def group_problems(groups, managers, workers, addresses):
    found = []
    if not groups.get(managers):
        found.append("the group %s is missing or empty: name at least one host in it" % managers)
    both = sorted(set(groups.get(managers, ())) & set(groups.get(workers, ())))
    if both:
        found.append("%s in both %s and %s: choose one" % (", ".join(both), managers, workers))
    seen = {}
    for host in sorted(set(groups.get(managers, ())) | set(groups.get(workers, ()))):
        seen.setdefault(addresses[host], []).append(host)
    for address, hosts in sorted(seen.items()):
        if len(hosts) > 1:
            found.append("%s have the same address, %s: each host needs its own" % (" and ".join(hosts), address))
    return found


def variable_problems(host_variables, known):
    """``host_variables`` maps a host to the names of its variables."""
    unknown = {}
    for host, names in sorted(host_variables.items()):
        for name in names:
            if name.startswith("swarm_") and name not in known:
                unknown.setdefault(name, []).append(host)
    found = []
    for name, hosts in sorted(unknown.items()):
        near = difflib.get_close_matches(name, sorted(known), 1)
        hint = ": did you mean %s?" % near[0] if near else ": the roles' README files list those that exist"
        shown = ", ".join(hosts[:3]) + (" and %d more" % (len(hosts) - 3) if len(hosts) > 3 else "")
        found.append("unknown variable %s (of %s)%s" % (name, shown, hint))
    return found


def key_problems(keys, hint):
    """``keys`` maps a host to the private key that it is reached with; one that is not there reaches nobody."""
    lost = {}
    for host, path in sorted(keys.items()):
        if path and not Path(path).expanduser().is_file():
            lost.setdefault(path, []).append(host)
    return [
        "the SSH key %s (of %s) does not exist on this controller%s" % (path, ", ".join(hosts), ": " + hint if hint else "")
        for path, hosts in sorted(lost.items())
    ]


def strangers(nodes, known_ids, hosts):
    """Nodes of the swarm that the inventory does not name; ``hosts`` maps each host to its address."""
    names = {name for host in hosts for name in (host, host.partition(".")[0])}
    addresses = set(hosts.values())
    found = []
    for node in nodes:
        name, address = node["Description"]["Hostname"], node["Status"].get("Addr") or ""
        if node["ID"] not in known_ids and not {name, name.partition(".")[0]} & names and address not in addresses:
            found.append("%s (%s, %s)" % (name, address or "address unknown", node["Status"]["State"]))
    return sorted(found)


def even_managers(count):
    if count and count % 2 == 0:
        return (
            "%d managers bear the loss of no more managers than %d do: an odd number is better" % (count, count - 1)
        )
    return None


def _seen(variables):
    """What a host said about its membership, if this run has looked at it."""
    facts = variables.get("ansible_facts") or {}
    return (facts.get("cluster_host") or {}).get("swarm") or {}


class ActionModule(ActionBase):
    """Nothing runs on any host."""

    _requires_connection = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(("managers", "workers", "nodes"))

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _result, arguments = self.validate_argument_spec(
            {
                "managers": {"type": "str", "default": "managers"},
                "workers": {"type": "str", "default": "workers"},
                "nodes": {"type": "list", "elements": "dict", "default": []},
            }
        )
        managers, workers = arguments["managers"], arguments["workers"]
        groups, hostvars = task_vars["groups"], task_vars["hostvars"]
        hosts = sorted(set(groups.get(managers, ())) | set(groups.get(workers, ())))
        addresses = {host: self._address(hostvars[host], host) for host in hosts}
        if arguments["nodes"]:
            # At the end of a run, whose own variables are no longer the user's alone.
            known = {_seen(hostvars[host]).get("node_id") or "" for host in hosts}
            plain = {host: str(hostvars[host].get("ansible_host") or host) for host in hosts}
            unnamed = strangers(arguments["nodes"], known, plain)
            result.update(changed=False, problems=[], strangers=unnamed)
            if unnamed:
                result["warnings"] = [
                    "the swarm has nodes that the inventory does not name: %s. They stay. Put them into the inventory; what is gone for "
                    "good is forgotten with `docker node rm`" % ", ".join(unnamed)
                ]
            return result
        found = group_problems(groups, managers, workers, addresses)
        found += variable_problems({host: list(hostvars[host]) for host in hosts}, known_variables())
        keys = {host: self._own(hostvars[host], "ansible_ssh_private_key_file") for host in hosts}
        found += key_problems(keys, next((hint for hint in (self._own(hostvars[host], "inventory_hint") for host in hosts) if hint), ""))
        warning = even_managers(len(groups.get(managers, ())))
        if warning:
            result["warnings"] = [warning]
        result.update(changed=False, problems=found)
        if found:
            result.update(failed=True, msg="the inventory needs a correction: " + "; ".join(found))
        return result

    def _own(self, variables, name):
        """A host's variable, with what stands in it filled in."""
        return str(self._templar.copy_with_new_env(available_variables=dict(variables)).template(variables.get(name)) or "")

    def _address(self, variables, host):
        address = variables.get("ansible_host") or host
        port = variables.get("ansible_port") or 22
        try:
            return "%s port %s" % (ipaddress.ip_address(str(address)), port)
        except ValueError:
            return "%s port %s" % (address, port)
