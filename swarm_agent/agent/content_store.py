"""The secrets and configs of a node's tasks: what managers sent, and the files made of it for each task."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from swarm_agent.agent.tmpfs_files import File, Files
from swarm_agent.objects import defaults, templates
from swarm_agent.objects.contents import Target, content_ids, targets
from swarm_agent.objects.errors import NotFound
from swarm_agent.objects.gotemplate import Fields, TemplateError
from swarm_agent.objects.records import Node, Revision, Task
from swarm_agent.objects.specs import NodeSpec
from swarm_agent.rpc.messages import Piece


class FileMount(msgspec.Struct, frozen=True):
    """A file of the host at a place in a container, read-only."""

    source: str
    target: str


class ContentStore:
    """What this node was given. ``node`` is its own record, for templates."""

    def __init__(self, node_id: str, files: Files) -> None:
        self._files = files
        self._pieces: dict[str, Piece] = {}
        self.node = Node(id=node_id, spec=NodeSpec())

    @property
    def node_name(self) -> str:
        """How people call this node."""
        return self.node.description.hostname or self.node.id

    def take(self, pieces: Iterable[Piece]) -> None:
        self._pieces.update({piece.id: piece for piece in pieces})

    def keep(self, revisions: Iterable[Revision]) -> None:
        """Forget what none of these needs."""
        if not self._pieces:
            return
        needed = {id_ for revision in revisions if revision.contents for id_ in content_ids(revision)}
        for id_ in self._pieces.keys() - needed:
            del self._pieces[id_]

    def held(self) -> list[str]:
        return sorted(self._pieces)

    # --- for one task ------------------------------------------------------------------------------------------------
    def expanded(self, task: Task, revision: Revision) -> Revision:
        """The revision with the templates of its container done. Raises TemplateError."""
        ctr = defaults.container(revision.template)
        if not templates.has_template(ctr):
            return revision
        template = msgspec.structs.replace(
            revision.template, container_spec=templates.expanded(ctr, templates.context(task, self.node))
        )
        return msgspec.structs.replace(revision, template=template)

    async def provide(self, task: Task, revision: Revision) -> tuple[FileMount, ...]:
        """Write the task's files, whatever became of those written before. ``revision``: expanded.

        Raises:
            NotFound: a version is not here: it was removed while it was in use.
            TemplateError: in a content.
            FilesError: the place for them cannot be used.
        """
        wanted = list(targets(defaults.container(revision.template)))
        if not wanted:
            return ()
        ids = content_ids(revision)
        pieces = [self._piece(t, ids[i] if i < len(ids) else "") for i, t in enumerate(wanted)]
        dot = templates.context(task, self.node)
        files = tuple(
            File(f"{t.kind}-{i}", self._data(t, piece, dot, wanted, pieces, revision), t.uid, t.gid, t.mode)
            for i, (t, piece) in enumerate(zip(wanted, pieces, strict=True))
        )
        paths = await self._files.write(task.id, files)
        return tuple(FileMount(path, t.path) for path, t in zip(paths, wanted, strict=True))

    async def wipe(self, task_id: str) -> None:
        await self._files.wipe(task_id)

    async def tasks(self) -> list[str]:
        """Ids of the tasks that have files here."""
        return await self._files.tasks()

    def _piece(self, target: Target, id_: str) -> Piece:
        piece = self._pieces.get(id_)
        if piece is None:
            number = id_.rpartition(".")[2] or "?"
            raise NotFound(
                f"version {number} of {target.kind} {target.name} is gone: it was removed while a task was to use it"
            )
        return piece

    def _data(
        self,
        target: Target,
        piece: Piece,
        dot: Fields,
        wanted: list[Target],
        pieces: list[Piece],
        revision: Revision,
    ) -> bytes:
        if not piece.templated:
            return piece.data
        files = {(t.kind, t.given): p.data for t, p in zip(wanted, pieces, strict=True)}
        env = defaults.container(revision.template).env or ()
        try:
            return templates.file_expanded(
                piece.data,
                dot,
                env,
                lambda name: files.get(("secret", name)),
                lambda name: files.get(("config", name)),
            )
        except TemplateError as err:
            raise TemplateError(f"{target.kind} {target.name}: {err}") from err
