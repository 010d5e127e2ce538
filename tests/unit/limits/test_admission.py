"""Admission: caps, hosts, keys, refusal, closing, cancellation and event loops."""

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
    assert crowd.admission.load("nmap") == Load(running=2, waiting=3)
    for name in "abcde":
        await crowd.end(name)
        assert len(crowd.inside) <= 2
    assert crowd.entered == ["a", "b", "c", "d", "e"]
    assert crowd.admission.load("nmap") == Load(0, 0)
    assert crowd.admission.snapshot() == {}


async def test_the_total_cap_applies_to_all_tools_and_a_full_tool_does_not_delay_others() -> None:
    crowd = Crowd(Numbers(total=3, per_tool=2))
    for number in range(3):
        for tool in ("nmap", "dig"):
            crowd.call(f"{tool}{number}", ticket(tool))
    await settle()
    assert crowd.inside == ["nmap0", "dig0", "nmap1"]
    assert crowd.admission.snapshot() == {"dig": Load(1, 2), "nmap": Load(2, 1)}
    await crowd.end("dig0")
    assert crowd.inside == ["nmap0", "nmap1", "dig1"]
    await crowd.end_all()


async def test_a_caller_has_a_limited_number_of_slots_and_other_callers_overtake_it() -> None:
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
async def test_two_runs_do_not_touch_the_same_address_at_the_same_time(first: str, second: str, meet: bool) -> None:
    crowd = Crowd()
    crowd.call("first", ticket(at=first))
    crowd.call("second", ticket("dig", actor="other", at=second))
    await settle()
    assert crowd.inside == (["first"] if meet else ["first", "second"])
    await crowd.end("first")
    assert crowd.entered == ["first", "second"]
    await crowd.end_all()


async def test_the_cap_of_a_host_counts_runs_on_the_same_address_and_not_on_other_addresses_of_a_network() -> None:
    crowd = Crowd(Numbers(per_tool=10, per_host=2))
    crowd.call("one", ticket(at="10.0.0.1"))
    crowd.call("two", ticket(at="10.0.0.2"))
    crowd.call("all", ticket(at="10.0.0.0/24"))  # shares one address with each of the two runs
    crowd.call("third", ticket(at="10.0.0.2/31"))
    crowd.call("other", ticket(at="10.0.0.4"))
    await settle()
    assert crowd.inside == ["one", "two", "all", "other"]
    await crowd.end("two")
    assert crowd.inside == ["one", "all", "other", "third"]
    await crowd.end_all()


async def test_runs_with_the_same_key_take_turns() -> None:
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


async def test_a_call_beyond_a_full_queue_is_refused_at_once_with_a_time_to_retry() -> None:
    crowd = Crowd(Numbers(per_tool=1, max_waiting=1))
    crowd.call("in", ticket(sec=40))
    crowd.call("waiting")
    await settle()
    crowd.clock.now += 15
    with pytest.raises(BusyError, match="nmap: 1 calls are running and 1 are waiting") as caught:
        async with crowd.admission.slot(ticket()):
            pass
    assert caught.value.code == "too_many_requests"
    assert caught.value.details == {"tool": "nmap", "running": 1, "waiting": 1, "retry_after": 25}
    assert crowd.admission.load("nmap") == Load(1, 1)
    async with crowd.admission.slot(ticket("dig")):  # another tool has its own queue
        pass
    await crowd.end_all()


async def test_a_queue_of_length_zero_refuses_a_call_that_cannot_start_now() -> None:
    admission = Admission(Numbers(per_tool=1, max_waiting=0).caps())
    async with admission.slot(ticket()):
        with pytest.raises(BusyError):
            await admission.slot(ticket()).__aenter__()
    async with admission.slot(ticket()):
        assert admission.load("nmap") == Load(1, 0)


async def test_a_cancelled_call_is_removed_from_the_queue() -> None:
    crowd = Crowd(Numbers(per_tool=1))
    for name in "abc":
        crowd.call(name, ticket(at="10.0.0.1", exclusive=("k",)))
    await settle()
    crowd.tasks["b"].cancel()
    await settle()
    assert crowd.tasks["b"].cancelled()
    assert crowd.admission.load("nmap") == Load(1, 1)
    assert crowd.positions["c"][-1].position == 1
    (queue,) = crowd.admission._queues.values()
    (running,), (waiting,) = queue.running, queue.waiting.values()
    assert (running.neighbors, waiting.neighbors) == ({waiting}, {running})
    await crowd.end_all()
    assert crowd.entered == ["a", "c"]
    state = (queue.running, queue.waiting, queue.running_of, queue.waiting_of, queue._actors, queue._held)
    assert not any(state), "the queue is empty"


async def test_a_slot_granted_at_the_moment_of_cancellation_goes_to_the_next_call() -> None:
    crowd = Crowd(Numbers(per_tool=1))
    for name in "abc":
        crowd.call(name)
    await settle()
    crowd._go["a"].set()
    while crowd.admission.load("nmap") == Load(1, 2):  # until the slot is granted, and before its task has run
        await asyncio.sleep(0)
    crowd.tasks["b"].cancel()
    await settle()
    assert crowd.inside == ["c"]
    await crowd.end_all()
    assert crowd.tasks["b"].cancelled()
    assert crowd.admission.load("nmap") == Load(0, 0)


async def test_an_error_inside_releases_the_slot() -> None:
    admission = Admission(Numbers(per_tool=1).caps())
    for _ in range(3):
        with pytest.raises(KeyError):
            async with admission.slot(ticket()):
                raise KeyError
    assert admission.load("nmap") == Load(0, 0)


async def test_a_reload_applies_to_the_next_decision() -> None:
    crowd = Crowd(Numbers(per_tool=1))
    for name in "abc":
        crowd.call(name)
    await settle()
    crowd.numbers.per_tool = 2
    crowd.admission.refresh()
    await settle()
    assert crowd.inside == ["a", "b"]
    crowd.numbers.per_tool = 1
    await crowd.end("a")
    assert crowd.inside == ["b"]  # a running call continues, and its slot is not granted again
    await crowd.end("b")
    assert crowd.inside == ["c"]
    await crowd.end_all()


async def test_a_tool_that_a_reload_removed_ends_only_its_own_waiting_calls() -> None:
    known = {"nmap": 1, "dig": 1}

    def per_tool(tool: str) -> int:
        if tool not in known:
            raise NotFoundError(f"There is no tool {tool!r}.", code="unknown_tool")
        return known[tool]

    crowd = Crowd()
    crowd.admission = Admission(Caps(lambda: 1, per_tool, lambda: 9, lambda: 1, lambda: 9))
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
    assert crowd.admission.snapshot() == {}


async def test_closing_refuses_waiting_and_new_calls_and_lets_running_calls_end() -> None:
    crowd = Crowd(Numbers(per_tool=1))
    crowd.call("a")
    crowd.call("b")
    await settle()
    crowd.admission.close()
    crowd.admission.close()
    crowd.call("c")
    await settle()
    for name in "bc":
        error = crowd.tasks[name].exception()
        assert isinstance(error, BusyError)
        assert error.code == "shutting_down"
        assert error.details["retry_after"] >= 1
    assert crowd.inside == ["a"]
    drained = asyncio.create_task(crowd.admission.drained())
    await settle()
    assert not drained.done()
    await crowd.end("a")
    await drained
    await crowd.admission.drained()
    assert crowd.admission.load("nmap") == Load(0, 0)


async def test_closing_at_the_moment_of_a_cancellation_leaves_no_unread_exception() -> None:
    unread: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unread.append(context["message"]))
    crowd = Crowd(Numbers(per_tool=1))
    crowd.call("a")
    crowd.call("b")
    await settle()
    crowd.admission.close()
    crowd.tasks["b"].cancel()
    await settle()
    assert crowd.tasks["b"].cancelled()
    await crowd.end_all()
    gc.collect()
    assert unread == []


def use_on_new_loop(admission: Admission, then: Callable[[asyncio.AbstractEventLoop], None]) -> None:
    """Leave one call running and one waiting on a loop that is then closed."""
    loop = asyncio.new_event_loop()

    async def hold() -> None:
        async with admission.slot(ticket()):
            await asyncio.sleep(3600)

    tasks = [loop.create_task(hold()) for _ in range(2)]
    loop.run_until_complete(asyncio.sleep(0))
    then(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


def test_each_event_loop_has_its_own_slots_and_its_state_is_collected_with_it() -> None:
    admission = Admission(Numbers(per_tool=1).caps())
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    for _ in range(3):
        use_on_new_loop(admission, lambda loop: loops.append(weakref.ref(loop)))
    gc.collect()
    assert [ref() for ref in loops] == [None, None, None]


def test_a_closed_loop_with_waiting_calls_is_removed() -> None:
    admission = Admission(Numbers(per_tool=1).caps())
    dead = asyncio.new_event_loop()

    async def start() -> list[asyncio.Task[None]]:
        async def hold() -> None:
            async with admission.slot(ticket(), lambda _: None):
                await asyncio.sleep(3600)

        tasks = [asyncio.create_task(hold()) for _ in range(2)]
        await settle()
        assert admission.load("nmap") == Load(1, 1)
        return tasks

    tasks = dead.run_until_complete(start())
    dead.close()
    assert len(admission._queues) == 1

    async def again() -> None:
        async with admission.slot(ticket()):
            assert admission.load("nmap") == Load(1, 0)

    asyncio.run(again())
    assert dead not in admission._queues
    for task in tasks:  # asyncio would log an error for each pending task when it is collected
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # a C task's switch, not in its stub
