"""The admission line: caps, hosts, keys, refusal, closing, cancellation, event loops."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable

import pytest

from mcp_server.errors import BusyError, NotFoundError
from mcp_server.limits.admission import Admission, Caps, Load
from tests.support.crowd import Crowd, Numbers, settle, ticket


async def test_a_tool_never_exceeds_its_cap_and_callers_enter_in_order() -> None:
    crowd = Crowd()
    for name in "abcde":
        crowd.call(name)
    await settle()
    assert crowd.inside == ["a", "b"]
    assert crowd.authenticator.load("nmap") == Load(running=2, waiting=3)
    for name in "abcde":
        await crowd.end(name)
        assert len(crowd.inside) <= 2
    assert crowd.entered == ["a", "b", "c", "d", "e"]
    assert crowd.authenticator.load("nmap") == Load(0, 0)
    assert crowd.authenticator.snapshot() == {}


async def test_the_total_cap_holds_over_all_tools_and_a_full_tool_holds_nobody_up() -> None:
    crowd = Crowd(Numbers(total=3, per_tool=2))
    for number in range(3):
        for tool in ("nmap", "dig"):
            crowd.call(f"{tool}{number}", ticket(tool))
    await settle()
    assert crowd.inside == ["nmap0", "dig0", "nmap1"]
    assert crowd.authenticator.snapshot() == {"dig": Load(1, 2), "nmap": Load(2, 1)}
    await crowd.end("dig0")
    assert crowd.inside == ["nmap0", "nmap1", "dig1"]
    await crowd.end_all()


async def test_one_caller_has_so_many_places_and_the_others_go_past_it() -> None:
    crowd = Crowd(Numbers(per_tool=10, per_actor=2))
    for name in ("a1", "a2", "a3", "b1"):
        crowd.call(name, ticket(actor=name[0]))
    await settle()
    assert crowd.inside == ["a1", "a2", "b1"]
    await crowd.end("b1")
    assert crowd.inside == ["a1", "a2"]
    await crowd.end("a1")
    assert crowd.inside == ["a2", "a3"]
    await crowd.end_all()


@pytest.mark.parametrize(
    ("first", "second", "meet"),
    [
        ("10.0.0.5", "10.0.0.5", True),
        ("10.0.0.0/16", "10.0.255.255", True),
        ("10.0.255.255", "10.0.0.0/16", True),
        ("10.0.0.0/16", "10.1.0.0", False),
        ("10.0.0.1 10.0.0.9 10.0.0.20", "10.0.0.8 10.0.0.10/31 10.0.0.20", True),
        ("10.0.0.1 10.0.0.9 10.0.0.20", "10.0.0.8 10.0.0.10/31 10.0.0.21", False),
        ("::a00:5", "10.0.0.5", False),
        ("fd00::/64", "fd00::5", True),
        ("", "10.0.0.5", False),
    ],
)
async def test_two_runs_do_not_touch_one_address_at_a_time(first: str, second: str, meet: bool) -> None:
    crowd = Crowd()
    crowd.call("first", ticket(at=first))
    crowd.call("second", ticket("dig", actor="other", at=second))
    await settle()
    assert crowd.inside == (["first"] if meet else ["first", "second"])
    await crowd.end("first")
    assert crowd.entered == ["first", "second"]
    await crowd.end_all()


async def test_the_cap_of_a_host_counts_runs_on_the_same_address_and_not_neighbours_of_a_network() -> None:
    crowd = Crowd(Numbers(per_tool=10, per_host=2))
    crowd.call("one", ticket(at="10.0.0.1"))
    crowd.call("two", ticket(at="10.0.0.2"))
    crowd.call("all", ticket(at="10.0.0.0/24"))  # both overlap it, on no address in common
    crowd.call("third", ticket(at="10.0.0.2/31"))
    crowd.call("other", ticket(at="10.0.0.4"))
    await settle()
    assert crowd.inside == ["one", "two", "all", "other"]
    await crowd.end("two")
    assert crowd.inside == ["one", "all", "other", "third"]
    await crowd.end_all()


async def test_runs_with_a_key_in_common_take_turns() -> None:
    crowd = Crowd(Numbers(per_tool=10))
    crowd.call("xy", ticket(exclusive=("x", "y")))
    crowd.call("y", ticket("dig", exclusive=("y",)))
    crowd.call("z", ticket(exclusive=("z", "z")))
    crowd.call("x", ticket(exclusive=("x",)))
    await settle()
    assert crowd.inside == ["xy", "z"]
    await crowd.end("xy")
    assert crowd.inside == ["z", "y", "x"]
    await crowd.end_all()


async def test_beyond_the_line_a_call_is_refused_at_once_and_told_when_to_call_again() -> None:
    crowd = Crowd(Numbers(per_tool=1, max_waiting=1))
    crowd.call("in", ticket(sec=40))
    crowd.call("waiting")
    await settle()
    crowd.clock.now += 15
    with pytest.raises(BusyError, match="nmap: 1 calls are running and 1 are waiting") as caught:
        async with crowd.authenticator.slot(ticket()):
            pass
    assert caught.value.code == "too_many_requests"
    assert caught.value.details == {"tool": "nmap", "running": 1, "waiting": 1, "retry_after": 25}
    assert crowd.authenticator.load("nmap") == Load(1, 1)
    async with crowd.authenticator.slot(ticket("dig")):  # another tool has a line of its own
        pass
    await crowd.end_all()


async def test_a_line_of_none_refuses_what_cannot_run_now() -> None:
    authenticator = Admission(Numbers(per_tool=1, max_waiting=0).caps())
    async with authenticator.slot(ticket()):
        with pytest.raises(BusyError):
            await authenticator.slot(ticket()).__aenter__()
    async with authenticator.slot(ticket()):
        assert authenticator.load("nmap") == Load(1, 0)


async def test_a_cancelled_wait_leaves_no_trace() -> None:
    crowd = Crowd(Numbers(per_tool=1))
    for name in "abc":
        crowd.call(name, ticket(at="10.0.0.1", exclusive=("k",)))
    await settle()
    crowd.tasks["b"].cancel()
    await settle()
    assert crowd.tasks["b"].cancelled()
    assert crowd.authenticator.load("nmap") == Load(1, 1)
    assert crowd.told["c"][-1].position == 1
    (line,) = crowd.authenticator._lines.values()
    (running,), (waiting,) = line.running, line.waiting.values()
    assert (running.neighbours, waiting.neighbours) == ({waiting}, {running})
    await crowd.end_all()
    assert crowd.entered == ["a", "c"]
    left = (line.running, line.waiting, line.running_of, line.waiting_of, line._actors, line._held)
    assert not any(left)


async def test_a_place_granted_in_the_moment_of_cancellation_is_passed_on() -> None:
    crowd = Crowd(Numbers(per_tool=1))
    for name in "abc":
        crowd.call(name)
    await settle()
    crowd._go["a"].set()
    while crowd.authenticator.load("nmap") == Load(1, 2):  # until the place is granted, and before its task has noticed
        await asyncio.sleep(0)
    crowd.tasks["b"].cancel()
    await settle()
    assert crowd.inside == ["c"]
    await crowd.end_all()
    assert crowd.tasks["b"].cancelled()
    assert crowd.authenticator.load("nmap") == Load(0, 0)


async def test_an_error_inside_gives_the_place_back() -> None:
    authenticator = Admission(Numbers(per_tool=1).caps())
    for _ in range(3):
        with pytest.raises(KeyError):
            async with authenticator.slot(ticket()):
                raise KeyError
    assert authenticator.load("nmap") == Load(0, 0)


async def test_a_reload_holds_from_the_next_decision_on() -> None:
    crowd = Crowd(Numbers(per_tool=1))
    for name in "abc":
        crowd.call(name)
    await settle()
    crowd.numbers.per_tool = 2
    crowd.authenticator.refresh()
    await settle()
    assert crowd.inside == ["a", "b"]
    crowd.numbers.per_tool = 1
    await crowd.end("a")
    assert crowd.inside == ["b"]  # what runs goes on, and its place is not given away
    await crowd.end("b")
    assert crowd.inside == ["c"]
    await crowd.end_all()


async def test_a_tool_that_a_reload_took_away_ends_its_own_waiting_calls_and_nobody_elses() -> None:
    known = {"nmap": 1, "dig": 1}

    def per_tool(tool: str) -> int:
        if tool not in known:
            raise NotFoundError(f"there is no tool {tool!r}", code="unknown_tool")
        return known[tool]

    crowd = Crowd()
    crowd.authenticator = Admission(Caps(lambda: 1, per_tool, lambda: 9, lambda: 1, lambda: 9))
    for name, tool in (("a", "nmap"), ("b", "dig"), ("c", "nmap")):
        crowd.call(name, ticket(tool))
    await settle()
    del known["dig"]
    await crowd.end("a")
    assert crowd.inside == ["c"]
    error = crowd.tasks["b"].exception()
    assert isinstance(error, NotFoundError)
    assert error.code == "unknown_tool"
    await crowd.end_all()
    assert crowd.authenticator.snapshot() == {}


async def test_closing_turns_away_who_waits_and_who_comes_and_lets_the_running_end() -> None:
    crowd = Crowd(Numbers(per_tool=1))
    crowd.call("a")
    crowd.call("b")
    await settle()
    crowd.authenticator.close()
    crowd.authenticator.close()
    crowd.call("c")
    await settle()
    for name in "bc":
        error = crowd.tasks[name].exception()
        assert isinstance(error, BusyError)
        assert error.code == "shutting_down"
        assert error.details["retry_after"] >= 1
    assert crowd.inside == ["a"]
    drained = asyncio.create_task(crowd.authenticator.drained())
    await settle()
    assert not drained.done()
    await crowd.end("a")
    await drained
    await crowd.authenticator.drained()
    assert crowd.authenticator.load("nmap") == Load(0, 0)


async def test_closing_in_the_moment_of_a_cancellation_leaves_nothing_unread() -> None:
    unread: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unread.append(context["message"]))
    crowd = Crowd(Numbers(per_tool=1))
    crowd.call("a")
    crowd.call("b")
    await settle()
    crowd.authenticator.close()
    crowd.tasks["b"].cancel()
    await settle()
    assert crowd.tasks["b"].cancelled()
    await crowd.end_all()
    gc.collect()
    assert unread == []


def use_on_new_loop(authenticator: Admission, then: Callable[[asyncio.AbstractEventLoop], None]) -> None:
    """Leave one call running and one waiting on a loop that is closed under them."""
    loop = asyncio.new_event_loop()

    async def hold() -> None:
        async with authenticator.slot(ticket()):
            await asyncio.sleep(3600)

    tasks = [loop.create_task(hold()) for _ in range(2)]
    loop.run_until_complete(asyncio.sleep(0))
    then(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


def test_each_event_loop_has_its_own_places_and_takes_its_state_along() -> None:
    authenticator = Admission(Numbers(per_tool=1).caps())
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    for _ in range(3):
        use_on_new_loop(authenticator, lambda loop: loops.append(weakref.ref(loop)))
    gc.collect()
    assert [ref() for ref in loops] == [None, None, None]


def test_a_loop_closed_under_its_waiters_does_not_stay() -> None:
    authenticator = Admission(Numbers(per_tool=1).caps())
    dead = asyncio.new_event_loop()

    async def start() -> list[asyncio.Task[None]]:
        async def hold() -> None:
            async with authenticator.slot(ticket(), lambda _: None):
                await asyncio.sleep(3600)

        tasks = [asyncio.create_task(hold()) for _ in range(2)]
        await settle()
        assert authenticator.load("nmap") == Load(1, 1)
        return tasks

    tasks = dead.run_until_complete(start())
    dead.close()
    assert len(authenticator._lines) == 1

    async def again() -> None:
        async with authenticator.slot(ticket()):
            assert authenticator.load("nmap") == Load(1, 0)

    asyncio.run(again())
    assert dead not in authenticator._lines
    for task in tasks:  # what asyncio would complain about when they are collected
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # a C task's switch, not in its stub
