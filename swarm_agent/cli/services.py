"""Plans, reasons and histories of services; going back, running again, evening out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from swarm_agent.cli.client import Failed, call

Json = dict[str, Any]


# --- plan ----------------------------------------------------------------------------------------------------------------
def plan(path: str, arguments: argparse.Namespace) -> None:
    """What a change of a service would do, without doing it."""
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
    """What of a service is not as declared, and the reason."""
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
    """What a node still runs, and what holds it there."""
    answer = call(path, "GET", f"/swarm-agent/nodes/{quote(arguments.node, safe='')}/drain")
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return
    count = len(answer["Left"])
    print(f"{answer['Node']} is {answer['Availability']}, {count} task{'' if count == 1 else 's'} left")
    for task in answer["Left"]:
        print(f"  {task['Service']}.{task['Slot'] or answer['Node']}  {task['Says']}")


# --- histories -------------------------------------------------------------------------------------------------------------
def story(path: str, arguments: argparse.Namespace) -> None:
    """The tasks of one place, one after the other."""
    answer = call(path, "GET", f"/swarm-agent/tasks/{quote(arguments.task, safe='')}/story")
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return
    for chapter in answer:
        revision = f"r{chapter['Revision']}" if chapter["Revision"] else "-"
        where = chapter["Node"] or "-"
        print(
            f"{chapter['CreatedAt'][:19]}  {chapter['TaskID'][:12]}  {revision}  {where}  {chapter['State']}  {chapter['Text']}"
        )


def revisions(path: str, arguments: argparse.Namespace) -> None:
    """The revisions a service can be taken back to."""
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
    """Take a service back to a kept revision; it rolls by its rollback policy."""
    query = urlencode({"to": arguments.to})
    call(path, "POST", f"/swarm-agent/services/{quote(arguments.service, safe='')}/rollback?{query}")
    print(f"{arguments.service} is being rolled back to revision {arguments.to}")


def run_job(path: str, arguments: argparse.Namespace) -> None:
    """Run a job again, now."""
    call(path, "POST", f"/swarm-agent/services/{quote(arguments.service, safe='')}/run")
    print(f"{arguments.service} runs again")


# --- evening out -------------------------------------------------------------------------------------------------------------
def rebalance(path: str, arguments: argparse.Namespace) -> None:
    """What would move to even services out; with --apply it does."""
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


def register(words: Any) -> None:
    def word(name: str, run: Callable[[str, argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = words.add_parser(name, help=text)
        made.set_defaults(run=run)
        return made

    made = word("plan", plan, "what a change of a service would do, without doing it")
    made.add_argument("service", metavar="SERVICE")
    made.add_argument(
        "--spec",
        metavar="FILE",
        help="a whole ServiceSpec as JSON (- is what comes in), for a service that may not exist yet",
    )
    made.add_argument("--image")
    made.add_argument("--replicas", type=int)
    made.add_argument("--force", action="store_true", help="as of docker service update")
    for option in ("env", "constraint", "label"):
        made.add_argument(f"--{option}-add", action="append", default=[])
        made.add_argument(f"--{option}-rm", action="append", default=[])
    _json(made)
    made = word("why", why, "what of a service is not as declared, and the reason")
    made.add_argument("service", metavar="SERVICE")
    _json(made)
    made = word("drain", drain, "what a node still runs, and what holds it there")
    made.add_argument("node", metavar="NODE")
    _json(made)
    made = word("story", story, "the tasks of one place, one after the other")
    made.add_argument("task", metavar="TASK")
    _json(made)
    made = word("revisions", revisions, "the revisions a service can be taken back to")
    made.add_argument("service", metavar="SERVICE")
    _json(made)
    made = word("rollback", rollback, "take a service back to a kept revision")
    made.add_argument("service", metavar="SERVICE")
    made.add_argument("--to", type=int, required=True, metavar="NUMBER")
    made = word("run", run_job, "run a job again, now")
    made.add_argument("service", metavar="SERVICE")
    made = word("rebalance", rebalance, "what would move to even services out; with --apply it does")
    made.add_argument("service", metavar="SERVICE", nargs="*", help="all when none is named")
    made.add_argument("--apply", action="store_true")
    made.add_argument("--parallel", type=int, default=1, help="so many tasks of a service at a time (1)")
    _json(made)


def _json(word: argparse.ArgumentParser) -> None:
    word.add_argument("--json", action="store_true", help="the answer as the API gives it")
