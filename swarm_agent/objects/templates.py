"""Where a service may use templates, and what they see (behaviour.md 25): Go's text/template over service, node and task. Pure.

Allowed in values of the environment, the hostname, a mount's source and target, labels and driver options of a volume, and in the data of secrets and
configs made with the template driver ``golang``. They are done on the node when a container is made; :func:`check` does them once with
what is known beforehand, so that most mistakes are refused at the door.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from swarm_agent.objects.gotemplate import BadCall, Fields, Function, TemplateError, expand, parse
from swarm_agent.objects.records import Node, NodeDescription, Task
from swarm_agent.objects.specs import ContainerSpec, DriverSpec, Labels, Mount, NodeSpec

DRIVER = "golang"
_FILE_FUNCTIONS = frozenset({"secret", "config", "env"})


class _AnyLabel(dict[str, str]):
    """The labels of a node nobody has chosen yet: each is there, and empty."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> str:
        return ""


def context(task: Task, node: Node) -> Fields:
    """What ``.`` is for a task on a node. ``.Node.Labels`` is ours, the rest Docker's."""
    about = node.description
    platform = Fields("template.Platform", {"Architecture": about.architecture, "OS": about.os})
    slot = str(task.slot) if task.slot else task.preset or task.node_id
    return Fields(
        "template.Context",
        {
            "Service": Fields(
                "template.Service",
                {"ID": task.service_id, "Name": task.service_name, "Labels": task.service_labels},
            ),
            "Node": Fields(
                "template.Node",
                {
                    "ID": node.id or task.node_id,
                    "Hostname": about.hostname,
                    "Platform": platform,
                    "Labels": node.spec.labels,
                },
            ),
            "Task": Fields("template.Task", {"ID": task.id, "Name": task.name, "Slot": slot}),
        },
    )


def _join(separator: Any, *parts: Any) -> str:
    if not all(isinstance(p, str) for p in (separator, *parts)):
        raise BadCall("join takes texts: a separator, then what is to be joined")
    return str(separator).join(parts)


FUNCTIONS: dict[str, Function] = {"join": _join}


def has_template(spec: ContainerSpec) -> bool:
    """Whether any place that may hold a template does."""
    return any("{{" in text for text in _texts(spec))


def _texts(spec: ContainerSpec) -> Iterator[str]:
    yield from spec.env or ()
    yield spec.hostname or ""
    for mount in spec.mounts or ():
        yield mount.source or ""
        yield mount.target or ""
        options = mount.volume_options
        if options is not None:
            yield from (options.labels or {}).values()
            yield from ((options.driver_config and options.driver_config.options) or {}).values()


def expanded(spec: ContainerSpec, dot: Fields) -> ContainerSpec:
    """The container as this task gets it.

    Raises:
        TemplateError: with the place, then Go's words.
    """
    if not has_template(spec):
        return spec
    return msgspec.structs.replace(
        spec,
        env=spec.env and tuple(_env(i, line, dot) for i, line in enumerate(spec.env)),
        hostname=spec.hostname and _text(spec.hostname, dot, "Hostname"),
        mounts=spec.mounts and tuple(_mount(m, dot, f"Mounts[{i}]") for i, m in enumerate(spec.mounts)),
    )


def _env(i: int, line: str, dot: Fields) -> str:
    """The value only: a name is no template."""
    name, equals, value = line.partition("=")
    return name + equals + _text(value, dot, f"Env[{i}]")


def _mount(mount: Mount, dot: Fields, path: str) -> Mount:
    options = mount.volume_options
    if options is not None:
        driver = options.driver_config
        options = msgspec.structs.replace(
            options,
            labels=_values(options.labels, dot, f"{path}.VolumeOptions.Labels"),
            driver_config=driver
            and msgspec.structs.replace(
                driver, options=_values(driver.options, dot, f"{path}.VolumeOptions.DriverConfig.Options")
            ),
        )
    return msgspec.structs.replace(
        mount,
        source=mount.source and _text(mount.source, dot, f"{path}.Source"),
        target=mount.target and _text(mount.target, dot, f"{path}.Target"),
        volume_options=options,
    )


def _values(texts: Labels | None, dot: Fields, path: str) -> Labels | None:
    return texts and {key: _text(text, dot, f"{path}[{key!r}]") for key, text in texts.items()}


def _text(text: str, dot: Fields, path: str) -> str:
    try:
        return expand(text, dot, FUNCTIONS)
    except TemplateError as err:
        full = f"TaskTemplate.ContainerSpec.{path}"
        raise TemplateError(f"{err} (in {full})", full) from err


# --- at the door -------------------------------------------------------------------------------------------------------
def check(spec: ContainerSpec, service_name: str, labels: Labels) -> None:
    """Refuse templates that cannot be right on any node."""
    task = Task(
        id="taskid", service_id="serviceid", service_name=service_name, service_labels=labels, revision_id="", slot=1, node_id="nodeid"
    )  # fmt: skip
    node = Node(
        id="nodeid",
        spec=NodeSpec(labels=_AnyLabel()),
        description=NodeDescription(hostname="nodeHostname", architecture="x86_64", os="linux"),
    )
    expanded(spec, context(task, node))


def check_driver(templating: DriverSpec | None, data: bytes) -> None:
    """A secret's or config's template driver, and that its data can be read as a template."""
    if templating is None:
        return
    if templating.name != DRIVER:
        raise TemplateError(
            f'unrecognized template type "{templating.name or ""}": {DRIVER} is known', "Templating.Name"
        )
    parse(_decoded(data), _FILE_FUNCTIONS | FUNCTIONS.keys())


# --- secrets and configs -------------------------------------------------------------------------------------------------
Lookup = Callable[[str], bytes | None]


def file_expanded(data: bytes, dot: Fields, env: tuple[str, ...], secret: Lookup, config: Lookup) -> bytes:
    """The data of a secret or config made with a template driver, for one task.

    ``env``: the task's environment, done already; ``secret``, ``config``: by target, what the task itself references, None else.
    """

    def of(kind: str, lookup: Lookup) -> Function:
        def find(target: Any) -> str:
            found = lookup(target) if isinstance(target, str) else None
            if found is None:
                raise BadCall(f"{kind} target {target} not found")
            return _decoded(found)

        return find

    def variable(name: Any) -> str:
        return next((value for key, _, value in (line.partition("=") for line in env) if key == name), "")

    functions = {**FUNCTIONS, "secret": of("secret", secret), "config": of("config", config), "env": variable}
    return expand(_decoded(data), dot, functions).encode(errors="surrogateescape")


def _decoded(data: bytes) -> str:
    """Bytes that are no text go through as they are."""
    return data.decode(errors="surrogateescape")
