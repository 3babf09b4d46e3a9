# SPDX-License-Identifier: Apache-2.0
"""PRIVATE to this collection: compare what was stated with what is, and touch nothing else.

A stated option becomes one or more assignments: a path into the specification, the value wanted there, and how to bring
both values into one form before comparing. What nobody stated has no assignment, so it is neither compared nor changed.
"""

from __future__ import annotations

import copy


class Assignment:
    """One place in a specification and the value wanted there; ``None`` wants it gone."""

    def __init__(self, path, value, normal=None):
        self.path = path
        self.value = value
        self.normal = normal or plain

    def now(self, spec):
        for key in self.path:
            if not isinstance(spec, dict):
                return None
            spec = spec.get(key)
        return spec

    def holds(self, spec):
        return self.normal(self.now(spec)) == self.normal(self.value)


def plain(value):
    """Absent, null and empty are one and the same in Docker's JSON."""
    return None if value in ({}, [], "", 0, False) else value


def as_set(value):
    """Lists of which the order says nothing."""
    return sorted(map(str, value or ()))


def difference(spec, assignments):
    """The assignments that do not hold in ``spec``."""
    return [a for a in assignments if not a.holds(spec)]


def apply(spec, assignments):
    """A copy of ``spec`` in which the assignments hold."""
    result = copy.deepcopy(spec)
    for assignment in assignments:
        at = result
        for key in assignment.path[:-1]:
            if not isinstance(at.get(key), dict):
                at[key] = {}
            at = at[key]
        if assignment.value is None:
            at.pop(assignment.path[-1], None)
        else:
            at[assignment.path[-1]] = copy.deepcopy(assignment.value)
    return result


def show(spec, changed):
    """The changed places alone, as nested maps: one half of a diff."""
    result = {}
    for assignment in changed:
        value = assignment.now(spec)
        if value is None:
            continue
        at = result
        for key in assignment.path[:-1]:
            at = at.setdefault(key, {})
        at[assignment.path[-1]] = value
    return result


def diff(before, after, changed):
    return {"before": show(before, changed), "after": show(after, changed)}
