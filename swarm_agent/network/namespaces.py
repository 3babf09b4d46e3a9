"""Named network namespaces, as ``ip netns`` keeps them: a file under ``/run/netns`` with the namespace mounted on it.

Owns: making, removing, entering them, and the sysctls inside. Refuses: knowing what they are for.
Standard library only, because netd uses it too (Python 3.11 has no ``os.setns``). Entering changes the calling *thread*
only; never await inside ``entered``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

CLONE_NEWNET: Final = 0x40000000
MS_BIND, MS_REC, MS_SHARED = 4096, 16384, 1 << 20
MNT_DETACH: Final = 2

FOLDER: Final = Path("/run/netns")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, flags: int) -> None:
    _check(
        _libc.mount(source.encode(), target.encode(), b"none", ctypes.c_ulong(flags), None), f"mount {target}"
    )


def path_of(name: str) -> Path:
    return FOLDER / name


def entered(name: str) -> contextlib.AbstractContextManager[None]:
    """This thread works in the named namespace until the block ends."""
    return entered_at(path_of(name))


@contextlib.contextmanager
def entered_at(path: Path) -> Iterator[None]:
    """As ``entered``, for a namespace's file anywhere."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(target, CLONE_NEWNET), f"enter namespace {path.name}")
        finally:
            os.close(target)
        try:
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNET), "return from namespace")
    finally:
        os.close(home)


def names(prefix: str) -> list[str]:
    try:
        return sorted(entry.name for entry in FOLDER.iterdir() if entry.name.startswith(prefix))
    except FileNotFoundError:
        return []


def usable(name: str) -> bool:
    """A file of that name exists and is a network namespace (after a crash it may be an empty file)."""
    try:
        with entered(name):
            return True
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.EINVAL}:
            return False
        raise


def make(name: str) -> bool:
    """Make the namespace unless it is there; True when it was made. A new one has ``lo`` down and kernel defaults."""
    if usable(name):
        return False
    _prepare_folder()
    target = path_of(name)
    with contextlib.suppress(OSError):
        target.unlink()
    os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_NEWNET), "make a network namespace")
        try:
            _mount("/proc/thread-self/ns/net", str(target), MS_BIND)
        finally:
            _check(_libc.setns(home, CLONE_NEWNET), "return from namespace")
    except OSError:
        target.unlink(missing_ok=True)
        raise
    finally:
        os.close(home)
    return True


def hold() -> int:
    """A file descriptor of the namespace this thread is in; it keeps the namespace there, whatever becomes of its name."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def restore(name: str, held: int) -> None:
    """Give a namespace its name back, whatever has it now."""
    _prepare_folder()
    remove(name)
    target = path_of(name)
    os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
    try:
        _mount(f"/proc/self/fd/{held}", str(target), MS_BIND)
    except OSError:
        target.unlink(missing_ok=True)
        raise


def remove(name: str) -> None:
    """Take the name away. The namespace itself goes when nothing uses it any more: delete its links first."""
    target = path_of(name)
    if not target.exists():
        return
    while _libc.umount2(str(target).encode(), MNT_DETACH) == 0:
        pass
    target.unlink(missing_ok=True)


def identity(name: str) -> int:
    """Inode of the namespace; 0 when there is none. Tells a namespace made anew from the one known before."""
    try:
        return path_of(name).stat().st_ino
    except FileNotFoundError:
        return 0


def _prepare_folder() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    # Shared, so that the engine's and netd's mount namespaces see what is mounted later (as `ip netns add` does).
    try:
        _mount("", str(FOLDER), MS_SHARED | MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _mount(str(FOLDER), str(FOLDER), MS_BIND | MS_REC)
        _mount("", str(FOLDER), MS_SHARED | MS_REC)


def set_sysctl(key: str, value: str) -> bool:
    """Write one kernel setting of this thread's namespace; True when it differed. ``key`` uses slashes."""
    path = Path("/proc/sys") / key
    if path.read_text().strip() == value:
        return False
    path.write_text(value)
    return True
