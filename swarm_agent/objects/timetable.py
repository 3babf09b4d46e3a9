"""When a scheduled job is due: cron expressions of five fields, in a time zone.

Days match as cron has it: when day of month and day of week are both restricted, either will do. A local time that a
clock change skips is due as if the clock had not been changed yet; one that comes twice is due the first time.
"""

from __future__ import annotations

import datetime as dt
import functools
import zoneinfo
from typing import NamedTuple

from swarm_agent.objects.errors import InvalidSpec

_NAMES: dict[str, dict[str, int]] = {
    "month": {
        n: i
        for i, n in enumerate(
            ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1
        )
    },
    "day of week": {n: i for i, n in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])},
}
_FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of month", 1, 31),
    ("month", 1, 12),
    ("day of week", 0, 7),
)
_WORDS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_SECOND = 1_000_000_000
_MINUTE = 60 * _SECOND
_LOOK_BACK = dt.timedelta(hours=3)
_YEARS = 9  # 29 February comes at least once in so many


class BadTimetable(InvalidSpec):
    """No cron expression, no time zone, or a day that never comes."""


class Timetable(NamedTuple):
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0: Sunday
    either_day: bool  # both kinds of day are restricted
    zone: zoneinfo.ZoneInfo

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def parse(cron: str, timezone: str) -> Timetable:
        """Raises BadTimetable, saying which field is wrong."""
        try:
            zone = zoneinfo.ZoneInfo(timezone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as err:
            raise BadTimetable(
                f"time zone {timezone!r} is not known: use a name like Europe/Berlin or UTC"
            ) from err
        parts = _WORDS.get(cron.strip().lower(), cron).split()
        if len(parts) != len(_FIELDS):
            raise BadTimetable(
                f"schedule {cron!r} has {len(parts)} fields, not 5: minute, hour, day of month, month, day of week"
            )
        sets = [_field(text, *field) for text, field in zip(parts, _FIELDS, strict=True)]
        weekdays = frozenset(d % 7 for d in sets[4])
        either = not parts[2].startswith("*") and not parts[4].startswith("*")
        table = Timetable(
            tuple(sorted(sets[0])), tuple(sorted(sets[1])), sets[2], sets[3], weekdays, either, zone
        )
        if table._search(dt.datetime(2024, 1, 1)) is None:  # noqa: DTZ001 - the zone is applied later
            raise BadTimetable(f"schedule {cron!r} is never due: no such day")
        return table

    def after(self, now: int) -> int:
        """The first time after ``now`` (both nanoseconds since the epoch) at which it is due."""
        moment = dt.datetime.fromtimestamp(now // _SECOND, dt.UTC).astimezone(self.zone)
        before = (moment - _LOOK_BACK).utcoffset()
        local = moment.replace(tzinfo=None, second=0, microsecond=0)
        if before != moment.utcoffset():
            local -= _LOOK_BACK  # clocks were changed just now: what is local time's past may still come
        while True:
            found = self._search(local)
            assert found is not None  # parse() has looked
            at = int(found.replace(tzinfo=self.zone).timestamp()) * _SECOND
            if at > now:
                return at
            local = found + dt.timedelta(minutes=1)

    def latest(self, since: int, now: int) -> int:
        """The last time in ``since`` < time <= ``now`` at which it was due, 0 if there was none. As quick for a year as for an hour."""
        first = self.after(since)
        if first > now:
            return 0
        low, high = since, now  # something is due after ``low`` and up to ``now``, nothing after ``high``
        while high - low > _MINUTE:
            middle = (low + high) // 2
            if self.after(middle) <= now:
                low = middle
            else:
                high = middle
        return self.after(low)

    def _search(self, start: dt.datetime) -> dt.datetime | None:
        """The first matching local time from ``start`` on."""
        day = start.date()
        first = (start.hour, start.minute)
        for _ in range(_YEARS * 366):
            if day.month in self.months and self._on(day):
                for hour in self.hours:
                    for minute in self.minutes:
                        if (hour, minute) >= first:
                            return dt.datetime.combine(day, dt.time(hour, minute))
            day += dt.timedelta(days=1)
            first = (0, 0)
        return None

    def _on(self, day: dt.date) -> bool:
        by_date, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return (by_date or by_week) if self.either_day else (by_date and by_week)


def _field(text: str, name: str, low: int, high: int) -> frozenset[int]:
    out: set[int] = set()
    for part in text.lower().split(","):
        span, slash, step_text = part.partition("/")
        step = int(step_text) if step_text.isdecimal() else 0
        if slash and not step:
            raise BadTimetable(f"{name} {part!r}: a step is a number above 0")
        if span == "*":
            first, last = low, high
        else:
            begin, dash, end = span.partition("-")
            first = _number(begin, name, low, high, part)
            last = _number(end, name, low, high, part) if dash else (high if slash else first)
        if first > last:
            raise BadTimetable(f"{name} {part!r} runs backwards")
        out.update(range(first, last + 1, step or 1))
    return frozenset(out)


def _number(text: str, name: str, low: int, high: int, part: str) -> int:
    value = _NAMES.get(name, {}).get(text)
    if value is None:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise BadTimetable(f"{name} {part!r}: {text!r} is not in the range {low} to {high}")
        value = int(text)
    return value
