"""From a story that fails to the smallest found that fails alike: shorter, fewer members, fewer clients, fewer deeds.

Greedy: a smaller plan is kept when it fails with the same kind of error. What is smallest this way need not be smallest of all; it only has
to be small enough to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from tests.lib.raft_chaos import ChaosPlan, Failure, attempt

Plan = TypeVar("Plan")
Numbers = tuple[int, ...]


def shrink(plan: Plan, smaller: Callable[[Plan], Iterator[Plan]], fails: Callable[[Plan], bool]) -> Plan:
    """Repeat with the first smaller plan that still fails, until none does."""
    while True:
        found = next((candidate for candidate in smaller(plan) if fails(candidate)), None)
        if found is None:
            return plan
        plan = found


def minimise_raft(seed: int, failure: Failure, plan: ChaosPlan, *, attempts: int = 200) -> ChaosPlan:
    kind, left = type(failure.error), attempts
    newest = failure

    def fails(candidate: ChaosPlan) -> bool:
        nonlocal left, newest
        left -= 1
        if left < 0:
            return False
        outcome = attempt(seed, candidate)
        if not isinstance(outcome, Failure) or type(outcome.error) is not kind:
            return False
        newest = outcome
        return True

    def smaller(plan: ChaosPlan) -> Iterator[ChaosPlan]:
        change = msgspec.structs.replace
        if newest.at + 1 < plan.seconds:
            yield change(plan, seconds=round(newest.at + 0.5, 1), operations=0, faults=0)
        for size in (3, 5):
            if size < plan.size:
                yield change(plan, size=size)
        if plan.clients > 1:
            yield change(plan, clients=plan.clients // 2)
        deeds = newest.deeds if plan.only is None else plan.only
        for fewer in _without_a_part(deeds):
            yield change(plan, only=fewer)

    return shrink(plan, smaller, fails)


def _without_a_part(numbers: Numbers) -> Iterator[Numbers]:
    """Without one half, one quarter, ... one of them."""
    size = (len(numbers) + 1) // 2
    while size:
        for start in range(0, len(numbers), size):
            yield numbers[:start] + numbers[start + size :]
        size //= 2
