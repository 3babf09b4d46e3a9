"""A network in memory that loses, delays, repeats, reorders and cuts, as a seed says.

Endpoints are addresses. ``transport(addr)`` is what a daemon sends with (``raft.wire.Transport``), ``attach(addr, receive)`` is where its
frames arrive. Nothing is delivered within ``send``: even without delay it takes one pass of the loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Protocol

import msgspec


class Addressed(Protocol):
    @property
    def addr(self) -> str: ...


class LinkFaults(msgspec.Struct, frozen=True, kw_only=True):
    """What a link does to each frame. Times in seconds, the others are probabilities."""

    delay_min: float = 0.0001
    delay_max: float = 0.0005
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """A reordered frame may be overtaken: it does not hold back those behind it, and is late by up to ``reorder_s``."""
    reorder_s: float = 0.2


class FakeNet:
    def __init__(self, rng: random.Random, faults: LinkFaults | None = None) -> None:
        self._rng = rng
        self.faults = faults or LinkFaults()
        self._receivers: dict[str, Callable[[bytes], None]] = {}
        self._cut: dict[tuple[str, str], None] = {}
        self._last_arrival: dict[tuple[str, str], float] = {}
        self._context = copy_context()  # frames travel in no sender's process and by no sender's clock
        self.sent = 0
        self.delivered = 0
        self.on_frame: Callable[[str, str, bytes], bool] | None = None
        """Sees every frame (from, to, bytes) as it is sent; False drops it. For directed tests."""

    def transport(self, addr: str) -> FakeTransport:
        return FakeTransport(self, addr)

    def attach(self, addr: str, receive: Callable[[bytes], None]) -> None:
        self._receivers[addr] = receive

    def detach(self, addr: str) -> None:
        """The process is gone; what is under way to it is lost."""
        self._receivers.pop(addr, None)

    def cut(self, source: str, target: str) -> None:
        """One way: nothing passes from ``source`` to ``target``, nor does what is under way."""
        self._cut[source, target] = None

    def partition(self, *groups: Iterable[str]) -> None:
        """Both ways between the groups, replacing what was cut before."""
        self.heal()
        sides = [list(group) for group in groups]
        for i, side in enumerate(sides):
            for other in sides[i + 1 :]:
                for a in side:
                    for b in other:
                        self.cut(a, b)
                        self.cut(b, a)

    def isolate(self, addr: str, others: Iterable[str]) -> None:
        for other in others:
            if other != addr:
                self.cut(addr, other)
                self.cut(other, addr)

    def heal(self) -> None:
        self._cut.clear()

    def send(self, source: str, target: str, frame: bytes) -> None:
        self.sent += 1
        if self.on_frame is not None and not self.on_frame(source, target, frame):
            return
        faults, rng = self.faults, self._rng
        if faults.drop and rng.random() < faults.drop:
            return
        copies = 2 if faults.duplicate and rng.random() < faults.duplicate else 1
        for _ in range(copies):
            self._context.run(self._schedule, source, target, frame)

    def _schedule(self, source: str, target: str, frame: bytes) -> None:
        loop, faults, rng = asyncio.get_running_loop(), self.faults, self._rng
        link = (source, target)
        arrival = loop.time() + rng.uniform(faults.delay_min, faults.delay_max)
        if faults.reorder and rng.random() < faults.reorder:
            arrival += rng.uniform(0, faults.reorder_s)
        else:
            arrival = max(arrival, self._last_arrival.get(link, 0.0) + 1e-6)
            self._last_arrival[link] = arrival
        loop.call_at(arrival, self._deliver, source, target, frame)

    def _deliver(self, source: str, target: str, frame: bytes) -> None:
        receive = self._receivers.get(target)
        if receive is None or (source, target) in self._cut:
            return
        self.delivered += 1
        receive(frame)


class FakeTransport:
    """One endpoint's way out. ``close`` silences it, as a crash of its process would."""

    def __init__(self, net: FakeNet, addr: str) -> None:
        self._net = net
        self._addr = addr
        self._open = True

    def send(self, to: Addressed, frame: bytes) -> None:
        if self._open:
            self._net.send(self._addr, to.addr, frame)

    def close(self) -> None:
        self._open = False
