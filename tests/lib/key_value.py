"""A small replicated store for tests of agreement: registers and lists, and a digest of everything that was ever applied.

``read`` answers from the local state; whoever wants the truth asks for a read barrier first. ``apply`` answers with the entry's index and
what the command came to.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

import msgspec

PIECE = 300  # bytes: small, so that a snapshot is a transfer of several chunks
Value = int | tuple[int, ...] | None


class Command(msgspec.Struct, frozen=True, array_like=True):
    """``kind`` is write, cas or append. ``serial`` makes two equal commands different entries."""

    serial: int
    kind: str
    key: str
    value: int
    expected: int | None = None
    padding: bytes = b""


class Applied(msgspec.Struct, frozen=True, array_like=True):
    index: int
    done: bool  # False: a compare-and-swap that found another value


class _State(msgspec.Struct, array_like=True):
    index: int = 0
    count: int = 0
    digest: int = 0
    registers: dict[str, int] = {}
    lists: dict[str, list[int]] = {}


_encoder = msgspec.msgpack.Encoder()
_command = msgspec.msgpack.Decoder(Command)
_state = msgspec.msgpack.Decoder(_State)


def encode(command: Command) -> bytes:
    return _encoder.encode(command)


def chain(digest: int, index: int, term: int, data: bytes) -> int:
    """The digest after one more entry: equal digests mean equal histories, as far as 32 bits can tell."""
    return zlib.crc32(b"%d.%d." % (index, term) + data, digest)


class KeyValue:
    def __init__(self, on_apply: Callable[[int, int, bytes], None] | None = None) -> None:
        self._state = _State()
        self._on_apply = on_apply
        self.restored = 0

    @property
    def index(self) -> int:
        """Of the last entry that was applied."""
        return self._state.index

    @property
    def digest(self) -> tuple[int, int, int]:
        """Last index, number of entries, and the digest over all of them."""
        state = self._state
        return state.index, state.count, state.digest

    def read(self, key: str) -> Value:
        if key in self._state.lists:
            return tuple(self._state.lists[key])
        return self._state.registers.get(key)

    def apply(self, index: int, term: int, data: bytes) -> object:
        state = self._state
        if index <= state.index:
            raise AssertionError(f"entry {index} applied after {state.index}")
        state.index = index
        state.count += 1
        state.digest = chain(state.digest, index, term, data)
        if self._on_apply is not None:
            self._on_apply(index, term, data)
        return Applied(index, self._carry_out(_command.decode(data)))

    def _carry_out(self, command: Command) -> bool:
        registers = self._state.registers
        if command.kind == "append":
            self._state.lists.setdefault(command.key, []).append(command.value)
            return True
        if command.kind == "cas" and registers.get(command.key) != command.expected:
            return False
        registers[command.key] = command.value
        return True

    def snapshot(self) -> Iterable[bytes]:
        data = _encoder.encode(self._state)
        return [data[at : at + PIECE] for at in range(0, len(data), PIECE)]

    def restore(self, index: int, pieces: Iterable[bytes]) -> None:
        self._state = _state.decode(b"".join(pieces))
        self.restored += 1
        if self._state.index > index:
            raise AssertionError(f"a snapshot at {index} holds entry {self._state.index}")
