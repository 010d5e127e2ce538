"""The hour's budget of packets: it slides, it is corrected, and it says how long to wait."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.errors import BusyError
from mcp_server.scope.budget import HOUR, SLOT, PacketBudget


def test_what_is_left_can_be_taken_and_no_more() -> None:
    budget = PacketBudget()
    budget.reserve(600, 1000, now=0)
    with pytest.raises(BusyError) as caught:
        budget.reserve(401, 1000, now=60)
    assert caught.value.code == "budget_exceeded"
    assert (caught.value.details["limit"], caught.value.details["left"]) == (1000, 400)
    assert "the policy allows 1000 per hour, and 400 are left" in caught.value.message
    budget.reserve(400, 1000, now=60)
    assert budget.used(60) == 1000


def test_waiting_as_long_as_it_says_is_enough_and_a_minute_less_is_not() -> None:
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


def test_a_call_larger_than_the_hour_is_not_told_to_wait() -> None:
    with pytest.raises(BusyError) as caught:
        PacketBudget().reserve(1001, 1000, now=0)
    assert "retry_after" not in caught.value.details
    assert caught.value.message == "The call may take 1001 packets; the policy allows 1000 per hour, and 1000 are left."


def test_a_reservation_is_corrected_or_given_back() -> None:
    budget = PacketBudget()
    first, second = budget.reserve(900, 1000, now=0), budget.reserve(50, 1000, now=1)
    budget.adjust(first, 100)
    assert budget.used(2) == 150
    budget.release(second)
    budget.release(second)
    assert budget.used(2) == 100
    budget.adjust(first, 2000)  # a tool that sent more than it said
    with pytest.raises(BusyError):
        budget.reserve(1, 1000, now=3)


def test_without_a_limit_it_still_counts_for_the_limit_of_a_reload() -> None:
    budget = PacketBudget()
    budget.reserve(5000, None, now=0)
    with pytest.raises(BusyError):
        budget.reserve(1, 1000, now=10)


def test_what_ran_an_hour_ago_is_corrected_without_effect() -> None:
    budget = PacketBudget()
    old = budget.reserve(500, 1000, now=0)
    assert budget.used(HOUR + SLOT) == 0
    budget.adjust(old, 900)
    assert budget.used(HOUR + SLOT) == 0


@given(st.lists(st.tuples(st.floats(0, 900), st.integers(1, 400)), max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_hour_ever_holds_more_than_the_limit(asked: list[tuple[float, int]]) -> None:
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


def test_an_actor_has_an_hour_of_its_by_actor_inside_that_of_all() -> None:
    budget = PacketBudget()
    first = budget.reserve(60, 1000, 0, actor="a", own_limit=100)
    with pytest.raises(BusyError, match="this caller may send 100 per hour, and 40 are left") as refused:
        budget.reserve(50, 1000, 1, actor="a", own_limit=100)
    assert refused.value.details["retry_after"] > HOUR - 1
    budget.reserve(50, 1000, 1, actor="b")
    assert budget.used(1) == 110, "what was refused counts nowhere"
    budget.release(first)
    assert budget.used(1) == 50
    budget.reserve(100, 1000, 2, actor="a", own_limit=100)
    with pytest.raises(BusyError, match="the policy allows"):
        budget.reserve(900, 1000, 3, actor="a", own_limit=10_000)
    assert budget._hour_of("a", 3).used(3) == 100


def test_what_ran_before_there_was_a_limit_counts_and_idle_actors_are_forgotten() -> None:
    budget = PacketBudget()
    budget.reserve(80, None, 0, actor="a")
    with pytest.raises(BusyError):
        budget.reserve(30, None, 1, actor="a", own_limit=100)
    budget.reserve(1, None, 2 * HOUR, actor="b")
    assert set(budget._by_actor) == {"b"}
