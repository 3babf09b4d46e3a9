"""The replicated tables: records, indexes, checked writes, watches, overlay views. Pure.

Owns what an entry of the log means. Refuses to know how an entry gets agreed on (``raft``), who decides what to write
(``control``, ``api``, ``dispatcher``) and what time it is (an entry carries it).
"""

from __future__ import annotations

from swarm_agent.store.pending_view import PendingView
from swarm_agent.store.snapshots import DamagedSnapshot
from swarm_agent.store.store import ApplyResult, Change, Store
from swarm_agent.store.tables import Rows, View, slot_key
from swarm_agent.store.writes import (
    Delete,
    Group,
    Put,
    SetStatus,
    StoreEntry,
    UnknownEntry,
    Write,
    decode_entry,
    encode_entry,
)

__all__ = [
    "ApplyResult",
    "Change",
    "DamagedSnapshot",
    "Delete",
    "Group",
    "PendingView",
    "Put",
    "Rows",
    "SetStatus",
    "Store",
    "StoreEntry",
    "UnknownEntry",
    "View",
    "Write",
    "decode_entry",
    "encode_entry",
    "slot_key",
]
