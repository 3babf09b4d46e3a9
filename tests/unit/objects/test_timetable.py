"""Cron expressions: which minute comes next, in a zone whose clock changes too."""

from __future__ import annotations

import datetime as dt

import pytest

from swarm_agent.objects.timetable import BadTimetable, Timetable


def due(cron: str, zone: str, start: str, count: int = 3) -> list[str]:
    table = Timetable.parse(cron, zone)
    now = int(dt.datetime.fromisoformat(start).timestamp()) * 10**9
    out = []
    for _ in range(count):
        now = table.after(now)
        out.append(dt.datetime.fromtimestamp(now // 10**9, table.zone).isoformat(timespec="minutes"))
    return out


@pytest.mark.parametrize(
    ("cron", "zone", "start", "expected"),
    [
        ("*/20 9 * * mon-fri", "UTC", "2026-11-27T09:30:00+00:00",
         ["2026-11-27T09:40+00:00", "2026-11-30T09:00+00:00", "2026-11-30T09:20+00:00"]),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00+00:00",
         ["2028-02-29T00:00+00:00", "2032-02-29T00:00+00:00", "2036-02-29T00:00+00:00"]),
        ("0 12 1 * sun", "UTC", "2026-11-26T00:00:00+00:00",  # either kind of day
         ["2026-11-29T12:00+00:00", "2026-12-01T12:00+00:00", "2026-12-06T12:00+00:00"]),
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00+00:00",  # 2:30 does not exist on the 29th
         ["2026-03-29T03:30+02:00", "2026-03-30T02:30+02:00", "2026-03-31T02:30+02:00"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00+00:00",  # 2:30 comes twice on the 25th
         ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00", "2026-10-27T02:30+01:00"]),
        ("@monthly", "Asia/Kolkata", "2026-11-30T19:00:00+00:00",
         ["2027-01-01T00:00+05:30", "2027-02-01T00:00+05:30", "2027-03-01T00:00+05:30"]),
    ],
)  # fmt: skip
def test_when_it_is_due(cron: str, zone: str, start: str, expected: list[str]) -> None:
    assert due(cron, zone, start) == expected


@pytest.mark.parametrize(
    ("cron", "zone", "text"),
    [
        ("61 * * * *", "UTC", "minute '61': '61' is not in the range 0 to 59"),
        ("² * * * *", "UTC", "'²' is not in the range 0 to 59"),
        ("*/² * * * *", "UTC", "a step is a number above 0"),
        ("* * * *", "UTC", "has 4 fields, not 5"),
        ("*/0 * * * *", "UTC", "a step is a number above 0"),
        ("0 0 30 2 *", "UTC", "is never due"),
        ("0 17-9 * * *", "UTC", "hour '17-9' runs backwards"),
        ("0 0 * * *", "Europe/Atlantis", "time zone 'Europe/Atlantis' is not known"),
        ("0 0 * * *", "../etc/passwd", "is not known"),
    ],
)
def test_what_is_no_timetable(cron: str, zone: str, text: str) -> None:
    with pytest.raises(BadTimetable, match=None) as caught:
        Timetable.parse(cron, zone)
    assert text in str(caught.value)
