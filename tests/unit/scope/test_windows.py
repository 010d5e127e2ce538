"""Time windows in local time: midnight, days of the week, and the two days on which the clocks are changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.scope.windows import Window

BERLIN = ZoneInfo("Europe/Berlin")
EVERY_DAY = frozenset(range(7))


def window(start: str, end: str, days: frozenset[int] = EVERY_DAY, zone: ZoneInfo = BERLIN) -> Window:
    def minutes(text: str) -> int:
        hour, minute = text.split(":")
        return int(hour) * 60 + int(minute)

    return Window("w", days, minutes(start), minutes(end), zone, str(zone))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_window_includes_its_start_and_not_its_end() -> None:
    office = window("09:00", "17:30", frozenset({0, 1, 2, 3, 4}))
    assert office.is_open(at("2026-11-23T09:00+01:00"))
    assert office.is_open(at("2026-11-23T17:29+01:00"))
    assert not office.is_open(at("2026-11-23T17:30+01:00"))
    assert not office.is_open(at("2026-11-22T10:00+01:00")), "this is a Sunday"
    assert office.is_open(at("2026-11-23T03:00-05:00")), "the offset of now must not matter"
    assert office.next_opening(at("2026-11-20T18:00+01:00")) == at("2026-11-23T09:00+01:00"), (
        "after Friday evening comes Monday"
    )
    assert office.next_opening(at("2026-11-23T12:00+01:00")) is None


def test_a_window_past_midnight_belongs_to_the_day_it_starts_on() -> None:
    nights = window("22:00", "06:00", frozenset({4}))  # Friday
    assert nights.is_open(at("2026-11-20T22:00+01:00"))
    assert nights.is_open(at("2026-11-21T05:59+01:00"))
    assert not nights.is_open(at("2026-11-21T06:00+01:00"))
    assert not nights.is_open(at("2026-11-20T05:00+01:00")), "this night began on Thursday"
    assert not nights.is_open(at("2026-11-21T22:30+01:00"))
    assert nights.next_opening(at("2026-11-21T06:00+01:00")) == at("2026-11-27T22:00+01:00")


def test_a_window_may_last_the_whole_day() -> None:
    sundays = window("00:00", "24:00", frozenset({6}))
    assert sundays.is_open(at("2026-11-22T00:00+01:00"))
    assert sundays.is_open(at("2026-11-22T23:59:59+01:00"))
    assert not sundays.is_open(at("2026-11-23T00:00+01:00"))
    assert str(sundays) == "sun 00:00-24:00 Europe/Berlin"
    assert str(window("22:00", "06:00")) == "daily 22:00-06:00 Europe/Berlin"


def test_a_window_opens_when_the_clocks_jump_over_its_start() -> None:
    """On 2026-03-29 Berlin goes from 02:00 to 03:00."""
    early = window("02:30", "04:00")
    assert not early.is_open(at("2026-03-29T00:59:59+00:00"))
    assert early.is_open(at("2026-03-29T01:00:00+00:00")), "local time is 03:00"
    assert early.next_opening(at("2026-03-28T23:00+00:00")) == at("2026-03-29T01:00+00:00")
    inside_the_gap = window("02:10", "02:50")
    assert inside_the_gap.next_opening(at("2026-03-28T23:00+00:00")) == at("2026-03-30T02:10+02:00"), (
        "there is no 02:10 on that day"
    )


def test_an_hour_that_occurs_twice_is_in_the_window_twice() -> None:
    """On 2026-10-25 Berlin goes from 03:00 back to 02:00."""
    short = window("02:00", "02:30")
    assert short.is_open(at("2026-10-25T00:15+00:00"))
    assert not short.is_open(at("2026-10-25T00:45+00:00"))
    assert short.next_opening(at("2026-10-25T00:45+00:00")) == at("2026-10-25T01:00+00:00")
    assert short.is_open(at("2026-10-25T01:15+00:00"))
    assert not short.is_open(at("2026-10-25T01:45+00:00"))
    longer = window("01:00", "02:30")  # the window is open again after the change
    assert longer.next_opening(at("2026-10-25T00:45+00:00")) == at("2026-10-25T01:00+00:00")


@given(
    st.integers(0, 1439),
    st.integers(1, 1440),
    st.sets(st.integers(0, 6), min_size=1),
    st.integers(0, 364 * 1440).map(lambda minutes: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"]),
)
@settings(max_examples=120, deadline=None)
def test_the_next_opening_is_the_first_open_minute(
    start: int, end: int, days: set[int], now: datetime, zone: str
) -> None:
    if start == end:
        end = end % 1440 + 1
    each = Window("w", frozenset(days), start, end, ZoneInfo(zone), zone)
    opening = each.next_opening(now)
    if each.is_open(now):
        assert opening is None
        return
    assert opening is not None
    minute = now
    while not each.is_open(minute):
        minute += timedelta(minutes=1)
        assert minute - now < timedelta(days=9)
    assert opening == minute
