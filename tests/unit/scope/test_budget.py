"""The packet budget of the last hour: reservations, corrections and retry_after."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.errors import BusyError
from mcp_server.scope.budget import HOUR, SLOT, PacketBudget


def test_the_rest_of_the_budget_can_be_reserved_and_no_more() -> None:
    budget = PacketBudget()
    budget.reserve(600, 1000, now=0)
    with pytest.raises(BusyError) as caught:
        budget.reserve(401, 1000, now=60)
    assert caught.value.code == "budget_exceeded"
    assert (caught.value.details["limit"], caught.value.details["left"]) == (1000, 400)
    assert "the policy allows 1000 per hour, and 400 are left" in caught.value.message
    budget.reserve(400, 1000, now=60)
    assert budget.used(60) == 1000


def test_a_call_succeeds_after_retry_after_and_not_a_minute_earlier() -> None:
    budget = PacketBudget()
    budget.reserve(600, 1000, now=0)
    budget.reserve(300, 1000, now=1800)
    with pytest.raises(BusyError) as caught:
        budget.reserve(500, 1000, now=2000)
    wait = caught.value.details["retry_after"]
    assert 1600 <= wait <= 1600 + SLOT + 1
    with pytest.raises(BusyError):
        budget.reserve(500, 1000, now=2000 + wait - 60)
    budget.reserve(500, 1000, now=2000 + wait)


def test_a_call_larger_than_the_limit_gets_no_retry_after() -> None:
    with pytest.raises(BusyError) as caught:
        PacketBudget().reserve(1001, 1000, now=0)
    assert "retry_after" not in caught.value.details
    assert (
        caught.value.message == "The call needs up to 1001 packets; the policy allows 1000 per hour, and 1000 are left."
    )


def test_a_reservation_is_adjusted_or_released() -> None:
    budget = PacketBudget()
    first, second = budget.reserve(900, 1000, now=0), budget.reserve(50, 1000, now=1)
    budget.adjust(first, 100)
    assert budget.used(2) == 150
    budget.release(second)
    budget.release(second)
    assert budget.used(2) == 100
    budget.adjust(first, 2000)  # the tool sent more than estimated
    with pytest.raises(BusyError):
        budget.reserve(1, 1000, now=3)


def test_packets_without_a_limit_count_for_the_limit_of_a_later_reload() -> None:
    budget = PacketBudget()
    budget.reserve(5000, None, now=0)
    with pytest.raises(BusyError):
        budget.reserve(1, 1000, now=10)


def test_adjusting_a_reservation_of_an_hour_ago_has_no_effect() -> None:
    budget = PacketBudget()
    old = budget.reserve(500, 1000, now=0)
    assert budget.used(HOUR + SLOT) == 0
    budget.adjust(old, 900)
    assert budget.used(HOUR + SLOT) == 0


@given(st.lists(st.tuples(st.floats(0, 900), st.integers(1, 400)), max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_hour_has_more_packets_than_the_limit(asked: list[tuple[float, int]]) -> None:
    budget, now, granted = PacketBudget(), 0.0, deque[tuple[float, int]]()
    for pause, packets in asked:
        now += pause
        try:
            budget.reserve(packets, 1000, now)
        except BusyError:
            continue
        granted.append((now, packets))
        assert sum(number for when, number in granted if now - when < HOUR) <= 1000
    assert len(budget._all._slots) <= HOUR / SLOT + 1


def test_an_actors_budget_is_part_of_the_total_budget() -> None:
    budget = PacketBudget()
    first = budget.reserve(60, 1000, 0, actor="a", own_limit=100)
    with pytest.raises(BusyError, match="this caller may send 100 per hour, and 40 are left") as refused:
        budget.reserve(50, 1000, 1, actor="a", own_limit=100)
    assert refused.value.details["retry_after"] > HOUR - 1
    budget.reserve(50, 1000, 1, actor="b")
    assert budget.used(1) == 110, "refused packets must not be counted"
    budget.release(first)
    assert budget.used(1) == 50
    budget.reserve(100, 1000, 2, actor="a", own_limit=100)
    with pytest.raises(BusyError, match="the policy allows"):
        budget.reserve(900, 1000, 3, actor="a", own_limit=10_000)
    assert budget._hour_of("a", 3).used(3) == 100


def test_earlier_packets_count_for_a_new_limit_and_idle_actors_are_dropped() -> None:
    budget = PacketBudget()
    budget.reserve(80, None, 0, actor="a")
    with pytest.raises(BusyError):
        budget.reserve(30, None, 1, actor="a", own_limit=100)
    budget.reserve(1, None, 2 * HOUR, actor="b")
    assert set(budget._by_actor) == {"b"}
