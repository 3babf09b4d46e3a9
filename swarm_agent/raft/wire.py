"""Frames: what one ``Transport.send`` carries.

A frame names its cluster and its sender (with the address to answer to, which a joining member has no other way to know) and
holds many messages. Snapshots travel as chunks in frames of their own, one at a time, each with a receipt.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from swarm_agent.raft.core.conf import Member
from swarm_agent.raft.core.messages import Message, SnapshotMeta


class SnapshotChunk(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """Piece ``number``, from 0, of a snapshot. ``transfer`` names one attempt of one sender."""

    frm: int
    to: int
    term: int
    transfer: int
    meta: SnapshotMeta
    number: int
    last: bool
    data: bytes


class ChunkReceipt(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """``wanted``: the number of the piece the receiver wants next; one past the last once it has everything."""

    frm: int
    to: int
    transfer: int
    wanted: int


FrameItem = Message | SnapshotChunk | ChunkReceipt


class Frame(msgspec.Struct, frozen=True, array_like=True):
    cluster_id: str
    sender: Member
    items: tuple[FrameItem, ...]


class Transport(Protocol):
    """Frames to peers. Lives on Raft's loop; what arrives goes to ``RaftNode.receive`` there."""

    def send(self, to: Member, frame: bytes) -> None:
        """Never blocks, never raises; may drop, repeat and reorder."""
        ...


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def encode(frame: Frame) -> bytes:
    return _encoder.encode(frame)


def decode(data: bytes) -> Frame:
    """Raises ``msgspec.MsgspecError`` for bytes that are no frame."""
    return _decoder.decode(data)
