"""The log and the snapshots on disk."""

from __future__ import annotations

from swarm_agent.raft.log.records import Codec, PlainCodec
from swarm_agent.raft.log.sealed import DataKey, DataKeys, SealedCodec, new_data_key
from swarm_agent.raft.log.snapshots import Owner
from swarm_agent.raft.log.store import Log, Recovered

__all__ = [
    "Codec",
    "DataKey",
    "DataKeys",
    "Log",
    "Owner",
    "PlainCodec",
    "Recovered",
    "SealedCodec",
    "new_data_key",
]
