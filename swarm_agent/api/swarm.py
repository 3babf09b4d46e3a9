"""``/swarm``: the cluster itself and this node's membership in it."""

from __future__ import annotations

import msgspec

from swarm_agent.api import views
from swarm_agent.api.backend import Backend
from swarm_agent.api.writes import version_of, write_spec, write_until
from swarm_agent.ca.tokens import new_token
from swarm_agent.ca.unlock import new_unlock_key, parse_unlock_key, shown
from swarm_agent.http.server import HttpError, Request, Response, json_response
from swarm_agent.objects import features, validate
from swarm_agent.objects.defaults import cluster_defaults
from swarm_agent.objects.errors import FailedPrecondition
from swarm_agent.objects.normalise import normalise, parse_json
from swarm_agent.objects.records import Cluster, UnlockKey
from swarm_agent.objects.specs import (
    ClusterSpec,
    EncryptionConfig,
    InitRequest,
    JoinRequest,
    UnlockRequest,
    merged,
)
from swarm_agent.store import Delete, Put

ALREADY = (
    'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
)
NOT_PART = "This node is not part of a swarm"
NOT_LOCKED = "swarm is not locked"


async def init(backend: Backend, request: Request) -> Response:
    body = normalise(parse_json(await request.body()), InitRequest)
    validate.cluster(body.spec or ClusterSpec())
    if body.availability and body.availability not in ("active", "pause", "drain"):
        raise HttpError(400, f'invalid Availability: "{body.availability}"')
    if body.force_new_cluster and backend.state == "active":
        _must_stay(backend.store.cluster if backend.is_manager else None, body)
        node_id = await backend.force_new_cluster(body)
        await _declare(backend, node_id, body)
        return json_response(node_id)
    if backend.state != "inactive":
        raise HttpError(503, ALREADY)
    _pools(body)
    return json_response(await backend.init(body))


def _must_stay(now: Cluster | None, body: InitRequest) -> None:
    """A swarm that goes on keeps what only a new one can choose."""
    if now is None:
        return
    for flag, given, present in (
        ("--default-addr-pool", tuple(body.default_addr_pool or ()), now.default_addr_pool),
        ("--data-path-port", body.data_path_port, now.data_path_port),
        # the docker command sends its own default with every init, so 24 may not be meant
        (
            "--default-addr-pool-mask-length",
            0 if body.subnet_size == 24 else body.subnet_size,
            now.subnet_size,
        ),
    ):
        if given and given != present:
            raise FailedPrecondition(
                f"{flag} cannot be changed by --force-new-cluster: the swarm goes on with its networks. Leave the flag out; nothing was changed"
            )


async def _declare(backend: Backend, node_id: str, body: InitRequest) -> None:
    """What an init states besides, in a cluster that goes on: as with Docker what is not stated stays."""

    def decide() -> list[Put | Delete]:
        now = the_cluster(backend)
        spec = cluster_defaults(merged(now.spec, body.spec or ClusterSpec()))
        unlock = now.unlock
        if body.auto_lock_managers or spec.encryption_config.auto_lock_managers:
            spec = msgspec.structs.replace(spec, encryption_config=EncryptionConfig(auto_lock_managers=True))
            if not unlock.key:
                unlock = UnlockKey(key=new_unlock_key(backend.secret_bits), version=unlock.version + 1)
        writes: list[Put | Delete] = []
        if (spec, unlock) != (now.spec, now.unlock):
            writes.append(Put(msgspec.structs.replace(now, spec=spec, unlock=unlock), now.version))
        node = backend.store.nodes.get(node_id)
        if body.availability and node is not None and node.spec.availability != body.availability:
            wanted = msgspec.structs.replace(node.spec, availability=body.availability)
            writes.append(Put(msgspec.structs.replace(node, spec=wanted), node.version))
        return writes

    if decide():
        await write_until(backend, "cluster", decide)


def _pools(body: InitRequest) -> None:
    import ipaddress  # noqa: PLC0415

    size = body.subnet_size or 24
    if not 1 <= size <= 29:
        raise HttpError(400, f"subnet size is out of range: {size}")
    port = body.data_path_port or 4789
    if port != 4789 and not 1024 <= port <= 49151:
        raise HttpError(400, f"Datapath port number is not in valid range (1024-49151) : {port}")
    for text in body.default_addr_pool or ():
        try:
            pool = ipaddress.IPv4Network(text)
        except ValueError as err:
            raise HttpError(400, f"invalid CIDR: {text!r}. {err}") from err
        if pool.prefixlen > size:
            raise HttpError(400, f'invalid CIDR: "{text}". Subnet size is too small for pool: {size}')


async def join(backend: Backend, request: Request) -> Response:
    body = normalise(parse_json(await request.body()), JoinRequest)
    if backend.state != "inactive":
        raise HttpError(503, ALREADY)
    if not body.remote_addrs:
        raise HttpError(400, "at least 1 RemoteAddr is required to join")
    if body.availability and body.availability not in ("active", "pause", "drain"):
        raise HttpError(400, f'invalid Availability: "{body.availability}"')
    await backend.join(body)
    return Response()


async def leave(backend: Backend, request: Request) -> Response:
    if backend.state == "inactive":
        raise HttpError(503, NOT_PART)
    force = request.query.get("force", "0").lower() in ("1", "true", "t")
    await backend.leave(force=force)
    return Response()


async def unlock(backend: Backend, request: Request) -> Response:
    body = normalise(parse_json(await request.body()), UnlockRequest)
    if backend.state == "inactive":
        raise HttpError(503, NOT_PART)
    if backend.state != "locked":
        raise HttpError(409, NOT_LOCKED)
    await backend.unlock(parse_unlock_key(body.unlock_key or ""))
    return Response()


# --- leader only -------------------------------------------------------------------------------------------------------
def the_cluster(backend: Backend) -> Cluster:
    record = backend.store.cluster
    if record is None:
        raise HttpError(
            503,
            "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster.",
        )
    return record


async def inspect(backend: Backend, request: Request) -> Response:  # noqa: ARG001
    return json_response(views.swarm(the_cluster(backend)))


async def unlock_key(backend: Backend, request: Request) -> Response:  # noqa: ARG001
    return json_response({"UnlockKey": shown(the_cluster(backend).unlock.key)})


async def update(backend: Backend, request: Request) -> Response:
    version = version_of(request, "swarm")
    spec = normalise(parse_json(await request.body()), ClusterSpec)
    validate.cluster(spec)
    record = the_cluster(backend)
    filled = cluster_defaults(spec)
    if filled.encryption_config.auto_lock_managers and record.feature_level < features.AUTOLOCK:
        raise FailedPrecondition(
            f"autolock needs feature level {features.AUTOLOCK}, and this swarm is at level {record.feature_level}: upgrade every manager "
            "and remove feature_level from its agent.toml, then try again"
        )

    def change(now: Cluster) -> list[Put | Delete]:
        tokens, digest = now.join_tokens, now.root_ca.digest
        if _flag(request, "rotateWorkerToken"):
            tokens = msgspec.structs.replace(tokens, worker=new_token(digest, backend.secret_bits))
        if _flag(request, "rotateManagerToken"):
            tokens = msgspec.structs.replace(tokens, manager=new_token(digest, backend.secret_bits))
        unlock = now.unlock
        if not filled.encryption_config.auto_lock_managers:
            unlock = UnlockKey(version=unlock.version + 1) if unlock.key else unlock
        elif not unlock.key or _flag(request, "rotateManagerUnlockKey"):
            unlock = UnlockKey(key=new_unlock_key(backend.secret_bits), version=unlock.version + 1)
        changed = msgspec.structs.replace(now, spec=filled, join_tokens=tokens, unlock=unlock)
        return [Put(changed, now.version)]

    await write_spec(backend, Cluster, record.id, version, "cluster", change)
    return Response()


def _flag(request: Request, name: str) -> bool:
    return request.query.get(name, "").lower() in ("1", "true", "t")
