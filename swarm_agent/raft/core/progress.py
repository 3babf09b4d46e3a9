"""What a leader knows about one peer's log.

    PROBE       unsure where the logs agree: one append at a time, then wait for an answer or a heartbeat's reply
    REPLICATE   agreed: appends flow optimistically, bounded by a window
    SNAPSHOT    the entries it needs are gone: nothing flows until the snapshot's outcome is reported

Invariants: 0 <= match < next; outside REPLICATE the window is empty. States change only in ``become_*``.
"""

from __future__ import annotations

import enum
from collections import deque


class Flow(enum.StrEnum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    __slots__ = (
        "_window",
        "_window_size",
        "flow",
        "last_seen",
        "match",
        "next",
        "read_round",
        "sent_commit",
        "waiting",
        "wake",
    )

    def __init__(self, next_index: int, window: int, now: int) -> None:
        self.match = 0
        self.next = next_index
        self.flow = Flow.PROBE
        self.waiting = False  # PROBE: an append is out
        self.wake = True  # send an append even if there is nothing new
        self.sent_commit = 0
        self.last_seen = now  # tick of its last answer
        self.read_round = 0  # highest read round it confirmed
        self._window: deque[int] = deque()  # last index of each append in flight
        self._window_size = window

    def become_probe(self) -> None:
        self._reset(Flow.PROBE)
        self.next = self.match + 1
        self.wake = True

    def become_replicate(self) -> None:
        self._reset(Flow.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self) -> None:
        self._reset(Flow.SNAPSHOT)

    def _reset(self, flow: Flow) -> None:
        self.flow = flow
        self.waiting = False
        self.wake = False
        self._window.clear()

    @property
    def paused(self) -> bool:
        if self.flow is Flow.REPLICATE:
            return len(self._window) >= self._window_size
        return self.waiting or self.flow is Flow.SNAPSHOT

    def sent(self, last: int, count: int, commit: int) -> None:
        """An append with ``count`` entries up to ``last`` left for the peer."""
        self.wake = False
        self.sent_commit = max(self.sent_commit, commit)
        if self.flow is Flow.PROBE:
            self.waiting = True
        elif count:
            self.next = last + 1
            self._window.append(last)

    def accepted(self, index: int) -> bool:
        """The peer holds everything up to ``index``. True if that was news."""
        news = index > self.match
        if news:
            self.match = index
            self.waiting = False
        self.next = max(self.next, self.match + 1)
        while self._window and self._window[0] <= index:
            self._window.popleft()
        return news

    def rejected(self, index: int, agreement: int) -> bool:
        """The append after ``index`` did not fit; ``agreement`` is where the logs may meet. False for old news."""
        if index <= self.match:
            return False  # a late copy; or a peer that forgot what it acknowledged, and asking at once would never end
        if self.flow is Flow.REPLICATE:
            self.become_probe()
            return True
        if self.next - 1 != index:
            return False
        self.next = max(min(index, agreement + 1), self.match + 1)
        self.waiting = False
        self.wake = True
        return True

    def heard(self, last_index: int) -> None:
        """A heartbeat came back. Whatever was lost on the way must be noticed now: nothing else would ever tell."""
        self.waiting = False
        if self._window and len(self._window) >= self._window_size:
            self._window.popleft()
        if self.match < last_index:
            self.wake = True

    def snapshot_done(self, index: int | None) -> None:
        """The peer has the snapshot at ``index``, or None: it failed. Either way ask again where it stands, after it
        has been heard of."""
        if self.flow is not Flow.SNAPSHOT:
            return
        self.become_probe()
        if index is not None:
            self.next = max(self.next, index + 1)
        self.waiting = True
