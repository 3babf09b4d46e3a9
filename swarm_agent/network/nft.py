"""Loading nftables text: libnftables kept open per namespace (0.4 ms an update), else one ``nft -f -`` each (16 ms).

Owns: the library's contexts. Refuses: writing rules (``rules``). A context acts for ever on the namespace it was made
in, whatever the thread does later; contexts are not shared between threads.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
import subprocess
from typing import Protocol

from swarm_agent.network import namespaces

log = logging.getLogger(__name__)

_NAMES = ("libnftables.so.1",)


class NftError(Exception):
    """A transaction was refused; nothing of it was done."""


class Loader(Protocol):
    def run(self, text: str) -> None: ...
    def close(self) -> None: ...


class _Library:
    """libnftables in this process, acting on one namespace."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._context = library.nft_ctx_new(0)
        if not self._context:
            raise NftError("libnftables gave no context: is nf_tables in the kernel?")
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def run(self, text: str) -> None:
        if not text:
            return
        if self._library.nft_run_cmd_from_buffer(self._context, text.encode()) != 0:
            raise NftError(
                self._library.nft_ctx_get_error_buffer(self._context).decode(errors="replace").strip()
            )

    def close(self) -> None:
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None


class _Command:
    """The ``nft`` program, run anew for each transaction."""

    def __init__(self, netns: str | None) -> None:
        self._netns = netns

    def run(self, text: str) -> None:
        if not text:
            return
        if self._netns is None:
            self._load(text)
            return
        with namespaces.entered(self._netns):
            self._load(text)

    @staticmethod
    def _load(text: str) -> None:
        try:
            done = subprocess.run(
                ["nft", "-f", "-"], input=text, capture_output=True, text=True, timeout=60, check=False
            )
        except FileNotFoundError as error:
            raise NftError(
                "neither libnftables.so.1 nor the nft program is here: install nftables"
            ) from error
        if done.returncode != 0:
            raise NftError(done.stderr.strip())

    def close(self) -> None:
        pass


def _load_library() -> ctypes.CDLL | None:
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for function in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, function).argtypes = [ctypes.c_void_p]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        return library
    log.warning("libnftables.so.1 is not here: every rule update starts the nft program instead (16 ms each)")
    return None


class Loaders:
    """Opens loaders; finds out once whether the library is there."""

    def __init__(self, *, library: bool = True) -> None:
        self._library = _load_library() if library else None

    def open(self, netns: str | None) -> Loader:
        """A loader for the named namespace, or for the one this thread is in."""
        if self._library is None:
            return _Command(netns)
        if netns is None:
            return _Library(self._library)
        with namespaces.entered(netns):
            return _Library(self._library)
