"""From what managers sent to a task's files: which, where, with what inside, and when they go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from swarm_agent.agent.content_store import ContentStore, FileMount
from swarm_agent.objects.errors import NotFound
from swarm_agent.objects.gotemplate import TemplateError
from swarm_agent.objects.normalise import normalise
from swarm_agent.objects.records import ContentRef, Node, NodeDescription, Revision, Task
from swarm_agent.objects.specs import NodeSpec, TaskTemplate
from swarm_agent.rpc.messages import Piece
from tests.lib.fake_files import FakeFiles

TASK = Task(id="t", service_id="s", service_name="web", revision_id="r", slot=2, node_id="n")
NODE = Node(id="n", spec=NodeSpec(labels={"zone": "z1"}), description=NodeDescription(hostname="h"))


def revision(secrets: list[dict[str, Any]], configs: Sequence[dict[str, Any]] = (), **more: Any) -> Revision:
    container = {"Image": "a", "Secrets": secrets, "Configs": list(configs), **more}
    template = normalise({"ContainerSpec": container}, TaskTemplate)
    owners = [r.get("SecretID") or r.get("ConfigID") for r in (*secrets, *configs)]
    refs = tuple(ContentRef(owner=str(o), number=3) for o in owners)
    return Revision(id="r", service_id="s", template=template, contents=refs)


def secret(id_: str, target: str, **file: Any) -> dict[str, Any]:
    return {"SecretID": id_, "SecretName": id_, "File": {"Name": target, **file}}


def config(id_: str, target: str, **file: Any) -> dict[str, Any]:
    return {"ConfigID": id_, "ConfigName": id_, "File": {"Name": target, **file}}


def place(*pieces: Piece) -> tuple[ContentStore, FakeFiles]:
    files = FakeFiles()
    contents = ContentStore("n", files)
    contents.node = NODE
    contents.take(pieces)
    return contents, files


def test_each_file_where_and_how_it_was_asked_for() -> None:
    contents, files = place(Piece("a.3", b"A"), Piece("b.3", b"B"), Piece("a.2", b"old"))
    wanted = revision(
        [secret("a", "x"), secret("a", "/abs/y", UID="5", GID="6", Mode=0o400)],
        [config("b", "x"), config("b", "/etc/../c")],
    )
    mounts = asyncio.run(contents.provide(TASK, wanted))
    assert mounts == (
        FileMount("/fake/t/secret-0", "/run/secrets/x"),
        FileMount("/fake/t/secret-1", "/abs/y"),
        FileMount("/fake/t/config-2", "/x"),
        FileMount("/fake/t/config-3", "/c"),
    )
    held = files.held["t"]
    assert [(f.data, f.uid, f.gid, f.mode) for f in held.values()] == [
        (b"A", 0, 0, 0o444), (b"A", 5, 6, 0o400), (b"B", 0, 0, 0o444), (b"B", 0, 0, 0o444),
    ]  # fmt: skip


def test_a_task_without_any_touches_nothing() -> None:
    contents, files = place()
    assert asyncio.run(contents.provide(TASK, revision([]))) == ()
    assert files.held == {}


def test_what_is_gone_is_said() -> None:
    contents, _ = place(Piece("a.2", b"old"))
    with pytest.raises(NotFound, match="version 3 of secret a is gone"):
        asyncio.run(contents.provide(TASK, revision([secret("a", "x")])))


def test_what_no_task_needs_is_forgotten() -> None:
    contents, _ = place(Piece("a.3", b"A"), Piece("b.3", b"B"))
    contents.keep([revision([secret("b", "x")]), revision([])])
    assert contents.held() == ["b.3"]


def test_templates_see_task_node_and_each_other() -> None:
    contents, files = place(
        Piece("a.3", b"pw"),
        Piece("b.3", b'{{.Task.Slot}}@{{.Node.Labels.zone}} {{env "E"}} {{secret "p"}} {{config "/n"}}', templated=True),
        Piece("c.3", b"{{plain}}"),
    )  # fmt: skip
    raw = revision([secret("a", "p")], [config("b", "/t"), config("c", "/n")], Env=["E={{.Node.Hostname}}"])
    done = contents.expanded(TASK, raw)
    asyncio.run(contents.provide(TASK, done))
    assert files.held["t"]["config-1"].data == b"2@z1 h pw {{plain}}"
    assert files.held["t"]["config-2"].data == b"{{plain}}"


def test_a_template_that_fails_names_its_file() -> None:
    contents, _ = place(Piece("a.3", b"{{.Nope}}", templated=True))
    with pytest.raises(TemplateError, match=r"secret a: template: .*can't evaluate field Nope"):
        asyncio.run(contents.provide(TASK, revision([secret("a", "x")])))


def test_nothing_prints_what_is_secret() -> None:
    assert "hush" not in repr((Piece("a", b"hush"),))
