"""A stand-in for the daemon, run inside a host of the lab: a ``HostNetwork`` driven by JSON lines on stdin.

Killing it is killing the daemon; starting another one is upgrading it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from swarm_agent.network import namespaces, nft
from swarm_agent.network.host import HostNetwork
from swarm_agent.network.model import AttachRequest, NetworkView
from swarm_agent.network.netlink import Netlink
from swarm_agent.network.nft import Loaders
from swarm_agent.network.state_files import StateFiles

CONTROL_PORTS = (2377, 2378, 7946)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def engine_request(path: str, method: str, target: str, body: Any = None) -> tuple[int, Any]:
    connection = _UnixConnection(path)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, target, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    return answer.status, json.loads(data) if data.strip() else None


class UnixEngine:
    def __init__(self, path: str) -> None:
        self._path = path

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return await asyncio.to_thread(engine_request, self._path, method, path, body)


def die_before(act: int) -> None:
    """Every message to the kernel and every rule transaction is an act; this process ends before that one."""
    left = act

    def counted(call: Any) -> Any:
        def counting(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return call(*arguments)

        return counting

    Netlink.send = counted(Netlink.send)  # type: ignore[method-assign]  # in this process alone
    namespaces.make = counted(namespaces.make)
    namespaces.set_sysctl = counted(namespaces.set_sysctl)
    nft._Library.run = counted(nft._Library.run)  # type: ignore[method-assign]  # as above


async def main(engine: str, state: str, library: str, cut: str) -> None:
    loaders = Loaders(library=library == "library")
    network = HostNetwork(UnixEngine(engine), StateFiles(Path(state)), loaders, control_ports=CONTROL_PORTS)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        call, argument = json.loads(line)
        begun = loop.time()
        if call == "apply" and cut != "0":
            die_before(int(cut))
        try:
            result: Any = None
            if call == "apply":
                await network.apply(msgspec.convert(argument, NetworkView))
            elif call == "attach":
                result = await network.attach(msgspec.convert(argument, AttachRequest))
            elif call == "watch":  # whether it looks after the host by itself
                mender = network._mender
                await (mender.start(network._s.news.fileno()) if argument else mender.stop())
            elif call == "trouble":
                result = network.trouble()
            elif call == "missing":
                result = await network.missing(argument)
            elif call == "detach":
                await network.detach(argument)
            else:
                result = await getattr(network, call)()
            answer = {"result": msgspec.to_builtins(result), "seconds": loop.time() - begun}
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shall see it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
