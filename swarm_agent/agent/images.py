"""Images on this host: one pull at a time for each, shared by all tasks that need it."""

from __future__ import annotations

import asyncio
import logging

from swarm_agent.agent.engine_client import Engine, EngineError, json_lines
from swarm_agent.objects.images import is_image_id, parse_image

log = logging.getLogger(__name__)

PULL_SILENCE_S = 600.0  # a pull the engine says nothing of for so long has hung
FAILED_PULL_REST_S = 30.0  # a tag that could not be pulled but is here is not asked for again this long


class Images:
    """Answers "have this image". A tag is always asked for anew; an id or a digest that is here is not."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pulls: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._rest: dict[str, float] = {}

    async def ensure(self, image: str, registry_auth: str) -> None:
        """Make the image available.

        Raises:
            EngineError: it is neither here nor to be had.
        """
        here = await self._present(image)
        reference = parse_image(image)
        if here and (is_image_id(image) or (reference is not None and reference.digest)):
            return
        now = asyncio.get_running_loop().time()
        if here and self._rest.get(image, 0.0) > now:
            return
        try:
            await self._shared_pull(image, registry_auth)
        except EngineError as err:
            if not here:
                raise EngineError(404, f"No such image: {_with_tag(image)}: {err}") from err
            self._rest = {i: until for i, until in self._rest.items() if until > now}
            self._rest[image] = now + FAILED_PULL_REST_S
            log.warning("pulling %s failed, using the local image: %s", image, err)

    async def _present(self, image: str) -> bool:
        try:
            await self._engine.call("GET", f"/images/{image}/json")
        except EngineError as err:
            if err.status == 404:
                return False
            raise
        return True

    async def _shared_pull(self, image: str, registry_auth: str) -> None:
        key = (image, registry_auth)
        pull = self._pulls.get(key)
        if pull is None:
            pull = asyncio.create_task(self._pull(image, registry_auth))
            self._pulls[key] = pull
            pull.add_done_callback(lambda done: self._pulled(key, done))
        await asyncio.shield(pull)  # one task giving up must not end the pull of the others

    def _pulled(self, key: tuple[str, str], pull: asyncio.Task[None]) -> None:
        del self._pulls[key]
        if not pull.cancelled():
            pull.exception()  # whoever waited has it; all may have given up

    async def _pull(self, image: str, registry_auth: str) -> None:
        headers = {"X-Registry-Auth": registry_auth} if registry_auth else {}
        query = {"fromImage": _with_tag(image)}
        loop = asyncio.get_running_loop()
        try:
            async with (
                asyncio.timeout(PULL_SILENCE_S) as limit,
                self._engine.stream("POST", "/images/create", query=query, headers=headers) as pieces,
            ):
                async for line in json_lines(pieces):
                    limit.reschedule(loop.time() + PULL_SILENCE_S)
                    if "error" in line:
                        raise EngineError(500, str(line["error"]))
        except TimeoutError as err:
            raise EngineError(
                504, f"the pull made no progress for {PULL_SILENCE_S / 60:g} minutes and was given up"
            ) from err


def _with_tag(image: str) -> str:
    reference = parse_image(image)
    if reference is None or reference.tag or reference.digest:
        return image
    return f"{image}:latest"
