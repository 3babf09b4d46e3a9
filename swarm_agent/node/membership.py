"""What this host remembers of its membership between two starts: ``<state>/membership.json``."""

from __future__ import annotations

from pathlib import Path

import msgspec

from swarm_agent.ca.identity_files import write_atomically
from swarm_agent.ca.join_server import ManagerAddress
from swarm_agent.objects.errors import InvalidSpec


class MembershipRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Which cluster, who we are in it, where we stand."""

    cluster_id: str
    node_id: str
    role: str  # the role our certificate has
    advertise_host: str
    listen_host: str = "0.0.0.0"
    join_port: int = 2377
    data_addr: str
    raft_id: int = 0
    managers: tuple[ManagerAddress, ...] = ()


def save_membership(state_dir: Path, membership: MembershipRecord) -> None:
    write_atomically(state_dir / "membership.json", msgspec.json.encode(membership))


def load_membership(state_dir: Path) -> MembershipRecord | None:
    """InvalidSpec when the file is there but makes no sense."""
    path = state_dir / "membership.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=MembershipRecord)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as err:
        raise InvalidSpec(
            f"{path}: {err}: restore it from a backup, or remove {state_dir} to leave the swarm"
        ) from err


def forget_membership(state_dir: Path) -> None:
    (state_dir / "membership.json").unlink(missing_ok=True)
