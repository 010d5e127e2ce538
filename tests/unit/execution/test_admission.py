"""The admission queue: caps, order, refusal, cancellation, event loops."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable

import pytest

from mcp_server.errors import BusyError
from mcp_server.execution.admission import Admission, Load


def admission(per_tool: int = 2, total: int = 100, max_waiting: int = 64) -> Admission:
    return Admission(lambda _: per_tool, lambda: total, max_waiting=max_waiting)


class Crowd:
    """Calls that hold their slot until told to go, and a record of who got in."""

    def __init__(self, gate: Admission) -> None:
        self.gate = gate
        self.inside: list[str] = []
        self.entered: list[str] = []
        self.go: dict[str, asyncio.Event] = {}

    def call(self, tool: str, name: str) -> asyncio.Task[None]:
        self.go[name] = asyncio.Event()
        return asyncio.create_task(self._call(tool, name))

    async def _call(self, tool: str, name: str) -> None:
        async with self.gate.slot(tool):
            self.inside.append(name)
            self.entered.append(name)
            await self.go[name].wait()
            self.inside.remove(name)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_tool_never_exceeds_its_cap_and_callers_enter_in_order() -> None:
    crowd = Crowd(admission(per_tool=2))
    tasks = [crowd.call("nmap", str(number)) for number in range(5)]
    await settle()
    assert crowd.inside == ["0", "1"]
    assert crowd.gate.load("nmap") == Load(running=2, waiting=3)
    for number in range(5):
        crowd.go[str(number)].set()
        await settle()
        assert len(crowd.inside) <= 2
    await asyncio.gather(*tasks)
    assert crowd.entered == ["0", "1", "2", "3", "4"]
    assert crowd.gate.load("nmap") == Load(0, 0)


async def test_the_total_cap_holds_over_all_tools_and_a_full_tool_holds_nobody_up() -> None:
    crowd = Crowd(Admission({"nmap": 1, "dig": 5}.__getitem__, lambda: 3))
    tasks = [crowd.call(tool, f"{tool}{number}") for number in range(3) for tool in ("nmap", "dig")]
    await settle()
    assert sorted(crowd.inside) == ["dig0", "dig1", "nmap0"]
    crowd.go["nmap0"].set()
    await settle()
    assert sorted(crowd.inside) == ["dig0", "dig1", "nmap1"]
    for event in crowd.go.values():
        event.set()
    await asyncio.gather(*tasks)


async def test_without_a_total_only_the_tool_counts() -> None:
    gate = Admission(lambda _: 1)
    async with gate.slot("a"), gate.slot("b"), gate.slot("c"):
        assert [gate.load(tool).running for tool in "abc"] == [1, 1, 1]


async def test_beyond_the_queue_a_call_is_refused_at_once_and_names_the_tool() -> None:
    gate = admission(per_tool=1, max_waiting=1)
    crowd = Crowd(gate)
    tasks = [crowd.call("nmap", "in"), crowd.call("nmap", "waiting")]
    await settle()
    with pytest.raises(BusyError, match="nmap: 1 calls are running and 1 are waiting") as caught:
        async with gate.slot("nmap"):
            pass
    assert caught.value.code == "too_many_requests"
    assert caught.value.retryable
    assert gate.load("nmap") == Load(1, 1)
    async with gate.slot("dig"):  # another tool has a queue of its own
        pass
    for event in crowd.go.values():
        event.set()
    await asyncio.gather(*tasks)


async def test_a_queue_of_none_refuses_what_cannot_run_now() -> None:
    gate = admission(per_tool=1, max_waiting=0)
    async with gate.slot("nmap"):
        with pytest.raises(BusyError):
            await gate.slot("nmap").__aenter__()
    async with gate.slot("nmap"):
        assert gate.load("nmap") == Load(1, 0)


async def test_a_cancelled_wait_leaves_the_queue() -> None:
    crowd = Crowd(admission(per_tool=1))
    first, second, third = (crowd.call("nmap", name) for name in "abc")
    await settle()
    second.cancel()
    await settle()
    assert second.cancelled()
    assert crowd.gate.load("nmap") == Load(1, 1)
    crowd.go["a"].set()
    crowd.go["c"].set()
    await asyncio.gather(first, third)
    assert crowd.entered == ["a", "c"]
    assert crowd.gate.load("nmap") == Load(0, 0)


async def test_a_place_granted_in_the_moment_of_cancellation_is_passed_on() -> None:
    gate = admission(per_tool=1)
    crowd = Crowd(gate)
    first, second, third = (crowd.call("nmap", name) for name in "abc")
    await settle()
    crowd.go["a"].set()
    while gate.load("nmap") == Load(1, 2):  # until the place is granted, and before its task has noticed
        await asyncio.sleep(0)
    second.cancel()
    await settle()
    assert crowd.inside == ["c"]
    crowd.go["c"].set()
    await asyncio.gather(first, second, third, return_exceptions=True)
    assert second.cancelled()
    assert gate.load("nmap") == Load(0, 0)


async def test_an_error_inside_gives_the_place_back() -> None:
    gate = admission(per_tool=1)
    for _ in range(3):
        with pytest.raises(KeyError):
            async with gate.slot("nmap"):
                raise KeyError
    assert gate.load("nmap") == Load(0, 0)


async def test_a_raised_cap_holds_from_the_next_call_on() -> None:
    caps = {"nmap": 1}
    crowd = Crowd(Admission(caps.__getitem__, lambda: 10))
    tasks = [crowd.call("nmap", name) for name in "ab"]
    await settle()
    assert crowd.inside == ["a"]
    caps["nmap"] = 3
    tasks.append(crowd.call("nmap", "c"))
    await settle()
    assert sorted(crowd.inside) == ["a", "b", "c"]
    for event in crowd.go.values():
        event.set()
    await asyncio.gather(*tasks)


def use_on_new_loop(gate: Admission, then: Callable[[asyncio.AbstractEventLoop], None]) -> None:
    """Leave one call running and one waiting on a loop that is closed under them."""
    loop = asyncio.new_event_loop()

    async def hold() -> None:
        async with gate.slot("nmap"):
            await asyncio.sleep(3600)

    tasks = [loop.create_task(hold()) for _ in range(2)]
    loop.run_until_complete(asyncio.sleep(0))
    then(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


def test_each_event_loop_has_its_own_places_and_takes_its_state_along() -> None:
    gate = admission(per_tool=1)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    for _ in range(3):
        use_on_new_loop(gate, lambda loop: loops.append(weakref.ref(loop)))
    gc.collect()
    assert [ref() for ref in loops] == [None, None, None]


def test_a_loop_closed_under_its_waiters_does_not_stay() -> None:
    gate = admission(per_tool=1)
    dead = asyncio.new_event_loop()

    async def start() -> list[asyncio.Task[None]]:
        async def hold() -> None:
            async with gate.slot("nmap"):
                await asyncio.sleep(3600)

        tasks = [asyncio.create_task(hold()) for _ in range(2)]
        await settle()
        assert gate.load("nmap") == Load(1, 1)
        return tasks

    tasks = dead.run_until_complete(start())
    dead.close()
    assert len(gate._states) == 1

    async def again() -> None:
        async with gate.slot("nmap"):
            assert gate.load("nmap") == Load(1, 0)

    asyncio.run(again())
    assert dead not in gate._states
    for task in tasks:  # what asyncio would complain about when they are collected
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # a C task's switch, not in its stub
