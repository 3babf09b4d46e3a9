"""The log as the core sees it: in memory, from the last compaction on.

Owns the entries and three positions in them; refuses to know disks, terms of office or peers.

Invariants (``validate``):
    base <= commit <= last            what is committed is never cut away
    base <= stable <= last            stable: on disk here and equal to what is held
    handed <= min(commit, stable)     handed: given to the state machine
Entry ``i`` is held at position ``i - base - 1``; ``base`` itself is only known by index and term.
"""

from __future__ import annotations

from collections.abc import Sequence

from swarm_agent.raft.core.messages import Entry


class Divergence(Exception):
    """A committed entry would change. Some member broke the protocol or lost its disk; going on would spread it."""


class EntryLog:
    def __init__(
        self, base_index: int = 0, base_term: int = 0, entries: Sequence[Entry] = (), *, applied: int = 0
    ) -> None:
        self.base_index = base_index
        self.base_term = base_term
        self._entries = list(entries)
        self.commit = self.handed = max(base_index, applied)
        self.stable = base_index + len(self._entries)
        self._writing = 0  # last entry of the batch now being written, 0 when there is none

    @property
    def first_index(self) -> int:
        return self.base_index + 1

    @property
    def last_index(self) -> int:
        return self.base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.base_term

    def term(self, index: int) -> int | None:
        """None when the entry is compacted away or not there yet."""
        offset = index - self.base_index - 1
        if offset == -1:
            return self.base_term
        if 0 <= offset < len(self._entries):
            return self._entries[offset].term
        return None

    def slice(self, low: int, high: int) -> list[Entry]:
        """Entries ``low`` to ``high``, both included."""
        return self._entries[low - self.base_index - 1 : high - self.base_index]

    def slice_bytes(self, low: int, max_bytes: int) -> list[Entry]:
        """Entries from ``low`` on, at least one if there is one, otherwise at most so many bytes."""
        start = low - self.base_index - 1
        end, room = start, max_bytes
        held = self._entries
        while end < len(held):
            room -= len(held[end].data)
            if room < 0 and end > start:
                break
            end += 1
        return held[start:end]

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends so is at least as complete as ours (section 5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def append(self, entries: Sequence[Entry]) -> None:
        """Only a leader may call this: it never overwrites."""
        self._entries.extend(entries)

    def merge(self, prev_index: int, prev_term: int, entries: Sequence[Entry]) -> int | None:
        """Take over a leader's entries after ``prev``; the last index now known equal, or None if ``prev`` does not fit.

        Cuts only at a real conflict: a late, shorter copy of an append must not cut what came after it.
        """
        if self.term(prev_index) != prev_term:
            return None
        for position, entry in enumerate(entries):
            known = self.term(entry.index)
            if known == entry.term:
                continue
            if known is not None:
                self._cut(entry.index)
            self._entries.extend(entries[position:])
            break
        return prev_index + len(entries)

    def _cut(self, index: int) -> None:
        if index <= self.commit:
            raise Divergence(f"entry {index} is committed and a leader sent a different one")
        del self._entries[index - self.base_index - 1 :]
        self.stable = min(self.stable, index - 1)
        self._writing = min(self._writing, index - 1)

    def agreement_hint(self, index: int, term: int) -> tuple[int, int]:
        """The highest of our entries at or below ``index`` whose term is at most ``term``: above it no agreement is
        possible, whatever the other log holds. Skips whole terms instead of one entry a round trip."""
        index = min(index, self.last_index)
        if index < self.base_index:
            return index, term  # compacted here: nothing to add
        while index > self.base_index:
            own = self.term(index)
            if own is not None and own <= term:
                return index, own
            index -= 1
        return self.base_index, self.base_term

    def unstable(self) -> tuple[Entry, ...]:
        return tuple(self._entries[self.stable - self.base_index :])

    def begin_write(self) -> None:
        self._writing = self.last_index

    def end_write(self) -> None:
        """What was being written is on disk, but for what was cut meanwhile."""
        self.stable = max(self.stable, self._writing)
        self._writing = 0

    def hand_over(self, most: int) -> tuple[Entry, ...]:
        """The next committed entries, durable here, for the state machine."""
        end = min(self.commit, self.stable, self.handed + most)
        if end <= self.handed:
            return ()
        handed = tuple(self.slice(self.handed + 1, end))
        self.handed = end
        return handed

    def compact(self, index: int) -> None:
        """Forget entries up to ``index``, which a snapshot of the state machine covers."""
        if index <= self.base_index:
            return
        if index > self.handed:
            raise ValueError(f"cannot compact to {index}: only {self.handed} is applied")
        term = self.term(index)
        assert term is not None
        del self._entries[: index - self.base_index]
        self.base_index, self.base_term = index, term

    def restore(self, index: int, term: int) -> None:
        """Start anew after a snapshot from the leader."""
        self._entries.clear()
        self.base_index, self.base_term = index, term
        self.commit = self.stable = self.handed = index
        self._writing = 0

    def validate(self) -> None:
        assert self.base_index <= self.commit <= self.last_index, "commit outside the log"
        assert self.base_index <= self.stable <= self.last_index, "stable outside the log"
        assert self.handed <= min(self.commit, self.stable), "handed over too early"
        previous = self.base_term
        for offset, entry in enumerate(self._entries):
            assert entry.index == self.base_index + 1 + offset, "a gap in the log"
            assert entry.term >= previous, "terms run backwards"
            previous = entry.term
