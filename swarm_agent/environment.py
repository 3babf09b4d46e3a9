"""Where the daemon touches the world beyond its host's engine and network: what a simulation puts something else in place of.

``docs/design/simulation.md`` says what stands there in virtual time. Randomness is passed as a ``random.Random`` beside it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from swarm_agent.addresses import own_address
from swarm_agent.agent.disk_room import Room
from swarm_agent.agent.host_ports import IsFree, nobody_listens
from swarm_agent.agent.lease import LeaseFolder, LeaseGuard
from swarm_agent.agent.tmpfs_files import Files, TmpfsFiles
from swarm_agent.ca import ca
from swarm_agent.ca.join_server import Https, JoinTransport
from swarm_agent.guard import boottime
from swarm_agent.network.probe import Echoes, EchoSocket
from swarm_agent.raft import Disk, LoopHost, OwnThread, RealDisk
from swarm_agent.rpc.grpc import Grpc, Rpc
from swarm_agent.rpc.raft_links import RaftLinks, Tls


@dataclass(frozen=True)
class Environment:
    """The real world, unless told otherwise."""

    now: Callable[[], int] = time.time_ns
    """The clock on the wall, nanoseconds since the epoch; durations are the loop's business."""

    boottime: Callable[[], float] = boottime
    """The clock of leases: seconds, never set, counts sleep."""

    guard: Callable[[str], LeaseGuard] = LeaseFolder
    """Who kills what a dead daemon left running under a lease; for an engine's socket."""

    rpc: Rpc = field(default_factory=Grpc)
    join_transport: JoinTransport = field(default_factory=Https)
    links: RaftLinks = field(default_factory=Tls)
    """Raft's connections."""

    home: Callable[[], LoopHost] = OwnThread
    """The loop Raft runs on."""

    disk: Callable[[Path], Disk] = RealDisk
    """Raft's, for a directory."""

    files: Files = field(default_factory=TmpfsFiles)
    """Where secrets and configs of this host's tasks lie."""

    echoes: Callable[[], Echoes] = EchoSocket
    """How this host asks whether others are there."""

    room: Callable[[Path], Room] = Room
    """Whether this host can write, for its state directory."""

    port_is_free: IsFree = nobody_listens
    certificates: ca.Source = ca.SYSTEM
    address: Callable[[str, str], Awaitable[str]] = own_address
    """Which address of this host is meant: (what was asked for, which option asked)."""
