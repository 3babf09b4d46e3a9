"""Everything that is not swarm goes to the local engine, byte for byte.

Heads are parsed once and sent on; bodies stream both ways; after a 101, or an answer whose connection the engine hijacked,
both sides are spliced raw with half-close.
"""

from __future__ import annotations

import asyncio
import contextlib

import h11

from swarm_agent.http.client import EngineConnection, EngineUnreachable
from swarm_agent.http.server import CHUNK, HANDED_OVER, Request

_HIJACKED = (b"application/vnd.docker.raw-stream", b"application/vnd.docker.multiplexed-stream")


async def pass_through(request: Request, socket_path: str, extra: tuple[tuple[str, str], ...] = ()) -> object:
    """Let the engine answer. ``extra`` headers take the place of its own. Takes the connection over."""
    engine = await EngineConnection.open(socket_path)
    client = request.connection
    try:
        upgrade = bool(request.header("upgrade"))
        headers = [
            (k, v) for k, v in request.head.headers.raw_items() if k.lower() not in (b"host", b"connection")
        ]
        headers.append((b"Host", b"docker"))
        headers.append((b"Connection", b"Upgrade" if upgrade else b"close"))
        await engine.send(
            h11.Request(method=request.head.method, target=request.head.target, headers=headers)
        )
        if upgrade:
            await _send_body(request, engine)  # small: the terms of what follows
            await _upgraded(request, engine)
            return HANDED_OVER
        sending = asyncio.create_task(_send_body(request, engine))
        try:
            await _send_answer(request, engine, extra, sending)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    except EngineUnreachable:
        if client.http.our_state is h11.SEND_RESPONSE:
            raise  # nothing was said yet, so that can be
        client.writer.transport.abort()  # half an answer: a clean end would make it look whole
    finally:
        engine.close()
    client.writer.close()
    return HANDED_OVER


async def _send_body(request: Request, engine: EngineConnection) -> None:
    async for piece in request.connection.request_body():
        await engine.send(h11.Data(data=piece))
    await engine.send(h11.EndOfMessage())


async def _send_answer(
    request: Request,
    engine: EngineConnection,
    extra: tuple[tuple[str, str], ...],
    sending: asyncio.Task[None],
) -> None:
    """Pass head and body on, flushing each piece as it comes."""
    response = await engine.response()
    client = request.connection
    headers = [
        (k, v) for k, v in response.headers.raw_items() if k.lower() not in (b"connection", b"keep-alive")
    ]
    ours = {k.lower().encode() for k, _ in extra}
    headers = [(k, v) for k, v in headers if k.lower() not in ours]
    headers += [(k.encode(), v.encode()) for k, v in extra]
    headers.append((b"Connection", b"close"))
    await client.send(h11.Response(status_code=response.status_code, reason=response.reason, headers=headers))
    await _pass_body(request, engine, sending)


async def _pass_body(request: Request, engine: EngineConnection, sending: asyncio.Task[None] | None) -> None:
    """Until the engine's answer ends or nobody listens any more."""
    gone = asyncio.create_task(_client_gone(request, sending))
    copying = asyncio.create_task(_copy_body(request, engine))
    try:
        await asyncio.wait({gone, copying}, return_when=asyncio.FIRST_COMPLETED)
        if copying.done():
            copying.result()
    finally:
        gone.cancel()
        copying.cancel()
        await asyncio.gather(gone, copying, return_exceptions=True)


async def _copy_body(request: Request, engine: EngineConnection) -> None:
    async for piece in engine.body():
        if request.method != "HEAD" and piece:
            await request.connection.send(h11.Data(data=piece))
    await request.connection.send(h11.EndOfMessage())


async def _client_gone(request: Request, sending: asyncio.Task[None] | None) -> None:
    """Return when the client hung up after its request was read: an endless answer must not go on for nobody."""
    if sending is not None:
        await asyncio.wait({sending})
        if isinstance(sending.exception(), OSError):
            await asyncio.Event().wait()  # the engine wants no more of the body: what it says still counts
    with contextlib.suppress(ConnectionError):
        while await request.connection.reader.read(CHUNK):
            pass


# --- upgraded and hijacked connections ---------------------------------------------------------------------------------
async def _upgraded(request: Request, engine: EngineConnection) -> None:
    """The client asked to take the connection over (attach, exec, build sessions)."""
    event = await engine.next_event()
    client = request.connection
    if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
        await client.send(
            h11.InformationalResponse(status_code=101, headers=event.headers, reason=event.reason)
        )
        await _splice(request, engine)
        return
    if not isinstance(event, h11.Response):
        raise h11.RemoteProtocolError("the engine closed the connection early")
    hijacked = event.status_code == 200 and any(
        v in _HIJACKED for k, v in event.headers if k == b"content-type"
    )
    if hijacked:
        head = b"HTTP/1.1 %d %s\r\n" % (event.status_code, event.reason)
        head += b"".join(b"%s: %s\r\n" % item for item in event.headers.raw_items())
        client.writer.write(head + b"\r\n")
        await _splice(request, engine)
        return
    headers = [(k, v) for k, v in event.headers.raw_items() if k.lower() != b"connection"]
    await client.send(
        h11.Response(
            status_code=event.status_code, reason=event.reason, headers=[*headers, (b"Connection", b"close")]
        )
    )
    await _pass_body(request, engine, None)


async def _splice(request: Request, engine: EngineConnection) -> None:
    """Both ways until both ends are done; each half closes on its own."""
    client = request.connection
    early_client = client.http.trailing_data[0]
    early_engine = engine.http.trailing_data[0]
    if early_client:
        engine.writer.write(early_client)
    if early_engine:
        client.writer.write(early_engine)
    up = asyncio.create_task(_copy(client.reader, engine.writer))
    down = asyncio.create_task(_copy(engine.reader, client.writer))
    try:
        await down  # the engine's end ends the session; the client may have closed its half long before
    finally:
        up.cancel()
        down.cancel()
        await asyncio.gather(up, down, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
