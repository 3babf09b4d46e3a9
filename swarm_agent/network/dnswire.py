"""DNS messages, as bytes: reading a question, packing an answer. Pure; standard library only.

Owns: the wire format of the few record types we answer (RFC 1035, the size of RFC 6891). Refuses: knowing any name.
Every function takes any bytes whatever; what is not a question raises ``NotAQuestion``, nothing else.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass

A, PTR, AAAA, OPT, ANY = 1, 12, 28, 41, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
PLAIN_UDP, LARGEST_UDP, LARGEST_TCP = 512, 1232, 65535
_NAME_POINTER = b"\xc0\x0c"  # the question's name always begins at byte 12


class NotAQuestion(ValueError):
    """Bytes that are no query with exactly one question. ``reply``: what to answer, empty for nothing."""

    def __init__(self, why: str, reply: bytes = b"") -> None:
        super().__init__(why)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Question:
    """``name`` is lower case without trailing dot; ``section`` the question as it was asked, to be sent back."""

    id: int
    flags: int
    name: str
    kind: int
    klass: int
    section: bytes
    size: int = PLAIN_UDP


@dataclass(frozen=True, slots=True)
class Reply:
    """A decoded answer; used by the self-test and by tests."""

    id: int
    code: int
    truncated: bool
    authoritative: bool
    answers: tuple[tuple[str, int, int, str], ...]  # name, type, time to live, text


def read_question(data: bytes) -> Question:
    if len(data) < 12:
        raise NotAQuestion("shorter than a header")
    identifier, flags, questions, answers, authorities, additional = struct.unpack_from("!6H", data)
    if flags & 0x8000:
        raise NotAQuestion("an answer")

    def refuse(code: int, why: str) -> NotAQuestion:
        return NotAQuestion(
            why, struct.pack("!6H", identifier, 0x8000 | flags & 0x7900 | 0x80 | code, 0, 0, 0, 0)
        )

    if flags & 0x7800:
        raise refuse(NOTIMP, "not a standard query")
    if questions != 1 or answers or authorities:
        raise refuse(FORMERR, "not exactly one question")
    labels: list[bytes] = []
    at, total = 12, 0
    while True:
        if at >= len(data):
            raise refuse(FORMERR, "name cut short")
        length = data[at]
        at += 1
        if length == 0:
            break
        total += length + 1
        if length > 63 or at + length > len(data) or total > 254:
            raise refuse(FORMERR, "bad label")
        labels.append(data[at : at + length])
        at += length
    if at + 4 > len(data):
        raise refuse(FORMERR, "question cut short")
    kind, klass = struct.unpack_from("!2H", data, at)
    at += 4
    size = PLAIN_UDP
    # Clients put their OPT record first among the additional ones, or alone; anything else there does not concern us.
    if additional and at + 11 <= len(data) and data[at] == 0 and data[at + 1 : at + 3] == b"\0\x29":
        size = max(PLAIN_UDP, min(LARGEST_UDP, struct.unpack_from("!H", data, at + 3)[0]))
    name = b".".join(labels).decode("latin-1").lower()
    return Question(identifier, flags, name, kind, klass, data[12 : 12 + total + 5], size)


def answer(
    question: Question, records: Sequence[tuple[int, bytes]], *, code: int = NOERROR, ttl: int = 0, limit: int
) -> bytes:
    """Records are (type, data), all about the question's own name. What does not fit ``limit`` sets the truncated bit."""
    body = bytearray()
    count = 0
    flags = 0x8480 | question.flags & 0x0100 | code  # answer, authoritative, recursion available
    for kind, data in records:
        packed = _NAME_POINTER + struct.pack("!HHIH", kind, IN, ttl, len(data)) + data
        if 12 + len(question.section) + len(body) + len(packed) > limit:
            flags |= 0x0200
            break
        body += packed
        count += 1
    return struct.pack("!6H", question.id, flags, 1, count, 0, 0) + question.section + bytes(body)


def failure(question: Question, code: int) -> bytes:
    """An answer that only says what went wrong; not authoritative."""
    flags = 0x8080 | question.flags & 0x0100 | code
    return struct.pack("!6H", question.id, flags, 1, 0, 0, 0) + question.section


def pack_name(name: str) -> bytes:
    """Labels longer than 63 bytes are cut, names longer than 254 too: better a wrong name than no answer."""
    packed = b""
    for label in name.encode("latin-1", "replace").split(b"."):
        if label:
            packed += bytes([len(label[:63])]) + label[:63]
    return packed[:254] + b"\0" if len(packed) <= 254 else b"\0"


def pack_address(address: str) -> bytes:
    return ipaddress.IPv4Address(address).packed


def reversed_address(name: str) -> str:
    """ "4.3.2.1.in-addr.arpa" -> "1.2.3.4"; empty when it is no such name."""
    suffix = ".in-addr.arpa"
    if not name.endswith(suffix):
        return ""
    parts = name.removesuffix(suffix).split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and len(part) <= 3 for part in parts):
        return ""
    return ".".join(str(int(part)) for part in reversed(parts))


# --- the client's half


def query(identifier: int, name: str, kind: int, *, size: int = 0) -> bytes:
    additional = b"\0" + struct.pack("!HHIH", OPT, size, 0, 0) if size else b""
    header = struct.pack("!6H", identifier, 0x0100, 1, 0, 0, 1 if size else 0)
    return header + pack_name(name) + struct.pack("!2H", kind, IN) + additional


def read_reply(data: bytes) -> Reply:
    """Decode an answer of ours or a server's. Raises ``ValueError`` for bytes that are none."""
    if len(data) < 12:
        raise ValueError("shorter than a header")
    identifier, flags, questions, answers, _, _ = struct.unpack_from("!6H", data)
    if not flags & 0x8000:
        raise ValueError("a question")
    at = 12
    try:
        for _ in range(questions):
            _, at = _read_name(data, at)
            at += 4
        found = []
        for _ in range(answers):
            name, at = _read_name(data, at)
            kind, _, ttl, length = struct.unpack_from("!HHIH", data, at)
            at += 10
            if at + length > len(data):
                raise ValueError("record cut short")
            text = data[at : at + length].hex()
            if kind == A and length == 4:
                text = str(ipaddress.IPv4Address(data[at : at + 4]))
            elif kind == PTR:
                text = _read_name(data, at)[0]
            found.append((name, kind, ttl, text))
            at += length
    except (struct.error, IndexError) as error:
        raise ValueError("cut short") from error
    return Reply(identifier, flags & 0xF, bool(flags & 0x0200), bool(flags & 0x0400), tuple(found))


def _read_name(data: bytes, at: int) -> tuple[str, int]:
    labels: list[str] = []
    end = -1
    for _ in range(128):
        length = data[at]
        if length & 0xC0 == 0xC0:
            end = at + 2 if end < 0 else end
            at = struct.unpack_from("!H", data, at)[0] & 0x3FFF
            continue
        at += 1
        if length == 0:
            return ".".join(labels), at if end < 0 else end
        labels.append(data[at : at + length].decode("latin-1"))
        at += length
    raise ValueError("a name without end")
