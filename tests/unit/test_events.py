"""The event bus: order, replay, slow readers, filters, and the fields of events."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.errors import ArgumentError, BusyError
from mcp_server.observability.events import KINDS, LAGGED, STOPPING, Event, EventBus, Subscription, read_kinds

PAGE = (Path(__file__).resolve().parents[2] / "docs/events.md").read_text()
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def bus(**options: Any) -> EventBus:
    return EventBus(now=lambda: NOON, **options)


def notify(target: EventBus, *numbers: int, kind: str = "run.progress") -> None:
    for number in numbers:
        target.publish(kind, {"run_id": str(number)})


def numbers_of(events: list[Event]) -> list[int]:
    return [int(event.data["run_id"]) for event in events]


async def take(subscription: Subscription) -> list[Event]:
    async with asyncio.timeout(2):
        return await subscription.take()


async def takes_nothing(subscription: Subscription) -> bool:
    try:
        async with asyncio.timeout(0.02):
            await subscription.take()
    except TimeoutError:
        return True
    return False


def test_the_documentation_has_every_kind_with_its_meaning_and_fields() -> None:
    rows = {match[1]: match[0] for match in re.finditer(r"^\| `([a-z.]+)` \|.*$", PAGE, re.MULTILINE)}
    assert rows.keys() == {*KINDS, LAGGED}
    for kind, (meaning, fields) in KINDS.items():
        _, _, written, named, _ = rows[kind].split("|")
        assert written.strip() == meaning
        assert re.findall(r"`([a-z_]+)`", named) == list(fields)
    documented = set(re.findall(r"^- `([a-z_]+)`", PAGE, re.MULTILINE))
    assert documented == {field for _, fields in KINDS.values() for field in fields} | {"kind", "at", "missed"}


def test_no_kind_has_a_field_for_text_of_a_target_or_a_caller() -> None:
    fields = {field for _, each in KINDS.values() for field in each}
    assert not fields & {"target", "targets", "parameters", "arguments", "stdout", "stderr", "host", "client", "argv"}


async def test_a_reader_gets_later_events_in_order_with_increasing_ids() -> None:
    events = bus()
    notify(events, 1)
    reader = events.subscribe()
    notify(events, 2, 3)
    got = await take(reader)
    assert numbers_of(got) == [2, 3]
    assert [int(event.id.partition("-")[2]) for event in got] == [2, 3]
    assert json.loads(got[0].json) == {"kind": "run.progress", "at": "2026-03-01T12:00:00.000Z", "run_id": "2"}
    assert await takes_nothing(reader)


async def test_an_event_of_another_thread_wakes_a_waiting_reader() -> None:
    events = bus()
    reader = events.subscribe()
    waiting = asyncio.create_task(take(reader))
    await asyncio.sleep(0)
    await asyncio.to_thread(notify, events, 1)
    assert numbers_of(await waiting) == [1]


async def test_threads_lose_no_event_and_no_id_is_used_twice() -> None:
    events = bus(queued=4000)
    reader = events.subscribe()
    threads = [threading.Thread(target=notify, args=(events, *range(n * 1000, n * 1000 + 1000))) for n in range(4)]
    for thread in threads:
        thread.start()
    got: list[Event] = []
    while len(got) < 4000:
        got += await take(reader)
    for thread in threads:
        thread.join()
    assert sorted(numbers_of(got)) == list(range(4000))
    assert [int(event.id.partition("-")[2]) for event in got] == list(range(1, 4001))
    assert await takes_nothing(reader), "a late wake-up must not end the stream"


async def test_a_slow_reader_loses_its_oldest_events_and_gets_their_number() -> None:
    events = bus(queued=4)
    slow, quick = events.subscribe(), events.subscribe()
    seen = []
    for number in range(10):
        notify(events, number)
        seen += numbers_of(await take(quick))
    assert seen == list(range(10))
    lagged, *rest = await take(slow)
    assert (lagged.kind, lagged.id, dict(lagged.data)) == (LAGGED, "", {"missed": 6})
    assert numbers_of(rest) == [6, 7, 8, 9]
    notify(events, 10)
    assert numbers_of(await take(slow)) == [10], "the number must be reported once"


async def test_a_reader_that_reconnects_gets_the_events_it_missed() -> None:
    events = bus(kept=10)
    reader = events.subscribe()
    notify(events, 1)
    (last,) = await take(reader)
    reader.close()
    notify(events, 2, 3)
    again = events.subscribe(after=last.id)
    assert again.position == last.id, "the replayed events were not taken yet"
    assert numbers_of(await take(again)) == [2, 3]
    assert await takes_nothing(events.subscribe(after=again.position))


async def test_a_reader_that_reconnects_late_gets_the_number_of_lost_events() -> None:
    events = bus(kept=3)
    notify(events, 1)
    last = events.subscribe().position
    notify(events, *range(2, 8))
    lagged, *rest = await take(events.subscribe(after=last))
    assert dict(lagged.data) == {"missed": 3}
    assert numbers_of(rest) == [5, 6, 7]


async def test_a_replay_may_be_longer_than_the_queue() -> None:
    events = bus(kept=10, queued=2)
    first = events.subscribe().position
    notify(events, *range(8))
    reader = events.subscribe(after=first)
    notify(events, 8)
    lagged, *rest = await take(reader)
    assert dict(lagged.data) == {"missed": 1}
    assert numbers_of(rest) == list(range(1, 9))


@pytest.mark.parametrize(
    "after",
    [
        "",
        "0badcafe-1",
        "1",
        "-1",
        "x" * 5000,
        "{instance}-",
        "{instance}--1",
        "{instance}-99",
        "{instance}-²",
        "{instance}-1_0",
    ],
)
async def test_an_unknown_id_gets_all_kept_events_and_a_warning(after: str) -> None:
    events = bus()
    notify(events, 1, 2)
    instance = events.subscribe().position.partition("-")[0]
    lagged, *rest = await take(events.subscribe(after=after.format(instance=instance)))
    assert (lagged.kind, dict(lagged.data)) == (LAGGED, {"missed": None})
    assert numbers_of(rest) == [1, 2]


async def test_the_position_of_a_filtered_reader_advances_with_all_events() -> None:
    events = bus(kept=3)
    reader = events.subscribe(read_kinds(["health"]))
    notify(events, *range(9))
    assert await takes_nothing(reader)
    back = events.subscribe(read_kinds(["health"]), after=reader.position)
    assert await takes_nothing(back), "no event of its kinds was lost"


async def test_a_filter_passes_its_kinds_and_always_the_end() -> None:
    events = bus()
    reader = events.subscribe(read_kinds(["run.ended,health"]))
    for kind in KINDS:
        events.publish(kind, {})
    assert [event.kind for event in await take(reader)] == ["run.ended", "health.changed", STOPPING]


def test_kinds_are_selected_by_family_or_by_name() -> None:
    assert read_kinds([]) is None
    assert read_kinds(["health, alarm", "run.ended"]) == frozenset({"health.changed", "alarm", "run.ended"})
    assert read_kinds(["run"]) == frozenset(kind for kind in KINDS if kind.startswith("run."))


@pytest.mark.parametrize("word", ["", "runs", "run.", "RUN", "lagged", "run,,health", "a\x1b[2Jb", "x" * 9999])
def test_an_unknown_kind_is_refused_with_the_list_of_families(word: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_kinds([word])
    assert "health" in caught.value.hint
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 200


async def test_a_reader_over_the_limit_is_refused_until_another_one_closes() -> None:
    events = bus()
    readers = [events.subscribe(limit=2) for _ in range(2)]
    with pytest.raises(BusyError) as caught:
        events.subscribe(limit=2)
    assert (caught.value.code, caught.value.spec.http) == ("too_many_requests", 429)
    assert caught.value.details["retry_after"] >= 1
    readers[0].close()
    readers[0].close()
    assert events.subscribers == 1
    events.subscribe(limit=2)


async def test_closing_publishes_the_end_once_after_the_queued_events() -> None:
    events = bus()
    busy, idle = events.subscribe(), events.subscribe(read_kinds(["health"]))
    waiting = asyncio.create_task(take(idle))
    await asyncio.sleep(0)
    notify(events, 1)
    events.close()
    events.close()
    notify(events, 2)
    assert [event.kind for event in await take(busy)] == ["run.progress", STOPPING]
    assert [event.kind for event in await waiting] == [STOPPING]
    assert await take(busy) == await take(idle) == []
    with pytest.raises(BusyError) as caught:
        events.subscribe()
    assert caught.value.code == "shutting_down"


async def test_the_end_can_be_published_before_the_bus_is_closed() -> None:
    events = bus()
    reader = events.subscribe()
    events.publish(STOPPING, {"running": 1, "grace_sec": 30})
    notify(events, 1, kind="run.ended")
    events.close()
    assert [event.kind for event in await take(reader)] == [STOPPING, "run.ended"]
    assert await take(reader) == []


async def test_unknown_kinds_and_fields_are_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    events = bus()
    reader = events.subscribe()
    with caplog.at_level(logging.ERROR):
        events.publish("run.exploded", {"run_id": "1"})
        events.publish("run.ended", {"run_id": "1", "banner": "SSH-2.0-evil"})
    assert [dict(event.data) for event in await take(reader)] == [{"run_id": "1"}]
    logged = [record.msg["event"] for record in caplog.records if isinstance(record.msg, dict)]
    assert logged == ["events.unknown_kind", "events.unknown_fields"]
    assert "evil" not in caplog.text


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=90) | st.dictionaries(st.text(), inner, max_size=5) | st.tuples(inner),
    max_leaves=12,
)


@given(anything)
def test_every_value_becomes_one_line_of_strict_json_without_active_characters(value: Any) -> None:
    events = bus()
    events.publish("alarm", {"message": value})
    (event,) = events._ring

    def refuse(word: str) -> None:
        raise AssertionError(word)

    parsed = json.loads(event.json, parse_constant=refuse)["message"]
    assert event.json.isprintable()
    assert "\n" not in event.json
    items = list(parsed) if isinstance(parsed, list | dict) else []
    assert len(items) <= 64
    assert all(
        char == "\n" or char.isprintable() for text in (parsed, *items) if isinstance(text, str) for char in text
    )


async def test_long_text_is_cut_and_escapes_are_not_escaped_again() -> None:
    events = bus()
    events.publish("alarm", {"message": "x" * 9999, "alarm": r"seen \x1b and \\", "count": float("nan")})
    (event,) = events._ring
    assert dict(event.data) == {"message": "x" * 512 + "…", "alarm": r"seen \x1b and \\", "count": None}


async def test_one_actor_may_have_three_quarters_of_the_readers() -> None:
    events = bus()
    greedy = [events.subscribe(limit=8, reader="key:a") for _ in range(6)]
    with pytest.raises(BusyError, match="already has 6 event streams"):
        events.subscribe(limit=8, reader="key:a")
    events.subscribe(limit=8, reader="key:b")
    events.subscribe(limit=8)
    greedy[0].close()
    events.subscribe(limit=8, reader="key:a")
    assert bus().subscribe(limit=1, reader="key:a").reader == "key:a", (
        "one reader must be allowed even if the limit is one"
    )
