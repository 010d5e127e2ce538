"""The order of the queue: callers take turns, and no call waits forever or delays others without need."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mcp_server.errors import BusyError
from mcp_server.limits.admission import Load, Ticket
from mcp_server.limits.admission_queue import PATIENCE
from tests.support.crowd import Crowd, Numbers, settle, ticket


async def test_the_first_call_of_every_caller_starts_before_the_second_call_of_any() -> None:
    crowd = Crowd(Numbers(per_tool=1))
    for name in ("a0", "a1", "a2", "a3", "b1", "b2", "c1"):
        crowd.call(name, ticket(actor=name[0]))
    await settle()
    while crowd.inside:
        await crowd.end(crowd.inside[0])
    assert crowd.entered == ["a0", "a1", "b1", "c1", "a2", "b2", "a3"]


async def test_a_caller_that_fills_the_queue_takes_turns_with_a_caller_that_comes_repeatedly() -> None:
    crowd = Crowd(Numbers(per_tool=1))
    crowd.call("start", ticket(actor="c"))
    for number in range(PATIENCE * 2):
        crowd.call(f"a{number}", ticket(actor="a"))
    await settle()
    for number in range(PATIENCE):
        crowd.call(f"b{number}", ticket(actor="b"))
        await settle()
        await crowd.end(crowd.inside[0])
        await crowd.end(crowd.inside[0])
    assert [name[0] for name in crowd.entered[1:]] == ["a", "b"] * PATIENCE
    await crowd.end_all()


async def test_a_large_network_is_not_starved_by_calls_for_its_hosts() -> None:
    """After a fixed number of overtaking calls, later calls for its hosts wait for it. Other calls do not."""
    crowd = Crowd(Numbers(per_tool=3))
    crowd.call("h0", ticket(at="10.0.0.0", actor="a"))
    crowd.call("h1", ticket(at="10.0.0.1", actor="a"))
    crowd.call("wide", ticket(at="10.0.0.0/16", actor="b"))
    await settle()
    for number in range(2, PATIENCE * 3):
        crowd.call(f"h{number}", ticket(at=f"10.0.0.{number}", actor=f"c{number}"))
        await settle()
        await crowd.end(next(name for name in crowd.inside if name.startswith("h")))
        if "wide" in crowd.inside:
            break
    overtakers = crowd.entered[2 : crowd.entered.index("wide")]
    assert len(overtakers) == PATIENCE
    crowd.call("else", ticket("dig", at="10.9.0.1", actor="d"))
    await settle()
    assert "else" in crowd.inside
    await crowd.end_all()


async def overtake(crowd: Crowd, asked: Callable[[int], Ticket]) -> None:
    """Let calls overtake the waiting calls, one after the other, as often as allowed."""
    for number in range(PATIENCE):
        crowd.call(f"past{number}", asked(number))
        await settle()
        assert f"past{number}" in crowd.inside
        await crowd.end(f"past{number}")


@pytest.mark.parametrize(
    ("numbers", "waiting", "late"),
    [
        (Numbers(per_tool=1), ticket(at="10.0.0.1", actor="b"), ticket(actor="c")),
        (
            Numbers(per_tool=9, per_actor=1),
            ticket(at="10.0.0.1", actor="b"),
            ticket("dig", actor="b"),
        ),
        (
            Numbers(per_tool=9),
            ticket(at="10.0.0.1", actor="b", exclusive=("k",)),
            ticket("dig", actor="c", exclusive=("k",)),
        ),
        (Numbers(per_tool=9), ticket(at="10.0.0.1 10.0.0.2", actor="b"), ticket("dig", actor="c", at="10.0.0.2")),
    ],
    ids=["tool", "caller", "key", "host"],
)
async def test_slots_are_reserved_for_a_call_that_was_overtaken_too_often(
    numbers: Numbers, waiting: Ticket, late: Ticket
) -> None:
    crowd = Crowd(numbers)
    crowd.call("first", ticket("fping", at="10.0.0.1", actor="a"))
    crowd.call("waiting", waiting)
    await settle()
    await overtake(crowd, lambda _: late)
    crowd.call("late", late)
    await settle()
    assert crowd.inside == ["first"]
    crowd.call("else", ticket("mtr", actor="d"))
    await settle()
    assert crowd.inside == ["first", "else"]
    await crowd.end("first")
    assert "waiting" in crowd.inside
    await crowd.end_all()
    assert "late" in crowd.entered


async def test_a_call_for_other_slots_and_hosts_does_not_count_as_overtaking() -> None:
    crowd = Crowd()
    crowd.call("first", ticket(at="10.0.0.1", actor="a"))
    crowd.call("waiting", ticket(at="10.0.0.1 10.0.0.2", actor="b"))
    await settle()
    await overtake(crowd, lambda number: ticket("dig", actor=f"c{number}"))
    crowd.call("late", ticket("dig", actor="d", at="10.0.0.2"))
    await settle()
    assert crowd.inside == ["first", "late"]
    await crowd.end_all()


async def test_when_the_overtaken_call_starts_others_start_at_the_same_time() -> None:
    crowd = Crowd(Numbers(per_tool=2))
    crowd.call("first", ticket("dig", at="10.0.0.1", actor="a"))
    crowd.call("waiting", ticket(at="10.0.0.1", actor="b"))
    await settle()
    await overtake(crowd, lambda _: ticket(actor="c"))
    for name in "xyz":
        crowd.call(name, ticket(actor=name))
    await settle()
    assert crowd.inside == ["first", "x"]  # one of the two slots is reserved
    crowd.numbers.per_tool = 3
    await crowd.end("first")
    assert crowd.inside == ["x", "waiting", "y"]
    await crowd.end_all()


async def test_a_caller_at_its_own_cap_delays_no_other_caller() -> None:
    crowd = Crowd(Numbers(per_tool=2, per_actor=1))
    crowd.call("a1", ticket(actor="a"))
    crowd.call("a2", ticket(actor="a"))
    for number in range(PATIENCE * 2):
        crowd.call(f"b{number}", ticket(actor=f"b{number}"))
        await settle()
        assert f"b{number}" in crowd.inside
        await crowd.end(f"b{number}")
    await crowd.end("a1")
    assert crowd.inside == ["a2"]
    await crowd.end_all()


async def test_one_caller_cannot_fill_the_queue() -> None:
    crowd = Crowd(Numbers(per_tool=1, max_waiting=8))
    crowd.call("in")
    for number in range(6):
        crowd.call(f"a{number}", ticket(actor="a"))
    await settle()
    with pytest.raises(BusyError, match="This caller has 6 of them and may have 6"):
        async with crowd.admission.slot(ticket(actor="a")):
            pass
    for number in range(2):
        crowd.call(f"b{number}", ticket(actor="b"))
    await settle()
    assert crowd.admission.load("nmap") == Load(1, 8)
    with pytest.raises(BusyError, match="The queue is full"):
        async with crowd.admission.slot(ticket(actor="c")):
            pass
    await crowd.end_all()
    assert len(crowd.entered) == 9
