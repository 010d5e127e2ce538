"""What a waiting call is told: its place in the line, and about how long it will be."""

from __future__ import annotations

import asyncio
import logging

import pytest

from mcp_server.limits.admission import Waiting
from mcp_server.limits.admission_forecast import UNKNOWN_SECONDS, History
from tests.support.crowd import Crowd, Numbers, settle, ticket


async def test_who_waits_is_told_the_place_and_the_wait_and_again_when_they_change() -> None:
    crowd = Crowd(Numbers(per_tool=1))
    crowd.call("in", ticket(sec=60))
    crowd.call("next", ticket(sec=30))
    crowd.call("last", ticket(sec=30))
    await settle()
    assert crowd.told == {"in": [], "next": [Waiting(1, 60)], "last": [Waiting(2, 90)]}
    crowd.clock.now += 20
    crowd.call("other", ticket("dig"))  # something happens, and nothing is new
    await settle()
    assert crowd.told["next"] == [Waiting(1, 60)]
    crowd.clock.now += 10
    await crowd.end("in")  # after 30 s where 60 were expected: what waits is expected to be as quick
    assert crowd.told["last"] == [Waiting(2, 90), Waiting(1, 15)]
    assert crowd.waited == {"in": 0, "next": 30, "other": 0}
    await crowd.end_all()


async def test_the_expected_wait_minds_hosts_keys_and_how_long_runs_have_taken() -> None:
    crowd = Crowd(Numbers(per_tool=5))
    crowd.call("first")
    await settle()
    crowd.clock.now += 12
    await crowd.end("first")
    crowd.call("host", ticket(at="10.0.0.1", sec=100))
    crowd.call("key", ticket("dig", exclusive=("k",), sec=70))
    await settle()
    crowd.call("same host", ticket(at="10.0.0.0/24"))
    crowd.call("after it", ticket(at="10.0.0.7"))
    crowd.call("same key", ticket("dig", exclusive=("k",)))
    await settle()
    assert crowd.told["same host"] == [Waiting(1, 100)]
    assert crowd.inside == ["host", "key", "after it"]  # the network has not been overtaken too often yet
    assert crowd.told["same key"] == [Waiting(1, 70)]
    await crowd.end_all()


def test_estimates_are_put_right_by_what_runs_took_the_latest_counting_most() -> None:
    history = History()
    asked = ticket(sec=100)
    assert history.expect(asked) == 100
    assert history.expect(ticket()) == UNKNOWN_SECONDS
    history.note(asked, 50)
    assert (history.expect(asked), history.expect(ticket())) == (50, 50)
    history.note(asked, 100)
    assert history.expect(asked) == pytest.approx(65)
    history.note(ticket(), 165)
    assert history.expect(asked) == pytest.approx(65)
    assert history.expect(ticket()) == pytest.approx(95)
    assert history.expect(ticket("dig", sec=7)) == 7


async def test_a_tool_that_may_not_run_at_all_makes_its_calls_wait_and_breaks_nothing() -> None:
    crowd = Crowd(Numbers(per_tool=0))
    crowd.call("a")
    await settle()
    assert crowd.told["a"] == [Waiting(1, 0)]
    crowd.numbers.per_tool = 1
    crowd.authenticator.refresh()
    await settle()
    assert crowd.inside == ["a"]
    await crowd.end_all()


async def test_a_listener_that_fails_changes_nothing_for_anyone(caplog: pytest.LogCaptureFixture) -> None:
    crowd = Crowd(Numbers(per_tool=1))
    crowd.call("in")
    await settle()

    def broken(_: Waiting) -> None:
        raise KeyError

    async def call() -> None:
        async with crowd.authenticator.slot(ticket(), broken):
            pass

    with caplog.at_level(logging.ERROR):
        task = asyncio.create_task(call())
        crowd.call("last")
        await settle()
    logged = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    assert [(line["event"], line["tool"]) for line in logged] == [("admission.on_wait_failed", "nmap")]
    assert crowd.told["last"]
    await crowd.end_all()
    await task
