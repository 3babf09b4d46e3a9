"""Whether this host can write what it has to, in its state directory.

A host that cannot takes no tasks and has no manager side until it can again; both ask here. Looks at what the file systems say, and after a
write has failed for a reason they do not show (a quota, a disk that fails) only a write that succeeds counts.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

LOW = 2 << 20  # bytes: an entry of Raft's log and its surroundings no longer fit for certain
ENOUGH = 3 << 20
FEW_FILES = 64
PROBE = b"\0" * (64 << 10)
FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class Room:
    """``look`` once a second."""

    def __init__(self, folder: Path, statvfs: Callable[[Path], os.statvfs_result] = os.statvfs) -> None:
        self._folder = folder
        self._statvfs = statvfs
        self._failed = ""  # what a write failed of; until one succeeds
        self.trouble = ""

    def failed(self, err: OSError) -> bool:
        """A write failed; whether for want of room."""
        if err.errno not in FAILURES:
            return False
        self._failed = os.strerror(err.errno)
        self.look()
        return True

    def look(self) -> str:
        """Why this host cannot write, "" when it can."""
        found = self._want()
        if not found and self._failed:
            found = self._probe()
            self._failed = found and self._failed
        if found != self.trouble:
            if bool(found) != bool(self.trouble):
                log.log(
                    logging.WARNING if found else logging.INFO,
                    "%s",
                    found or "there is room on this host's disk again",
                )
            self.trouble = found
        return self.trouble

    def _want(self) -> str:
        folder = self._folder
        try:
            status = self._statvfs(folder)
        except OSError:
            return ""  # it is not there: others say so better
        if status.f_flag & os.ST_RDONLY:
            return f"{os.strerror(errno.EROFS)}: {folder}"
        if not status.f_blocks:
            return ""  # a file system that does not count
        if status.f_bavail * status.f_frsize < (ENOUGH if self.trouble else LOW):
            return f"{os.strerror(errno.ENOSPC)}: {folder}"
        if status.f_files and status.f_favail < FEW_FILES:
            return f"{os.strerror(errno.ENOSPC)}: {folder} has no more inodes"
        return ""

    def _probe(self) -> str:
        """Write, sync and remove."""
        path = self._folder / ".room"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                rest = memoryview(PROBE)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
                path.unlink(missing_ok=True)
        except OSError as err:
            return f"{os.strerror(err.errno or errno.EIO)}: {self._folder}"
        return ""
