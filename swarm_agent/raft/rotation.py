"""Changing the data key of a log in steps that may be cut short anywhere.

1. The new key is durable in the key file, beside the old ones.
2. What is written from now on is sealed with it.
3. A new segment is begun; a snapshot covers everything in older ones; they and older snapshots are removed, for good.
4. The old keys leave the key file.

A start after a cut finds all keys its files need: old keys go only after the last file that needs them. ``finish`` takes up
what was cut short, and the upgrade of files from before encryption is a rotation without step 1.

Owns this order. Refuses to know how keys are kept (``save`` does, durable when it returns) and when to change them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from swarm_agent.raft.log.sealed import DataKey, DataKeys, SealedCodec

SaveKeys = Callable[[DataKeys], Awaitable[None]]


class Rotates(Protocol):
    """``RaftNode``, as far as this module asks of it."""

    async def rotate_log(self) -> None: ...


async def rotate(node: Rotates, codec: SealedCodec, save: SaveKeys, new: DataKey) -> None:
    """After this nothing is sealed with any key but ``new``, and no other is kept. Waits for a majority as long as it takes."""
    keys = codec.keys.and_then(new)
    await save(keys)
    codec.use(keys)
    await finish(node, codec, save)


async def finish(node: Rotates, codec: SealedCodec, save: SaveKeys) -> None:
    """Steps 3 and 4, for the current key."""
    if codec.keys.settled:
        return
    await node.rotate_log()
    keys = codec.keys.only_current()
    await save(keys)
    codec.use(keys)
