#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Declare a service."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swarm_service
short_description: Declare a service of the swarm
version_added: 0.1.0
description:
  - Creates, changes and removes a service, and waits until the swarm runs what was asked for.
  - An option that is not stated is not touched, so that a service scaled by hand or by other tools keeps its size.
  - A stated list or mapping is the whole of it; state an empty one to clear what is there. The options under
    O(limits), O(reservations), O(restart_policy), O(update_config), O(rollback_config) and O(healthcheck) are each for themselves.
  - Has to run on a manager. C(delegate_to) one where the play is about other hosts.
extends_documentation_fragment:
  - swarm.cluster.connection
  - swarm.cluster.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - O(force_update=true) restarts the tasks each time, and O(resolve_image=always) follows a tag that moved.
options:
  name:
    description:
      - Name of the service.
    type: str
    required: true
  state:
    description:
      - Whether the service is to exist.
    type: str
    choices: [present, absent]
    default: present
  image:
    description:
      - Image with tag, or with digest. Needed to create a service.
    type: str
  resolve_image:
    description:
      - When to ask the image's registry which digest a tag stands for, so that all nodes run the same.
      - V(changed) asks when the image named here is not the one of the service, V(always) each time, V(never) leaves it to the nodes.
    type: str
    choices: [always, changed, never]
    default: changed
  registry_auth:
    description:
      - Credentials for the image's registry, handed to the nodes that pull it.
    type: dict
    suboptions:
      username:
        description: User name.
        type: str
        required: true
      password:
        description: Password or token.
        type: str
        required: true
  command:
    description: Replaces the image's entry point.
    type: list
    elements: str
  args:
    description: Arguments to the entry point; replaces the image's.
    type: list
    elements: str
  env:
    description: Environment variables. Values must be strings or numbers; quote what YAML reads as something else.
    type: dict
  labels:
    description: Labels of the service.
    type: dict
  container_labels:
    description: Labels of its containers.
    type: dict
  mode:
    description:
      - V(replicated) runs O(replicas) tasks, V(global) one on each node that fits.
      - A service that is created without it is replicated. It cannot be changed later.
    type: str
    choices: [replicated, global]
  replicas:
    description: How many tasks. A service that is created without it has one.
    type: int
  publish:
    description: Published ports.
    type: list
    elements: dict
    suboptions:
      published:
        description: The port on the hosts. Left out, the swarm chooses one.
        type: int
      target:
        description: The port in the containers.
        type: int
        required: true
      protocol:
        description: Protocol.
        type: str
        choices: [tcp, udp, sctp]
        default: tcp
      mode:
        description: V(ingress) publishes on every node, V(host) only where a task runs.
        type: str
        choices: [ingress, host]
        default: ingress
  endpoint_mode:
    description: How other services reach it by its name, by one virtual address or by the tasks' own.
    type: str
    choices: [vip, dnsrr]
  networks:
    description: Overlay networks.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name or id of the network.
        type: str
        required: true
      aliases:
        description: Other names of the service on this network.
        type: list
        elements: str
        default: []
  mounts:
    description: Mounts.
    type: list
    elements: dict
    suboptions:
      type:
        description: Kind of mount.
        type: str
        choices: [bind, volume, tmpfs]
        default: volume
      source:
        description: Name of the volume, or path on the host.
        type: str
      target:
        description: Path in the container.
        type: path
        required: true
      read_only:
        description: Whether writing is refused.
        type: bool
        default: false
      propagation:
        description: How mounts below a bind mount spread.
        type: str
        choices: [shared, slave, private, rshared, rslave, rprivate]
      tmpfs_size:
        description: Size of a tmpfs, such as V(64M).
        type: str
  constraints:
    description: What a node must fulfil, such as V(node.labels.disk==ssd).
    type: list
    elements: str
  preferences:
    description: Node properties over which tasks are spread, such as V(node.labels.zone).
    type: list
    elements: str
  max_replicas_per_node:
    description: Most tasks of this service on one node; 0 is no bound.
    type: int
  limits:
    description: What a task may use at most.
    type: dict
    suboptions:
      cpus:
        description: Number of CPUs; 0 takes it away.
        type: float
      memory:
        description: Memory, such as V(512M); 0 takes it away.
        type: str
      pids:
        description: Number of processes; 0 is no bound.
        type: int
  reservations:
    description: What a node must have free to be given a task.
    type: dict
    suboptions:
      cpus:
        description: Number of CPUs; 0 takes it away.
        type: float
      memory:
        description: Memory, such as V(256M); 0 takes it away.
        type: str
  restart_policy:
    description: When a task that ended is replaced.
    type: dict
    suboptions:
      condition:
        description: After which ends.
        type: str
        choices: [none, on-failure, any]
      delay:
        description: Time before the new task, such as V(5s).
        type: str
      max_attempts:
        description: How often within the window; 0 is without end.
        type: int
      window:
        description: Time over which attempts are counted.
        type: str
  update_config:
    description: How a change is rolled out.
    type: dict
    suboptions:
      parallelism:
        description: How many tasks at a time; 0 is all at once.
        type: int
      delay:
        description: Time between them.
        type: str
      failure_action:
        description: What to do when tasks of the new version fail.
        type: str
        choices: [pause, continue, rollback]
      monitor:
        description: How long a new task is watched.
        type: str
      max_failure_ratio:
        description: Share of failures that is borne.
        type: float
      order:
        description: Whether the old task stops before the new one starts.
        type: str
        choices: [stop-first, start-first]
  rollback_config:
    description: How a change is rolled back.
    type: dict
    suboptions:
      parallelism:
        description: How many tasks at a time; 0 is all at once.
        type: int
      delay:
        description: Time between them.
        type: str
      failure_action:
        description: What to do when tasks of the old version fail.
        type: str
        choices: [pause, continue]
      monitor:
        description: How long a task is watched.
        type: str
      max_failure_ratio:
        description: Share of failures that is borne.
        type: float
      order:
        description: Whether the present task stops before the old one starts.
        type: str
        choices: [stop-first, start-first]
  healthcheck:
    description: How a container's health is found. A task counts as running once it is healthy.
    type: dict
    suboptions:
      test:
        description: The command, after V(CMD) or V(CMD-SHELL); V(NONE) switches the image's own check off.
        type: list
        elements: str
      interval:
        description: Time between checks.
        type: str
      timeout:
        description: Time for one check.
        type: str
      start_period:
        description: Time in which failures do not count.
        type: str
      retries:
        description: Failures in a row that make it unhealthy.
        type: int
  stop_grace_period:
    description: Time a container has to stop before it is killed.
    type: str
  stop_signal:
    description: Signal that asks it to stop.
    type: str
  user:
    description: User, or user and group, in the container.
    type: str
  working_dir:
    description: Working directory.
    type: path
  hostname:
    description: Host name of the containers; may hold templates.
    type: str
  hosts:
    description: Further lines of /etc/hosts, as name and address.
    type: dict
  groups:
    description: Further groups of the user.
    type: list
    elements: str
  dns:
    description: Name servers instead of the swarm's.
    type: list
    elements: str
  init:
    description: Whether a small init reaps processes in the container.
    type: bool
  read_only:
    description: Whether the container's root file system is read-only.
    type: bool
  tty:
    description: Whether the container has a terminal.
    type: bool
  cap_add:
    description: Capabilities beyond Docker's default.
    type: list
    elements: str
  cap_drop:
    description: Capabilities taken from Docker's default.
    type: list
    elements: str
  sysctls:
    description: Kernel parameters of the container's namespaces.
    type: dict
  log_driver:
    description: Log driver.
    type: dict
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      options:
        description: Its options.
        type: dict
        default: {}
  force_update:
    description: Replace all tasks even if nothing else changes.
    type: bool
    default: false
  wait:
    description:
      - Wait until the service runs as asked, or is gone.
      - A rollout that pauses or rolls back is a failure, and the message names task, node and error. So is a task that no other
        follows by its restart policy, unless it is complete, and one that was refused three times with the same words.
    type: bool
    default: true
  wait_timeout:
    description: How many seconds to wait.
    type: int
    default: 300
author:
  - The swarm-agent authors (@swarm-agent)
"""

EXAMPLES = r"""
- name: Run three copies of a web server
  swarm.cluster.swarm_service:
    name: web
    image: registry.example.org/web:1.4
    replicas: 3
    publish:
      - published: 80
        target: 8080
    update_config:
      order: start-first
      failure_action: rollback

- name: Change nothing but the number of copies
  swarm.cluster.swarm_service:
    name: web
    replicas: 5

- name: Remove it
  swarm.cluster.swarm_service:
    name: web
    state: absent
"""

RETURN = r"""
service:
  description: The service as the swarm shows it, after the change; empty when it is absent.
  returned: success
  type: dict
  sample: {"ID": "k55byvyv9qp3vxxh3m1tlyhdz", "Spec": {"Name": "web"}}
changes:
  description: The places in the specification that changed, or would change.
  returned: success
  type: list
  elements: str
  sample: ["TaskTemplate.ContainerSpec.Image", "Mode.Replicated.Replicas"]
state_text:
  description: How far the service is, in one sentence.
  returned: success, when O(wait=true)
  type: str
  sample: 3 of 3 tasks run
"""

import base64
import json
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.swarm.cluster.plugins.module_utils import _client, _compare, _converge, _service
from ansible_collections.swarm.cluster.plugins.module_utils._client import ApiError
from ansible_collections.swarm.cluster.plugins.module_utils._units import Invalid


class ServiceModule:
    """From the module's options to the swarm's state."""

    def __init__(self, module):
        self.module = module
        self.params = module.params
        self.client = _client.Client.of(module)
        self.name = module.params["name"]

    def run(self):
        _service.check_name(self.name)
        _service.assignments(self.params, _AnyNetwork())  # bad values are refused before anything is asked
        _client.require_manager(self.client)
        return _client.undisturbed(self.absent if self.params["state"] == "absent" else self.present)

    # -- absent

    def absent(self):
        service = self.find()
        result = {"changed": service is not None, "service": {}, "changes": []}
        if service is None:
            return result
        result["diff"] = {"before": {"service": self.name}, "after": {}}
        if self.module.check_mode:
            return result
        try:
            self.client.call("DELETE", "/services/" + service["ID"])
        except ApiError as error:
            if error.status != 404:
                raise
        if self.params["wait"]:
            self.wait_gone(service["ID"])
        return result

    def wait_gone(self, service_id):
        deadline = time.monotonic() + self.params["wait_timeout"]
        while True:
            left = [
                task
                for task in self.client.get("/tasks")
                if task.get("ServiceID") == service_id and task["Status"]["State"] in ("running", "starting", "preparing")
            ]
            if not left:
                return
            if time.monotonic() > deadline:
                raise ApiError("service %s is removed, but after %d s %d of its tasks still run" % (self.name, self.params["wait_timeout"], len(left)))
            time.sleep(0.3)

    # -- present

    def present(self):
        service = self.find()
        if service is None:
            return self.create()
        before = service["Spec"]
        mode = self.params["mode"] or ("replicated" if self.params["replicas"] is not None else None)
        if mode and mode != _service.mode_of(before):
            raise Invalid(
                "mode",
                "service %s is %s and a service's mode cannot change; remove it first (state: absent)"
                % (self.name, _service.mode_of(before)),
            )
        wanted = self.wanted(before)
        changed = _compare.difference(before, wanted)
        after = _service.complete(before, _compare.apply(before, changed))
        if self.params["force_update"]:
            template = after.setdefault("TaskTemplate", {})
            template["ForceUpdate"] = (template.get("ForceUpdate") or 0) + 1
            path = ("TaskTemplate", "ForceUpdate")
            changed.append(_compare.Assignment(path, template["ForceUpdate"]))
        stale = None
        if changed and not self.module.check_mode:
            stale = service.get("UpdateStatus") or {}
            self.client.call(
                "POST",
                "/services/%s/update" % service["ID"],
                {"version": service["Version"]["Index"], "registryAuthFrom": "spec"},
                after,
                self.auth_header(),
            )
        result = {
            "changed": bool(changed),
            "changes": [".".join(a.path) for a in changed],
            "diff": _compare.diff(before, after, changed),
            "service": dict(service, Spec=after),
        }
        return self.settle(service["ID"], result, stale)

    def create(self):
        if self.params["image"] is None:
            raise Invalid("image", "service %s does not exist yet, and creating it needs an image" % self.name)
        base = _service.new_spec(self.name, self.params)
        wanted = self.wanted(base)
        spec = _service.complete(base, _compare.apply(base, wanted))
        result = {
            "changed": True,
            "changes": sorted({".".join(a.path) for a in wanted}),
            "diff": {"before": {}, "after": spec},
            "service": {"Spec": spec},
        }
        if self.module.check_mode:
            return result
        answer = self.client.call("POST", "/services/create", body=spec, headers=self.auth_header())
        for warning in answer.get("Warnings") or ():
            self.module.warn(warning)
        return self.settle(answer["ID"], result, {})

    def settle(self, service_id, result, stale):
        """Wait as told; ``stale`` is None if nothing was changed."""
        if self.module.check_mode:
            return result
        if not self.params["wait"]:
            result["service"] = self.client.get("/services/" + service_id)
            return result
        hold = _converge.monitor_seconds(result["service"]["Spec"])
        started = time.monotonic()
        verdict, service = _converge.wait(self.client, service_id, self.params["wait_timeout"], stale, hold)
        result["state_text"] = verdict.text
        if verdict.state == "done":
            return dict(result, service=service)
        for key in ("service", "state_text"):  # they would bury the reason, or say it twice
            result.pop(key)
        result["msg"] = "service %s did not become what was asked for: %s" % (self.name, verdict.text)
        if verdict.state == "waiting":
            took = time.monotonic() - started
            result["msg"] = "service %s has not converged after %.0f s: %s" % (self.name, took, verdict.text)
        self.module.fail_json(**result)
        raise AssertionError("fail_json does not return")

    # -- looking things up

    def find(self):
        """By its exact name: a path would match an id, too."""
        for service in self.client.get("/services", {"filters": {"name": {self.name: True}}}) or ():
            if service["Spec"]["Name"] == self.name:
                return service
        return None

    def wanted(self, before):
        found = _service.assignments(self.params, self.networks())
        image = self.params["image"]
        if image is None or "@" in image or self.params["resolve_image"] == "never":
            return found
        now = ((before.get("TaskTemplate") or {}).get("ContainerSpec") or {}).get("Image")
        same = _service.image_name(now) == _service.image_name(image)
        if same and self.params["resolve_image"] == "changed":
            return found
        resolved = self.resolve(image)
        if resolved is None:
            return found
        path = ("TaskTemplate", "ContainerSpec", "Image")
        return [_compare.Assignment(path, resolved, None) if a.path == path else a for a in found]

    def resolve(self, image):
        """The image with the digest that its registry gives; None, with a warning, if it cannot be had."""
        try:
            answer = self.client.get("/distribution/%s/json" % image, headers=self.auth_header())
        except ApiError as error:
            self.module.warn("image %s could not be asked of its registry, each node will look for itself: %s" % (image, error))
            return None
        digest = ((answer or {}).get("Descriptor") or {}).get("digest")
        return "%s@%s" % (_service.image_name(image), digest) if digest else None

    def networks(self):
        ids = {}
        for network in self.params["networks"] or ():
            name = network["name"]
            try:
                ids[name] = self.client.get("/networks/" + name, {"scope": "swarm"})["Id"]
            except ApiError as error:
                if error.status != 404:
                    raise
                if not self.module.check_mode:
                    raise Invalid("networks", "the swarm has no network %s; create it first (docker network create -d overlay)" % name) from error
                ids[name] = name
        return ids

    def auth_header(self):
        auth = self.params["registry_auth"]
        if not auth:
            return {}
        plain = json.dumps({"username": auth["username"], "password": auth["password"]})
        return {"X-Registry-Auth": base64.urlsafe_b64encode(plain.encode()).decode()}


class _AnyNetwork(dict):
    def __missing__(self, key):
        return key


def main():
    spec = dict(_service.SPEC)
    spec.update(_client.ARGUMENTS)
    spec.update(
        name={"type": "str", "required": True},
        state={"type": "str", "choices": ["present", "absent"], "default": "present"},
        resolve_image={"type": "str", "choices": ["always", "changed", "never"], "default": "changed"},
        registry_auth={
            "type": "dict",
            "options": {
                "username": {"type": "str", "required": True},
                "password": {"type": "str", "required": True, "no_log": True},
            },
        },
        force_update={"type": "bool", "default": False},
        wait={"type": "bool", "default": True},
        wait_timeout={"type": "int", "default": 300},
    )
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    try:
        module.exit_json(**ServiceModule(module).run())
    except Invalid as error:
        module.fail_json(msg="swarm_service %s: %s" % (module.params["name"], error), path=error.path)
    except ApiError as error:
        module.fail_json(msg="swarm_service %s: %s" % (module.params["name"], error), status=error.status)


if __name__ == "__main__":
    main()
