"""What makes this host a member, in memory and on its disk: membership, certificate and key, and what locks a manager's keys."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import msgspec

from swarm_agent.ca.identity_files import NodeIdentity, remove_identity, save_identity
from swarm_agent.ca.join_server import ManagerAddress
from swarm_agent.ca.key_file import Entropy, KeyFile, remove_keys
from swarm_agent.node.membership import MembershipRecord, forget_membership, save_membership

log = logging.getLogger(__name__)


class NodeStateFiles:
    """Changes are on disk before anybody sees them."""

    def __init__(
        self, state_dir: Path, membership: MembershipRecord, identity: NodeIdentity, keys: KeyFile | None
    ) -> None:
        self.state_dir = state_dir
        self.membership = membership
        self._saved = membership  # as it is on disk
        self.identity = identity
        self.keys = keys  # a manager's, and of one on its way down until its certificate says so

    @property
    def raft_dir(self) -> Path:
        return self.state_dir / "raft"

    def remember(self, **changes: object) -> None:
        """Change our membership."""
        changed = msgspec.structs.replace(self.membership, **changes)
        if changed != self._saved:
            save_membership(self.state_dir, changed)
            self._saved = changed
        self.membership = changed

    def hear_of(self, managers: tuple[ManagerAddress, ...]) -> None:
        """Where the managers are. A full disk is no reason to go without knowing: we are told again."""
        try:
            self.remember(managers=managers)
        except OSError as err:
            self.membership = msgspec.structs.replace(self.membership, managers=managers)
            log.error(
                "cannot write down where the managers are, free some space in %s: %s", self.state_dir, err
            )

    def take(self, identity: NodeIdentity) -> None:
        """A renewed certificate. On disk first: a start after the old one's end must find the new one."""
        save_identity(self.state_dir, identity, self.keys)
        self.identity = identity

    def have_keys(self, entropy: Entropy) -> KeyFile:
        """A manager's keys, new ones if this host has none yet."""
        if self.keys is None:
            self.keys = KeyFile.create(
                self.state_dir,
                entropy,
                plain_log=any(self.raft_dir.glob("*.wal")),  # of a release that did not encrypt
            )
        return self.keys

    def drop_keys(self) -> None:
        """A worker's private key lies plain, and it has no log that wants one."""
        if self.keys is not None:
            save_identity(self.state_dir, self.identity)
            remove_keys(self.state_dir)
            self.keys = None

    def drop_log(self) -> None:
        """What a manager remembers is nothing to a worker."""
        shutil.rmtree(self.raft_dir, ignore_errors=True)
        self.remember(raft_id=0)

    def forget(self) -> None:
        """Remove all that makes this host a member."""
        shutil.rmtree(self.raft_dir, ignore_errors=True)
        forget_membership(self.state_dir)
        remove_identity(self.state_dir)
        remove_keys(self.state_dir)
