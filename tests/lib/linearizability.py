"""Is there one order of these operations that explains every answer? The search of Wing and Gong, with Lowe's memory.

Owns histories (what clients asked, when, and what they were told) and the search. Refuses to know how the answers came about. Linearizability is local
(Herlihy and Wing): each key is checked alone.

An operation without an answer may have taken effect at any time after its call, or never: its interval has no end. One that surely
failed never was: ``History.failed`` drops it, and with it goes the promise that nothing was done, for a later read would see it.

Operations on a key: ``read`` (answer: the value), ``write``, ``cas`` (answer: whether the expected value was there) and ``append`` to a list, whose
``read`` answers all of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import msgspec

NEVER = 1 << 62


class NotLinearizable(AssertionError):
    """No order explains these answers."""


class Operation(msgspec.Struct, frozen=True):
    """``called`` and ``answered`` are places in the order of all events of a history; ``answered`` is ``NEVER`` without one."""

    client: int
    kind: str
    key: str
    called: int
    answered: int = NEVER
    value: Hashable = None
    expected: Hashable = None
    answer: Hashable = None

    @property
    def known(self) -> bool:
        return self.answered != NEVER

    def __str__(self) -> str:
        what = {
            "read": "read",
            "write": f"write {self.value}",
            "cas": f"cas {self.expected} -> {self.value}",
            "append": f"append {self.value}",
        }[self.kind]
        answer = f"answered {self.answer} at {self.answered}" if self.known else "outcome unknown"
        return f"client {self.client}: {self.key}: {what}, called at {self.called}, {answer}"


class History:
    """Written while clients work; events are ordered as they happen."""

    def __init__(self) -> None:
        self._events = 0
        self._open: dict[int, Operation] = {}
        self._done: list[Operation] = []

    def __len__(self) -> int:
        """Operations that are answered."""
        return len(self._done)

    def call(
        self, client: int, kind: str, key: str, value: Hashable = None, expected: Hashable = None
    ) -> int:
        """The operation begins; what it is known by until it ends."""
        self._events += 1
        self._open[self._events] = Operation(client, kind, key, self._events, value=value, expected=expected)
        return self._events

    def answer(self, called: int, answer: Hashable = None) -> None:
        self._events += 1
        operation = self._open.pop(called)
        self._done.append(msgspec.structs.replace(operation, answered=self._events, answer=answer))

    def failed(self, called: int) -> None:
        """It surely was not done."""
        del self._open[called]

    def operations(self) -> list[Operation]:
        """Answered ones, and those without an answer but reads, which tell nothing."""
        return self._done + [op for op in self._open.values() if op.kind != "read"]

    def check(self) -> None:
        check(self.operations())


def check(operations: Iterable[Operation]) -> None:
    """Raises ``NotLinearizable`` for the first key whose operations no order explains."""
    keys: dict[str, list[Operation]] = {}
    for operation in operations:
        keys.setdefault(operation.key, []).append(operation)
    for key in sorted(keys):
        stuck = _search(sorted(keys[key], key=lambda op: op.called))
        if stuck is not None:
            raise NotLinearizable(_tell(key, *stuck))


def step(state: Hashable, op: Operation) -> tuple[bool, Hashable]:
    """Whether ``op`` may have happened in ``state``, and the state after it."""
    match op.kind:
        case "read":
            return not op.known or op.answer == state, state
        case "write":
            return True, op.value
        case "cas":
            done = state == op.expected
            return not op.known or op.answer == done, op.value if done else state
        case "append":
            return True, (*(state if isinstance(state, tuple) else ()), op.value)
    raise ValueError(f"unknown kind of operation: {op.kind}")


def _search(operations: Sequence[Operation]) -> tuple[list[Operation], list[Operation]] | None:
    """None, or how far the best attempt came: what it put in order, and what it could not go on with.

    Depth first: of the operations that were called before the first remaining answer, put one that fits next in order; at a dead end
    take the last one back. A set of operations that led nowhere from a state leads nowhere when it comes up again in another order.
    """
    known = sorted((op for op in operations if op.known), key=lambda op: op.called)
    unknown = sorted((op for op in operations if not op.known), key=lambda op: op.called)
    if not known:
        return None
    # What remains is one linked list: answered operations, a mark, then those without an answer, which are tried last.
    ops = [*known, known[0], *unknown, known[0]]
    mark, head = len(known), len(ops) - 1
    following = [*range(1, len(ops)), 0]
    before = [head, *range(head)]
    full = (1 << mark) - 1
    horizon = min(op.answered for op in known)  # the first answer among what remains
    state: Hashable = None
    done = 0
    taken: list[tuple[int, Hashable]] = []
    best: list[int] = []
    seen: set[tuple[int, Hashable]] = {(0, None)}
    at = following[head]
    while done & full != full:
        if at < mark and ops[at].called > horizon:
            at = mark
        if at == mark:
            at = following[mark]
        if at == head or ops[at].called > horizon:  # nothing fits
            if len(taken) >= len(best):
                best = [i for i, _ in taken]
            if not taken:
                rest = set(range(head)) - set(best) - {mark}
                return [ops[i] for i in best], [ops[i] for i in sorted(rest)]
            at, state = taken.pop()
            done &= ~(1 << at)
            following[before[at]] = before[following[at]] = at
            horizon = min(horizon, ops[at].answered)
            at = following[at]
            continue
        fits, after = step(state, ops[at])
        position = (done | 1 << at, after)
        if not fits or position in seen:
            at = following[at]
            continue
        seen.add(position)
        taken.append((at, state))
        done, state = position
        following[before[at]], before[following[at]] = following[at], before[at]
        if ops[at].answered == horizon:
            horizon, left = NEVER, following[head]
            while left < mark and ops[left].called < horizon:
                horizon = min(horizon, ops[left].answered)
                left = following[left]
        at = following[head]
    return None


def _tell(key: str, order: Sequence[Operation], rest: Sequence[Operation]) -> str:
    lines = [
        f"no order of the operations on {key} explains every answer; the longest that does so for a part:"
    ]
    state: Hashable = None
    for op in order:
        _, state = step(state, op)
        lines.append(f"  {op}")
    lines.append(f"then the value is {state}, and of these none can be next:")
    horizon = min((op.answered for op in rest), default=NEVER)
    lines += [f"  {op}" for op in rest if op.called < horizon]
    return "\n".join(lines)
