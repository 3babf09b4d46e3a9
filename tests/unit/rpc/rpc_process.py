"""``rpc_process.py FILE`` (the root): a manager's RPC server alone, in a process of its own. Prints its port; a line on stdin renews its
certificate and is answered with a line; the end of stdin ends it. What the server answers: ``Leave`` at once, a session with the bytes of the largest
message it has decoded.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from swarm_agent.ca import ca
from swarm_agent.ca.ca import Subject
from swarm_agent.ca.identity_files import NodeIdentity
from swarm_agent.objects.records import RootCA
from swarm_agent.rpc import grpc as session_rpc
from swarm_agent.rpc.grpc import Grpc, Method
from swarm_agent.rpc.messages import Down, Leave, Nothing, Up, Welcome

DAY = 24 * 3600 * 10**9


def identity_of(root: RootCA, node_id: str = "m1", role: str = "manager") -> NodeIdentity:
    key, csr = ca.make_request()
    return NodeIdentity(key, ca.sign(root, csr, Subject(node_id, role, "c"), DAY)[0], root.cert)


class Server:
    def __init__(self, root: RootCA) -> None:
        self.root = root
        self.identity = identity_of(root)
        self.largest = 0

    async def leave(self, caller: Subject, request: Leave) -> Nothing:
        return Nothing()

    async def session(self, caller: Subject, requests: AsyncIterator[Up]) -> AsyncIterator[Down]:
        async for _ in requests:
            yield Welcome("s", self.largest, b"")

    def count(self) -> None:
        """See how large the messages are that are decoded."""
        decode, reply = session_rpc.DECODERS["Session"]

        def counted(data: bytes) -> Any:
            self.largest = max(self.largest, len(data))
            return decode(data)

        session_rpc.DECODERS["Session"] = (counted, reply)


async def main(root: RootCA) -> None:
    server = Server(root)
    server.count()
    rpc: Any = Grpc().server(
        lambda: server.identity,
        lambda caller, method: None,
        [
            Method("Leave", False, False, True, server.leave),
            Method("Session", True, True, True, server.session),
        ],
    )
    print(await rpc.start("127.0.0.1:0"), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while await reader.readline():
        server.identity = identity_of(server.root)
        if hasattr(rpc, "renewed"):
            rpc.renewed()
        print("renewed", flush=True)
    await rpc.stop()


if __name__ == "__main__":
    uvloop.run(main(msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=RootCA)))
