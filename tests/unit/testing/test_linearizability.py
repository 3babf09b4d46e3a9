"""The checker of histories: known good ones, known bad ones, and every tiny random one against trying all orders."""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable, Sequence

import pytest

from tests.lib.linearizability import NEVER, History, NotLinearizable, Operation, check, step


def op(
    kind: str, called: int, answered: int = NEVER, *values: Hashable, answer: Hashable = None
) -> Operation:
    """``values``: the value, or expected and new value of a cas."""
    value = values[-1] if values else None
    expected = values[0] if kind == "cas" else None
    return Operation(0, kind, "k", called, answered, value, expected, answer)


GOOD = {
    "nothing": [],
    "one after the other": [op("write", 1, 2, 1), op("read", 3, 4, answer=1)],
    "nothing was written yet": [op("read", 1, 2)],
    "a read beside a write sees the old value": [op("write", 1, 4, 1), op("read", 2, 3)],
    "a read beside a write sees the new value": [op("write", 1, 4, 1), op("read", 2, 3, answer=1)],
    "two writes at a time, either may be last": [
        op("write", 1, 4, 1),
        op("write", 2, 3, 2),
        op("read", 5, 6, answer=1),
    ],
    "an unanswered write was done": [op("write", 1, NEVER, 1), op("read", 2, 3, answer=1)],
    "an unanswered write was never done": [op("write", 1, NEVER, 1), op("read", 2, 3), op("read", 4, 5)],
    "an unanswered write was done late": [
        op("write", 1, NEVER, 1),
        op("write", 2, 3, 2),
        op("read", 4, 5, answer=2),
        op("read", 6, 7, answer=1),
    ],
    "of two swaps at a time one wins": [
        op("write", 1, 2, 0),
        op("cas", 3, 6, 0, 1, answer=True),
        op("cas", 4, 5, 0, 2, answer=False),
        op("read", 7, 8, answer=1),
    ],
    "an unanswered swap explains a failed one": [
        op("write", 1, 2, 0),
        op("cas", 3, NEVER, 0, 1),
        op("cas", 4, 5, 0, 2, answer=False),
    ],
    "appends at a time, in either order": [
        op("append", 1, 4, 1),
        op("append", 2, 3, 2),
        op("read", 5, 6, answer=(2, 1)),
        op("append", 7, NEVER, 3),
        op("read", 8, 9, answer=(2, 1)),
        op("read", 10, 11, answer=(2, 1, 3)),
    ],
}

BAD = {
    "a stale read": [op("write", 1, 2, 1), op("write", 3, 4, 2), op("read", 5, 6, answer=1)],
    "a lost write": [op("write", 1, 2, 1), op("read", 3, 4)],
    "a value from nowhere": [op("read", 1, 2, answer=7)],
    "a value from the future": [op("read", 1, 2, answer=1), op("write", 3, 4, 1)],
    "reads go back": [
        op("write", 1, 10, 1),
        op("read", 2, 3, answer=1),
        op("read", 4, 5),
    ],
    "an unanswered write is done twice": [
        op("write", 1, NEVER, 1),
        op("write", 2, 3, 2),
        op("read", 4, 5, answer=1),
        op("write", 6, 7, 3),
        op("read", 8, 9, answer=1),
    ],
    "both swaps win": [
        op("write", 1, 2, 0),
        op("cas", 3, 6, 0, 1, answer=True),
        op("cas", 4, 5, 0, 2, answer=True),
    ],
    "a swap fails for no reason": [op("write", 1, 2, 0), op("cas", 3, 4, 0, 1, answer=False)],
    "a swap wins against another value": [op("write", 1, 2, 5), op("cas", 3, 4, 0, 1, answer=True)],
    "an append is lost": [op("append", 1, 2, 1), op("append", 3, 4, 2), op("read", 5, 6, answer=(2,))],
    "an append is there twice": [op("append", 1, NEVER, 1), op("read", 3, 4, answer=(1, 1))],
    "appends in the wrong order": [
        op("append", 1, 2, 1),
        op("append", 3, 4, 2),
        op("read", 5, 6, answer=(2, 1)),
    ],
    "a list that shrinks": [
        op("append", 1, NEVER, 1),
        op("read", 2, 3, answer=(1,)),
        op("read", 4, 5),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_good_histories_pass(name: str) -> None:
    check(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_bad_histories_are_found_and_told(name: str) -> None:
    with pytest.raises(NotLinearizable, match="of these none can be next"):
        check(BAD[name])


def test_each_key_is_checked_and_the_bad_one_is_named() -> None:
    history = History()
    for key in ("a", "b"):
        history.answer(history.call(1, "write", key, 1))
    history.answer(history.call(1, "read", "a"), 1)
    history.check()
    history.answer(history.call(1, "read", "b"), 2)
    with pytest.raises(NotLinearizable, match="operations on b explains"):
        history.check()


def test_what_surely_failed_must_not_be_seen_and_what_is_unknown_may() -> None:
    for unknown in (False, True):
        history = History()
        write = history.call(1, "write", "k", 1)
        if not unknown:
            history.failed(write)
        history.answer(history.call(2, "read", "k"), 1)
        if unknown:
            history.check()
        else:
            with pytest.raises(NotLinearizable):
                history.check()


def test_reads_without_an_answer_tell_nothing() -> None:
    history = History()
    history.call(1, "read", "k")
    assert history.operations() == []


def test_a_long_history_with_many_unknown_outcomes_is_quick() -> None:
    """Each unknown write may be anywhere: without memory this would be two to the power of thirty."""
    ops = [op("write", i, NEVER, -i) for i in range(1, 31)]
    for i in range(1, 301):
        at = 100 + 10 * i
        late = i % 10 == 0  # an unknown write comes through after all
        ops += [op("write", at, at + 1, i), op("read", at + 2, at + 3, answer=-(i // 10) if late else i)]
    check(ops)


# -- against brute force ---------------------------------------------------------------------------------------------------


def some_order_explains(ops: Sequence[Operation]) -> bool:
    """Every subset that holds all answered operations, in every order that respects time."""
    unanswered = [o for o in ops if not o.known]
    for count in range(len(unanswered) + 1):
        for extra in itertools.combinations(unanswered, count):
            chosen = [o for o in ops if o.known] + list(extra)
            if any(explains(order) for order in itertools.permutations(chosen)):
                return True
    return False


def explains(order: Sequence[Operation]) -> bool:
    state: Hashable = None
    for i, one in enumerate(order):
        if any(later.answered < one.called for later in order[i + 1 :]):
            return False
        fits, state = step(state, one)
        if not fits:
            return False
    return True


def random_history(rng: random.Random, *, lists: bool) -> list[Operation]:
    """Two or three clients, five operations, answers that are plausible but not derived from any order."""
    count = rng.randrange(1, 6)
    events = [i for i in range(count) for _ in range(2)]
    rng.shuffle(events)
    ops = []
    for i in range(count):
        called, answered = (at for at, event in enumerate(events, 1) if event == i)
        if rng.random() < 0.25:
            answered = NEVER
        value, expected = rng.randrange(2), rng.randrange(2)
        answer: Hashable
        if lists:
            kind = rng.choice(["read", "append"])
            answer = rng.choice([None, (0,), (1,), (0, 1), (1, 0)]) if kind == "read" else None
        else:
            kind = rng.choice(["read", "write", "cas"])
            answer = {"read": rng.choice([None, 0, 1]), "write": None, "cas": rng.random() < 0.5}[kind]
        if kind == "read" and answered == NEVER:
            continue
        ops.append(Operation(i, kind, "k", called, answered, value, expected, answer))
    return ops


@pytest.mark.slow
@pytest.mark.parametrize("lists", [False, True])
def test_the_search_agrees_with_trying_every_order(lists: bool) -> None:
    rng = random.Random(5)
    verdicts = {True: 0, False: 0}
    for _ in range(3000):
        ops = random_history(rng, lists=lists)
        try:
            check(ops)
            found = True
        except NotLinearizable:
            found = False
        assert found == some_order_explains(ops), "\n".join(map(str, ops))
        verdicts[found] += 1
    assert min(verdicts.values()) > 300, f"both kinds of history must come up: {verdicts}"
