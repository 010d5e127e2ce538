"""Time windows: when targets may be scanned, in local time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from typing import Final

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_A_DAY: Final = 24 * 60


@dataclass(frozen=True, slots=True)
class Window:
    """A range of minutes on some days of the week, in local time.

    ``days`` are numbers from 0 (Monday). ``start`` and ``end`` are minutes of the day from 0 to 1440, and ``end`` is
    not included. A window whose end is not after its start passes midnight and belongs to the day on which it starts.

    Local time decides: if the clocks jump over the start, the window opens with the jump. An hour that occurs twice is
    in the window twice.
    """

    name: str
    days: frozenset[int]
    start: int
    end: int
    zone: tzinfo
    zone_name: str = "UTC"

    def is_open(self, now: datetime) -> bool:
        """Return whether the window is open at ``now``, which must have an offset from UTC."""
        local = now.astimezone(self.zone)
        minute, day = local.hour * 60 + local.minute, local.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        return (day in self.days and minute >= self.start) or ((day - 1) % 7 in self.days and minute < self.end)

    def next_opening(self, now: datetime) -> datetime | None:
        """Return the next opening, with the offset of local time at that moment, or None if it is open at ``now``."""
        if self.is_open(now):
            return None
        today = now.astimezone(self.zone).date()
        moments = sorted(
            moment
            for ahead in range(9)
            for moment in self._possible_openings(today + timedelta(days=ahead))
            if moment > now
        )
        found = next((moment.astimezone(self.zone) for moment in moments if self.is_open(moment)), None)
        # PEP 495: a time in the hour that occurs twice never equals a time of another zone, so return a fixed offset.
        return None if found is None else found.replace(tzinfo=timezone(found.utcoffset() or timedelta(0)), fold=0)

    def _possible_openings(self, day: date) -> Iterator[datetime]:
        """Yield the times of a day at which the window can open: its start, which may occur twice, or clock changes."""
        hour, minute = divmod(self.start % MINUTES_A_DAY, 60)
        for fold in (0, 1):
            yield datetime.combine(day, time(hour, minute, fold=fold), self.zone).astimezone(UTC)
        first = datetime.combine(day, time(), self.zone).astimezone(UTC)
        last = datetime.combine(day + timedelta(days=1), time(), self.zone).astimezone(UTC)
        offset = first.astimezone(self.zone).utcoffset()
        if last.astimezone(self.zone).utcoffset() == offset:
            return
        while last - first > timedelta(seconds=1):
            middle = first + (last - first) / 2
            if middle.astimezone(self.zone).utcoffset() == offset:
                first = middle
            else:
                last = middle
        yield last.replace(microsecond=0)

    def __str__(self) -> str:
        days = "daily" if len(self.days) == 7 else ", ".join(DAYS[day] for day in sorted(self.days))
        return f"{days} {_clock(self.start)}-{_clock(self.end)} {self.zone_name}"


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"
