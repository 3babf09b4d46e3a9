"""``/secrets`` and ``/configs``, and the versions of their contents (ours)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from swarm_agent.api import views
from swarm_agent.api.backend import Backend
from swarm_agent.api.filters import keep, label_matches, parse_filters
from swarm_agent.api.resolve import resolve
from swarm_agent.api.writes import version_of, write, write_spec, write_until
from swarm_agent.control.references import pinned, references, versions
from swarm_agent.http.server import HttpError, Request, Response, json_response
from swarm_agent.objects import contents, defaults, features, templates
from swarm_agent.objects.errors import AlreadyExists, InvalidSpec, OutOfSequence, Unimplemented
from swarm_agent.objects.normalise import Malformed, normalise, parse_json
from swarm_agent.objects.records import Config, Content, Secret
from swarm_agent.objects.specs import ConfigSpec, SecretSpec
from swarm_agent.store import Delete, Put, Store

Owner = Secret | Config
Serve = Callable[..., Awaitable[Response]]
_TESTS = {
    "id": lambda o, v: o.id.startswith(v),
    "name": lambda o, v: (o.spec.name or "").startswith(v),
    "names": lambda o, v: o.spec.name == v,
    "label": lambda o, v: label_matches(o.spec.labels, v),
}


class SecretHandlers:
    """The handlers of one kind; ``kind`` is Secret or Config."""

    def __init__(self, kind: type[Secret | Config]) -> None:
        self._kind: type[Any] = kind
        self._word = kind.__name__.lower()
        self._spec: type[Any] = SecretSpec if kind is Secret else ConfigSpec

    async def list_(self, backend: Backend, request: Request) -> Response:
        filters = parse_filters(request.query.get("filters", ""), _TESTS)
        rows = keep(backend.store.tables[self._kind].all(), filters, _TESTS)
        return json_response([self._shown(row, backend.store) for row in rows])

    async def inspect(self, backend: Backend, request: Request, wanted: str) -> Response:  # noqa: ARG002
        return json_response(self._shown(resolve(backend.store, self._kind, wanted), backend.store))

    async def create(self, backend: Backend, request: Request) -> Response:
        self._must_know(backend)
        spec = normalise(parse_json(await request.body()), self._spec)
        data = contents.spec(self._word, spec)
        name = spec.name.lower()
        with backend.reserve(f"{self._word}/{name}"):
            if any(backend.store.tables[self._kind].by("name", name)):
                raise AlreadyExists(f"{self._word} {spec.name} already exists")
            id_ = backend.new_id()
            owner = self._kind(id=id_, spec=msgspec.structs.replace(spec, data=None))
            await write(backend, f"{self._word}/{id_}", Put(owner, 0), Put(_content(id_, 1, data), 0))
        return json_response({"ID": id_}, 201)

    async def update(self, backend: Backend, request: Request, wanted: str) -> Response:
        """Labels alone."""
        version = version_of(request, self._word)
        raw = parse_json(await request.body())
        owner = resolve(backend.store, self._kind, wanted)
        spec = normalise(raw, self._spec)
        same = msgspec.structs.replace(spec, data=None, labels=owner.spec.labels) == owner.spec
        if not same or (spec.data and contents.decoded(spec.data) != _data(backend.store, owner)):
            raise InvalidSpec("only updates to Labels are allowed")

        def change(now: Any) -> list[Put | Delete]:
            if not now.spec_version and version != now.version:  # written before it was known when
                raise OutOfSequence
            labelled = msgspec.structs.replace(now.spec, labels=spec.labels)
            return [Put(msgspec.structs.replace(now, spec=labelled), now.version)]

        await write_spec(backend, self._kind, owner.id, version, f"{self._word}/{owner.id}", change)
        return Response()

    async def remove(self, backend: Backend, request: Request, wanted: str) -> Response:  # noqa: ARG002
        """With every version of its content."""
        id_ = resolve(backend.store, self._kind, wanted).id

        def decide() -> list[Put | Delete]:
            owner = resolve(backend.store, self._kind, id_)
            users = _users(backend.store, owner)
            if users:
                word = "service" if len(users) == 1 else "services"
                raise InvalidSpec(
                    f"{self._word} '{owner.spec.name}' is in use by the following {word}: {', '.join(users)}"
                )
            rows = (owner, *versions(backend.store, owner.id))
            return [Delete(type(row).__name__.lower(), row.id, row.version) for row in rows]

        await write_until(backend, f"{self._word}/{id_}", decide)
        return Response(204)

    # --- versions (ours) -----------------------------------------------------------------------------------------------
    async def versions(self, backend: Backend, request: Request, wanted: str) -> Response:  # noqa: ARG002
        store = backend.store
        owner = resolve(store, self._kind, wanted)
        names = {s.revision_id: s.spec.name for s in store.services.all()}
        used = pinned(store, owner.id)
        return json_response(
            [
                {
                    "Number": content.number,
                    "CreatedAt": views.time_text(content.created_at),
                    "Digest": views.digest(content.data),
                    "Size": len(content.data),
                    "Current": content.number == owner.number,
                    "Services": sorted(
                        {names[r.id] for r in used.get(content.number, ()) if names.get(r.id)}
                    ),
                }
                for content in versions(store, owner.id)
            ]
        )

    async def add_version(self, backend: Backend, request: Request, wanted: str) -> Response:
        self._must_know(backend)
        raw = parse_json(await request.body())
        given = (
            next((v for k, v in raw.items() if k.lower() == "data"), None) if isinstance(raw, dict) else None
        )
        if not isinstance(given, str):
            raise Malformed('the body is to be {"Data": "<base64>"}', "Data")
        data = contents.decoded(given)
        contents.content(self._word, data)
        id_ = resolve(backend.store, self._kind, wanted).id
        number = 0

        def decide() -> list[Put | Delete]:
            nonlocal number
            owner = resolve(backend.store, self._kind, id_)
            templates.check_driver(owner.spec.templating, data)
            number = owner.number + 1
            changed = msgspec.structs.replace(owner, number=number)
            return [Put(changed, owner.version), Put(_content(id_, number, data), 0)]

        await write_until(backend, f"{self._word}/{id_}", decide)
        return json_response({"Number": number}, 201)

    # --- pieces --------------------------------------------------------------------------------------------------------
    def _must_know(self, backend: Backend) -> None:
        level = backend.store.feature_level
        if level < features.ORCHESTRATION:
            raise Unimplemented(
                f"a {self._word} needs feature level {features.ORCHESTRATION}, and this swarm is at level {level}: "
                "upgrade every manager (swarmctl status shows each one's level)"
            )

    def _shown(self, owner: Owner, store: Store) -> dict[str, Any]:
        return views.content_owner(owner, None if self._kind is Secret else _data(store, owner))


def _content(owner: str, number: int, data: bytes) -> Content:
    return Content(id=f"{owner}.{number}", owner=owner, number=number, data=data)


def _data(store: Store, owner: Owner) -> bytes:
    found = store.contents.get(f"{owner.id}.{owner.number}")
    if found is None:
        raise HttpError(500, f"the content of {owner.spec.name} is missing in the store")
    return found.data


def _users(store: Store, owner: Owner) -> list[str]:
    """Names of the services that reference it."""
    return sorted(
        s.spec.name or s.id
        for s in store.services.all()
        if any(r.owner == owner.id for r in references(defaults.container(s.spec.task_template)))
    )


SECRETS = SecretHandlers(Secret)
CONFIGS = SecretHandlers(Config)
