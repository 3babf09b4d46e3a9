"""The one client of the Docker Engine's HTTP API, over its unix socket.

Short calls return a whole answer; long ones are streamed. Connections that an answer leaves open are used again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode

import h11
import msgspec

from swarm_agent.http.client import EngineConnection, EngineUnreachable
from swarm_agent.objects.errors import SwarmError

Headers = Sequence[tuple[bytes, bytes]]
_IDLE_CONNECTIONS = 8
WANTED_VERSION = (1, 41)  # what we speak; an engine that asks for more is spoken to in its oldest


class EngineError(SwarmError):
    """The engine refused. ``status`` is its HTTP status, the text its message."""

    code = ""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = self.http_status = status


class ApiVersions(NamedTuple):
    """Which versions of the API an engine serves."""

    newest: tuple[int, ...]
    oldest: tuple[int, ...]

    @property
    def spoken(self) -> str:
        """The one we speak with it."""
        return self.at_least((0, 0))

    def at_least(self, wanted: tuple[int, ...]) -> str:
        """The one we speak when a call needs ``wanted`` or newer."""
        return ".".join(map(str, max(min(WANTED_VERSION, self.newest), self.oldest, wanted)))


class Answer(NamedTuple):
    status: int
    headers: Headers
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body) if self.body else None


class Engine(Protocol):
    """What the rest of the project asks of an engine (``EngineClient`` and ``tests.lib.fake_engine``)."""

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = 60.0,
        api: tuple[int, int] = (0, 0),
    ) -> Any: ...

    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> contextlib.AbstractAsyncContextManager[AsyncIterator[bytes]]: ...


class EngineClient:
    """Calls one engine. Errors: EngineUnreachable, EngineError."""

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path
        self._idle: list[EngineConnection] = []
        self._versions: ApiVersions | None = None

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = 60.0,
        api: tuple[int, int] = (0, 0),
    ) -> Any:
        """One request; the decoded JSON answer (``None`` when it is empty). ``api``: the oldest version that knows what is asked.

        Raises:
            EngineError: the engine answered 400 or above.
            EngineUnreachable: no answer, also when ``timeout_s`` passed.
        """
        answer = await self.answer(
            method, path, query=query, body=body, headers=headers, timeout_s=timeout_s, api=api
        )
        if answer.status >= 400:
            raise EngineError(answer.status, _message(answer.body))
        try:
            return answer.json()
        except msgspec.DecodeError:
            return answer.body.decode(errors="replace")

    async def answer(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = 60.0,
        api: tuple[int, int] = (0, 0),
    ) -> Answer:
        """One request; the answer as it is."""
        try:
            async with asyncio.timeout(timeout_s):
                prefix = f"/v{(await self.versions()).at_least(api)}"
                return await self._exchange(method, _target(prefix + path, query), body, headers or {})
        except TimeoutError as err:
            raise EngineUnreachable(
                f"the Docker Engine did not answer {method} {path} within {timeout_s:g} s"
            ) from err

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """One request whose answer comes in pieces for as long as it takes."""
        prefix = f"/v{(await self.versions()).spoken}"
        connection = await EngineConnection.open(self.socket_path)
        try:
            await connection.send(*_request(method, _target(prefix + path, query), None, headers or {}))
            response = await connection.response()
            if response.status_code >= 400:
                whole = b"".join([piece async for piece in connection.body()])
                raise EngineError(response.status_code, _message(whole))
            yield connection.body()
        except (OSError, h11.RemoteProtocolError) as err:
            raise EngineUnreachable(f"lost the Docker Engine: {err}") from err
        finally:
            connection.close()

    async def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _take_idle(self) -> EngineConnection | None:
        """One that the engine has not closed, as it does when it is restarted."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.reader.at_eof():
                return connection
            connection.close()
        return None

    async def _exchange(self, method: str, target: str, body: Any, headers: Mapping[str, str]) -> Answer:
        while True:
            idle = self._take_idle()
            fresh = idle is None
            connection = idle or await EngineConnection.open(self.socket_path)
            done = False
            try:
                await connection.send(*_request(method, target, body, headers))
                response = await connection.response()
                whole = b"".join([piece async for piece in connection.body()])
                done = True
            except (OSError, h11.ProtocolError, EngineUnreachable) as err:
                if fresh or method != "GET":
                    raise EngineUnreachable(f"lost the Docker Engine: {err}") from err
                continue  # an idle connection the engine had closed: ask again on a new one
            finally:
                if done and len(self._idle) < _IDLE_CONNECTIONS and connection.reusable():
                    self._idle.append(connection)
                else:
                    connection.close()
            return Answer(response.status_code, response.headers.raw_items(), whole)

    async def versions(self, *, fresh: bool = False) -> ApiVersions:
        """What the engine said when it was first asked; ``fresh`` asks again, as it may have been upgraded."""
        if self._versions is None or fresh:
            answer = await self._exchange("GET", "/version", None, {})
            if answer.status >= 400:  # it is just starting, or no engine at all
                raise EngineError(answer.status, _message(answer.body))
            said = answer.json()
            self._versions = ApiVersions(
                parse_version(said["ApiVersion"]), parse_version(said.get("MinAPIVersion") or "1.12")
            )
        return self._versions


def parse_version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _target(path: str, query: Mapping[str, str] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _request(method: str, target: str, body: Any, headers: Mapping[str, str]) -> list[h11.Event]:
    payload = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
    lines = [("Host", "docker"), ("Content-Length", str(len(payload))), *headers.items()]
    if payload:
        lines.append(("Content-Type", "application/json"))
    events: list[h11.Event] = [h11.Request(method=method, target=target, headers=lines)]
    if payload:
        events.append(h11.Data(data=payload))
    events.append(h11.EndOfMessage())
    return events


def _message(body: bytes) -> str:
    try:
        decoded = msgspec.json.decode(body)
        return str(decoded["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body.decode(errors="replace").strip()


async def json_lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    """Decode a stream of newline- or concatenation-separated JSON objects as the engine sends them."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield msgspec.json.decode(line)
    if rest.strip():
        yield msgspec.json.decode(rest)
