"""A waiting call is notified of its position in the queue and of the expected wait."""

from __future__ import annotations

import asyncio
import logging

import pytest

from mcp_server.limits.admission import QueuePosition
from mcp_server.limits.admission_forecast import UNKNOWN_SECONDS, History
from tests.support.crowd import Crowd, Numbers, settle, ticket


async def test_a_waiting_call_learns_its_position_and_wait_and_each_change_of_them() -> None:
    crowd = Crowd(Numbers(per_tool=1))
    crowd.call("in", ticket(sec=60))
    crowd.call("next", ticket(sec=30))
    crowd.call("last", ticket(sec=30))
    await settle()
    assert crowd.positions == {"in": [], "next": [QueuePosition(1, 60)], "last": [QueuePosition(2, 90)]}
    crowd.clock.now += 20
    crowd.call("other", ticket("dig"))  # another tool, so no position changes
    await settle()
    assert crowd.positions["next"] == [QueuePosition(1, 60)]
    crowd.clock.now += 10
    await crowd.end("in")  # after 30 s instead of 60: the waiting calls are expected to take half as long too
    assert crowd.positions["last"] == [QueuePosition(2, 90), QueuePosition(1, 15)]
    assert crowd.waited == {"in": 0, "next": 30, "other": 0}
    await crowd.end_all()


async def test_the_expected_wait_considers_hosts_keys_and_the_durations_of_earlier_runs() -> None:
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
    assert crowd.positions["same host"] == [QueuePosition(1, 100)]
    assert crowd.inside == ["host", "key", "after it"]  # the network was not overtaken too often yet
    assert crowd.positions["same key"] == [QueuePosition(1, 70)]
    await crowd.end_all()


def test_estimates_are_corrected_by_earlier_durations_and_the_latest_counts_most() -> None:
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


async def test_calls_of_a_tool_with_a_cap_of_zero_wait() -> None:
    crowd = Crowd(Numbers(per_tool=0))
    crowd.call("a")
    await settle()
    assert crowd.positions["a"] == [QueuePosition(1, 0)]
    crowd.numbers.per_tool = 1
    crowd.admission.refresh()
    await settle()
    assert crowd.inside == ["a"]
    await crowd.end_all()


async def test_a_listener_that_fails_does_not_affect_any_call(caplog: pytest.LogCaptureFixture) -> None:
    crowd = Crowd(Numbers(per_tool=1))
    crowd.call("in")
    await settle()

    def broken(_: QueuePosition) -> None:
        raise KeyError

    async def call() -> None:
        async with crowd.admission.slot(ticket(), broken):
            pass

    with caplog.at_level(logging.ERROR):
        task = asyncio.create_task(call())
        crowd.call("last")
        await settle()
    logged = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    assert [(line["event"], line["tool"]) for line in logged] == [("admission.on_wait_failed", "nmap")]
    assert crowd.positions["last"]
    await crowd.end_all()
    await task
