"""Commands about services and nodes: plan, explain, history, revisions and rollback, running jobs again, rebalancing."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from swarm_agent.cli.client import Failed, add_command, call

Json = dict[str, Any]


# --- plan ----------------------------------------------------------------------------------------------------------------
def plan(path: str, arguments: argparse.Namespace) -> None:
    """Show what a change to a service would do, without making it."""
    if arguments.spec:
        try:
            text = sys.stdin.read() if arguments.spec == "-" else Path(arguments.spec).read_text()
            spec = json.loads(text)
        except (OSError, ValueError) as err:
            raise Failed(f"cannot read a ServiceSpec from {arguments.spec}: {err}") from err
        if not isinstance(spec, dict):
            raise Failed(f"{arguments.spec} holds no ServiceSpec: it is not a JSON object")
        spec["Name"] = arguments.service
    else:
        spec = call(path, "GET", f"/services/{quote(arguments.service, safe='')}")["Spec"]
    _change(spec, arguments)
    answer = call(path, "POST", "/swarm-agent/plan", spec)
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return
    words = {"create": "would be created", "update": "would be updated", "none": "would not change"}
    counts = ", ".join(f"{n} {action}" for action, n in sorted(answer["Tasks"].items())) or "no tasks"
    print(f"{spec['Name']} {words[answer['Action']]}: {counts}")
    for change in answer["Changes"]:
        print(f"  {change['Path']}: {_shown(change['Before'])} -> {_shown(change['After'])}")
    for step in answer["Placement"]:
        if step["Action"] == "keep":
            continue
        where = " -> ".join(filter(None, (step.get("From"), step.get("To")))) or "-"
        print(f"  .{step.get('Slot', step.get('Node'))}  {step['Action']}  {where}")
        _reasons(step)
    if answer["Index"]:
        print(f"made against version {answer['Index']} of the service")


def _change(spec: Json, arguments: argparse.Namespace) -> None:
    for part in ("TaskTemplate", "Labels"):
        if not isinstance(spec.get(part) or {}, dict):
            raise Failed(f"{part} is not a JSON object")
    template = spec["TaskTemplate"] = spec.get("TaskTemplate") or {}
    container = template["ContainerSpec"] = template.get("ContainerSpec") or {}
    if not isinstance(container, dict):
        raise Failed("TaskTemplate.ContainerSpec is not a JSON object")
    if arguments.image:
        container["Image"] = arguments.image
    if arguments.replicas is not None:
        spec["Mode"] = {"Replicated": {"Replicas": arguments.replicas}}
    if arguments.force:
        spec["TaskTemplate"]["ForceUpdate"] = spec["TaskTemplate"].get("ForceUpdate", 0) + 1
    env = {line.partition("=")[0]: line for line in container.get("Env") or ()}
    env.update((line.partition("=")[0], line) for line in arguments.env_add)
    if arguments.env_add or arguments.env_rm:
        container["Env"] = [line for name, line in env.items() if name not in arguments.env_rm]
    if arguments.constraint_add or arguments.constraint_rm:
        placement = spec["TaskTemplate"].setdefault("Placement", {})
        kept = [c for c in placement.get("Constraints") or () if c not in arguments.constraint_rm]
        placement["Constraints"] = kept + arguments.constraint_add
    labels = spec["Labels"] = spec.get("Labels") or {}
    labels.update(line.partition("=")[::2] for line in arguments.label_add)
    for key in arguments.label_rm:
        labels.pop(key, None)


def _shown(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


# --- why -------------------------------------------------------------------------------------------------------------------
def why(path: str, arguments: argparse.Namespace) -> None:
    """Explain why a service is not in its desired state."""
    answer = call(path, "GET", f"/swarm-agent/services/{quote(arguments.service, safe='')}/why")
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return
    for note in answer["Notes"]:
        print(note)
    for task in answer["Tasks"]:
        where = f" on {task['Node']}" if task["Node"] and task["Slot"] else ""
        said = task["Err"] or task["Message"]
        state = f"{task['State']}, but" if task["State"] == "running" else task["State"]
        print(f".{task['Slot'] or task['Node']}  {state}{where}  {said}".rstrip())
        _reasons(task)
        for note in task["Notes"]:
            print(f"    {note}")
    if not answer["Notes"] and not answer["Tasks"]:
        print(f"every task of {answer['Service']} that should run is running")


def _reasons(task: Json) -> None:
    for reason in task.get("Reasons") or ():
        nearest = f" (nearest: {reason['Best']})" if reason.get("Best") else ""
        print(f"    {reason['Code']}: {reason['Text']}{nearest}")


def drain(path: str, arguments: argparse.Namespace) -> None:
    """Show which tasks a node still runs, and what keeps them there."""
    answer = call(path, "GET", f"/swarm-agent/nodes/{quote(arguments.node, safe='')}/drain")
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return
    count = len(answer["Left"])
    print(f"{answer['Node']} is {answer['Availability']}, {count} task{'' if count == 1 else 's'} left")
    for task in answer["Left"]:
        print(f"  {task['Service']}.{task['Slot'] or answer['Node']}  {task['Says']}")


# --- histories -------------------------------------------------------------------------------------------------------------
def history(path: str, arguments: argparse.Namespace) -> None:
    """List all kept tasks of a task's slot, oldest first."""
    answer = call(path, "GET", f"/swarm-agent/tasks/{quote(arguments.task, safe='')}/history")
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return
    for entry in answer:
        revision = f"r{entry['Revision']}" if entry["Revision"] else "-"
        where = entry["Node"] or "-"
        print(
            f"{entry['CreatedAt'][:19]}  {entry['TaskID'][:12]}  {revision}  {where}  {entry['State']}  {entry['Text']}"
        )


def revisions(path: str, arguments: argparse.Namespace) -> None:
    """List the revisions a service can be rolled back to."""
    answer = call(path, "GET", f"/swarm-agent/services/{quote(arguments.service, safe='')}/revisions")
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return
    for revision in answer:
        mark = "*" if revision["Current"] else "<" if revision["Previous"] else " "
        print(
            f"{mark} {revision['Number'] or '-':>4}  {revision['CreatedAt'][:19]}  {revision['Tasks']:>4} tasks  {revision['Image']}"
        )


def rollback(path: str, arguments: argparse.Namespace) -> None:
    """Roll a service back to a kept revision, as its rollback policy says."""
    query = urlencode({"to": arguments.to})
    call(path, "POST", f"/swarm-agent/services/{quote(arguments.service, safe='')}/rollback?{query}")
    print(f"{arguments.service} is being rolled back to revision {arguments.to}")


def run_job(path: str, arguments: argparse.Namespace) -> None:
    """Run a job again now."""
    call(path, "POST", f"/swarm-agent/services/{quote(arguments.service, safe='')}/run")
    print(f"{arguments.service} runs again")


# --- rebalancing -------------------------------------------------------------------------------------------------------------
def rebalance(path: str, arguments: argparse.Namespace) -> None:
    """Show which tasks would move to even services out; with --apply move them."""
    body = {"Services": arguments.service, "Parallel": arguments.parallel, "Apply": arguments.apply}
    answer = call(path, "POST", "/swarm-agent/rebalance", body)
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return
    word = "moves" if answer["Applied"] else "would move"
    print(f"{word} {len(answer['Moves'])} of {answer['Tasks']}")
    for move in answer["Moves"]:
        print(f"  {move['Service']}.{move['Slot']}  {move['From']} -> {move['To']}  {move['Why']}")
    for name, reason in sorted(answer["LeftOut"].items()):
        print(f"  {name} is left out: {reason}")


# --- arguments -------------------------------------------------------------------------------------------------------------
def register(commands: Any) -> None:
    command = add_command(
        commands, "plan", "show what a change to a service would do, without making it", plan
    )
    _service(command)
    command.add_argument(
        "--spec",
        metavar="FILE",
        help="begin with this complete ServiceSpec as JSON (- reads standard input) instead of the service's own; "
        "the service need not exist yet",
    )
    command.add_argument("--image", metavar="IMAGE", help="change the image")
    command.add_argument("--replicas", type=int, metavar="NUMBER", help="change the number of replicas")
    command.add_argument(
        "--force",
        action="store_true",
        help="replace all tasks even if nothing else changes, like docker service update --force",
    )
    for name, what, value, key in (
        ("env", "an environment variable", "NAME=VALUE", "NAME"),
        ("constraint", "a placement constraint", "CONSTRAINT", "CONSTRAINT"),
        ("label", "a label of the service", "KEY=VALUE", "KEY"),
    ):
        for verb, metavar, text in (
            ("add", value, f"add {what}" if name == "constraint" else f"set {what}"),
            ("rm", key, f"remove {what}"),
        ):
            command.add_argument(
                f"--{name}-{verb}",
                action="append",
                default=[],
                metavar=metavar,
                help=f"{text}; may be repeated",
            )
    _json(command)
    command = add_command(commands, "why", "explain why a service is not in its desired state", why)
    _service(command)
    _json(command)
    command = add_command(
        commands, "drain", "show which tasks a node still runs, and what keeps them there", drain
    )
    command.add_argument("node", metavar="NODE", help="id or host name of the node")
    _json(command)
    command = add_command(
        commands,
        "history",
        "list all kept tasks of a slot, oldest first: why each was created and how it ended",
        history,
    )
    command.add_argument("task", metavar="TASK", help="id or name of any task of the slot")
    _json(command)
    command = add_command(
        commands, "revisions", "list the revisions a service can be rolled back to", revisions
    )
    _service(command)
    _json(command)
    command = add_command(commands, "rollback", "roll a service back to a kept revision", rollback)
    _service(command)
    command.add_argument(
        "--to",
        type=int,
        required=True,
        metavar="NUMBER",
        help="the revision, as numbered by swarmctl revisions",
    )
    command = add_command(commands, "run", "run a job again now", run_job)
    command.add_argument("service", metavar="JOB", help="id or name of the job")
    command = add_command(
        commands,
        "rebalance",
        "show which tasks would move to even services out; --apply moves them",
        rebalance,
    )
    command.add_argument(
        "service", metavar="SERVICE", nargs="*", help="id or name of a service; all services if there is none"
    )
    command.add_argument("--apply", action="store_true", help="move the tasks")
    command.add_argument(
        "--parallel",
        type=int,
        default=1,
        metavar="NUMBER",
        help="how many tasks of a service move at a time (default %(default)s)",
    )
    _json(command)


def _service(command: argparse.ArgumentParser) -> None:
    command.add_argument("service", metavar="SERVICE", help="id or name of the service")


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print the API's answer as JSON")
