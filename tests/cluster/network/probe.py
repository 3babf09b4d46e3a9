"""A client run inside some namespace (nsenter): prints one JSON line per answer.

probe.py tcp HOST PORT COUNT [SPORT]   banner of COUNT new connections, or {"error": ...}
probe.py udp HOST PORT COUNT [SPORT]   answer to COUNT datagrams
probe.py big HOST PORT SIZE            answer to one datagram of that size
probe.py dns SERVER NAME TYPE [tcp]    {"code":, "answers": [...]}
probe.py vxlan HOST VNI SOURCE TARGET [GATEWAY [SENDER]]
                                       one tunnelled datagram from SOURCE to TARGET (addresses inside), port 7777, in a frame
                                       to GATEWAY's MAC; the outer packet says it is from SENDER
probe.py listen ADDRESS PORT 1         says "listening", then each datagram's sender
probe.py upstream ADDRESS              says "listening", then answers 192.0.2.7 for example.org and knows nothing else
probe.py hold HOST PORT COUNT          COUNT connections; then, per line on stdin, one line of all their answers
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # it runs by its path, and nothing is installed

from swarm_agent.network import dnswire

TIMEOUT = float(os.environ.get("PROBE_TIMEOUT", "3"))


def show(value: object) -> None:
    print(json.dumps(value), flush=True)


def line_of(sock: socket.socket) -> dict[str, object]:
    data = b""
    while not data.endswith(b"\n"):
        got = sock.recv(2048)
        if not got:
            return {"error": "closed"}
        data += got
    name, address, port = data.decode().split()[:3]
    return {"name": name, "client": address, "port": int(port)}


def attempt(call: Callable[[], dict[str, object]]) -> dict[str, object]:
    begun = time.monotonic()
    try:
        result = call()
    except OSError as error:
        result = {"error": type(error).__name__}
    return {**result, "seconds": round(time.monotonic() - begun, 3)}


def connect(host: str, port: int, sport: int) -> socket.socket:
    sock = socket.socket()
    sock.settimeout(TIMEOUT)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sport:
        sock.bind(("", sport))
    sock.connect((host, port))
    return sock


def tcp(host: str, port: int, sport: int) -> dict[str, object]:
    with connect(host, port, sport) as sock:
        answer = line_of(sock)
        if sport:  # leave no TIME_WAIT behind
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return answer


def udp(host: str, port: int, sport: int, size: int = 2) -> dict[str, object]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        if sport:
            sock.bind(("", sport))
        sock.connect((host, port))
        sock.send(b"x" * size)
        return line_of(sock)


def dns(server: str, name: str, kind: int, stream: bool) -> None:
    query = dnswire.query(4711, name, kind)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as sock:
        sock.settimeout(6)
        sock.connect((server, 53))
        sock.sendall(struct.pack("!H", len(query)) + query if stream else query)
        data = sock.recv(65535)
    reply = dnswire.read_reply(data[2:] if stream else data)
    show(
        {"code": reply.code, "truncated": reply.truncated, "answers": [answer[3] for answer in reply.answers]}
    )


def hold(host: str, port: int, count: int) -> None:
    socks = [connect(host, port, 0) for _ in range(count)]
    show([line_of(sock) for sock in socks])

    def again(sock: socket.socket) -> dict[str, object]:
        sock.sendall(b"again\n")
        return line_of(sock)

    for _ in sys.stdin:
        show([attempt(partial(again, sock)) for sock in socks])


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    found: int = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return found


def vxlan(host: str, vni: int, source: str, target: str, gateway: str = "", sender: str = "") -> None:
    datagram = struct.pack("!4H", 5555, 7777, 8 + 2, 0) + b"x\n"
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0)
    head = head[:10] + struct.pack("!H", checksum(head + ends)) + ends
    macs = b"\2\x42" + socket.inet_aton(gateway or target) + b"\2\x42" + socket.inet_aton(source)
    tunnelled = struct.pack("!II", 0x08000000, vni << 8) + macs + b"\x08\x00" + head + datagram
    if sender:
        outer = struct.pack("!4H", 40000, 4789, 8 + len(tunnelled), 0) + tunnelled
        ends = socket.inet_aton(sender) + socket.inet_aton(host)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(outer), 1, 0, 64, 17, 0) + ends
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            sock.sendto(head + outer, (host, 0))
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(tunnelled, (host, 4789))


def listen(address: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        show("listening")
        while True:
            show(sock.recvfrom(2048)[1][0])


def upstream(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 53))
        show("listening")
        while True:
            data, source = sock.recvfrom(2048)
            question = dnswire.read_question(data)
            if question.name != "example.org":
                sock.sendto(dnswire.failure(question, dnswire.NXDOMAIN), source)
                continue
            records = [(dnswire.A, bytes([192, 0, 2, 7]))] if question.kind == dnswire.A else []
            sock.sendto(dnswire.answer(question, records, limit=512), source)


def main() -> None:
    what, host = sys.argv[1:3]
    if what == "upstream":
        upstream(host)
        return
    if what == "vxlan":
        vxlan(host, int(sys.argv[3]), *sys.argv[4:8])
        return
    if what == "listen":
        listen(host, int(sys.argv[3]))
        return
    if what == "dns":
        dns(host, sys.argv[3], int(sys.argv[4]), "tcp" in sys.argv[5:])
        return
    port, count = int(sys.argv[3]), int(sys.argv[4])
    sport = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    if what == "hold":
        hold(host, port, count)
        return
    if what == "big":
        show(attempt(lambda: udp(host, port, 0, count)))
        return
    call = tcp if what == "tcp" else udp
    for _ in range(count):
        show(attempt(lambda: call(host, port, sport)))


main()
